"""From what a bus brings to the handlers that are registered for it, and back their results."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence

import trio

from clusternode.bus.interface import Arrivals, Bus
from clusternode.config import ChannelSection, RoutesSection
from clusternode.core.events import (
    Event,
    Joined,
    LimitReached,
    LoopLagged,
    NodeStateChanged,
    PeerDisabled,
    PeerDown,
    PeerLeft,
    PeerRemoved,
    PeerUp,
    RecordChanged,
    ReplyReceived,
    RequestReceived,
    RouteFailed,
    RoutesReloaded,
)
from clusternode.core.types import ChannelName, ResultCode, Seconds
from clusternode.core.wire import messages as wire
from clusternode.errors import ClusternodeError, ConfigError, Overloaded, RouteError
from clusternode.routes.api import buses_of_agent
from clusternode.routes.contexts import (
    JSON_CONTENT_TYPE,
    AgentContext,
    BackgroundFunction,
    IncomingEvent,
    IncomingRequest,
)
from clusternode.routes.events import (
    EventCallback,
    EventHub,
    EventView,
    HandlerCallable,
    Subscription,
    to_notification,
)
from clusternode.routes.monitor import Monitor, Watchdog, clock
from clusternode.routes.plans import BackgroundCall, Plan, Planner
from clusternode.routes.runner import Batch, Group, Make, Runner, take_apart
from clusternode.routes.table import (
    Handler,
    Kind,
    Refuse,
    RouteSnapshot,
    RouteTable,
    is_reserved,
    make_handler,
)
from clusternode.routes.views import is_wildcard

logger = logging.getLogger(__name__)

REPORT_INTERVAL: Seconds = 1.0
"""Between two log lines and events about failures of one route."""

MEMBERSHIP_EVENTS: frozenset[type[Event]] = frozenset(
    {
        NodeStateChanged,
        PeerUp,
        PeerDown,
        PeerDisabled,
        PeerRemoved,
        PeerLeft,
        Joined,
        RecordChanged,
    }
)
"""What can be listened to on the notification channel."""

Items = list[tuple[int, wire.Answerable]]


COUNTERS = ("unheard", "refused", "failures", "events_dropped")
"""Messages for channels without handlers, those beyond a queue, failures, lost events."""


class Dispatcher:
    """Implements `bus.interface.Receiver` for all buses of one agent.

    `arrived` and `observed` never block and never raise for what a handler does. A handler may
    call its bus, and results are finished, from within `arrived`.
    """

    def __init__(
        self,
        settings: RoutesSection,
        channels: Mapping[ChannelName, ChannelSection],
        table: RouteTable,
        load: Callable[[], RouteTable] | None = None,
    ) -> None:
        self.events = EventHub()
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._buses: dict[str, Bus] = {}
        self._settings = settings
        self._table = RouteTable()
        self._load = load
        self._plans: dict[str, Plan] = {}
        self._subscriptions: list[Subscription] = []
        self._runner = Runner(Monitor(), settings.time_limit, self._failed, self._keep_open)
        self._held: dict[IncomingRequest, tuple[Group, int, ResultCode]] = {}
        self._planner = Planner(self, settings, channels)
        self.events.set_notifier(self._notifier)
        self.install(table)

    # What the agent calls

    @property
    def buses(self) -> Mapping[str, Bus]:
        return self._buses

    def attach(self, bus: Bus) -> None:
        """Take everything that a bus brings from now on; tell it our channels."""
        self._buses[bus.name] = bus
        plan = self._plans[bus.name] = Plan()
        self._planner.update(plan, self._table, bus.name)
        bus.set_channels(plan.channels)
        bus.attach(self)

    def install(self, table: RouteTable) -> None:
        """Swap the routes: all of them, or none.

        Raises:
            RouteError: The table does not fit the channels' settings; the old one stays.
        """
        self._planner.check(table, self.events)
        own = [*table.events, *(each.on for each in table.of_kind(Kind.EVENT))]
        self.events.declare(name for name in own if not is_wildcard(name))
        self._subscribe(table)
        self._table = table
        for name, plan in self._plans.items():
            self._planner.update(plan, table, name)
        for subscription in self._subscriptions:
            subscription.cancel()
        self._subscriptions = [
            self.events.on_event(each.on, self._event_callback(each), each.filters)
            for each in table.of_kind(Kind.EVENT)
        ]
        for bus in self._buses.values():
            bus.set_channels(self._plans[bus.name].channels)

    def _subscribe(self, table: RouteTable) -> None:
        """Subscribe the back ends of a table, in place of those of the one before."""
        if not self.events.has_subscriptions:  # the agent does it when it has made them
            return
        try:
            self.events.subscriptions.replace("routes", table.subscriptions)
        except ConfigError as error:
            raise RouteError(f"subscribe_event: {error}") from error

    def reload(self) -> None:
        """Load the routes again; on an error the old ones stay.

        Raises:
            RouteError: What is wrong, with file and line.
        """
        if self._load is None:
            raise RouteError("this agent has no routes to load")
        try:
            self.install(self._load())
        except RouteError as error:
            detail = str(error)
            self._emit_everywhere(lambda name: RoutesReloaded(name, False, detail))
            raise
        count = len(self.routes())
        self._emit_everywhere(lambda name: RoutesReloaded(name, True, f"{count} routes"))

    def routes(self) -> tuple[RouteSnapshot, ...]:
        """Show what each route has done since it was loaded, in the order of registration."""
        return tuple(self._table.snapshots())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run handlers until cancelled. Started when all `on_start` handlers have ended."""
        buses_of_agent.set(self._buses)  # every task below inherits it
        self._warn_of_unknown_clusters()
        watchdog = Watchdog(self._runner.monitor, self._settings.watchdog, self._lagged)
        watchdog.start(trio.lowlevel.current_trio_token())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._runner.run)
                await self._run_hooks(Kind.START)
                task_status.started()
        finally:
            watchdog.stop()

    async def stop(self) -> None:
        """Run the `on_stop` handlers. To be called before leaving the clusters."""
        await self._run_hooks(Kind.STOP)

    # What a bus calls

    def arrived(self, arrivals: Arrivals) -> None:
        """Queue the messages and requests of one read, or run them where they are inline."""
        plan = self._plans[arrivals.bus.name]
        messages: dict[str, Items] = {}  # channel → its items, in order
        requests: dict[str, Items] = {}
        channel: str = ""
        run: Items | None = None
        for item in arrivals.items:
            message = item[1]
            if message.__class__ is wire.Message:
                if run is None or message.channel != channel:
                    channel = message.channel
                    run = messages.setdefault(channel, [])
                run.append(item)
            elif message.__class__ is wire.Request:
                requests.setdefault(message.channel, []).append(item)
                if self.events.wants_requests:
                    self._raise_arrival(arrivals, message)
            elif self.events.wants_replies:
                self._raise_arrival(arrivals, message)
        for name, items in messages.items():
            if not (arrivals.is_either and name in plan.requests and name not in plan.messages):
                self._take(plan.messages.get(name), name, arrivals, items)
        for name, items in requests.items():
            if not (arrivals.is_either and name in plan.messages and name not in plan.requests):
                self._take(plan.requests.get(name), name, arrivals, items)

    def observed(self, bus: Bus, event: Event) -> None:
        """Hand an event to everyone who waits for it."""
        self.events.publish(bus, event)
        if event.__class__ in MEMBERSHIP_EVENTS and bus.name in self._plans:
            channel = self._settings.notification_channel
            group = self._plans[bus.name].messages.get(channel)
            if group is not None:
                body = json.dumps(to_notification(event)).encode()
                message = wire.Message(ChannelName(channel), JSON_CONTENT_TYPE, body, 0)
                arrivals = Arrivals(bus, bus.node_id, [(0, message)], lambda results: None)
                self._take(group, channel, arrivals, arrivals.items)

    # What contexts call

    def start_soon(self, function: BackgroundFunction, *args: object) -> None:
        """Run `await function(*args)` in the background.

        Raises:
            Overloaded: `BACKGROUND_MAX` of them run.
        """
        group = self._planner.background
        if group.size >= group.size_max:
            raise Overloaded(f"{group.size} background calls run, at most {group.size_max}")
        call = BackgroundCall(self, function, args)
        self._runner.submit(group, "", Batch(None, iter([(0, call)]), reports=False), 1)

    def hold_opened(self, request: IncomingRequest) -> None:
        expire = functools.partial(self._hold_expired, request)
        self._runner.deadlines.set(request, request.deadline, expire)

    def hold_released(self, request: IncomingRequest) -> None:
        self._runner.deadlines.clear(request)
        self._finish_held(request, None)

    # What consumers of records call

    def handlers(self, kind: Kind) -> list[Handler]:
        return self._table.of_kind(kind)

    def record_group(self, handler: Handler, make: Make, lanes_max: int) -> Group:
        """Make the queue of a route for records: ordered lanes, one for each partition."""
        return self._planner.record_group(handler, make, lanes_max)

    def submit(self, group: Group, lane: str, batch: Batch, count: int) -> None:
        """Run the handlers of a group for a batch; its results go to the batch's arrivals."""
        self._runner.submit(group, lane, batch, count)

    # Messages and requests

    def _take(
        self,
        group: Group | None,
        channel: str,
        arrivals: Arrivals,
        items: Sequence[tuple[int, wire.Answerable]],
    ) -> None:
        if group is None:
            self.counters["unheard"] += len(items)
            arrivals.finish([(ticket, ResultCode.NOT_FOUND) for ticket, _ in items])
            return
        if group.is_inline:
            token = buses_of_agent.set(self._buses)
            self._runner.run_inline(group, arrivals, items)
            buses_of_agent.reset(token)
            return
        room = group.size_max - group.size
        if room < len(items):
            self._refuse(group, channel, arrivals, items[max(room, 0) :])
            items = items[: max(room, 0)]
            if not items:
                return
        if group.reports_queued:
            arrivals.finish([(ticket, ResultCode.QUEUED) for ticket, _ in items])
        batch = Batch(arrivals, iter(items), reports=not group.reports_queued)
        self._runner.submit(group, arrivals.origin, batch, len(items))

    def _refuse(
        self,
        group: Group,
        channel: str,
        arrivals: Arrivals,
        items: Sequence[tuple[int, wire.Answerable]],
    ) -> None:
        """Answer 486; say so once until the queue is half empty."""
        self.counters["refused"] += len(items)
        arrivals.finish([(ticket, ResultCode.BUSY) for ticket, _ in items])
        if not group.is_full:
            group.is_full = True
            detail = f"channel {channel}: {group.size_max} messages wait for their handlers"
            logger.warning("%s; further ones are refused with 486", detail)
            name = arrivals.bus.name
            limit = LimitReached(name, "queue_size", arrivals.origin, detail)
            self.observed(arrivals.bus, limit)

    def _raise_arrival(self, arrivals: Arrivals, message: wire.Answerable) -> None:
        """Raise the event of a request or reply, but for what agents ask each other themselves."""
        name, origin = arrivals.bus.name, arrivals.origin
        if isinstance(message, wire.Request) and not is_reserved(message.channel):
            asked = RequestReceived(name, origin, message.body, message.tag, message.channel)
            self.observed(arrivals.bus, asked)
        elif isinstance(message, wire.Reply):
            channel = arrivals.channels.get(message.tag, "")
            if not is_reserved(channel):
                reply = ReplyReceived(name, origin, message.body, message.tag, channel)
                self.observed(arrivals.bus, reply)

    def _keep_open(
        self, group: Group, context: AgentContext, ticket: int, code: ResultCode
    ) -> None:
        """The handlers of a request have ended and a hold is open."""
        assert isinstance(context, IncomingRequest)
        group.budget.used += 1
        self._held[context] = (group, ticket, code)

    def _finish_held(self, request: IncomingRequest, code: ResultCode | None) -> None:
        held = self._held.pop(request, None)
        if held is not None:
            group, ticket, own_code = held
            group.budget.used -= 1
            group.size -= 1
            request.arrivals.finish([(ticket, own_code if code is None else code)])

    def _hold_expired(self, request: IncomingRequest) -> None:
        request.holds = 0
        logger.warning("request %s on %s: hold open at its end", request.tag, request.channel)
        self._finish_held(request, ResultCode.FAILED)

    # Events

    def _event_callback(self, handler: Handler) -> EventCallback:
        """Return what queues events for one event route: its own lane, so it delays nobody."""
        group = self._planner.event_group(handler)

        def queue(bus: Bus | None, view: EventView) -> None:
            if handler.via is not None and (bus is None or bus.name != handler.via):
                return
            if group.size >= group.size_max:
                self.counters["events_dropped"] += 1
                return
            event = IncomingEvent(self, bus, view)
            self._runner.submit(group, "", Batch(None, iter([(0, event)]), reports=False), 1)

        return queue

    def _notifier(self, name: str, callback: HandlerCallable) -> EventCallback:
        handler = make_handler(Kind.EVENT, name, callback)
        handler.name = name
        return self._event_callback(handler)

    def _emit_everywhere(self, make: Callable[[str], Event]) -> None:
        for bus in self._buses.values():
            self.observed(bus, make(bus.name))

    def _lagged(self, handler: Handler, seconds: Seconds) -> None:
        logger.warning("route %s held the event loop for %.2f s", handler.name, seconds)
        self._emit_everywhere(lambda name: LoopLagged(name, seconds, handler.name))

    # Handlers

    def _failed(self, handler: Handler, context: AgentContext, error: BaseException) -> ResultCode:
        """Count and report what a handler raised, at a limited rate; say how its item ends."""
        context.take_failure(error)
        if isinstance(error, Refuse):
            return error.code
        handler.stats.failures += 1
        self.counters["failures"] += 1
        now = clock()
        if now - handler.stats.reported_at < REPORT_INTERVAL:
            handler.stats.unreported += 1
            return ResultCode.FAILED
        title = handler.name
        if isinstance(context, BackgroundCall):
            title = f"{title} {context.title}"
        reason = f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, ClusternodeError) else error
        unreported = handler.stats.unreported
        logger.error(
            "route %s: %s%s",
            title,
            reason,
            f" ({unreported} more not shown)" if unreported else "",
            exc_info=trace,
        )
        handler.stats.reported_at, handler.stats.unreported = now, 0
        is_loop = isinstance(context, IncomingEvent) and context.name == RouteFailed.NAME
        if self._buses and not is_loop:
            bus = context.bus
            self.observed(bus, RouteFailed(bus.name, title, reason))
        return ResultCode.FAILED

    async def _run_hooks(self, kind: Kind) -> None:
        context = AgentContext(self)
        buses_of_agent.set(self._buses)
        for handler in self._table.of_kind(kind):
            handler.stats.calls += 1
            limit = handler.time_limit or self._settings.time_limit
            with trio.move_on_after(limit) as scope:
                try:
                    result = handler.function(context)
                    if handler.waits:
                        await result
                except BaseException as error:  # noqa: BLE001  # user code
                    raised, rest = take_apart(error)
                    if raised is not None:
                        self._failed(handler, context, raised)
                    if rest is not None:
                        raise rest from None
            if scope.cancelled_caught:
                self._failed(handler, context, RouteError(f"stopped after {limit:g} s"))

    def _warn_of_unknown_clusters(self) -> None:
        for handler in self._table.handlers:
            if handler.via is not None and handler.via not in self._buses:
                logger.warning("route %s: via %s: no such cluster", handler.name, handler.via)
