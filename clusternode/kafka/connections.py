"""The named connections of an agent: producers and admin calls, made when first used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import trio

from clusternode.errors import ClusternodeError, ConfigError, KafkaError, NoSuchConnection
from clusternode.kafka import library
from clusternode.kafka.admin import ensure_topic
from clusternode.kafka.log import ClientLog
from clusternode.kafka.producer import Producer
from clusternode.kafka.records import Headers, Placed, Report
from clusternode.kafka.settings import KafkaConnection

logger = logging.getLogger(__name__)

ENSURE_PAUSE_MAX = 30.0
"""Between two attempts to make the topics of `ensure_topics` while the broker is down."""


class Connection:
    """One `[kafka.NAME]`, with its producer if that is needed."""

    def __init__(self, settings: KafkaConnection) -> None:
        self.settings = settings
        self.log = ClientLog(settings.name)
        self._producer: Producer | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def has_producer(self) -> bool:
        return self._producer is not None

    def producer(self) -> Producer:
        """Return the producer; it connects in the background.

        Raises:
            KafkaNotInstalled: The extra is not installed.
            KafkaError: A property is wrong.
        """
        if self._producer is None:
            self._producer = Producer(
                self.name,
                self.settings.producer_properties,
                in_flight_max=self.settings.in_flight_max,
                flush_timeout=self.settings.flush_timeout,
                log=self.log,
            )
        return self._producer

    def topic(self, topic: str | None) -> str:
        """Return a topic, or the connection's own for None.

        Raises:
            KafkaError: It has none.
        """
        found = topic or self.settings.topic
        if not found:
            raise KafkaError("_UNKNOWN_TOPIC", f"[kafka.{self.name}] has no topic, so name one")
        return found

    async def publish(
        self,
        topic: str | None,
        value: bytes | str | None,
        *,
        key: bytes | str | None = None,
        headers: Headers | None = None,
    ) -> Placed:
        """Publish a record and wait until the broker has it.

        Raises:
            KafkaNotInstalled, KafkaError: As `Producer.publish`.
        """
        producer = self.producer()
        return await producer.publish(self.topic(topic), value, key=key, headers=headers)

    def send(
        self,
        topic: str | None,
        value: bytes | str | None,
        *,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        report: Callable[[Report], object] | None = None,
    ) -> None:
        """Hand a record over and go on.

        Raises:
            Overloaded, KafkaNotInstalled, KafkaError: As `Producer.publish_soon`.
        """
        self.producer().publish_soon(
            self.topic(topic), value, key=key, headers=headers, report=report
        )

    async def ensure_topic(self, topic: str, partitions: int = -1, replicas: int = -1) -> bool:
        """Make a topic where it is missing; whether it was made.

        Raises:
            KafkaNotInstalled, KafkaError: It could not be.
        """
        return await ensure_topic(self.settings, topic, partitions, replicas, self.log)

    def status(self) -> dict[str, Any]:
        """Return state and counters as JSON."""
        producer = self._producer
        found: dict[str, Any] = {
            "name": self.name,
            "brokers": self.settings.brokers,
            "producer": producer is not None,
            "suppressed_log_lines": self.log.suppressed,
        }
        if producer is not None:
            counters = producer.counters
            found |= {
                "accepted": counters.accepted,
                "delivered": counters.delivered,
                "failed": counters.failed,
                "in_flight": counters.in_flight,
                "refused": counters.refused,
                "bytes": counters.bytes,
                "last_error": "" if producer.last_error is None else str(producer.last_error),
            }
        return found

    async def aclose(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.aclose()


class KafkaConnections:
    """Every `[kafka.NAME]` of an agent, by name."""

    def __init__(self, settings: Mapping[str, KafkaConnection] | None = None) -> None:
        self._connections: dict[str, Connection] = {}
        self._replaced: list[Connection] = []
        self._changed = trio.Event()
        self._ensured: dict[str, None] = {}
        self.notifier_defaults: object = None
        """A `NotifierDefaults`, which this module need not know."""
        for each in (settings or {}).values():
            self._connections[each.name] = Connection(each)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections.values())

    def get(self, name: str) -> Connection:
        """Return a connection.

        Raises:
            NoSuchConnection: There is none of that name; names those that there are.
        """
        found = self._connections.get(name)
        if found is None:
            known = ", ".join(self._connections) or "none"
            raise NoSuchConnection(f"no connection named {name}; in the configuration: {known}")
        return found

    def check(self) -> None:
        """Have librdkafka judge the properties, if it is there.

        Raises:
            ConfigError: One is unknown or wrong; names the connection.
        """
        for each in self:
            check_settings(each.settings)

    def reload(self, settings: Mapping[str, KafkaConnection]) -> list[str]:
        """Take new settings; return the names whose section has changed or gone.

        A changed connection is made anew at its next use; the old one delivers what it holds.
        """
        changed = []
        for name, connection in tuple(self._connections.items()):
            if settings.get(name) != connection.settings:
                changed.append(name)
                self._replaced.append(self._connections.pop(name))
                self._ensured.pop(name, None)
        for name, each in settings.items():
            if name not in self._connections:
                self._connections[name] = Connection(each)
        self._changed.set()
        return changed

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the topics of `ensure_topics`, and close what was replaced, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    for connection in self._replaced:
                        nursery.start_soon(connection.aclose)
                    self._replaced = []
                    for connection in self:
                        if connection.settings.ensure_topics and (
                            connection.name not in self._ensured
                        ):
                            self._ensured[connection.name] = None
                            nursery.start_soon(self._ensure_topics, connection)
                    await self._changed.wait()
                    self._changed = trio.Event()
        finally:
            await self.aclose()

    async def _ensure_topics(self, connection: Connection) -> None:
        """Try until every topic is there; a broker that is down stops nobody."""
        pause = 1.0
        for topic in connection.settings.ensure_topics:
            while connection in self._connections.values():
                try:
                    made = await connection.ensure_topic(
                        topic.name, topic.partitions, topic.replicas
                    )
                except KafkaError as error:
                    connection.log.tell("ensure", f"topic {topic.name}: {error}")
                    if not error.retriable:
                        break
                except ClusternodeError as error:
                    connection.log.tell("ensure", f"topic {topic.name}: {error}")
                    return
                else:
                    if made:
                        logger.info("kafka %s: made topic %s", connection.name, topic.name)
                    break
                await trio.sleep(pause)
                pause = min(pause * 2, ENSURE_PAUSE_MAX)

    async def aclose(self) -> None:
        """Close all producers at a time; each is bounded by its `flush_timeout`."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for connection in [*self, *self._replaced]:
                    nursery.start_soon(connection.aclose)
        self._replaced = []


def check_settings(settings: KafkaConnection) -> None:
    """Have librdkafka judge the properties of one connection, if it is there.

    Raises:
        ConfigError: One is unknown or wrong.
    """
    if not library.is_installed():
        return
    log = ClientLog(settings.name)
    try:
        library.check_properties(settings.producer_properties, log.logger)
    except KafkaError as error:
        raise ConfigError(
            f"kafka.{settings.name}", settings.name, f"what librdkafka takes ({error.detail})"
        ) from None
