"""Connections for large worlds: what is written at one instant over good links arrives together.

Between two nodes with nothing wrong between them, a frame costs no event and no draw of its own:
one event carries all that was written at an instant, wherever it goes, and the answer to a ping
comes back with it. As soon as anything is wrong with a link or an end it is simulated as
everywhere else. Described in docs/simulation.md ("What is simulated, and what is not").
"""

from __future__ import annotations

from collections.abc import Sequence

from clusternode.core.types import ConnectionId, Instant
from clusternode.core.wire.messages import Frame, Ping, Pong, WireMessage
from clusternode.simulation.connections import WRITE_SIZE_BYTES, Connections, NodeEnd
from clusternode.simulation.fidelity import Wire
from clusternode.simulation.surroundings import NodeView, WorldView
from clusternode.simulation.tcp import Item, ItemKind

Bundle = list[tuple[NodeEnd, Item, int]]  # who sent it, what, and in which generation


class BundledConnections(Connections):
    """All connections between the nodes of a large world."""

    def __init__(self, world: WorldView, wire: Wire) -> None:
        super().__init__(world, wire)
        self._turns: list[NodeEnd] = []
        self._bundle: Bundle = []
        self._written_at: Instant = 0.0
        self._arrives_at: Instant = 0.0

    def output_ready(self, end: NodeEnd) -> None:
        """Give the writer a turn at this instant, with all others that have one."""
        end.wants_to_write = True
        if not end.is_writing:
            self._want_turn(end)

    def _want_turn(self, end: NodeEnd) -> None:
        if not end.is_writing:
            end.is_writing = True
            if not self._turns:
                self._world.soon(self._give_turns)
            self._turns.append(end)

    def _give_turns(self) -> None:
        turns, self._turns = self._turns, []
        pushed = self._pushed
        for end in turns:
            process = end.process
            if (
                end in pushed
                or end.stalled
                or end.flow.rate
                or process.is_paused
                or not process.is_running
            ):
                self._write(end)
            elif end.is_open:
                end.wants_to_write = end.is_writing = False
                write = process.take(end.connection, WRITE_SIZE_BYTES)
                if write is not None and write.frames:
                    self.written(end, write)

    def _put(self, end: NodeEnd, payload: list[Frame], size: int) -> None:
        """Send data: with all else that is written now if nothing is wrong with the link."""
        world = self._world
        network = world.network
        if end.on_the_way or end.flow.rate or not (network.is_plain or self._is_plain(end)):
            super()._put(end, payload, size)
            return
        if self._written_at != world.now:
            self._begin_bundle()
        flow = end.flow
        if flow.last_arrival > self._arrives_at:
            super()._put(end, payload, size)
            return
        flow.written_bytes += size
        flow.last_arrival = self._arrives_at
        item = (ItemKind.DATA, payload, size)
        end.on_the_way.append(item)
        self._bundle.append((end, item, end.generation))

    def _begin_bundle(self) -> None:
        """Make the bundle with which what is written at this instant arrives."""
        world = self._world
        self._written_at = world.now
        self._bundle = []
        self._arrives_at = world.now + world.network.delay("", "")
        world.at(self._arrives_at, self._arrive_together, self._bundle)

    def write_each(
        self, process: NodeView, connections: Sequence[ConnectionId], frame: Frame
    ) -> None:
        """Write a ping on many connections: it arrives as one, where nothing is wrong with any."""
        if self._written_at != self._world.now:
            self._begin_bundle()
        arrives_at, size = self._arrives_at, frame.size_bytes
        is_plain = self._world.network.is_plain
        ends = process.ends
        item = (ItemKind.DATA, [frame], size)
        sent: list[tuple[NodeEnd, int]] = []
        for connection in connections:
            end = ends.get(connection)
            if end is None:
                continue
            flow = end.flow
            if (
                end.is_writing
                or end.on_the_way
                or end.stalled
                or flow.rate
                or flow.last_arrival > arrives_at
                or not (is_plain or self._is_plain(end))
            ):
                self._push(end, frame)
                continue
            flow.written_bytes += size
            flow.last_arrival = arrives_at
            end.on_the_way.append(item)
            sent.append((end, end.generation))
        self._world.counts.messages += len(sent)
        self._world.at(arrives_at, self._pings_arrive, process, item, sent)

    def _pings_arrive(
        self, asker: NodeView, item: Item, sent: Sequence[tuple[NodeEnd, int]]
    ) -> None:
        """Bring a ping to many nodes, and the pongs of those back that have nothing else to say."""
        is_plain = self._world.network.is_plain
        frames = item[1]
        ping = frames[0].message
        is_there = asker.is_running and not asker.is_paused
        answered: list[ConnectionId] = []
        for end, generation in sent:
            other = end.other
            process = other.process
            if (
                generation != end.generation
                or end.stalled
                or not other.is_open
                or not other.is_established
                or not process.is_running
                or process.is_paused
                or not (is_plain or self._is_plain(end))
            ):
                self._arrive(end, item, generation)
                continue
            end.on_the_way.pop(0)
            if (
                is_there
                and end.is_open
                and not other.on_the_way
                and not other.stalled
                and process.answers(other.connection, ping)
            ):
                answered.append(end.connection)
            else:
                process.receive(other.connection, frames)
        if answered:
            asker.answered(answered, Pong(ping.number, ping.digest))

    def _is_plain(self, end: NodeEnd) -> bool:
        return self._world.network.is_plain_between(end.process.host.ip, end.other.process.host.ip)

    def _arrive_together(self, bundle: Bundle) -> None:
        is_plain = self._world.network.is_plain
        for end, item, generation in bundle:
            other = end.other
            process = other.process
            if (
                generation == end.generation
                and not end.stalled
                and other.is_open
                and other.is_established
                and process.is_running
                and not process.is_paused
                and (is_plain or self._is_plain(end))
            ):
                end.on_the_way.pop(0)
                frames = item[1]
                if len(frames) != 1 or not self._is_echoed(end, frames[0].message):
                    process.receive(other.connection, frames)
            else:
                self._arrive(end, item, generation)

    @staticmethod
    def _is_echoed(end: NodeEnd, message: WireMessage) -> bool:
        """Bring the answer to a ping back with the event that brought the ping, if that is all."""
        if type(message) is not Ping or not end.is_open:
            return False
        other, asker = end.other, end.process
        if other.on_the_way or other.stalled or asker.is_paused or not asker.is_running:
            return False
        if not other.process.answers(other.connection, message):
            return False
        asker.answered([end.connection], Pong(message.number, message.digest))
        return True
