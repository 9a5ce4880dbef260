"""Simulated TCP: dialling, bytes on the way, and every way to end; whatever the bytes are.

What is on the way belongs to the *end* that sent it. While the link is blocked, or the host at the
other end is down, it stalls there in order and TCP tries again later; a reset loses it. An end
whose process was killed says so (FIN or RST); one whose host lost its power says nothing until
that host is back and something reaches it.

Both worlds stand on it: `connections.py` puts the messages of nodes of the core on it,
`testing/world/streams.py` the bytes of whole agents.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import attrs

from clusternode.core.inputs import DialFailure
from clusternode.core.types import Address, ConnectionId, Instant, Seconds
from clusternode.simulation.history import LinkFact
from clusternode.simulation.network import next_retransmission
from clusternode.simulation.surroundings import ProcessView, WorldView

SYN_WAITS = (1.0, 3.0, 7.0, 15.0, 31.0)
"""Seconds after the first SYN at which the next are sent (Linux: tcp_syn_retries, RFC 6298)."""
SOCKET_BUFFER_BYTES = 512 * 1024
"""How much a kernel takes for a peer that does not read, both buffers together."""
UNSENT_BYTES_MAX = 128 * 1024
"""How much a kernel takes beyond what a narrow link has carried: the agent's TCP_NOTSENT_LOWAT."""
EPHEMERAL_PORT_MIN = 32768  # Linux: ip_local_port_range
EPHEMERAL_PORTS = 28232
RESET_SHARE = 0.5
"""How often the end of a killed process is an RST, which overtakes data, and not a FIN."""


class ItemKind(enum.Enum):
    """What goes over a connection."""

    HELLO = enum.auto()
    DATA = enum.auto()
    """Frames of a node, or the bytes of an agent."""
    END = enum.auto()
    """FIN, or RST: the other side has closed."""


Item = tuple[ItemKind, Any, int]  # kind, payload (HELLO, frames or bytes, reason), size in bytes


class Flow:
    """How far the bytes of one end have come."""

    __slots__ = (
        "arrived_bytes",
        "busy_until",
        "generation",
        "last_arrival",
        "on_the_way",
        "rate",
        "stalled",
        "written_bytes",
    )

    def __init__(self) -> None:
        self.generation = 0  # what was sent in an older one is lost
        self.stalled: tuple[Item, ...] = ()
        self.on_the_way: list[Item] = []  # sent, and neither arrived nor stalled
        self.rate = 0.0  # bytes per second at which the last ones leave; 0 for at once
        self.busy_until: Instant = 0.0  # when the last byte written has left the host
        self.written_bytes = 0
        self.arrived_bytes = 0  # what the host at the other end has confirmed
        self.last_arrival: Instant = 0.0


class End(Flow):
    """One end of a connection: what its process knows of it, and what it has on the way.

    One object for both: a thousand nodes have a million of them.
    """

    __slots__ = (
        "connection",
        "dialed",
        "is_established",
        "is_open",
        "is_writing",
        "other",
        "process",
        "wants_to_write",
    )
    other: Self

    def __init__(self, process: ProcessView, dialed: Address | None) -> None:
        Flow.__init__(self)
        self.process = process
        self.connection = ConnectionId(next(process.connection_ids))
        self.dialed = dialed
        self.is_open = True
        self.is_established = False
        self.is_writing = False
        self.wants_to_write = False
        process.ends[self.connection] = self

    @property
    def free_at(self) -> Instant:
        """When its kernel takes more."""
        return self.busy_until - UNSENT_BYTES_MAX / self.rate if self.rate else 0.0

    @property
    def remote(self) -> str:
        """The numeric address of the other end, as this one sees it."""
        ip = self.other.process.host.ip
        if self.dialed is not None:
            return f"{ip}:{self.dialed.port}"
        return f"{ip}:{EPHEMERAL_PORT_MIN + self.other.connection % EPHEMERAL_PORTS}"


@attrs.define
class Dial:
    """An attempt to connect."""

    process: ProcessView
    address: Address
    started: Instant
    deadline: Instant
    failed: Callable[[DialFailure, str], None]
    """Told in the end, unless the ends were opened."""
    token: Any = None
    """What the subclass wants to know it by."""


E = TypeVar("E", bound=End)


class Tcp(Generic[E]):
    """All connections of a world. What goes over them, and who is told, is up to a subclass."""

    def __init__(self, world: WorldView) -> None:
        self._world = world
        self._stalled: dict[E, Instant] = {}  # ends that wait for TCP's next try → since when

    # What a subclass says.

    def _new_end(self, process: ProcessView, dialed: Address | None) -> E:
        raise AssertionError("a subclass knows")

    def _opened(self, dial: Dial, dialer: E, listener: E, back: Seconds) -> None:
        """Take both ends of a connection; the dialer learns of it after `back`."""
        raise AssertionError("a subclass knows")

    def _received(self, end: E, kind: ItemKind, payload: Any) -> None:  # noqa: ANN401  # an item's
        """Take what has arrived at an open end."""
        raise AssertionError("a subclass knows")

    def _received_part(self, end: E, payload: Any) -> None:  # noqa: ANN401  # an item's
        """Take what arrives of one item when its connection breaks in the middle of it."""
        raise AssertionError("a subclass knows")

    def _ended(self, end: E, detail: str | None) -> None:
        """Take note that the other end has closed; `detail` says why where that was no FIN."""
        raise AssertionError("a subclass knows")

    def write_again(self, end: E) -> None:
        """Give a writer its turn that could not have it before."""
        raise AssertionError("a subclass knows")

    # Dialling.

    def connect(self, dial: Dial) -> None:
        """Begin to connect; ends in `_opened`, or in `dial.failed`."""
        self._world.soon(self._send_syn, dial, 0)

    def _send_syn(self, dial: Dial, tries: int) -> None:
        world, process = self._world, dial.process
        if not process.is_running:
            return
        target = world.host_at(dial.address.host)
        if target is None:
            dial.failed(DialFailure.UNREACHABLE, "no route to host")
            return
        source = process.host.ip
        gets_there = not world.network.is_blocked(source, target.ip)
        gets_back = not world.network.is_blocked(target.ip, source)
        if gets_there and gets_back and target.is_up:
            world.after(world.network.delay(source, target.ip), self._syn_arrived, dial)
            return
        again = dial.started + SYN_WAITS[tries] if tries < len(SYN_WAITS) else dial.deadline
        if again < dial.deadline:
            world.at(again, self._send_syn, dial, tries + 1)
        else:
            world.at(dial.deadline, dial.failed, DialFailure.TIMEOUT, "no answer to SYN")

    def _syn_arrived(self, dial: Dial) -> None:
        world, process, address = self._world, dial.process, dial.address
        if not process.is_running:
            return
        target = world.host_at(address.host)
        back = world.network.delay(address.host, process.host.ip)
        listening = None if target is None else target.process
        if (
            target is None
            or listening is None
            or not listening.is_listening
            or target.address.port != address.port
        ):
            world.after(back, dial.failed, DialFailure.REFUSED, "connection refused")
            return
        dialer, listener = self._new_end(process, address), self._new_end(listening, None)
        dialer.other, listener.other = listener, dialer
        self._opened(dial, dialer, listener, back)

    # On the way.

    def _put(self, end: E, payload: Any, size: int) -> None:  # noqa: ANN401  # an item's
        """Send data; the end is busy until its last byte is on the way, see `free_at`."""
        world = self._world
        host = end.process.host.ip
        quality = world.network.quality_of(host, end.other.process.host.ip)
        rates = [] if quality.bandwidth is None else [quality.bandwidth]
        uplink = world.network.uplink_of(host)
        if uplink is not None:  # connections share a cable evenly, packet by packet
            busy = sum(one.busy_until > world.now for one in end.process.ends.values())
            rates.append(uplink / max(1, busy + (end.busy_until <= world.now)))
        begins = left_at = max(end.busy_until, world.now)
        end.rate = min(rates, default=0.0)
        if end.rate:
            left_at = begins + size / end.rate
        end.busy_until = left_at
        end.written_bytes += size
        self._send(end, (ItemKind.DATA, payload, size))

    def arrived_bytes(self, end: E) -> int:
        """Tell how many of its bytes have arrived, as far as the end knows: acknowledged ones.

        Of a write that is on its way counts what a narrow link has carried.
        """
        if not end.on_the_way and not end.stalled:
            end.arrived_bytes = end.written_bytes
        elif not end.stalled and self._can_pass(end) and self._can_pass(end.other):
            whole = end.written_bytes - sum(item[2] for item in end.on_the_way)
            unsent = int(max(0.0, end.busy_until - self._world.now) * end.rate)
            carried = min(end.written_bytes - unsent, whole + end.on_the_way[0][2])
            end.arrived_bytes = max(end.arrived_bytes, carried)
        return end.arrived_bytes

    def bytes_ahead(self, end: E) -> int:
        """Tell how much has arrived of a write whose end has not, and which nobody can read yet."""
        coming = sum(item[2] for item in end.on_the_way) + self._stalled_bytes(end)
        return max(0, self.arrived_bytes(end) - (end.written_bytes - coming))

    def _stalled_bytes(self, end: E) -> int:
        return sum(item[2] for item in end.stalled) if end.stalled else 0

    def _send(self, end: E, item: Item) -> None:
        world = self._world
        sent = max(world.now, end.busy_until)
        delay = world.network.delay(end.process.host.ip, end.other.process.host.ip)
        end.last_arrival = arrival = max(sent + delay, end.last_arrival)
        end.on_the_way.append(item)
        world.at(arrival, self._arrive, end, item, end.generation)

    def _can_pass(self, end: E) -> bool:
        source, target = end.process.host, end.other.process.host
        return target.is_up and not self._world.network.is_blocked(source.ip, target.ip)

    def _stall(self, end: E, item: Item) -> None:
        if not end.stalled:
            self._stalled[end] = self._world.now
        end.stalled = (*end.stalled, item)

    def _arrive(self, end: E, item: Item, generation: int) -> None:
        """Bring what `end` sent to the other end."""
        if generation != end.generation:
            return
        end.on_the_way.pop(0)
        if end.stalled or not self._can_pass(end):
            self._stall(end, item)
            return
        self.take(end, item)

    def take(self, end: E, item: Item) -> None:
        """Hand what `end` sent to the process at the other end, once that one takes it."""
        other = end.other
        if other.process.holds_back(self.take, end, item):
            return
        if not other.is_open:
            if item[0] is not ItemKind.END and end.is_open:
                self._answer_with_reset(other)
            return
        kind, payload, _ = item
        if kind is ItemKind.END:
            self._ended(other, payload)
        else:
            self._received(other, kind, payload)

    def _answer_with_reset(self, closed: E) -> None:
        """Let the kernel of a closed end say so to whoever still writes to it."""
        if self._can_pass(closed):
            source, target = closed.process.host.ip, closed.other.process.host.ip
            at = self._world.now + self._world.network.delay(source, target)
            at = closed.last_arrival = max(at, closed.last_arrival)
            self._world.at(at, self.take, closed, (ItemKind.END, "connection reset by peer", 0))

    # Ending.

    def close(self, end: E) -> None:
        """Close: what was written before still arrives, then the end."""
        self._forget(end)
        self._send(end, (ItemKind.END, None, 0))

    def kill(self, end: E) -> None:
        """Close as a kernel does for a process that was killed."""
        self._forget(end)
        if self._world.rng.random() < RESET_SHARE:
            self._lose(end)
        self._send(end, (ItemKind.END, "connection reset by peer", 0))

    def vanish(self, end: E) -> None:
        """Lose an end with its host: nobody says anything."""
        self._forget(end)
        self._lose(end)

    def reset(self, end: E) -> None:
        """Break a connection at any byte: both ends lose the rest, and learn of it at once."""
        for side in (end, end.other):
            self._arrive_in_part(side)
            self._lose(side)
        for side in (end, end.other):
            self._break(side)

    def _break(self, end: E) -> None:
        if end.is_open and not end.process.holds_back(self._break, end):
            self._ended(end, "connection reset")

    def _arrive_in_part(self, end: E) -> None:
        """Let some of what is on the way arrive, up to a byte that is drawn."""
        if end.stalled or not end.on_the_way or not self._can_pass(end):
            return
        items = list(end.on_the_way)
        whole = self._world.rng.randint(0, len(items))
        for item in items[:whole]:
            self.take(end, item)
        other = end.other
        if whole < len(items) and items[whole][0] is ItemKind.DATA and other.is_established:
            if other.is_open:
                self._received_part(other, items[whole][1])

    def _lose(self, end: E) -> None:
        end.generation += 1
        end.written_bytes = end.arrived_bytes
        end.on_the_way.clear()
        end.stalled = ()
        self._stalled.pop(end, None)

    def _note_link(self, end: E, *, is_up: bool) -> None:
        fact = LinkFact(self._world.now, end.other.process.node_id, is_up=is_up)
        end.process.fact.links.append(fact)

    def _forget(self, end: E) -> None:
        if end.is_open and end.is_established:
            self._note_link(end, is_up=False)
        end.is_open = False
        end.process.ends.pop(end.connection, None)

    # After a fault.

    def stopped(self, process: ProcessView) -> None:
        """Take note that a process was stopped."""

    def links_changed(self, processes: Sequence[ProcessView]) -> None:
        """Take note that some links are not what they were, given all processes."""

    def release_passable(self) -> None:
        """Let TCP try again, at its next retransmission, what can pass now."""
        for end, since in self._stalled.items():
            if self._can_pass(end):
                source, target = end.process.host.ip, end.other.process.host.ip
                at = next_retransmission(since, self._world.now)
                at += self._world.network.delay(source, target)
                self._world.at(at, self._release, end, end.generation)

    def _release(self, end: E, generation: int) -> None:
        if generation != end.generation or not end.stalled or not self._can_pass(end):
            return
        self._stalled.pop(end, None)
        items, end.stalled = end.stalled, ()
        for item in items:  # directly: what was sent later may be on the way already
            if end.generation == generation:
                self.take(end, item)
        self.write_again(end)
