"""Everything that can happen to a node: a closed union of values for `Node.step`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TypeAlias

import attrs

from clusternode.core.types import (
    Address,
    ChannelName,
    ConnectionId,
    DeliveryId,
    Incarnation,
    NodeId,
    RequestId,
    ResultCode,
    Seconds,
    Tag,
)
from clusternode.core.wire.messages import Hello, WireMessage


@attrs.define
class KnownMember:
    """A member remembered from an earlier life of this node (state directory)."""

    node_id: NodeId
    address: Address
    silent_for: Seconds


@attrs.frozen
class Start:
    """Begin: resolve and dial the notification addresses and everyone known from before."""

    known_members: Sequence[KnownMember] = ()


@attrs.frozen
class TimePassed:
    """Nothing happened but time; sent when `next_deadline` has come."""


@attrs.define
class Connected:
    """A connection has exchanged and checked both HELLOs. `dialed` is None where we listened."""

    connection: ConnectionId
    hello: Hello
    dialed: Address | None
    remote: str
    """The numeric address of the other end, `host:port`, for people and `is_from_node`."""


class DialFailure(enum.Enum):
    """Why a dial did not lead to a connection."""

    REFUSED = "refused"
    """Nobody listens there: the host is up, the process is not."""
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    UNRESOLVED = "unresolved"
    """The host name has no address."""
    CLOSED = "closed"
    """The other side closed before both HELLOs were exchanged; `close` has its reason if given."""
    REJECTED = "rejected"
    """The other side's HELLO was not acceptable: wrong cluster, version, or garbage."""


@attrs.frozen
class DialFailed:
    """A dial that the effect `Dial` asked for came to nothing."""

    address: Address
    failure: DialFailure
    detail: str = ""
    close_reason: int | None = None
    """The `CloseReason` that the other side gave, if it gave one."""
    close_value: int = 0


@attrs.define
class FramesReceived:
    """What one read of a connection brought, in order; one input per read."""

    connection: ConnectionId
    messages: list[WireMessage]


@attrs.define
class WriteReady:
    """The writer of a connection is free and takes up to `bytes_max` (at least one frame)."""

    connection: ConnectionId
    bytes_max: int


@attrs.frozen
class Measured:
    """The answer to the effect `Measure`: how far the bytes of a connection have come."""

    connection: ConnectionId
    arrived_bytes: int
    """What the other host has confirmed since the connection began."""
    waiting_bytes: int
    """What was given to the writer and is not confirmed yet."""
    received_bytes: int
    """What came in since the connection began, whole frames or not."""
    scattered_bytes: int = 0
    """What the other host has confirmed beyond a gap, which a lost packet has left."""
    round_trip: Seconds = 0.0
    retransmission_timeout: Seconds = 0.0
    """How long the transport waits before it sends a lost packet again, for the first time."""

    @property
    def moved_bytes(self) -> int:
        return self.arrived_bytes + self.scattered_bytes


@attrs.frozen
class Disconnected:
    """A connection has ended. `misbehaved` when the peer broke the protocol."""

    connection: ConnectionId
    detail: str = ""
    misbehaved: bool = False


@attrs.frozen
class ResolvedAddress:
    """One answer of the resolver, best first within one `Resolved`."""

    address: Address  # numeric host
    priority: int = 0
    weight: int = 0


@attrs.frozen
class Resolved:
    """The answer to the effect `Resolve`. `error` is None when it succeeded."""

    name: Address
    addresses: Sequence[ResolvedAddress] = ()
    error: str | None = None


@attrs.define
class Publish:
    """Send a message: to `destinations`, or to every member that has not left but self if None."""

    delivery: DeliveryId
    channel: ChannelName
    body: bytes
    content_type: str = "application/octet-stream"
    destinations: Sequence[NodeId] | None = None
    excluded: Sequence[NodeId] = ()
    max_forwards: int = 1
    replicated: bool = False
    source: str = ""


@attrs.define
class Ask:
    """Open a request; the answers come as the effects `Asked`, `Replied` and `RequestEnded`."""

    request: RequestId
    channel: ChannelName
    body: bytes
    tag: Tag
    timeout: Seconds
    content_type: str = "application/octet-stream"
    destinations: Sequence[NodeId] | None = None
    include_self: bool = False


@attrs.frozen
class CancelRequest:
    """Nobody waits for the request any more."""

    request: RequestId


@attrs.define
class Answer:
    """Send a reply with `tag` to a node; `delivery` gets its result like a message's."""

    delivery: DeliveryId
    node_id: NodeId
    tag: Tag
    body: bytes
    content_type: str = "application/octet-stream"
    code: int = 200


@attrs.define
class Handled:
    """Handlers have ended: (position, code) of each message of one `Handle`, in any grouping."""

    origin: NodeId
    incarnation: Incarnation
    """Both as in the `Handle`."""
    results: Sequence[tuple[int, ResultCode]]


@attrs.frozen
class ChannelsChanged:
    """The routes now listen to these channels."""

    channels: tuple[ChannelName, ...]


@attrs.frozen
class RecordSettingsChanged:
    """The configuration was reloaded: tags and priority of the own record."""

    tags: tuple[tuple[str, str], ...]
    priority: int


@attrs.frozen
class AddMember:
    """Dial an address from now on, as if it had been heard of (Kamailio: dmq.add)."""

    address: Address


@attrs.frozen
class RemoveMember:
    """Take a member off the list here (Kamailio: dmq.remove)."""

    node_id: NodeId


@attrs.frozen
class ChangeStatus:
    """Set the status of a member here until its next ping ends (Kamailio: dmq.change_status)."""

    node_id: NodeId
    status: str
    """active, not_active or disabled."""


@attrs.frozen
class Lagged:
    """The event loop stood still for so many seconds: discount the silence of others."""

    seconds: Seconds


@attrs.frozen
class Leave:
    """Publish that we leave; the effect `LeaveFinished` follows when the others know it."""


@attrs.frozen
class Persisted:
    """What `Persist` asked for is on disk."""


@attrs.frozen
class PersistFailed:
    """What `Persist` asked for could not be written."""

    detail: str


Input: TypeAlias = (
    Start
    | TimePassed
    | Connected
    | DialFailed
    | FramesReceived
    | WriteReady
    | Measured
    | Disconnected
    | Resolved
    | Publish
    | Ask
    | CancelRequest
    | Answer
    | Handled
    | ChannelsChanged
    | RecordSettingsChanged
    | AddMember
    | RemoveMember
    | ChangeStatus
    | Lagged
    | Leave
    | Persisted
    | PersistFailed
)
