"""Everything that the machine of an OpenSIPS node can ask of its owner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from clusternode.core.effects import Outcome
from clusternode.core.types import NodeId, RequestId, ResultCode
from clusternode.core.wire.messages import Answerable
from clusternode.gateways.effects import Asked as Asked
from clusternode.gateways.effects import Destined as Destined
from clusternode.gateways.effects import Raise as Raise
from clusternode.gateways.effects import Settled as Settled


@attrs.define
class Dial:
    """Connect from the advertised address; answered by `connected` or `closed`."""

    connection: int
    """Made by the node, from 1 on; those that others open have numbers below 0."""
    host: str
    """Numeric."""
    port: int
    is_tls: bool


@attrs.define
class Send:
    """Write a whole frame in one go; may come before the connection is there, and waits then.

    Answered by `written`, which counts frames, or by `closed`.
    """

    connection: int
    frame: bytes
    is_urgent: bool
    """Overtakes the frames that are not: pings, and what is known of nodes and links."""


@attrs.define
class Close:
    """End a connection; the node has forgotten it already."""

    connection: int


@attrs.define
class Resolve:
    """Look a host up and tell with `resolved`, without addresses where there are none."""

    host: str


@attrs.define
class Arrived:
    """Something for the routes; nobody outside waits for what becomes of it."""

    origin: NodeId
    messages: Sequence[Answerable]
    """A request of a script may also be meant as a message: then it is both."""


@attrs.define
class Replied:
    """A reply to an open request."""

    request: RequestId
    node_id: NodeId
    body: bytes


@attrs.define
class Finished:
    """One asked node has finished."""

    request: RequestId
    node_id: NodeId
    outcome: Outcome
    code: ResultCode


Effect: TypeAlias = (
    Dial
    | Send
    | Close
    | Resolve
    | Raise
    | Arrived
    | Destined
    | Settled
    | Asked
    | Replied
    | Finished
)
