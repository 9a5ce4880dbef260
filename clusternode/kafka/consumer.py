"""A consumer in the loop: one ordered worker per partition, retries, dead letters, rebalances."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import ClusternodeError, KafkaError
from clusternode.kafka.connections import Connection
from clusternode.kafka.reader import Commit, Reader, TopicPartition
from clusternode.kafka.records import Record

logger = logging.getLogger(__name__)

QUEUE_MAX = 10_000
"""Records read and not handled yet; beyond it reading pauses (a channel's default `queue_size`)."""
HAND_OVER_MAX = 100
"""Records given to the handlers at a time: so soon a revoked partition is let go at the latest."""
STOP_PATIENCE: Seconds = 5.0
"""How long a stop waits for the handlers that run."""
JOIN_TIMEOUT: Seconds = 6.0
"""How long leaving the group may take; the mock cluster takes 5 s in the middle of a rebalance."""
PARTITIONS_SHOWN_MAX = 1000


@attrs.frozen
class Handled:
    """How a batch ended: so many of its first records are done; then `error`, if any."""

    count: int
    error: str = ""


class Handle(Protocol):
    """Handles records in order, until one fails, or `goes_on` says no. Never raises."""

    def __call__(
        self, records: Sequence[Record], goes_on: Callable[[], bool]
    ) -> Awaitable[Handled]: ...


@attrs.frozen(kw_only=True)
class ConsumerSettings:
    """What a route, bridge or listener wants to read, and how."""

    name: str
    topics: tuple[str, ...]
    group: str
    commit: Commit = Commit.AFTER
    retries: int = 5
    """How often a record that failed is handled again, in `after` mode."""
    retry_delay: Seconds = 0.1
    """Before the first retry; doubled each time."""
    retry_delay_max: Seconds = 10.0
    dead_letter: str = ""
    """The topic for records that failed every time; empty: the partition stops."""
    queue_max: int = QUEUE_MAX


@attrs.define
class ConsumerCounters:
    """What became of records."""

    handled: int = 0
    failed: int = 0
    """Attempts that failed."""
    skipped: int = 0
    """Records that failed and were left behind: `before` and `auto` mode."""
    dead_lettered: int = 0
    stopped: int = 0
    """How often a partition stopped."""


@attrs.define(eq=False)
class Partition:
    """One partition that is ours, from its assignment to its revocation."""

    key: TopicPartition
    queue: deque[Record] = attrs.Factory(deque)
    arrival: trio.Event = attrs.Factory(trio.Event)
    state: str = "ok"
    """`ok`, `retrying` or `stopped`."""
    detail: str = ""
    attempts: int = 0
    """Failed attempts for the first record."""
    next_offset: int = -1
    """Behind the last handled one; -1: none yet."""
    stopped_at: int = -1
    """The record at which it stands still."""
    is_busy: bool = False
    is_ended: bool = False
    on_end: Callable[[], None] | None = None
    scope: trio.CancelScope = attrs.Factory(lambda: trio.CancelScope(shield=True))
    """Around its worker; cancelled where it sleeps, or when it takes too long to stop."""

    def goes_on(self) -> bool:
        return not self.is_ended


class Consumer:
    """Reads topics of a connection in a group and has each record handled."""

    def __init__(
        self,
        connection: Connection,
        settings: ConsumerSettings,
        handle: Handle,
        notify: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.connection = connection
        self.settings = settings
        self.counters = ConsumerCounters()
        self.partitions: dict[TopicPartition, Partition] = {}
        self.reader: Reader | None = None
        self._handle = handle
        self._notify = notify
        self._new: deque[Partition] = deque()
        self._changed = trio.Event()
        self._error = ""

    @property
    def is_subscribed(self) -> bool:
        return self.reader is not None

    def replace_handle(self, handle: Handle) -> None:
        """Use another handler from the next hand-over on; what stood still is tried again."""
        self._handle = handle
        for partition in self.partitions.values():
            if partition.state == "stopped" and self.reader is not None:
                partition.state, partition.detail, partition.attempts = "ok", "", 0
                self.reader.command("seek", partition.key, partition.stopped_at)
                self.reader.command("resume", partition.key)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read and handle until cancelled; then let handlers end, commit, and leave the group."""
        self._error = ""
        settings, own = self.settings, self.connection.settings
        properties: dict[str, Any] = own.consumer_properties(settings.group)
        properties["enable.auto.commit"] = settings.commit is Commit.AUTO
        try:
            reader = Reader(
                settings.name,
                properties,
                settings.topics,
                settings.commit,
                settings.queue_max,
                self,
                self.connection.log,
            )
            reader.start()
        except ClusternodeError as error:
            self._error = str(error)
            logger.error("kafka consumer %s: %s", settings.name, error)  # noqa: TRY400  # expected
            task_status.started()
            return
        self.reader = reader
        task_status.started()
        try:
            await self._work_on_partitions()
        finally:
            with trio.CancelScope(shield=True):
                reader.stop()
                if not await reader.join(JOIN_TIMEOUT):
                    logger.warning("kafka consumer %s: leaving its group goes on", settings.name)
            self.reader = None

    async def _work_on_partitions(self) -> None:
        """Keep one worker per partition, until cancelled and every handler has ended."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    while self._new:
                        nursery.start_soon(self._work, self._new.popleft())
                    await self._next_change()
            finally:
                for partition in self.partitions.values():
                    self._end(partition)
                with trio.move_on_after(STOP_PATIENCE, shield=True):
                    while any(each.is_busy for each in self.partitions.values()):
                        self._changed = trio.Event()
                        await self._changed.wait()
                for partition in self.partitions.values():
                    partition.scope.cancel()

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    # --- called by the reader, in the loop ------------------------------------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        for key in partitions:
            partition = self.partitions[key] = Partition(key)
            self._new.append(partition)
        self._changed.set()

    def revoked(self, partitions: Sequence[TopicPartition], ended: Callable[[], None]) -> None:
        waiting = itertools.count(1)
        own = [self.partitions.pop(key) for key in partitions if key in self.partitions]
        busy = [each for each in own if each.is_busy]

        def one_ended() -> None:
            if next(waiting) >= len(busy):
                ended()

        for each in own:
            self._end(each)
        for each in busy:
            each.on_end = one_ended
        if not busy:
            ended()

    def arrived(self, records: Sequence[Record]) -> None:
        reader = self.reader
        if reader is None:  # we have left; the offsets were not committed
            return
        for record in records:
            partition = self.partitions.get((record.topic, record.partition))
            if partition is None or partition.is_ended or partition.state == "stopped":
                reader.dropped(1)
                continue
            partition.queue.append(record)
            if not partition.arrival.is_set():
                partition.arrival.set()

    def _end(self, partition: Partition) -> None:
        """Handle no more records of a partition; the one that is being handled goes on."""
        partition.is_ended = True
        if self.reader is not None:
            self.reader.dropped(0 if partition.is_busy else len(partition.queue))
        if not partition.is_busy:
            partition.queue.clear()
            partition.scope.cancel()
        partition.arrival.set()

    # --- one partition --------------------------------------------------------------------------

    async def _work(self, partition: Partition) -> None:
        with partition.scope:
            while partition.goes_on():
                if not partition.queue:
                    partition.arrival = trio.Event()
                    await partition.arrival.wait()
                    continue
                partition.is_busy = True
                delay = await self._handle_some(partition)
                partition.is_busy = False
                if delay is not None and partition.goes_on():
                    await trio.sleep(delay)
        self._left(partition)

    def _left(self, partition: Partition) -> None:
        """A partition's worker is done."""
        partition.is_busy = False
        if self.reader is not None and partition.queue:
            self.reader.dropped(len(partition.queue))
        partition.queue.clear()
        if partition.on_end is not None:
            partition.on_end()
        self._changed.set()

    async def _handle_some(self, partition: Partition) -> Seconds | None:
        """Handle the first records; return how long to wait before the next."""
        batch = list(itertools.islice(partition.queue, HAND_OVER_MAX))
        result = await self._handle(batch, partition.goes_on)
        if result.count:
            self._finish(partition, batch[: result.count])
            self.counters.handled += result.count
        if not result.error:
            return None
        self.counters.failed += 1
        partition.attempts += 1
        return await self._failed(partition, batch[result.count], result.error)

    def _finish(self, partition: Partition, records: Sequence[Record]) -> None:
        """Take the first records of the queue as done; their offset may be committed."""
        for _ in records:
            partition.queue.popleft()
        partition.next_offset = records[-1].offset + 1
        partition.attempts = 0
        if partition.state == "retrying":
            partition.state, partition.detail = "ok", ""
            self._command("resume", partition)
        if self.reader is not None:
            self.reader.handled(partition.key, records[-1].offset, len(records))

    def _command(self, word: str, partition: Partition) -> None:
        if self.reader is not None:
            self.reader.command(word, partition.key)

    async def _failed(self, partition: Partition, record: Record, error: str) -> Seconds | None:
        """Decide what becomes of a record whose handler failed."""
        settings = self.settings
        if settings.commit is not Commit.AFTER:
            self.counters.skipped += 1
            self._finish(partition, [record])
            return None
        if partition.state == "ok":
            partition.state = "retrying"
            self._command("pause", partition)
        partition.detail = f"offset {record.offset}: {error}"
        if partition.attempts <= settings.retries:
            doubled: float = settings.retry_delay * 2.0 ** min(partition.attempts - 1, 32)
            return min(doubled, settings.retry_delay_max)
        if not settings.dead_letter:
            self._stop_partition(partition, record, error)
            return None
        try:
            await self._bury(partition, record, error)
        except ClusternodeError as failure:
            partition.detail = f"dead letter: {failure}"
            self.connection.log.tell("dead letter", f"{settings.dead_letter}: {failure}")
            return settings.retry_delay_max
        self.counters.dead_lettered += 1
        self._finish(partition, [record])
        return None

    async def _bury(self, partition: Partition, record: Record, error: str) -> None:
        """Put a record into the dead-letter topic, with where it came from and why.

        Raises:
            KafkaError, KafkaNotInstalled: It is not there.
        """
        where = {
            "clusternode.topic": record.topic,
            "clusternode.partition": str(record.partition),
            "clusternode.offset": str(record.offset),
            "clusternode.timestamp_ms": str(record.timestamp_ms),
            "clusternode.group": self.settings.group,
            "clusternode.attempts": str(partition.attempts),
            "clusternode.error": error[:1000],
        }
        await self.connection.producer().publish(
            self.settings.dead_letter,
            record.value,
            key=record.key,
            headers=[*record.headers, *where.items()],
        )
        logger.warning(
            "kafka consumer %s: %s/%d offset %d went to %s after %d attempts: %s",
            self.settings.name,
            record.topic,
            record.partition,
            record.offset,
            self.settings.dead_letter,
            partition.attempts,
            error,
        )

    def _stop_partition(self, partition: Partition, record: Record, error: str) -> None:
        """Handle nothing more of a partition until it is assigned anew, and say so."""
        partition.state, partition.stopped_at = "stopped", record.offset
        self.counters.stopped += 1
        if self.reader is not None:
            self.reader.dropped(len(partition.queue))
        partition.queue.clear()
        logger.error(
            "kafka consumer %s: %s/%d stands still at offset %d after %d attempts: %s; mend the"
            " handler and reload, or set dead_letter",
            self.settings.name,
            *partition.key,
            record.offset,
            partition.attempts,
            error,
        )
        if self._notify is not None:
            self._notify(
                PARTITION_STOPPED,
                {
                    "consumer": self.settings.name,
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                    "attempts": partition.attempts,
                    "error": error,
                },
            )

    # --- what operators see ---------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return state and counters as JSON."""
        settings, reader = self.settings, self.reader
        last_error: KafkaError | None = None if reader is None else reader.last_error
        return {
            "name": settings.name,
            "connection": self.connection.name,
            "brokers": self.connection.settings.brokers,
            "group_id": settings.group,
            "topics": list(settings.topics),
            "commit": settings.commit.value,
            "subscribed": self.is_subscribed,
            "auto_offset_reset": self.connection.settings.auto_offset_reset,
            "enable_auto_commit": settings.commit is Commit.AUTO,
            "auto_commit_interval_ms": self.connection.settings.auto_commit_interval_ms,
            "session_timeout_ms": self.connection.settings.session_timeout_ms,
            "max_poll_interval_ms": self.connection.settings.max_poll_interval_ms,
            "dead_letter": settings.dead_letter,
            "queued": 0 if reader is None else reader.outstanding,
            "read": 0 if reader is None else reader.counters.given,
            **attrs.asdict(self.counters),
            "commits": 0 if reader is None else reader.counters.committed,
            "commit_failures": 0 if reader is None else reader.counters.commit_failures,
            "discarded": 0 if reader is None else reader.counters.discarded,
            "rebalances": 0 if reader is None else reader.counters.rebalances,
            "pauses": 0 if reader is None else reader.counters.pauses,
            "last_error": self._error if last_error is None else str(last_error),
            "partitions": [
                {
                    "topic": each.key[0],
                    "partition": each.key[1],
                    "next_offset": each.next_offset,
                    "queued": len(each.queue),
                    "state": each.state,
                    "detail": each.detail,
                }
                for each in itertools.islice(self.partitions.values(), PARTITIONS_SHOWN_MAX)
            ],
        }


PARTITION_STOPPED = "E_KAFKA_PARTITION_STOPPED"
"""Raised when a partition stands still, so that an event route or subscriber can tell somebody."""
