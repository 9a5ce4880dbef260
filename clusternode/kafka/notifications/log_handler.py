"""A handler for `logging` that sends log records as notifications (oslo's of the like name)."""

from __future__ import annotations

import logging
import threading
from typing import Any

import trio

from clusternode.errors import ClusternodeError
from clusternode.kafka import api
from clusternode.kafka.notifications.envelope import encode, new_message, topics_of
from clusternode.kafka.notifications.notifier import Notifier
from clusternode.kafka.notifications.transport_url import CONNECTION

OWN_LOGGER = "clusternode.kafka"
"""What Kafka itself logs is never sent: a dead broker would report its death to itself."""
EVENT_TYPE = "logrecord"
FIELDS = ("name", "levelname", "module", "funcName", "lineno", "process", "thread", "created")


class LoggingNotificationHandler(logging.Handler):
    """Sends records of the level as priority; waits for nothing.

    Made within the agent, by code that the agent runs; logging may then come from any thread.
    What cannot be taken is counted in `lost` and logged nowhere.
    """

    def __init__(self, notifier: Notifier, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._connection = notifier.connection or api.connection(CONNECTION)
        self._topics = notifier.topics or notifier.defaults.topics
        self._publisher_id = notifier.publisher_id
        self.sent = 0
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record to the client's queue."""
        if record.name == OWN_LOGGER or record.name.startswith(f"{OWN_LOGGER}."):
            return
        priority = priority_of(record.levelno)
        try:
            payload = self._payload(record)
        except Exception:  # noqa: BLE001  # arguments of the record are user code
            self.lost += 1
            self.handleError(record)
            return
        value = encode(new_message({}, self._publisher_id, EVENT_TYPE, payload, priority))
        if threading.get_ident() == self._thread:
            self._send(value, priority)
            return
        try:
            self._token.run_sync_soon(self._send, value, priority)
        except trio.RunFinishedError:
            self.lost += 1

    def _send(self, value: bytes, priority: str) -> None:
        for topic in topics_of(self._topics, [priority], self._connection.settings.vhost):
            try:
                self._connection.send(topic, value)
                self.sent += 1
            except ClusternodeError:
                self.lost += 1

    def _payload(self, record: logging.LogRecord) -> dict[str, Any]:
        shown = {name: getattr(record, name) for name in FIELDS}
        return {**shown, "msg": self.format(record)}


def priority_of(level: int) -> str:
    """Return the priority of a log level."""
    for least, priority in (
        (logging.CRITICAL, "critical"),
        (logging.ERROR, "error"),
        (logging.WARNING, "warn"),
        (logging.INFO, "info"),
    ):
        if level >= least:
            return priority
    return "debug"
