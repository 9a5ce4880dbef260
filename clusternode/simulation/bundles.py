"""Connections for large worlds: what is on its way over good links arrives together.

Between two nodes with nothing wrong between them, a frame costs no event and no draw of its own:
one event carries all that arrives in a thousandth of a second, wherever it goes, the answer to a
ping comes back with it, and a connection is there with the HELLO that is said first on it. As soon
as anything is wrong with a link or an end it is simulated as everywhere else. Described in
docs/simulation.md ("What is simulated, and what is not").
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from clusternode.core.types import ConnectionId, Instant
from clusternode.core.wire.messages import Frame, Ping, Pong, WireMessage
from clusternode.simulation.connections import WRITE_SIZE_BYTES, Connections, NodeEnd
from clusternode.simulation.fidelity import Wire
from clusternode.simulation.surroundings import NodeView, WorldView
from clusternode.simulation.tcp import Dial, Item, ItemKind

TICKS_PER_SECOND = 1024
"""Arrivals are put off to the next of so many ticks; a power of two, so that ticks are exact."""
HANDSHAKE_WAYS = 3
"""How often something crosses the link until the listener reads a HELLO: SYN, its answer, HELLO."""

_DATA = ItemKind.DATA  # to look a member of an enumeration up costs as much as a call

Bundle = list[tuple[NodeEnd, Item, int]]  # who sent it, what, and in which generation


class BundledConnections(Connections):
    """All connections between the nodes of a large world."""

    def __init__(self, world: WorldView, wire: Wire) -> None:
        super().__init__(world, wire)
        self._turns: list[NodeEnd] = []
        self._bundles: dict[Instant, Bundle] = {}  # tick → what arrives then
        self._bundle: Bundle | None = None  # that of what is written now
        self._written_at: Instant | None = None
        self._arrives_at: Instant = 0.0
        self._shaken_at: Instant = 0.0

    # Dialling and the handshake.

    def _send_syn(self, dial: Dial, tries: int) -> None:
        """Begin to connect: in one step up to the HELLO where nothing is wrong with the link."""
        if not dial.process.is_running or not self._may_shake(dial):
            super()._send_syn(dial, tries)
            return
        if self._written_at != self._world.now:
            self._begin_bundle()
        self._world.at(self._shaken_at, self._shake, dial)

    def _may_shake(self, dial: Dial) -> bool:
        """Tell whether nothing is wrong between who dials and the host that is dialled."""
        target, source = self._world.host_at(dial.address.host), dial.process.host.ip
        if target is None or not target.is_up:
            return False
        network = self._world.network
        return network.is_plain or (
            network.is_plain_between(source, target.ip)
            and network.is_plain_between(target.ip, source)
        )

    def _shake(self, dial: Dial) -> None:
        """Connect both ends, and bring the dialer's HELLO; else go on as after the SYN."""
        process = dial.process
        target = self._world.host_at(dial.address.host)
        listening = None if target is None else target.process
        if (
            target is None
            or listening is None
            or not listening.is_listening
            or listening.is_paused
            or target.address.port != dial.address.port
            or process.is_paused
            or not process.is_running
            or not self._may_shake(dial)
        ):
            self._syn_arrived(dial)
            return
        dialer, listener = NodeEnd(process, dial.address), NodeEnd(listening, None)
        dialer.other, listener.other = listener, dialer
        self._dialing.watch(dial.deadline, dialer)
        self._hello_arrived(listener, self._hello_of(dialer))

    # Writing.

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
        """Send data: with all else that arrives at its tick if nothing is wrong with the link."""
        if end.flow.rate or not (self._world.network.is_plain or self._is_plain(end)):
            super()._put(end, payload, size)
        else:
            end.flow.written_bytes += size
            self._send(end, (ItemKind.DATA, payload, size))

    def _send(self, end: NodeEnd, item: Item) -> None:
        flow = end.flow
        if flow.rate or not (self._world.network.is_plain or self._is_plain(end)):
            super()._send(end, item)
            if flow.last_arrival in self._bundles:
                self._end_bundle(flow.last_arrival)
            return
        if self._written_at != self._world.now:
            self._begin_bundle()
        if flow.last_arrival <= self._arrives_at:
            flow.last_arrival = self._arrives_at
            bundle = self._bundle
            if bundle is None:
                bundle = self._bundle = self._bundle_of(self._arrives_at)
        else:
            bundle = self._bundle_of(flow.last_arrival)
        end.on_the_way.append(item)
        bundle.append((end, item, end.generation))

    def _begin_bundle(self) -> None:
        """Find out with what that arrives which is written at this instant."""
        now = self._world.now
        delay = self._world.network.delay("", "")
        self._written_at = now
        self._arrives_at = ceil((now + delay) * TICKS_PER_SECOND) / TICKS_PER_SECOND
        self._shaken_at = ceil((now + HANDSHAKE_WAYS * delay) * TICKS_PER_SECOND) / TICKS_PER_SECOND
        self._bundle = None

    def _bundle_of(self, arrives_at: Instant) -> Bundle:
        bundle = self._bundles.get(arrives_at)
        if bundle is None:
            bundle = self._bundles[arrives_at] = []
            self._world.at(arrives_at, self._arrive_together, arrives_at, bundle)
        return bundle

    def _end_bundle(self, arrives_at: Instant) -> None:
        """Put nothing more into a bundle: what is sent from now on arrives after something else."""
        self._bundles.pop(arrives_at, None)
        self._written_at = None

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
        self._end_bundle(arrives_at)

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

    def _arrive_together(self, arrives_at: Instant, bundle: Bundle) -> None:
        if self._bundles.get(arrives_at) is bundle:
            self._end_bundle(arrives_at)
        is_plain = self._world.network.is_plain
        for end, item, generation in bundle:
            other = end.other
            process = other.process
            if (
                generation != end.generation
                or end.stalled
                or not other.is_open
                or not process.is_running
                or process.is_paused
                or not (is_plain or self._is_plain(end))
            ):
                self._arrive(end, item, generation)
                continue
            end.on_the_way.pop(0)
            kind, payload, _ = item
            if kind is not _DATA or not other.is_established:
                self.take(end, item)
            elif len(payload) != 1 or not self._is_echoed(end, payload[0].message):
                process.receive(other.connection, payload)

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
