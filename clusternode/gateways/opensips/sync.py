"""How the data of a capability is had from another node, and given to one; sans-IO.

A `Receiver` asks a node that has announced its data as synced, collects chunks until the count in
SYNC_END is reached, and keeps back what changes meanwhile. OpenSIPS asks one donor and waits for
ever when that is silent; here the next one is asked, and after all of them the first again. Written
down in docs/gateway-opensips.md.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

import attrs

from clusternode.core.events import LimitReached
from clusternode.core.sip_events import CapabilitySync
from clusternode.core.types import Instant, Seconds
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips.codec import FRAME_SIZE_MAX
from clusternode.gateways.opensips.messages import ModulePacket, Sync, SyncEnd, SyncRequest
from clusternode.gateways.opensips.parts import Surroundings

BUFFERED_MAX: Final = 10_000
BUFFERED_BYTES_MAX: Final = 16 * 2**20
"""What may change during a sync: beyond it the sync is given up and begun again later. To apply so
much at once takes a fifth of a second, in which no ping is answered."""
DONATIONS_MAX: Final = 8
"""Nodes that are given the data of one capability at a time."""
PACKET_PAUSE: Final[Seconds] = 0.01
"""Between two packets of a donation: 3 MB a second, and room for everything else."""
REQUEST_PAUSE: Final[Seconds] = 1.0
"""Between two beginnings for one node: to ask is cheap, and to look at everything is not."""
ROOM_PAUSE: Final[Seconds] = 0.1
"""Until a packet is tried again for which there was no room or no route."""
SYNC_OVERHEAD: Final = 64
"""Bytes of a SYNC packet beside the capability and the chunks: header, lengths, trailer."""
CHUNK_OVERHEAD: Final = 8
"""Size and marker."""

COUNTERS: Final[tuple[str, ...]] = (
    "syncs_completed",
    "syncs_failed",
    "sync_packets_unexpected",
    "sync_chunks_refused",
    "sync_chunks_too_large",
    "sync_requests_refused",
    "donations_completed",
    "donations_abandoned",
)


@attrs.frozen
class SyncSettings:
    """The names are OpenSIPS's."""

    sync_timeout: Seconds = 15.0
    """How long a donor may be silent, and how long one that failed is left alone."""
    sync_packet_size: int = 32_768
    """Bytes at which a packet of chunks is closed."""
    is_seed: bool = False
    """Whether we go on with what we have when nobody has the data."""
    seed_fallback_interval: Seconds = 5.0


class Data(Protocol):
    """What a capability replicates: changes one by one, or chunks of everything."""

    @property
    def name(self) -> str:
        """The capability."""
        ...

    @property
    def version(self) -> int:
        """Of the chunks that `chunks` yields."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing was refused for want of room since `restart`."""
        ...

    def restart(self) -> None:
        """Take note that everything will come again."""
        ...

    def apply(self, packet: ModulePacket) -> None:
        """Take one change; what cannot be read is counted."""
        ...

    def apply_chunk_untrusted(self, chunk: bytes, version: int, source: int) -> None:
        """Take one chunk.

        Raises:
            RemoteProtocolError: It cannot be read.
        """
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield everything, each as it is when its turn comes; what comes later may be missing."""
        ...


class State(enum.Enum):
    """Where a receiver is."""

    OFF = "off"
    """Not begun, or switched off by an operator."""
    WAITING = "waiting"
    """No donor; changes are applied as they come."""
    ASKED = "asked"
    """A donor was asked; changes are kept back from here on."""
    RECEIVING = "receiving"
    SYNCED = "synced"


class Signal(enum.Enum):
    """What moves it."""

    BEGIN = "begin"
    """The start, or an operator wants the data again."""
    ASK = "ask"
    CHUNKS = "chunks"
    COMPLETE = "complete"
    LOST = "lost"
    """The donor is silent, gone, no longer synced, or its counts are wrong."""
    FALL_BACK = "fall back"
    STOP = "stop"


TRANSITIONS: Final[Mapping[State, Mapping[Signal, State]]] = {
    State.OFF: {Signal.BEGIN: State.WAITING, Signal.STOP: State.OFF},
    State.WAITING: {
        Signal.BEGIN: State.WAITING,
        Signal.ASK: State.ASKED,
        Signal.FALL_BACK: State.SYNCED,
        Signal.STOP: State.OFF,
    },
    State.ASKED: {
        Signal.BEGIN: State.WAITING,
        Signal.CHUNKS: State.RECEIVING,
        Signal.COMPLETE: State.SYNCED,
        Signal.LOST: State.WAITING,
        Signal.STOP: State.OFF,
    },
    State.RECEIVING: {
        Signal.BEGIN: State.WAITING,
        Signal.CHUNKS: State.RECEIVING,
        Signal.COMPLETE: State.SYNCED,
        Signal.LOST: State.WAITING,
        Signal.STOP: State.OFF,
    },
    State.SYNCED: {Signal.BEGIN: State.WAITING, Signal.STOP: State.OFF},
}
_KEEPS_BACK: Final = (State.ASKED, State.RECEIVING)


@attrs.define
class _Attempt:
    """One try with one donor."""

    donor: int
    deadline: Instant
    received: int = 0
    refused: int = 0
    expected: int | None = None
    """SYNC_END's count; it may overtake chunks, as OpenSIPS 4.0 keeps no order."""


class _KeptBack:
    """The changes that arrive during an attempt, in order."""

    def __init__(self) -> None:
        self.packets: deque[ModulePacket] = deque()
        self.size = 0

    def add(self, packet: ModulePacket) -> bool:
        """Keep a packet; False when there is no room for it."""
        size = self.size + len(packet.body)
        if len(self.packets) >= BUFFERED_MAX or size > BUFFERED_BYTES_MAX:
            return False
        self.packets.append(packet)
        self.size = size
        return True

    def clear(self) -> list[ModulePacket]:
        packets = [*self.packets]
        self.packets.clear()
        self.size = 0
        return packets


class Receiver:
    """Our copy of the data of one capability, from whoever has it."""

    def __init__(
        self,
        around: Surroundings,
        data: Data,
        settings: SyncSettings,
        on_state: Callable[[bool], None],
    ) -> None:
        self.state = State.OFF
        self._around = around
        self._data = data
        self._settings = settings
        self._on_state = on_state  # is the data synced? Announces it
        self._attempt: _Attempt | None = None
        self._kept_back = _KeptBack()
        self._failed_at: dict[int, Instant] = {}  # donor → when it failed us
        self._fall_back_at: Instant | None = None

    # --- what happens -------------------------------------------------------------------------

    def begin(self) -> None:
        """Say that we are not synced, and ask for the data."""
        self._signal(Signal.BEGIN)
        self._attempt = None
        self._replay()
        self._failed_at.clear()
        self._data.restart()
        if self._settings.is_seed:
            self._fall_back_at = self._around.now + self._settings.seed_fallback_interval
        self._on_state(False)
        self._ask()

    def stop(self) -> None:
        """Forget the attempt and what was kept back."""
        self._signal(Signal.STOP)
        self._attempt = None
        self._fall_back_at = None
        self._kept_back.clear()

    def changed(self, packet: ModulePacket) -> None:
        """Take a change from another node: now, or after the sync that goes on."""
        if self.state not in _KEEPS_BACK:
            self._data.apply(packet)
        elif not self._kept_back.add(packet):
            self._overflow(packet)

    def changed_here(self, packet: ModulePacket) -> None:
        """Take note of a change of our own, so that no chunk undoes it."""
        if self.state in _KEEPS_BACK and not self._kept_back.add(packet):
            self._overflow(packet)

    def sync_received(self, packet: Sync) -> None:
        """Take chunks, if they come from whom we asked."""
        attempt = self._attempt_of(packet.trailer.source)
        if attempt is None:
            return
        self._signal(Signal.CHUNKS)
        attempt.deadline = self._around.now + self._settings.sync_timeout
        for chunk in packet.chunks:
            attempt.received += 1
            try:
                self._data.apply_chunk_untrusted(chunk, packet.data_version, attempt.donor)
            except RemoteProtocolError:
                attempt.refused += 1
                self._around.count("sync_chunks_refused")
        self._check(attempt)

    def sync_ended(self, packet: SyncEnd) -> None:
        """Take the number of chunks that the donor has sent."""
        attempt = self._attempt_of(packet.trailer.source)
        if attempt is None:
            return
        attempt.deadline = self._around.now + self._settings.sync_timeout
        attempt.expected = packet.chunk_count
        self._check(attempt)

    def capability_changed(self, node_id: int, is_synced: bool) -> None:
        """Take note that a node has announced the state of its copy."""
        if self._attempt is not None and self._attempt.donor == node_id and not is_synced:
            self._lost()
        elif is_synced:
            self._ask()

    def node_up(self, node_id: int) -> None:
        self._failed_at.pop(node_id, None)
        self._ask()

    def node_down(self, node_id: int) -> None:
        if self._attempt is not None and self._attempt.donor == node_id:
            self._lost()

    def tick(self) -> None:
        now = self._around.now
        if self._attempt is not None and now >= self._attempt.deadline:
            self._lost()
        self._ask()
        due = self._fall_back_at
        if self.state is State.WAITING and due is not None and now >= due:
            self._fall_back()

    def next_deadline(self) -> Instant | None:
        if self._attempt is not None:
            return self._attempt.deadline
        if self.state is not State.WAITING:
            return None
        now, pause = self._around.now, self._settings.sync_timeout
        ends = [failed_at + pause for failed_at in self._failed_at.values()]
        instants = [instant for instant in ends if instant > now]
        if self._fall_back_at is not None:
            instants.append(self._fall_back_at)
        return min(instants, default=None)

    # --- how it goes on -----------------------------------------------------------------------

    def _signal(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state][signal]

    def _attempt_of(self, source: int) -> _Attempt | None:
        if self._attempt is None or self._attempt.donor != source:
            self._around.count("sync_packets_unexpected")
            return None
        return self._attempt

    def _ask(self) -> None:
        """Ask a donor: first who never failed us, then who did so longest ago."""
        if self.state is not State.WAITING:
            return
        now, name, pause = self._around.now, self._data.name, self._settings.sync_timeout
        never = -math.inf
        donors = [
            (failed_at, node_id)
            for node_id in self._around.others()
            if (failed_at := self._failed_at.get(node_id, never)) + pause <= now
            and self._is_donor(node_id)
        ]
        for _, node_id in sorted(donors):
            request = SyncRequest(self._around.trailer(node_id), name)
            if self._around.send(request):
                self._signal(Signal.ASK)
                self._attempt = _Attempt(node_id, now + pause)
                return
            self._failed_at[node_id] = now

    def _is_donor(self, node_id: int) -> bool:
        is_synced = self._around.capability_state(node_id, self._data.name)
        return is_synced is True and self._around.is_reachable(node_id)

    def _check(self, attempt: _Attempt) -> None:
        if attempt.expected is None or attempt.received < attempt.expected:
            return
        is_unusable = attempt.refused > 0 and attempt.refused == attempt.received
        if attempt.received > attempt.expected or is_unusable:
            self._lost()
            return
        self._signal(Signal.COMPLETE)
        self._attempt = None
        self._finish("synced", attempt)

    def _fall_back(self) -> None:
        self._signal(Signal.FALL_BACK)
        self._finish("fallback", None)

    def _finish(self, state: str, attempt: _Attempt | None) -> None:
        self._fall_back_at = None
        self._failed_at.clear()
        self._replay()
        self._around.count("syncs_completed")
        self._on_state(self._data.is_complete)
        self._raise(state, attempt)

    def _lost(self) -> None:
        """Give an attempt up, and go on with the next donor."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        self._signal(Signal.LOST)
        self._failed_at[attempt.donor] = self._around.now
        self._replay()
        self._around.count("syncs_failed")
        self._raise("failed", attempt)
        self._ask()

    def _overflow(self, packet: ModulePacket) -> None:
        detail = f"{self._data.name}: changes during a sync"
        name = self._around.cluster_name
        self._around.raise_event(LimitReached(name, "sync_buffer", "", detail))
        self._lost()
        self.changed(packet)

    def _replay(self) -> None:
        for packet in self._kept_back.clear():
            self._data.apply(packet)

    def _raise(self, state: str, attempt: _Attempt | None) -> None:
        donor, chunks = ("", 0) if attempt is None else (str(attempt.donor), attempt.received)
        name = self._around.cluster_name
        self._around.raise_event(CapabilitySync(name, donor, self._data.name, state, chunks))


@attrs.define
class _Donation:
    """What one node is being sent."""

    due: Instant
    gives_up_at: Instant
    chunks: Iterator[bytes] | None = None
    """None until it begins."""
    sent: int = 0
    packet: Sync | SyncEnd | None = None
    """Made, and waiting for room."""
    next_chunk: bytes | None = None
    """The one that did not fit into `packet`."""


class Donor:
    """Gives our copy of the data of one capability to who asks, packet by packet."""

    def __init__(self, around: Surroundings, data: Data, settings: SyncSettings) -> None:
        self._around = around
        self._data = data
        self._settings = settings
        self._donations: dict[int, _Donation] = {}  # node → what it is being sent
        self._begun_at: dict[int, Instant] = {}  # node → when we last began

    def requested(self, node_id: int) -> None:
        """Begin to send everything, or begin again after a pause."""
        if node_id not in self._donations and len(self._donations) >= DONATIONS_MAX:
            self._around.count("sync_requests_refused")
            return
        now = self._around.now
        due = max(now, self._begun_at.get(node_id, -math.inf) + REQUEST_PAUSE)
        self._donations[node_id] = _Donation(due, due + self._settings.sync_timeout)
        self.tick()

    def stop(self, node_id: int | None = None) -> None:
        """End what is being sent to one node, or to all."""
        doomed = [*self._donations] if node_id is None else [node_id]
        for each in doomed:
            if self._donations.pop(each, None) is not None:
                self._around.count("donations_abandoned")

    def tick(self) -> None:
        now = self._around.now
        for node_id, donation in [*self._donations.items()]:
            if donation.due <= now:
                self._send(node_id, donation)

    def next_deadline(self) -> Instant | None:
        return min((donation.due for donation in self._donations.values()), default=None)

    def _send(self, node_id: int, donation: _Donation) -> None:
        now = self._around.now
        if donation.chunks is None:
            self._begin(node_id, donation)
        packet = donation.packet or self._make(node_id, donation)
        if not self._around.send(packet):
            donation.packet = packet
            donation.due = now + ROOM_PAUSE
            if now >= donation.gives_up_at:
                self.stop(node_id)
            return
        donation.packet = None
        donation.due = now + PACKET_PAUSE
        donation.gives_up_at = now + self._settings.sync_timeout
        if isinstance(packet, SyncEnd):
            del self._donations[node_id]
            self._around.count("donations_completed")

    def _begin(self, node_id: int, donation: _Donation) -> None:
        now = self._around.now
        self._begun_at = {
            other: begun_at
            for other, begun_at in self._begun_at.items()
            if now < begun_at + REQUEST_PAUSE
        }
        self._begun_at[node_id] = now
        donation.chunks = self._data.chunks()

    def _make(self, node_id: int, donation: _Donation) -> Sync | SyncEnd:
        """Make the next packet: chunks up to `sync_packet_size`, or the end."""
        trailer, name = self._around.trailer(node_id), self._data.name
        start = SYNC_OVERHEAD + len(name.encode("utf-8", "surrogateescape"))
        size = start
        chunks: list[bytes] = []
        while (chunk := self._next_chunk(donation)) is not None:
            needed = CHUNK_OVERHEAD + len(chunk)
            if start + needed > FRAME_SIZE_MAX:
                self._around.count("sync_chunks_too_large")
                continue
            if chunks and size + needed > self._settings.sync_packet_size:
                donation.next_chunk = chunk
                break
            chunks.append(chunk)
            size += needed
        donation.sent += len(chunks)
        if not chunks:
            return SyncEnd(trailer, name, donation.sent)
        return Sync(trailer, name, self._data.version, tuple(chunks))

    def _next_chunk(self, donation: _Donation) -> bytes | None:
        chunk, donation.next_chunk = donation.next_chunk, None
        assert donation.chunks is not None, "begun before"
        return next(donation.chunks, None) if chunk is None else chunk
