"""The producer: every accepted record has one report, whatever the broker does."""

from __future__ import annotations

import pytest
import trio

from clusternode.errors import KafkaError, NoSuchConnection, Overloaded
from clusternode.kafka.connections import KafkaConnections
from tests.kafka.mock_cluster import PRODUCE, read_all

TOPIC_AUTHORIZATION_FAILED = 29
NOT_ENOUGH_REPLICAS = 19
PATIENCE = 20.0


@pytest.fixture
async def connect(settings):
    """Return a function that gives a connection; all are closed at the end."""
    made = []

    def connect(**values):
        values = {"flush_timeout": 5.0, **values}
        connections = KafkaConnections({"main": settings(**values)})
        made.append(connections)
        return connections.get("main")

    yield connect
    for connections in made:
        await connections.aclose()


def balance(producer) -> bool:
    counters = producer.counters
    return counters.accepted == counters.delivered + counters.failed + counters.in_flight


async def test_publish_says_where_the_record_is(kafka, connect):
    kafka.create_topic("calls", 1)
    connection = connect()

    first = await connection.publish("calls", "one", key="k", headers={"h": b"v", "n": None})
    second = await connection.publish("calls", b"two")

    assert (first.topic, first.partition, first.offset, second.offset) == ("calls", 0, 0, 1)
    assert 0 < first.latency_s < PATIENCE
    message = read_all(kafka.brokers, "calls", 2)[0]
    assert (message.key(), message.value()) == (b"k", b"one")
    assert message.headers() == [("h", b"v"), ("n", None)]


async def test_fire_and_forget_reports_key_status_and_message_once(kafka, connect):
    kafka.create_topic("calls", 1)
    connection = connect(topic="calls")
    reports: list = []

    connection.send(None, "message", key="call-1", report=reports.append)
    await connection.producer().wait_for_reports()

    (report,) = reports
    assert (report.connection, report.status, report.key, report.value) == (
        "main",
        0,
        b"call-1",
        b"message",
    )
    assert report.placed.offset == 0


async def test_a_producer_is_made_when_it_is_first_used_and_then_kept(connect):
    connection = connect()
    assert not connection.has_producer

    producer = connection.producer()

    assert connection.producer() is producer


def test_an_unknown_connection_names_those_that_exist(settings):
    with pytest.raises(
        NoSuchConnection, match=r"no connection named x; in the configuration: main"
    ):
        KafkaConnections({"main": settings()}).get("x")


async def test_what_the_broker_refuses_is_an_error_that_says_so(kafka, connect):
    connection = connect()
    await connection.publish("calls", b"")
    kafka.push_errors(PRODUCE, TOPIC_AUTHORIZATION_FAILED)

    with pytest.raises(KafkaError) as caught:
        await connection.publish("calls", b"x")

    assert caught.value.name == "TOPIC_AUTHORIZATION_FAILED"
    assert not caught.value.retriable
    assert "kafka-acls" in str(caught.value)


async def test_what_the_broker_refuses_for_now_is_tried_again(kafka, connect):
    connection = connect()
    await connection.publish("calls", b"")
    kafka.push_errors(PRODUCE, NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS)

    assert (await connection.publish("calls", b"x")).partition >= 0


async def test_a_record_that_is_too_large_is_refused_at_once(connect):
    connection = connect(message_max_bytes=1000)

    with pytest.raises(KafkaError) as caught:
        connection.send("calls", bytes(2000))

    assert caught.value.name == "MSG_SIZE_TOO_LARGE"
    assert connection.producer().counters.refused == 1
    assert connection.producer().counters.accepted == 0


@pytest.mark.slow
async def test_a_dead_broker_is_a_retriable_error_after_the_message_timeout(kafka, connect):
    connection = connect(message_timeout_ms=300)
    await connection.publish("calls", b"")
    kafka.kill()

    with pytest.raises(KafkaError) as caught:
        await connection.publish("calls", b"x")

    assert caught.value.name == "_MSG_TIMED_OUT"
    assert caught.value.retriable
    assert not caught.value.definite


async def test_over_the_high_water_mark_records_are_refused_or_wait_without_blocking(
    kafka, connect
):
    connection = connect(in_flight_max=10, flush_timeout=0.1)
    producer = connection.producer()
    kafka.kill()
    for _ in range(10):
        connection.send("calls", b"x")

    with pytest.raises(Overloaded, match="10 records in flight, at most 10"):
        connection.send("calls", b"one too many")
    with trio.move_on_after(0.05) as scope:
        await producer.send("calls", b"waits")

    assert scope.cancelled_caught
    assert (producer.counters.accepted, producer.counters.refused) == (10, 1)
    kafka.restart()
    await producer.wait_for_reports()
    assert (producer.counters.delivered, balance(producer)) == (10, True)


@pytest.mark.slow
async def test_a_stop_accounts_for_what_a_dead_broker_never_got(kafka, connect):
    connection = connect(flush_timeout=0.3)
    producer = connection.producer()
    await connection.publish("calls", b"")
    kafka.kill()
    reports: list = []
    for _ in range(1000):
        connection.send("calls", b"x", report=reports.append)

    with trio.fail_after(PATIENCE):
        await producer.aclose()

    assert len(reports) == 1000
    assert {report.error.name for report in reports} <= {"_PURGE_QUEUE", "_PURGE_INFLIGHT"}
    assert producer.counters.in_flight == 0
    assert balance(producer)
    with pytest.raises(KafkaError, match="closed"):
        producer.publish_soon("calls", b"late")


@pytest.mark.slow
async def test_ten_thousand_records_over_a_restart_are_all_delivered_once_asked_for(kafka, connect):
    kafka.create_topic("calls", 4)
    connection = connect(enable_idempotence=True)
    producer = connection.producer()
    reports: list = []
    for number in range(10_000):
        if number == 3000:
            kafka.kill()
        if number == 6000:
            kafka.restart()
        await producer.send("calls", str(number), report=reports.append)

    with trio.fail_after(PATIENCE):
        await producer.wait_for_reports()

    assert (len(reports), producer.counters.delivered) == (10_000, 10_000)
    values = {int(message.value()) for message in read_all(kafka.brokers, "calls", 10_000)}
    assert values == set(range(10_000))


@pytest.mark.parametrize("error", [RuntimeError("mine"), SystemExit(3)])
async def test_a_report_callback_that_raises_hurts_nobody(connect, caplog, error):
    connection = connect()

    def broken(report):
        raise error

    connection.send("calls", b"x", report=broken)
    await connection.producer().wait_for_reports()

    assert "a report callback raised" in caplog.text
    assert (await connection.publish("calls", b"y")).partition >= 0


async def test_cancelling_a_publish_gives_only_the_waiting_up(kafka, connect):
    connection = connect()
    await connection.publish("calls", b"")
    kafka.answer_after(200)

    with trio.move_on_after(0.05) as scope:
        await connection.publish("calls", b"x")

    assert scope.cancelled_caught
    await connection.producer().wait_for_reports()
    assert connection.producer().counters.delivered == 2


async def test_a_changed_section_is_used_at_the_next_use_and_the_old_client_delivers(
    kafka, settings
):
    old = settings()
    connections = KafkaConnections({"main": old})
    before = connections.get("main")
    async with trio.open_nursery() as nursery:
        await nursery.start(connections.run)
        reports: list = []
        before.send("calls", b"x", report=reports.append)

        assert connections.reload({"main": settings(client_id="other")}) == ["main"]
        await connections.get("main").publish("calls", b"y")
        nursery.cancel_scope.cancel()

    assert [report.status for report in reports] == [0]
    assert connections.get("main") is not before


async def test_the_log_of_a_dead_broker_is_limited(kafka, connect, caplog):
    connection = connect(message_timeout_ms=1000, flush_timeout=5.0)
    await connection.publish("calls", b"")
    kafka.kill()
    for _ in range(500):
        connection.send("calls", b"x")
    await connection.producer().wait_for_reports()

    assert connection.producer().counters.failed == 500
    assert len(caplog.records) < 20
    assert connection.log.suppressed > 400
