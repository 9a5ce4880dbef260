"""Log lines at a limited rate: a peer that misbehaves all day fills no disk."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque

import attrs
import trio

from clusternode.core.types import Instant, Seconds
from clusternode.runtime.bounds import LOG_INTERVAL, LOG_KEYS_MAX, LOG_LINES_MAX


@attrs.define
class _Last:
    at: Instant
    suppressed: int = 0


class RateLimitedLog:
    """Writes at most one line per key and interval, and says how many it has left out.

    All keys together get `LOG_LINES_MAX` lines in an interval.
    """

    def __init__(self, logger: logging.Logger, interval: Seconds = LOG_INTERVAL) -> None:
        self._logger = logger
        self._interval = interval
        self._last: OrderedDict[str, _Last] = OrderedDict()  # key → its last line
        self._lines: deque[Instant] = deque(maxlen=LOG_LINES_MAX)  # when the last were written
        self._dropped = 0

    def warn_about(self, key: str, text: str, *arguments: object) -> None:
        """Log a warning, unless one with this key was logged within the interval."""
        now = trio.current_time()
        last = self._last.get(key)
        if last is not None and now - last.at < self._interval:
            last.suppressed += 1
            return
        is_full = len(self._lines) == LOG_LINES_MAX
        if is_full and now - self._lines[0] < self._interval:
            self._dropped += 1
            return
        if last is not None and last.suppressed:
            text += f" (and {last.suppressed} more like this)"
        if self._dropped:
            text += f" ({self._dropped} warnings about others were left out)"
            self._dropped = 0
        self._lines.append(now)
        self._last[key] = _Last(now)
        self._last.move_to_end(key)
        if len(self._last) > LOG_KEYS_MAX:
            self._last.popitem(last=False)
        self._logger.warning(text, *arguments)
