"""Everything that an observer can see: the vocabulary of event routes, `watch` and back ends.

Each class is one event: its public name `NAME`, one short `ALIAS` accepted everywhere, and as its
fields the parameters. Names and parameters that OpenSIPS has are OpenSIPS's
(`clusterer` README, "Exported Events"); `dmq:peer-…` of Kamailio map to `peer:…`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import attrs

from clusternode.core.sip_events import (
    CacheReplicated,
    CapabilitySync,
    CommandReceived,
    ContactReplicated,
    HtableReplicated,
    LocationReplicated,
    PacketReceived,
    SipReplicated,
)


@attrs.define(unsafe_hash=True)  # one for each member, twice as fast to make
class NodeStateChanged:
    """The status of a member changed. `new_state` is 1 for active, else 0, as in OpenSIPS."""

    NAME: ClassVar[str] = "E_CLUSTERER_NODE_STATE_CHANGED"
    ALIAS: ClassVar[str] = "node:state"
    cluster_id: str
    node_id: str
    new_state: int
    status: str
    """active, not_active, disabled, left or removed."""
    previous: str
    """The status that was told before, whatever was tried meanwhile; `new` where there was none."""
    reason: str
    fail_count: int = 0


@attrs.define(unsafe_hash=True)  # as above
class PeerUp:
    """A member became active (Kamailio: `dmq:peer-up`)."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_PEER_UP"
    ALIAS: ClassVar[str] = "peer:up"
    cluster_id: str
    node_id: str
    address: str


@attrs.frozen
class PeerDown:
    """A member became not_active (Kamailio: `dmq:peer-down`)."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_PEER_DOWN"
    ALIAS: ClassVar[str] = "peer:down"
    cluster_id: str
    node_id: str
    address: str


@attrs.frozen
class PeerDisabled:
    """A member is about to be removed (Kamailio: `dmq:peer-disabled`)."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_PEER_DISABLED"
    ALIAS: ClassVar[str] = "peer:disabled"
    cluster_id: str
    node_id: str
    address: str


@attrs.frozen
class PeerRemoved:
    """A member was taken off the list."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_PEER_REMOVED"
    ALIAS: ClassVar[str] = "peer:removed"
    cluster_id: str
    node_id: str
    address: str


@attrs.frozen
class PeerLeft:
    """A member left the cluster cleanly."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_PEER_LEFT"
    ALIAS: ClassVar[str] = "peer:left"
    cluster_id: str
    node_id: str
    address: str


@attrs.frozen
class LinkChanged:
    """A member is reached another way: through others, or directly again."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_LINK_CHANGED"
    ALIAS: ClassVar[str] = "link:changed"
    cluster_id: str
    node_id: str
    link: str
    """`direct`, or `via` and the relays between us."""


@attrs.frozen
class Joined:
    """The first other member became active since we were alone (Kamailio: init callback)."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_JOINED"
    ALIAS: ClassVar[str] = "node:joined"
    cluster_id: str
    node_id: str
    """The member that was active first."""


@attrs.frozen
class RecordChanged:
    """A member changed what it says of itself: address, tags or channels."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_RECORD_CHANGED"
    ALIAS: ClassVar[str] = "node:record"
    cluster_id: str
    node_id: str
    version: int
    address: str


@attrs.frozen
class RequestReceived:
    """A request arrived."""

    NAME: ClassVar[str] = "E_CLUSTERER_REQ_RECEIVED"
    ALIAS: ClassVar[str] = "request:received"
    cluster_id: str
    src_id: str
    msg: bytes
    tag: str
    channel: str


@attrs.frozen
class ReplyReceived:
    """A reply arrived, whether or not anybody waits for it."""

    NAME: ClassVar[str] = "E_CLUSTERER_RPL_RECEIVED"
    ALIAS: ClassVar[str] = "reply:received"
    cluster_id: str
    src_id: str
    msg: bytes
    tag: str
    channel: str
    """The channel of the request; empty when we remember no request with that tag."""


@attrs.frozen
class SharingTagChanged:
    """A sharing tag changed hands."""

    NAME: ClassVar[str] = "E_CLUSTERER_SHARING_TAG_CHANGED"
    ALIAS: ClassVar[str] = "tag:changed"
    name: str
    cluster: str
    state: str
    reason: str


@attrs.frozen
class AddressUnreachable:
    """A notification address cannot be reached or resolved; raised when that begins."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_ADDRESS_UNREACHABLE"
    ALIAS: ClassVar[str] = "address:unreachable"
    cluster_id: str
    address: str
    reason: str


@attrs.frozen
class AddressReachable:
    """A notification address that could not be reached answers again."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_ADDRESS_REACHABLE"
    ALIAS: ClassVar[str] = "address:reachable"
    cluster_id: str
    address: str


@attrs.frozen
class NameStale:
    """Look-ups of a notification address have failed for minutes; its known addresses serve on."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_NAME_STALE"
    ALIAS: ClassVar[str] = "name:stale"
    cluster_id: str
    address: str
    seconds: float
    """Since the last answer."""
    reason: str


@attrs.frozen
class NameResolved:
    """A notification address whose look-ups had failed for minutes can be looked up again."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_NAME_RESOLVED"
    ALIAS: ClassVar[str] = "name:resolved"
    cluster_id: str
    address: str


@attrs.frozen
class PeerMisbehaved:
    """The other end of a connection broke the protocol, or was refused."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_PEER_MISBEHAVED"
    ALIAS: ClassVar[str] = "peer:misbehaved"
    cluster_id: str
    node_id: str
    """Empty when it never said who it is."""
    address: str
    reason: str


@attrs.frozen
class DuplicateId:
    """Two live processes have one node id."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_DUPLICATE_ID"
    ALIAS: ClassVar[str] = "node:duplicate"
    cluster_id: str
    node_id: str
    address: str
    """Where the other one, or the newcomer, is."""


@attrs.frozen
class LimitReached:
    """A bound was reached: outbox, queue, open requests. Raised once until it is over."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_LIMIT_REACHED"
    ALIAS: ClassVar[str] = "limit:reached"
    cluster_id: str
    limit: str
    node_id: str
    """The peer concerned; empty when it is none."""
    detail: str


@attrs.frozen
class LoopLagged:
    """This agent's own event loop stood still."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_LAGGED"
    ALIAS: ClassVar[str] = "node:lagged"
    cluster_id: str
    seconds: float
    route: str = ""
    """The route that ran meanwhile, if one did."""


@attrs.frozen
class RouteFailed:
    """A handler raised, took too long or was refused."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_ROUTE_FAILED"
    ALIAS: ClassVar[str] = "route:failed"
    cluster_id: str
    route: str
    reason: str


@attrs.frozen
class RoutesReloaded:
    """A reload of the routes succeeded, or failed and left the old ones in place."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_ROUTES_RELOADED"
    ALIAS: ClassVar[str] = "routes:reloaded"
    cluster_id: str
    ok: bool
    detail: str


@attrs.frozen
class StateNotWritten:
    """The state directory cannot be written: a restart will know less."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_STATE_NOT_WRITTEN"
    ALIAS: ClassVar[str] = "state:not-written"
    cluster_id: str
    detail: str


@attrs.frozen
class RecordingNotWritten:
    """What `record_dir` asks for cannot be written: the recording has a hole."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_RECORDING_NOT_WRITTEN"
    ALIAS: ClassVar[str] = "recording:not-written"
    cluster_id: str
    detail: str


@attrs.frozen
class FlatstoreRotated:
    """A back end `flatstore:` began a new file. Names and parameters are those of OpenSIPS."""

    NAME: ClassVar[str] = "E_FLATSTORE_ROTATION"
    ALIAS: ClassVar[str] = "flatstore:rotation"
    timestamp: int
    """Seconds since 1970, UTC."""
    reason: str
    """count, size, period, or mi for a command."""
    filename: str
    """The file that is written from now on."""
    old_filename: str
    """Where the lines before are."""


@attrs.frozen
class SubscriberFailed:
    """A subscriber does not get its events; raised when that begins."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_SUBSCRIBER_FAILED"
    ALIAS: ClassVar[str] = "subscriber:failed"
    event: str
    """What it subscribed to; empty for a member of `virtual:`."""
    to: str
    """Its URI, without secrets."""
    reason: str


@attrs.frozen
class SubscriberRecovered:
    """A subscriber that had failed gets its events again."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_SUBSCRIBER_RECOVERED"
    ALIAS: ClassVar[str] = "subscriber:recovered"
    event: str
    """What it subscribed to; empty for a member of `virtual:`."""
    to: str
    """Its URI, without secrets."""


@attrs.frozen
class CertificateExpires:
    """The certificate of this node expires within 30 days, or has expired; raised once a day."""

    NAME: ClassVar[str] = "E_CLUSTERNODE_CERTIFICATE_EXPIRES"
    ALIAS: ClassVar[str] = "certificate:expires"
    cluster_id: str
    node_id: str
    days: int
    """Whole days that are left; negative when it has expired."""
    not_after: str
    """As in RFC 3339."""


@attrs.frozen
class Custom:
    """An event of the user's own, made by `raise_event`."""

    NAME: ClassVar[str] = "E_CUSTOM"
    ALIAS: ClassVar[str] = ""
    name: str
    parameters: Mapping[str, Any]  # parameter → JSON value
    is_positional: bool = False
    """Whether the parameters have no names; they are called 1, 2, … then."""


Event: TypeAlias = (
    NodeStateChanged
    | PeerUp
    | PeerDown
    | PeerDisabled
    | PeerRemoved
    | PeerLeft
    | Joined
    | LinkChanged
    | RecordChanged
    | RequestReceived
    | ReplyReceived
    | SharingTagChanged
    | AddressUnreachable
    | AddressReachable
    | NameStale
    | NameResolved
    | PeerMisbehaved
    | DuplicateId
    | LimitReached
    | LoopLagged
    | RouteFailed
    | RoutesReloaded
    | StateNotWritten
    | RecordingNotWritten
    | FlatstoreRotated
    | SubscriberFailed
    | SubscriberRecovered
    | HtableReplicated
    | ContactReplicated
    | SipReplicated
    | CacheReplicated
    | LocationReplicated
    | PacketReceived
    | CapabilitySync
    | CommandReceived
    | CertificateExpires
    | Custom
)

EVENT_TYPES: tuple[type[Event], ...] = (
    NodeStateChanged,
    PeerUp,
    PeerDown,
    PeerDisabled,
    PeerRemoved,
    PeerLeft,
    Joined,
    LinkChanged,
    RecordChanged,
    RequestReceived,
    ReplyReceived,
    SharingTagChanged,
    AddressUnreachable,
    AddressReachable,
    NameStale,
    NameResolved,
    PeerMisbehaved,
    DuplicateId,
    LimitReached,
    LoopLagged,
    RouteFailed,
    RoutesReloaded,
    StateNotWritten,
    RecordingNotWritten,
    FlatstoreRotated,
    SubscriberFailed,
    SubscriberRecovered,
    HtableReplicated,
    ContactReplicated,
    SipReplicated,
    CacheReplicated,
    LocationReplicated,
    PacketReceived,
    CapabilitySync,
    CommandReceived,
    CertificateExpires,
)
