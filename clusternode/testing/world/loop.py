"""The event loop of one simulated process: trio, a clock of its own, and turns.

Each loop runs in a thread of its own, but never two at a time: a loop runs while it has the turn,
and gives it back when all its tasks wait. trio asks its clock how long to sleep exactly then, so
that is where the turn changes hands; nothing else of trio is touched. What one process does takes
no virtual time, a process without turns stands still as under SIGSTOP, and each has its own time.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from clusternode.core.types import Instant, Seconds
from clusternode.errors import ClusternodeError

STEPS_MAX: Final = 200_000
"""How often a loop may look at its clock in one turn: far above what a burst of messages takes."""


class LoopNeverRests(ClusternodeError):
    """Some task of a process spins: it never waits for anything, so that no time can pass."""


class Loop(trio.abc.Clock):
    """Runs one main function; is the clock of its tasks.

    Args:
        main: What runs in it.
        now: The time of the process.
    """

    def __init__(self, main: Callable[[], Awaitable[None]], now: Callable[[], Instant]) -> None:
        self.deadline: Instant = -math.inf
        """When it wants its next turn, by its own clock."""
        self.inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        """What others have for it: called at the beginning of its next turn."""
        self.is_over = False
        self.failure: BaseException | None = None
        """What `main` has raised."""
        self._now = now
        self._steps = 0
        self._is_ending = False
        self._visit: Callable[[], None] | None = None
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(
            target=self._run, args=(main,), name="clusternode-simulated", daemon=True
        )

    # What the world calls, in its own thread.

    def turn(self) -> None:
        """Let it run until all its tasks wait, or it is over."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()

    def visit(self, function: Callable[[], None]) -> None:
        """Call something in its thread, where trio knows the time, while its tasks stand still."""
        self._visit = function
        self.turn()

    # What its thread does.

    def _run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def and_no_more() -> None:
            try:
                await main()
            finally:
                self._is_ending = True

        try:
            trio.run(and_no_more, clock=self)
        except BaseException as error:  # noqa: BLE001  # told to the world, which knows what to do
            self.failure = error
        finally:
            self.is_over = True
            self._back.release()

    def start_clock(self) -> None:
        """Do nothing: the time of the process has begun."""

    def current_time(self) -> Instant:
        self._steps += 1
        if self._steps > STEPS_MAX:
            self._steps = 0
            raise LoopNeverRests("a task spins: it never waits for anything")
        return self._now()

    def deadline_to_sleep_time(self, deadline: Instant) -> Seconds:
        """Give the turn back: trio calls this when no task can run."""
        if self._is_ending:  # only trio's own tasks are left, which wake each other by a socket
            return 0.0
        self.deadline = deadline
        while True:
            self._back.release()
            self._go.acquire()
            visit, self._visit = self._visit, None
            if visit is None:
                break
            visit()
        self._steps = 0
        while self.inbox:
            function, arguments = self.inbox.popleft()
            function(*arguments)
        return 0.0
