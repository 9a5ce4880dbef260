"""A bus with a table for members and answers, and an agent made of such buses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Self

import attrs
import trio

from clusternode.bridge.memory import Memory
from clusternode.bridge.running import RunningRule
from clusternode.bridge.service import BridgeService, read_bridges
from clusternode.bus.interface import (
    Bus,
    Delivery,
    NodeOutcome,
    Operation,
    Receiver,
    Reply,
    ResultCallback,
    Sight,
)
from clusternode.config.raw import RawTable
from clusternode.core.effects import Outcome
from clusternode.core.snapshots import AddressSnapshot, MemberSnapshot, NodeSnapshot
from clusternode.core.types import Address, Incarnation, NodeId, ResultCode, Tag
from clusternode.errors import BodyTooLarge, ConfigError, NoSuchNode, RouteError
from clusternode.kafka.service import KafkaService, KafkaSettings
from clusternode.routes.events import EventHub

BODY_MAX = 1000
BRIDGE = {"name": "fraud", "from": "channel:fraud@voip", "to": "channel:fraud@billing"}


def member(node_id: str, status: str = "active", *, local: bool = False) -> MemberSnapshot:
    return MemberSnapshot(
        node_id=NodeId(node_id),
        address=f"tcp://{node_id}.example:5062",
        status=status,
        fail_count=0 if status == "active" else 2,
        incarnation=Incarnation(7),
        version=1,
        last_seen_s=0.0 if local else 1.25,
        tags={"role": "proxy"},
        channels=(),
        local=local,
        priority=50,
        link="self" if local else "direct",
        round_trip_s=None if local else 0.0015,
        notification=False,
        remote="" if local else "192.0.2.7:5062",
        outbox_bytes=0,
    )


@attrs.define
class FakeReplies:
    """Gives replies that were made before; `outcomes` are there from the start."""

    tag: Tag
    replies: Sequence[Reply]
    outcomes: Mapping[NodeId, NodeOutcome]
    closed: bool = False

    @property
    def asked(self) -> Sequence[NodeId]:
        return list(self.outcomes)

    async def _each(self) -> AsyncIterator[Reply]:
        for reply in self.replies:
            await trio.lowlevel.checkpoint()
            yield reply

    def __aiter__(self) -> AsyncIterator[Reply]:
        return self._each()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.closed = True

    async def gather(self) -> list[Reply]:
        await trio.lowlevel.checkpoint()
        return list(self.replies)

    async def first(self) -> Reply | None:
        await trio.lowlevel.checkpoint()
        return self.replies[0] if self.replies else None


class FakeBus:
    """n1 is this node; every call is noted, and answered as the test says."""

    def __init__(self, name: str = "voip") -> None:
        self.name = name
        self.node_id = NodeId("n1")
        self.rows = [member("n1", local=True), member("n2"), member("n3", "not_active")]
        self.addresses: tuple[AddressSnapshot, ...] = ()
        self.results: dict[str, ResultCode] = {"n2": ResultCode.OK}
        self.answers: list[Reply] = []
        self.outcomes: dict[str, tuple[Outcome, ResultCode]] = {}
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def snapshot(self) -> NodeSnapshot:
        return NodeSnapshot(
            node_id=self.node_id,
            cluster=self.name,
            incarnation=Incarnation(7),
            digest=255,
            members=tuple(self.rows),
            addresses=self.addresses,
            counters={"pings_opened": 3},
        )

    def members(self) -> Sequence[MemberSnapshot]:
        return self.rows

    def _note(self, call: str, *given: object, **options: object) -> None:
        self.calls.append((call, given, options))

    def _deliver(self, channel: str, body: bytes | str) -> Delivery:
        if " " in channel:
            raise ConfigError("channel", channel, "a name")
        if len(body) > BODY_MAX:
            raise BodyTooLarge(f"body of {len(body)} bytes, at most {BODY_MAX}")
        delivery = Delivery()
        delivery.fix_destinations(len(self.results))
        for node_id, code in self.results.items():
            delivery.settle(NodeId(node_id), code)
        return delivery

    def broadcast(
        self,
        channel: str,
        body: bytes | str,
        *,
        except_: Iterable[str] = (),
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        self._note("broadcast", channel, body, except_=list(except_), content_type=content_type)
        return self._deliver(channel, body)

    def send(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        max_forwards: int = 1,
        on_result: ResultCallback | None = None,
    ) -> Delivery:
        self._note("send", channel, node_id, body, content_type=content_type)
        return self._deliver(channel, body)

    def replicate(
        self,
        channel: str,
        body: bytes | str,
        *,
        source: str = "",
        replicated: bool = False,
        skip_loop_test: bool = False,
        content_type: str | None = None,
        on_result: ResultCallback | None = None,
    ) -> Delivery | None:
        return self._deliver(channel, body)

    def broadcast_request(
        self,
        channel: str,
        body: bytes | str,
        *,
        timeout: float = 5.0,
        tag: str | None = None,
        include_self: bool = False,
        content_type: str | None = None,
    ) -> FakeReplies:
        self._note("broadcast_request", channel, body, timeout=timeout, include_self=include_self)
        outcomes = {
            NodeId(node_id): NodeOutcome(outcome, code, 0)
            for node_id, (outcome, code) in self.outcomes.items()
        }
        return FakeReplies(Tag(tag or "t1"), self.answers, outcomes)

    def request(
        self,
        channel: str,
        node_id: str,
        body: bytes | str,
        *,
        timeout: float = 5.0,
        tag: str | None = None,
        content_type: str | None = None,
    ) -> FakeReplies:
        self._note("request", channel, node_id, body, timeout=timeout)
        return self.broadcast_request(channel, body, timeout=timeout, tag=tag)

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        return self._deliver("reply", body)

    def rank(self, channel: str) -> tuple[int, int] | None:
        return None

    def is_from_node(self, address: str) -> bool:
        return False

    def set_channels(self, channels: Iterable[str]) -> None:
        self._note("set_channels", list(channels))

    def attach(self, receiver: Receiver) -> None:
        self._note("attach", receiver)

    def add(self, address: str) -> None:
        self._note("add", address)

    def remove(self, node_id: str) -> None:
        if node_id == self.node_id:
            raise NoSuchNode(f"{node_id} is this node")
        self._note("remove", node_id)

    def change_status(self, node_id: str, status: str) -> None:
        self._note("change_status", node_id, status)


class FakeForeignBus(FakeBus):
    """A bus of a foreign cluster: it has operations, and knows who sees whom."""

    def operations(self) -> Sequence[Operation]:
        return [Operation("list_tags", "", "Show the tags."), Operation("take", "TAG", "Take one.")]

    def operate(self, name: str, arguments: Sequence[str]) -> object:
        if name == "list_tags":
            return [{"tag": "vip", "nodes": [1, 2], "states": [{"name": "x", "state": "Ok"}]}]
        if name != "take":
            raise ConfigError("command", name, "list_tags or take")
        return {"taken": arguments}

    def survey(self) -> Mapping[NodeId, Mapping[NodeId, Sight]]:
        one, two, three = NodeId("1"), NodeId("2"), NodeId("3")
        return {
            one: {two: Sight("active", "direct", 0.001), three: Sight("not_active", "none")},
            two: {one: Sight("active", "direct"), three: Sight("not_active", "none")},
        }


class FakeControlled:
    """An agent in two clusters, without a network."""

    def __init__(self) -> None:
        self.node_id = NodeId("n1")
        self.version = "1.2.3"
        self.started_at = trio.current_time()
        self.voip = FakeBus("voip")
        self.billing = FakeBus("billing")
        self.foreign = FakeForeignBus("opensips")
        self.events = EventHub()
        self.reload_error = ""
        self.stopped = trio.Event()
        self.kafka = KafkaService(KafkaSettings())

    @property
    def buses(self) -> Mapping[str, Bus]:
        return {"voip": self.voip, "billing": self.billing, "opensips": self.foreign}

    async def reload(self) -> str:
        await trio.lowlevel.checkpoint()
        if self.reload_error:
            raise RouteError(self.reload_error)
        return "3 routes"

    def stop(self) -> None:
        self.stopped.set()

    def bridge_status(self) -> Sequence[Mapping[str, Any]]:
        (rule,) = read_bridges(RawTable((), {"bridge": [BRIDGE]}), tuple(self.buses))
        return [RunningRule(rule, Memory(), BridgeService((), self.kafka)).status()]

    def route_stats(self) -> Sequence[Mapping[str, Any]]:
        return [{"route": "request:locate", "handled": 3, "seconds": 0.00026049700}]


def unreached(address: str) -> AddressSnapshot:
    return AddressSnapshot(
        address=Address.parse(address),
        state="waiting",
        node_id=None,
        error="refused",
        failures=3,
        retry_in_s=2.0,
    )
