"""The messaging half of a node without its membership, and a cable that joins two of them.

The cable does what connections do: it carries frames in order, it may be cut at any moment with
frames on the way, and each new one begins with both Resumes, the left side's first.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from clusternode.core.context import Context
from clusternode.core.effects import (
    Asked,
    Emit,
    Fanout,
    Handle,
    Replied,
    RequestEnded,
    RequestFinished,
    Settle,
)
from clusternode.core.inputs import Answer, Ask, CancelRequest, Handled, Publish
from clusternode.core.messaging.messaging import Messaging
from clusternode.core.messaging.streams import Stream
from clusternode.core.settings import ChannelSettings, MessagingSettings, NodeSettings
from clusternode.core.types import (
    Address,
    ChannelName,
    DeliveryId,
    Incarnation,
    NodeId,
    RequestId,
    ResultCode,
    Tag,
)
from clusternode.core.wire.messages import Ack, Hello, Reply, Request, Resume, WireMessage

START = 1000.0


class Half:
    """One side: its calls, its clock, and everything that it has said."""

    def __init__(
        self,
        node_id: str,
        *,
        incarnation: int = 1,
        channels: dict[str, ChannelSettings] | None = None,
        **messaging: Any,
    ) -> None:
        settings = NodeSettings(
            node_id=NodeId(node_id),
            cluster="c",
            incarnation=Incarnation(incarnation),
            address=Address("tcp", node_id, 1),
            channel_settings={ChannelName(k): v for k, v in (channels or {}).items()},
            messaging=MessagingSettings(**messaging),
        )
        self.node_id = settings.node_id
        self.settings = settings
        self.now = START
        self.woken: list[NodeId] = []
        self.context = Context(settings, random.Random(1))
        self.messaging = Messaging(self.context, self.woken.append, settings.incarnation)
        self.numbers = itertools.count(1)
        self.results: dict[tuple[int, str], list[ResultCode]] = {}  # (delivery, node) → codes
        self.fanouts: dict[int, list[NodeId]] = {}
        self.finished: dict[int, list[tuple[str, str, int]]] = {}  # request → (node, outcome, code)
        self.replies: dict[int, list[tuple[str, bytes]]] = {}  # request → (node, body)
        self.ended: list[int] = []
        self.asked: dict[int, list[NodeId]] = {}
        self.events: list[Any] = []
        self.taken: list[tuple[str, int, Any]] = []  # (origin, position, message) of every Handle
        self.to_handle: list[tuple[str, int, int, Any]] = []  # (origin, incarnation, position, …)

    @property
    def hello(self) -> Hello:
        messaging = self.settings.messaging
        return Hello(
            "c",
            self.node_id,
            self.messaging.incarnation,
            b"n" * 16,
            1,
            1,
            str(self.settings.address),
            messaging.body_size_max,
            messaging.window_bytes,
        )

    def stream(self, node_id: str) -> Stream:
        stream = self.messaging.deliveries.stream_of(NodeId(node_id))
        assert stream is not None
        return stream

    # Calls

    def do(self, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Make a call as `Node.step` does, and keep what comes of it."""
        returned = call(*arguments, **more)
        self.messaging.flush()
        effects, self.context.effects = self.context.effects, []
        for effect in effects:
            self._keep(effect)
        return returned

    def _keep(self, effect: Any) -> None:
        match effect:
            case Fanout(delivery, destinations):
                self.fanouts[delivery] = destinations
            case Settle(results):
                for delivery, node_id, code in results:
                    assert node_id in self.fanouts[delivery]
                    self.results.setdefault((delivery, node_id), []).append(code)
            case Asked(request, node_ids):
                self.asked[request] = node_ids
            case Replied(request, node_id, _, body):
                assert request not in self.ended
                self.replies.setdefault(request, []).append((node_id, body))
            case RequestFinished(request, node_id, outcome, code):
                assert request not in self.ended
                line = (node_id, outcome.value, int(code))
                self.finished.setdefault(request, []).append(line)
            case RequestEnded(request):
                assert request not in self.ended
                self.ended.append(request)
            case Handle(origin, incarnation, items):
                for position, message in items:
                    self.taken.append((origin, position, message))
                    if not isinstance(message, Reply):
                        self.to_handle.append((origin, incarnation, position, message))
            case Emit(event):
                self.events.append(event)
            case _:
                raise AssertionError(effect)

    def publish(
        self, *destinations: str, body: bytes = b"x", channel: str = "ch", active: bool = True
    ) -> DeliveryId:
        delivery = DeliveryId(next(self.numbers))
        publish = Publish(delivery, ChannelName(channel), body)
        self.do(self.messaging.publish, publish, self._with(destinations, active), self.now)
        return delivery

    def ask(
        self, *destinations: str, timeout: float = 5.0, active: bool = True, channel: str = "ch",
        body: bytes = b"?", tag: str | None = None,
    ) -> RequestId:  # fmt: skip
        request = RequestId(next(self.numbers))
        tag = f"{self.node_id}-{request}" if tag is None else tag
        ask = Ask(request, ChannelName(channel), body, Tag(tag), timeout)
        self.do(self.messaging.ask, ask, self._with(destinations, active), self.now)
        return request

    def _with(self, destinations: Sequence[str], active: bool) -> list[tuple[NodeId, bool]]:
        return [(NodeId(one), active and one != self.node_id) for one in destinations]

    def answer(self, node_id: str, tag: str, body: bytes = b"!", active: bool = True) -> DeliveryId:
        delivery = DeliveryId(next(self.numbers))
        answer = Answer(delivery, NodeId(node_id), Tag(tag), body)
        self.do(self.messaging.answer, answer, is_active=active, now=self.now)
        return delivery

    def cancel(self, request: int) -> None:
        self.do(self.messaging.cancel, CancelRequest(RequestId(request)))

    def handle(self, count: int | None = None, code: ResultCode = ResultCode.OK) -> list[Any]:
        """Let handlers end, oldest first; returns what they have handled."""
        count = len(self.to_handle) if count is None else count
        now, self.to_handle = self.to_handle[:count], self.to_handle[count:]
        for origin, incarnation, position, _ in now:
            handled = Handled(NodeId(origin), Incarnation(incarnation), [(position, code)])
            self.do(self.messaging.handled, handled, self.now)
        return [message for *_, message in now]

    def handle_request(self, *replies: bytes) -> Request:
        """Let the oldest handler reply so many times and end."""
        origin, _, _, message = self.to_handle[0]
        for body in replies:
            self.answer(origin, message.tag, body)
        self.handle(1)
        return message

    def disconnected(self, node_id: str, *, blames: bool = False) -> None:
        self.do(self.messaging.disconnected, NodeId(node_id), self.now, blames_frame=blames)

    def gone(self, node_id: str) -> None:
        self.do(self.messaging.gone, NodeId(node_id), self.now)

    def disabled(self, node_id: str) -> None:
        self.do(self.messaging.disabled, NodeId(node_id))

    # Time

    def advance_to(self, now: float) -> None:
        """Let time pass; every timer runs at its deadline, and none twice at one instant."""
        timers, deliveries = self.context.timers, self.messaging.deliveries
        while (deadline := timers.next_deadline()) is not None and deadline <= now:
            self.now = max(self.now, deadline)
            for key in timers.pop_due(self.now):
                match key:
                    case ("expire", node_id):
                        self.do(deliveries.expire, node_id, self.now)
                    case ("wait", node_id):
                        self.do(deliveries.admit_waiting, node_id, self.now)
                    case ("request", request):
                        self.do(self.messaging.request_timed_out, request)
                    case ("ack", node_id):
                        self.woken.append(node_id)
                    case _:
                        raise AssertionError(key)
            again = timers.next_deadline()
            assert again is None or again > deadline or again < START, "a timer that spins"
        self.now = now

    # What must hold at any time

    def check(self) -> None:
        deliveries = self.messaging.deliveries
        unmade = [node_id for node_id, one in deliveries.streams.items() if one is None]
        assert sorted(unmade) == sorted([*deliveries._unopened, *deliveries._unused])
        for stream in deliveries.made():
            sending = stream.sending
            assert sending.unsent_bytes == sum(
                one.frame.size_bytes for one in sending.unsent if hasattr(one, "frame")
            )
            assert sending.unacknowledged_bytes == sum(
                frame.size_bytes for frame, _ in sending.unacknowledged
            )
            assert list(sending.pending) == sorted(sending.pending)
            assert list(sending.asking) == sorted(sending.asking)
            assert len(sending.resend) <= len(sending.unacknowledged)
            assert stream.receiving.handling >= 0
            assert stream.receiving.acknowledged <= stream.receiving.last_received


class Cable:
    """A connection between two halves; the left one decides, so its Resume comes first."""

    def __init__(self, left: Half, right: Half) -> None:
        self.left = left
        self.right = right
        self.to: dict[NodeId, deque[WireMessage]] = {}
        self.open: dict[NodeId, bool] = {}
        self.is_up = False

    def other(self, half: Half) -> Half:
        return self.right if half is self.left else self.left

    def begin(self) -> None:
        """The left side sends its Resume."""
        assert not self.is_up
        self.is_up = True
        self.to = {self.left.node_id: deque(), self.right.node_id: deque()}
        self.open = {self.left.node_id: False, self.right.node_id: False}
        self._send_resume(self.left)

    def _send_resume(self, half: Half) -> None:
        other = self.other(half)
        resume = half.do(half.messaging.resume_of, other.node_id, other.hello)
        self.to[other.node_id].append(resume)

    def write(self, half: Half, bytes_max: int = 256 * 1024) -> int:
        """Let the writer of one side take what there is; returns how many frames it took."""
        if not self.is_up or not self.open[half.node_id]:
            return 0
        other = self.other(half)
        frames = half.do(half.messaging.take, other.node_id, bytes_max)
        self.to[other.node_id] += [frame.message for frame in frames]
        return len(frames)

    def read(self, half: Half, count: int | None = None) -> int:
        """Let one side read what has arrived, or the first of it; returns how much that was."""
        if not self.is_up:
            return 0
        arrived = self.to[half.node_id]
        count = len(arrived) if count is None else min(count, len(arrived))
        positioned: list[WireMessage] = []
        for message in [arrived.popleft() for _ in range(count)]:
            if isinstance(message, Resume):
                self._take_resume(half, message)
            elif isinstance(message, Ack):
                stream = half.stream(self.other(half).node_id)
                acknowledged = half.messaging.deliveries.acknowledged_untrusted
                assert half.do(acknowledged, stream, message.position, half.now)
            else:
                positioned.append(message)
        if positioned:
            stream = half.stream(self.other(half).node_id)
            error = half.do(half.messaging.receive_untrusted, stream, positioned, half.now)
            assert error is None, error
            half.do(half.messaging.owe_ack, stream, half.now)
        return count

    def _take_resume(self, half: Half, resume: Resume) -> None:
        if half is self.right:
            self._send_resume(half)
        resumed = half.messaging.resumed_untrusted
        assert half.do(resumed, self.other(half).node_id, resume, half.now)
        self.open[half.node_id] = True

    def cut(self, *, blames: Half | None = None) -> None:
        """Lose what is on the way. `blames` has closed for a protocol error."""
        if not self.is_up:
            return
        self.is_up = False
        self.left.disconnected(self.right.node_id, blames=blames is self.right)
        if NodeId(self.left.node_id) in self.right.messaging.deliveries.streams:
            self.right.disconnected(self.left.node_id, blames=blames is self.left)

    def pump(self) -> None:
        """Let everything that can go over the cable go over it."""
        if not self.is_up:
            self.begin()
        while any([self.write(self.left), self.read(self.right),
                   self.write(self.right), self.read(self.left)]):  # fmt: skip
            pass

    def settle(self) -> None:
        """Pump, with handlers that end at once, until nothing happens any more."""
        self.pump()
        while self.left.to_handle or self.right.to_handle:
            self.left.handle()
            self.right.handle()
            self.pump()


def joined(**settings: Any) -> tuple[Half, Half, Cable]:
    """Return two connected halves."""
    left, right = Half("a", **settings), Half("b", **settings)
    cable = Cable(left, right)
    cable.pump()
    return left, right, cable
