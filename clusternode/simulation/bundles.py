"""Connections for large worlds: what is written at one instant over good links arrives together.

Between two nodes with nothing wrong between them, a frame costs no event and no draw of its own:
one event carries all that was written at an instant, wherever it goes, and the answer to a ping
comes back with it. As soon as anything is wrong with a link or an end it is simulated as
everywhere else. Described in docs/simulation.md ("What is simulated, and what is not").
"""

from __future__ import annotations

from clusternode.core.types import Instant
from clusternode.core.wire.messages import Frame, Ping, WireMessage
from clusternode.simulation.connections import WRITE_SIZE_BYTES, Connections, NodeEnd
from clusternode.simulation.fidelity import Wire
from clusternode.simulation.surroundings import WorldView
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
        """Give the writer a turn at this instant, after everything that is due before it."""
        end.wants_to_write = True
        if not end.is_writing:
            end.is_writing = True
            if not self._turns:
                self._world.soon(self._give_turns)
            self._turns.append(end)

    def _give_turns(self) -> None:
        turns, self._turns = self._turns, []
        for end in turns:
            process = end.process
            if end.stalled or end.flow.rate or process.is_paused or not process.is_running:
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
            self._written_at = world.now
            self._bundle = []
            self._arrives_at = world.now + network.delay("", "")
            world.at(self._arrives_at, self._arrive_together, self._bundle)
        flow = end.flow
        if flow.last_arrival > self._arrives_at:
            super()._put(end, payload, size)
            return
        flow.written_bytes += size
        flow.last_arrival = self._arrives_at
        item = (ItemKind.DATA, payload, size)
        end.on_the_way.append(item)
        self._bundle.append((end, item, end.generation))

    def _is_plain(self, end: NodeEnd) -> bool:
        return self._world.network.is_plain_between(end.process.host.ip, end.other.process.host.ip)

    def _arrive_together(self, bundle: Bundle) -> None:
        network = self._world.network
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
                and (network.is_plain or self._is_plain(end))
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
        pong = other.process.echo(other.connection, message)
        if pong is None:
            return False
        asker.receive(end.connection, [pong])
        return True
