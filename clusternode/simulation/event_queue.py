"""Virtual time: everything that is to happen, in one total order: by time, then as it was asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from clusternode.core.types import Instant, Seconds

Act = tuple[Callable[..., None], tuple[Any, ...]]  # what to call, and with which arguments


class EventQueue:
    """What is to happen, and the clock that jumps from one thing to the next.

    What is due *soon* happens at this instant, after everything else that is due at it: a writer
    that gets its turn after all of this instant's messages were made writes them in one go.
    """

    def __init__(self, now: Instant) -> None:
        self.now = now
        self._instants: list[Instant] = []  # a heap: those of `_due`
        self._due: dict[Instant, list[Act]] = {}  # instant → what happens then, in order
        self._soon: deque[Act] = deque()

    def at(self, when: Instant, act: Callable[..., None], *arguments: object) -> None:
        acts = self._due.get(when)
        if acts is None:
            self._due[when] = [(act, arguments)]
            heappush(self._instants, when)
        else:
            acts.append((act, arguments))

    def after(self, delay: Seconds, act: Callable[..., None], *arguments: object) -> None:
        self.at(self.now + delay, act, *arguments)

    def soon(self, act: Callable[..., None], *arguments: object) -> None:
        self._soon.append((act, arguments))

    def run_until(self, limit: Instant) -> None:
        """Let everything happen that is due up to and at `limit`, and set the clock to it."""
        instants, due, soon, now = self._instants, self._due, self._soon, self.now
        while True:
            if soon and not (instants and instants[0] <= now):
                act, arguments = soon.popleft()
                act(*arguments)
            elif instants and instants[0] <= max(now, limit):
                when = heappop(instants)
                if when > now:
                    self.now = now = when
                for act, arguments in due[when]:  # what is added to this instant is among them
                    act(*arguments)
                del due[when]
            else:
                self.now = max(now, limit)
                return
