"""Deliveries and requests between whole nodes whose connections are lost at any time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clusternode.core.effects import (
    Dial,
    Disconnect,
    Effect,
    Fanout,
    Handle,
    OutputReady,
    Replied,
    RequestEnded,
    RequestFinished,
    Settle,
    Write,
    WriteEach,
)
from clusternode.core.inputs import (
    Answer,
    Ask,
    Connected,
    DialFailed,
    DialFailure,
    Disconnected,
    FramesReceived,
    Handled,
    Leave,
    Publish,
    Start,
    TimePassed,
    WriteReady,
)
from clusternode.core.node import Node
from clusternode.core.settings import DiscoverySettings, HealthSettings, NodeSettings
from clusternode.core.types import (
    Address,
    ChannelName,
    ConnectionId,
    DeliveryId,
    Incarnation,
    NodeId,
    RequestId,
    ResultCode,
    Tag,
)
from clusternode.core.wire.messages import Message, Reply, Request

LATENCY = 0.001
CHANNEL = ChannelName("ch")


class Net:
    """Three nodes, a heap of what is to come, and connections that can be lost."""

    def __init__(self, **more: Any) -> None:
        self.now = 1000.0
        self.numbers = itertools.count(1)
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.nodes: dict[str, Node] = {}
        self.ends: dict[int, tuple[str, int]] = {}  # connection → (node there, its connection)
        self.results: Counter[tuple[str, int, str, int]] = Counter()
        self.fanouts: dict[tuple[str, int], list[NodeId]] = {}
        self.taken: Counter[tuple[str, bytes]] = Counter()  # (node, body) → times
        self.order: dict[tuple[str, str], list[bytes]] = {}  # (node, origin) → bodies
        self.finished: Counter[tuple[str, int, str]] = Counter()
        self.ended: Counter[tuple[str, int]] = Counter()
        self.replies: Counter[tuple[str, int]] = Counter()
        self.addresses = {Address("tcp", f"10.0.0.{one}", 1): f"n{one}" for one in (1, 2, 3)}
        for number, (address, name) in enumerate(self.addresses.items()):
            node = Node(
                NodeSettings(
                    node_id=NodeId(name),
                    cluster="c",
                    incarnation=Incarnation(number + 1),
                    address=address,
                    nonce=name.encode() * 8,
                    health=HealthSettings(ping_interval=1.0, ping_timeout=0.5),
                    discovery=DiscoverySettings(
                        notification_addresses=tuple(self.addresses), redial_max=0.5
                    ),
                    **more,
                ),
                self.now,
                random.Random(number),
            )
            self.nodes[name] = node
            self.feed(name, Start())
        self.run(3.0)

    def later(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.heap, (self.now + delay, next(self.numbers), call, arguments))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [(at, name) for name, node in self.nodes.items() if (at := node.next_deadline())]
            at, name = min(due, default=(end + 1, ""))
            if self.heap and self.heap[0][0] <= min(at, end):
                self.now, _, call, arguments = heapq.heappop(self.heap)
                call(*arguments)
            elif at <= end:
                self.now = max(at, self.now)
                self.feed(name, TimePassed())
            else:
                break
        self.now = end

    def feed(self, name: str, input_: Any) -> None:
        for effect in self.nodes[name].step(self.now, input_):
            self._perform(name, effect)

    def _perform(self, name: str, effect: Effect) -> None:
        match effect:
            case Dial(address):
                self.later(LATENCY, self._connect, name, address)
            case OutputReady(connection):
                self.later(0, self.feed, name, WriteReady(connection, 65536))
            case Write(connection, frames, more):
                if frames:
                    messages = [frame.message for frame in frames]
                    self.later(LATENCY, self._arrive, connection, messages)
                if more:
                    self.later(0, self.feed, name, WriteReady(connection, 65536))
            case WriteEach(connections, frame):
                for connection in connections:
                    self.later(LATENCY, self._arrive, connection, [frame.message])
            case Disconnect(connection, close):
                self.later(LATENCY, self._end, connection, [] if close is None else [close])
            case Handle(origin, incarnation, items):
                self._handle(name, origin, incarnation, items)
            case Settle(results):
                for delivery, node_id, code in results:
                    self.results[name, delivery, node_id, code] += 1
            case Fanout(delivery, destinations):
                self.fanouts[name, delivery] = destinations
            case Replied(request):
                self.replies[name, request] += 1
            case RequestFinished(request, node_id):
                self.finished[name, request, node_id] += 1
            case RequestEnded(request):
                self.ended[name, request] += 1

    def _handle(self, name: str, origin: NodeId, incarnation: Incarnation, items: Any) -> None:
        results = []
        for position, message in items:
            if isinstance(message, Reply):
                continue
            if isinstance(message, Message):
                self.order.setdefault((name, origin), []).append(message.body)
            self.taken[name, message.body] += 1
            if isinstance(message, Request):
                answer = Answer(DeliveryId(10**6 + next(self.numbers)), origin, message.tag, b"!")
                self.later(0.01, self.feed, name, answer)
            results.append((position, ResultCode.OK))
        self.later(0.02, self.feed, name, Handled(origin, incarnation, results))

    def _connect(self, name: str, address: Address) -> None:
        there = self.addresses[address]
        near, far = ConnectionId(next(self.numbers)), ConnectionId(next(self.numbers))
        if name == there:
            self.feed(name, DialFailed(address, DialFailure.CLOSED))
            return
        self.ends[near], self.ends[far] = (there, far), (name, near)
        hellos = self.nodes[name].hello(), self.nodes[there].hello()
        self.feed(there, Connected(far, hellos[0], None, "r:1"))
        self.feed(name, Connected(near, hellos[1], address, "r:1"))

    def _arrive(self, connection: int, messages: list[Any]) -> None:
        if connection in self.ends:
            there, far = self.ends[connection]
            self.feed(there, FramesReceived(ConnectionId(far), messages))

    def _end(self, connection: int, last: list[Any]) -> None:
        self._arrive(connection, last)
        if connection in self.ends:
            there, far = self.ends.pop(connection)
            self.ends.pop(far, None)
            self.feed(there, Disconnected(ConnectionId(far)))

    def lose(self, name: str, other: str) -> None:
        """Lose every connection between two nodes with all that is on the way."""
        lost = [
            one
            for one, (there, far) in self.ends.items()
            if there == other and self.ends[far][0] == name
        ]
        for connection in lost:
            _, far = self.ends.pop(connection)
            del self.ends[far]
            self.feed(name, Disconnected(ConnectionId(connection)))
            self.feed(other, Disconnected(ConnectionId(far)))

    def codes(self, name: str, delivery: int, node_id: str) -> list[int]:
        return [
            code
            for (who, one, where, code), times in self.results.items()
            for _ in range(times)
            if (who, one, where) == (name, delivery, node_id)
        ]


def test_a_broadcast_over_lost_connections_reaches_everyone_once():
    net = Net()
    for number in range(1, 30):
        net.feed("n1", Publish(DeliveryId(number), CHANNEL, b"%03d" % number))
        net.run(0.0007)
        if number % 7 == 0:
            net.lose("n1", "n2")
    net.run(3.0)

    for number in range(1, 30):
        for node_id in net.fanouts["n1", number]:
            (code,) = net.codes("n1", number, node_id)
            assert net.taken[node_id, b"%03d" % number] == (code == ResultCode.OK)
    assert net.order["n2", "n1"] == sorted(net.order["n2", "n1"])


def test_a_request_to_everyone_and_self_ends_complete():
    net = Net()
    ask = Ask(RequestId(1), CHANNEL, b"?", Tag("t"), 5.0, include_self=True)
    net.feed("n1", ask)
    net.run(0.5)

    assert set(net.finished) == {("n1", 1, name) for name in ("n1", "n2", "n3")}
    assert net.replies["n1", 1] == 3
    assert net.ended["n1", 1] == 1


def test_a_leaving_node_tells_what_it_has_handled():
    net = Net()
    net.feed("n1", Publish(DeliveryId(1), CHANNEL, b"last", destinations=[NodeId("n3")]))
    net.run(0.005)
    assert net.taken["n3", b"last"]
    net.feed("n3", Leave())
    net.run(1.0)

    assert net.codes("n1", 1, "n3") == [ResultCode.OK]


NAMES = st.sampled_from(["n1", "n2", "n3"])


class ThreeNodes(RuleBasedStateMachine):
    """Whatever is lost: one true result each, handled at most once, requests end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.count = 0
        self.sent: dict[tuple[str, int], bytes] = {}
        self.asked: list[tuple[str, int]] = []

    @rule(name=NAMES, burst=st.integers(1, 4))
    def broadcast(self, name, burst):
        for _ in range(burst):
            self.count += 1
            body = b"%06d" % self.count
            self.net.feed(name, Publish(DeliveryId(self.count), CHANNEL, body))
            self.sent[name, self.count] = body

    @rule(name=NAMES, include_self=st.booleans())
    def ask(self, name, include_self):
        self.count += 1
        tag = Tag(f"{name}/{self.count}")
        request = RequestId(self.count)
        body = b"?%d" % self.count
        self.net.feed(name, Ask(request, CHANNEL, body, tag, 2.0, include_self=include_self))
        self.asked.append((name, self.count))

    @rule(name=NAMES, other=NAMES)
    def lose(self, name, other):
        self.net.lose(name, other)

    @rule(seconds=st.sampled_from([0.0005, 0.0015, 0.015, 0.2]))
    def run_on(self, seconds):
        self.net.run(seconds)

    @invariant()
    def nothing_is_handled_twice_or_out_of_order(self):
        assert all(times == 1 for times in self.net.taken.values())
        for bodies in self.net.order.values():
            assert bodies == sorted(bodies)

    def teardown(self):
        self.net.run(35.0)
        for (name, delivery), body in self.sent.items():
            for node_id in self.net.fanouts[name, delivery]:
                (code,) = self.net.codes(name, delivery, node_id)
                if ResultCode(code).definite:
                    assert not self.net.taken[node_id, body]
                if code == ResultCode.OK:
                    assert self.net.taken[node_id, body] == 1
        for name, request in self.asked:
            assert self.net.ended[name, request] == 1
        assert all(times == 1 for times in self.net.finished.values())
        super().teardown()


TestThreeNodes = ThreeNodes.TestCase
TestThreeNodes.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
