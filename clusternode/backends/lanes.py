"""Queues in front of back ends: bounded, one per subscriber; nothing here blocks whoever raises.

An `Outlet` is one open back end, shared by all that mean the same. A `Queue` is a bounded lane to
it, with a task only while something waits in it. Specified in docs/events.md, "Queues".
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from clusternode.backends.base import EventBackend, Publication, StatusCallback
from clusternode.errors import ClusternodeError
from clusternode.routes.events import EventView
from clusternode.routes.subscriptions import DeliveryStatus
from clusternode.runtime.jobs import Jobs

logger = logging.getLogger(__name__)


class Outlet:
    """One back end, open while somebody uses it."""

    def __init__(self, backend: EventBackend, jobs: Jobs, former: Outlet | None) -> None:
        self.backend = backend
        self.users = 0
        self.ended = trio.Event()
        """Set when it is closed and has cleaned up."""
        self._former = former  # of the same identity; it may still hold the file or socket
        self._jobs = jobs
        self._lock = trio.Lock()
        self._ready: trio.Event | None = None
        self._scope = trio.CancelScope()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hand a batch to the back end, guarded: whatever it does, everything gets a status."""
        backend = self.backend
        async with self._lock:
            with trio.move_on_after(backend.publish_timeout) as scope:
                await self._open()
                try:
                    await backend.publish(publications)
                except ClusternodeError as error:
                    _fail(publications, str(error), definite=getattr(error, "definite", True))
                except Exception as error:  # the code of a third party
                    logger.exception("back end %s", backend.shown)
                    _fail(publications, f"{type(error).__name__}: {error}", definite=False)
        if scope.cancelled_caught:
            reason = f"no answer within {backend.publish_timeout:g} s"
            _fail(publications, reason, definite=False)

    async def _open(self) -> None:
        if self._ready is None:
            self._ready = trio.Event()
            self._scope = trio.CancelScope()
            self._jobs.start_soon(functools.partial(self._run, self._ready, self._scope))
        await self._ready.wait()

    async def _run(self, ready: trio.Event, scope: trio.CancelScope) -> None:
        """Run the back end until it is released; one that crashes is opened by the next event."""
        try:
            with scope:
                if self._former is not None:
                    await self._former.ended.wait()
                    self._former = None
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.backend.run)
                    ready.set()
        except Exception:  # the code of a third party
            logger.exception("back end %s ended", self.backend.shown)
        finally:
            self._ready = None if self._ready is ready else self._ready
            ready.set()
            if scope.cancel_called:
                self.ended.set()

    def close(self) -> None:
        self._scope.cancel()
        if self._ready is None:
            self.ended.set()


class Outlets:
    """The open back ends of one agent, by identity."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._outlets: dict[str, Outlet] = {}  # identity → the one for it
        self._closing: dict[str, Outlet] = {}  # identity → the last one that was closed

    def open_lane(self, backend: EventBackend, capacity: int) -> Queue:
        """Return a queue to a back end, or to the open one of the same identity."""
        identity = backend.identity
        outlet = self._outlets.get(identity)
        if outlet is None:
            outlet = Outlet(backend, self._jobs, self._closing.pop(identity, None))
            self._outlets[identity] = outlet
        outlet.users += 1
        return Queue(outlet, capacity, self._jobs, self._release)

    def backends(self) -> Sequence[EventBackend]:
        return [outlet.backend for outlet in self._outlets.values()]

    def _release(self, outlet: Outlet) -> None:
        outlet.users -= 1
        if not outlet.users:
            identity = outlet.backend.identity
            del self._outlets[identity]
            outlet.close()
            still = {key: each for key, each in self._closing.items() if not each.ended.is_set()}
            self._closing = {**still, identity: outlet}


class Queue:
    """A bounded lane to an outlet; it holds what waits, and what is handed over but not settled."""

    def __init__(
        self, outlet: Outlet, capacity: int, jobs: Jobs, release: Callable[[Outlet], None]
    ) -> None:
        self.capacity = capacity
        self._outlet = outlet
        self._jobs = jobs
        self._release = release
        self._open: dict[Publication, StatusCallback] = {}  # not settled → whom to tell
        self._waiting: deque[Publication] = deque()
        self._flush = (0, "")  # how many of the oldest that wait are to fail, and why
        self._is_pumping = False
        self._is_closed = False
        self._emptied = trio.Event()

    def __len__(self) -> int:
        """How many events are not settled."""
        return len(self._open)

    def offer(self, event: EventView, notification: bytes, settled: StatusCallback) -> bool:
        """Queue an event; `settled` is called once. False, and never called: it is full."""
        if len(self._open) >= self.capacity or self._is_closed:
            return False
        publication = Publication(event, notification, self._settled)
        self._open[publication] = settled
        self._waiting.append(publication)
        if not self._is_pumping:
            self._is_pumping = True
            self._jobs.start_soon(self._pump)
        return True

    def flush(self, reason: str) -> None:
        """Fail what waits now, when the batch that is being handed over has been."""
        self._flush = (len(self._waiting), reason)

    def abandon(self, reason: str) -> None:
        """Fail everything that is not settled, now."""
        waiting, self._waiting = self._waiting, deque()
        for publication in waiting:
            publication.fail(reason)
        for publication in tuple(self._open):
            publication.fail(reason, definite=False)

    def close(self) -> None:
        """Let go of the back end when everything is settled. Nothing is taken after it."""
        if not self._is_closed:
            self._is_closed = True
            if not self._open:
                self._release(self._outlet)

    async def wait_empty(self) -> None:
        """Wait until everything is settled."""
        while self._open:
            await self._emptied.wait()

    def _settled(self, publication: Publication, status: DeliveryStatus) -> None:
        self._open.pop(publication)(status)
        if not self._open:
            self._emptied.set()
            self._emptied = trio.Event()
            if self._is_closed:
                self._release(self._outlet)

    async def _pump(self) -> None:
        """Hand over what waits, until nothing does."""
        try:
            while self._waiting:
                await self._outlet.publish(self._next_batch())
                self._flush_some()
        finally:
            self._is_pumping = False

    def _next_batch(self) -> Sequence[Publication]:
        count = min(len(self._waiting), self._outlet.backend.batch_max)
        return [self._waiting.popleft() for _ in range(count)]

    def _flush_some(self) -> None:
        count, reason = self._flush
        self._flush = (0, "")
        for _ in range(min(count, len(self._waiting))):
            self._waiting.popleft().fail(reason)


def _fail(publications: Iterable[Publication], reason: str, *, definite: bool) -> None:
    for publication in publications:
        publication.fail(reason, definite=definite)
