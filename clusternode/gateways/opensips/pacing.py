"""What waits to be sent to a node, and how fast it goes.

OpenSIPS 4.0 reads a connection in one process and hands each message to a worker through a socket
pair. A burst of more than some 300 small messages fills that, and then it closes the connection and
drops what it has read. So data leaves here at a pace, at most `BURST` at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from clusternode.core.types import Instant, ResultCode

BURST: Final = 100
"""Messages at once to one node: a third of what 4.0 lost at."""
LANE_MAX: Final = 10_000
"""Messages that wait for one node; beyond it 486."""
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of messages that wait for all nodes together; beyond it 486."""
UNWRITTEN_MAX: Final = 64
"""Messages handed to one connection that have not reached the kernel."""

ONE: Final = 1.0 - 1e-6
"""What counts as one: `next_at` is a rounded sum."""

OnEnd = Callable[[ResultCode], None]
"""Takes how it ended: 202 written, 408 perhaps, 480 not sent, 486 no room."""


class Bucket:
    """So many per second on average, and so many at once."""

    __slots__ = ("_at", "_level", "_rate", "_size")

    def __init__(self, rate: float, size: float, now: Instant) -> None:
        self._rate, self._size = rate, size
        self._level, self._at = size, now

    def take(self, now: Instant) -> bool:
        """Take one if there is one."""
        self._fill(now)
        if self._level < ONE:
            return False
        self._level -= 1.0
        return True

    def next_at(self) -> Instant:
        """Tell when there is one to take."""
        return self._at + max(1.0 - self._level, 0.0) / self._rate

    def _fill(self, now: Instant) -> None:
        if now > self._at:
            self._level = min(self._level + (now - self._at) * self._rate, self._size)
            self._at = now


@attrs.frozen
class Waiting:
    """One frame of data on its way."""

    frame: bytes
    on_end: OnEnd | None


@attrs.define
class Room:
    """The bytes of all lanes together."""

    used: int = 0


class Lane:
    """The data for one node, in order."""

    def __init__(self, pace: int, room: Room, now: Instant) -> None:
        self._room = room
        self._bucket = Bucket(pace, min(pace, BURST), now) if pace else None
        self._waiting: deque[Waiting] = deque()
        self._unwritten: deque[Waiting] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the connection has as much as it may."""
        return len(self._unwritten) >= UNWRITTEN_MAX

    @property
    def unwritten(self) -> int:
        """Return how many frames are with the connection."""
        return len(self._unwritten)

    @property
    def waiting_bytes(self) -> int:
        return sum(len(each.frame) for each in (*self._waiting, *self._unwritten))

    def put(self, frame: bytes, on_end: OnEnd | None) -> bool:
        """Let a frame wait; False when there is no room, and then `on_end` is not called."""
        if len(self._waiting) >= LANE_MAX or self._room.used + len(frame) > WAITING_BYTES_MAX:
            return False
        self._room.used += len(frame)
        self._waiting.append(Waiting(frame, on_end))
        return True

    def take(self, now: Instant) -> list[bytes]:
        """Return the frames whose time has come."""
        frames = []
        while self._waiting and not self.is_full:
            if self._bucket is not None and not self._bucket.take(now):
                break
            waiting = self._waiting.popleft()
            self._unwritten.append(waiting)
            frames.append(waiting.frame)
        return frames

    def next_at(self) -> Instant | None:
        """Tell when `take` is due; None while nothing waits, or for what `written` will tell."""
        if not self._waiting or self.is_full:
            return None
        return -math.inf if self._bucket is None else self._bucket.next_at()

    def written(self, count: int) -> None:
        """Take note that so many frames have gone to the kernel."""
        for _ in range(min(count, len(self._unwritten))):
            self._end(self._unwritten.popleft(), ResultCode.QUEUED)

    def lost(self) -> None:
        """Take note that the connection has ended: a part of what it had may have arrived."""
        unwritten, self._unwritten = self._unwritten, deque()
        for waiting in unwritten:
            self._end(waiting, ResultCode.TIMEOUT)

    def give_up(self) -> None:
        """Take note that the node cannot be reached: nothing that waits has been sent."""
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            self._end(each, ResultCode.UNAVAILABLE)

    def _end(self, waiting: Waiting, code: ResultCode) -> None:
        self._room.used -= len(waiting.frame)
        if waiting.on_end is not None:
            waiting.on_end(code)
