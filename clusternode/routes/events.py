"""The registry of events, and everything that waits for them: the agent's one `EventHub`.

Names, aliases and parameters come from `clusternode.core.events`. Specified in
docs/scripting.md; meaning of filters and waits: OpenSIPS event_routing, but a filter on a
parameter that the event does not have does not match.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import json
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import attrs
import trio

from clusternode.bus.interface import REQUEST_TIMEOUT, Bus
from clusternode.core.events import EVENT_TYPES, Custom, Event, ReplyReceived, RequestReceived
from clusternode.core.types import Instant, Seconds
from clusternode.errors import ConfigError, Overloaded, RequestTimeout, RouteError
from clusternode.routes.subscriptions import (
    QUEUE_SIZE_DEFAULT,
    EventSubscriptions,
    Raised,
    ReportCallback,
    SubscriptionRequest,
)
from clusternode.routes.views import (
    ALIASES,
    EventView,
    as_text,
    is_wildcard,
    name_of,
    named,
    to_json,
    to_notification,
)

__all__ = [
    "ALIASES",
    "EventCallback",
    "EventHub",
    "EventStream",
    "EventView",
    "EventWait",
    "HandlerCallable",
    "Subscription",
    "Waiter",
    "name_of",
    "to_json",
    "to_notification",
]

SUBSCRIPTIONS_MAX = 10_000
"""More than any script or operator needs; a script that leaks waiters is told at that point."""
BUFFER_DEFAULT = 1024
"""Events that wait for a reader: several seconds of a busy cluster."""

NESTING_MAX = 100
"""Events raised while an event is handed out, one inside the other (OpenSIPS: MAX_REC_LEV)."""

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")


EventCallback = Callable[[Bus | None, EventView], None]


@attrs.define(eq=False)
class Subscription:
    """One interest in events. `callback` runs in the agent's thread and must not raise."""

    pattern: str
    filters: Mapping[str, str]
    callback: EventCallback
    expires_at: Instant
    hub: EventHub

    def cancel(self) -> None:
        """End it. Twice does nothing."""
        self.hub.discard(self)

    def hears(self, view: EventView) -> bool:
        """Tell whether name and filters match."""
        if self.pattern != view.name and not (
            fnmatch.fnmatchcase(view.name, self.pattern)
            or (view.alias and fnmatch.fnmatchcase(view.alias, self.pattern))
        ):
            return False
        for key, wanted in self.filters.items():
            if key not in view.parameters:
                return False
            if not fnmatch.fnmatchcase(as_text(view.parameters[key]), wanted):
                return False
        return True


class Waiter:
    """The events that came since `expect` began, in order; at most `BUFFER_DEFAULT` wait."""

    def __init__(self, hub: EventHub, name: str, filters: Mapping[str, str] | None) -> None:
        self.dropped = 0
        """How many of the oldest were dropped because nobody read them."""
        self._hub = hub
        self._wanted = (name, dict(filters or {}))
        self._events: deque[EventView] = deque()
        self._arrived = trio.Event()
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        name, filters = self._wanted
        self._subscription = self._hub.on_event(name, self._take, filters)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._subscription is not None:
            self._subscription.cancel()

    def _take(self, bus: Bus | None, view: EventView) -> None:
        if len(self._events) >= BUFFER_DEFAULT:
            self._events.popleft()
            self.dropped += 1
        self._events.append(view)
        self._arrived.set()

    async def get(self, timeout: Seconds = REQUEST_TIMEOUT) -> EventView:
        """Return the next event that matches; `math.inf` waits for ever.

        Raises:
            RequestTimeout: None came in time.
        """
        with trio.move_on_after(timeout):
            while not self._events:
                self._arrived = trio.Event()
                await self._arrived.wait()
        if not self._events:
            raise RequestTimeout(f"no {self._wanted[0]} within {timeout:g} s")
        return self._events.popleft()


class EventWait:
    """One event that is being waited for since this object was made; await it once."""

    def __init__(
        self, hub: EventHub, name: str, filters: Mapping[str, str] | None, timeout: Seconds
    ) -> None:
        self._name = name
        self._timeout = timeout
        self._deadline = trio.current_time() + timeout
        self._view: EventView | None = None
        self._arrived = trio.Event()
        self._subscription = hub.on_event(name, self._take, filters, expire=timeout)

    def _take(self, bus: Bus | None, view: EventView) -> None:
        self._subscription.cancel()
        self._view = view
        self._arrived.set()

    def __await__(self) -> Generator[Any, None, EventView]:
        return self._wait().__await__()

    async def _wait(self) -> EventView:
        with trio.move_on_at(self._deadline), contextlib.ExitStack() as stack:
            stack.callback(self._subscription.cancel)
            await self._arrived.wait()
        if self._view is None:
            raise RequestTimeout(f"no {self._name} within {self._timeout:g} s")
        return self._view


class EventStream:
    """Events as they come, for one reader: `with hub.subscribe("*") as events`.

    At most `capacity` wait; what comes while it is full is dropped and counted in `overflowed`.
    """

    def __init__(
        self, hub: EventHub, name: str, filters: Mapping[str, str] | None, capacity: int
    ) -> None:
        self.overflowed = 0
        self._send, self._receive = trio.open_memory_channel[EventView](capacity)
        self._subscription = hub.on_event(name, self._take, filters)

    def _take(self, bus: Bus | None, view: EventView) -> None:
        try:
            self._send.send_nowait(view)
        except trio.WouldBlock:
            self.overflowed += 1
        except trio.BrokenResourceError:  # the reader has closed its end
            self._subscription.cancel()

    def close(self) -> None:
        self._subscription.cancel()
        self._send.close()
        self._receive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[EventView]:
        return self._receive.__aiter__()

    async def get(self) -> EventView:
        """Return the next event."""
        return await self._receive.receive()


class EventHub:
    """Who waits for which events. One per agent; it owns no task and needs none."""

    def __init__(self) -> None:
        self.wants_requests = False
        """Whether anybody listens to the arrival of requests; kept for the hot path."""
        self.wants_replies = False
        self.raised = 0
        self._nesting = 0
        self._back_ends: EventSubscriptions | None = None
        self._subscriptions: dict[Subscription, None] = {}
        self._listeners: dict[tuple[str, str], list[Subscription]] = {}  # (name, alias) → who
        self._names: dict[str, None] = dict.fromkeys(kind.NAME for kind in EVENT_TYPES)
        self._notify: Callable[[str, HandlerCallable], EventCallback] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every event that is known: those of clusternode, then the user's own."""
        return tuple(self._names)

    def resolve(self, word: str) -> str:
        """Return the name that a name, alias or wildcard stands for.

        Raises:
            RouteError: It has characters that no event has.
        """
        if word in ALIASES:
            return ALIASES[word]
        if is_wildcard(word) or _NAME.fullmatch(word):
            return word
        raise RouteError(f"event {word!r}: expected a name of [A-Za-z0-9._:-] or a wildcard")

    def on_event(
        self,
        name: str,
        callback: EventCallback,
        filters: Mapping[str, str] | None = None,
        *,
        expire: Seconds = math.inf,
    ) -> Subscription:
        """Call `callback` for each event that matches; it must neither block nor raise.

        Raises:
            Overloaded: There are too many subscriptions.
            RouteError: `name` cannot be an event.
        """
        pattern = self.resolve(name)
        expires_at = math.inf if expire == math.inf else trio.current_time() + expire
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            self._discard_expired()
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise Overloaded(f"{SUBSCRIPTIONS_MAX} subscriptions to events, at most")
        subscription = Subscription(pattern, dict(filters or {}), callback, expires_at, self)
        self._subscriptions[subscription] = None
        self._changed()
        return subscription

    def discard(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            del self._subscriptions[subscription]
            self._changed()

    def listens(self, name: str, alias: str = "") -> bool:
        """Tell whether anybody may want an event of this name; filters are not looked at."""
        return bool(self._listening(name, alias))

    def publish(self, bus: Bus | None, event: Event, raised: Raised | None = None) -> None:
        """Hand an event to everyone who waits for it. Never raises, never blocks."""
        self.raised += 1
        listeners = self._listening(name_of(event), event.ALIAS)
        if not listeners or self._nesting >= NESTING_MAX:
            return
        view = EventView.of(event, raised)
        now = None
        self._nesting += 1
        try:
            for subscription in tuple(listeners):
                if subscription.expires_at != math.inf:
                    now = trio.current_time() if now is None else now
                    if subscription.expires_at <= now:
                        subscription.cancel()
                        continue
                if subscription.hears(view):
                    subscription.callback(bus, view)
        finally:
            self._nesting -= 1

    def raise_event(
        self,
        name: str,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        report: ReportCallback | None = None,
    ) -> Raised:
        """Make an event of your own; anybody may wait for it by its name.

        Args:
            name: Its name, by custom `E_…`.
            parameters: Name → JSON value, or JSON values without names.
            report: Called with the status of each subscriber, when it is known; a plain function.

        Returns:
            What became of it at its subscribers: await it, or forget it.

        Raises:
            RouteError: The name is one of clusternode's own, or no name; or a parameter is not
                a JSON value; or too many events raise each other.
        """
        if name in ALIASES or not _NAME.fullmatch(name):
            raise RouteError(f"event {name!r}: expected a name of [A-Za-z0-9._:-] of your own")
        is_positional = parameters is not None and not isinstance(parameters, Mapping)
        values = named(name, parameters or {})
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RouteError(f"event {name}: parameters: {error}") from None
        if self._nesting >= NESTING_MAX:
            raise RouteError(f"event {name}: {NESTING_MAX} events have raised each other, at most")
        self.declare([name])
        raised = Raised(report)
        self.publish(None, Custom(name, values, is_positional), raised)
        return raised

    def declare(self, names: Iterable[str]) -> None:
        """Make names of your own known, so that they can be subscribed to.

        Raises:
            RouteError: One of them cannot be a name of an event.
        """
        for name in names:
            if not _NAME.fullmatch(name):
                raise RouteError(f"event {name!r}: expected a name of [A-Za-z0-9._:-]")
            if name not in ALIASES and len(self._names) < SUBSCRIPTIONS_MAX:
                self._names[name] = None

    def resolve_known(self, word: str) -> str:
        """Return the name that a name, alias or wildcard of a known event stands for.

        Raises:
            ConfigError: There is no such event; names those that are close.
        """
        try:
            name = self.resolve(word)
        except RouteError:
            name = ""
        if name in self._names or is_wildcard(name):
            return name
        close = difflib.get_close_matches(word, [*self._names, *ALIASES], 3)
        hint = " or ".join(close) if close else "one of `clusternode events list`"
        expected = f"{hint}, a wildcard, or a name of your own that [routes] events declares"
        raise ConfigError("event", word, expected)

    @property
    def subscriptions(self) -> EventSubscriptions:
        """The back ends that get events.

        Raises:
            RouteError: No agent is running.
        """
        if self._back_ends is None:
            raise RouteError("back ends can be subscribed only within a running agent")
        return self._back_ends

    @property
    def has_subscriptions(self) -> bool:
        return self._back_ends is not None

    def set_subscriptions(self, back_ends: EventSubscriptions) -> None:
        """Say who delivers to back ends. Called by the agent, once."""
        self._back_ends = back_ends

    def subscribe_event(
        self,
        event: str,
        uri: str,
        expire: Seconds | None = None,
        *,
        queue_size: int = QUEUE_SIZE_DEFAULT,
    ) -> None:
        """Deliver events to a back end; the same again refreshes the expiry.

        Args:
            event: Name, alias or wildcard.
            uri: For instance `tcp:127.0.0.1:8080` or `virtual:FAILOVER … …`.
            expire: Seconds; None or 0: never.
            queue_size: Events that may be on their way; beyond it they are refused and counted.

        Raises:
            ConfigError: Event, scheme, address or option is wrong; says what was expected.
        """
        request = SubscriptionRequest(event, uri, expire or math.inf, queue_size)
        self.subscriptions.subscribe(request, source="script")

    def unsubscribe_event(self, event: str, uri: str) -> bool:
        """End a subscription of a back end. False: there was none."""
        return self.subscriptions.unsubscribe(event, uri)

    def expect(self, name: str, filters: Mapping[str, str] | None = None) -> Waiter:
        """Wait for events from the begin of an `async with` on: send inside its body.

        `async with events.expect("reply:received", {"tag": tag}) as waiter: …;
        await waiter.get(timeout)`
        """
        self.resolve(name)
        return Waiter(self, name, filters)

    def wait_for_event(
        self,
        name: str,
        filters: Mapping[str, str] | None = None,
        timeout: Seconds = REQUEST_TIMEOUT,
    ) -> EventWait:
        """Wait for one event from this call on; await the result whenever it suits.

        Awaiting raises `RequestTimeout` when none came within `timeout` of this call.
        """
        return EventWait(self, name, filters, timeout)

    def notify_on_event(
        self,
        name: str,
        filters: Mapping[str, str] | None,
        callback: HandlerCallable,
        expire: Seconds = math.inf,
    ) -> Subscription:
        """Run `callback(event)` as an event route for each match, for `expire` seconds.

        It may be `async def`; it is isolated, limited and counted like every route.
        """
        if self._notify is None:
            raise RouteError("notify_on_event: only within a running agent")
        title = getattr(callback, "__qualname__", type(callback).__name__)
        run = self._notify(f"event:{name} {title}", callback)
        return self.on_event(name, run, filters, expire=expire)

    def subscribe(
        self,
        name: str = "*",
        filters: Mapping[str, str] | None = None,
        *,
        capacity: int = BUFFER_DEFAULT,
    ) -> EventStream:
        """Give a bounded stream of events, from this call on."""
        return EventStream(self, name, filters, capacity)

    def set_notifier(self, notify: Callable[[str, HandlerCallable], EventCallback]) -> None:
        """Say how `notify_on_event` runs its callbacks. Called by the dispatcher, once."""
        self._notify = notify

    def _listening(self, name: str, alias: str) -> list[Subscription]:
        listeners = self._listeners.get((name, alias))
        if listeners is None:
            listeners = [
                each
                for each in self._subscriptions
                if each.pattern == name
                or fnmatch.fnmatchcase(name, each.pattern)
                or (alias and fnmatch.fnmatchcase(alias, each.pattern))
            ]
            if len(self._listeners) < SUBSCRIPTIONS_MAX:
                self._listeners[name, alias] = listeners
        return listeners

    def _changed(self) -> None:
        self._listeners.clear()
        self.wants_requests = self.listens(RequestReceived.NAME, RequestReceived.ALIAS)
        self.wants_replies = self.listens(ReplyReceived.NAME, ReplyReceived.ALIAS)

    def _discard_expired(self) -> None:
        now = trio.current_time()
        for each in [each for each in self._subscriptions if each.expires_at <= now]:
            del self._subscriptions[each]
        self._changed()


HandlerCallable = Callable[[Any], Any]
