"""One producer of librdkafka for one trio loop: never blocks, accounts for every record.

`produce` is called in the trio thread. One thread polls; delivery callbacks, which run in it, only
append, and one wake-up of the loop takes them all. Figures behind it: docs/kafka.md, "Producer".
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import KafkaError, Overloaded
from clusternode.kafka import library
from clusternode.kafka.log import ClientLog
from clusternode.kafka.records import (
    Headers,
    Placed,
    Report,
    ReportCallback,
    header_list,
)
from clusternode.routes.runner import USER_ERRORS

if TYPE_CHECKING:
    import confluent_kafka

logger = logging.getLogger(__name__)

Deliver: TypeAlias = "Callable[[_Client], None]"

POLL: Seconds = 0.1
"""How long one poll waits. From 0.2 s on librdkafka's client would wait it out in any case."""
REPORTS_PER_TURN = 250
"""Reports handled before the rest of the agent gets its turn: about a millisecond."""
SENDS_PER_TURN = 64
"""Calls of `send` before the caller gives way: a task that only sends must not hold the loop."""
QUEUE_FULL_PAUSE: Seconds = 0.05
"""How long room is waited for where librdkafka's queue is full and nothing of ours is in it."""
LASTING = frozenset({"_AUTHENTICATION", "_SSL"})
"""Troubles that only a human ends; they explain more than the refused connections around them."""
PURGE_TIMEOUT: Seconds = 1.0
"""How long the reports of purged records may take; they are made in memory."""
JOIN_TIMEOUT: Seconds = 2.0


@attrs.define
class ProducerCounters:
    """What became of records. `accepted` is `delivered` + `failed` + `in_flight`, at any time."""

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    in_flight: int = 0
    refused: int = 0
    """Not accepted: over the high-water mark, or wrong. Their callers were told."""
    bytes: int = 0
    renewed: int = 0
    """How often a fatal error made a new client necessary."""


class _Ticket:
    """One accepted record until its report. The client calls it, in its thread."""

    __slots__ = ("client", "error", "key", "message", "report", "started", "topic", "value")

    def __init__(
        self,
        client: _Client,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        report: ReportCallback | None,
    ) -> None:
        self.client = client
        self.topic = topic
        self.key = key
        self.value = value
        self.report = report
        self.started = 0.0
        self.error: confluent_kafka.KafkaError | None = None
        self.message: confluent_kafka.Message | None = None

    def __call__(
        self, error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message
    ) -> None:
        self.error = error
        self.message = message
        self.client.reports.append(self)

    def placed(self) -> Placed:
        message = self.message
        assert message is not None
        partition, offset = message.partition(), message.offset()
        return Placed(
            self.topic,
            -1 if partition is None else partition,
            -1 if offset is None else offset,
            message.latency() or 0.0,
        )


class _Client:
    """A client of librdkafka and the thread that polls it."""

    def __init__(
        self,
        name: str,
        properties: Mapping[str, Any],
        log: ClientLog,
        deliver: Any,  # noqa: ANN401
    ) -> None:
        self.reports: deque[_Ticket] = deque()
        """Filled by the thread, emptied in the loop; deque is safe for that."""
        self.in_flight = 0
        self.drained = trio.Event()
        self.fatal: KafkaError | None = None
        self.trouble: KafkaError | None = None
        """What the connection suffers from; written by the thread, cleared by a delivery."""
        self.handle = library.new_producer(properties, self._failed, log.logger)
        self._log = log
        self._deliver = deliver
        self._token = trio.lowlevel.current_trio_token()
        self._stop = False
        self.is_scheduled = False
        self.thread = threading.Thread(target=self._poll, name=f"kafka-{name}", daemon=True)
        self.thread.start()

    def _failed(self, error: KafkaError) -> None:
        if error.fatal:
            self.fatal = error
        if self.trouble is None or error.name in LASTING:
            self.trouble = error
        self._log.error(error)

    def _poll(self) -> None:
        poll, reports = self.handle.poll, self.reports
        while not self._stop:
            poll(POLL)
            if reports or self.fatal is not None:
                self.schedule()

    def schedule(self) -> None:
        """Have the loop take the reports; from either thread."""
        if self.is_scheduled:
            return
        self.is_scheduled = True
        try:
            self._token.run_sync_soon(self._deliver, self)
        except trio.RunFinishedError:  # the loop ended without closing us
            self._stop = True

    def stop(self) -> None:
        self._stop = True

    async def join(self) -> None:
        await trio.to_thread.run_sync(partial(self.thread.join, JOIN_TIMEOUT))


def _explained(error: KafkaError, trouble: KafkaError | None) -> KafkaError:
    """Say with a time-out why nobody answered."""
    if error.name != "_MSG_TIMED_OUT" or trouble is None:
        return error
    return KafkaError(
        error.name,
        f"{error.detail}; {trouble}",
        retriable=trouble.name not in LASTING,
        definite=error.definite,
    )


class Producer:
    """Publishes records; made by `KafkaConnections.producer`, closed by it.

    All calls in the thread of the loop that it was made in.
    """

    def __init__(
        self,
        name: str,
        properties: Mapping[str, Any],
        *,
        in_flight_max: int,
        flush_timeout: Seconds,
        log: ClientLog | None = None,
    ) -> None:
        self.name = name
        self.counters = ProducerCounters()
        self.last_error: KafkaError | None = None
        self._properties = dict(properties)
        self._in_flight_max = in_flight_max
        self._flush_timeout = flush_timeout
        self._log = log or ClientLog(name)
        self._room = trio.Event()
        self._idle = trio.Event()
        self._sends = 0
        self._is_closed = False
        self._client: _Client = self._new_client()

    def _new_client(self) -> _Client:
        return _Client(self.name, self._properties, self._log, self._take_reports)

    @property
    def log(self) -> ClientLog:
        return self._log

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def has_room(self) -> bool:
        return self.counters.in_flight < self._in_flight_max

    # --- publishing -----------------------------------------------------------------------------

    def publish_soon(
        self,
        topic: str,
        value: bytes | str | None,
        *,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        report: ReportCallback | None = None,
    ) -> None:
        """Hand a record over and return at once; `report` gets its one report, in the loop.

        Raises:
            Overloaded: `in_flight_max` records are without a report; nothing was taken.
            KafkaError: The record is wrong, too large for instance; nothing was taken.
        """
        counters = self.counters
        if self._is_closed:
            counters.refused += 1
            raise KafkaError("_DESTROY", f"the producer of {self.name} is closed")
        if counters.in_flight >= self._in_flight_max:
            counters.refused += 1
            raise Overloaded(
                f"kafka {self.name}: {counters.in_flight} records in flight, at most"
                f" {self._in_flight_max}"
            )
        if value.__class__ is str:
            value = value.encode()
        if key.__class__ is str:
            key = key.encode()
        client = self._client
        if client.fatal is not None:
            client = self._renew()
        ticket = _Ticket(client, topic, key, value, report)  # type: ignore[arg-type]  # bytes now
        options: dict[str, Any] = {}
        if headers:
            options["headers"] = header_list(headers)
        if partition is not None:
            options["partition"] = partition
        if timestamp_ms is not None:
            options["timestamp"] = timestamp_ms
        try:
            client.handle.produce(topic, value, key, on_delivery=ticket, **options)
        except BufferError:
            counters.refused += 1
            raise Overloaded(f"kafka {self.name}: the client's queue is full") from None
        except library.errors() as error:
            counters.refused += 1
            raise library.error_from(error) from None
        counters.accepted += 1
        counters.in_flight += 1
        client.in_flight += 1
        counters.bytes += len(value) if value is not None else 0

    async def send(
        self,
        topic: str,
        value: bytes | str | None,
        *,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        report: ReportCallback | None = None,
    ) -> None:
        """Hand a record over as soon as there is room; `report` gets its one report.

        Raises:
            KafkaError: As `publish_soon`.
        """
        self._sends += 1
        if self._sends >= SENDS_PER_TURN:
            self._sends = 0
            await trio.lowlevel.checkpoint()
        while True:
            if not self.has_room:
                await self.wait_for_room()
            try:
                self.publish_soon(
                    topic,
                    value,
                    key=key,
                    headers=headers,
                    partition=partition,
                    timestamp_ms=timestamp_ms,
                    report=report,
                )
            except Overloaded:  # librdkafka's own queue, smaller than ours
                self.counters.refused -= 1
                with trio.move_on_after(QUEUE_FULL_PAUSE):
                    await self._wait()
            else:
                return

    async def publish(
        self,
        topic: str,
        value: bytes | str | None,
        *,
        key: bytes | str | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Placed:
        """Publish a record and wait until the broker has it.

        Cancelling only gives the waiting up: the record may be written all the same.

        Raises:
            KafkaError: It was not, or may not have been (`definite`); `retriable` says whether
                trying again may help.
        """
        done = trio.Event()
        reports: list[Report] = []

        def take(report: Report) -> None:
            reports.append(report)
            done.set()

        await self.send(
            topic,
            value,
            key=key,
            headers=headers,
            partition=partition,
            timestamp_ms=timestamp_ms,
            report=take,
        )
        await done.wait()
        report = reports[0]
        if report.placed is None:
            assert report.error is not None
            raise report.error
        return report.placed

    async def wait_for_room(self) -> None:
        """Wait until fewer than `in_flight_max` records are without a report."""
        while not self.has_room and not self._is_closed:
            await self._wait()

    async def _wait(self) -> None:
        if self._room.is_set():
            self._room = trio.Event()
        await self._room.wait()

    async def wait_for_reports(self) -> None:
        """Wait until every accepted record has its report."""
        while self.counters.in_flight:
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    # --- reports --------------------------------------------------------------------------------

    def _take_reports(self, client: _Client) -> None:
        """Take what the thread has collected. Runs in the loop."""
        reports = client.reports
        count = min(len(reports), REPORTS_PER_TURN)
        client.in_flight -= count
        for _ in range(count):
            self._settle(reports.popleft())
        self._wake()
        if not client.in_flight:
            client.drained.set()
        client.is_scheduled = False
        if reports:
            client.schedule()
        elif client.fatal is not None and client is self._client and not self._is_closed:
            self._renew()

    def _settle(self, ticket: _Ticket) -> None:
        counters = self.counters
        counters.in_flight -= 1
        error = ticket.error
        if error is None:
            counters.delivered += 1
            ticket.client.trouble = None
        else:
            counters.failed += 1
            self.last_error = _explained(library.error_of(error), ticket.client.trouble)
            self._log.undelivered(self.last_error, ticket.topic)
        if ticket.report is None:
            return
        report = Report(
            self.name,
            ticket.topic,
            ticket.key,
            ticket.value,
            ticket.placed() if error is None else None,
            None if error is None else self.last_error,
        )
        try:
            ticket.report(report)
        except USER_ERRORS:
            logger.exception("kafka %s: a report callback raised", self.name)

    def _wake(self) -> None:
        if self.has_room:
            self._room.set()
        if not self.counters.in_flight:
            self._idle.set()

    # --- ends -----------------------------------------------------------------------------------

    def _renew(self) -> _Client:
        """Replace a client with a fatal error; what it holds is reported as failed by its purge."""
        old = self._client
        assert old.fatal is not None
        self._client = self._new_client()
        self.last_error = old.fatal
        self.counters.renewed += 1
        logger.error("kafka %s: %s; a new client takes over", self.name, old.fatal)
        trio.lowlevel.spawn_system_task(self._retire, old)
        return self._client

    async def _retire(self, client: _Client) -> None:
        """Purge a client, wait for its reports, end its thread."""
        client.handle.purge(blocking=False)
        if client.in_flight:
            client.drained = trio.Event()
            with trio.move_on_after(PURGE_TIMEOUT):
                await client.drained.wait()
        client.stop()
        await client.join()
        self._take_rest(client)

    def _take_rest(self, client: _Client) -> None:
        while client.reports:
            client.in_flight -= 1
            self._settle(client.reports.popleft())
        if client.in_flight:  # librdkafka owes a report for each; this would be its bug
            logger.error("kafka %s: %d records without a report", self.name, client.in_flight)
        self._wake()

    async def aclose(self) -> None:
        """Wait at most `flush_timeout` for reports, then fail what is left. Every record has one.

        Takes at most `flush_timeout` and about two seconds; not cancelled by anybody.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._room.set()
        client = self._client
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self._flush_timeout):
                await self.wait_for_reports()
            left = self.counters.in_flight
            if left:
                logger.warning(
                    "kafka %s: %d records were not delivered within %g s of the stop",
                    self.name,
                    left,
                    self._flush_timeout,
                )
                client.handle.purge(blocking=False)
                with trio.move_on_after(PURGE_TIMEOUT):
                    await self.wait_for_reports()
            client.stop()
            await client.join()
            self._take_rest(client)
