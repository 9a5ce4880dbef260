"""From a table of handlers to who handles what comes from one bus, and within which bounds."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import attrs
import trio

from clusternode.config import ChannelSection, RoutesSection
from clusternode.core.types import ChannelName, ResultCode
from clusternode.core.wire.limits import CHANNELS_MAX
from clusternode.errors import RouteError
from clusternode.routes.contexts import (
    AgentContext,
    BackgroundFunction,
    IncomingMessage,
    IncomingRequest,
    Services,
)
from clusternode.routes.events import EventHub
from clusternode.routes.runner import Budget, Group, Make
from clusternode.routes.table import (
    Handler,
    HandlerFunction,
    Kind,
    Refuse,
    RouteTable,
    is_reserved,
)

EVENTS_MAX = 10_000
"""Events that may wait for one event route; as many as a channel's default `queue_size`."""
BACKGROUND_MAX = 1000
"""Calls of `start_soon` at a time: far above any script's need, far below what hurts."""


@attrs.define(eq=False)
class Plan:
    """Who handles what comes from one bus."""

    messages: dict[str, Group] = attrs.Factory(dict)  # channel → its handlers and queue
    requests: dict[str, Group] = attrs.Factory(dict)

    @property
    def channels(self) -> list[str]:
        """Return what others are told that we listen to."""
        heard = {*self.messages, *self.requests}
        return sorted(channel for channel in heard if not is_reserved(channel))


class BackgroundCall(AgentContext):
    """A call of `start_soon`, as the argument of the one handler that makes such calls."""

    __slots__ = ("_args", "_function")

    def __init__(
        self, services: Services, function: BackgroundFunction, args: tuple[object, ...]
    ) -> None:
        super().__init__(services)
        self._function = function
        self._args = args

    @property
    def title(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    async def call(self) -> None:
        await self._function(*self._args)


async def _call_in_background(call: BackgroundCall) -> None:
    await call.call()


class Planner:
    """Makes groups for handlers, with the bounds that the settings say."""

    def __init__(
        self,
        services: Services,
        settings: RoutesSection,
        channels: Mapping[ChannelName, ChannelSection],
    ) -> None:
        self._services = services
        self._channels = channels
        self._requests_max = settings.requests_max
        self._requests = Budget(settings.requests_max)
        self._threads = trio.CapacityLimiter(settings.threads)
        handler = Handler(
            kind=Kind.BACKGROUND,
            on="",
            function=_call_in_background,
            name="background",
            waits=True,
            time_limit=float("inf"),
        )
        self.background = Group((handler,), as_is, BACKGROUND_MAX, BACKGROUND_MAX, is_ordered=False)

    def check(self, table: RouteTable, events: EventHub) -> None:
        """See whether a table can be put in place of another.

        Raises:
            RouteError: It does not fit the channels' settings, or names an impossible event.
        """
        modes: dict[str, str] = {}
        for handler in table.of_kind(Kind.MESSAGE):
            mode = handler.handling or self._section(handler.on).handling
            handler.handling = mode
            if mode == "inline" and handler.waits:
                raise RouteError(f"{handler.name}: the channel is inline: plain functions only")
            if modes.setdefault(handler.on, mode) != mode:
                raise RouteError(f"{handler.name}: one channel cannot be inline and queued")
        on = {each.on for kind in (Kind.MESSAGE, Kind.REQUEST) for each in table.of_kind(kind)}
        if len(on) > CHANNELS_MAX:
            raise RouteError(f"{len(on)} channels are listened to, at most {CHANNELS_MAX}")
        for handler in table.of_kind(Kind.EVENT):
            events.resolve(handler.on)
        for handler in table.handlers:
            self._prepare(handler)

    def update(self, plan: Plan, table: RouteTable, bus_name: str) -> None:
        """Give a plan the handlers of a table. What already waits goes to the new ones."""
        for groups, kind in ((plan.messages, Kind.MESSAGE), (plan.requests, Kind.REQUEST)):
            heard = table.heard_on(kind, bus_name)
            for channel in [channel for channel in groups if channel not in heard]:
                groups.pop(channel).handlers = ()
            for channel, handlers in heard.items():
                group = groups.get(channel)
                if group is None:
                    group = groups[channel] = self._make_group(kind, channel)
                group.handlers = handlers

    def event_group(self, handler: Handler) -> Group:
        """Make the queue of one event route: of its own, so that it delays nobody else."""
        self._prepare(handler)
        return Group((handler,), as_is, 1, EVENTS_MAX, is_ordered=False)

    def record_group(self, handler: Handler, make: Make, lanes_max: int) -> Group:
        """Make the queue of one route for records; who reads them bounds how many wait."""
        self._prepare(handler)
        return Group((handler,), make, lanes_max, EVENTS_MAX)

    def _section(self, channel: str) -> ChannelSection:
        return self._channels.get(ChannelName(channel)) or ChannelSection()

    def _make_group(self, kind: Kind, channel: str) -> Group:
        section = self._section(channel)
        if kind is Kind.REQUEST:
            return Group(
                (),
                functools.partial(IncomingRequest, self._services),
                self._requests_max + 1,  # one more worker, to refuse what is too much
                section.queue_size,
                is_ordered=False,
                budget=self._requests,
            )
        return Group(
            (),
            functools.partial(IncomingMessage, self._services),
            section.concurrency,
            section.queue_size,
            is_ordered=section.ordered,
            reports_queued=section.result == "queued",
        )

    def _prepare(self, handler: Handler) -> None:
        """Let a handler with `thread=True` run in the pool."""
        if handler.thread and not isinstance(handler.function, _InThread):
            handler.function = _InThread(handler.function, self._threads)


@attrs.frozen
class _InThread:
    """A plain function that runs in the pool of threads."""

    function: HandlerFunction
    limiter: trio.CapacityLimiter

    async def __call__(self, context: AgentContext) -> object:
        """Run it; when its time is up, the thread is left to itself.

        Raises:
            Refuse: All threads are busy, those included that were left to themselves.
        """
        if self.limiter.available_tokens < 1:
            raise Refuse(ResultCode.BUSY, "all threads are busy")
        return await trio.to_thread.run_sync(
            self.function, context, abandon_on_cancel=True, limiter=self.limiter
        )


def as_is(arrivals: object, item: AgentContext, /) -> AgentContext:
    """Take an item that already is the argument of its handlers."""
    return item
