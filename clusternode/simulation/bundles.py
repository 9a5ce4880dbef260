"""Connections for large worlds: what is on its way over good links arrives together.

Between two nodes with nothing wrong between them, a frame costs no event and no draw of its own:
one event carries all that arrives in a thousandth of a second, wherever it goes, the answer to a
ping comes back with it, and a connection is there with the HELLO that is said first on it. Where
the last round found nothing wrong with a connection, nor anything on its way, and nothing has
happened to it since, it is *quiet*, and the next round does not look again. As soon as anything is
wrong with a link or an end it is simulated as everywhere else. Described in docs/simulation.md
("What is simulated, and what is not").
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import attrs

from clusternode.core.types import ConnectionId, Instant
from clusternode.core.wire.messages import Frame, Ping, Pong, WireMessage
from clusternode.simulation.connections import WRITE_SIZE_BYTES, Connections, NodeEnd
from clusternode.simulation.fidelity import Wire
from clusternode.simulation.surroundings import NodeView, ProcessView, WorldView
from clusternode.simulation.tcp import Dial, Item, ItemKind

TICKS_PER_SECOND = 1024
"""Arrivals are put off to the next of so many ticks; a power of two, so that ticks are exact."""
HANDSHAKE_WAYS = 3
"""How often something crosses the link until the listener reads a HELLO: SYN, its answer, HELLO."""

_DATA = ItemKind.DATA  # to look a member of an enumeration up costs as much as a call

Asked = tuple[Sequence[ConnectionId], list[NodeEnd]]
"""Connections of one `WriteEach` on which all was well, and their ends: the next may have them."""
Bundle = list[tuple[NodeEnd, Item, int]]  # who sent it, what, and in which generation


@attrs.define(eq=False)
class Flight:
    """A ping on its way to many, over quiet connections where nothing is noted at the ends."""

    asker: NodeView
    ping: Frame
    item: Item
    arrives_at: Instant
    ends: list[NodeEnd] = attrs.Factory(list)
    noted: dict[NodeEnd, int] = attrs.Factory(dict)
    """The ends at which it is noted that it is on its way, and in which generation it was sent."""


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
        self._flights: list[Flight] = []
        self._asked: dict[NodeView, dict[ConnectionId, Asked]] = {}  # by the first of each

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
            if end.is_quiet or end.other.is_quiet:
                self._disturb(end)
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
                or end.rate
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
        if end.rate or not (self._world.network.is_plain or self._is_plain(end)):
            super()._put(end, payload, size)
        else:
            end.written_bytes += size
            self._join(end, (_DATA, payload, size))

    def _send(self, end: NodeEnd, item: Item) -> None:
        if end.rate or not (self._world.network.is_plain or self._is_plain(end)):
            self._disturb(end)
            super()._send(end, item)
            if end.last_arrival in self._bundles:
                self._end_bundle(end.last_arrival)
        else:
            self._join(end, item)

    def _join(self, end: NodeEnd, item: Item) -> None:
        """Send something with all else that arrives at its tick."""
        if end.is_quiet or end.other.is_quiet:
            self._disturb(end)
        if self._written_at != self._world.now:
            self._begin_bundle()
        if end.last_arrival <= self._arrives_at:
            end.last_arrival = self._arrives_at
            bundle = self._bundle
            if bundle is None:
                bundle = self._bundle = self._bundle_of(self._arrives_at)
        else:
            bundle = self._bundle_of(end.last_arrival)
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
        arrives_at = self._arrives_at
        flight = Flight(process, frame, (_DATA, [frame], frame.size_bytes), arrives_at)
        asked = self._asked.setdefault(process, {})
        known, ends = asked.get(connections[0], ((), []))
        if known is not connections:
            found = map(process.ends.get, connections)
            ends = [end for end in found if end is not None]
        flight.ends = [
            end for end in ends if end.is_quiet or (end.is_open and self._departs(end, flight))
        ]
        if known is not connections and len(flight.ends) == len(connections) and not flight.noted:
            asked[connections[0]] = (connections, ends)
        self._world.counts.messages += len(flight.ends)
        self._flights.append(flight)
        self._world.at(arrives_at, self._pings_arrive, flight)
        self._end_bundle(arrives_at)

    def _departs(self, end: NodeEnd, flight: Flight) -> bool:
        """Send a ping over a connection that is not known to be quiet, or let the writer do it."""
        network = self._world.network
        if (
            end.is_writing
            or end.on_the_way
            or end.stalled
            or end.rate
            or end.last_arrival > flight.arrives_at
            or not (network.is_plain or self._is_plain(end))
        ):
            self._push(end, flight.ping)
            return False
        self._note_departure(end, flight)
        return True

    @staticmethod
    def _note_departure(end: NodeEnd, flight: Flight) -> None:
        """Note at an end that a ping is on its way from it: it is quiet no more."""
        end.is_quiet = False
        end.written_bytes += flight.item[2]
        end.last_arrival = max(end.last_arrival, flight.arrives_at)
        end.on_the_way.append(flight.item)
        flight.noted[end] = end.generation

    def _pings_arrive(self, flight: Flight) -> None:
        """Bring a ping to many nodes, and the pongs of those back that have nothing else to say."""
        self._flights.remove(flight)
        asker = flight.asker
        ping = flight.ping.message
        assert isinstance(ping, Ping)
        digest = ping.digest
        is_there = asker.is_running and not asker.is_paused
        answered: list[ConnectionId] = []
        for end in flight.ends:
            if end.is_quiet and is_there:
                peer = end.peer
                if peer.members.digest == digest and not peer.keepalive.opened:
                    answered.append(end.connection)
                    continue
            if self._is_answered(end, flight, is_there=is_there):
                answered.append(end.connection)
        if answered:
            asker.answered(answered, Pong(ping.number, digest))

    def _is_answered(self, end: NodeEnd, flight: Flight, *, is_there: bool) -> bool:
        """Bring a ping to one node; tells whether nothing but its pong comes back."""
        network = self._world.network
        other = end.other
        process = other.process
        if end not in flight.noted:
            self._note_departure(end, flight)
        generation = flight.noted[end]
        if other.is_quiet:
            self._note_flights(other)
        if (
            generation != end.generation
            or end.stalled
            or not other.is_open
            or not other.is_established
            or not process.is_running
            or process.is_paused
            or not (network.is_plain or self._is_plain(end))
        ):
            self._arrive(end, flight.item, generation)
            return False
        end.on_the_way.pop(0)
        ping = flight.ping.message
        assert isinstance(ping, Ping)
        if (
            is_there
            and end.is_open
            and not other.on_the_way
            and not other.stalled
            and (network.is_plain or self._is_plain(other))
            and process.answers(other.connection, ping)
        ):
            if not (end.on_the_way or end.is_writing or other.is_writing or end.stalled):
                end.is_quiet, end.peer = True, process.echoes
            return True
        process.receive(other.connection, flight.item[1])
        return False

    # What ends the quiet.

    def _disturb(self, end: NodeEnd) -> None:
        """Look again from now on, at both ends, before something happens to a connection."""
        for side in (end, end.other):
            if side.is_quiet:
                side.is_quiet = False
                self._note_flights(side)

    def _note_flights(self, end: NodeEnd) -> None:
        """Note at a quiet end what is on its way from it; it is quiet no more if anything is."""
        for flight in self._flights:
            if end in flight.ends and end not in flight.noted:
                self._note_departure(end, flight)

    def stopped(self, process: ProcessView) -> None:
        for end in process.ends.values():
            self._disturb(end)

    def links_changed(self, processes: Sequence[ProcessView]) -> None:
        if not self._world.network.is_plain:  # else a good link has only got better
            for process in processes:
                for end in process.ends.values():
                    if end.is_quiet and not (self._is_plain(end) and self._is_plain(end.other)):
                        self._disturb(end)

    def measure(self, end: NodeEnd) -> None:
        self._disturb(end)
        super().measure(end)

    def reset(self, end: NodeEnd) -> None:
        self._disturb(end)
        super().reset(end)

    def _lose(self, end: NodeEnd) -> None:
        self._disturb(end)
        super()._lose(end)

    def _forget(self, end: NodeEnd) -> None:
        self._disturb(end)
        self._asked.pop(end.process, None)
        super()._forget(end)

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

    def _is_echoed(self, end: NodeEnd, message: WireMessage) -> bool:
        """Bring the answer to a ping back with the event that brought the ping, if that is all."""
        if type(message) is not Ping or not end.is_open:
            return False
        other, asker = end.other, end.process
        if other.on_the_way or other.stalled or asker.is_paused or not asker.is_running:
            return False
        if not (self._world.network.is_plain or self._is_plain(other)):
            return False
        if not other.process.answers(other.connection, message):
            return False
        asker.answered([end.connection], Pong(message.number, message.digest))
        return True
