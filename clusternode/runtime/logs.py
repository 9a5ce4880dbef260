"""Log lines at a limited rate: a peer that misbehaves all day fills no disk."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Final

import attrs
import trio

from clusternode.core.types import Instant, Seconds

INTERVAL: Final[Seconds] = 60.0
"""Between two lines about the same thing."""
KEYS_MAX: Final = 256
"""Things of which the last line is remembered; the oldest is forgotten."""


@attrs.define
class _Last:
    at: Instant
    suppressed: int = 0


class RateLimitedLog:
    """Writes at most one line per key and interval, and says how many it has left out."""

    def __init__(self, logger: logging.Logger, interval: Seconds = INTERVAL) -> None:
        self._logger = logger
        self._interval = interval
        self._last: OrderedDict[str, _Last] = OrderedDict()  # key → its last line

    def warn_about(self, key: str, text: str, *arguments: object) -> None:
        """Log a warning, unless one with this key was logged within the interval."""
        now = trio.current_time()
        last = self._last.get(key)
        if last is not None and now - last.at < self._interval:
            last.suppressed += 1
            return
        if last is not None and last.suppressed:
            text += f" (and {last.suppressed} more like this)"
        self._last[key] = _Last(now)
        self._last.move_to_end(key)
        if len(self._last) > KEYS_MAX:
            self._last.popitem(last=False)
        self._logger.warning(text, *arguments)
