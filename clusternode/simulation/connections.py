"""Simulated TCP connections: dialling, the handshake, bytes on the way, and every way to end.

What is on the way belongs to the *end* that sent it. While the link is blocked, or the host at the
other end is down, it stalls there in order and TCP tries again later; a reset loses it. An end
whose process was killed says so (FIN or RST); one whose host lost its power says nothing until
that host is back and something reaches it.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

from clusternode.core.effects import Write
from clusternode.core.inputs import (
    Connected,
    DialFailed,
    DialFailure,
    Disconnected,
    FramesReceived,
    WriteReady,
)
from clusternode.core.types import Address, ConnectionId, Instant
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Close, CloseReason, Frame, Hello
from clusternode.simulation.fidelity import Wire
from clusternode.simulation.history import LinkFact
from clusternode.simulation.network import next_retransmission
from clusternode.simulation.surroundings import ProcessView, WorldView

SYN_WAITS = (1.0, 3.0, 7.0, 15.0, 31.0)
"""Seconds after the first SYN at which the next are sent (Linux: tcp_syn_retries, RFC 6298)."""
WRITE_SIZE_BYTES = 256 * 1024
"""How much one write takes: what the agent's writer asks for."""
SOCKET_BUFFER_BYTES = 512 * 1024
"""How much a kernel takes for a peer that does not read, both buffers together."""
EPHEMERAL_PORT_MIN = 32768  # Linux: ip_local_port_range
EPHEMERAL_PORTS = 28232
RESET_SHARE = 0.5
"""How often the end of a killed process is an RST, which overtakes data, and not a FIN."""


class ItemKind(enum.Enum):
    """What goes over a connection."""

    HELLO = enum.auto()
    FRAMES = enum.auto()
    END = enum.auto()
    """FIN, or RST: the other side has closed."""


Item = tuple[ItemKind, Any, int]  # kind, payload (Hello, frames or nothing), size in bytes


class End:
    """One end of a connection: what its process knows of it, and what it has on the way."""

    __slots__ = (
        "busy_until",
        "connection",
        "dialed",
        "generation",
        "is_established",
        "is_open",
        "is_writing",
        "last_arrival",
        "on_the_way",
        "other",
        "process",
        "stalled",
        "wants_to_write",
    )
    other: End

    def __init__(self, process: ProcessView, dialed: Address | None) -> None:
        self.process = process
        self.connection = ConnectionId(next(process.connection_ids))
        self.dialed = dialed
        self.is_open = True
        self.is_established = False
        self.generation = 0  # what was sent in an older one is lost
        self.stalled: deque[Item] = deque()
        self.on_the_way: deque[Item] = deque()  # sent, and neither arrived nor stalled
        self.last_arrival: Instant = 0.0
        self.busy_until: Instant = 0.0
        self.is_writing = False
        self.wants_to_write = False
        process.ends[self.connection] = self


class Connections:
    """All connections of a world."""

    def __init__(self, world: WorldView, wire: Wire) -> None:
        self._world = world
        self._wire = wire
        self._stalled: dict[End, Instant] = {}  # ends that wait for TCP's next try → since when

    # Dialling and the handshake.

    def dial(self, process: ProcessView, address: Address) -> None:
        """Begin to connect; ends in one `Connected` or `DialFailed` for `process`."""
        self._world.soon(self._send_syn, process, address, self._world.now, 0)

    def _send_syn(
        self, process: ProcessView, address: Address, started: Instant, tries: int
    ) -> None:
        world = self._world
        if not process.is_running:
            return
        target = world.host_at(address.host)
        if target is None:
            process.feed(DialFailed(address, DialFailure.UNREACHABLE, "no route to host"))
            return
        source = process.host.ip
        gets_there = not world.network.is_blocked(source, target.ip)
        gets_back = not world.network.is_blocked(target.ip, source)
        if gets_there and gets_back and target.is_up:
            delay = world.network.delay(source, target.ip)
            world.after(delay, self._syn_arrived, process, address, started)
            return
        deadline = started + process.settings.discovery.handshake_timeout
        again = started + SYN_WAITS[tries] if tries < len(SYN_WAITS) else deadline
        if again < deadline:
            world.at(again, self._send_syn, process, address, started, tries + 1)
        else:
            failed = DialFailed(address, DialFailure.TIMEOUT, "no answer to SYN")
            world.at(deadline, process.feed, failed)

    def _syn_arrived(self, process: ProcessView, address: Address, started: Instant) -> None:
        world = self._world
        if not process.is_running:
            return
        target = world.host_at(address.host)
        back = world.network.delay(address.host, process.host.ip)
        if target is None or target.process is None or target.address.port != address.port:
            refused = DialFailed(address, DialFailure.REFUSED, "connection refused")
            world.after(back, process.feed, refused)
            return
        dialer, listener = End(process, address), End(target.process, None)
        dialer.other, listener.other = listener, dialer
        timeout = process.settings.discovery.handshake_timeout
        world.at(started + timeout, self._handshake_timeout, dialer)
        patience = target.process.settings.discovery.handshake_timeout
        world.after(patience, self._handshake_timeout, listener)
        world.after(back, self._send_hello, dialer)

    def _send_hello(self, end: End) -> None:
        if end.is_open:
            self._send(end, (ItemKind.HELLO, end.process.hello, 0))

    def _handshake_timeout(self, end: End) -> None:
        if end.is_open and not end.is_established:
            self.close(end, None)
            self._dial_failed(end, DialFailure.TIMEOUT, "no HELLO", None)

    def _hello_arrived(self, end: End, hello: Hello) -> None:
        """Check the other side's HELLO, as the shell's session does."""
        (said,) = self._wire.carry([frame_of(hello)])
        assert isinstance(said, Hello)
        process = end.process
        if said.cluster != process.settings.cluster:
            self.close(end, Close(CloseReason.WRONG_CLUSTER, process.settings.cluster))
            self._dial_failed(end, DialFailure.REJECTED, "wrong cluster", None)
            return
        if end.dialed is None:
            self._send(end, (ItemKind.HELLO, process.hello, 0))
        end.is_established = True
        self._note_link(end, is_up=True)
        other = end.other.process.host
        if end.dialed is not None:
            remote = f"{other.ip}:{end.dialed.port}"
        else:
            port = EPHEMERAL_PORT_MIN + end.other.connection % EPHEMERAL_PORTS
            remote = f"{other.ip}:{port}"
        process.feed(Connected(end.connection, said, end.dialed, remote))

    def _dial_failed(
        self, end: End, failure: DialFailure, detail: str, close: Close | None
    ) -> None:
        if end.dialed is None or not end.process.is_running:
            return
        reason, value = (None, 0) if close is None else (close.reason, close.value)
        end.process.feed(DialFailed(end.dialed, failure, detail, reason, value))

    # Writing.

    def output_ready(self, end: End) -> None:
        """Give the writer a turn at this instant, after everything that is due before it."""
        end.wants_to_write = True
        if not end.is_writing:
            end.is_writing = True
            self._world.soon(self._write, end)

    def _write(self, end: End) -> None:
        """Let the node write, if the writer is free; else `_delivered` or `release` comes back."""
        if not end.is_open or not end.process.is_running:
            return
        now = self._world.now
        if end.busy_until > now:
            self._world.at(end.busy_until, self._write, end)
            return
        if end.process.is_paused or self._stalled_bytes(end) >= SOCKET_BUFFER_BYTES:
            end.is_writing = False  # `wants_to_write` remains: see `write_again`
            return
        end.wants_to_write = False
        end.is_writing = False
        end.process.feed(WriteReady(end.connection, WRITE_SIZE_BYTES))

    def write_again(self, end: End) -> None:
        """Give a writer its turn that could not have it before."""
        if end.wants_to_write and not end.is_writing:
            self.output_ready(end)

    def written(self, end: End, write: Write) -> None:
        """Perform the effect `Write`."""
        if not write.frames:
            return
        world = self._world
        size = sum(frame.size_bytes for frame in write.frames)
        quality = world.network.quality_of(end.process.host.ip, end.other.process.host.ip)
        if quality.bandwidth is not None:
            end.busy_until = world.now + size / quality.bandwidth
        sent_at = world.network.through_uplink(end.process.host.ip, size, world.now)
        end.busy_until = max(end.busy_until, sent_at)
        world.counts.messages += len(write.frames)
        self._send(end, (ItemKind.FRAMES, write.frames, size))
        if write.more:
            self.output_ready(end)

    def _stalled_bytes(self, end: End) -> int:
        return sum(item[2] for item in end.stalled) if end.stalled else 0

    # On the way.

    def _send(self, end: End, item: Item) -> None:
        world = self._world
        sent = max(world.now, end.busy_until)
        delay = world.network.delay(end.process.host.ip, end.other.process.host.ip)
        end.last_arrival = arrival = max(sent + delay, end.last_arrival)
        end.on_the_way.append(item)
        world.at(arrival, self._arrive, end, item, end.generation)

    def _can_pass(self, end: End) -> bool:
        source, target = end.process.host, end.other.process.host
        return target.is_up and not self._world.network.is_blocked(source.ip, target.ip)

    def _stall(self, end: End, item: Item) -> None:
        if not end.stalled:
            self._stalled[end] = self._world.now
        end.stalled.append(item)

    def _arrive(self, end: End, item: Item, generation: int) -> None:
        """Bring what `end` sent to the other end."""
        if generation != end.generation:
            return
        end.on_the_way.popleft()
        if end.stalled or not self._can_pass(end):
            self._stall(end, item)
            return
        self.take(end, item)

    def take(self, end: End, item: Item) -> None:
        """Hand what `end` sent to the process at the other end, once that one runs."""
        other = end.other
        if other.process.is_paused:
            other.process.backlog.append((self.take, end, item))
            return
        if not other.is_open:
            if item[0] is not ItemKind.END and end.is_open:
                self._answer_with_reset(other)
            return
        kind, payload, _ = item
        if kind is ItemKind.FRAMES:
            self._frames_arrived(other, payload)
        elif kind is ItemKind.HELLO:
            self._hello_arrived(other, payload)
        else:
            self._end_arrived(end, payload)

    def _answer_with_reset(self, closed: End) -> None:
        """Let the kernel of a closed end say so to whoever still writes to it."""
        if self._can_pass(closed):
            source, target = closed.process.host.ip, closed.other.process.host.ip
            at = self._world.now + self._world.network.delay(source, target)
            at = closed.last_arrival = max(at, closed.last_arrival)
            self._world.at(at, self.take, closed, (ItemKind.END, "connection reset by peer", 0))

    def _frames_arrived(self, end: End, frames: list[Frame]) -> None:
        messages = self._wire.carry(frames)
        if end.is_established:
            end.process.feed(FramesReceived(end.connection, messages))
        elif isinstance(messages[-1], Close):  # refused during the handshake
            self._forget(end)
            self._dial_failed(end, DialFailure.CLOSED, "closed by the other side", messages[-1])

    def _end_arrived(self, sender: End, detail: str | None = None) -> None:
        end = sender.other
        if not end.is_open:
            return
        self._forget(end)
        if end.is_established:
            end.process.feed(Disconnected(end.connection, detail or "closed by the other side"))
        else:
            self._dial_failed(end, DialFailure.CLOSED, "closed by the other side", None)

    # Ending.

    def close(self, end: End, close: Close | None) -> None:
        """Close politely: what was written before still arrives, then `close`, then the end."""
        self._forget(end)
        if close is not None:
            self._send(end, (ItemKind.FRAMES, [frame_of(close)], 0))
        self._send(end, (ItemKind.END, None, 0))

    def kill(self, end: End) -> None:
        """Close as a kernel does for a process that was killed."""
        self._forget(end)
        if self._world.rng.random() < RESET_SHARE:
            self._lose(end)
        self._send(end, (ItemKind.END, "connection reset by peer", 0))

    def vanish(self, end: End) -> None:
        """Lose an end with its host: nobody says anything."""
        self._forget(end)
        self._lose(end)

    def reset(self, end: End) -> None:
        """Break a connection at any byte: both ends lose the rest, and learn of it at once."""
        for side in (end, end.other):
            self._arrive_in_part(side)
            self._lose(side)
        for side in (end, end.other):
            process = side.process
            if process.is_paused:
                process.backlog.append((self._end_arrived, side.other, "connection reset"))
            else:
                self._end_arrived(side.other, "connection reset")

    def _arrive_in_part(self, end: End) -> None:
        """Let some of what is on the way arrive, up to a byte that is drawn."""
        if end.stalled or not end.on_the_way or not self._can_pass(end):
            return
        items = list(end.on_the_way)
        whole = self._world.rng.randint(0, len(items))
        for item in items[:whole]:
            self.take(end, item)
        other = end.other
        if whole < len(items) and items[whole][0] is ItemKind.FRAMES and other.is_established:
            messages = self._wire.carry_part(items[whole][1])
            if messages and other.is_open:
                other.process.feed(FramesReceived(other.connection, messages))

    def _lose(self, end: End) -> None:
        end.generation += 1
        end.on_the_way.clear()
        end.stalled.clear()
        self._stalled.pop(end, None)

    def _note_link(self, end: End, *, is_up: bool) -> None:
        fact = LinkFact(self._world.now, end.other.process.node_id, is_up=is_up)
        end.process.fact.links.append(fact)

    def _forget(self, end: End) -> None:
        if end.is_open and end.is_established:
            self._note_link(end, is_up=False)
        end.is_open = False
        end.process.ends.pop(end.connection, None)

    # After a fault.

    def release_passable(self) -> None:
        """Let TCP try again, at its next retransmission, what can pass now."""
        for end, since in self._stalled.items():
            if self._can_pass(end):
                source, target = end.process.host.ip, end.other.process.host.ip
                at = next_retransmission(since, self._world.now)
                at += self._world.network.delay(source, target)
                self._world.at(at, self._release, end, end.generation)

    def _release(self, end: End, generation: int) -> None:
        if generation != end.generation or not end.stalled or not self._can_pass(end):
            return
        self._stalled.pop(end, None)
        items = list(end.stalled)
        end.stalled.clear()
        for item in items:  # directly: what was sent later may be on the way already
            if end.generation == generation:
                self.take(end, item)
        self.write_again(end)
