"""Runs handlers: a run queue of lanes, and workers that exist only while somebody waits.

One worker at a time takes work and calls the handlers in place, one after the other. Only when a
handler really suspends, the results so far are handed over and another worker goes on with the
other lanes. So neither a task, a checkpoint, a scope nor a channel is spent on a message whose
handlers do not wait.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, Protocol

import attrs
import trio

from clusternode.bus.interface import Arrivals
from clusternode.core.types import ResultCode, Seconds
from clusternode.errors import RequestTimeout
from clusternode.routes.contexts import AgentContext
from clusternode.routes.monitor import Deadlines, Monitor, clock
from clusternode.routes.table import Handler

SLICE: Seconds = 0.005
"""How long workers run handlers before everything else in the agent gets its turn."""
SPARE_WORKERS = 8
"""How many idle workers are kept for the next handler that waits; a task costs less to wake."""

Done = list[tuple[int, ResultCode]]
Failed = Callable[[Handler, AgentContext, BaseException], ResultCode]
"""Takes what a handler raised; gives the code that its item ends with."""
Held = Callable[["Group", AgentContext, int, ResultCode], None]
"""Takes an item that stays open after its handlers: it still counts for its group."""


class Make(Protocol):
    """Makes the argument of the handlers."""

    def __call__(self, arrivals: Any, item: Any, /) -> AgentContext:  # noqa: ANN401  # per kind
        ...


@attrs.define(eq=False)
class Budget:
    """How many handlers may be waiting at a time, over all groups that share it."""

    limit: int | None = None
    """Beyond it items end with 486. None: bounded by `lanes_max` only."""
    used: int = 0

    def is_spent(self) -> bool:
        return self.limit is not None and self.used >= self.limit


@attrs.define(eq=False)
class Batch:
    """Items of one read for one lane. The iterator may be shared by several workers."""

    arrivals: Arrivals | None
    """None for what did not arrive: events and background calls."""
    items: Iterator[tuple[int, Any]]
    reports: bool = True
    """Whether results go back; false where 202 was said already."""


@attrs.define(eq=False)
class Group:
    """What shares its handlers and bounds: a channel, the requests of a channel, or an event."""

    handlers: tuple[Handler, ...]
    make: Make
    lanes_max: int
    """How many lanes (ordered) or workers (unordered) are busy at a time."""
    size_max: int
    """How many items may wait or run."""
    is_ordered: bool = True
    reports_queued: bool = False
    """Whether 202 is the result, at once."""
    budget: Budget = attrs.Factory(lambda: Budget())
    size: int = 0
    running: int = 0
    is_full: bool = False
    """Whether items were refused and it has not been half empty since."""
    blocked: deque[Lane] = attrs.Factory(deque)
    lanes: dict[str, Lane] = attrs.Factory(dict)  # origin → its lane; one lane if unordered

    @property
    def is_inline(self) -> bool:
        """Whether items are handled where they were read. Handlers of one channel agree."""
        return bool(self.handlers) and self.handlers[0].handling == "inline"


@attrs.define(eq=False)
class Lane:
    """Batches that are worked on in order: by one worker, or by several if unordered."""

    group: Group
    key: str
    batches: deque[Batch] = attrs.Factory(deque)
    workers: int = 0
    is_queued: bool = False
    """Whether it stands in the run queue, or blocked in its group."""


class Runner:
    """The run queue and its workers."""

    def __init__(self, monitor: Monitor, time_limit: Seconds, failed: Failed, held: Held) -> None:
        self.monitor = monitor
        self.time_limit = time_limit
        self.failed = failed
        self.held = held
        self.deadlines = Deadlines()
        self.ready: deque[Lane] = deque()
        self.parked: list[trio.lowlevel.Task] = []
        self.awake = 0
        """Workers that run or are about to: they will look into the run queue by themselves."""
        self._spawns = 0
        self._spawn = trio.Event()

    def submit(self, group: Group, key: str, batch: Batch, count: int) -> None:
        """Queue `count` items. The caller has checked `size_max`."""
        group.size += count
        if not group.is_ordered:
            key = ""
        lane = group.lanes.get(key)
        if lane is None:
            lane = group.lanes[key] = Lane(group, key)
        lane.batches.append(batch)
        self.offer(lane)

    def offer(self, lane: Lane) -> None:
        """Put a lane with work into the run queue, if one more worker may have it."""
        limit = 1 if lane.group.is_ordered else lane.group.lanes_max
        if not lane.is_queued and lane.workers < limit:
            lane.is_queued = True
            self.ready.append(lane)
            self.wake()

    def wake(self) -> None:
        """See to it that somebody looks into the run queue."""
        if self.awake or not self.ready:
            return
        self.awake += 1
        if self.parked:
            trio.lowlevel.reschedule(self.parked.pop())
        else:
            self._spawns += 1
            self._spawn.set()

    def run_inline(
        self, group: Group, arrivals: Arrivals, items: Sequence[tuple[int, Any]]
    ) -> None:
        """Run plain handlers here and now."""
        done: Done = []
        self.run_plain(group, Batch(arrivals, iter(items)), done, float("inf"))
        arrivals.finish(done)

    def run_plain(self, group: Group, batch: Batch, done: Done, until: float) -> bool:
        """Call plain handlers for a batch, up to a point of `clock`. True: it is exhausted."""
        monitor, make, handlers, arrivals = self.monitor, group.make, group.handlers, batch.arrivals
        now = clock()
        monitor.begin(batch)
        for ticket, item in batch.items:
            monitor.context = context = make(arrivals, item)
            code = ResultCode.OK if handlers else ResultCode.NOT_FOUND
            for handler in handlers:
                monitor.handler = handler
                before = now
                try:
                    result = handler.function(context)
                    if result is not None:
                        _take(context, result)
                except USER_ERRORS as error:
                    failure = self.failed(handler, context, error)
                    code = failure if code is ResultCode.OK else code
                now = clock()
                stats = handler.stats
                stats.calls += 1
                stats.seconds += now - before
            if context.is_held:
                self.held(group, context, ticket, code)
            else:
                done.append((ticket, code))
            if now > until:
                monitor.context = None
                return False
        monitor.context = None
        return True

    def flush(self, group: Group, batch: Batch, done: Done) -> Done:
        """Hand the results so far over; return the list for the next ones."""
        if not done:
            return done
        group.size -= len(done)
        if group.is_full and group.size * 2 <= group.size_max:
            group.is_full = False
        if batch.reports and batch.arrivals is not None:
            batch.arrivals.finish(done)
        return []

    async def run(self) -> None:
        """Keep as many workers as are needed, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.deadlines.run)
            while True:
                await self._spawn.wait()
                self._spawn = trio.Event()
                while self._spawns:
                    self._spawns -= 1
                    nursery.start_soon(Worker(self).run)


def take_apart(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Return (what user code raised, what is not for us to take: cancellation, Ctrl-C).

    A nursery in user code raises both in one group, where its clean-up fails when it is cancelled.
    """
    if isinstance(error, USER_ERRORS):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        return error.split(USER_ERRORS)
    return None, error


USER_ERRORS = (Exception, SystemExit)
"""What user code may raise without harm; the rest is trio's or means the whole process."""


def _take(context: AgentContext, result: object) -> None:
    """Take what a plain function returned.

    Raises:
        TypeError: It is a coroutine: the agent can only drive those of `async def`.
    """
    if isinstance(result, Coroutine):
        result.close()
        raise TypeError("a plain function returned a coroutine; declare it with async def")
    context.take_result(result)


class Worker:
    """One task that takes lanes from the run queue and runs them until there are none."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.until = 0.0
        self.done: Done = []
        self.scope = trio.CancelScope()
        self.current: tuple[Lane, Batch] | None = None
        self.expired: tuple[Handler, AgentContext, Seconds] | None = None
        """Whose time limit was exceeded last."""
        self.interrupted: tuple[int, AgentContext, tuple[Handler, ...]] | None = None
        """Ticket, argument and handlers of the item that is being handled."""
        self.index = 0
        """Which of these handlers is running."""
        self.now = 0.0
        """When the last handler ended."""

    async def run(self) -> None:
        """Work until there is nothing to do and enough others are parked."""
        runner = self.runner
        self.until = clock() + SLICE
        while True:
            while runner.ready:
                lane = runner.ready.popleft()
                group = lane.group
                if group.running >= group.lanes_max:
                    group.blocked.append(lane)  # stays marked as queued
                    continue
                lane.is_queued = False
                await self._run_lane(lane, group)
            runner.awake -= 1
            if len(runner.parked) >= SPARE_WORKERS:
                return
            await self._park()
            self.until = clock() + SLICE

    async def _park(self) -> None:
        """Sleep until `Runner.wake`, which counts us as awake."""
        task = trio.lowlevel.current_task()
        self.runner.parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            if task in self.runner.parked:
                self.runner.parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _run_lane(self, lane: Lane, group: Group) -> None:
        """Run one batch of a lane."""
        if not lane.batches:
            return
        lane.workers += 1
        group.running += 1
        try:
            batch = lane.batches.popleft()
            self.current = (lane, batch)
            while not any(handler.waits for handler in group.handlers):  # a reload changes them
                if self.runner.run_plain(group, batch, self.done, self.until):
                    break
                await self._give_way(group, batch)
            else:
                await self._run_waiting(group, batch)
            self.done = self.runner.flush(group, batch, self.done)
        finally:
            lane.workers -= 1
            group.running -= 1
        if group.blocked:
            self.runner.ready.append(group.blocked.popleft())
        if lane.batches:
            self.runner.offer(lane)  # behind the others: nobody starves
        elif not lane.workers and not lane.is_queued:
            group.lanes.pop(lane.key, None)

    async def _give_way(self, group: Group, batch: Batch) -> None:
        """Let the rest of the agent run: the slice is over."""
        self.done = self.runner.flush(group, batch, self.done)
        await trio.lowlevel.checkpoint()
        self.until = clock() + SLICE

    async def _run_waiting(self, group: Group, batch: Batch) -> None:
        """Run a batch whose handlers may wait, in a scope that a time limit may cancel."""
        while True:
            with trio.CancelScope() as self.scope:
                if self.interrupted is not None:
                    ticket, context, handlers = self.interrupted
                    handlers = handlers[self.index + 1 :]
                    await self._handle(group, ticket, context, handlers, ResultCode.FAILED)
                if not self.scope.cancel_called and await self._drain(group, batch):
                    return
            if self.scope.cancelled_caught and self.expired is not None:
                self.runner.monitor.context = None
                handler, context, limit = self.expired
                self.runner.failed(handler, context, RequestTimeout(f"stopped after {limit:g} s"))

    async def _drain(self, group: Group, batch: Batch) -> bool:
        """Handle the items of a batch. False: the scope is used up, go on in a new one."""
        make, handlers, arrivals = group.make, group.handlers, batch.arrivals
        for ticket, item in batch.items:
            if group.budget.is_spent():
                self.done.append((ticket, ResultCode.BUSY))
                continue
            await self._handle(group, ticket, make(arrivals, item), handlers, ResultCode.OK)
            if self.scope.cancel_called:
                return False
            if self.now > self.until:
                await self._give_way(group, batch)
        return True

    async def _handle(
        self,
        group: Group,
        ticket: int,
        context: AgentContext,
        handlers: tuple[Handler, ...],
        code: ResultCode,
    ) -> None:
        """Run handlers for one item. Leaves what remains in `interrupted` if it is cancelled."""
        monitor = self.runner.monitor
        self.interrupted = (ticket, context, handlers)
        before = clock()
        for self.index, handler in enumerate(handlers):
            monitor.context = context
            monitor.handler = handler
            handler.stats.calls += 1
            try:
                result = handler.function(context)
                if handler.waits:
                    result = await self._drive(result, handler, context)
                if result is not None:
                    _take(context, result)
            except BaseException as error:  # noqa: BLE001  # user code
                raised, rest = take_apart(error)
                if raised is not None:
                    failure = self.runner.failed(handler, context, raised)
                    code = failure if code is ResultCode.OK else code
                if rest is not None:
                    raise rest from None
            finally:
                self.now = clock()
                handler.stats.seconds += self.now - before
            before = self.now
        monitor.context = None
        self.interrupted = None
        if context.is_held:
            self.runner.held(group, context, ticket, code)
        else:
            self.done.append((ticket, code))

    @types.coroutine
    def _drive(
        self, coroutine: Coroutine[Any, Any, Any], handler: Handler, context: AgentContext
    ) -> Generator[Any, Any, Any]:
        """Await a handler, and notice when it suspends and when it goes on.

        This is `await`, spelled out: everything that the coroutine yields goes to trio, and
        everything that trio sends or throws goes to the coroutine.
        """
        monitor = self.runner.monitor
        try:
            trap = coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        self._suspends(handler, context)
        try:
            while True:
                monitor.context = None
                try:
                    value = yield trap
                except BaseException as error:  # noqa: BLE001  # thrown by trio, for the coroutine
                    monitor.context, monitor.handler = context, handler
                    trap = coroutine.throw(error)
                else:
                    monitor.context, monitor.handler = context, handler
                    trap = coroutine.send(value)
        except StopIteration as stop:
            return stop.value
        finally:
            self._goes_on(handler)

    def _suspends(self, handler: Handler, context: AgentContext) -> None:
        """A handler begins to wait: hand results over, watch its time, let others work."""
        assert self.current is not None
        lane, batch = self.current
        runner, group = self.runner, lane.group
        self.done = runner.flush(group, batch, self.done)
        handler.stats.running += 1
        group.budget.used += 1
        runner.awake -= 1
        limit = runner.time_limit if handler.time_limit is None else handler.time_limit

        def time_is_up() -> None:
            self.expired = (handler, context, limit)
            self.scope.cancel()

        runner.deadlines.set(self, trio.current_time() + limit, time_is_up)
        if not group.is_ordered:
            lane.batches.appendleft(batch)  # the others go on with the same iterator
            runner.offer(lane)
        runner.wake()

    def _goes_on(self, handler: Handler) -> None:
        assert self.current is not None
        self.runner.deadlines.clear(self)
        self.current[0].group.budget.used -= 1
        handler.stats.running -= 1
        self.runner.awake += 1
        self.until = clock() + SLICE
