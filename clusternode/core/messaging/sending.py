"""What goes out to one peer: unsent, unacknowledged, and what its results are waited for.

Specified in docs/protocol.md, section 8. A position is given when the frame goes to the writer,
and every position is used: what is given up later leaves its place to an empty frame or, where no
connection lives, is skipped by the next Resume.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NoReturn

import attrs

from clusternode.core.types import ChannelName, DeliveryId, Instant, RequestId
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Frame, Results, Run

RUNS_PER_FRAME_MAX = 1000
"""More runs than this go into a further frame; far below the codec's limit."""
RUNS_HELD_MAX = 100_000
"""Runs that may wait for the next connection: a peer that never reads results gets none."""
BLAMED_TIMES_MAX = 2
"""How often one position may close the connection before it is given up with 400."""


class Nothing(deque[Any]):
    """A queue that is always empty: what an idle peer shares with all others.

    An empty deque takes half a kilobyte, of which a node with a thousand peers would have four
    thousand. Who has something to put makes one first.
    """

    def append(self, item: object, /) -> NoReturn:
        raise AssertionError(f"{item!r}: nothing may be put here, see `Nothing`")

    def insert(self, index: object, item: object, /) -> NoReturn:
        self.append(item)

    appendleft = extend = extendleft = __iadd__ = append


NOTHING: Final = Nothing()


class Nobody(dict[int, Any]):
    """What nobody is waited for in, by position: as `Nothing`, for an idle peer."""

    def __setitem__(self, position: object, item: object, /) -> NoReturn:
        raise AssertionError(f"{item!r}: nothing may be put here, see `Nobody`")

    def setdefault(self, position: object, item: object = None, /) -> NoReturn:
        self[position] = item

    def update(self, *items: object, **named: object) -> NoReturn:
        self[None] = (items, named)

    def __ior__(self, items: object, /) -> NoReturn:  # type: ignore[misc]  # never returns
        self[None] = items


NOBODY: Final = Nobody()


@attrs.define(eq=False)
class Outgoing:
    """A frame that wants a result; shared by all destinations of a broadcast."""

    frame: Frame
    deadline: Instant
    """When the result of a message or reply is 408; a request ends by its own timer."""
    resend_until: Instant
    """When it is dropped if no connection lives."""
    channel: ChannelName
    delivery: DeliveryId | None = None
    request: RequestId | None = None


@attrs.define(eq=False)
class ResultsBuffer:
    """Results that wait to be written, merged into runs; becomes `Results` frames then."""

    runs: list[list[int]] = attrs.Factory(list)  # [first, last, code]

    def __len__(self) -> int:
        return len(self.runs)

    def add(self, position: int, code: int) -> None:
        if self.runs:
            last = self.runs[-1]
            if last[1] + 1 == position and last[2] == code:
                last[1] = position
                return
        self.runs.append([position, position, code])


@attrs.define(eq=False)
class Sending:
    """The direction from us to one incarnation of a peer."""

    window_bytes: int
    """How many unacknowledged bytes the peer takes; results are sent beyond it too."""
    unsent: deque[Outgoing | ResultsBuffer] = NOTHING
    unacknowledged: deque[tuple[Frame, Outgoing | None]] = NOTHING
    resend: deque[Frame] = NOTHING
    """The part of `unacknowledged` that this connection has not carried yet."""
    pending: dict[int, Outgoing] = NOBODY
    """Position → message or reply without its result; positions ascend, and so do deadlines but
    for those that waited for room (by at most `wait_max`)."""
    asking: dict[int, Outgoing] = NOBODY  # position → request without its result
    given: int = 0
    """The last position given."""
    acknowledged: int = 0
    """The last position that the peer has acknowledged."""
    unsent_bytes: int = 0
    unacknowledged_bytes: int = 0
    results: ResultsBuffer | None = None
    """Results of messages and replies, if there are any; written before all data."""
    blamed: tuple[int, int] = (0, 0)
    """(position, times): which one was at the head when the peer last closed for a protocol error,
    and how often in a row that was."""

    @property
    def first_held(self) -> int:
        return self.given - len(self.unacknowledged) + 1

    @property
    def has_output(self) -> bool:
        """Tell whether a writer that is free now would get anything."""
        if self.resend or self.results:
            return True
        if not self.unsent:
            return False
        is_results = type(self.unsent[0]) is ResultsBuffer
        return is_results or self.unacknowledged_bytes < self.window_bytes

    # --- to the writer --------------------------------------------------------------------------

    def put(self, outgoing: Outgoing) -> None:
        """Queue a frame. The bound is the caller's business (`delivery.py`)."""
        if self.unsent is NOTHING:
            self.unsent = deque()
        self.unsent.append(outgoing)
        self.unsent_bytes += outgoing.frame.size_bytes

    def own_results(self) -> ResultsBuffer:
        """Return `results` to put something into: an idle peer has none."""
        if self.results is None:
            self.results = ResultsBuffer()
        return self.results

    def put_result_behind(self, position: int, code: int) -> None:
        """Queue a final result behind everything that is queued now."""
        tail = self.unsent[-1] if self.unsent else None
        if type(tail) is not ResultsBuffer:
            tail = ResultsBuffer()
            if self.unsent is NOTHING:
                self.unsent = deque()
            self.unsent.append(tail)
        tail.add(position, code)

    def take(self, frames: list[Frame], bytes_max: int) -> None:
        """Append the frames for one write, giving positions to those that had none."""
        taken = 0
        while self.resend and taken < bytes_max:
            frame = self.resend.popleft()
            taken += frame.size_bytes
            frames.append(frame)
        if self.resend:
            return
        if self.results:
            taken += self._take_results(self.results, frames)
            self.results = None
        unsent = self.unsent
        if unsent and self.unacknowledged is NOTHING:
            self.unacknowledged = deque()
        if unsent and self.pending is NOBODY:
            self.pending, self.asking = {}, {}
        pending = self.pending
        unacknowledged = self.unacknowledged
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

    def _take_results(self, buffer: ResultsBuffer, frames: list[Frame]) -> int:
        if self.unacknowledged is NOTHING:
            self.unacknowledged = deque()
        taken = 0
        runs = buffer.runs
        for start in range(0, len(runs), RUNS_PER_FRAME_MAX):
            part = runs[start : start + RUNS_PER_FRAME_MAX]
            frame = frame_of(Results([Run(*run) for run in part]))
            self.given += 1
            self.unacknowledged.append((frame, None))
            frames.append(frame)
            taken += frame.size_bytes
        self.unacknowledged_bytes += taken
        return taken

    # --- what comes back ------------------------------------------------------------------------

    def acknowledge_untrusted(self, position: int) -> bool:
        """Take an acknowledgement; tells whether it is possible at all."""
        if position > self.given - len(self.resend):
            return False
        released = 0
        popleft = self.unacknowledged.popleft
        for _ in range(position - self.first_held + 1):
            released += popleft()[0].size_bytes
        self.unacknowledged_bytes -= released
        self.acknowledged = max(self.acknowledged, position)
        return True

    def settle_untrusted(self, first: int, last: int) -> list[Outgoing] | None:
        """Take a run of results: those still waited for, or None when it is impossible."""
        if first > last or last > self.given or first < 1:
            return None
        settled: list[Outgoing] = []
        for waiting in (self.pending, self.asking):
            if waiting:
                settled += _pop_range(waiting, first, last)
        return settled

    # --- requests that have ended ---------------------------------------------------------------

    def forget_request(self, request: RequestId) -> bool:
        """Drop a request, or wait no longer for its result; tells whether it was here."""
        for position, outgoing in self.asking.items():
            if outgoing.request == request:
                del self.asking[position]
                return True
        for index, one in enumerate(self.unsent):
            if type(one) is Outgoing and one.request == request:
                self.unsent_bytes -= one.frame.size_bytes
                del self.unsent[index]
                return True
        return False

    def drain_requests(self) -> tuple[list[Outgoing], list[Outgoing]]:
        """End all requests: return (those that were written, those that never were)."""
        written = list(self.asking.values())
        self.asking.clear()
        unwritten = [
            one for one in self.unsent if type(one) is Outgoing and one.request is not None
        ]
        if unwritten:
            self.unsent = deque(
                one for one in self.unsent if type(one) is not Outgoing or one.request is None
            )
            self.unsent_bytes -= sum(one.frame.size_bytes for one in unwritten)
        return written, unwritten

    # --- connections ----------------------------------------------------------------------------

    def resume_untrusted(self, last_received: int) -> bool:
        """Take what the peer has; tells whether its claim is possible.

        A peer that remembers more than we do has outlived our memory of it; its count is ours then.
        """
        if last_received > self.given:
            if self.given > 0:
                return False
            self.given = last_received
        self.resend.clear()
        self.acknowledge_untrusted(last_received)
        return True

    def resend_all(self) -> None:
        """Begin a connection: it carries first all that the peer has not taken."""
        if self.unacknowledged:
            self.resend = deque([*self.resend, *(frame for frame, _ in self.unacknowledged)])

    def blame_head(self) -> None:
        """Note which frame the peer met first on a connection that it closed for an error."""
        if len(self.resend) >= len(self.unacknowledged):
            return
        head = self.first_held
        position, times = self.blamed
        self.blamed = head, times + 1 if position == head else 1

    def give_up_blamed(self) -> Outgoing | None:
        """Put an empty frame in the place of one that was blamed too often; returns that one.

        Only after a Resume: it says that the peer has certainly not taken it.
        """
        position, times = self.blamed
        if times < BLAMED_TIMES_MAX or position != self.first_held or not self.unacknowledged:
            return None
        frame, _ = self.unacknowledged[0]
        empty = frame_of(Results([]))
        self.unacknowledged[0] = (empty, None)
        self.unacknowledged_bytes += empty.size_bytes - frame.size_bytes
        self.blamed = (0, 0)
        return self.pending.pop(position, None) or self.asking.pop(position, None)

    def trim(self, unacknowledged_bytes_max: int) -> None:
        """Between connections: drop what a peer never acknowledges, or never lets us say."""
        if self.unacknowledged_bytes > unacknowledged_bytes_max:
            self.unacknowledged.clear()
            self.unacknowledged_bytes = 0
        buffers = [one for one in self.unsent if type(one) is ResultsBuffer]
        if self.results:
            buffers.append(self.results)
        if sum(map(len, buffers)) > RUNS_HELD_MAX:
            self.results = None
            self.unsent = deque(one for one in self.unsent if type(one) is Outgoing)

    # --- time and room --------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Tell when `expire` has something to do."""
        deadline: Instant | None = None
        if self.pending:
            deadline = next(iter(self.pending.values())).deadline
        for one in self.unsent:
            if type(one) is Outgoing and one.request is None:
                return one.deadline if deadline is None else min(deadline, one.deadline)
        return deadline

    def expire(self, now: Instant) -> tuple[list[Outgoing], list[Outgoing]]:
        """Return (those whose result did not come, those that were never written), and drop them.

        Requests are not among them: they end by their own timer. A frame that was written keeps
        its place until it is acknowledged or `drop_old` drops it.
        """
        unanswered: list[Outgoing] = []
        while self.pending:
            position = next(iter(self.pending))
            if self.pending[position].deadline > now:
                break
            unanswered.append(self.pending.pop(position))
        unwritten: list[Outgoing] = []
        kept: list[Outgoing | ResultsBuffer] = []
        while self.unsent:
            head = self.unsent[0]
            if type(head) is not Outgoing or head.request is not None:
                kept.append(self.unsent.popleft())
                continue
            if head.deadline > now:
                break
            self.unsent.popleft()
            self.unsent_bytes -= head.frame.size_bytes
            unwritten.append(head)
        if kept:
            self.unsent.extendleft(reversed(kept))
        return unanswered, unwritten

    def drop_old(self, now: Instant, results_until: Instant) -> None:
        """Between connections: drop what is too old to be sent again; the next Resume skips it."""
        while self.unacknowledged:
            until = self.held_until(results_until)
            if until is None or until > now:
                return
            frame, _ = self.unacknowledged.popleft()
            self.unacknowledged_bytes -= frame.size_bytes

    def held_until(self, results_until: Instant) -> Instant | None:
        """Tell when `drop_old` has something to do."""
        if not self.unacknowledged:
            return None
        outgoing = self.unacknowledged[0][1]
        return results_until if outgoing is None else min(outgoing.resend_until, results_until)

    def drop_oldest(self, channel: ChannelName, needed_bytes: int) -> list[Outgoing] | None:
        """Drop the oldest unwritten messages of a channel, or none if they are not enough."""
        dropped: list[Outgoing] = []
        kept: list[Outgoing | ResultsBuffer] = []
        freed = 0
        while self.unsent and freed < needed_bytes:
            one = self.unsent.popleft()
            if type(one) is Outgoing and one.delivery is not None and one.channel == channel:
                dropped.append(one)
                freed += one.frame.size_bytes
            kept.append(one)
        if freed < needed_bytes:
            if kept:
                self.unsent.extendleft(reversed(kept))
            return None
        gone = {id(one): None for one in dropped}
        if kept:
            self.unsent.extendleft(one for one in reversed(kept) if id(one) not in gone)
        self.unsent_bytes -= freed
        return dropped

    def drain(self, *, keeps_results: bool) -> tuple[list[Outgoing], list[Outgoing]]:
        """End everything but results: return (written without a result, never written).

        Positions stay: those that are not held any more are skipped by the next Resume.

        Args:
            keeps_results: Whether results that were written, and may be lost with the connection
                that has ended, are sent again on the next one.
        """
        written = [*self.pending.values(), *self.asking.values()]
        unwritten = [one for one in self.unsent if type(one) is Outgoing]
        self.unsent = deque(one for one in self.unsent if type(one) is ResultsBuffer)
        self.pending.clear()
        self.asking.clear()
        self.resend.clear()
        if keeps_results:
            self._empty_all_but_results()
        else:
            self.unacknowledged.clear()
        self.unacknowledged_bytes = sum(frame.size_bytes for frame, _ in self.unacknowledged)
        self.unsent_bytes = 0
        return written, unwritten

    def _empty_all_but_results(self) -> None:
        """Put empty frames in the places of what was ended, so that results keep theirs."""
        held = self.unacknowledged
        while held and held[0][1] is not None:
            held.popleft()
        if held:
            empty = frame_of(Results([]))
            self.unacknowledged = deque(
                (frame if outgoing is None else empty, None) for frame, outgoing in held
            )


def _pop_range(waiting: dict[int, Outgoing], first: int, last: int) -> list[Outgoing]:
    """Take the positions from `first` to `last` out; the cost is bounded by what is waited for."""
    if last - first <= len(waiting):
        pop = waiting.pop
        return [
            one for position in range(first, last + 1) if (one := pop(position, None)) is not None
        ]
    positions: list[int] = []
    for position in waiting:
        if position > last:
            break
        if position >= first:
            positions.append(position)
    return [waiting.pop(position) for position in positions]
