"""Who runs right now and since when: names the route that holds the loop, ends what takes too long.

Handlers are watched from outside; nothing here costs anything per message.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

import trio

from clusternode.core.types import Instant, Seconds
from clusternode.routes.table import Handler

logger = logging.getLogger(__name__)

clock = time.perf_counter
"""The real clock, for durations of user code only; never for decisions of the cluster."""
SAMPLES_PER_LIMIT = 4
"""How often the watchdog looks within its limit: a stuck route is named at most 1/4 late."""
SAMPLE_INTERVAL_MIN: Seconds = 0.05
IDLE_LOOKS = 4
"""After so many looks at which nothing ran, the watchdog sleeps until something does."""


class Monitor:
    """What the loop is running, written by the runner and read by the watchdog's thread."""

    __slots__ = ("context", "handler", "watched")

    def __init__(self) -> None:
        self.context: object | None = None
        """The argument of the running handler; a new object per call, None between calls."""
        self.handler: Handler | None = None
        self.watched = threading.Event()
        """Cleared while the watchdog sleeps."""
        self.watched.set()

    def begin(self, work: object) -> None:
        """Say that handlers run now, for `work`: a watchdog that sleeps wakes up."""
        self.context = work  # before the look, so that one who is falling asleep sees it
        if not self.watched.is_set():
            self.watched.set()


class Watchdog:
    """A thread that names the route which holds the event loop for longer than `limit`."""

    def __init__(
        self, monitor: Monitor, limit: Seconds, lagged: Callable[[Handler, Seconds], None]
    ) -> None:
        self._monitor = monitor
        self._limit = limit
        self._lagged = lagged
        self._stop = threading.Event()

    def start(self, token: trio.lowlevel.TrioToken) -> None:
        """Begin, unless the limit is 0; `lagged` is called in the loop, when it is free again."""
        if self._limit > 0:
            threading.Thread(
                target=self._watch, args=(token,), name="clusternode-watchdog", daemon=True
            ).start()

    def stop(self) -> None:
        self._stop.set()
        self._monitor.watched.set()

    def _watch(self, token: trio.lowlevel.TrioToken) -> None:
        interval = max(self._limit / SAMPLES_PER_LIMIT, SAMPLE_INTERVAL_MIN)
        seen: object | None = None
        since, is_named, idle = clock(), False, 0
        while not self._stop.wait(interval):
            context, handler = self._monitor.context, self._monitor.handler
            idle = idle + 1 if context is None else 0
            if idle >= IDLE_LOOKS:
                self._sleep()
            if context is None or context is not seen or handler is None:
                seen, since, is_named = context, clock(), False
                continue
            held = clock() - since
            if held < self._limit or is_named:
                continue
            is_named = True
            logger.warning("route %s has held the event loop for %.1f s", handler.name, held)
            try:
                token.run_sync_soon(self._is_over, handler, since)
            except trio.RunFinishedError:
                return

    def _sleep(self) -> None:
        """Wait until something runs, or `stop`."""
        self._monitor.watched.clear()
        if self._monitor.context is None and not self._stop.is_set():
            self._monitor.watched.wait()

    def _is_over(self, handler: Handler, since: float) -> None:
        self._lagged(handler, clock() - since)


class Deadlines:
    """Calls `expire` of whatever is not cleared in time. One task for all."""

    def __init__(self) -> None:
        self._entries: dict[object, tuple[Instant, Callable[[], None]]] = {}
        self._sleep = trio.CancelScope()

    def set(self, key: object, when: Instant, expire: Callable[[], None]) -> None:
        self._entries[key] = (when, expire)
        if when < self._sleep.deadline:
            self._sleep.deadline = when

    def clear(self, key: object) -> None:
        self._entries.pop(key, None)

    async def run(self) -> None:
        """Wait for deadlines, for ever."""
        while True:
            earliest = min((when for when, _ in self._entries.values()), default=math.inf)
            with trio.CancelScope(deadline=earliest) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            expired = [key for key, (when, _) in self._entries.items() if when <= now]
            for key in expired:
                entry = self._entries.pop(key, None)
                if entry is not None:  # else one of those before has cleared it
                    entry[1]()
