"""The interface `Bus`: name, members, broadcast, send, request, events.

Our mesh is the first implementation (`clusternode.bus.mesh`), each gateway is another. Routes,
control and command line know nothing else. Specified in docs/scripting.md.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Protocol, Self, runtime_checkable

import attrs
import trio

from clusternode.core.effects import Outcome
from clusternode.core.events import Event
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import ChannelName, NodeId, ResultCode, Seconds, Tag
from clusternode.core.wire.messages import Answerable

DEFAULT_CONTENT_TYPE = "application/octet-stream"
TEXT_CONTENT_TYPE = "text/plain"
REQUEST_TIMEOUT: Seconds = 5.0
"""How long a request waits when nothing else is said."""

ResultCallback = Callable[[NodeId, ResultCode], None]


class Delivery:
    """One accepted message: exactly one final result per destination.

    `await delivery` waits for all of them and returns `results`; it may be awaited any number of
    times, by any number of tasks, or not at all. `on_result` is called once per destination, in
    the agent's thread, and must not block.
    """

    __slots__ = ("_event", "_pending", "on_result", "results")

    def __init__(self, on_result: ResultCallback | None = None) -> None:
        self.results: dict[NodeId, ResultCode] = {}
        self.on_result = on_result
        self._pending = -1  # unknown until the destinations are fixed
        self._event: trio.Event | None = None

    @property
    def is_complete(self) -> bool:
        return self._pending == 0

    @property
    def is_ok(self) -> bool:
        """Tell whether every destination has handled the message."""
        return self._pending == 0 and all(
            code in (ResultCode.OK, ResultCode.QUEUED) for code in self.results.values()
        )

    def fix_destinations(self, count: int) -> None:
        """Say how many results will come. Called by the bus, once."""
        self._pending = count
        if count == 0 and self._event is not None:
            self._event.set()

    def settle(self, node_id: NodeId, code: ResultCode) -> None:
        """Take the final result of one destination. Called by the bus."""
        self.results[node_id] = code
        self._pending -= 1
        if self.on_result is not None:
            self.on_result(node_id, code)
        if self._pending == 0 and self._event is not None:
            self._event.set()

    def __await__(self) -> Generator[Any, None, dict[NodeId, ResultCode]]:
        return self._wait().__await__()

    async def _wait(self) -> dict[NodeId, ResultCode]:
        if self._pending == 0:
            await trio.lowlevel.checkpoint()
        else:
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        return self.results


@attrs.frozen
class Reply:
    """One answer to a request."""

    node_id: NodeId
    body: bytes
    content_type: str = DEFAULT_CONTENT_TYPE
    code: int = 200
    round_trip_s: Seconds = 0.0
    """From the call to this reply."""
    reason: str = ""
    """The words beside the code, where the protocol of the bus has them (SIP)."""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@attrs.frozen
class NodeOutcome:
    """How one asked node finished: which way, with which code, after how many replies."""

    outcome: Outcome
    code: ResultCode
    replies: int


class Replies(Protocol):
    """The replies to one request, as they come: `async for reply in replies`.

    Ends when every asked node has finished or at the timeout. `outcomes` then names every asked
    node. Leaving `async with` early, or cancelling, closes the request.
    """

    @property
    def tag(self) -> Tag: ...
    @property
    def asked(self) -> Sequence[NodeId]: ...
    @property
    def outcomes(self) -> Mapping[NodeId, NodeOutcome]: ...
    def __aiter__(self) -> AsyncIterator[Reply]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: object) -> None: ...
    async def gather(self) -> list[Reply]:
        """Wait for the end and return all replies in the order of their arrival."""
        ...

    async def first(self) -> Reply | None:
        """Return the first reply and close the request; None when nobody replied."""
        ...


@attrs.define
class Arrivals:
    """Messages, requests and late replies from one origin, in order: the work of one read.

    `finish` takes (ticket, code) for each `Message` and `Request` once its handlers have ended,
    in any grouping and order; a `Reply` is for events only and is never finished.
    """

    bus: Bus
    origin: NodeId
    items: list[tuple[int, Answerable]]  # (ticket, message)
    finish: Callable[[Sequence[tuple[int, ResultCode]]], None]
    channels: Mapping[Tag, ChannelName] = attrs.field(factory=dict)  # tag of ours → its channel
    is_either: bool = False
    """Whether message and request in it are one, of a cluster that does not tell them apart: what
    of the two has no handlers was never meant."""


@attrs.frozen
class Operation:
    """Something that a bus does beyond `Bus`, as its cluster's own tools do."""

    name: str
    parameters: str
    """As a usage line has them: `NODE COMMAND [PARAMETER…]`."""
    help: str


@runtime_checkable
class Operable(Protocol):
    """A bus with operations of its own."""

    def operations(self) -> Sequence[Operation]: ...
    def operate(self, name: str, arguments: Sequence[str]) -> object:
        """Carry an operation out and return what it says, as JSON values.

        Raises:
            ConfigError: There is no such operation, or an argument is wrong.
            ClusternodeError: It cannot be done.
        """
        ...


@attrs.frozen
class Sight:
    """What one node sees of another."""

    status: str
    """active, not_active or disabled."""
    link: str
    """direct, `via` and a node, or none."""
    round_trip_s: Seconds | None = None


@runtime_checkable
class Surveyed(Protocol):
    """A bus that knows what the others see without asking: its cluster floods the links."""

    def survey(self) -> Mapping[NodeId, Mapping[NodeId, Sight]]:
        """Return what each node sees of each: node → other node → what."""
        ...


class Receiver(Protocol):
    """Who takes what a bus brings: the dispatcher of the routes. Neither call may block."""

    def arrived(self, arrivals: Arrivals) -> None: ...
    def observed(self, bus: Bus, event: Event) -> None: ...


class Bus(Protocol):
    """A cluster that this agent is a node of."""

    @property
    def name(self) -> str:
        """The cluster's name; what `cluster=`, `via=` and `--cluster` say."""
        ...

    @property
    def node_id(self) -> NodeId: ...

    def snapshot(self) -> NodeSnapshot: ...

    def members(self) -> Sequence[MemberSnapshot]:
        """The own row first, then the others by node id."""
        ...

    def broadcast(
        self,
        channel: str,
        body: bytes | str,
        *,
        except_: Iterable[str] = (),
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        """Send to every member that has not left, but self. `str` goes as UTF-8 text/plain.

        Raises:
            ConfigError: `channel` is not a name of `[A-Za-z0-9._:-]{1,64}`.
            BodyTooLarge: The body is larger than this node may send.
        """
        ...

    def send(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        """Send to one node; the own id is allowed. An unknown node ends as 480.

        Raises:
            ConfigError, BodyTooLarge: As `broadcast`.
        """
        ...

    def replicate(
        self,
        channel: str,
        body: bytes | str,
        *,
        source: str = "",
        replicated: bool = False,
        skip_loop_test: bool = False,
        content_type: str | None = None,
        on_result: ResultCallback | None = None,
    ) -> Delivery | None:
        """Broadcast marked as a copy; None when it is itself a copy or `source` is a member.

        Meaning: Kamailio DMQ README 4.5, dmq_t_replicate.
        """
        ...

    def broadcast_request(
        self,
        channel: str,
        body: bytes | str,
        *,
        timeout: Seconds = REQUEST_TIMEOUT,
        tag: str | None = None,
        include_self: bool = False,
        content_type: str | None = None,
    ) -> Replies:
        """Ask every member that has not left.

        Raises:
            ConfigError, BodyTooLarge: As `broadcast`.
            Overloaded: Too many requests are open.
        """
        ...

    def request(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        timeout: Seconds = REQUEST_TIMEOUT,
        tag: str | None = None,
        content_type: str | None = None,
    ) -> Replies:
        """Ask one node; the own id is allowed."""
        ...

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        """Answer a request by its tag (OpenSIPS: cluster_send_rpl). 404: no such request there."""
        ...

    def rank(self, channel: str) -> tuple[int, int] | None:
        """Tell (own index, count) among the reachable members that listen on a channel.

        None when this node does not listen there. Meaning: OpenSIPS's get_my_index.
        """
        ...

    def is_from_node(self, address: str) -> bool:
        """Tell whether an IP address, with or without a port, is a member's (dmq_is_from_node)."""
        ...

    def set_channels(self, channels: Iterable[str]) -> None:
        """Say which channels the routes listen to now."""
        ...

    def attach(self, receiver: Receiver) -> None:
        """Hand everything that arrives and happens to `receiver`, from now on."""
        ...

    def add(self, address: str) -> None: ...
    def remove(self, node_id: str) -> None:
        """Take a member off the list here.

        Raises:
            NoSuchNode: It is not on the list, or is this node.
        """
        ...

    def change_status(self, node_id: str, status: str) -> None: ...
