"""Everything about messages in one node: streams, deliveries, requests and the local loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clusternode.core.context import Context
from clusternode.core.effects import Fanout, Handle
from clusternode.core.inputs import Answer, Ask, CancelRequest, Handled, Publish
from clusternode.core.messaging.delivery import Deliveries, LocalLoop
from clusternode.core.messaging.requests import Requests
from clusternode.core.messaging.streams import Outgoing, Stream
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
WINDOW_OVERRUN = 2
"""A peer may exceed its window by this factor (its own overhead counts differ) before it is cut."""


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
        self._local = LocalLoop(context, self.deliveries, self.requests.finish)
        self._next_message_id = 1
        self._unfinished = 0
        self.is_leaving = False

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
                self._local.put(outgoing)
            else:
                deliveries.settle(delivery, node_id, ResultCode.UNAVAILABLE)

    def ask(self, ask: Ask, destinations: Sequence[tuple[NodeId, bool]], now: Instant) -> None:
        """Send a request to (node id, is it active) each, after it is open."""
        if not self.requests.open(ask, [node_id for node_id, _ in destinations], now):
            return
        message = Request(ask.channel, ask.content_type, ask.body, ask.tag, ask.timeout)
        outgoing = self._outgoing(message, ask.channel, now, request=ask.request)
        outgoing.deadline = outgoing.resend_until = now + ask.timeout
        for node_id, is_active in destinations:
            if is_active:
                self.deliveries.put(node_id, outgoing, len(ask.body), now)
            elif node_id == self._node_id:
                self._local.put(outgoing)
            else:
                self.requests.finish(ask.request, node_id, ResultCode.UNAVAILABLE)
        self.requests.close_if_empty(ask.request)

    def answer(self, answer: Answer, *, is_active: bool, now: Instant) -> None:
        """Send a reply; its result is 200 when the asker still waits for it."""
        self._context.effects.append(Fanout(answer.delivery, [answer.node_id]))
        reply = Reply(answer.tag, answer.content_type, answer.body, answer.code)
        if answer.node_id == self._node_id:
            code = self.requests.replied_untrusted(self._node_id, reply)
            self.deliveries.settle(answer.delivery, self._node_id, code)
            self._local.put_reply(reply)
        elif is_active or answer.node_id in self.deliveries.streams:
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
            stream = self.deliveries.streams.get(node_id)
            if stream is not None:
                stream.forget_request(request)

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

    def handled(self, handled: Handled) -> None:
        """Send the results of messages whose handlers have ended."""
        self._unfinished -= len(handled.results)
        stream = self.deliveries.streams.get(handled.origin)
        if stream is not None:
            if stream.incarnation == handled.incarnation:
                stream.put_results(handled.results)
                self.deliveries.wake(handled.origin)
        elif handled.origin == self._node_id:
            for position, code in handled.results:
                self._local.handled(position, code)

    # --- frames of a peer -----------------------------------------------------------------------

    def receive_untrusted(
        self, stream: Stream, messages: Sequence[WireMessage], now: Instant
    ) -> str | None:
        """Take the positioned messages of one read, in order; returns what is wrong, if anything.

        Everything that is for the routes becomes one `Handle`.
        """
        items: list[tuple[int, Answerable]] = []
        position = stream.last_received
        size = 0
        error: str | None = None
        for message in messages:
            kind = type(message)
            position += 1
            if kind is Message:
                size += len(message.body)  # type: ignore[union-attr]  # kind says so
                items.append((position, message))  # type: ignore[arg-type]
            elif kind is Results:
                for run in message.runs:  # type: ignore[union-attr]
                    if not self.deliveries.results_untrusted(
                        stream, run.first, run.last, run.code
                    ):
                        error = f"a result for the positions {run.first} to {run.last}"
            else:
                self._receive_other(stream, position, message, items)
        stream.last_received = position
        stream.unacknowledged_in_bytes += size
        if self.is_leaving:
            items = self._refuse(stream, items)
        if items:
            self._unfinished += len(items)
            self._context.effects.append(Handle(stream.node_id, stream.incarnation, items))
        if stream.unacknowledged_in_bytes > WINDOW_OVERRUN * self._settings.window_bytes:
            error = f"{stream.unacknowledged_in_bytes} bytes without an acknowledgement"
        return error

    def _receive_other(
        self,
        stream: Stream,
        position: int,
        message: WireMessage,
        items: list[tuple[int, Answerable]],
    ) -> None:
        if isinstance(message, Request):
            stream.open_requests[position] = None
            stream.unacknowledged_in_bytes += len(message.body)
            items.append((position, message))
        elif isinstance(message, Reply):
            stream.unacknowledged_in_bytes += len(message.body)
            stream.put_result(position, self.requests.replied_untrusted(stream.node_id, message))
            self._unfinished -= 1  # it is for the observers only
            items.append((position, message))
        else:
            assert isinstance(message, Unknown)
            self._context.count("unknown_types")
            stream.put_result(position, ResultCode.BAD_REQUEST)

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
        stream = self.deliveries.stream_of(node_id, hello)
        stream.is_bound = True
        return Resume(stream.last_received, stream.first_held)

    def resumed_untrusted(self, node_id: NodeId, resume: Resume) -> bool:
        """Take the peer's side of it; tells whether it is possible."""
        stream = self.deliveries.streams[node_id]
        return stream.resume_untrusted(resume.last_received, resume.first_held)

    def disconnected(self, node_id: NodeId, now: Instant, *, blames_frame: bool) -> None:
        """The connection has ended; the stream waits for the next one."""
        stream = self.deliveries.streams.get(node_id)
        if stream is None:
            return
        stream.is_bound = False
        stream.resend.clear()
        self._context.timers.cancel(("ack", node_id))
        if blames_frame:
            given_up = stream.blame_head()
            if given_up is not None and given_up.delivery is not None:
                self.deliveries.settle(given_up.delivery, node_id, ResultCode.BAD_REQUEST)
            elif given_up is not None and given_up.request is not None:
                self.requests.finish(given_up.request, node_id, ResultCode.BAD_REQUEST)

    def gone(self, node_id: NodeId) -> None:
        """A member has left or was removed: nothing more can come of what it was sent."""
        self.requests.gone(node_id)
        self.deliveries.end_stream(node_id)

    def disabled(self, node_id: NodeId) -> None:
        """A member is about to be removed: requests do not wait for it any longer."""
        self.requests.gone(node_id)

    def take(self, node_id: NodeId, bytes_max: int) -> list[Frame]:
        """Return positioned frames and the acknowledgement that is owed, for one write."""
        stream = self.deliveries.streams.get(node_id)
        if stream is None:
            return []
        if stream.is_ack_owed:
            self._context.timers.cancel(("ack", node_id))
        return stream.take(bytes_max)

    def has_output(self, node_id: NodeId) -> bool:
        stream = self.deliveries.streams.get(node_id)
        return stream is not None and stream.has_output

    def owe_ack(self, stream: Stream, now: Instant) -> None:
        """See to it that what was taken is acknowledged: soon, or at once when it is much."""
        if stream.is_ack_urgent:
            self.deliveries.wake(stream.node_id)
        elif stream.is_ack_owed:
            key = ("ack", stream.node_id)
            if self._context.timers.deadline_of(key) is None:
                self._context.timers.set(key, now + self._settings.ack_delay)

    def is_drained(self) -> bool:
        """Tell whether nothing is being handled here and nothing of ours is on the way."""
        return self._unfinished <= 0 and not any(
            stream.is_bound and (stream.unsent or stream.unacknowledged or stream.results.runs)
            for stream in self.deliveries.streams.values()
        )

    def position_mark(self, node_id: NodeId) -> int:
        """Return the last position given to a peer: acknowledgements above it are news."""
        stream = self.deliveries.streams.get(node_id)
        return 0 if stream is None else stream.given

    def flush(self) -> None:
        """Hand out what this step has gathered, as few effects as possible."""
        self._local.flush(self.incarnation)
        self.deliveries.flush()
