"""The one timer of a gateway's machine, and the wall clock that the machine is told of."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import trio

from clusternode.core.types import Instant, Seconds

CLOCK_CHECK_INTERVAL: Final[Seconds] = 60.0
"""How often the offset of unix time is taken, for timestamps and the expiry of shared cells."""


def unix_time() -> float:
    return datetime.now(UTC).timestamp()


class Clockwork:
    """Wakes a sans-IO machine at its deadline.

    Args:
        next_deadline: When the machine wants to be woken; None for never.
        wake: Wakes it, with the present.
        set_offset: Takes what makes unix time of an instant, before the first wake and then
            every `CLOCK_CHECK_INTERVAL` at most.
        unix_time: The wall clock.
    """

    def __init__(
        self,
        next_deadline: Callable[[], Instant | None],
        wake: Callable[[Instant], None],
        set_offset: Callable[[float], None],
        unix_time: Callable[[], float] = unix_time,
    ) -> None:
        self._next_deadline = next_deadline
        self._wake = wake
        self._set_offset = set_offset
        self._unix_time = unix_time
        self._offset_at: Instant = -math.inf
        self._moved = trio.Event()
        self._wakes_at: Instant = math.inf

    def take_clock(self) -> Instant:
        """Tell the machine the offset of unix time, if that is due; return the present."""
        now = trio.current_time()
        if now - self._offset_at >= CLOCK_CHECK_INTERVAL:
            self._offset_at = now
            self._set_offset(self._unix_time() - now)
        return now

    async def run(self) -> None:
        """Wake the machine until cancelled."""
        while True:
            deadline = self._next_deadline()
            self._wakes_at = math.inf if deadline is None else deadline
            self._moved = trio.Event()
            with trio.move_on_at(self._wakes_at):
                await self._moved.wait()
            self._wake(self.take_clock())

    def rearm(self) -> None:
        """See to an earlier deadline; to be called after each step of the machine."""
        deadline = self._next_deadline()
        if deadline is not None and deadline < self._wakes_at:
            self._wakes_at = deadline
            self._moved.set()
