"""Everything that a node can ask its surroundings for: a closed union of values."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TypeAlias

import attrs

from clusternode.core.events import Event
from clusternode.core.inputs import KnownMember
from clusternode.core.types import (
    Address,
    ConnectionId,
    DeliveryId,
    Incarnation,
    NodeId,
    RequestId,
    ResultCode,
    Tag,
)
from clusternode.core.wire.messages import Answerable, Close, Frame


@attrs.frozen
class Dial:
    """Connect and shake hands; answered by `Connected` or `DialFailed`, always and once."""

    address: Address


@attrs.frozen
class Resolve:
    """Look a name up: SRV for `srv://`, else A and AAAA; answered by `Resolved`, once."""

    name: Address


@attrs.define
class OutputReady:
    """Something waits to be written: send `WriteReady` when the writer is free."""

    connection: ConnectionId


@attrs.define
class Write:
    """The answer to `WriteReady`: write these, in order, in one go.

    Without frames when nothing waits any more. The next `WriteReady` is due when the bytes have
    gone to the kernel and either `more` is set or an `OutputReady` has come meanwhile or comes.
    """

    connection: ConnectionId
    frames: list[Frame]
    more: bool


@attrs.define
class WriteEach:
    """Write this frame on each of these connections, at the next turn of its writer.

    The node knows of nothing else to write there, and no `WriteReady` is due for it. It goes
    before what the next `WriteReady` brings. A frame that still waits when the next one comes for
    the same connection gives way to it: nobody needs the older of two pings.
    """

    connections: list[ConnectionId]
    frame: Frame


@attrs.frozen
class Disconnect:
    """Send `close`, if any, and end the connection. The node has forgotten it already."""

    connection: ConnectionId
    close: Close | None


@attrs.frozen
class Measure:
    """Say how far the bytes of a connection have come: `Measured`, at once."""

    connection: ConnectionId


@attrs.define
class Handle:
    """Positioned messages for the routes: (position, message), in order; one per read.

    Each `Message` and `Request` is answered by one entry of `Handled`. A `Reply` in here is for
    events only: its result has been given.
    """

    origin: NodeId
    incarnation: Incarnation
    items: list[tuple[int, Answerable]]


@attrs.define
class Settle:
    """Final results: (delivery, destination, code). Exactly one per destination."""

    results: list[tuple[DeliveryId, NodeId, ResultCode]]


@attrs.define
class Fanout:
    """The destinations of a delivery are fixed, before any `Settle` names it."""

    delivery: DeliveryId
    destinations: list[NodeId]


class Outcome(enum.Enum):
    """How one asked node finished."""

    REPLIED = "replied"
    NOTHING = "nothing"
    """Its handlers ended without a reply."""
    FAILED = "failed"
    """`code` says why."""
    UNANSWERED = "unanswered"
    """The timeout came first."""


@attrs.frozen
class Asked:
    """The asked set of a request, fixed at the call."""

    request: RequestId
    node_ids: list[NodeId]


@attrs.define
class Replied:
    """A reply to an open request."""

    request: RequestId
    node_id: NodeId
    tag: Tag
    body: bytes
    content_type: str
    code: int
    reason: str = ""


@attrs.frozen
class RequestFinished:
    """One asked node has finished."""

    request: RequestId
    node_id: NodeId
    outcome: Outcome
    code: ResultCode


@attrs.frozen
class RequestEnded:
    """All asked nodes have finished, or the timeout came; nothing follows for this request."""

    request: RequestId


@attrs.define
class Emit:
    """Tell the observers."""

    event: Event


@attrs.frozen
class Persist:
    """Remember this across a restart. The newest one replaces those not yet written."""

    incarnation: Incarnation
    members: Sequence[KnownMember]


@attrs.frozen
class LeaveFinished:
    """Every reachable member knows that we leave, or it was waited for long enough."""


@attrs.frozen
class Withdraw:
    """Another live process has our node id and is the older: this one must stop."""

    detail: str
    """Where it is, or who says so."""


Effect: TypeAlias = (
    Dial
    | Resolve
    | OutputReady
    | Write
    | WriteEach
    | Disconnect
    | Measure
    | Handle
    | Settle
    | Fanout
    | Asked
    | Replied
    | RequestFinished
    | RequestEnded
    | Emit
    | Persist
    | LeaveFinished
    | Withdraw
)
