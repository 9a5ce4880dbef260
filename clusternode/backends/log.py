"""`log:LEVEL`: events as lines of the agent's log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import trio

from clusternode.backends.base import (
    BATCH_MAX,
    PUBLISH_TIMEOUT,
    BackendServices,
    Publication,
    wrong_uri,
)

logger = logging.getLogger("clusternode.events")

LEVELS = ("debug", "info", "warning", "error")


class LogBackend:
    """Writes notifications to the logger `clusternode.events`. Delivered: handed to logging."""

    scheme: ClassVar[str] = "log"
    batch_max = BATCH_MAX
    publish_timeout = PUBLISH_TIMEOUT

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        level = rest or "info"
        if level not in LEVELS:
            raise wrong_uri(f"log:{rest}", "log:LEVEL, LEVEL one of " + ", ".join(LEVELS))
        self.identity = self.shown = f"log:{level}"
        self._level = logging.getLevelNamesMapping()[level.upper()]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def publish(self, publications: Sequence[Publication]) -> None:
        await trio.lowlevel.checkpoint()
        for publication in publications:
            logger.log(self._level, "%s", publication.notification.decode())
            publication.settle()
