"""Notifications with the real oslo.messaging at the other end, in both directions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from clusternode.config.raw import RawTable
from clusternode.errors import ConfigError
from clusternode.kafka.connections import KafkaConnections
from clusternode.kafka.consumer import Consumer, ConsumerSettings
from clusternode.kafka.notifications import Notifier, parse_url
from clusternode.kafka.notifications.envelope import PRIORITIES, topics_of
from clusternode.kafka.notifications.listener import NotificationListener
from clusternode.kafka.reader import Commit
from clusternode.kafka.service import read_notifications
from tests.kafka.mock_cluster import read_all
from tests.real.kafka_broker import Broker, Missing

pytestmark = pytest.mark.real

PEER = Path(__file__).with_name("oslo_peer.py")
PATIENCE = 60.0
COUNT = 3
URLS = (
    "kafka://",
    "kafka://host",
    "kafka://host:9092/",
    "kafka://host:9092/vhost",
    "kafka://user:pass@host:9092/v%2Fhost",
    "kafka://us%40er:pa%3Ass@a:1,b:2,c/a/b",
    "kafka://a:b@one,c:d@two:9093/x?compression_codec=gzip&a=1&a=2",
    "kafka://[::1]:9092,[fe80::1]/v",
    "kafka://user@host/",
    "kafka://@host/",
    "kafka://host:/",
    "kafka://[::1]:/",
    "KAFKA://Host:99/",
    "//host/vhost",
    "kafka://host:port/",
    "kafka://[::1/",
    "kafka:///vhost",
    "rabbit://u:p@h:5672/",
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    try:
        broker = Broker.prepare(tmp_path_factory.mktemp("kafka"))
    except Missing as error:
        pytest.skip(str(error))
    broker.start()
    trio.run(broker.ready)
    yield broker
    broker.kill()


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # another process sets no event
            await trio.sleep(0.02)


class Endpoint:
    """Keeps what it gets, for every priority."""

    def __init__(self) -> None:
        self.rows: list = []

    def __getattr__(self, name: str):
        if name not in PRIORITIES:
            raise AttributeError(name)

        def take(*arguments) -> None:
            self.rows.append((name, *arguments))

        return take


class Context:
    """What a notification may know of a request."""

    def redacted_copy(self) -> dict[str, str]:
        return {"user": "bob"}


def url_of(broker: Broker, vhost: str) -> str:
    return f"kafka://user:pass@{broker.address()}/{vhost}"


async def oslo(*words: str) -> bytes:
    ran = await trio.run_process(
        [sys.executable, PEER, *words], capture_stdout=True, stderr=subprocess.DEVNULL
    )
    return ran.stdout


def connections_to(broker: Broker, vhost: str) -> KafkaConnections:
    table = RawTable(("notifications",), {"transport_url": url_of(broker, vhost)})
    return KafkaConnections({"notifications": read_notifications(table)})


async def make_topics(connections: KafkaConnections, vhost: str) -> None:
    connection = connections.get("notifications")
    for topic in topics_of(["notifications"], PRIORITIES, vhost):
        await connection.ensure_topic(topic, 1, 1)


def test_urls_are_read_as_oslo_reads_them():
    lines = "".join(json.dumps(url) + "\n" for url in URLS)
    ran = subprocess.run(
        [sys.executable, PEER, "urls"], input=lines, capture_output=True, text=True, timeout=60
    )
    for text, line in zip(URLS, ran.stdout.splitlines(), strict=True):
        theirs = json.loads(line)
        try:
            url = parse_url(text)
        except ConfigError:
            assert theirs is None, text
            continue
        hosts = [[h.hostname, h.port, h.username, h.password] for h in url.hosts]
        assert [url.transport, url.virtual_host, hosts, url.query] == theirs, text


@pytest.mark.parametrize("vhost", ["", "site1"], ids=["without vhost", "with vhost"])
@pytest.mark.parametrize("batch_size", [0, 5], ids=["plain", "batch"])
async def test_we_receive_what_oslo_sends_in_two_pools(broker, vhost, batch_size):
    connections = connections_to(broker, vhost)
    await make_topics(connections, vhost)
    connection = connections.get("notifications")
    endpoints = [Endpoint(), Endpoint()]
    async with trio.open_nursery() as nursery:
        consumers = []
        for number, endpoint in enumerate(endpoints):
            listener = NotificationListener([endpoint], batch_size)
            settings = ConsumerSettings(
                name=f"pool{number}",
                topics=topics_of(["notifications"], listener.priorities, vhost),
                group=f"pool{number}-{vhost}-{batch_size}",
                commit=Commit.BEFORE,
            )
            consumers.append(Consumer(connection, settings, listener))
            await nursery.start(consumers[-1].run)
        await eventually(lambda: all(len(each.partitions) == 7 for each in consumers))
        await trio.sleep(0.5)  # `latest` looks for the end of each partition now

        await oslo("notify", url_of(broker, vhost), str(COUNT))
        await eventually(
            lambda: all(len(rows_of(each, batch_size)) >= COUNT * 7 for each in endpoints)
        )
        nursery.cancel_scope.cancel()
    await connections.aclose()

    for endpoint in endpoints:
        rows = rows_of(endpoint, batch_size)
        assert len(rows) == COUNT * 7
        assert {row[0] for row in rows} == set(PRIORITIES)
        for priority, context, publisher, event_type, payload, metadata in rows:
            assert context["user"] == "alice"
            assert (publisher, event_type) == ("oslo.host", f"call.{priority}")
            assert payload["text"] == "héllo"
            assert set(metadata) == {"message_id", "timestamp"}


def rows_of(endpoint: Endpoint, batch_size: int) -> list:
    if not batch_size:
        return endpoint.rows
    return [
        (
            priority,
            *(each[k] for k in ("ctxt", "publisher_id", "event_type", "payload", "metadata")),
        )
        for priority, batch in endpoint.rows
        for each in batch
    ]


async def test_oslo_receives_what_we_send_in_two_pools(broker):
    connections = connections_to(broker, "")
    await make_topics(connections, "")
    notifier = Notifier("our.host", connection=connections.get("notifications"))
    outputs: list[bytes] = []

    async def listen(pool: str) -> None:
        outputs.append(await oslo("listen", url_of(broker, ""), pool, "21"))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, "oslo-pool-1")
            nursery.start_soon(listen, "oslo-pool-2")
            # oslo's listener starts within about five seconds and reads from then on only.
            while len(outputs) < 2:
                for priority in PRIORITIES:
                    await notifier.notify(Context(), "call.ended", {"n": 1}, priority)
                await trio.sleep(1.0)
    await connections.aclose()

    for output in outputs:
        rows = [json.loads(line) for line in output.splitlines() if line.startswith(b"[")]
        assert {row[0] for row in rows} == set(PRIORITIES)
        assert all(
            row[1:]
            == [{"user": "bob"}, "our.host", "call.ended", {"n": 1}, ["message_id", "timestamp"]]
            for row in rows
        )


async def test_the_topics_carry_the_virtual_host_that_oslo_s_notifier_appends(broker):
    await oslo("notify", url_of(broker, "v9"), "1")

    (message,) = await trio.to_thread.run_sync(
        read_all, broker.address(), "notifications.info.v9", 1
    )

    envelope = json.loads(message.value())
    assert set(envelope) == {"oslo.version", "oslo.message"}
    assert json.loads(envelope["oslo.message"])["priority"] == "INFO"


async def test_oslo_s_own_listener_hears_nothing_with_a_virtual_host_and_ours_does(broker):
    """The defect of the original: it appends the virtual host when it sends, not when it reads."""
    connections = connections_to(broker, "defect")
    await make_topics(connections, "defect")
    await make_topics(connections, "")
    connection = connections.get("notifications")
    endpoint = Endpoint()
    listener = NotificationListener([endpoint])
    topics = topics_of(["notifications"], PRIORITIES, "defect")
    settings = ConsumerSettings(name="c", topics=topics, group="ours", commit=Commit.BEFORE)
    consumer = Consumer(connection, settings, listener)
    theirs: list[bytes] = []

    async def listen() -> None:
        theirs.append(await oslo("listen", url_of(broker, "defect"), "theirs", "1"))

    async with trio.open_nursery() as nursery:
        await nursery.start(consumer.run)
        await eventually(lambda: len(consumer.partitions) == 7)
        nursery.start_soon(listen)
        await trio.sleep(7.0)  # beyond the five seconds that oslo's listener takes to start
        await oslo("notify", url_of(broker, "defect"), "1")
        await eventually(lambda: len(endpoint.rows) == 7)
        with trio.fail_after(PATIENCE):
            while not theirs:  # noqa: ASYNC110  # it gives up after its own limit
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    await connections.aclose()

    assert theirs[0].splitlines() == [b"started"]
