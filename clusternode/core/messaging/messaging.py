"""Everything about messages in one node: streams, deliveries, requests and the local loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clusternode.core.context import Context
from clusternode.core.effects import Fanout, Handle
from clusternode.core.inputs import Answer, Ask, CancelRequest, Handled, Publish
from clusternode.core.messaging.delivery import Deliveries
from clusternode.core.messaging.requests import Requests
from clusternode.core.messaging.sending import NOBODY, Outgoing
from clusternode.core.messaging.streams import Stream
from clusternode.core.types import (
    ChannelName,
    DeliveryId,
    Incarnation,
    Instant,
    NodeId,
    RequestId,
    ResultCode,
)
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.limits import FRAME_OVERHEAD_BYTES
from clusternode.core.wire.messages import (
    Answerable,
    Frame,
    Hello,
    Message,
    Reply,
    Request,
    Results,
    Resume,
    Unknown,
    WireMessage,
)

_NO_CHANNEL = ChannelName("")
"""Replies belong to no channel: the policy `reject` is theirs."""


class Messaging:
    """The messaging half of a node. Knows members only as ids that are active or not."""

    def __init__(
        self, context: Context, wake: Callable[[NodeId], None], incarnation: Incarnation
    ) -> None:
        self._context = context
        self._settings = context.settings.messaging
        self._node_id = context.settings.node_id
        self.incarnation = incarnation
        self.requests = Requests(context)
        self.deliveries = Deliveries(context, wake, self.requests.finish)
        self._next_message_id = 1
        self.is_leaving = False
        self._has_sent = False
        """Whether any peer was ever sent anything: else no position was given either."""

    # --- calls from our side --------------------------------------------------------------------

    def publish(
        self, publish: Publish, destinations: Sequence[tuple[NodeId, bool]], now: Instant
    ) -> None:
        """Send a message to (node id, is it active) each; one result for each follows."""
        context = self._context
        delivery = publish.delivery
        context.effects.append(Fanout(delivery, [node_id for node_id, _ in destinations]))
        message = Message(
            publish.channel,
            publish.content_type,
            publish.body,
            self._next_message_id,
            publish.max_forwards,
            publish.replicated,
            publish.source,
        )
        self._next_message_id += 1
        outgoing = self._outgoing(message, publish.channel, now, delivery=delivery)
        size = len(publish.body)
        deliveries = self.deliveries
        for node_id, is_active in destinations:
            if is_active:
                deliveries.put(node_id, outgoing, size, now)
            elif node_id == self._node_id:
                self._put_local(outgoing, size)
            else:
                deliveries.settle(delivery, node_id, ResultCode.UNAVAILABLE)

    def ask(self, ask: Ask, destinations: Sequence[tuple[NodeId, bool]], now: Instant) -> None:
        """Send a request to (node id, is it active) each, after it is open."""
        if not self.requests.open(ask, [node_id for node_id, _ in destinations], now):
            return
        message = Request(ask.channel, ask.content_type, ask.body, ask.tag, ask.timeout)
        outgoing = self._outgoing(message, ask.channel, now, request=ask.request)
        outgoing.resend_until = min(outgoing.resend_until, now + ask.timeout)
        for node_id, is_active in destinations:
            if is_active:
                self.deliveries.put(node_id, outgoing, len(ask.body), now)
            elif node_id == self._node_id:
                self._put_local(outgoing, len(ask.body))
            else:
                self.requests.finish(ask.request, node_id, ResultCode.UNAVAILABLE)
        self.requests.close_if_empty(ask.request)

    def _put_local(self, outgoing: Outgoing, body_size: int) -> None:
        """Send to ourselves, within the limits that others find at us."""
        if body_size > self._settings.body_size_max:
            self.deliveries.conclude(self._node_id, (outgoing,), ResultCode.TOO_LARGE)
        elif self.is_leaving:
            self.deliveries.conclude(self._node_id, (outgoing,), ResultCode.LEAVING)
        else:
            self.deliveries.local.put(outgoing)

    def answer(self, answer: Answer, *, is_active: bool, now: Instant) -> None:
        """Send a reply; its result is 200 when the asker still waits for it."""
        self._context.effects.append(Fanout(answer.delivery, [answer.node_id]))
        reply = Reply(answer.tag, answer.content_type, answer.body, answer.code)
        stream = self.deliveries.stream_of(answer.node_id)
        if answer.node_id == self._node_id:
            code = self.requests.replied_untrusted(self._node_id, reply)
            self.deliveries.settle(answer.delivery, self._node_id, code)
            self.deliveries.local.put_reply(reply)
        elif is_active or (stream is not None and (stream.is_bound or not stream.is_ending)):
            outgoing = self._outgoing(reply, _NO_CHANNEL, now, delivery=answer.delivery)
            self.deliveries.put(answer.node_id, outgoing, len(answer.body), now)
        else:
            self.deliveries.settle(answer.delivery, answer.node_id, ResultCode.UNAVAILABLE)

    def cancel(self, cancel: CancelRequest) -> None:
        self._forget_request(cancel.request, self.requests.cancel(cancel.request))

    def request_timed_out(self, request: RequestId) -> None:
        self._forget_request(request, self.requests.timed_out(request))

    def _forget_request(self, request: RequestId, node_ids: Sequence[NodeId]) -> None:
        for node_id in node_ids:
            stream = self.deliveries.stream_of(node_id)
            if stream is not None:
                stream.forget_request(request)
            else:
                self.deliveries.local.forget_request(request)

    def _outgoing(
        self,
        message: Answerable,
        channel: ChannelName,
        now: Instant,
        *,
        delivery: DeliveryId | None = None,
        request: RequestId | None = None,
    ) -> Outgoing:
        settings = self._settings
        return Outgoing(
            frame_of(message),
            now + settings.result_timeout,
            now + settings.delivery_timeout,
            channel,
            delivery,
            request,
        )

    def handled(self, handled: Handled, now: Instant) -> None:
        """Send the results of messages whose handlers have ended."""
        stream = self.deliveries.stream_of(handled.origin)
        if stream is not None:
            if stream.incarnation == handled.incarnation:
                stream.receiving.handling -= len(handled.results)
                stream.put_results(handled.results)
                self.deliveries.wake(handled.origin)
                if stream.is_forgettable:
                    self.deliveries.schedule_expiry(stream, now)
        elif handled.origin == self._node_id:
            for position, code in handled.results:
                self.deliveries.local.handled(position, code)

    # --- frames of a peer -----------------------------------------------------------------------

    def receive_untrusted(
        self, stream: Stream, messages: Sequence[WireMessage], now: Instant
    ) -> str | None:
        """Take the positioned messages of one read, in order; returns what is wrong, if anything.

        Everything that is for the routes becomes one `Handle`.
        """
        items: list[tuple[int, Answerable]] = []
        receiving = stream.receiving
        position = receiving.last_received
        size = FRAME_OVERHEAD_BYTES * len(messages)
        replies = 0
        error: str | None = None
        for message in messages:
            kind = type(message)
            position += 1
            if kind is Message:
                size += len(message.body)  # type: ignore[union-attr]  # kind says so
                items.append((position, message))  # type: ignore[arg-type]
            elif kind is Results:
                for run in message.runs:  # type: ignore[union-attr]
                    if not self.deliveries.results_untrusted(stream, run.first, run.last, run.code):
                        error = f"a result for the positions {run.first} to {run.last}"
            elif kind is Unknown:
                self._context.count("unknown_types")
                stream.put_result(position, ResultCode.BAD_REQUEST)
            else:
                assert isinstance(message, Request | Reply)
                size += len(message.body)
                items.append((position, message))
                if isinstance(message, Reply):
                    replies += 1
                    code = self.requests.replied_untrusted(stream.node_id, message)
                    stream.put_result(position, code)
                else:
                    if receiving.open_requests is NOBODY:
                        receiving.open_requests = {}
                    receiving.open_requests[position] = None
        receiving.last_received = position
        receiving.unacknowledged_bytes += size
        if self.is_leaving:
            items = self._refuse(stream, items)
        if items:
            receiving.handling += len(items) - replies
            self._context.effects.append(Handle(stream.node_id, stream.incarnation, items))
        if stream.waiting:
            self.deliveries.admit_waiting(stream.node_id, now)
        return error or self.deliveries.is_overrun(stream)

    def _refuse(
        self, stream: Stream, items: list[tuple[int, Answerable]]
    ) -> list[tuple[int, Answerable]]:
        """While leaving: end what arrives with 503, and show only replies."""
        for position, message in items:
            if not isinstance(message, Reply):
                stream.put_result(position, ResultCode.LEAVING)
        return [item for item in items if isinstance(item[1], Reply)]

    # --- connections ----------------------------------------------------------------------------

    def resume_of(self, node_id: NodeId, hello: Hello) -> Resume:
        """Fix the positions for a connection: what we have taken and what we can still send."""
        return self.deliveries.bind(node_id, hello)

    def doubts(self, node_id: NodeId, hello: Hello, resume: Resume, connected_at: Instant) -> bool:
        """Tell whether the peer has acknowledged more than it says here; doubts it once.

        Then it has said so before it chose another connection, which has ended first: the Close of
        this one is on its way. Who says it again has forgotten what it took; and so has who says
        it on a connection that was dialled after the other one had ended.
        """
        stream = self.deliveries.streams.get(node_id)
        if stream is None or stream.incarnation != hello.incarnation:
            return False
        if connected_at - stream.unbound_at > self._context.settings.discovery.handshake_timeout:
            return False
        is_doubted = resume.last_received < stream.sending.acknowledged
        if is_doubted:
            stream.sending.acknowledged = 0
        return is_doubted

    def resumed_untrusted(self, node_id: NodeId, resume: Resume, now: Instant) -> bool:
        """Take the peer's side of it; tells whether it is possible."""
        if resume.last_received:  # in another life of ours, perhaps
            self._has_sent = True
        return self.deliveries.resumed_untrusted(node_id, resume, now)

    def disconnected(self, node_id: NodeId, now: Instant, *, blames_frame: bool) -> None:
        """The connection has ended; the stream waits for the next one."""
        stream = self.deliveries.unbind(node_id, now, blames_frame=blames_frame)
        if stream is not None and stream.is_ending:
            self.requests.gone(node_id)

    def gone(self, node_id: NodeId, now: Instant) -> None:
        """A member has left or was removed: nothing more can come once it is not connected.

        While it is, its results and replies still come: a leaving node ends what it has begun.
        """
        stream = self.deliveries.stream_of(node_id)
        if stream is not None:
            stream.is_ending = True
            if stream.is_bound:
                return
            self.deliveries.abandon(stream, keeps_results=True)
            self.deliveries.schedule_expiry(stream, now)
        self.requests.gone(node_id)

    def disabled(self, node_id: NodeId) -> None:
        """A member is about to be removed: requests do not wait for it any longer."""
        stream = self.deliveries.streams.get(node_id)
        if stream is not None:
            self.deliveries.abandon_requests(stream)
        self.requests.gone(node_id)

    def renumbered(self, incarnation: Incarnation) -> None:
        """Our own incarnation has risen, and all connections end: others begin anew with us.

        What was sent under the old one is not sent again. Positions go on, so that results of the
        old one cannot be taken for results of the new one.
        """
        self.incarnation = incarnation
        for stream in self.deliveries.made():
            self.deliveries.abandon(stream)

    def abandon_all(self) -> None:
        """End everything that still waits for a result: the node stops."""
        for stream in self.deliveries.made():
            self.deliveries.abandon(stream)
        self.deliveries.local.drain()

    def take(self, node_id: NodeId, bytes_max: int) -> list[Frame]:
        """Return positioned frames and the acknowledgement that is owed, for one write."""
        stream = self.deliveries.streams.get(node_id)
        if stream is None:
            return []
        if stream.is_ack_owed:
            self._context.timers.cancel(("ack", node_id))
        frames = stream.take(bytes_max)
        if frames:
            self._has_sent = True
        return frames

    def is_quiet(self, node_id: NodeId) -> bool:
        """Tell whether a writer would get nothing at all, not even an acknowledgement."""
        stream = self.deliveries.streams.get(node_id)
        if stream is None:
            return True
        sending, receiving = stream.sending, stream.receiving
        if receiving.last_received > receiving.acknowledged:
            return False
        return not (sending.unsent or sending.resend or sending.results)

    def has_output(self, node_id: NodeId) -> bool:
        stream = self.deliveries.streams.get(node_id)
        return stream is not None and stream.has_output

    def owe_ack(self, stream: Stream, now: Instant) -> None:
        """See to it that what was taken is acknowledged: soon, or at once when it is much."""
        key = ("ack", stream.node_id)
        if stream.is_ack_urgent:
            self.deliveries.wake(stream.node_id)
        elif self._context.timers.deadline_of(key) is None:
            self._context.timers.set(key, now + self._settings.ack_delay)

    def is_drained(self) -> bool:
        """Tell whether nothing is being handled here and nothing of ours waits for its result."""
        if not self.deliveries.local.is_idle:
            return False
        for stream in self.deliveries.made():
            sending = stream.sending
            if stream.receiving.handling > 0:
                return False
            if stream.is_bound and (
                sending.unsent or sending.unacknowledged or sending.results or sending.pending
            ):
                return False
        return True

    def position_mark(self, node_id: NodeId) -> int:
        """Return the last position given to a peer: acknowledgements above it are news."""
        stream = self.deliveries.streams.get(node_id)
        return 0 if stream is None else stream.sending.given

    def position_marks(self, node_ids: Sequence[NodeId]) -> list[int]:
        """Return `position_mark` of each."""
        if not self._has_sent:
            return [0] * len(node_ids)
        streams = [self.deliveries.streams.get(node_id) for node_id in node_ids]
        return [0 if stream is None else stream.sending.given for stream in streams]

    def flush(self) -> None:
        """Hand out what this step has gathered, as few effects as possible."""
        deliveries = self.deliveries
        if deliveries.local.arrived:
            deliveries.local.flush(self.incarnation)
        if deliveries.settled:
            deliveries.flush()
