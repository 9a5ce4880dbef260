"""Against a real Apache Kafka: security, rights, restarts, transactions, and readers not ours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import cast

import confluent_kafka
import pytest
import trio
import trio.lowlevel
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs do not say so
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from clusternode.backends.flatstore_format import read_file
from clusternode.errors import KafkaError
from clusternode.kafka.connections import Connection, KafkaConnections
from clusternode.kafka.consumer import Consumer, ConsumerSettings, Handled
from clusternode.kafka.settings import KafkaConnection
from clusternode.testing.backends import backend_world
from tests.kafka.mock_cluster import read_all
from tests.real.kafka_broker import GIVEN, USERS, Broker, Missing

pytestmark = pytest.mark.real

PATIENCE = 60.0
RECORDS = 20_000
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

Connect = Callable[..., Connection]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker of all tests here; one that a test has killed is started again."""
    try:
        broker = Broker.prepare(tmp_path_factory.mktemp("kafka"))
    except Missing as error:
        pytest.skip(str(error))
    broker.start()
    trio.run(broker.ready)
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def brokers(request: pytest.FixtureRequest) -> str:
    """Where to connect: to the broker that the user gave, else to ours, which is started then."""
    given = os.environ.get(GIVEN)
    return given or cast("Broker", request.getfixturevalue("broker")).address()


@pytest.fixture
async def connect(brokers: str) -> AsyncIterator[Connect]:
    made: list[KafkaConnections] = []

    def connect(**values) -> Connection:
        options = {"name": "main", "brokers": brokers, "auto_offset_reset": "earliest"}
        connections = KafkaConnections({"main": KafkaConnection(**{**options, **values})})
        made.append(connections)
        return connections.get("main")

    yield connect
    for connections in made:
        await connections.aclose()


def secured(broker: Broker, protocol: str, mechanism: str = "", user: str = "alice") -> dict:
    """Return the settings for one listener of the broker."""
    files = broker.directory
    found = {"brokers": broker.address(protocol), "security_protocol": protocol.lower()}
    if "SSL" in protocol:
        found |= {
            "ssl_ca_location": str(files / "ca.pem"),
            "ssl_certificate_location": str(files / "client.pem"),
            "ssl_key_location": str(files / "client.key"),
        }
    if mechanism:
        found |= {
            "sasl_mechanisms": mechanism,
            "sasl_username": user,
            "sasl_password": USERS[user],
        }
    return found


class Collector:
    """Keeps the values of what it handles."""

    def __init__(self) -> None:
        self.values: list[str] = []

    async def __call__(self, records, goes_on):
        count = 0
        for record in records:
            if count and not goes_on():
                break
            await trio.lowlevel.checkpoint()
            self.values.append(record.value.decode())
            count += 1
        return Handled(count)


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # another process sets no event
            await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [
        ("PLAINTEXT", ""),
        *(("SASL_PLAINTEXT", mechanism) for mechanism in MECHANISMS),
        ("SSL", ""),
        *(("SASL_SSL", mechanism) for mechanism in MECHANISMS),
    ],
)
async def test_records_go_and_come_over_every_listener(broker, connect, protocol, mechanism):
    connection = connect(**secured(broker, protocol, mechanism))
    topic = f"secure.{protocol}.{mechanism}".rstrip(".")
    assert await connection.ensure_topic(topic, 1, 1)
    collector = Collector()
    consumer = Consumer(
        connection, ConsumerSettings(name="c", topics=(topic,), group=topic), collector
    )

    placed = await connection.publish(topic, "hello", key="k", headers={"h": "v"})
    async with trio.open_nursery() as nursery:
        await nursery.start(consumer.run)
        await eventually(lambda: collector.values == ["hello"])
        nursery.cancel_scope.cancel()

    assert (placed.partition, placed.offset) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "name", "advice"),
    [
        ({"sasl_password": "wrong"}, "_AUTHENTICATION", "sasl_password"),
        ({"ssl_ca_location": "other-ca.pem"}, "_SSL", "ssl_ca_location"),
    ],
    ids=["wrong password", "wrong CA"],
)
async def test_what_is_wrong_with_the_security_is_said_in_the_error(
    broker, connect, wrong, name, advice
):
    values = secured(broker, "SASL_SSL", "PLAIN") | {"message_timeout_ms": 2000, **wrong}
    values["ssl_ca_location"] = str(broker.directory / Path(values["ssl_ca_location"]).name)
    connection = connect(**values)

    with pytest.raises(KafkaError) as caught:
        await connection.publish("never", "x")

    assert name in str(caught.value)
    assert advice in str(caught.value)
    assert not caught.value.retriable


async def test_a_client_without_a_certificate_is_refused_where_one_is_asked_for(broker, connect):
    values = secured(broker, "SSL") | {
        "ssl_certificate_location": "",
        "ssl_key_location": "",
        "message_timeout_ms": 2000,
    }

    with pytest.raises(KafkaError, match=r"_MSG_TIMED_OUT.*(_SSL|_TRANSPORT|_ALL_BROKERS_DOWN)"):
        await connect(**values).publish("never", "x")


async def test_a_missing_right_is_an_error_that_names_it(broker, connect):
    admin = AdminClient({"bootstrap.servers": broker.address()})
    binding = AclBinding(
        ResourceType.TOPIC,
        "secret",
        ResourcePatternType.LITERAL,
        "User:bob",
        "*",
        AclOperation.ALL,
        AclPermissionType.DENY,
    )
    await connect().ensure_topic("secret", 1, 1)
    for future in admin.create_acls([binding]).values():
        await trio.to_thread.run_sync(future.result, 10)
    bob = connect(**secured(broker, "SASL_PLAINTEXT", "PLAIN", "bob"))

    with pytest.raises(KafkaError) as caught:
        await bob.publish("secret", "x")

    assert caught.value.name == "TOPIC_AUTHORIZATION_FAILED"
    assert "lacks the right" in str(caught.value)


async def test_topics_are_made_once_and_what_cannot_be_made_is_an_error(broker, connect):
    connection = connect()

    assert await connection.ensure_topic("made", 3, 1)
    assert not await connection.ensure_topic("made", 3, 1)
    with pytest.raises(KafkaError, match="INVALID_REPLICATION_FACTOR"):
        await connection.ensure_topic("too-many", 1, 3)


async def test_aborted_transactions_are_not_seen(broker, connect):
    connection = connect()
    await connection.ensure_topic("transactions", 1, 1)

    def write() -> None:
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": broker.address(), "transactional.id": "t"}
        )
        producer.init_transactions(30)
        for value, is_kept in (("kept", True), ("aborted", False), ("last", True)):
            producer.begin_transaction()
            producer.produce("transactions", value)
            producer.flush(10)
            (producer.commit_transaction if is_kept else producer.abort_transaction)(10)

    await trio.to_thread.run_sync(write)
    collector = Collector()
    settings = ConsumerSettings(name="c", topics=("transactions",), group="transactions")
    async with trio.open_nursery() as nursery:
        await nursery.start(Consumer(connection, settings, collector).run)
        await eventually(lambda: "last" in collector.values)
        nursery.cancel_scope.cancel()

    assert collector.values == ["kept", "last"]


async def test_kcat_and_a_client_that_is_not_librdkafka_read_what_we_write(
    broker, connect, require_program
):
    kcat = require_program("kcat")
    connection = connect(compression_codec="gzip")
    await connection.ensure_topic("foreign", 1, 1)
    await connection.publish("foreign", '{"a":1}', key="k", headers={"h": "v"})

    shown = await trio.run_process(
        [kcat, "-b", broker.address(), "-C", "-t", "foreign", "-c", "1", "-e", "-q",
         "-f", "%k|%s|%h|%p|%o"],
        capture_stdout=True,
    )  # fmt: skip
    script = (
        "import sys, kafka\n"
        "c = kafka.KafkaConsumer('foreign', bootstrap_servers=sys.argv[1],"
        " auto_offset_reset='earliest', consumer_timeout_ms=10000)\n"
        "m = next(c)\n"
        "print(m.key, m.value, list(m.headers), m.offset)\n"
    )
    other = await trio.run_process(
        [sys.executable, "-W", "ignore", "-c", script, broker.address()], capture_stdout=True
    )

    assert shown.stdout.decode() == 'k|{"a":1}|h=v|0|0'
    assert b"b'k' b'{\"a\":1}'" in other.stdout
    assert b"'v'" in other.stdout


async def test_a_broker_that_is_killed_under_load_loses_nothing(broker, connect):
    connection = connect(enable_idempotence=True, in_flight_max=5000)
    await connection.ensure_topic("load", 4, 1)
    producer = connection.producer()
    failures: list = []

    def report(report) -> None:
        if report.error is not None:
            failures.append(report.error)

    with trio.fail_after(PATIENCE):
        for number in range(RECORDS):
            if number == RECORDS // 2:
                broker.kill()
                broker.start()
            await producer.send("load", str(number), report=report)
        await producer.wait_for_reports()
        await broker.ready()

    assert failures == []
    messages = await trio.to_thread.run_sync(read_all, broker.address(), "load", RECORDS, 30.0)
    assert {int(message.value()) for message in messages} == set(range(RECORDS))


async def test_two_consumers_share_a_group_and_nothing_is_lost_or_repeated(broker, connect):
    connection = connect()
    await connection.ensure_topic("shared", 4, 1)
    producer = connection.producer()
    one, two = Collector(), Collector()
    settings = ConsumerSettings(name="c", topics=("shared",), group="shared")

    async def publish(begin: int, end: int) -> None:
        for number in range(begin, end):
            await producer.send("shared", str(number), key=str(number))
        await producer.wait_for_reports()

    async with trio.open_nursery() as nursery:
        await nursery.start(Consumer(connection, settings, one).run)
        await publish(0, 1000)
        await eventually(lambda: len(one.values) == 1000)
        async with trio.open_nursery() as inner:
            second = Consumer(connection, settings, two)
            await inner.start(second.run)
            await eventually(lambda: len(second.partitions) > 0)
            await publish(1000, 2000)
            await eventually(lambda: len(one.values) + len(two.values) >= 2000)
            inner.cancel_scope.cancel()
        await publish(2000, 3000)
        await eventually(lambda: len(one.values) + len(two.values) >= 3000)
        nursery.cancel_scope.cancel()

    assert sorted(map(int, [*one.values, *two.values])) == list(range(3000))
    assert two.values


async def test_ten_thousand_events_survive_a_killed_broker(broker, connect, tmp_path):
    await connect().ensure_topic("events", 1, 1)
    file = tmp_path / "events.log"
    properties = "t.message.timeout.ms=1000&g.reconnect.backoff.max.ms=200"
    members = f"kafka:{broker.address()}/events?{properties} flatstore:{file}"
    statuses: dict[int, bool] = {}
    async with backend_world() as world:
        world.subscribe("E_CALL", f"virtual:FAILOVER?failover_timeout=1 {members}")

        async def raise_one(number: int) -> None:
            (status,) = await world.hub.raise_event("E_CALL", {"number": number})
            statuses[number] = status.status.ok

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(10_000):
                    if number == 3000:
                        broker.kill()
                    if number == 7000:
                        await eventually(file.exists)
                        broker.start()
                        await broker.ready()
                    nursery.start_soon(raise_one, number)
                    if number % 50 == 0:
                        await trio.lowlevel.checkpoint()

    assert statuses == dict.fromkeys(range(10_000), True)
    in_file = {int(record.values[0]) for record in read_file(file)}
    messages = await trio.to_thread.run_sync(read_all, broker.address(), "events", 10_000, 3.0)
    in_topic = {json.loads(each.value())["params"]["number"] for each in messages}
    assert in_topic | in_file == set(range(10_000))


async def test_a_broker_of_the_user_takes_records_too(connect):
    """With `KAFKA_BOOTSTRAP` set to a running broker, whoever runs it."""
    placed = await connect().publish("clusternode-test", "x")

    assert placed.offset >= 0
