"""Tasks that synchronous code asks for: effects start dials and look-ups from inside `feed`."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

Job: TypeAlias = Callable[[], Awaitable[object]]


class Jobs:
    """Starts tasks in a nursery that `run` owns, in the order in which they were asked for.

    The core bounds how many there are: dials by its rate, look-ups by the number of names.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._wanted = trio.Event()

    def start_soon(self, job: Job) -> None:
        self._waiting.append(job)
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                while self._waiting:
                    nursery.start_soon(self._waiting.popleft())
