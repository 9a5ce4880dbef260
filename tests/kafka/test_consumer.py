"""Consumers: commit modes, retries, dead letters, pauses and rebalances, on the mock cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import confluent_kafka
import pytest
import trio

from clusternode.kafka.connections import KafkaConnections
from clusternode.kafka.consumer import Consumer, ConsumerSettings, Handled
from clusternode.kafka.reader import Commit
from tests.kafka.mock_cluster import OFFSET_COMMIT, read_all

PATIENCE = 30.0
UNKNOWN_MEMBER_ID = 25
COORDINATOR_LOAD_IN_PROGRESS = 14
TOPIC = "calls"


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # what threads of the library do has no event
            await trio.sleep(0.01)


class Recorder:
    """A handler that keeps what it saw; fails for values in `bad` until they are taken out."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []
        self.bad: dict[str, str] = {}
        self.may_go = trio.Event()
        self.may_go.set()

    @property
    def values(self) -> list[str]:
        return [value for _, value in self.seen]

    async def __call__(self, records, goes_on):
        count = 0
        for record in records:
            if count and not goes_on():
                break
            await self.may_go.wait()
            text = (record.value or b"").decode()
            self.seen.append((record.partition, text))
            if text in self.bad:
                return Handled(count, self.bad[text])
            count += 1
        return Handled(count)


def committed(kafka, group: str, topic: str = TOPIC, partitions: int = 1) -> list[int]:
    reader = confluent_kafka.Consumer({"bootstrap.servers": kafka.brokers, "group.id": group})
    wanted = [confluent_kafka.TopicPartition(topic, number) for number in range(partitions)]
    found = [each.offset for each in reader.committed(wanted, timeout=10)]
    reader.close()
    return found


@pytest.fixture
async def world(kafka, settings):
    """Return a function that starts a consumer, and the connection that it reads from."""
    connections = KafkaConnections({"main": settings(flush_timeout=5.0)})
    connection = connections.get("main")

    @contextlib.asynccontextmanager
    async def running(handle, notify=None, **options):
        values = {"name": "main", "topics": (TOPIC,), "group": "g", **options}
        consumer = Consumer(connection, ConsumerSettings(**values), handle, notify)
        async with trio.open_nursery() as nursery:
            await nursery.start(consumer.run)
            yield consumer
            nursery.cancel_scope.cancel()

    running.connection = connection  # type: ignore[attr-defined]  # beside what it starts
    yield running
    await connections.aclose()


async def publish(world, *values: str, partition: int | None = None) -> None:
    producer = world.connection.producer()
    for value in values:
        await producer.send(TOPIC, value, partition=partition)
    await producer.wait_for_reports()


@pytest.mark.slow
async def test_records_arrive_in_order_with_everything_that_they_carry(kafka, world):
    kafka.create_topic(TOPIC)
    got = []

    async def handle(records, goes_on):
        got.extend(records)
        return Handled(len(records))

    async with world(handle):
        headers = [("a", b"1"), ("a", b"2"), ("n", None)]
        await world.connection.publish(TOPIC, "one", key="k", headers=headers)
        await world.connection.publish(TOPIC, None, key="gone")
        await eventually(lambda: len(got) == 2)

    first, second = got
    assert (first.topic, first.partition, first.offset) == (TOPIC, 0, 0)
    assert (first.key, first.value, first.header("a")) == (b"k", b"one", b"2")
    assert list(first.headers) == headers
    assert first.timestamp_ms > 0
    assert (second.key, second.value) == (b"gone", None)


@pytest.mark.slow
async def test_after_commits_what_was_handled_and_the_next_one_goes_on_there(kafka, world):
    kafka.create_topic(TOPIC)
    await publish(world, *map(str, range(100)))
    first, second = Recorder(), Recorder()

    async with world(first):
        await eventually(lambda: len(first.seen) == 100)
    assert committed(kafka, "g") == [100]
    await publish(world, "100")
    async with world(second):
        await eventually(lambda: len(second.seen) == 1)

    assert first.values == [str(number) for number in range(100)]
    assert second.values == ["100"]


@pytest.mark.slow
async def test_after_handles_a_record_again_whose_consumer_died_in_the_middle(kafka, world):
    kafka.create_topic(TOPIC)
    await publish(world, "a", "b", "c")
    first, second = Recorder(), Recorder()
    first.bad = {"b": "not now"}

    async with world(first, retries=1000):
        await eventually(lambda: first.values.count("b") >= 2)
    assert committed(kafka, "g") == [1]
    async with world(second):
        await eventually(lambda: len(second.seen) == 2)

    assert "c" not in first.values
    assert second.values == ["b", "c"]


@pytest.mark.slow
async def test_before_commits_first_and_a_failure_is_skipped_and_counted(kafka, world):
    kafka.create_topic(TOPIC)
    await publish(world, "a", "b", "c")
    recorder = Recorder()
    recorder.bad = {"b": "no"}
    recorder.may_go = trio.Event()

    async with world(recorder, commit=Commit.BEFORE) as consumer:
        await eventually(lambda: consumer.reader.counters.committed == 1)
        assert recorder.seen == []
        recorder.may_go.set()
        await eventually(lambda: len(recorder.seen) == 3)
        await eventually(lambda: consumer.counters.handled == 2)

    assert (consumer.counters.skipped, recorder.values) == (1, ["a", "b", "c"])
    assert committed(kafka, "g") == [3]


@pytest.mark.slow
async def test_before_keeps_records_whose_commit_fails_for_now(kafka, world):
    kafka.create_topic(TOPIC)
    recorder = Recorder()
    async with world(recorder, commit=Commit.BEFORE) as consumer:
        await publish(world, "first")
        await eventually(lambda: recorder.values == ["first"])
        kafka.push_errors(OFFSET_COMMIT, *[COORDINATOR_LOAD_IN_PROGRESS] * 3)

        await publish(world, "second")
        await eventually(lambda: recorder.values == ["first", "second"])

    assert consumer.counters.handled == 2
    assert committed(kafka, "g") == [2]


@pytest.mark.slow
async def test_before_gives_records_back_that_are_no_longer_ours(kafka, world):
    kafka.create_topic(TOPIC)
    recorder = Recorder()
    async with world(recorder, commit=Commit.BEFORE) as consumer:
        await publish(world, "first")
        await eventually(lambda: recorder.values == ["first"])
        reader = consumer.reader
        kafka.push_errors(OFFSET_COMMIT, UNKNOWN_MEMBER_ID)

        await publish(world, "second")
        await eventually(lambda: recorder.values == ["first", "second"])

    assert reader.counters.discarded == 1


@pytest.mark.slow
async def test_a_failing_handler_is_tried_again_and_the_order_is_kept(kafka, world):
    kafka.create_topic(TOPIC)
    await publish(world, "a", "b", "c")
    recorder = Recorder()
    recorder.bad = {"b": "busy"}

    async with world(recorder, retry_delay=0.02) as consumer:
        await eventually(lambda: recorder.values.count("b") == 3)
        recorder.bad = {}
        await eventually(lambda: "c" in recorder.values)

    assert recorder.values == ["a", "b", "b", "b", "b", "c"]
    assert consumer.counters.failed == 3


@pytest.mark.slow
async def test_a_record_that_always_fails_goes_to_the_dead_letter_topic(kafka, world):
    kafka.create_topic(TOPIC)
    kafka.create_topic("dead")
    await world.connection.publish(TOPIC, "bad", key="k", headers={"h": b"v"})
    await publish(world, "good")
    recorder = Recorder()
    recorder.bad = {"bad": "ValueError: no"}

    async with world(recorder, retries=1, retry_delay=0.02, dead_letter="dead") as consumer:
        await eventually(lambda: "good" in recorder.values)

    assert recorder.values == ["bad", "bad", "good"]
    assert consumer.counters.dead_lettered == 1
    (letter,) = read_all(kafka.brokers, "dead", 1)
    headers = dict(letter.headers())
    assert (letter.key(), letter.value(), headers["h"]) == (b"k", b"bad", b"v")
    assert headers["clusternode.error"] == b"ValueError: no"
    assert (headers["clusternode.topic"], headers["clusternode.offset"]) == (b"calls", b"0")
    assert headers["clusternode.attempts"] == b"2"
    assert committed(kafka, "g") == [2]


@pytest.mark.slow
async def test_without_a_dead_letter_topic_the_partition_stops_and_says_so(kafka, world, caplog):
    kafka.create_topic(TOPIC, 2)
    await publish(world, "bad", "behind", partition=0)
    recorder = Recorder()
    recorder.bad = {"bad": "broken"}
    events = []

    async with world(
        recorder, lambda *event: events.append(event), retries=1, retry_delay=0.02
    ) as consumer:
        await eventually(lambda: len(events) == 1)
        await publish(world, "elsewhere", partition=1)
        await eventually(lambda: "elsewhere" in recorder.values)
        states = {row["partition"]: row["state"] for row in consumer.status()["partitions"]}

        recorder.bad = {}
        consumer.replace_handle(recorder)
        await eventually(lambda: "behind" in recorder.values)

    assert states == {0: "stopped", 1: "ok"}
    name, parameters = events[0]
    assert name == "E_KAFKA_PARTITION_STOPPED"
    assert (parameters["partition"], parameters["offset"]) == (0, 0)
    assert "stands still at offset 0" in caplog.text
    assert recorder.values == ["bad", "bad", "elsewhere", "bad", "behind"]


@pytest.mark.slow
async def test_a_slow_handler_pauses_reading_instead_of_filling_memory(kafka, world):
    kafka.create_topic(TOPIC)
    await publish(world, *map(str, range(3000)))
    recorder = Recorder()
    recorder.may_go = trio.Event()

    async with world(recorder, queue_max=100) as consumer:
        await eventually(lambda: consumer.reader.counters.pauses == 1)
        waiting = consumer.reader.outstanding
        recorder.may_go.set()
        await eventually(lambda: len(recorder.seen) == 3000)

    assert waiting < 100 + 2 * 500
    assert recorder.values == [str(number) for number in range(3000)]


@pytest.mark.slow
async def test_a_rebalance_loses_nothing(kafka, world):
    # The mock takes no commits during a rebalance, so records are repeated here; the real broker
    # takes them (tests/real/test_kafka.py).
    kafka.create_topic(TOPIC, 4)
    await publish(world, *map(str, range(1000)))
    first, second = Recorder(), Recorder()

    async with world(first) as one:
        await eventually(lambda: len(first.seen) > 100)
        async with world(second):
            await publish(world, *map(str, range(1000, 2000)))
            await eventually(lambda: {*first.values, *second.values} == set(map(str, range(2000))))
            await eventually(lambda: second.seen != [])
        await publish(world, *map(str, range(2000, 2100)))
        await eventually(lambda: set(map(str, range(2000, 2100))) <= {*first.values})
        rebalances = one.reader.counters.rebalances

    assert rebalances >= 2
    assert {*first.values, *second.values} == set(map(str, range(2100)))
    assert sum(committed(kafka, "g", partitions=4)) == 2100


@pytest.mark.slow
async def test_two_groups_get_every_record_each(kafka, world):
    kafka.create_topic(TOPIC)
    await publish(world, "a", "b")
    first, second = Recorder(), Recorder()

    async with world(first, group="one"), world(second, group="two"):
        await eventually(lambda: len(first.seen) == len(second.seen) == 2)


@pytest.mark.slow
async def test_a_broker_that_is_down_at_the_start_is_waited_for(kafka, world):
    kafka.create_topic(TOPIC)
    kafka.kill()
    recorder = Recorder()

    async with world(recorder) as consumer:
        await eventually(lambda: consumer.status()["last_error"] != "")
        kafka.restart()
        await publish(world, "a")
        await eventually(lambda: recorder.values == ["a"])


@pytest.mark.slow
async def test_a_broker_that_restarts_under_a_consumer_loses_nothing(kafka, world):
    kafka.create_topic(TOPIC)
    recorder = Recorder()
    async with world(recorder):
        await publish(world, "a")
        await eventually(lambda: recorder.values == ["a"])
        kafka.kill()
        producer = world.connection.producer()
        for number in range(100):
            await producer.send(TOPIC, str(number))
        kafka.restart()

        await eventually(lambda: set(map(str, range(100))) <= {*recorder.values})

    assert recorder.values == ["a", *map(str, range(100))]
