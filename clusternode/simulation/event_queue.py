"""Virtual time: everything that is to happen, in one total order (time, sequence)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from clusternode.core.types import Instant, Seconds


class EventQueue:
    """What is to happen, and the clock that jumps from one thing to the next.

    What is due *soon* happens at this instant, after everything else that is due at it: a writer
    that gets its turn after all of this instant's messages were made writes them in one go.
    """

    def __init__(self, now: Instant) -> None:
        self.now = now
        self._heap: list[tuple[Instant, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = itertools.count()
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def at(self, when: Instant, act: Callable[..., None], *arguments: object) -> None:
        heappush(self._heap, (when, next(self._sequence), act, arguments))

    def after(self, delay: Seconds, act: Callable[..., None], *arguments: object) -> None:
        heappush(self._heap, (self.now + delay, next(self._sequence), act, arguments))

    def soon(self, act: Callable[..., None], *arguments: object) -> None:
        self._soon.append((act, arguments))

    def run_until(self, limit: Instant) -> None:
        """Let everything happen that is due up to and at `limit`, and set the clock to it."""
        heap, soon, now = self._heap, self._soon, self.now
        while True:
            if soon and not (heap and heap[0][0] <= now):
                act, arguments = soon.popleft()
            elif heap and heap[0][0] <= max(now, limit):
                when, _, act, arguments = heappop(heap)
                if when > now:
                    self.now = now = when
            else:
                self.now = max(now, limit)
                return
            act(*arguments)
