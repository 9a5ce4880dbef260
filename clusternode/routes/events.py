"""The registry of events, and everything that waits for them: the agent's one `EventHub`.

Names, aliases and parameters come from `clusternode.core.events`. Specified in
docs/scripting.md; meaning of filters and waits: OpenSIPS event_routing, but a filter on a
parameter that the event does not have does not match.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import json
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Self

import attrs
import trio

from clusternode.bus.interface import REQUEST_TIMEOUT, Bus
from clusternode.core.events import (
    EVENT_TYPES,
    Custom,
    Event,
    ReplyReceived,
    RequestReceived,
)
from clusternode.core.types import Instant, Seconds
from clusternode.errors import Overloaded, RequestTimeout, RouteError

SUBSCRIPTIONS_MAX = 10_000
"""More than any script or operator needs; a script that leaks waiters is told at that point."""
BUFFER_DEFAULT = 1024
"""Events that wait for a reader: several seconds of a busy cluster."""

ALIASES: Mapping[str, str] = {
    **{kind.NAME: kind.NAME for kind in EVENT_TYPES},
    **{kind.ALIAS: kind.NAME for kind in EVENT_TYPES},
    "dmq:peer-up": "E_CLUSTERNODE_PEER_UP",
    "dmq:peer-down": "E_CLUSTERNODE_PEER_DOWN",
    "dmq:peer-disabled": "E_CLUSTERNODE_PEER_DISABLED",
}
"""Every accepted word for an event → its name. Kamailio's event routes are among them."""

_WILDCARD = re.compile(r"[*?\[]")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def name_of(event: Event) -> str:
    return event.name if isinstance(event, Custom) else event.NAME


def to_json(event: Event) -> dict[str, Any]:
    """Return the parameters of an event as JSON values.

    Bytes go as text under their own name where they are valid UTF-8, else as base64 under the
    name with `_base64`.
    """
    if isinstance(event, Custom):
        return dict(event.parameters)
    parameters: dict[str, Any] = {}
    for field in attrs.fields(type(event)):
        value = getattr(event, field.name)
        if not isinstance(value, bytes):
            parameters[field.name] = value
            continue
        try:
            parameters[field.name] = value.decode("utf-8")
        except UnicodeDecodeError:
            parameters[f"{field.name}_base64"] = base64.b64encode(value).decode("ascii")
    return parameters


def to_notification(event: Event) -> dict[str, Any]:
    """Return the JSON-RPC 2.0 notification of an event; without `params` when it has none."""
    notification: dict[str, Any] = {"jsonrpc": "2.0", "method": name_of(event)}
    parameters = to_json(event)
    if parameters:
        notification["params"] = parameters
    return notification


@attrs.frozen
class EventView:
    """One event as its observers see it: name, alias and JSON parameters, made once for all."""

    name: str
    alias: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, event: Event) -> EventView:
        return cls(name_of(event), event.ALIAS, to_json(event))


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
            if not fnmatch.fnmatchcase(_as_text(view.parameters[key]), wanted):
                return False
        return True


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
        with trio.move_on_at(self._deadline), contextlib.closing(_Cancelling(self._subscription)):
            await self._arrived.wait()
        if self._view is None:
            raise RequestTimeout(f"no {self._name} within {self._timeout:g} s")
        return self._view


@attrs.frozen
class _Cancelling:
    """Ends a subscription when closed."""

    subscription: Subscription

    def close(self) -> None:
        self.subscription.cancel()


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
        if _WILDCARD.search(word) or _NAME.fullmatch(word):
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

    def publish(self, bus: Bus | None, event: Event) -> None:
        """Hand an event to everyone who waits for it. Never raises, never blocks."""
        self.raised += 1
        listeners = self._listening(name_of(event), event.ALIAS)
        if not listeners:
            return
        view = EventView.of(event)
        now = None
        for subscription in tuple(listeners):
            if subscription.expires_at != math.inf:
                now = trio.current_time() if now is None else now
                if subscription.expires_at <= now:
                    subscription.cancel()
                    continue
            if subscription.hears(view):
                subscription.callback(bus, view)

    def raise_event(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Make an event of your own; anybody may wait for it by its name.

        Raises:
            RouteError: The name is one of clusternode's own, or no name; or a parameter is not
                a JSON value.
        """
        if name in ALIASES or not _NAME.fullmatch(name):
            raise RouteError(f"event {name!r}: expected a name of [A-Za-z0-9._:-] of your own")
        values = dict(parameters or {})
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise RouteError(f"event {name}: parameters: {error}") from None
        if len(self._names) < SUBSCRIPTIONS_MAX:
            self._names[name] = None
        self.publish(None, Custom(name, values))

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
