"""Every message type of the protocol: its number and its fields. Spec: docs/protocol.md, section 4.

A message is a msgpack array of its fields in the order in which they stand here. Fields are only
ever appended, with a default. Types from `POSITIONED_TYPE_MIN` on are *positioned*: both sides of
a stream count them, they are acknowledged and sent again; the others live and die with their
connection. Instances are values: nobody changes one after it was made.
"""

from __future__ import annotations

import enum
from typing import ClassVar, TypeAlias

import attrs

from clusternode.core.types import (
    ChannelName,
    Incarnation,
    NodeId,
    ResultCode,
    Seconds,
    Tag,
)

POSITIONED_TYPE_MIN = 16


class CloseReason(enum.IntEnum):
    """Why a connection is closed; sent as the last message."""

    BYE = 0
    """The node is stopping, or was told to close the connection."""
    PROTOCOL_ERROR = 1
    WRONG_CLUSTER = 2
    VERSION = 3
    """No protocol version that both sides speak."""
    SELF = 4
    """Both ends are the same process."""
    DUPLICATE_ID = 5
    """Another live process has this node id."""
    STALE_INCARNATION = 6
    """A larger incarnation of this node id is known; `value` is it."""
    DUPLICATE_CONNECTION = 7
    """Another connection between these two nodes is kept."""
    REPLACED = 8
    """A newer incarnation of the node has taken its place."""
    HANDSHAKE_TIMEOUT = 9
    REMOVED = 10
    """An operator removed the node from the member list."""
    LIMIT = 11
    """A bound was reached; `detail` names it."""
    AUTHENTICATION = 12
    """Cluster secret or certificate: missing, wrong, or not that of the node."""


@attrs.define
class Hello:
    """The first message in each direction: who I am and what I speak."""

    TYPE: ClassVar[int] = 1
    cluster: str
    node_id: NodeId
    incarnation: Incarnation
    nonce: bytes
    """16 bytes that name the process; equal to our own when we dialled ourselves."""
    protocol_min: int
    protocol_max: int
    address: str
    """What others dial."""
    body_size_max: int
    window_bytes: int
    """How many unacknowledged bytes of positioned frames this side takes."""
    agent: str = ""
    """Name and version of the program, for people."""
    challenge: bytes = b""
    """16 random bytes for this connection alone, where the cluster has a secret; else empty."""


@attrs.define
class Resume:
    """Opens the stream of a connection; the smaller node id sends it first, and so decides."""

    TYPE: ClassVar[int] = 2
    last_received: int
    """The last position taken from the peer's current incarnation; 0 for none."""
    first_held: int
    """The first position that this side can still send; last given + 1 when there is none."""


@attrs.define
class Close:
    """The last message: why the connection ends."""

    TYPE: ClassVar[int] = 3
    reason: int
    detail: str = ""
    value: int = 0


@attrs.define
class Ping:
    """Are you there? Carries the digest of the sender's record table."""

    TYPE: ClassVar[int] = 4
    number: int
    digest: int
    """64 bits over (node_id, incarnation, version) of all records."""


@attrs.define
class Pong:
    """The answer to the ping with the same number."""

    TYPE: ClassVar[int] = 5
    number: int
    digest: int


@attrs.define
class Ack:
    """All positions up to and including this one have been taken."""

    TYPE: ClassVar[int] = 6
    position: int


@attrs.define
class Proof:
    """I know the cluster's secret. Only directly after HELLO, and only where there is one."""

    TYPE: ClassVar[int] = 10
    mac: bytes
    """HMAC-SHA-256, keyed with the secret, over "client" or "server" and both HELLOs' hash."""


@attrs.frozen
class Record:
    """What a node says of itself; only the owner changes it and bumps `version`."""

    node_id: NodeId
    incarnation: Incarnation
    version: int
    address: str
    tags: tuple[tuple[str, str], ...] = ()  # sorted by key
    channels: tuple[ChannelName, ...] = ()  # sorted
    left: bool = False
    priority: int = 50
    silent_for: Seconds = attrs.field(default=0.0, eq=False)
    """Seconds since anyone had contact, as the sender knows it; not part of the record proper."""
    down: tuple[NodeId, ...] = ()  # sorted
    """Members that it reaches through others only: its links to them are down."""

    @property
    def key(self) -> tuple[int, int]:
        return (self.incarnation, self.version)

    def told_after(self, silent_for: Seconds) -> Record:
        """Return it as somebody tells it who has not heard of its owner for so long.

        All fields by hand: thousands are told while a large cluster forms.
        """
        return Record(
            self.node_id,
            self.incarnation,
            self.version,
            self.address,
            self.tags,
            self.channels,
            self.left,
            self.priority,
            silent_for,
            self.down,
        )


@attrs.define
class Records:
    """Whole records: one's own after a change, or those the other side lacks."""

    TYPE: ClassVar[int] = 7
    records: list[Record]


@attrs.define
class ListEntry:
    """One line of a digest exchange."""

    node_id: NodeId
    incarnation: Incarnation
    version: int
    silent_for: Seconds


@attrs.define
class List:
    """All record versions that the sender knows; the receiver answers with `Records` and `Want`."""

    TYPE: ClassVar[int] = 8
    entries: list[ListEntry]


@attrs.define
class Want:
    """Send me these records."""

    TYPE: ClassVar[int] = 9
    node_ids: list[NodeId]


@attrs.define
class Routed:
    """What `origin` says to `destination` through others; relays pass it on as it is.

    `relays` is the whole way, in the direction of travel, so no relay decides anything: each looks
    for itself in the list, and nobody is met twice.
    """

    TYPE: ClassVar[int] = 11
    origin: NodeId
    origin_incarnation: Incarnation
    destination: NodeId
    destination_incarnation: Incarnation
    relays: tuple[NodeId, ...]
    type: int
    """The type of what is inside: `Ping`, `Pong` or `Segment`."""
    payload: bytes
    """Its payload, as in a frame of its own."""


@attrs.define
class NoRoute:
    """A relay tells the origin that it cannot pass on what goes this way. Goes back the same way.

    All fields but the last are those of what was to be passed on.
    """

    TYPE: ClassVar[int] = 12
    origin: NodeId
    destination: NodeId
    relays: tuple[NodeId, ...]
    at: NodeId
    """The relay that has no connection to who follows it in `relays`, or to the destination."""


@attrs.define
class Segment:
    """A piece of one direction of a tunnel: a connection whose bytes travel in `Routed`."""

    TYPE: ClassVar[int] = 13
    number: int
    """Of the tunnel; the smaller of both node ids begins it and numbers it."""
    received: int
    """How many bytes of the other direction have been taken: an acknowledgement."""
    offset: int
    """How many bytes of this direction come before `data`."""
    data: bytes = b""
    ends: bool = False
    """Whether the sender knows the tunnel no more."""


@attrs.define
class Message:
    """A broadcast or unicast message on a channel. Answered by one result."""

    TYPE: ClassVar[int] = 16
    channel: ChannelName
    content_type: str
    body: bytes
    message_id: int
    """Unique within the origin's incarnation; the copies of one broadcast share it."""
    max_forwards: int = 1
    """How many more times applications and bridges may pass it on."""
    replicated: bool = False
    """Whether it is a copy made by `replicate`, which is never replicated again."""
    source: str = ""
    """The node that first sent a replicated message; empty when that is the origin."""


@attrs.define
class Request:
    """A message that may be answered with any number of replies. Its result says: finished."""

    TYPE: ClassVar[int] = 17
    channel: ChannelName
    content_type: str
    body: bytes
    tag: Tag
    timeout: Seconds
    """How long the asker waits, from the moment it asked."""


@attrs.define
class Reply:
    """One reply to a request. Its result: 200 taken, 404 no request with that tag is open."""

    TYPE: ClassVar[int] = 18
    tag: Tag
    content_type: str
    body: bytes
    code: int = 200


@attrs.frozen
class Run:
    """The positions `first` to `last` of your stream all ended with `code`."""

    first: int
    last: int
    code: int


@attrs.define
class Results:
    """Final results of messages, requests and replies. Has no result itself."""

    TYPE: ClassVar[int] = 19
    runs: list[Run]


@attrs.define
class Unknown:
    """A type of a newer minor version: counted and, where positioned, ended with 400."""

    TYPE: ClassVar[int] = -1
    type: int


Answerable: TypeAlias = Message | Request | Reply
"""Positioned messages that are answered by a result."""
Positioned: TypeAlias = Message | Request | Reply | Results
Control: TypeAlias = (
    Resume | Close | Ping | Pong | Ack | Records | List | Want | Routed | NoRoute | Segment
)
WireMessage: TypeAlias = Hello | Proof | Control | Positioned | Unknown

RESULT_CODES: frozenset[int] = frozenset(ResultCode)


@attrs.define(eq=False)
class Frame:
    """A message on its way out; shared by all destinations of a broadcast.

    `encoded` is filled by the first writer that needs it (`codec.encoded_of`), so a broadcast is
    encoded once. `size_bytes` is what the frame counts for in windows and outboxes: the payload
    and a fixed overhead, never less than what goes over the wire.
    """

    message: WireMessage
    size_bytes: int
    encoded: bytes | None = None
