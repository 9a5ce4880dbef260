"""One stream per peer incarnation: positions, what is unsent and unacknowledged, resending.

Specified in docs/protocol.md, section 8. A stream outlives its connections: positions are dense
and count positioned frames only, both sides agree on them by `Resume`. A position is given when
the frame goes to the writer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import attrs

from clusternode.core.types import (
    ChannelName,
    DeliveryId,
    Incarnation,
    Instant,
    NodeId,
    RequestId,
)
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Ack, Frame, Results, Run

RUNS_PER_FRAME_MAX = 1000
"""More runs than this go into a further frame; far below the codec's limit."""
ACK_EVERY_BYTES = 512 * 1024
"""Beyond so many bytes an acknowledgement waits for nothing: an eighth of a window."""
BLAMED_TIMES_MAX = 2
"""How often one position may close the connection before it is given up with 400."""


@attrs.define(eq=False)
class Outgoing:
    """A frame that wants a result; shared by all destinations of a broadcast."""

    frame: Frame
    deadline: Instant
    """When its result is 408, whatever has become of it."""
    resend_until: Instant
    channel: ChannelName
    delivery: DeliveryId | None = None
    request: RequestId | None = None


@attrs.define(eq=False)
class ResultsBuffer:
    """Results that wait to be written, merged into runs; becomes `Results` frames then."""

    runs: list[list[int]] = attrs.Factory(list)  # [first, last, code]

    def add(self, position: int, code: int) -> None:
        if self.runs:
            last = self.runs[-1]
            if last[1] + 1 == position and last[2] == code:
                last[1] = position
                return
        self.runs.append([position, position, code])


@attrs.define(eq=False)
class Stream:
    """Both directions between us and one incarnation of a peer."""

    node_id: NodeId
    incarnation: Incarnation
    window_bytes: int
    """How many unacknowledged bytes the peer takes."""
    body_size_max: int
    """The largest body that the peer takes."""

    # What goes out.
    unsent: deque[Outgoing | ResultsBuffer] = attrs.Factory(deque)
    unacknowledged: deque[tuple[Frame, Outgoing | None]] = attrs.Factory(deque)
    resend: deque[Frame] = attrs.Factory(deque)
    """The part of `unacknowledged` that this connection has not carried yet."""
    pending: dict[int, Outgoing] = attrs.Factory(dict)  # position → message without its result
    asking: dict[int, Outgoing] = attrs.Factory(dict)  # position → request without its result
    given: int = 0
    """The last position given."""
    unsent_bytes: int = 0
    unacknowledged_bytes: int = 0
    results: ResultsBuffer = attrs.Factory(ResultsBuffer)
    """Results of messages and replies; written before all data."""
    waiting: deque[tuple[Outgoing, Instant]] = attrs.Factory(deque)
    """Messages of channels with the policy `wait`, and until when."""
    blamed: int = 0
    """The position that was at the head when the peer last closed for a protocol error."""
    blamed_times: int = 0
    is_bound: bool = False
    """Whether our Resume has been sent on a connection that lives: positions are fixed by it."""
    is_expiry_set: bool = False
    """Whether a timer will call `expire`."""
    is_full: bool = False
    """Whether the last message for the peer found no room."""

    # What comes in.
    last_received: int = 0
    open_requests: dict[int, None] = attrs.Factory(dict)  # position → a request being handled
    acknowledged: int = 0
    """The last position that we have acknowledged on this connection."""
    unacknowledged_in_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        return self.unsent_bytes + self.unacknowledged_bytes

    @property
    def first_held(self) -> int:
        return self.given - len(self.unacknowledged) + 1

    @property
    def has_output(self) -> bool:
        """Tell whether a writer that is free now would get anything."""
        if self.resend or self.results.runs or self.is_ack_urgent:
            return True
        if not self.unsent:
            return False
        return type(self.unsent[0]) is ResultsBuffer or self.has_window

    @property
    def has_window(self) -> bool:
        return self.unacknowledged_bytes < self.window_bytes

    @property
    def is_ack_owed(self) -> bool:
        return self.last_received > self.acknowledged

    @property
    def is_ack_urgent(self) -> bool:
        return self.unacknowledged_in_bytes >= ACK_EVERY_BYTES

    # --- going out ------------------------------------------------------------------------------

    def put(self, outgoing: Outgoing) -> None:
        """Queue a frame. The bound is the caller's business (`delivery.py`)."""
        self.unsent.append(outgoing)
        self.unsent_bytes += outgoing.frame.size_bytes

    def put_result(self, position: int, code: int) -> None:
        """Queue a final result. Those of requests stay behind the replies queued before them."""
        if position not in self.open_requests:
            self.results.add(position, code)
            return
        del self.open_requests[position]
        tail = self.unsent[-1] if self.unsent else None
        if type(tail) is not ResultsBuffer:
            tail = ResultsBuffer()
            self.unsent.append(tail)
        tail.add(position, code)

    def put_results(self, results: Iterable[tuple[int, int]]) -> None:
        """Queue many final results: what `put_result` does, in one pass."""
        if self.open_requests:
            for position, code in results:
                self.put_result(position, code)
            return
        runs = self.results.runs
        last = runs[-1] if runs else [0, -1, 0]
        for position, code in results:
            if last[1] + 1 == position and last[2] == code:
                last[1] = position
            else:
                last = [position, position, code]
                runs.append(last)

    def take(self, bytes_max: int) -> list[Frame]:
        """Return the frames for one write, giving positions to those that had none."""
        frames: list[Frame] = []
        if self.is_ack_owed:
            self.acknowledged = self.last_received
            self.unacknowledged_in_bytes = 0
            frames.append(frame_of(Ack(self.last_received)))
        taken = 0
        while self.resend and taken < bytes_max:
            frame = self.resend.popleft()
            taken += frame.size_bytes
            frames.append(frame)
        if self.resend:
            return frames
        if self.results.runs:
            taken += self._take_results(self.results, frames)
        unsent, unacknowledged, pending = self.unsent, self.unacknowledged, self.pending
        moved = 0
        while unsent and taken < bytes_max:
            head = unsent[0]
            if type(head) is ResultsBuffer:
                unsent.popleft()
                taken += self._take_results(head, frames)
                continue
            if self.unacknowledged_bytes + moved >= self.window_bytes:
                break
            unsent.popleft()
            assert isinstance(head, Outgoing)
            frame = head.frame
            self.given += 1
            (pending if head.request is None else self.asking)[self.given] = head
            unacknowledged.append((frame, head))
            frames.append(frame)
            taken += frame.size_bytes
            moved += frame.size_bytes
        self.unsent_bytes -= moved
        self.unacknowledged_bytes += moved
        return frames

    def _take_results(self, buffer: ResultsBuffer, frames: list[Frame]) -> int:
        taken = 0
        runs = buffer.runs
        for start in range(0, len(runs), RUNS_PER_FRAME_MAX):
            part = runs[start : start + RUNS_PER_FRAME_MAX]
            frame = frame_of(Results([Run(*run) for run in part]))
            self.given += 1
            self.unacknowledged.append((frame, None))
            frames.append(frame)
            taken += frame.size_bytes
        buffer.runs = []
        return taken

    def acknowledge_untrusted(self, position: int) -> bool:
        """Take an acknowledgement; tells whether it is possible at all."""
        if position > self.given - len(self.resend):
            return False
        count = position - self.first_held + 1
        released = 0
        popleft = self.unacknowledged.popleft
        for _ in range(count):
            frame, outgoing = popleft()
            if outgoing is not None:
                released += frame.size_bytes
        self.unacknowledged_bytes -= released
        return True

    def settle_untrusted(self, first: int, last: int) -> list[Outgoing] | None:
        """Take a run of results: those still waited for, or None when it is impossible."""
        if first > last or last > self.given or first < 1:
            return None
        settled: list[Outgoing] = []
        for waiting in (self.pending, self.asking):
            if not waiting:
                continue
            if last - first > len(waiting):
                positions = [one for one in waiting if first <= one <= last]
            else:
                positions = [one for one in range(first, last + 1) if one in waiting]
            settled += [waiting.pop(position) for position in positions]
        return settled

    def forget_request(self, request: RequestId) -> None:
        """Wait no longer for the result of a request that has ended."""
        for position in [one for one, out in self.asking.items() if out.request == request]:
            del self.asking[position]

    # --- connections ----------------------------------------------------------------------------

    def resume_untrusted(self, last_received: int, peer_first_held: int) -> bool:
        """Take the peer's Resume: what it has need not be sent, the rest is sent again.

        Tells whether the peer's claim is possible. A peer that remembers more than we do has
        outlived our memory of it; its count is then ours.
        """
        if last_received > self.given:
            if self.given > 0:
                return False
            self.given = last_received
        acknowledged = max(last_received, self.first_held - 1)
        self.resend.clear()
        if acknowledged >= self.first_held:
            self.acknowledge_untrusted(acknowledged)
        self.resend.extend(frame for frame, _ in self.unacknowledged)
        self.last_received = max(self.last_received, peer_first_held - 1)
        self.acknowledged = self.last_received
        self.unacknowledged_in_bytes = 0
        return True

    def blame_head(self) -> Outgoing | None:
        """Note that the peer closed for a protocol error; returns what is given up, if any."""
        if not self.unacknowledged:
            return None
        head = self.first_held
        self.blamed_times = self.blamed_times + 1 if self.blamed == head else 1
        self.blamed = head
        if self.blamed_times < BLAMED_TIMES_MAX:
            return None
        frame, outgoing = self.unacknowledged.popleft()
        self.resend.clear()
        if outgoing is None:
            return None
        self.unacknowledged_bytes -= frame.size_bytes
        return self.pending.pop(head, None) or self.asking.pop(head, None)

    # --- time -----------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Tell when `expire` may have something to do."""
        deadlines = [self.waiting[0][1]] if self.waiting else []
        if self.pending:
            deadlines.append(next(iter(self.pending.values())).deadline)
        for one in self.unsent:
            if type(one) is Outgoing:
                deadlines.append(one.deadline)
                break
        return min(deadlines) if deadlines else None

    def expire(self, now: Instant) -> tuple[list[Outgoing], list[Outgoing]]:
        """Return (those whose result did not come, those that were never written), and drop them.

        A frame that was written on this connection keeps its place until it is acknowledged; one
        that waits for a connection is dropped when it is too old, and the next Resume skips it.
        """
        unanswered: list[Outgoing] = []
        while self.pending:
            position = next(iter(self.pending))
            if self.pending[position].deadline > now:
                break
            unanswered.append(self.pending.pop(position))
        unwritten: list[Outgoing] = []
        if self.unsent:
            kept: deque[Outgoing | ResultsBuffer] = deque()
            for one in self.unsent:
                if type(one) is Outgoing and one.deadline <= now:
                    unwritten.append(one)
                    self.unsent_bytes -= one.frame.size_bytes
                else:
                    kept.append(one)
            self.unsent = kept
        if not self.is_bound:
            self._drop_old(now)
        return unanswered, unwritten

    def _drop_old(self, now: Instant) -> None:
        while self.unacknowledged:
            frame, outgoing = self.unacknowledged[0]
            if outgoing is None or outgoing.resend_until > now:
                return
            self.unacknowledged.popleft()
            self.unacknowledged_bytes -= frame.size_bytes

    def drain(self) -> tuple[list[Outgoing], list[Outgoing]]:
        """End everything: return (what was written and has no result, what was never written)."""
        written = [*self.pending.values(), *self.asking.values()]
        unwritten = [one for one in self.unsent if type(one) is Outgoing]
        unwritten += [outgoing for outgoing, _ in self.waiting]
        self.pending.clear()
        self.asking.clear()
        self.unsent.clear()
        self.waiting.clear()
        self.unacknowledged.clear()
        self.resend.clear()
        self.unsent_bytes = self.unacknowledged_bytes = 0
        return written, unwritten
