"""Everything that the machine of a DMQ node can ask of its owner."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from clusternode.core.types import NodeId, RequestId
from clusternode.core.wire.messages import Answerable
from clusternode.gateways.effects import Asked as Asked
from clusternode.gateways.effects import Destined as Destined
from clusternode.gateways.effects import Raise as Raise
from clusternode.gateways.effects import Settled as Settled
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress


@attrs.define
class Source:
    """Where bytes came from: the numeric address, and the connection if it was one."""

    host: str
    port: int
    connection: int | None = None


@attrs.define
class Send:
    """Send a request. A failure is to be told with `KamailioNode.send_failed(branch)`."""

    address: PeerAddress
    data: bytes
    branch: str


@attrs.define
class Answer:
    """Send an answer to where the request came from."""

    to: Source
    data: bytes


@attrs.define
class Resolve:
    """Look a name up, and tell with `KamailioNode.resolved` or `resolve_failed`."""

    name: NamedAddress
    is_service: bool
    """Whether the host is the name of SRV records, which then say the ports."""


@attrs.define
class Arrived:
    """A message or request for the routes; `KamailioNode.finish` takes the ticket and a code."""

    origin: NodeId
    ticket: int
    message: Answerable


@attrs.define
class Replied:
    """One asked node has finished: with its SIP answer, or `code` alone where none came."""

    request: RequestId
    node_id: NodeId
    code: int
    reason: str
    content_type: str
    body: bytes
    is_answer: bool
    """Whether it came from the node; else it is our own 408 or 480."""


Effect: TypeAlias = Send | Answer | Resolve | Raise | Arrived | Destined | Settled | Asked | Replied
