"""The examples of docs/kafka.md and its sisters, run in whole agents."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import trio

from clusternode.agent import Agent
from clusternode.config.raw import RawTable
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import SEED, agent_settings, eventually, start
from tests.kafka.mock_cluster import read_all

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


async def run_agent(nursery: trio.Nursery, routes: str, tables: dict):
    settings = agent_settings("n1", SEED, routes=EXAMPLES / routes)
    agent = Agent(
        attrs.evolve(settings, plugins=RawTable((), tables)),
        transport=MemoryNetwork().transport("10.0.0.1"),
        resolver=FakeResolver(),
        has_control=False,
    )
    return await start(nursery, agent)


@pytest.mark.slow
async def test_calls_are_kept_in_kafka_and_orders_come_from_it(kafka):
    for topic in ("cdrs", "traces", "orders", "orders.dead"):
        kafka.create_topic(topic)
    own = {
        "brokers": kafka.brokers,
        "auto_offset_reset": "earliest",
        "session_timeout_ms": 2000,
        "properties": {"g.fetch.wait.max.ms": 10},
    }
    traces = {"uri": f"{kafka.brokers}/traces?g.linger.ms=1"}
    async with trio.open_nursery() as nursery:
        running = await run_agent(
            nursery, "calls_to_kafka.py", {"kafka": {"main": own, "traces": traces}}
        )
        result = await running.bus.send("cdr", "n1", b"call")
        await running.bus.send("trace", "n1", b"invite")
        await running.agent.kafka.connections.get("main").publish("orders", '{"number": "7"}')
        await eventually(
            lambda: [each.counters.handled for each in running.agent.kafka.consumers()] == [1]
        )
        await running.leave()

    assert {int(code) for code in result.values()} == {200}
    (record,) = read_all(kafka.brokers, "cdrs", 1)
    assert (record.key(), record.value()) == (b"n1", b"call")
    assert read_all(kafka.brokers, "traces", 1)[0].value() == b"invite"


@pytest.mark.slow
async def test_the_hybrid_answers_over_the_mesh_and_notifies_over_kafka(kafka):
    for priority in ("info", "error"):
        kafka.create_topic(f"notifications.{priority}.site1")
    url = f"kafka://user:pass@{kafka.brokers}/site1"
    async with trio.open_nursery() as nursery:
        running = await run_agent(nursery, "hybrid.py", {"notifications": {"transport_url": url}})
        (consumer,) = running.agent.kafka.consumers()
        await eventually(lambda: len(consumer.partitions) == 2)

        reply = await running.bus.request("locate", "n1", b"alice").first()
        message = await trio.to_thread.run_sync(
            read_all, kafka.brokers, "notifications.info.site1", 1
        )
        await running.leave()

    assert json.loads(reply.body) == {"contact": "sip:alice@192.0.2.10"}
    envelope = json.loads(message[0].value())
    assert json.loads(envelope["oslo.message"])["payload"] == {"who": "alice"}
