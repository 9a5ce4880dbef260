"""The decorators of event routes, and `cluster(name)`.

While a routes file is being loaded, a decorator registers its function in the table of that load.
At any other time it only returns the function, so a routes file can be imported by its tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TypeVar

from clusternode.bus.interface import Bus
from clusternode.core.types import Seconds
from clusternode.errors import RouteError
from clusternode.routes.subscriptions import QUEUE_SIZE_DEFAULT, SubscriptionRequest
from clusternode.routes.table import (
    HandlerFunction,
    Kind,
    RecordOptions,
    RouteTable,
    make_handler,
)

Function = TypeVar("Function", bound=HandlerFunction)

table_being_loaded: ContextVar[RouteTable | None] = ContextVar("table_being_loaded", default=None)
buses_of_agent: ContextVar[Mapping[str, Bus] | None] = ContextVar("buses_of_agent", default=None)

JOINED = "E_CLUSTERNODE_JOINED"


def message(
    channel: str,
    *,
    handling: str | None = None,
    thread: bool = False,
    time_limit: Seconds | None = None,
    via: str | None = None,
) -> Callable[[Function], Function]:
    """Handle the messages of a channel; the function gets an `IncomingMessage`.

    Args:
        channel: Its exact name.
        handling: `queued` (a worker runs it; the default) or `inline` (at once, where the
            message was read; plain functions only). None: what `[channel.NAME]` says.
        thread: Run the plain function in the pool of threads; for what blocks.
        time_limit: Seconds after which it is stopped; None: `[routes] time_limit`.
        via: The one cluster whose messages it handles; None: all.
    """

    def decorate(function: Function) -> Function:
        _register(
            Kind.MESSAGE,
            channel,
            function,
            handling=handling,
            thread=thread,
            time_limit=time_limit,
            via=via,
        )
        return function

    return decorate


def request(
    channel: str,
    *,
    thread: bool = False,
    time_limit: Seconds | None = None,
    via: str | None = None,
) -> Callable[[Function], Function]:
    """Answer the requests of a channel; the function gets an `IncomingRequest`.

    What it returns is one reply (bytes, str, or a dict or list as JSON); None is nothing to say.
    The options are those of `message`.
    """

    def decorate(function: Function) -> Function:
        _register(Kind.REQUEST, channel, function, thread=thread, time_limit=time_limit, via=via)
        return function

    return decorate


def event(
    name: str,
    filters: Mapping[str, str] | None = None,
    *,
    thread: bool = False,
    time_limit: Seconds | None = None,
    via: str | None = None,
) -> Callable[[Function], Function]:
    """Handle events; the function gets an `IncomingEvent`.

    Args:
        name: Name or alias of an event, or a shell wildcard over them (`peer:*`).
        filters: Parameter → shell wildcard; all must match.
        thread: As in `message`.
        time_limit: As in `message`.
        via: Only events of this cluster; None: of all, and those of `raise_event`.
    """

    def decorate(function: Function) -> Function:
        _register(
            Kind.EVENT,
            name,
            function,
            thread=thread,
            time_limit=time_limit,
            via=via,
            filters=filters,
        )
        return function

    return decorate


def kafka(
    connection: str,
    topics: str | Sequence[str],
    *,
    group: str | None = None,
    commit: str = "after",
    retries: int = 5,
    dead_letter: str | None = None,
    thread: bool = False,
    time_limit: Seconds | None = None,
) -> Callable[[Function], Function]:
    """Handle the records of topics; the function gets an `IncomingRecord`.

    Records of one partition are handled one after the other, partitions at the same time.

    Args:
        connection: The NAME of a `[kafka.NAME]`.
        topics: One topic, several, or a text with commas; `^…` is a regular expression.
        group: The consumer group; None: the `group_id` of the connection.
        commit: `after` (at least once), `before` (at most once) or `auto` (on an interval).
        retries: How often a record whose handler fails is handled again, with growing pauses.
        dead_letter: The topic for records that failed every time; None: the partition stops.
        thread: As in `message`.
        time_limit: As in `message`.
    """

    def decorate(function: Function) -> Function:
        handler = make_handler(
            Kind.KAFKA, connection, function, thread=thread, time_limit=time_limit
        )
        handler.records = RecordOptions(
            topics=topics if isinstance(topics, str) else tuple(topics),
            group=group,
            commit=commit,
            retries=retries,
            dead_letter=dead_letter,
        )
        table = table_being_loaded.get()
        if table is not None:
            table.add(handler)
        return function

    return decorate


def on_joined(function: Function) -> Function:
    """Run it with the event when the first other member became active since we were alone."""
    _register(Kind.EVENT, JOINED, function)
    return function


def on_start(function: Function) -> Function:
    """Run it with the `AgentContext` before the agent joins its clusters."""
    _register(Kind.START, "", function)
    return function


def on_stop(function: Function) -> Function:
    """Run it with the `AgentContext` before the agent leaves its clusters."""
    _register(Kind.STOP, "", function)
    return function


def declare_event(*names: str) -> None:
    """Make events of your own known, so that they can be subscribed to before they are raised."""
    table = table_being_loaded.get()
    if table is not None:
        table.events.extend(names)


def subscribe_event(
    event: str,
    uri: str,
    expire: Seconds | None = None,
    *,
    queue_size: int = QUEUE_SIZE_DEFAULT,
) -> None:
    """Deliver events to a back end, while this routes file is loaded (docs/events.md).

    Args:
        event: Name or alias of an event, or a shell wildcard over them.
        uri: The back end, for instance `flatstore:/var/log/events`.
        expire: Seconds after which it ends; None or 0: never.
        queue_size: Events that may be on their way; beyond it they are refused and counted.

    Raises:
        RouteError: A handler calls it; there, `context.subscribe_event` is meant.
    """
    table = table_being_loaded.get()
    if table is not None:
        request = SubscriptionRequest(event, uri, expire or math.inf, queue_size)
        table.subscriptions.append(request)
    elif buses_of_agent.get() is not None:
        raise RouteError("subscribe_event: in a handler, call it on the handler's argument")


def cluster(name: str) -> Bus:
    """Return the bus of one of this agent's clusters. Only from inside a handler.

    Raises:
        RouteError: There is no such cluster, or no handler is running.
    """
    return find_bus(buses_of_agent.get(), name)


def find_bus(buses: Mapping[str, Bus] | None, name: str) -> Bus:
    """Look a bus up by its name.

    Raises:
        RouteError: There is none; names those that there are.
    """
    if buses is None:
        raise RouteError(f"cluster({name!r}): only a handler that the agent runs can call it")
    bus = buses.get(name)
    if bus is None:
        known = ", ".join(buses) or "none"
        raise RouteError(f"cluster({name!r}): this agent is in: {known}")
    return bus


def _register(
    kind: Kind,
    on: str,
    function: HandlerFunction,
    *,
    handling: str | None = None,
    thread: bool = False,
    time_limit: Seconds | None = None,
    via: str | None = None,
    filters: Mapping[str, str] | None = None,
) -> None:
    handler = make_handler(
        kind,
        on,
        function,
        handling=handling,
        thread=thread,
        time_limit=time_limit,
        via=via,
        filters=filters,
    )
    table = table_being_loaded.get()
    if table is not None:
        table.add(handler)
