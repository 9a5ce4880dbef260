"""The thread that owns one consumer of librdkafka: polls, commits, pauses, answers rebalances.

A consumer blocks whoever calls it while another thread is inside, so only this thread touches it.
Towards the loop it only puts calls into its queue; from the loop it takes counters, offsets and
commands that are safe to share under the GIL.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import KafkaError
from clusternode.kafka import library
from clusternode.kafka.log import ClientLog, clock
from clusternode.kafka.records import Record

if TYPE_CHECKING:
    import confluent_kafka

logger = logging.getLogger(__name__)

TopicPartition: TypeAlias = tuple[str, int]

POLL: Seconds = 0.1
"""How long one poll waits; commands and the end wait for it at most."""
BATCH_MAX = 500
"""Records of one hand-over to the loop (oslo.messaging: max_poll_records)."""
FULL_PATIENCE: Seconds = 1.0
"""How long a full queue may stay full before fetching is paused at the client, which throws away
what it has fetched in advance."""
FULL_POLL: Seconds = 0.02
COMMIT_INTERVAL: Seconds = 0.2
"""At most so much work is repeated after a crash in `after` mode, and so often is committed."""
REVOKE_PATIENCE: Seconds = 1.0
"""How long a rebalance waits for the handlers of a revoked partition to end."""
COMMIT_RETRY_MIN: Seconds = 0.05
COMMIT_RETRY_MAX: Seconds = 1.0
IN_REBALANCE = "REBALANCE_IN_PROGRESS"
"""The partition may still be ours: the commit at its revocation tries again."""
REDELIVERED = frozenset(
    {
        IN_REBALANCE,
        "ILLEGAL_GENERATION",
        "UNKNOWN_MEMBER_ID",
        "FENCED_INSTANCE_ID",
        "STALE_MEMBER_EPOCH",
        "_STATE",
        "_ASSIGNMENT_LOST",
    }
)
"""Commits that fail with these: the partition is somebody else's now, who gets the records."""


class Commit(enum.Enum):
    """When the offset of a record is committed."""

    BEFORE = "before"
    """Before it is handled: at most once."""
    AFTER = "after"
    """After it was handled: at least once."""
    AUTO = "auto"
    """By the client, on an interval, whatever becomes of it."""


class Listener(Protocol):
    """Who takes what the thread finds. Called in the loop, in order."""

    def arrived(self, records: Sequence[Record]) -> None: ...
    def assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def revoked(self, partitions: Sequence[TopicPartition], ended: Callable[[], None]) -> None:
        """Stop handling these; call `ended` when their last handler has ended."""
        ...


@attrs.define
class ReaderCounters:
    """Written by the thread."""

    given: int = 0
    """Records that went to the loop."""
    committed: int = 0
    """Commits that the broker has taken."""
    commit_failures: int = 0
    discarded: int = 0
    """Records read but not handled, because a rebalance came first; their new owner gets them."""
    rebalances: int = 0
    pauses: int = 0
    """How often fetching stopped because handlers were slower."""


class Reader:
    """One consumer and its thread."""

    def __init__(
        self,
        name: str,
        properties: Mapping[str, Any],
        topics: Sequence[str],
        commit: Commit,
        queue_max: int,
        listener: Listener,
        log: ClientLog,
    ) -> None:
        self.counters = ReaderCounters()
        self.last_error: KafkaError | None = None
        self.done = 0
        """Records the loop is finished with, one way or another. Written by the loop."""
        self._offsets: dict[TopicPartition, int] = {}  # to be committed; written by both
        self._commands: deque[tuple[str, TopicPartition, int]] = deque()
        self._paused: dict[TopicPartition, None] = {}  # one by one, by command
        self._owned: dict[TopicPartition, None] = {}
        self._link = (listener, trio.lowlevel.current_trio_token(), log)
        self._limits = (commit, queue_max)
        self._wake = threading.Event()
        self._stop = False
        self._consumer = _Consumer(name, properties, self, topics)

    def start(self) -> None:
        """Begin to read.

        Raises:
            KafkaNotInstalled, KafkaError: The consumer cannot be made.
        """
        self._consumer.open()
        threading.Thread(target=self._run, name=f"kafka-{self._consumer.name}", daemon=True).start()

    # --- called in the loop ---------------------------------------------------------------------

    def handled(self, partition: TopicPartition, offset: int, count: int) -> None:
        """Say that `count` records up to `offset` of a partition were handled."""
        self.done += count
        if self._limits[0] is Commit.AFTER:
            self._offsets[partition] = offset + 1
        if self._is_waiting:
            self._wake.set()

    def dropped(self, count: int) -> None:
        """Say that `count` records will not be handled here."""
        self.done += count
        self._wake.set()

    def command(self, word: str, partition: TopicPartition, offset: int = -1) -> None:
        """Have one partition paused, resumed, or read from `offset` again (`seek`)."""
        self._commands.append((word, partition, offset))

    def stop(self) -> None:
        self._stop = True
        self._wake.set()

    async def join(self, timeout: Seconds) -> bool:
        """Wait for the end of the thread; False: it takes longer (the broker is down)."""
        ended = self._consumer.ended
        return await trio.to_thread.run_sync(ended.wait, timeout, abandon_on_cancel=True)

    # --- the thread -----------------------------------------------------------------------------

    _is_waiting = False

    @property
    def log(self) -> ClientLog:
        return self._link[2]

    @property
    def outstanding(self) -> int:
        return self.counters.given - self.done

    def _run(self) -> None:
        consumer = self._consumer
        committed_at = clock()
        try:
            consumer.subscribe()
            while not self._stop:
                self._obey(consumer)
                if clock() - committed_at >= COMMIT_INTERVAL:
                    self.commit_handled(consumer, waits=False)
                    committed_at = clock()
                if self.outstanding >= self._limits[1]:
                    self._wait_for_room(consumer)
                    continue
                records = consumer.read()
                if records and self._may_give(consumer, records):
                    self._give(records)
        except library.errors() as error:
            self.fail(library.error_from(error))
        except trio.RunFinishedError:
            pass  # the loop ended without stopping us
        finally:
            consumer.close()

    def _give(self, records: Sequence[Record]) -> None:
        self.counters.given += len(records)
        self.call(self._link[0].arrived, records)

    def call(self, function: Callable[..., None], *args: object) -> None:
        """Call in the loop.

        Raises:
            trio.RunFinishedError: There is none any more.
        """
        self._link[1].run_sync_soon(function, *args)

    def fail(self, error: KafkaError) -> None:
        """Keep and log an error of the consumer."""
        self.last_error = error
        self.log.error(error)

    def _obey(self, consumer: _Consumer) -> None:
        while self._commands:
            word, partition, offset = self._commands.popleft()
            if word == "seek":
                consumer.seek({partition: offset})
            elif word == "pause":
                self._paused[partition] = None
                consumer.pause([partition])
            else:
                self._paused.pop(partition, None)
                consumer.resume([partition])

    def _wait_for_room(self, consumer: _Consumer) -> None:
        """Wait until handlers have caught up to one half; the group must not notice."""
        low = self._limits[1] // 2
        since, is_paused = clock(), False
        self._is_waiting = True
        while self.outstanding > low and not self._stop:
            self._wake.clear()
            if self.outstanding <= low:
                break
            self._wake.wait(FULL_POLL)
            if not is_paused and clock() - since > FULL_PATIENCE:
                is_paused = True
                self.counters.pauses += 1
                consumer.pause(consumer.assignment())
            if is_paused:
                self._obey(consumer)
                self.commit_handled(consumer, waits=False)
                late = consumer.read(0.0)
                if late and self._may_give(consumer, late):
                    self._give(late)  # polled before the pause took hold: a handful
        self._is_waiting = False
        if is_paused:
            own = [each for each in consumer.assignment() if each not in self._paused]
            consumer.resume(own)

    def _may_give(self, consumer: _Consumer, records: Sequence[Record]) -> bool:
        """Commit records that are about to be handled, in `before` mode. False: not ours now."""
        if self._limits[0] is not Commit.BEFORE:
            return True
        ends = {(each.topic, each.partition): each.offset + 1 for each in records}
        pause = COMMIT_RETRY_MIN
        while not self._stop:
            error = consumer.commit(ends, waits=True)
            if error is None:
                self.counters.committed += 1
                return True
            self.counters.commit_failures += 1
            self.fail(error)
            if error.name in REDELIVERED or not error.retriable:
                break
            self._wake.clear()
            self._wake.wait(pause)
            pause = min(pause * 2, COMMIT_RETRY_MAX)
        self.counters.discarded += len(records)
        first: dict[TopicPartition, int] = {}
        for each in records:
            first.setdefault((each.topic, each.partition), each.offset)
        consumer.seek(first)
        return False

    def commit_handled(
        self,
        consumer: _Consumer,
        *,
        waits: bool,
        only: Sequence[TopicPartition] | None = None,
    ) -> None:
        """Commit what was handled since the last time."""
        wanted = tuple(self._offsets) if only is None else only
        found = {key: self._offsets.pop(key, None) for key in wanted}
        # A handler that outlived the patience of a rebalance must not commit for the new owner.
        ends = {key: end for key, end in found.items() if end is not None and key in self._owned}
        if not ends:
            return
        error = consumer.commit(ends, waits=waits)
        if error is not None:
            self.commit_failed(error, ends)
        elif waits:
            self.counters.committed += 1

    def commit_failed(self, error: KafkaError, ends: Mapping[TopicPartition, int]) -> None:
        """Keep offsets for the next commit, unless the partitions are gone."""
        self.counters.commit_failures += 1
        self.log.tell(f"commit {error.name}", f"commit: {error}")
        if error.name not in REDELIVERED or error.name == IN_REBALANCE:
            for key, end in ends.items():
                if self._offsets.get(key, -1) < end:
                    self._offsets[key] = end

    def partitions_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.counters.rebalances += 1
        for each in partitions:
            self._paused.pop(each, None)
            self._owned[each] = None
        self.call(self._link[0].assigned, partitions)

    def partitions_revoked(
        self, consumer: _Consumer, partitions: Sequence[TopicPartition], *, is_lost: bool
    ) -> None:
        """Let handlers end and commit what they did, before somebody else begins."""
        ended = threading.Event()
        self.call(self._link[0].revoked, partitions, ended.set)
        ended.wait(REVOKE_PATIENCE)
        if is_lost:
            for each in partitions:
                self._offsets.pop(each, None)
        else:
            self.commit_handled(consumer, waits=True, only=partitions)
        for each in partitions:
            self._paused.pop(each, None)
            self._owned.pop(each, None)


class _Consumer:
    """The client, as the thread uses it: values in and out, errors as ours."""

    def __init__(
        self, name: str, properties: Mapping[str, Any], reader: Reader, topics: Sequence[str]
    ) -> None:
        self.name = name
        self.ended = threading.Event()
        self._properties = properties
        self._reader = reader
        self._topics = list(topics)
        self._client: confluent_kafka.Consumer | None = None

    def open(self) -> None:
        reader = self._reader
        self._client = library.new_consumer(
            self._properties, reader.fail, self._committed, reader.log.logger
        )

    @property
    def client(self) -> confluent_kafka.Consumer:
        assert self._client is not None, "open() comes first"
        return self._client

    def subscribe(self) -> None:
        self.client.subscribe(
            self._topics,
            on_assign=lambda _, parts: self._reader.partitions_assigned(_pairs(parts)),
            on_revoke=lambda _, parts: self._revoked(parts, is_lost=False),
            on_lost=lambda _, parts: self._revoked(parts, is_lost=True),
        )

    def _revoked(
        self, partitions: Sequence[confluent_kafka.TopicPartition], *, is_lost: bool
    ) -> None:
        self._reader.partitions_revoked(self, _pairs(partitions), is_lost=is_lost)

    def _committed(
        self, error: KafkaError | None, partitions: Sequence[confluent_kafka.TopicPartition]
    ) -> None:
        ends = {(each.topic, each.partition): each.offset for each in partitions}
        if error is None:
            bad = next((each.error for each in partitions if each.error is not None), None)
            error = None if bad is None else library.error_of(bad)
        if error is None:
            self._reader.counters.committed += 1
        elif error.name != "_NO_OFFSET":  # nothing new to commit
            self._reader.commit_failed(error, {key: end for key, end in ends.items() if end >= 0})

    def read(self, timeout: Seconds = POLL) -> list[Record]:
        """Return what is there: soon after the first record, and with it those behind it."""
        first = self.client.poll(timeout)
        if first is None:
            return []
        records = []
        for message in [first, *self.client.consume(BATCH_MAX - 1, 0)]:
            error = message.error()
            if error is not None:
                self._reader.fail(library.error_of(error))
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and partition is not None and offset is not None
            _, timestamp = message.timestamp()
            headers: Any = message.headers() or ()
            records.append(
                Record(
                    topic,
                    partition,
                    offset,
                    message.key(),
                    message.value(),
                    headers,
                    max(timestamp, 0),
                )
            )
        return records

    def commit(self, ends: Mapping[TopicPartition, int], *, waits: bool) -> KafkaError | None:
        offsets = [library.topic_partition(*key, end) for key, end in ends.items()]
        try:
            if not waits:
                self.client.commit(offsets=offsets, asynchronous=True)
                return None
            results = self.client.commit(offsets=offsets, asynchronous=False)
        except library.errors() as error:
            return library.error_from(error)
        for each in results or ():
            if each.error is not None:
                return library.error_of(each.error)
        return None

    def assignment(self) -> list[TopicPartition]:
        return _pairs(self.client.assignment())

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._tolerant(self.client.pause, [library.topic_partition(*each) for each in partitions])

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._tolerant(self.client.resume, [library.topic_partition(*each) for each in partitions])

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        for key, offset in offsets.items():
            self._tolerant(self.client.seek, library.topic_partition(*key, offset))

    def _tolerant(self, call: Callable[[Any], None], argument: object) -> None:
        """Call for partitions that may have been revoked by now."""
        try:
            call(argument)
        except library.errors() as error:
            logger.debug("kafka %s: %s", self.name, library.error_from(error))

    def close(self) -> None:
        try:
            if self._client is not None:
                self._client.close()
        except library.errors() as error:
            self._reader.fail(library.error_from(error))
        except (trio.RunFinishedError, RuntimeError):
            pass  # the loop is gone, or the client was closed before
        finally:
            self.ended.set()


def _pairs(partitions: Sequence[confluent_kafka.TopicPartition]) -> list[TopicPartition]:
    return [(each.topic, each.partition) for each in partitions]
