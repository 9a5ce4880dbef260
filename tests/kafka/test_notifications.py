"""Notifications without oslo: envelope, topics, drivers, retry, listeners, batches, filters."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from clusternode.agent import Agent
from clusternode.config.raw import RawTable
from clusternode.errors import ConfigError, KafkaError, RemoteProtocolError, RouteError
from clusternode.kafka.connections import KafkaConnections
from clusternode.kafka.notifications import REQUEUE, NotificationFilter, Notifier, listen, parse_url
from clusternode.kafka.notifications.envelope import (
    PRIORITIES,
    decode_untrusted,
    encode,
    new_message,
    topics_of,
)
from clusternode.kafka.notifications.listener import NotificationListener
from clusternode.kafka.notifications.notifier import RoutingRule, safe_context
from clusternode.kafka.records import Record
from clusternode.kafka.service import KafkaSettings, read_notifications
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import SEED, agent_settings, eventually, start
from tests.kafka.mock_cluster import PRODUCE, read_all

PATIENCE = 30.0
TOPIC_AUTHORIZATION_FAILED = 29


def record(priority: str = "info", event_type: str = "call.ended", payload: object = None):
    value = encode(new_message({"user": "a"}, "host", event_type, payload, priority))
    return Record("notifications.info", 0, 0, None, value, (), 0)


def always() -> bool:
    return True


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_a_notification_is_read_as_it_was_written(payload):
    got = decode_untrusted(encode(new_message({"a": 1}, "host", "e.t", payload, "warn")))

    assert (got.context, got.publisher_id, got.event_type) == ({"a": 1}, "host", "e.t")
    assert (got.payload, got.priority) == (payload, "warn")
    assert set(got.metadata) == {"message_id", "timestamp"}


def test_the_envelope_is_that_of_version_two():
    envelope = json.loads(encode(new_message({}, "host", "e", 1, "info")))

    assert envelope["oslo.version"] == "2.0"
    inner = json.loads(envelope["oslo.message"])
    assert set(inner) == {
        "message_id", "publisher_id", "event_type", "priority", "payload", "timestamp", "_context"
    }  # fmt: skip
    assert inner["priority"] == "INFO"


@given(st.binary(max_size=50))
def test_what_is_no_notification_is_refused_with_a_reason(value):
    reason = "notification"
    try:
        decode_untrusted(value)
    except RemoteProtocolError as error:
        reason = str(error)

    assert "notification" in reason


def test_topics_have_priority_and_virtual_host():
    assert topics_of(["notifications"], ["INFO"], "v") == ("notifications.info.v",)
    assert topics_of(["a", "b"], ["error"], "") == ("a.error", "b.error")


def test_a_missing_port_is_that_of_kafka_and_ipv6_keeps_its_brackets():
    assert parse_url("kafka://[::1],b:9/").brokers == "[::1]:9092,b:9"


def test_passwords_of_a_url_are_never_shown():
    url = parse_url("kafka://u:topsecret@h/v")

    assert "topsecret" not in url.shown + repr(url)
    with pytest.raises(ConfigError) as caught:
        parse_url("kafka://u:topsecret@h:x/v")
    assert "topsecret" not in str(caught.value)


def test_options_come_from_the_section_and_the_url_wins():
    url = "kafka://u:p@h:1,i:2/v?compression_codec=zstd&producer_batch_size=7"
    values = {
        "transport_url": url,
        "compression_codec": "gzip",
        "producer_batch_timeout": 0.25,
        "security_protocol": "SASL_PLAINTEXT",
        "consumer_group": "g",
    }

    connection = read_notifications(RawTable(("notifications",), values))

    assert (connection.brokers, connection.vhost) == ("h:1,i:2", "v")
    assert (connection.compression_codec, connection.batch_num_messages) == ("zstd", 7)
    assert (connection.linger_ms, connection.group_id) == (250, "g")
    assert (connection.sasl_mechanisms, connection.sasl_username) == ("PLAIN", "u")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rabbit://h/", "kafka://"),
        ("kafka:///v", "at least one host"),
        ("kafka://h/?no_such=1", "one of kafka_max_fetch_bytes"),
        ("kafka://h/?producer_batch_size=many", "a whole number"),
    ],
)
def test_a_wrong_url_is_refused(url, expected):
    table = RawTable((), {"notifications": {"transport_url": url}})

    with pytest.raises(ConfigError, match=expected):
        KafkaSettings.read(table)


@pytest.fixture
async def connection(kafka, settings):
    connections = KafkaConnections({"main": settings(vhost="v1", flush_timeout=2.0)})
    yield connections.get("main")
    await connections.aclose()


async def test_every_priority_goes_to_its_topic_with_the_virtual_host(kafka, connection):
    notifier = Notifier("host", connection=connection)
    for priority in PRIORITIES:
        (placed,) = await getattr(notifier, priority)(None, "e.t", {"n": 1})
        assert placed.topic == f"notifications.{priority}.v1"
    await notifier.warning(None, "e.t", {})

    assert len(read_all(kafka.brokers, "notifications.warn.v1", 2)) == 2


async def test_retry_zero_tries_once_and_two_tries_three_times(connection, kafka, autojump_clock):
    attempts: list[bytes] = []

    class Down:
        settings = connection.settings

        async def publish(self, topic, value):
            await trio.lowlevel.checkpoint()
            attempts.append(value)
            raise KafkaError("_TRANSPORT", "down", retriable=True, definite=False)

    notifier = Notifier("host", connection=Down(), retry=0)  # type: ignore[arg-type]  # a double
    with pytest.raises(KafkaError):
        await notifier.info(None, "e", {})
    assert len(attempts) == 1
    with pytest.raises(KafkaError):
        await notifier.prepare(retry=2).info(None, "e", {})

    assert len(attempts) == 4
    assert len(set(attempts[1:])) == 1, "a retry is the same message, with the same id"


async def test_what_the_broker_refuses_is_raised(kafka, connection):
    notifier = Notifier("host", connection=connection)
    await notifier.info(None, "e", {})
    kafka.push_errors(PRODUCE, TOPIC_AUTHORIZATION_FAILED)

    with pytest.raises(KafkaError, match="TOPIC_AUTHORIZATION_FAILED"):
        await notifier.info(None, "e", {})


async def test_drivers_log_test_noop_and_routing(caplog):
    rules = (
        RoutingRule("test", ("call.*",), ("error",)),
        RoutingRule("log", ("call.*",)),
    )
    notifier = Notifier("host", drivers=("routing",), routing=rules)
    caplog.set_level("INFO")

    await notifier.error(None, "call.ended", {"password": "topsecret"})
    await notifier.info(None, "call.ended", {})
    await notifier.error(None, "other", {})

    assert [message["event_type"] for _, message, _ in notifier.sent] == ["call.ended"]
    assert len(caplog.records) == 2
    assert "topsecret" not in caplog.text
    assert not Notifier("host", drivers=("noop",)).is_enabled()
    assert notifier.is_enabled()


def test_prepare_changes_the_publisher_of_a_copy():
    notifier = Notifier("a", drivers=("noop",), retry=5)

    copy = notifier.prepare(publisher_id="b")

    assert (copy.publisher_id, copy.retry, notifier.publisher_id) == ("b", 5, "a")
    assert notifier.prepare(retry=0).retry == 0


def test_a_context_is_redacted_or_left_out(caplog):
    @attrs.define
    class Context:
        def redacted_copy(self):
            return {"user": "a"}

    assert safe_context(Context()) == {"user": "a"}
    assert safe_context({"auth_token": "x"}) == safe_context(None) == safe_context(object()) == {}
    assert "redacted_copy" in caplog.text


class Endpoint:
    def __init__(self, answer: object = None, rule: NotificationFilter | None = None) -> None:
        self.rows: list = []
        self.answer = answer
        self.filter_rule = rule

    async def info(self, ctxt, publisher_id, event_type, payload, metadata):
        await trio.lowlevel.checkpoint()
        self.rows.append((event_type, payload))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def error(self, *arguments):
        self.rows.append(arguments)


async def test_a_listener_reads_only_the_priorities_of_its_endpoints():
    assert NotificationListener([Endpoint()]).priorities == ("info", "error")
    with pytest.raises(RouteError, match="none of the methods"):
        listen(["notifications"], [object()])


async def test_filters_choose_the_endpoint():
    calls = Endpoint(rule=NotificationFilter(event_type=r"call\.", payload={"to": "sip:"}))
    every = Endpoint()
    listener = NotificationListener([calls, every])

    done = await listener(
        [
            record(event_type="call.ended", payload={"to": "sip:a"}),
            record(event_type="call.ended", payload={"to": 5}),
            record(event_type="other", payload={"to": "sip:a"}),
        ],
        always,
    )

    assert done.count == 3
    assert (len(calls.rows), len(every.rows)) == (1, 3)


async def test_an_endpoint_that_fails_is_counted_and_hurts_nobody(caplog):
    listener = NotificationListener([Endpoint(ValueError("no"))])

    done = await listener([record(), record()], always)

    assert (done.count, done.error, listener.failed) == (2, "", 2)
    assert "ValueError: no" in caplog.text


async def test_a_requeue_is_tried_again_where_that_is_allowed():
    done = await NotificationListener([Endpoint(REQUEUE)], allow_requeue=True)([record()], always)

    assert (done.count, done.error) == (0, "requeued")


async def test_what_cannot_be_read_is_counted_and_passed_over():
    listener = NotificationListener([Endpoint()])
    bad = Record("t", 0, 0, None, b"\xff", (), 0)

    done = await listener([bad, record(priority="whisper"), record()], always)

    assert (done.count, listener.unreadable, listener.handled) == (3, 2, 1)


async def test_batches_are_lists_by_priority():
    class Batches:
        def __init__(self) -> None:
            self.calls: list = []

        def info(self, batch):
            self.calls.append(("info", [each["payload"] for each in batch]))

        def error(self, batch):
            self.calls.append(("error", [each["payload"] for each in batch]))

    endpoint = Batches()
    records = [record("info", payload=1), record("error", payload=2), record("info", payload=3)]

    done = await NotificationListener([endpoint], batch_size=3)(records, always)

    assert done.count == 3
    assert endpoint.calls == [("error", [2]), ("info", [1, 3])]


@pytest.mark.slow
async def test_listeners_and_the_notifier_can_be_configured(kafka, tmp_path):
    routes = """
from clusternode import routes
from clusternode.kafka import notifications

notifier = notifications.notifier("host")

@routes.event("E_NOTIFIED")
async def heard(event):
    await notifier.error(None, "heard." + event.event_type, event.payload)

@routes.request("tell")
async def tell(request):
    await notifier.info(None, "call.ended", {"n": 1})
"""
    tables = {
        "notifications": {
            "transport_url": f"kafka://{kafka.brokers}/v",
            "topics": ["calls"],
            "driver": ["messagingv2"],
        },
        "notification_listener": [
            {"topics": ["calls"], "priorities": ["info"], "to": "event:E_NOTIFIED", "pool": "p"},
        ],
    }
    kafka.create_topic("calls.info.v")
    kafka.create_topic("calls.error.v")
    file = tmp_path / "routes.py"
    file.write_text(routes)
    async with trio.open_nursery() as nursery:
        settings = agent_settings("n1", SEED, routes=file)
        agent = Agent(
            attrs.evolve(settings, plugins=RawTable((), tables)),
            transport=MemoryNetwork().transport("10.0.0.1"),
            resolver=FakeResolver(),
            has_control=False,
        )
        running = await start(nursery, agent)
        (consumer,) = agent.kafka.consumers()
        await eventually(lambda: len(consumer.partitions) == 1)
        with trio.fail_after(PATIENCE):
            while not consumer.counters.handled:  # `latest` finds the end of a topic some time
                await running.bus.request("tell", "n1", b"").gather()

        message, *_ = await trio.to_thread.run_sync(read_all, kafka.brokers, "calls.error.v", 1)
        await running.leave()

    got = decode_untrusted(message.value())
    assert (got.event_type, got.payload, got.publisher_id) == ("heard.call.ended", {"n": 1}, "host")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"notifications": {"topics": ["a"]}}, "transport_url"),
        ({"notifications": {"transport_url": "kafka://h", "driver": ["mail"]}}, "one of messaging"),
        ({"notification_listener": [{"to": "kafka:a/b"}]}, "channel:NAME"),
        ({"notification_listener": [{"to": "event:E_A"}]}, r"\[notifications\]"),
    ],
)
def test_wrong_notification_sections_are_refused(section, expected):
    with pytest.raises(ConfigError, match=expected):
        KafkaSettings.read(RawTable((), section))
