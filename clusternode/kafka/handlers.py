"""`@routes.kafka(…)`: from a batch of records to the event route that handles them, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import attrs
import trio

from clusternode.bus.interface import Arrivals, Bus
from clusternode.core.types import NodeId, ResultCode
from clusternode.errors import RouteError
from clusternode.kafka.connections import Connection
from clusternode.kafka.consumer import ConsumerSettings, Handled
from clusternode.kafka.incoming import IncomingRecord
from clusternode.kafka.notifications.listener import (
    NotificationListener,
    listener_of,
    title_of,
)
from clusternode.kafka.reader import Commit
from clusternode.kafka.records import Record
from clusternode.kafka.settings import KafkaConnection
from clusternode.kafka.uri import TOPIC, read_topics
from clusternode.routes.contexts import AgentContext, Services
from clusternode.routes.runner import Batch, Group, Make
from clusternode.routes.table import Handler, HandlerFunction

LANES_MAX = 100_000
"""One lane per partition; how many there are is the broker's business."""
RETRIES_MAX = 1_000_000


class Host(Services, Protocol):
    """The dispatcher, as far as records need it."""

    def record_group(self, handler: Handler, make: Make, lanes_max: int) -> Group: ...
    def submit(self, group: Group, lane: str, batch: Batch, count: int) -> None: ...


def consumer_settings(handler: Handler, connection: KafkaConnection, name: str) -> ConsumerSettings:
    """Check what a route asks for.

    Raises:
        RouteError: An option is wrong; names the route.
    """
    options = handler.records
    assert options is not None, f"{handler.name} is no route for records"
    group = options.group or connection.group_id
    if not group:
        raise RouteError(f"{handler.name}: group= or [kafka.{connection.name}] group_id is needed")
    try:
        topics = read_topics(options.topics)
    except ValueError as error:
        raise RouteError(f"{handler.name}: topics: expected {error}") from None
    is_listener = listener_of(handler) is not None
    if is_listener and connection.vhost:
        topics = tuple(f"{topic}.{connection.vhost}" for topic in topics)
    try:
        commit = Commit(options.commit)
    except ValueError:
        known = ", ".join(each.value for each in Commit)
        raise RouteError(f"{handler.name}: commit={options.commit!r}: one of {known}") from None
    if is_listener and connection.enable_auto_commit and commit is Commit.BEFORE:
        commit = Commit.AUTO
    if commit is Commit.AUTO and not connection.enable_auto_commit:
        raise RouteError(f"{handler.name}: commit='auto' needs enable_auto_commit = true")
    if not 0 <= options.retries <= RETRIES_MAX:
        raise RouteError(f"{handler.name}: retries from 0 to {RETRIES_MAX}")
    dead_letter = options.dead_letter or ""
    if dead_letter and (not TOPIC.fullmatch(dead_letter) or dead_letter in topics):
        raise RouteError(f"{handler.name}: dead_letter: expected another topic than it reads")
    return ConsumerSettings(
        name=name,
        topics=topics,
        group=group,
        commit=commit,
        retries=options.retries,
        dead_letter=dead_letter,
    )


class RouteHandle:
    """Runs one event route for records; what `Consumer` calls."""

    def __init__(
        self, host: Host, buses: Mapping[str, Bus], connection: Connection, handler: Handler
    ) -> None:
        self._host = host
        self._buses = buses
        self._connection = connection
        self._group = host.record_group(handler, self._make, LANES_MAX)

    def _make(self, arrivals: object, item: Any, /) -> IncomingRecord:  # noqa: ANN401  # as `Make`
        del arrivals
        context: IncomingRecord = item
        return context

    async def __call__(self, records: Sequence[Record], goes_on: Callable[[], bool]) -> Handled:
        """Handle records in order, in the route's own lane for their partition."""
        run = _Run(self._host, self._connection, records, goes_on)
        first = records[0]
        bus = next(iter(self._buses.values()))
        arrivals = Arrivals(bus, NodeId(first.topic), [], run.finished)
        batch = Batch(arrivals, run.items())
        self._host.submit(self._group, f"{first.topic}/{first.partition}", batch, len(records))
        await run.ended.wait()
        self._group.size -= len(records) - run.yielded  # what was never begun
        return Handled(run.count, run.error)


@attrs.define(eq=False)
class _Run:
    """One batch in the runner: ends behind the first record that fails."""

    services: Services
    connection: Connection
    records: Sequence[Record]
    goes_on: Callable[[], bool]
    yielded: int = 0
    count: int = 0
    """How many were handled."""
    settled: int = 0
    error: str = ""
    is_over: bool = False
    """Whether the runner has asked for more and was told that there is none."""
    ended: trio.Event = attrs.Factory(trio.Event)

    def items(self) -> Iterator[tuple[int, IncomingRecord]]:
        for ticket, record in enumerate(self.records):
            if self.yielded and not self.goes_on():
                break
            context = IncomingRecord(self.services, self.connection, record)
            self.yielded += 1
            yield ticket, context
            if context.failure is not None:
                self.error = f"{type(context.failure).__name__}: {context.failure}"
                break
            self.count += 1
        self.is_over = True
        self._check()

    def finished(self, results: Sequence[tuple[int, ResultCode]]) -> None:
        self.settled += len(results)
        self._check()

    def _check(self) -> None:
        if self.is_over and self.settled >= self.yielded:
            self.ended.set()


class EndpointCall(AgentContext):
    """One call of a method of an endpoint, as the runner handles it."""

    __slots__ = ("arguments", "failure", "method", "result")

    def __init__(
        self, services: Services, method: Callable[..., Any], arguments: Sequence[object]
    ) -> None:
        super().__init__(services)
        self.method = method
        self.arguments = arguments
        self.result: object = None
        self.failure: BaseException | None = None

    def take_failure(self, error: BaseException) -> None:
        self.failure = error

    async def run(self) -> None:
        """Call the method, and wait for what it gives if that can be waited for."""
        result = self.method(*self.arguments)
        self.result = await result if inspect.isawaitable(result) else result

    def __repr__(self) -> str:
        return f"<notification for {title_of(self.method)}>"


class ListenerHandle:
    """Runs a listener's endpoints like routes: watched, within the time limit, counted."""

    def __init__(self, host: Host, buses: Mapping[str, Bus], handler: Handler) -> None:
        listener = listener_of(handler)
        assert listener is not None, f"{handler.name} is no listener"
        self._listener: NotificationListener = listener
        self._host = host
        self._buses = buses
        self._handler = handler
        self._groups: dict[str, Group] = {}  # title of a method → its queue; few methods

    async def __call__(self, records: Sequence[Record], goes_on: Callable[[], bool]) -> Handled:
        """Handle records in order, each call in the lane of their partition."""
        lane = f"{records[0].topic}/{records[0].partition}"

        async def call(method: Callable[..., Any], arguments: Sequence[object], /) -> object:
            return await self._run(lane, EndpointCall(self._host, method, arguments))

        return await self._listener(records, goes_on, call)

    async def _run(self, lane: str, context: EndpointCall) -> object:
        """Let the runner call an endpoint.

        Raises:
            Exception: What it raised, or `RequestTimeout`.
        """
        ended = trio.Event()
        bus = next(iter(self._buses.values()))
        arrivals = Arrivals(bus, NodeId(lane), [], lambda _: ended.set())
        batch = Batch(arrivals, iter([(0, context)]))
        self._host.submit(self._group_of(context.method), lane, batch, 1)
        await ended.wait()
        if context.failure is not None:
            raise context.failure
        return context.result

    def _group_of(self, method: Callable[..., Any]) -> Group:
        title = title_of(method)
        group = self._groups.get(title)
        if group is None:
            handler = attrs.evolve(  # with the statistics of the route
                self._handler,
                function=cast("HandlerFunction", EndpointCall.run),
                waits=True,
                name=f"{self._handler.name} {title}",
            )
            group = self._groups[title] = self._host.record_group(handler, _as_context, LANES_MAX)
        return group


def _as_context(arrivals: object, item: Any, /) -> EndpointCall:  # noqa: ANN401  # as `Make`
    del arrivals
    context: EndpointCall = item
    return context
