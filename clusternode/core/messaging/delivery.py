"""Broadcast and unicast: fan-out, bounds and policies, and one final result per destination.

Specified in docs/protocol.md, section 8, and docs/scripting.md ("Results").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from clusternode.core.context import Context
from clusternode.core.effects import Handle, Settle
from clusternode.core.events import LimitReached
from clusternode.core.messaging.streams import Outgoing, Stream
from clusternode.core.settings import ChannelSettings
from clusternode.core.types import (
    DeliveryId,
    Incarnation,
    Instant,
    NodeId,
    OverflowPolicy,
    RequestId,
    ResultCode,
)
from clusternode.core.wire.messages import RESULT_CODES, Hello, Message, Reply, Request

Finish = Callable[[RequestId, NodeId, ResultCode], None]
Wake = Callable[[NodeId], None]

_DEFAULT_CHANNEL = ChannelSettings()


class Deliveries:
    """All streams of one node, and who waits for which result."""

    def __init__(self, context: Context, wake: Wake, finish: Finish) -> None:
        self._context = context
        self._settings = context.settings.messaging
        self._channels = context.settings.channel_settings
        self.wake = wake
        self._finish = finish
        self.streams: dict[NodeId, Stream] = {}
        self._settled: list[tuple[DeliveryId, NodeId, ResultCode]] = []

    # --- streams --------------------------------------------------------------------------------

    def stream_of(self, node_id: NodeId, hello: Hello) -> Stream:
        """Return the stream to the incarnation that says hello; one to an older one ends."""
        stream = self.streams.get(node_id)
        if stream is None or stream.incarnation != hello.incarnation:
            if stream is not None:
                self.end_stream(node_id)
            stream = Stream(node_id, hello.incarnation, hello.window_bytes, hello.body_size_max)
            self.streams[node_id] = stream
        stream.window_bytes = hello.window_bytes
        stream.body_size_max = hello.body_size_max
        return stream

    def end_stream(self, node_id: NodeId) -> None:
        """The incarnation will not come back: what was written is 408, the rest 480."""
        stream = self.streams.pop(node_id, None)
        if stream is None:
            return
        written, unwritten = stream.drain()
        self._conclude(node_id, written, ResultCode.TIMEOUT)
        self._conclude(node_id, unwritten, ResultCode.UNAVAILABLE)
        self._context.timers.cancel(("expire", node_id))
        self._context.timers.cancel(("ack", node_id))

    def _conclude(
        self, node_id: NodeId, outgoing: Iterable[Outgoing], code: ResultCode
    ) -> None:
        for one in outgoing:
            if one.delivery is not None:
                self._settled.append((one.delivery, node_id, code))
            elif one.request is not None:
                self._finish(one.request, node_id, code)

    # --- sending --------------------------------------------------------------------------------

    def settle(self, delivery: DeliveryId, node_id: NodeId, code: ResultCode) -> None:
        self._settled.append((delivery, node_id, code))

    def put(self, node_id: NodeId, outgoing: Outgoing, body_size: int, now: Instant) -> None:
        """Queue a frame for an active member, or give its result at once."""
        stream = self.streams.get(node_id)
        if stream is None:
            self._conclude(node_id, (outgoing,), ResultCode.UNAVAILABLE)
            return
        if body_size > stream.body_size_max:
            self._conclude(node_id, (outgoing,), ResultCode.TOO_LARGE)
            return
        held = stream.unsent_bytes + stream.unacknowledged_bytes + outgoing.frame.size_bytes
        if held > self._settings.outbox_bytes or stream.waiting:
            self._overflow(stream, outgoing, now)
            return
        if stream.is_full and held < self._settings.outbox_bytes // 2:
            stream.is_full = False
        stream.put(outgoing)
        if not stream.is_expiry_set:
            stream.is_expiry_set = True
            self._context.timers.set(("expire", node_id), outgoing.deadline)
        self.wake(node_id)

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
                    f"{stream.held_bytes} of {self._settings.outbox_bytes} bytes are held",
                )
            )
        policy = self._channels.get(outgoing.channel, _DEFAULT_CHANNEL).overflow
        if policy is OverflowPolicy.DROP_OLDEST and self._drop_oldest(stream, outgoing):
            stream.put(outgoing)
            self.wake(stream.node_id)
            return
        if policy is OverflowPolicy.WAIT:
            waiting = sum(one.frame.size_bytes for one, _ in stream.waiting)
            if waiting + outgoing.frame.size_bytes <= self._settings.outbox_bytes:
                stream.waiting.append((outgoing, now + self._settings.wait_max))
                self._context.timers.set(("wait", stream.node_id), stream.waiting[0][1])
                return
        self._conclude(stream.node_id, (outgoing,), ResultCode.BUSY)

    def _drop_oldest(self, stream: Stream, outgoing: Outgoing) -> bool:
        """Make room by dropping unwritten messages of the same channel; tells whether it did."""
        needed = outgoing.frame.size_bytes
        dropped: list[Outgoing] = []
        room = self._settings.outbox_bytes - stream.held_bytes
        for one in stream.unsent:
            if room >= needed:
                break
            if isinstance(one, Outgoing) and one.channel == outgoing.channel and one.delivery:
                dropped.append(one)
                room += one.frame.size_bytes
        if room < needed:
            return False
        gone = {id(one): None for one in dropped}
        stream.unsent = deque(one for one in stream.unsent if id(one) not in gone)
        stream.unsent_bytes -= sum(one.frame.size_bytes for one in dropped)
        self._conclude(stream.node_id, dropped, ResultCode.BUSY)
        return True

    def admit_waiting(self, node_id: NodeId, now: Instant) -> None:
        """Let those in that wait for room, or end them when they have waited too long."""
        stream = self.streams.get(node_id)
        if stream is None or not stream.waiting:
            return
        limit = self._settings.outbox_bytes
        while stream.waiting:
            outgoing, until = stream.waiting[0]
            if stream.held_bytes + outgoing.frame.size_bytes <= limit:
                stream.waiting.popleft()
                stream.put(outgoing)
                self.wake(node_id)
            elif until <= now:
                stream.waiting.popleft()
                self._conclude(node_id, (outgoing,), ResultCode.BUSY)
            else:
                self._context.timers.set(("wait", node_id), until)
                return
        self._schedule_expiry(stream)

    # --- what comes back ------------------------------------------------------------------------

    def acknowledged_untrusted(self, stream: Stream, position: int, now: Instant) -> bool:
        """Take an acknowledgement; tells whether it is possible."""
        if not stream.acknowledge_untrusted(position):
            return False
        if stream.waiting:
            self.admit_waiting(stream.node_id, now)
        if stream.unsent:
            self.wake(stream.node_id)
        return True

    def results_untrusted(self, stream: Stream, first: int, last: int, code: int) -> bool:
        """Take a run of results from a peer; tells whether it is possible."""
        settled = stream.settle_untrusted(first, last)
        if settled is None:
            return False
        result = ResultCode(code) if code in RESULT_CODES else ResultCode.FAILED
        node_id = stream.node_id
        append = self._settled.append
        for one in settled:
            if one.delivery is not None:
                append((one.delivery, node_id, result))
            elif one.request is not None:
                self._finish(one.request, node_id, result)
        return True

    def expire(self, node_id: NodeId, now: Instant) -> None:
        """End what has waited too long for its result, or for being written."""
        stream = self.streams.get(node_id)
        if stream is None:
            return
        unanswered, unwritten = stream.expire(now)
        self._conclude(node_id, unanswered, ResultCode.TIMEOUT)
        self._conclude(node_id, unwritten, ResultCode.UNAVAILABLE)
        self._schedule_expiry(stream)

    def _schedule_expiry(self, stream: Stream) -> None:
        deadline = stream.next_deadline()
        stream.is_expiry_set = deadline is not None
        if deadline is not None:
            self._context.timers.set(("expire", stream.node_id), deadline)

    def flush(self) -> None:
        """Hand out the results of this step, if there are any."""
        if self._settled:
            self._context.effects.append(Settle(self._settled))
            self._settled = []


class LocalLoop:
    """The path of messages from a node to itself: the same handlers, results and order."""

    def __init__(self, context: Context, deliveries: Deliveries, finish: Finish) -> None:
        self._context = context
        self._deliveries = deliveries
        self._finish = finish
        self._given = 0
        self._pending: dict[int, Outgoing] = {}
        self._arrived: list[tuple[int, Message | Request | Reply]] = []

    def put(self, outgoing: Outgoing) -> None:
        message = outgoing.frame.message
        assert isinstance(message, Message | Request)
        self._given += 1
        self._pending[self._given] = outgoing
        self._arrived.append((self._given, message))

    def put_reply(self, reply: Reply) -> None:
        """Show a reply of our own to ourselves to the observers; its result has been given."""
        self._arrived.append((0, reply))

    def handled(self, position: int, code: ResultCode) -> None:
        outgoing = self._pending.pop(position, None)
        if outgoing is None:
            return
        node_id = self._context.settings.node_id
        if outgoing.delivery is not None:
            self._deliveries.settle(outgoing.delivery, node_id, code)
        elif outgoing.request is not None:
            self._finish(outgoing.request, node_id, code)

    def flush(self, incarnation: Incarnation) -> None:
        """Hand what was sent in this step to the routes, if there is anything."""
        if self._arrived:
            node_id = self._context.settings.node_id
            self._context.effects.append(Handle(node_id, incarnation, self._arrived))
            self._arrived = []

