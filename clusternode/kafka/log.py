"""What librdkafka says, at a bearable rate: per connection and error one line in 30 s.

Meaning: res_kafka's 30 s window with a count of what was suppressed. Called in any thread.
"""

from __future__ import annotations

import logging
import threading
import time

from clusternode.core.types import Seconds
from clusternode.errors import KafkaError

WINDOW: Seconds = 30.0
KINDS_MAX = 64
"""Different errors remembered per connection; beyond it they share one window."""

clock = time.perf_counter
"""The real clock: the threads of librdkafka know no other."""


class ClientLog:
    """The log of one connection; `logger` is what librdkafka itself writes to."""

    def __init__(self, name: str, window: Seconds = WINDOW) -> None:
        self.name = name
        self.suppressed = 0
        self.logger = logging.getLogger(f"clusternode.kafka.client.{name}")
        if not any(isinstance(each, _Limited) for each in self.logger.filters):
            self.logger.addFilter(_Limited(self))
        self._window = window
        self._seen: dict[str, tuple[float, int]] = {}  # kind → (since when, how many not shown)
        self._lock = threading.Lock()
        self._ours = logging.getLogger(__name__)

    def allows(self, kind: str) -> int | None:
        """Return how many of a kind were not shown since the last, or None: show this one not."""
        now = clock()
        with self._lock:
            if kind not in self._seen and len(self._seen) >= KINDS_MAX:
                kind = "others"
            since, hidden = self._seen.get(kind, (float("-inf"), 0))
            if now - since < self._window:
                self._seen[kind] = (since, hidden + 1)
                self.suppressed += 1
                return None
            self._seen[kind] = (now, 0)
            return hidden

    def _write(self, level: int, kind: str, text: str) -> None:
        hidden = self.allows(kind)
        if hidden is None:
            return
        more = f" ({hidden} similar were not shown)" if hidden else ""
        self._ours.log(level, "kafka %s: %s%s", self.name, text, more)

    def error(self, error: KafkaError) -> None:
        """Tell an error of the client; a fatal one always."""
        if error.fatal:
            self._ours.error("kafka %s: fatal: %s", self.name, error)
        else:
            self._write(logging.WARNING, error.name, str(error))

    def undelivered(self, error: KafkaError, topic: str) -> None:
        self._write(
            logging.ERROR, f"undelivered {error.name} {topic}", f"not delivered to {topic}: {error}"
        )

    def tell(self, kind: str, text: str) -> None:
        self._write(logging.WARNING, kind, text)


class _Limited(logging.Filter):
    """Lets one line of each facility of librdkafka through per window."""

    def __init__(self, log: ClientLog) -> None:
        super().__init__()
        self._log = log

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        kind = record.getMessage().partition(" ")[0]
        return self._log.allows(f"library {kind}") is not None
