"""`kafka:BROKERS/TOPIC[?PROPERTIES]` and `kafka:@NAME[/TOPIC]`: events as records of a topic.

Grammar and meaning: OpenSIPS event_kafka README 1.1; the status is the broker's acknowledgement.
Specified in docs/kafka.md, "Events".
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import ClassVar

import trio

from clusternode.backends.base import (
    PUBLISH_TIMEOUT,
    BackendServices,
    Publication,
    wrong_uri,
)
from clusternode.core.types import Seconds
from clusternode.errors import (
    ConfigError,
    KafkaError,
    KafkaNotInstalled,
    NoSuchConnection,
    Overloaded,
)
from clusternode.kafka import api, library
from clusternode.kafka.connections import Connection
from clusternode.kafka.log import ClientLog
from clusternode.kafka.producer import Producer
from clusternode.kafka.records import Report
from clusternode.kafka.settings import IN_FLIGHT_MAX
from clusternode.kafka.uri import TOPIC, TOPIC_EXPECTED, KafkaUri, parse_uri
from clusternode.routes.subscriptions import DeliveryStatus

FLUSH_TIMEOUT: Seconds = 0.75
"""How long an ended subscription waits for reports; event_kafka waits 0.25 s."""
QUEUE_FULL_RETRIES = 2
QUEUE_FULL_PAUSE: Seconds = 0.05
"""As event_kafka: twice 50 ms, then the event has failed, and `virtual:` takes the next member."""
CALL_ID_PARAMETERS = ("callid", "call_id", "Call-ID")
"""Where the Call-ID of an event is looked for: our events, OpenSIPS's, a SIP header."""


class KafkaBackend:
    """Publishes events; each is settled by its delivery report."""

    scheme: ClassVar[str] = "kafka"
    batch_max = 1000
    """One checkpoint of the loop for so many."""
    publish_timeout = PUBLISH_TIMEOUT

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        self._named = rest.startswith("@")
        self._uri = _named_uri(rest) if self._named else parse_uri(rest)
        if not self._named:
            _check(self._uri)
        self.shown = f"kafka:{rest if self._named else self._uri.shown}"
        properties = "&".join(f"{name}={value}" for name, value in self._uri.properties.items())
        digest = hashlib.sha256(f"{properties}?{self._uri.key}".encode()).hexdigest()
        self.identity = f"{self.shown}#{digest[:16]}"
        """Properties may be secrets, so only their hash is part of it."""
        self._producer: Producer | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the producer. It connects by itself, now or when the broker is back."""
        task_status.started()
        if self._named:
            await trio.sleep_forever()
        uri = self._uri
        producer = self._producer = Producer(
            uri.shown,
            {"bootstrap.servers": uri.brokers, **uri.properties},
            in_flight_max=IN_FLIGHT_MAX,
            flush_timeout=FLUSH_TIMEOUT,
        )
        try:
            await trio.sleep_forever()
        finally:
            self._producer = None
            await producer.aclose()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hand a batch to the client; each event is settled when the broker has answered.

        Raises:
            NoSuchConnection: `@NAME` is not in the configuration.
            KafkaError: The connection names no topic, or a property of it is wrong.
        """
        await trio.lowlevel.checkpoint()
        producer, topic = self._target()
        for publication in publications:
            key = self._key(publication)
            try:
                await _hand_over(producer, topic, publication, key)
            except (KafkaError, Overloaded) as error:
                publication.fail(str(error))

    def _target(self) -> tuple[Producer, str]:
        if self._producer is not None:
            return self._producer, self._uri.topic
        if not self._named:
            raise KafkaError("_DESTROY", "the producer is not running", retriable=True)
        connection: Connection = api.connection(self._uri.brokers)
        return connection.producer(), connection.topic(self._uri.topic)

    def _key(self, publication: Publication) -> str | None:
        if not self._uri.key:
            return None
        parameters = publication.event.parameters
        for name in CALL_ID_PARAMETERS:
            if name in parameters:
                return str(parameters[name])
        return None


async def _hand_over(
    producer: Producer, topic: str, publication: Publication, key: str | None
) -> None:
    report = functools.partial(_settle, publication)
    for attempt in range(QUEUE_FULL_RETRIES + 1):
        try:
            producer.publish_soon(topic, publication.notification, key=key, report=report)
        except Overloaded:
            if attempt == QUEUE_FULL_RETRIES:
                raise
            await trio.sleep(QUEUE_FULL_PAUSE)
        else:
            return


def _settle(publication: Publication, report: Report) -> None:
    placed, error = report.placed, report.error
    if placed is not None:
        detail = f"{placed.topic}, partition {placed.partition}, offset {placed.offset}"
        publication.settle(DeliveryStatus(True, detail))
    elif error is not None:
        publication.fail(str(error), definite=error.definite)


def _named_uri(rest: str) -> KafkaUri:
    """Read `@NAME[/TOPIC]`; the name stands in `brokers`."""
    name, slash, topic = rest.removeprefix("@").partition("/")
    if not name or (slash and not TOPIC.fullmatch(topic)):
        raise wrong_uri(
            f"kafka:{rest}", f"kafka:@NAME/TOPIC, NAME of a [kafka.NAME], {TOPIC_EXPECTED}"
        )
    connections = api.connections_of_agent()
    if connections is not None:
        try:
            connections.get(name)
        except NoSuchConnection as error:
            raise wrong_uri(f"kafka:{rest}", str(error)) from None
    return KafkaUri(name, topic, {})


def _check(uri: KafkaUri) -> None:
    """Have librdkafka judge the properties: what it does not know is refused here and now."""
    try:
        library.check_properties(uri.properties, ClientLog(uri.shown).logger)
    except KafkaNotInstalled as error:
        raise wrong_uri(f"kafka:{uri.shown}", str(error)) from None
    except KafkaError as error:
        expected = f"properties that librdkafka takes ({error.detail})"
        raise ConfigError("to", f"kafka:{uri.shown}", expected) from None
