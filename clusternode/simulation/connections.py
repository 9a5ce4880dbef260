"""The connections of simulated nodes: handshake, frames, and a writer at each end; over TCP."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from clusternode.core.echoes import Echoes
from clusternode.core.effects import Write
from clusternode.core.inputs import (
    Connected,
    DialFailed,
    DialFailure,
    Disconnected,
    FramesReceived,
    Measured,
    WriteReady,
)
from clusternode.core.types import (
    Address,
    ConnectionId,
    Incarnation,
    Instant,
    NodeId,
    Seconds,
)
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Close, CloseReason, Frame, Hello
from clusternode.simulation.fidelity import Wire
from clusternode.simulation.surroundings import NodeView, ProcessView, WorldView
from clusternode.simulation.tcp import SOCKET_BUFFER_BYTES, Dial, End, ItemKind, Tcp

WRITE_SIZE_BYTES = 256 * 1024
"""How much one write takes: what the agent's writer asks for."""


class NodeEnd(End):
    """The end of a node."""

    __slots__ = ("is_quiet", "peer")
    process: NodeView
    peer: Echoes
    """What answers at the other end, once it was found quiet."""

    def __init__(self, process: ProcessView, dialed: Address | None) -> None:
        super().__init__(process, dialed)
        self.is_quiet = False  # see bundles.py


DISORDER: Seconds = 0.01
"""A handshake may have so much more time: what is due in order costs one event for all of them."""


class Deadlines:
    """By when handshakes must be done; nearly all are done long before, and cost no event."""

    def __init__(self, world: WorldView, act: Callable[[NodeEnd], None]) -> None:
        self._world = world
        self._act = act
        self._ends: deque[tuple[Instant, NodeEnd]] = deque()  # in ascending order

    def watch(self, deadline: Instant, end: NodeEnd) -> None:
        """Call for an end at its deadline, unless its handshake is over by then."""
        if not self._ends:
            self._world.at(deadline, self._due)
        elif deadline < self._ends[-1][0]:
            latest = self._ends[-1][0]
            if latest - deadline > DISORDER:
                self._world.at(deadline, self._act, end)
                return
            deadline = latest
        self._ends.append((deadline, end))

    def _due(self) -> None:
        ends, now = self._ends, self._world.now
        while ends:
            deadline, end = ends[0]
            is_over = end.is_established or not end.is_open
            if deadline > now and not is_over:
                self._world.at(deadline, self._due)
                return
            ends.popleft()
            if not is_over:
                self._act(end)


class Connections(Tcp[NodeEnd]):
    """All connections between the nodes of a world."""

    def __init__(self, world: WorldView, wire: Wire) -> None:
        super().__init__(world)
        self._wire = wire
        self._pushed: dict[NodeEnd, Frame] = {}  # frames of `WriteEach` that wait for the writer
        self._dialing = Deadlines(world, self._handshake_timeout)
        self._answering = Deadlines(world, self._handshake_timeout)
        self._hellos: dict[tuple[NodeId, Incarnation], Frame] = {}  # what each life says first

    # Dialling and the handshake.

    def _new_end(self, process: ProcessView, dialed: Address | None) -> NodeEnd:
        return NodeEnd(process, dialed)

    def dial(self, process: NodeView, address: Address) -> None:
        """Begin to connect; ends in one `Connected` or `DialFailed` for `process`."""
        started = self._world.now
        deadline = started + process.settings.discovery.handshake_timeout

        def failed(failure: DialFailure, detail: str) -> None:
            process.feed(DialFailed(address, failure, detail))

        self.connect(Dial(process, address, started, deadline, failed))

    def _opened(self, dial: Dial, dialer: NodeEnd, listener: NodeEnd, back: Seconds) -> None:
        world = self._world
        self._dialing.watch(dial.deadline, dialer)
        patience = listener.process.settings.discovery.handshake_timeout
        self._answering.watch(world.now + patience, listener)
        world.after(back, self._send_hello, dialer)

    def _send_hello(self, end: NodeEnd) -> None:
        if end.is_open:
            self._send(end, (ItemKind.HELLO, self._hello_of(end), 0))

    def _hello_of(self, end: NodeEnd) -> Frame:
        process = end.process
        life = (process.node_id, process.incarnation)
        frame = self._hellos.get(life)
        if frame is None:
            frame = self._hellos[life] = frame_of(process.hello)
        return frame

    def _handshake_timeout(self, end: NodeEnd) -> None:
        if end.is_open and not end.is_established:
            self.close(end)
            self._dial_failed(end, DialFailure.TIMEOUT, "no HELLO", None)

    def _hello_arrived(self, end: NodeEnd, hello: Frame) -> None:
        """Check the other side's HELLO, as the shell's session does."""
        (said,) = self._wire.carry([hello])
        assert isinstance(said, Hello)
        process = end.process
        if said.cluster != process.settings.cluster:
            self.refuse(end, Close(CloseReason.WRONG_CLUSTER, process.settings.cluster))
            self._dial_failed(end, DialFailure.REJECTED, "wrong cluster", None)
            return
        if end.dialed is None:
            self._send_hello(end)
        end.is_established = True
        self._note_link(end, is_up=True)
        process.feed(Connected(end.connection, said, end.dialed, end.remote))

    def _dial_failed(
        self, end: NodeEnd, failure: DialFailure, detail: str, close: Close | None
    ) -> None:
        if end.dialed is None or not end.process.is_running:
            return
        reason, value = (None, 0) if close is None else (close.reason, close.value)
        end.process.feed(DialFailed(end.dialed, failure, detail, reason, value))

    # Writing.

    def output_ready(self, end: NodeEnd) -> None:
        """Give the writer a turn at this instant, after everything that is due before it."""
        end.wants_to_write = True
        self._want_turn(end)

    def write_each(
        self, process: NodeView, connections: Sequence[ConnectionId], frame: Frame
    ) -> None:
        """Perform the effect `WriteEach`."""
        for connection in connections:
            end = process.ends.get(connection)
            if end is not None:
                self._push(end, frame)

    def _push(self, end: NodeEnd, frame: Frame) -> None:
        self._pushed[end] = frame
        self._want_turn(end)

    def _want_turn(self, end: NodeEnd) -> None:
        if not end.is_writing:
            end.is_writing = True
            self._world.soon(self._write, end)

    def _write(self, end: NodeEnd) -> None:
        """Let the node write, if the writer is free; else `_delivered` or `release` comes back."""
        if not end.is_open or not end.process.is_running:
            return
        if end.free_at > self._world.now:
            self._world.at(end.free_at, self._write, end)
            return
        if end.process.is_paused or self._stalled_bytes(end) >= SOCKET_BUFFER_BYTES:
            end.is_writing = False  # what it wants remains: see `write_again`
            return
        end.is_writing = False
        if end in self._pushed:
            self._write_pushed(end)
            return
        end.wants_to_write = False
        end.process.feed(WriteReady(end.connection, WRITE_SIZE_BYTES))

    def _write_pushed(self, end: NodeEnd) -> None:
        """Write the frame of `WriteEach`; whatever else there is has the next turn."""
        frames = [self._pushed.pop(end)]
        self.written(end, Write(end.connection, frames, more=end.wants_to_write))

    def write_again(self, end: NodeEnd) -> None:
        """Give a writer its turn that could not have it before."""
        if end.wants_to_write or end in self._pushed:
            self._want_turn(end)

    def written(self, end: NodeEnd, write: Write) -> None:
        """Perform the effect `Write`."""
        frames = write.frames
        if not frames:
            return
        self._world.counts.messages += len(frames)
        if len(frames) == 1:
            self._put(end, frames, frames[0].size_bytes)
        else:
            self._put(end, frames, sum([frame.size_bytes for frame in frames]))
        if write.more:
            self.output_ready(end)

    def measure(self, end: NodeEnd) -> None:
        """Perform the effect `Measure`."""
        arrived, received = self.arrived_bytes(end), self.arrived_bytes(end.other)
        waiting = end.written_bytes - arrived
        if end in self._pushed:
            waiting += self._pushed[end].size_bytes
        end.process.feed(Measured(end.connection, arrived, waiting, received))

    # What arrives.

    def _received(self, end: NodeEnd, kind: ItemKind, payload: Any) -> None:  # noqa: ANN401  # an item's
        if kind is ItemKind.HELLO:
            self._hello_arrived(end, payload)
        else:
            self._frames_arrived(end, payload)

    def _received_part(self, end: NodeEnd, payload: Any) -> None:  # noqa: ANN401  # an item's
        messages = self._wire.carry_part(payload)
        if messages:
            end.process.feed(FramesReceived(end.connection, messages))

    def _frames_arrived(self, end: NodeEnd, frames: list[Frame]) -> None:
        messages = self._wire.carry(frames)
        if end.is_established:
            end.process.feed(FramesReceived(end.connection, messages))
        elif isinstance(messages[-1], Close):  # refused during the handshake
            self._forget(end)
            self._dial_failed(end, DialFailure.CLOSED, "closed by the other side", messages[-1])

    def _ended(self, end: NodeEnd, detail: str | None) -> None:
        if not end.is_open:
            return
        self._forget(end)
        detail = detail or "closed by the other side"
        if end.is_established:
            end.process.feed(Disconnected(end.connection, detail))
        else:
            self._dial_failed(end, DialFailure.CLOSED, "closed by the other side", None)

    def _forget(self, end: NodeEnd) -> None:
        self._pushed.pop(end, None)
        super()._forget(end)

    def refuse(self, end: NodeEnd, close: Close | None) -> None:
        """Close politely: what was written before still arrives, then `close`, then the end."""
        self._forget(end)
        if close is not None:
            self._send(end, (ItemKind.DATA, [frame_of(close)], 0))
        self._send(end, (ItemKind.END, None, 0))
