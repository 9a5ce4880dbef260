"""What a bridge remembers for a while: what it has relayed, and how fast. Pure, bounded."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeAlias

import attrs

from clusternode.core.types import Instant, Seconds

MEMORY_MAX: Final = 100_000
"""Messages remembered; about 20 MB. Beyond, the oldest is forgotten before its time, counted."""

Known: TypeAlias = tuple[str, ...]
"""What is remembered: its kind first, then what tells it from others of that kind."""


@attrs.define
class Memory:
    """Keys with the instant at which they were last remembered, the oldest first."""

    size_max: int = MEMORY_MAX
    forgotten: int = 0
    """Keys that had to go before their time."""
    _seen: OrderedDict[Known, Instant] = attrs.Factory(OrderedDict)

    def __len__(self) -> int:
        return len(self._seen)

    def remember(self, now: Instant, key: Known) -> None:
        self._seen[key] = now
        self._seen.move_to_end(key)
        if len(self._seen) > self.size_max:
            self._seen.popitem(last=False)
            self.forgotten += 1

    def knows(self, now: Instant, key: Known, window: Seconds) -> bool:
        """Tell whether a key was remembered at most `window` ago."""
        seen = self._seen.get(key)
        return seen is not None and now - seen <= window

    def purge(self, now: Instant, window: Seconds) -> None:
        """Drop what is older than the longest window of any rule."""
        while self._seen:
            key, seen = next(iter(self._seen.items()))
            if now - seen <= window:
                return
            del self._seen[key]


@attrs.define
class TokenBucket:
    """Lets `rate` messages a second pass, and `burst` of them at once; 0 lets all pass."""

    rate: float
    burst: int
    _tokens: float = attrs.field(init=False)
    _at: Instant | None = None

    def __attrs_post_init__(self) -> None:
        self._tokens = float(self.burst)

    def take(self, now: Instant) -> bool:
        """Take one token; False when there is none."""
        if self.delay(now) > 0:
            return False
        self._tokens -= 1
        return True

    def delay(self, now: Instant) -> Seconds:
        """Return how long it takes until there is a token."""
        if self.rate <= 0:
            self._tokens = float(self.burst)
            return 0.0
        if self._at is not None:
            grown = self._tokens + (now - self._at) * self.rate
            self._tokens = min(grown, float(self.burst))
        self._at = now
        return max(0.0, (1 - self._tokens) / self.rate)
