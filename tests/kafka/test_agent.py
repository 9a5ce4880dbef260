"""Whole agents with Kafka: routes for records, bridges, reload, the calls of the control socket."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from clusternode.agent import Agent
from clusternode.cli.main import main
from clusternode.config.raw import RawTable
from clusternode.control.server import ControlServer
from clusternode.errors import RouteError
from clusternode.kafka.notifications.envelope import decode_untrusted
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import SEED, agent_settings, eventually, start
from tests.kafka.mock_cluster import read_all

ROUTES = """
import json
from clusternode import kafka, routes

got = []

@routes.kafka("main", topics="calls", group="workers", retries=1, dead_letter="dead")
async def calls(record):
    if record.text == "bad":
        raise ValueError("no")
    await kafka.publish("main", "answers", record.payload, key=record.key,
                        headers={"offset": str(record.offset)})

@routes.message("cdr")
def cdr(message):
    kafka.send("main", "cdrs", message.body, key=message.origin)

@routes.message("from-topic")
def from_topic(message):
    kafka.send("main", "heard", message.bus.node_id + " " + message.text)
"""
TOPICS = ("calls", "answers", "others", "dead", "fraud", "orders", "heard", "events")
BRIDGES = [
    {"name": "out", "from": "channel:fraud", "to": "kafka:main/fraud", "key": "{origin}",
     "headers": {"source": "{channel}/{node}"}},
    {"name": "back", "from": "kafka:main/fraud", "to": "channel:fraud"},
    {"name": "in", "from": "kafka:main/orders", "to": "channel:from-topic"},
    {"name": "events", "from": "event:E_CALL", "to": "kafka:main/events", "key": "{param.id}"},
]  # fmt: skip


def plugins(kafka, **more) -> RawTable:
    connection = {
        "brokers": kafka.brokers,
        "linger_ms": 0,
        "session_timeout_ms": 2000,
        "auto_offset_reset": "earliest",
        "flush_timeout": 2.0,
        "properties": {"g.fetch.wait.max.ms": 10},
    }
    return RawTable((), {"kafka": {"main": connection}, **more})


@contextlib.asynccontextmanager
async def agents(kafka, tmp_path: Path, count: int = 1, routes: str = ROUTES, **more):
    """Agents n1, n2 … ; only the first has bridges."""
    for topic in TOPICS:
        kafka.create_topic(topic)
    file = tmp_path / "routes.py"
    file.write_text(routes)
    network, running = MemoryNetwork(), []
    async with trio.open_nursery() as nursery:
        for number in range(1, count + 1):
            settings = agent_settings(
                f"n{number}", f"tcp://10.0.0.{number}:5062", [SEED], routes=file
            )
            own = plugins(kafka, **(more if number == 1 else {}))
            agent = Agent(
                attrs.evolve(settings, plugins=own),
                transport=network.transport(f"10.0.0.{number}"),
                resolver=FakeResolver(),
                has_control=False,
            )
            running.append(await start(nursery, agent))
        await eventually(
            lambda: all(list(each.statuses().values()) == ["active"] * count for each in running)
        )
        yield running
        for each in running:
            await each.leave()


@pytest.mark.slow
async def test_a_route_handles_records_and_what_fails_goes_to_the_dead_letter_topic(
    kafka, tmp_path
):
    async with agents(kafka, tmp_path) as (one,):
        main = one.agent.kafka.connections.get("main")
        for value in ("a", "bad", "b"):
            await main.publish("calls", value, key="k")

        answers = await trio.to_thread.run_sync(read_all, kafka.brokers, "answers", 2)
        letters = await trio.to_thread.run_sync(read_all, kafka.brokers, "dead", 1)
        (consumer,) = one.agent.kafka.consumers()

    assert sorted(each.value() for each in answers) == [b"a", b"b"]
    assert answers[0].key() == b"k"
    assert letters[0].value() == b"bad"
    assert dict(letters[0].headers())["clusternode.error"] == b"ValueError: no"
    assert (consumer.counters.handled, consumer.counters.dead_lettered) == (2, 1)


@pytest.mark.slow
async def test_bridges_relay_both_ways_and_never_in_a_loop(kafka, tmp_path):
    async with agents(kafka, tmp_path, 2, kafka_bridge=BRIDGES) as (one, two):
        sent = two.bus.broadcast("fraud", b"alice", content_type="text/plain")
        assert {int(code) for code in (await sent).values()} == {200}
        await one.agent.kafka.connections.get("main").publish("orders", "42")
        one.agent.events.raise_event("E_CALL", {"id": "c1", "n": 1})

        (fraud,) = await trio.to_thread.run_sync(read_all, kafka.brokers, "fraud", 1)
        heard = await trio.to_thread.run_sync(read_all, kafka.brokers, "heard", 2)
        (event,) = await trio.to_thread.run_sync(read_all, kafka.brokers, "events", 1)
        bridges = {row["name"]: row for row in one.agent.kafka.bridges_status()}
        await eventually(lambda: one.agent.kafka.bridges_status()[1]["looped"] == 1)

    headers = dict(fraud.headers())
    assert (fraud.key(), fraud.value()) == (b"n2", b"alice")
    assert (headers["content-type"], headers["source"]) == (b"text/plain", b"fraud/n1")
    assert headers["clusternode.via"] == b"channel:fraud@voip"
    assert sorted(each.value() for each in heard) == [b"n1 42", b"n2 42"]
    assert event.key() == b"c1"
    assert json.loads(event.value())["params"] == {"id": "c1", "n": 1}
    assert bridges["out"]["relayed"] == 1
    assert len(read_all(kafka.brokers, "fraud", 2, 1.0)) == 1, "it went round"


@pytest.mark.slow
async def test_a_reload_swaps_the_handler_and_loses_no_record(kafka, tmp_path):
    async with agents(kafka, tmp_path) as (one,):
        main = one.agent.kafka.connections.get("main")
        await main.publish("calls", "a")
        await trio.to_thread.run_sync(read_all, kafka.brokers, "answers", 1)
        (tmp_path / "routes.py").write_text(ROUTES.replace('"answers"', '"others"'))

        await one.agent.reload()
        await main.publish("calls", "b")
        others = await trio.to_thread.run_sync(read_all, kafka.brokers, "others", 1)
        (consumer,) = one.agent.kafka.consumers()
        rebalances = consumer.reader.counters.rebalances

    assert [each.value() for each in others] == [b"b"]
    assert rebalances == 1, "a reload does not leave the group"


async def test_a_route_for_an_unknown_connection_is_refused_and_names_those_there_are(
    kafka, tmp_path
):
    file = tmp_path / "routes.py"
    file.write_text(ROUTES.replace('@routes.kafka("main"', '@routes.kafka("other"'))
    settings = agent_settings("n1", "tcp://10.0.0.1:5062", routes=file)
    agent = Agent(attrs.evolve(settings, plugins=plugins(kafka)), has_control=False)

    with pytest.raises(RouteError, match=r"no \[kafka.other\]; there are: main"):
        await agent.run()


@pytest.mark.slow
async def test_the_commands_show_and_use_connections(kafka, tmp_path, capsys):
    async def command(*words: str) -> tuple[int, str, str]:
        own = (*words, "--socket", str(tmp_path / "n1.sock"))
        status = await trio.to_thread.run_sync(partial(main, own))
        return (status, *capsys.readouterr())

    async with agents(kafka, tmp_path, kafka_bridge=BRIDGES) as (one,):  # noqa: SIM117  # in this order
        async with trio.open_nursery() as nursery:  # it ends before the agents do
            await nursery.start(ControlServer(one.agent, tmp_path / "n1.sock").run)
            sent = await command("kafka", "send", "main", "calls", "x", "--key", "k", "--json")
            notified = await command(
                "kafka", "notify", "call.ended", '{"n": 1}', "--connection", "main",
                "--priority", "WARN", "--publisher-id", "ops", "--topic", "alarms",
            )  # fmt: skip
            louder = await command(
                "kafka", "notify", "x", "--connection", "main", "--priority", "a"
            )
            shown = await command("kafka", "show", "main")
            unknown = await command("kafka", "show", "nobody")
            status = await command("kafka", "status")
            names = await command("kafka", "status", "--names")
            await eventually(
                lambda: sum(len(each.partitions) for each in one.agent.kafka.consumers()) >= 2
            )
            consumers = await command("kafka", "consumers")
            consumer = await command("kafka", "consumer", "main")
            kafka.kill()
            late = await command("kafka", "send", "main", "calls", "y", "--timeout", "0.2")
            kafka.restart()
            nursery.cancel_scope.cancel()

    placed = json.loads(sent[1])
    assert (placed["topic"], placed["offset"]) == ("calls", 0)
    assert placed["latency_ms"] > 0
    assert notified[1].startswith("delivered to alarms.warn, partition ")
    (message,) = read_all(kafka.brokers, "alarms.warn", 1)
    got = decode_untrusted(message.value())
    assert (got.event_type, got.payload) == ("call.ended", {"n": 1})
    assert (got.publisher_id, got.priority) == ("ops", "warn")
    assert (louder[0], "priority must be one of audit" in louder[2]) == (2, True)
    assert f"Brokers:                       {kafka.brokers}" in shown[1]
    assert names[1] == "main\n"
    assert unknown[0] == 1
    assert "no connection named nobody; in the configuration: main" in unknown[2]
    assert status[1].splitlines()[0].split()[:2] == ["NAME", "BROKERS"]
    assert "kafka:main/fraud" in status[1]
    assert consumers[1].splitlines()[0].startswith("NAME  ")
    assert "workers" in consumers[1]
    assert "Subscribed:" in consumer[1]
    assert "Group ID:" in consumer[1]
    assert late[0] == 1
    assert "may still be delivered" in late[2]
