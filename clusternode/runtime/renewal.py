"""Watches the certificate of this node: takes renewed files up, and warns before it expires."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from clusternode.core.types import Seconds
from clusternode.errors import ConfigError
from clusternode.runtime.logs import RateLimitedLog
from clusternode.runtime.tls import Credentials

logger = logging.getLogger(__name__)

CHECK_INTERVAL: Final[Seconds] = 60.0
"""How soon renewed files are noticed without a reload: long before anything expires."""
WARN_BEFORE: Final = timedelta(days=30)
WARN_INTERVAL: Final[Seconds] = 86400.0
"""Between two warnings: one a day is seen and not tuned out."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Renewal:
    """Keeps one set of credentials fresh.

    Args:
        credentials: What is kept.
        warn: Takes (days left, valid until) of a certificate that expires soon, or has expired.
        clock: For tests.
    """

    def __init__(
        self,
        credentials: Credentials,
        warn: Callable[[int, datetime], None],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._credentials = credentials
        self._warn = warn
        self._clock = clock
        self._log = RateLimitedLog(logger)
        self._warned_at: float | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            self.check()
            await trio.sleep(CHECK_INTERVAL)

    def check(self) -> None:
        """Take renewed files up, and warn when it is time; three small files, so no thread."""
        try:
            if self._credentials.have_files_changed():
                self._credentials.load()
                self._warned_at = None
                until = self._credentials.own.not_after
                logger.info("took up a renewed certificate; valid until %s", until.isoformat())
        except ConfigError as error:  # perhaps half of the files are there
            self._log.warn_about("renewal", "the old certificate goes on: %s", error)
        left = self._credentials.own.not_after - self._clock()
        now = trio.current_time()
        is_due = self._warned_at is None or now - self._warned_at >= WARN_INTERVAL
        if left < WARN_BEFORE and is_due:
            self._warned_at = now
            self._warn(left.days, self._credentials.own.not_after)
