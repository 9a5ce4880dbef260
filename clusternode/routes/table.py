"""Which handlers there are for what, in the order of their registration."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from clusternode.core.types import ResultCode, Seconds, is_name
from clusternode.errors import ClusternodeError, RouteError
from clusternode.routes.subscriptions import SubscriptionRequest

HandlerFunction: TypeAlias = Callable[[Any], Any]

HANDLING = ("inline", "queued")


class Refuse(ClusternodeError):
    """Raised by a handler that ends its message or request with a code of its own choice.

    It is a decision, not a fault: neither logged nor counted as a failure.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason or f"refused with {code}")
        try:
            self.code = ResultCode(code)
        except ValueError:
            known = ", ".join(str(int(each)) for each in ResultCode)
            raise RouteError(f"Refuse({code}): expected one of {known}") from None


RESERVED_PREFIX = "clusternode:"
"""Channels of the agents themselves: not told to others, not for routes."""


def is_reserved(channel: str) -> bool:
    return channel.startswith(RESERVED_PREFIX)


class Kind(enum.Enum):
    """What a handler is for."""

    MESSAGE = "message"
    REQUEST = "request"
    EVENT = "event"
    KAFKA = "kafka"
    START = "start"
    STOP = "stop"
    BACKGROUND = "background"


@attrs.frozen(kw_only=True)
class RecordOptions:
    """What a route reads from Kafka, and how; checked where the connection is known."""

    topics: str | tuple[str, ...]
    """One, several, or a text with commas; `^…` is a regular expression."""
    group: str | None = None
    commit: str = "after"
    retries: int = 5
    dead_letter: str | None = None


@attrs.define(eq=False)
class RouteStats:
    """What one handler has done since it was loaded."""

    calls: int = 0
    failures: int = 0
    running: int = 0
    """How many calls wait for something at this moment."""
    seconds: float = 0.0
    """Time from call to end, waiting included, over all calls."""
    reported_at: float = float("-inf")
    """When a failure was last written to the log, on the real clock."""
    unreported: int = 0
    """Failures since then."""


@attrs.define(eq=False, kw_only=True)
class Handler:
    """One registered function and its options."""

    kind: Kind
    on: str
    """The channel, or the name or wildcard of the events."""
    function: HandlerFunction
    name: str
    """The route's name in logs, events and statistics."""
    waits: bool
    """Whether calling `function` gives a coroutine."""
    handling: str | None = None
    """`inline` or `queued`; None: what the channel says."""
    thread: bool = False
    time_limit: Seconds | None = None
    via: str | None = None
    """Only from this cluster; None: from any."""
    filters: Mapping[str, str] = attrs.field(factory=dict)  # parameter → shell wildcard
    records: RecordOptions | None = None
    """Of routes for Kafka only."""
    stats: RouteStats = attrs.Factory(RouteStats)

    def hears(self, bus_name: str) -> bool:
        return self.via is None or self.via == bus_name


@attrs.frozen
class RouteSnapshot:
    """What one route has done since it was loaded."""

    name: str
    kind: str
    on: str
    calls: int
    failures: int
    running: int
    seconds: float


@attrs.define(eq=False)
class RouteTable:
    """All handlers of one load of the routes."""

    handlers: list[Handler] = attrs.Factory(list)
    events: list[str] = attrs.Factory(list)
    """Events of the user's own, that he declared."""
    subscriptions: list[SubscriptionRequest] = attrs.Factory(list)

    def add(self, handler: Handler) -> None:
        self.handlers.append(handler)

    def of_kind(self, kind: Kind) -> list[Handler]:
        return [handler for handler in self.handlers if handler.kind is kind]

    def heard_on(self, kind: Kind, bus_name: str) -> Mapping[str, tuple[Handler, ...]]:
        """Return channel → its handlers for what comes from one bus, in order."""
        heard: dict[str, tuple[Handler, ...]] = {}
        for handler in self.of_kind(kind):
            if handler.hears(bus_name):
                heard[handler.on] = (*heard.get(handler.on, ()), handler)
        return heard

    def snapshots(self) -> Iterator[RouteSnapshot]:
        for each in self.handlers:
            if is_reserved(each.on):
                continue
            yield RouteSnapshot(
                each.name,
                each.kind.value,
                each.on,
                each.stats.calls,
                each.stats.failures,
                each.stats.running,
                each.stats.seconds,
            )


def is_async(function: HandlerFunction) -> bool:
    """Tell whether calling it gives a coroutine."""
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # the
    # question is not whether it is callable, but whether the call is asynchronous


def make_handler(
    kind: Kind,
    on: str,
    function: HandlerFunction,
    *,
    handling: str | None = None,
    thread: bool = False,
    time_limit: Seconds | None = None,
    via: str | None = None,
    filters: Mapping[str, str] | None = None,
) -> Handler:
    """Check the options of a route and make its handler.

    Raises:
        RouteError: An option does not fit; names the route.
    """
    title = getattr(function, "__qualname__", type(function).__name__)
    name = f"{kind.value}:{on} {title}" if on else f"{kind.value} {title}"
    if not callable(function):
        raise RouteError(f"{name}: expected a function")
    waits = is_async(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RouteError(f"{name}: a handler returns; it does not yield")
    if kind in (Kind.MESSAGE, Kind.REQUEST) and not is_name(on):
        raise RouteError(f"{name}: expected a channel of [A-Za-z0-9._:-]{{1,64}}")
    if kind is Kind.EVENT and not on:
        raise RouteError(f"{name}: expected the name, alias or wildcard of an event")
    if handling is not None and handling not in HANDLING:
        raise RouteError(f"{name}: handling={handling!r}: expected one of {', '.join(HANDLING)}")
    if handling == "inline" and (waits or thread or kind is not Kind.MESSAGE):
        raise RouteError(f"{name}: only plain message handlers can be inline")
    if thread and waits:
        raise RouteError(f"{name}: thread=True is for plain functions, not for async def")
    if time_limit is not None and time_limit <= 0:
        raise RouteError(f"{name}: time_limit={time_limit!r}: expected seconds above 0")
    return Handler(
        kind=kind,
        on=on,
        function=function,
        name=name,
        waits=waits or thread,
        handling=handling,
        thread=thread,
        time_limit=time_limit,
        via=via,
        filters=dict(filters or {}),
    )
