"""Broadcast and unicast: bounds and policies, streams and their time limits, one result for each.

Specified in docs/protocol.md, section 8, and docs/scripting.md ("Results").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from clusternode.core.context import Context
from clusternode.core.effects import Settle
from clusternode.core.events import LimitReached
from clusternode.core.messaging.local import LocalLoop
from clusternode.core.messaging.sending import NOTHING, Outgoing, Sending
from clusternode.core.messaging.streams import Stream
from clusternode.core.settings import ChannelSettings
from clusternode.core.types import (
    ChannelName,
    DeliveryId,
    Instant,
    NodeId,
    OverflowPolicy,
    RequestId,
    ResultCode,
)
from clusternode.core.wire.messages import RESULT_CODES, Hello, Resume

Finish = Callable[[RequestId, NodeId, ResultCode], None]
Wake = Callable[[NodeId], None]

_DEFAULT_CHANNEL = ChannelSettings()

UNANSWERED_MAX = 65536
"""Messages to one peer that may be without a result; beyond it the channel's policy. A peer that
acknowledges and never answers would else hold everything of the last `result_timeout`."""
WINDOW_OVERRUN = 2
"""A peer may exceed a window by this factor (overheads are counted differently), and by a body."""


class Deliveries:
    """All streams of one node, and who waits for which result."""

    def __init__(self, context: Context, wake: Wake, finish: Finish) -> None:
        self._context = context
        self._settings = context.settings.messaging
        self._channels = context.settings.channel_settings
        self.wake = wake
        self._finish = finish
        self.streams: dict[NodeId, Stream | None] = {}
        """In the order in which they began. None for one that is bound and was never used, as
        nearly all are in a large cluster: `stream_of` makes it of the Hello that is kept below."""
        self._unopened: dict[NodeId, Hello] = {}  # of those to which no Resume has come yet
        self._unused: dict[NodeId, Hello] = {}  # of those that are open
        self.settled: list[tuple[DeliveryId, NodeId, ResultCode]] = []
        node_id = context.settings.node_id
        self.local = LocalLoop(context, lambda one, code: self.conclude(node_id, (one,), code))

    # --- streams and connections ----------------------------------------------------------------

    def stream_of(self, node_id: NodeId) -> Stream | None:
        """Return the stream to a peer, to change it; one that was never used is made now.

        Who only asks what is in it looks into `streams`: nothing is in one that is None there.
        """
        stream = self.streams.get(node_id)
        if stream is None and node_id in self.streams:
            is_opened = node_id in self._unused
            hello = (self._unused if is_opened else self._unopened).pop(node_id)
            sending = Sending(hello.window_bytes)
            stream = Stream(node_id, hello.incarnation, hello.body_size_max, sending)
            stream.is_bound, stream.is_opened = True, is_opened
            self.streams[node_id] = stream
        return stream

    def made(self) -> Iterator[Stream]:
        """Yield the streams in which something may be."""
        return (stream for stream in self.streams.values() if stream is not None)

    def bind(self, node_id: NodeId, hello: Hello) -> Resume:
        """Fix the positions for a connection; a stream to an older incarnation ends."""
        stream = self.stream_of(node_id)
        if stream is not None and stream.incarnation != hello.incarnation:
            self._end(stream)
            stream = None
        if stream is None:
            self.streams[node_id] = None
            self._unopened[node_id] = hello
            return Resume(0, 1)
        stream.sending.window_bytes = hello.window_bytes
        stream.body_size_max = hello.body_size_max
        stream.is_bound = True
        return Resume(stream.receiving.last_received, stream.sending.first_held)

    def resumed_untrusted(self, node_id: NodeId, resume: Resume, now: Instant) -> bool:
        """Take the peer's Resume; tells whether it is possible."""
        if node_id in self._unopened and resume.last_received == 0 and resume.first_held <= 1:
            self._unused[node_id] = self._unopened.pop(node_id)
            return True
        stream = self.stream_of(node_id)
        if stream is None or not stream.sending.resume_untrusted(resume.last_received):
            return False
        stream.is_opened, stream.is_ending = True, False
        stream.receiving.resume_untrusted(resume.first_held)
        if stream.sending.given:
            self._go_on(stream, resume.last_received)
        self.schedule_expiry(stream, now)  # not only when the stream would have been forgotten
        if stream.waiting:
            self._context.timers.set(("wait", node_id), now)
        return True

    def _go_on(self, stream: Stream, last_received: int) -> None:
        """Begin a connection of a stream that had others, given what the peer has taken."""
        sending, node_id = stream.sending, stream.node_id
        # What it has not taken and we no longer hold will never be taken; but whether it has
        # forgotten that it took it, nobody can tell.
        skipped = sending.settle_untrusted(last_received + 1, sending.first_held - 1)
        self.conclude(node_id, skipped or (), ResultCode.TIMEOUT)
        given_up = sending.give_up_blamed()
        if given_up is not None:
            self.conclude(node_id, (given_up,), ResultCode.BAD_REQUEST)
        sending.resend_all()

    def unbind(self, node_id: NodeId, now: Instant, *, blames_frame: bool) -> Stream | None:
        """A connection has ended; the stream waits for the next one, if one may come."""
        stream = self.stream_of(node_id)
        if stream is None:
            return None
        stream.is_bound = False
        stream.unbound_at = now
        if blames_frame:
            stream.sending.blame_head()
        stream.sending.resend.clear()
        stream.sending.trim(self._unacknowledged_bytes_max(stream))
        self._context.timers.cancel(("ack", node_id))
        if stream.is_ending:
            self.abandon(stream, keeps_results=True)
        if not (stream.is_opened or stream.held_bytes or stream.waiting):
            self._end(stream)
            return None
        self.schedule_expiry(stream, now)
        return stream

    def _unacknowledged_bytes_max(self, stream: Stream) -> int:
        """Return what a peer that acknowledges can have: its window, and results for ours."""
        windows = stream.sending.window_bytes + self._settings.window_bytes
        return WINDOW_OVERRUN * windows + stream.body_size_max

    def is_overrun(self, stream: Stream) -> str | None:
        """Tell what a peer takes or sends beyond all bounds, if anything."""
        unacknowledged = stream.receiving.unacknowledged_bytes
        limit = WINDOW_OVERRUN * self._settings.window_bytes + self._settings.body_size_max
        if unacknowledged > limit:
            return f"{unacknowledged} bytes without an acknowledgement"
        if stream.sending.unacknowledged_bytes > self._unacknowledged_bytes_max(stream):
            return f"{stream.sending.unacknowledged_bytes} bytes not acknowledged"
        return None

    def abandon(self, stream: Stream, *, keeps_results: bool = False) -> None:
        """End what the peer was sent and what waits for it: 408 where written, else 480.

        What we owe it is kept, if at all, until the stream is forgotten: who was removed here may
        not know that, and comes back.
        """
        written, unwritten = stream.drain(keeps_results=keeps_results)
        self.conclude(stream.node_id, written, ResultCode.TIMEOUT)
        self.conclude(stream.node_id, unwritten, ResultCode.UNAVAILABLE)

    def abandon_requests(self, stream: Stream) -> None:
        """End the requests to a peer, and nothing else."""
        written, unwritten = stream.drain_requests()
        self.conclude(stream.node_id, written, ResultCode.TIMEOUT)
        self.conclude(stream.node_id, unwritten, ResultCode.UNAVAILABLE)

    def _end(self, stream: Stream) -> None:
        """Forget a stream: its peer's incarnation will not come back, or was forgotten."""
        del self.streams[stream.node_id]
        self.abandon(stream)
        for name in ("expire", "wait", "ack"):
            self._context.timers.cancel((name, stream.node_id))

    # --- sending --------------------------------------------------------------------------------

    def conclude(self, node_id: NodeId, outgoing: Iterable[Outgoing], code: ResultCode) -> None:
        """Give the final result of each."""
        for one in outgoing:
            if one.delivery is not None:
                self.settled.append((one.delivery, node_id, code))
            else:
                assert one.request is not None
                self._finish(one.request, node_id, code)

    def settle(self, delivery: DeliveryId, node_id: NodeId, code: ResultCode) -> None:
        self.settled.append((delivery, node_id, code))

    def put(self, node_id: NodeId, outgoing: Outgoing, body_size: int, now: Instant) -> None:
        """Queue a frame for an active member, or give its result at once."""
        stream = self.streams.get(node_id) or self.stream_of(node_id)  # a call less, mostly
        if stream is None:
            self.conclude(node_id, (outgoing,), ResultCode.UNAVAILABLE)
            return
        if body_size > stream.body_size_max:
            self.conclude(node_id, (outgoing,), ResultCode.TOO_LARGE)
            return
        sending = stream.sending
        size = outgoing.frame.size_bytes
        held = sending.unsent_bytes + sending.unacknowledged_bytes + size
        limit = self._settings.outbox_bytes
        if held > limit or stream.waiting or len(sending.pending) >= UNANSWERED_MAX:
            must_wait = stream.waiting and self._policy(outgoing.channel) is OverflowPolicy.WAIT
            if must_wait or not self._has_room(stream, size):
                self._overflow(stream, outgoing, now)
                return
        if stream.is_full and held < limit // 2:
            stream.is_full = False
        self._enqueue(stream, outgoing)

    def _policy(self, channel: ChannelName) -> OverflowPolicy:
        return self._channels.get(channel, _DEFAULT_CHANNEL).overflow

    def _has_room(self, stream: Stream, size: int) -> bool:
        return (
            stream.held_bytes + size <= self._settings.outbox_bytes
            and len(stream.sending.pending) < UNANSWERED_MAX
        )

    def _enqueue(self, stream: Stream, outgoing: Outgoing) -> None:
        stream.sending.put(outgoing)
        if not stream.is_expiry_set and outgoing.request is None:
            stream.is_expiry_set = True
            self._context.timers.set(("expire", stream.node_id), outgoing.deadline)
        self.wake(stream.node_id)

    def _overflow(self, stream: Stream, outgoing: Outgoing, now: Instant) -> None:
        """Apply the policy of the channel to a message that finds no room."""
        self._context.count("outbox_overflows")
        if not stream.is_full:
            stream.is_full = True
            self._context.emit(
                LimitReached(
                    self._context.settings.cluster,
                    "outbox_bytes",
                    stream.node_id,
                    f"{stream.held_bytes} of {self._settings.outbox_bytes} bytes are held, "
                    f"{len(stream.sending.pending)} of {UNANSWERED_MAX} results are waited for",
                )
            )
        policy = self._policy(outgoing.channel)
        if policy is OverflowPolicy.DROP_OLDEST and self._drop_oldest(stream, outgoing):
            self._enqueue(stream, outgoing)
            return
        if policy is OverflowPolicy.WAIT:
            waiting = sum(one.frame.size_bytes for one, _ in stream.waiting)
            if waiting + outgoing.frame.size_bytes <= self._settings.outbox_bytes:
                if stream.waiting is NOTHING:
                    stream.waiting = deque()
                stream.waiting.append((outgoing, now + self._settings.wait_max))
                self._context.timers.set(("wait", stream.node_id), stream.waiting[0][1])
                return
        self.conclude(stream.node_id, (outgoing,), ResultCode.BUSY)

    def _drop_oldest(self, stream: Stream, outgoing: Outgoing) -> bool:
        """Make room by dropping unwritten messages of the same channel; tells whether it did."""
        if len(stream.sending.pending) >= UNANSWERED_MAX:
            return False
        missing = stream.held_bytes + outgoing.frame.size_bytes - self._settings.outbox_bytes
        dropped = stream.sending.drop_oldest(outgoing.channel, missing)
        if dropped is None:
            return False
        self.conclude(stream.node_id, dropped, ResultCode.BUSY)
        return True

    def admit_waiting(self, node_id: NodeId, now: Instant) -> None:
        """Let those in that wait for room, or end them when they have waited too long."""
        stream = self.streams.get(node_id)
        while stream is not None and stream.waiting:
            outgoing, until = stream.waiting[0]
            if self._has_room(stream, outgoing.frame.size_bytes):
                stream.waiting.popleft()
                self._enqueue(stream, outgoing)
            elif until <= now:
                stream.waiting.popleft()
                self.conclude(node_id, (outgoing,), ResultCode.BUSY)
            else:
                self._context.timers.set(("wait", node_id), until)
                return

    # --- what comes back ------------------------------------------------------------------------

    def acknowledged_untrusted(self, stream: Stream, position: int, now: Instant) -> bool:
        """Take an acknowledgement; tells whether it is possible."""
        if not stream.sending.acknowledge_untrusted(position):
            return False
        if stream.waiting:
            self.admit_waiting(stream.node_id, now)
        if stream.sending.unsent:
            self.wake(stream.node_id)
        return True

    def results_untrusted(self, stream: Stream, first: int, last: int, code: int) -> bool:
        """Take a run of results from a peer; tells whether it is possible."""
        settled = stream.sending.settle_untrusted(first, last)
        if settled is None:
            return False
        result = ResultCode(code) if code in RESULT_CODES else ResultCode.FAILED
        node_id = stream.node_id
        append = self.settled.append
        for one in settled:
            if one.delivery is not None:
                append((one.delivery, node_id, result))
            else:
                assert one.request is not None
                self._finish(one.request, node_id, result)
        return True

    def expire(self, node_id: NodeId, now: Instant) -> None:
        """End what has waited too long for its result or for being written; forget old streams."""
        stream = self.streams.get(node_id)
        if stream is None:
            self.local.expire(now)
            return
        unanswered, unwritten = stream.sending.expire(now)
        self.conclude(node_id, unanswered, ResultCode.TIMEOUT)
        self.conclude(node_id, unwritten, ResultCode.UNAVAILABLE)
        if not stream.is_bound:
            timeout = self._settings.delivery_timeout
            stream.sending.drop_old(now, stream.unbound_at + timeout)
            forget_at = stream.forget_at(timeout)
            if forget_at is not None and forget_at <= now:
                self._end(stream)
                return
        self.admit_waiting(node_id, now)
        self.schedule_expiry(stream, now)

    def schedule_expiry(self, stream: Stream, now: Instant) -> None:
        """Set the timer for whatever `expire` has to do next."""
        sending = stream.sending
        if stream.is_bound and not (sending.pending or sending.unsent):  # nearly always
            stream.is_expiry_set = False
            return
        deadline = stream.next_deadline(self._settings.delivery_timeout)
        stream.is_expiry_set = deadline is not None
        if deadline is not None:
            self._context.timers.set(("expire", stream.node_id), max(deadline, now))

    def flush(self) -> None:
        """Hand out the results of this step."""
        self._context.effects.append(Settle(self.settled))
        self.settled = []
