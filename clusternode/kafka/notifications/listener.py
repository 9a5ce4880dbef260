"""The listener: endpoints by method, filters, batches, pools, the offset committed before."""

from __future__ import annotations

import inspect
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import RemoteProtocolError, RouteError
from clusternode.kafka.consumer import Handled
from clusternode.kafka.notifications.envelope import (
    PRIORITIES,
    Notification,
    decode_untrusted,
    topics_of,
)
from clusternode.kafka.notifications.transport_url import CONNECTION
from clusternode.kafka.records import Record
from clusternode.routes.api import table_being_loaded
from clusternode.routes.runner import take_apart
from clusternode.routes.table import (
    Handler,
    HandlerFunction,
    Kind,
    RecordOptions,
    make_handler,
)

logger = logging.getLogger(__name__)

HANDLED, REQUEUE = "handled", "requeue"
"""What an endpoint returns; None is HANDLED."""
TIME_LIMIT: Seconds = 30.0
REPORTS_MAX = 10
"""Failures of one listener that are written with their traceback; all are counted."""

Rule = str | Mapping[str, str]


@attrs.frozen
class NotificationFilter:
    """Which notifications an endpoint wants: regular expressions, by `re.match`.

    A key that is not there, or is no string, does not match.
    """

    context: Mapping[str, str] = attrs.field(factory=dict)
    publisher_id: str | None = None
    event_type: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    payload: Mapping[str, str] = attrs.field(factory=dict)

    def matches(self, given: Notification) -> bool:
        payload = given.payload if isinstance(given.payload, Mapping) else {}
        return (
            _matches(self.publisher_id, given.publisher_id)
            and _matches(self.event_type, given.event_type)
            and _all_match(self.context, given.context)
            and _all_match(self.metadata, given.metadata)
            and _all_match(self.payload, payload)
        )


def _matches(pattern: str | None, value: object) -> bool:
    if pattern is None:
        return True
    return isinstance(value, str) and re.match(pattern, value) is not None


def _all_match(patterns: Mapping[str, str], values: Mapping[str, Any]) -> bool:
    return all(_matches(pattern, values.get(key)) for key, pattern in patterns.items())


class CallEndpoint(Protocol):
    """Calls a method of an endpoint and returns what it did; raises what it raised."""

    def __call__(
        self, method: Callable[..., Any], arguments: Sequence[object], /
    ) -> Awaitable[object]: ...


async def call_here(method: Callable[..., Any], arguments: Sequence[object], /) -> object:
    """Call a method in this task; what a listener that no agent runs does."""
    with trio.fail_after(TIME_LIMIT):
        result = method(*arguments)
        return await result if inspect.isawaitable(result) else result


@attrs.define(eq=False)
class NotificationListener:
    """Takes records of notification topics to the methods of endpoints.

    An endpoint is any object with methods `audit` … `sample(ctxt, publisher_id, event_type,
    payload, metadata)`, plain or async, and perhaps a `filter_rule`. With `batch_size` a method
    gets one list of dicts instead.
    """

    endpoints: Sequence[Any]
    batch_size: int = 0
    """0: one call for each notification."""
    allow_requeue: bool = False
    handled: int = 0
    failed: int = 0
    unreadable: int = 0

    @property
    def priorities(self) -> tuple[str, ...]:
        """The priorities that endpoints have methods for."""
        return tuple(
            priority
            for priority in PRIORITIES
            if any(callable(getattr(each, priority, None)) for each in self.endpoints)
        )

    async def __call__(
        self,
        records: Sequence[Record],
        goes_on: Callable[[], bool],
        call: CallEndpoint = call_here,
    ) -> Handled:
        """Handle records in order. In `before` mode nothing is handed back, as on oslo."""
        if self.batch_size:
            return await self._handle_batches(records, goes_on, call)
        for count, record in enumerate(records):
            if count and not goes_on():
                return Handled(count)
            notification = self._read(record)
            if notification is None:
                continue
            again = await self._dispatch(notification, call)
            if again and self.allow_requeue:
                return Handled(count, again)
        return Handled(len(records))

    async def _handle_batches(
        self, records: Sequence[Record], goes_on: Callable[[], bool], call: CallEndpoint
    ) -> Handled:
        count = 0
        while count < len(records) and (not count or goes_on()):
            batch = records[count : count + self.batch_size]
            read = [each for each in map(self._read, batch) if each is not None]
            read.sort(key=lambda each: each.priority)
            for priority, group in itertools.groupby(read, key=lambda each: each.priority):
                again = await self._dispatch_batch(priority, list(group), call)
                if again and self.allow_requeue:
                    return Handled(count, again)
            count += len(batch)
        return Handled(count)

    def _read(self, record: Record) -> Notification | None:
        try:
            found = decode_untrusted(record.value)
        except RemoteProtocolError as error:
            self._unreadable(record, str(error))
            return None
        if found.priority not in PRIORITIES:
            self._unreadable(record, f"unknown priority {found.priority[:32]!r}")
            return None
        return found

    def _unreadable(self, record: Record, why: str) -> None:
        self.unreadable += 1
        if self.unreadable <= REPORTS_MAX:
            logger.warning(
                "%s/%d offset %d: %s", record.topic, record.partition, record.offset, why
            )

    async def _dispatch(self, given: Notification, call: CallEndpoint) -> str:
        """Call every endpoint that wants it, until one asks for a requeue; return why."""
        for endpoint, method in self._methods(given.priority):
            if not _wants(endpoint, given):
                continue
            arguments = (
                given.context,
                given.publisher_id,
                given.event_type,
                given.payload,
                given.metadata,
            )
            why = await self._call(call, method, arguments)
            if why:
                return why
        self.handled += 1
        return ""

    async def _dispatch_batch(
        self, priority: str, given: Sequence[Notification], call: CallEndpoint
    ) -> str:
        for endpoint, method in self._methods(priority):
            wanted = [each.as_batch_entry() for each in given if _wants(endpoint, each)]
            if wanted and (why := await self._call(call, method, (wanted,))):
                return why
        self.handled += len(given)
        return ""

    def _methods(self, priority: str) -> list[tuple[Any, Callable[..., Any]]]:
        found = ((endpoint, getattr(endpoint, priority, None)) for endpoint in self.endpoints)
        return [(endpoint, method) for endpoint, method in found if callable(method)]

    async def _call(
        self, call: CallEndpoint, method: Callable[..., Any], arguments: Sequence[object]
    ) -> str:
        """Call user code within its time limit; return why it must be tried again."""
        try:
            result = await call(method, arguments)
        except BaseException as error:  # user code
            raised, rest = take_apart(error)
            if raised is None or rest is not None:
                raise
            self.failed += 1
            why = f"{type(raised).__name__}: {raised}"
            if call is call_here:  # else the runner has written it
                shown = raised if self.failed <= REPORTS_MAX else None
                logger.warning("endpoint %s: %s", title_of(method), why, exc_info=shown)
            return why
        if result == REQUEUE:
            return "requeued"
        return ""


def title_of(method: Callable[..., Any]) -> str:
    """Return the name of a method for logs."""
    return getattr(method, "__qualname__", None) or type(method).__name__


def _wants(endpoint: object, given: Notification) -> bool:
    rule = getattr(endpoint, "filter_rule", None)
    return rule is None or bool(rule.matches(given))


def listen(
    topics: Sequence[str],
    endpoints: Sequence[Any],
    *,
    pool: str | None = None,
    batch_size: int = 0,
    allow_requeue: bool = False,
    connection: str = CONNECTION,
) -> NotificationListener:
    """Listen from a routes file, while it is being loaded; returns the listener.

    Args:
        topics: Targets, without priority and virtual host: `["notifications"]`.
        endpoints: Objects with methods by priority; only topics of those are read.
        pool: The consumer group; every pool gets everything. None: the connection's.
        batch_size: Call methods with lists of at most so many; 0: with one at a time.
        allow_requeue: Commit afterwards, and try again what an endpoint gives back or raises.
        connection: The NAME of a `[kafka.NAME]`, in place of `[notifications]`.

    Raises:
        RouteError: No endpoint has a method for a priority.
    """
    listener = NotificationListener(tuple(endpoints), batch_size, allow_requeue)
    if not listener.priorities:
        raise RouteError(f"listen: endpoints have none of the methods {', '.join(PRIORITIES)}")
    table = table_being_loaded.get()
    if table is not None:
        # Called with records by its consumer, not with a context by the runner.
        handler = make_handler(Kind.KAFKA, connection, cast("HandlerFunction", listener))
        handler.name = f"kafka:{connection} notifications {','.join(topics)}"
        handler.records = RecordOptions(
            topics=topics_of(topics, listener.priorities),
            group=pool,
            commit="after" if allow_requeue else "before",
        )
        table.add(handler)
    return listener


def listener_of(handler: Handler) -> NotificationListener | None:
    """Return the listener that a route stands for; None: it is a route for records."""
    function: object = handler.function
    return function if isinstance(function, NotificationListener) else None
