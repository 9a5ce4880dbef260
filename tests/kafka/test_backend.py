"""`kafka:` as a back end of events: what it refuses, keys, and failover that loses nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import trio
import trio.lowlevel

from clusternode.backends.flatstore_format import read_file
from clusternode.errors import ConfigError
from clusternode.kafka.api import kafka_of_agent
from clusternode.kafka.connections import KafkaConnections
from clusternode.testing.backends import backend_world
from tests.kafka.mock_cluster import PRODUCE, read_all

EVENTS = 10_000
PATIENCE = 60.0
TOPIC_AUTHORIZATION_FAILED = 29


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("kafka:127.0.0.1:9092", "with a topic"),
        ("kafka:k/t?g.no.such=1", "No such configuration property"),
        ("kafka:k/t?g.compression.codec=zip", "Invalid value"),
        ("kafka:@", "kafka:@NAME/TOPIC"),
    ],
)
async def test_a_wrong_uri_is_refused_when_it_is_given(uri, expected):
    async with backend_world() as world:
        with pytest.raises(ConfigError, match=expected):
            world.subscribe("E_CALL", uri)


async def test_secrets_are_not_shown():
    async with backend_world() as world:
        world.subscribe("E_CALL", "kafka:k:9092/t?g.sasl.password=topsecret")

        assert world.only.to == "kafka:k:9092/t"
        assert "topsecret" not in repr(world.subscriptions.subscribers())


async def test_the_status_is_the_broker_s_answer_and_says_where(kafka):
    kafka.create_topic("calls")
    async with backend_world() as world:
        world.subscribe("E_CALL", f"kafka:{kafka.brokers}/calls?key=callid")

        (status,) = await world.deliver("E_CALL", {"callid": "abc@host", "n": 1})

    assert status.status.ok
    assert status.status.detail == "calls, partition 0, offset 0"
    (message,) = read_all(kafka.brokers, "calls", 1)
    assert message.key() == b"abc@host"
    assert json.loads(message.value()) == {
        "jsonrpc": "2.0",
        "method": "E_CALL",
        "params": {"callid": "abc@host", "n": 1},
    }


async def test_a_broker_that_refuses_is_a_definite_failure(kafka):
    kafka.create_topic("calls")
    async with backend_world() as world:
        world.subscribe("E_CALL", f"kafka:{kafka.brokers}/calls")
        await world.deliver("E_CALL")
        kafka.push_errors(PRODUCE, TOPIC_AUTHORIZATION_FAILED)

        (status,) = await world.deliver("E_CALL")

    assert not status.status.ok
    assert status.status.definite
    assert "TOPIC_AUTHORIZATION_FAILED" in status.status.detail


async def test_a_named_connection_can_take_events(kafka, settings):
    connections = KafkaConnections({"main": settings(topic="calls", flush_timeout=1.0)})
    token = kafka_of_agent.set(SimpleNamespace(connections=connections))
    async with backend_world() as world:
        world.subscribe("E_CALL", "kafka:@main/other")
        world.subscribe("E_CALL", "kafka:@main")

        statuses = await world.deliver("E_CALL")
        with pytest.raises(ConfigError, match="no connection named x"):
            world.subscribe("E_CALL", "kafka:@x")
    await connections.aclose()
    kafka_of_agent.reset(token)

    assert [each.status.ok for each in statuses] == [True, True]
    assert {each.status.detail.partition(",")[0] for each in statuses} == {"other", "calls"}


@pytest.mark.slow
async def test_ten_thousand_events_survive_a_broker_that_is_killed_and_comes_back(kafka, tmp_path):
    """FAILOVER to a file: every number is in the topic or in the file, and no raiser was lied to.

    At least once: what timed out at the broker may be in both.
    """
    kafka.create_topic("calls")
    file = tmp_path / "calls.log"
    properties = "g.linger.ms=2&t.message.timeout.ms=500&g.reconnect.backoff.max.ms=100"
    members = f"kafka:{kafka.brokers}/calls?{properties} flatstore:{file}"
    statuses: dict[int, bool] = {}
    async with backend_world() as world:
        world.subscribe("E_CALL", f"virtual:FAILOVER?failover_timeout=0.5 {members}")

        async def raise_one(number: int) -> None:
            (status,) = await world.hub.raise_event("E_CALL", {"number": number})
            statuses[number] = status.status.ok

        async def reaches_the_broker() -> bool:
            (status,) = await world.hub.raise_event("E_CALL", {"number": -1})
            return "partition" in status.status.detail

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(EVENTS):
                    if number == EVENTS // 3:
                        kafka.kill()
                    if number == EVENTS * 2 // 3:
                        while not file.exists() or len(statuses) < number - 1000:  # noqa: ASYNC110
                            await trio.sleep(0.01)
                        kafka.restart()
                        while not await reaches_the_broker():  # noqa: ASYNC110
                            await trio.sleep(0.05)
                    nursery.start_soon(raise_one, number)
                    if number % 50 == 0:
                        await trio.lowlevel.checkpoint()

    assert statuses == dict.fromkeys(range(EVENTS), True)
    in_file = {int(record.values[0]) for record in read_file(file)}
    messages = read_all(kafka.brokers, "calls", EVENTS - len(in_file) + len(statuses), 3.0)
    in_topic = {json.loads(message.value())["params"]["number"] for message in messages}
    assert (in_topic | in_file) - {-1} == set(range(EVENTS))
    assert in_file
    assert max(in_topic) > EVENTS * 2 // 3, "the broker was used again when it was back"
