"""What agents see of the simulated TCP: a transport, listeners and streams, for each process."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any, Final, Protocol

import attrs
import trio

from clusternode.core.inputs import DialFailure
from clusternode.core.types import Address, Seconds
from clusternode.errors import AddressInUse
from clusternode.runtime.transport import DialError, Progress, Wire
from clusternode.simulation.surroundings import ProcessView, WorldView
from clusternode.simulation.tcp import SOCKET_BUFFER_BYTES, Dial, End, ItemKind, Tcp

PIECE_BYTES: Final = 16 * 1024
"""What goes over a narrow link at a time, so that the other side sees the beginning early."""


class Inhabitant(ProcessView, Protocol):
    """A process, as its streams see it."""

    def do(self, function: Any, *arguments: object) -> None:  # noqa: ANN401  # any function
        """Call something in the loop of the process, in its next turn."""
        ...

    def accept(self, wire: Wire) -> None:
        """Queue a connection for the listener."""
        ...


class StreamEnd(End):
    """The end of an agent's stream."""

    __slots__ = ("stream",)
    process: Inhabitant
    stream: WorldStream


class StreamConnections(Tcp[StreamEnd]):
    """All connections between the agents of a world.

    Args:
        world: Where they are.
        cuts: Draws where the bytes of a stream fall apart on their way; None: not at all.
    """

    def __init__(self, world: WorldView, cuts: random.Random | None = None) -> None:
        super().__init__(world)
        self._cuts = cuts

    def bytes_at_once(self, unread: int) -> int:
        """Tell how many of the bytes that have arrived one read brings."""
        return unread if self._cuts is None else self._cuts.randint(1, unread)

    def dial(self, process: Inhabitant, address: Address, timeout: Seconds, found: Found) -> None:
        """Begin to connect; `found` is told in the loop of the process."""
        started = self._world.now
        failed = partial(process.do, found.refuse)
        self.connect(Dial(process, address, started, started + timeout, failed, found))

    def put(self, end: StreamEnd, data: bytes) -> None:
        self._world.counts.messages += 1
        self._put(end, data, len(data))

    def is_narrow(self, end: StreamEnd) -> bool:
        """Tell whether a write takes time on its way out."""
        source, target = end.process.host.ip, end.other.process.host.ip
        network = self._world.network
        is_limited = network.quality_of(source, target).bandwidth is not None
        return is_limited or network.uplink_of(source) is not None

    def has_room(self, end: StreamEnd) -> bool:
        """Tell whether the kernels, ours and the other one, take more bytes now."""
        waiting = self._stalled_bytes(end) + len(end.other.stream.unread)
        return end.free_at <= self._world.now and waiting < SOCKET_BUFFER_BYTES

    def wait_for_room(self, end: StreamEnd) -> None:
        """Wake the writer when the kernel takes more."""
        end.wants_to_write = True
        if end.free_at > self._world.now:
            self._world.at(end.free_at, self.write_again, end)

    def finish(self, end: StreamEnd, *, reset: bool) -> None:
        """Close an end, with a reset where it leaves bytes unread (RFC 1122 section 4.2.2.13)."""
        self._forget(end)
        self._send(end, (ItemKind.END, "connection reset by peer" if reset else None, 0))

    def finish_writing(self, end: StreamEnd) -> None:
        self._send(end, (ItemKind.END, None, 0))

    # What TCP says.

    def _new_end(self, process: ProcessView, dialed: Address | None) -> StreamEnd:
        end = StreamEnd(process, dialed)
        end.stream = WorldStream(self, end)
        end.is_established = True
        return end

    def _opened(self, dial: Dial, dialer: StreamEnd, listener: StreamEnd, back: Seconds) -> None:
        self._note_link(dialer, is_up=True)
        self._note_link(listener, is_up=True)
        listener.process.accept(self._wire(listener))
        self._world.after(back, self._dialed, dial.token, dialer)

    def _wire(self, end: StreamEnd) -> Wire:
        return Wire(end.stream, end.remote, partial(self._progress, end))

    def _progress(self, end: StreamEnd) -> Progress:
        """Tell what a kernel tells: how many bytes have arrived, and how many have yet to."""
        arrived = self.arrived_bytes(end)
        waiting = end.written_bytes - arrived
        return Progress(arrived, waiting, unordered_bytes=self.bytes_ahead(end.other))

    def _dialed(self, found: Found, dialer: StreamEnd) -> None:
        dialer.process.do(found.take, self._wire(dialer))

    def _received(self, end: StreamEnd, kind: ItemKind, payload: Any) -> None:  # noqa: ANN401  # an item's
        end.stream.unread += payload
        end.process.do(end.stream.changed)

    def _received_part(self, end: StreamEnd, payload: Any) -> None:  # noqa: ANN401  # an item's
        self._received(end, ItemKind.DATA, payload[: self._world.rng.randint(0, len(payload))])

    def _ended(self, end: StreamEnd, detail: str | None) -> None:
        if not end.is_open:
            return
        if detail is None:
            end.stream.is_at_end = True
        else:
            self._forget(end)
            end.stream.broken = detail
        end.process.do(end.stream.changed)

    def write_again(self, end: StreamEnd) -> None:
        if end.wants_to_write:
            end.wants_to_write = False
            end.process.do(end.stream.changed)


@attrs.define(eq=False)
class Found:
    """What becomes of one dial."""

    is_there: trio.Event = attrs.Factory(trio.Event)
    wire: Wire | None = None
    failure: DialFailure = DialFailure.UNREACHABLE
    detail: str = ""

    def take(self, wire: Wire) -> None:
        self.wire = wire
        self.is_there.set()

    def refuse(self, failure: DialFailure, detail: str) -> None:
        self.failure, self.detail = failure, detail
        self.is_there.set()


class WorldStream(trio.abc.HalfCloseableStream):
    """One end of a connection, as its agent reads and writes it.

    Of a process that has been killed it neither brings nor takes anything any more.
    """

    def __init__(self, connections: StreamConnections, end: StreamEnd) -> None:
        self.unread = bytearray()
        """What has arrived."""
        self.is_at_end = False
        """Whether the other side has said that nothing more comes."""
        self.broken = ""
        """Why the connection is broken; empty while it is not."""
        self._connections = connections
        self._end = end
        self._is_closed = False
        self._news = trio.Event()

    def changed(self) -> None:
        """Wake who reads and who writes."""
        self._news.set()
        self._news = trio.Event()

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this end is closed")
        if self.broken or not self._end.process.is_running:
            raise trio.BrokenResourceError(self.broken or "the process was killed")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        rest = memoryview(bytes(data))
        while rest:
            await self._room()
            size = PIECE_BYTES if self._connections.is_narrow(self._end) else len(rest)
            self._connections.put(self._end, bytes(rest[:size]))
            rest = rest[size:]

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        await self._room()

    async def _room(self) -> None:
        while not self._connections.has_room(self._end):
            self._connections.wait_for_room(self._end)
            await self._news.wait()
            self._check()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        self._connections.finish_writing(self._end)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self.unread:
            self._check()
            if self.is_at_end:
                return b""
            await self._news.wait()
        if self._is_closed:
            raise trio.ClosedResourceError("this end is closed")
        size = self._connections.bytes_at_once(len(self.unread))
        data = bytes(self.unread[: size if max_bytes is None else min(size, max_bytes)])
        del self.unread[: len(data)]
        self._connections.write_again(self._end.other)
        return data

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.changed()
            if self._end.is_open and self._end.process.is_running:
                self._connections.finish(self._end, reset=bool(self.unread))
        await trio.lowlevel.checkpoint()


class WorldTransport:
    """What one process sees of the network."""

    def __init__(self, connections: StreamConnections, process: Inhabitant) -> None:
        self._connections = connections
        self._process = process
        self.listener: WorldListener | None = None

    async def dial(self, address: Address, timeout: Seconds) -> Wire:
        found = Found()
        self._connections.dial(self._process, address, timeout, found)
        await found.is_there.wait()
        if found.wire is None:
            raise DialError(found.failure, f"{address}: {found.detail}")
        return found.wire

    async def listen(self, address: Address) -> WorldListener:
        await trio.lowlevel.checkpoint()
        if self.listener is not None and self.listener.is_open:
            raise AddressInUse(f"cannot listen on {address}: another listener is there already")
        self.listener = WorldListener(address)
        return self.listener


class WorldListener:
    """The bound address of a process."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.is_open = True
        self._waiting: deque[Wire] = deque()
        self._news = trio.Event()

    def deliver(self, wire: Wire) -> None:
        self._waiting.append(wire)
        self._news.set()

    async def accept(self) -> Wire:
        while not self._waiting:
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Close; whoever is not accepted yet sees the connection close."""
        self.is_open = False
        while self._waiting:
            await trio.aclose_forcefully(self._waiting.popleft().stream)
        await trio.lowlevel.checkpoint()
