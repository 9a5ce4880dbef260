"""A bus without a cluster, and a dispatcher on it, for the tests of event routes."""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

import pytest
import trio

from clusternode.bus.interface import Arrivals, Delivery, Receiver
from clusternode.config import ChannelSection, ExecRoute, RoutesSection
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import ChannelName, Incarnation, NodeId, ResultCode, Tag
from clusternode.core.wire import messages as wire
from clusternode.routes.dispatcher import Dispatcher
from clusternode.routes.loader import load_table
from clusternode.routes.table import RouteTable


class FakeBus:
    """Implements `Bus` alone: remembers what is sent, and plays the other nodes by hand."""

    def __init__(self, name: str = "voip", node_id: str = "n1") -> None:
        self.name = name
        self.node_id = NodeId(node_id)
        self.receiver: Receiver | None = None
        self.channels: list[str] = []
        self.sent: list[tuple[str, str, bytes]] = []  # (destination or *, channel, body)
        self.replied: list[tuple[str, str, bytes, int]] = []  # (node, tag, body, code)
        self.replicated: list[tuple[str, bool, bool]] = []  # (source, replicated, skip)
        self.results: dict[int, ResultCode] = {}
        self.batches: list[list[int]] = []
        self.reply_result: ResultCode | None = None
        self.tags: dict[str, str] = {"role": "registrar"}
        self._tickets = itertools.count(1)
        self._changed = trio.Event()

    def attach(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def set_channels(self, channels: Iterable[str]) -> None:
        self.channels = list(channels)

    def snapshot(self) -> NodeSnapshot:
        me = MemberSnapshot(
            node_id=self.node_id,
            address="tcp://127.0.0.1:5062",
            status="active",
            fail_count=0,
            incarnation=Incarnation(1),
            version=1,
            last_seen_s=0.0,
            tags=self.tags,
            channels=(),
            local=True,
            priority=50,
            link="self",
            round_trip_s=None,
            notification=False,
            remote="",
            outbox_bytes=0,
        )
        return NodeSnapshot(self.node_id, self.name, Incarnation(1), 0, (me,), (), {})

    def broadcast(self, channel: str, body: bytes | str, **options: object) -> Delivery:
        self.sent.append(("*", channel, body.encode() if isinstance(body, str) else body))
        return self._delivered("n2")

    def reply(
        self,
        node_id: str,
        tag: str,
        body: bytes | str,
        *,
        content_type: str | None = None,
        code: int = 200,
    ) -> Delivery:
        self.replied.append((node_id, tag, body.encode() if isinstance(body, str) else body, code))
        return self._delivered(node_id)

    def replicate(
        self,
        channel: str,
        body: bytes | str,
        *,
        source: str = "",
        replicated: bool = False,
        skip_loop_test: bool = False,
        content_type: str | None = None,
        on_result: object = None,
    ) -> Delivery | None:
        self.replicated.append((source, replicated, skip_loop_test))
        return None if replicated else self._delivered("n2")

    def _delivered(self, node_id: str) -> Delivery:
        delivery = Delivery()
        delivery.fix_destinations(1)
        delivery.settle(NodeId(node_id), self.reply_result or ResultCode.OK)
        return delivery

    # What the others do

    def message(self, channel: str, *bodies: bytes | str, origin: str = "n2") -> list[int]:
        """Let one read bring messages; return their tickets."""
        items: list[tuple[int, wire.Answerable]] = []
        for body in bodies:
            raw = body.encode() if isinstance(body, str) else body
            number = next(self._tickets)
            items.append((number, wire.Message(ChannelName(channel), "text/plain", raw, number)))
        self.bring(items, origin)
        return [ticket for ticket, _ in items]

    def request(
        self, channel: str, *bodies: str, origin: str = "n2", timeout: float = 5.0
    ) -> list[int]:
        items: list[tuple[int, wire.Answerable]] = []
        for body in bodies:
            number = next(self._tickets)
            tag = Tag(f"tag-{number}")
            request = wire.Request(ChannelName(channel), "text/plain", body.encode(), tag, timeout)
            items.append((number, request))
        self.bring(items, origin)
        return [ticket for ticket, _ in items]

    def bring(self, items: list[tuple[int, wire.Answerable]], origin: str = "n2") -> None:
        assert self.receiver is not None
        self.receiver.arrived(Arrivals(self, NodeId(origin), items, self._finish))  # type: ignore[arg-type]  # what the routes use of a bus

    def _finish(self, results: Iterable[tuple[int, ResultCode]]) -> None:
        batch = list(results)
        for ticket, code in batch:
            assert ticket not in self.results, "finished twice"
            self.results[ticket] = code
        self.batches.append([ticket for ticket, _ in batch])
        self._changed.set()
        self._changed = trio.Event()

    async def finished(self, tickets: Iterable[int]) -> list[ResultCode]:
        """Wait for the results of these tickets."""
        wanted = list(tickets)
        while any(ticket not in self.results for ticket in wanted):
            await self._changed.wait()
        return [self.results[ticket] for ticket in wanted]


RunDispatcher = Callable[..., contextlib.AbstractAsyncContextManager[Dispatcher]]


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def run(bus: FakeBus) -> RunDispatcher:
    """Give `async with run(table, channels=…, **settings) as dispatcher`."""

    @contextlib.asynccontextmanager
    async def running(
        table: RouteTable,
        *,
        channels: Mapping[str, ChannelSection] | None = None,
        load: Callable[[], RouteTable] | None = None,
        buses: Iterable[FakeBus] = (),
        watchdog: float = 0.0,
        **settings: float,
    ) -> AsyncIterator[Dispatcher]:
        section = RoutesSection(watchdog=watchdog, **settings)  # type: ignore[arg-type]  # by name
        sections = {ChannelName(name): each for name, each in (channels or {}).items()}
        dispatcher = Dispatcher(section, sections, table, load)
        for each in (bus, *buses):
            dispatcher.attach(each)  # type: ignore[arg-type]  # what the routes use of a bus
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatcher.run)
            yield dispatcher
            nursery.cancel_scope.cancel()

    return running


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., RouteTable]:
    """Load a routes file with this text, after `from clusternode import routes`."""

    def load(
        text: str, *, name: str = "routes.py", exec_routes: Iterable[ExecRoute] = ()
    ) -> RouteTable:
        file = tmp_path / name
        header = "import trio\nfrom clusternode import routes\nseen = []\n"
        file.write_text(header + textwrap.dedent(text))
        return load_table(file, tuple(exec_routes))

    return load
