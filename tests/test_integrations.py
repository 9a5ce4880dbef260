"""Kafka and bridges are loaded by those agents that use them, also when a reload brings them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from clusternode.agent import Agent
from clusternode.cli.local.fleet import free_port
from clusternode.config.raw import RawTable
from clusternode.errors import ConfigError, NoSuchConnection
from tests.agents import agent_settings, eventually
from tests.bridge.world import LISTENER, world_of

BOTH = {"name": "fraud", "from": "channel:fraud@a", "to": "channel:fraud@b", "direction": "both"}
ROOT = Path(__file__).resolve().parent.parent
ALONE = """
import sys

import trio

from clusternode.agent import Agent
from clusternode.config import load_settings

settings = load_settings(None, environ={}, overrides={
    "node.id": "n1",
    "node.address": sys.argv[1],
    "node.control_socket": sys.argv[2],
})

async def main():
    agent = Agent(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        agent.stop()

trio.run(main)
print(*sorted(sys.modules))
"""


def test_an_agent_has_nothing_in_memory_that_its_configuration_does_not_use(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, f"tcp://127.0.0.1:{free_port()}", tmp_path / "n1.sock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    loaded = set(ran.stdout.split())
    assert "clusternode.control.server" in loaded
    assert not loaded & {
        "clusternode.bridge",
        "clusternode.gateways.kamailio",
        "clusternode.gateways.opensips",
        "clusternode.kafka.connections",
        "clusternode.kafka.service",
        "confluent_kafka",
        "dns",
        "sipmessage",
    }


async def test_a_reload_brings_bridges_to_an_agent_that_had_none(tmp_path, autojump_clock):
    async with world_of(tmp_path) as world:
        one = await world.add("n1", ["a", "b"])
        await world.add("n2", ["a"])
        await world.add("n3", ["b"], routes=LISTENER)
        await world.settled()
        assert one.agent.bridge_status() == ()

        world.settings["n1"] = world.with_bridges("n1", [BOTH])
        await one.agent.reload()
        await eventually(lambda: world.states("fraud") == {"n1": "chosen"})
        await world.agents["n2"].bus.broadcast("fraud", "192.0.2.66")

        assert world.texts("n3") == ["192.0.2.66"]


async def test_a_reload_that_is_refused_brings_nothing(tmp_path, autojump_clock):
    async with world_of(tmp_path) as world:
        one = await world.add("n1", ["a", "b"])

        world.settings["n1"] = world.with_bridges("n1", [{**BOTH, "to": "channel:fraud@c"}])
        with pytest.raises(ConfigError, match="a cluster or gateway"):
            await one.agent.reload()

        assert list(one.agent.bridge_status()) == []


async def test_a_reload_brings_connections_to_an_agent_that_had_none(tmp_path, autojump_clock):
    async with world_of(tmp_path) as world:
        one = await world.add("n1", ["a"])
        with pytest.raises(NoSuchConnection, match="no connection named main"):
            one.agent.kafka.connections.get("main")

        kafka = RawTable((), {"kafka": {"main": {"brokers": "127.0.0.1:9"}}})
        world.settings["n1"] = attrs.evolve(world.settings["n1"], plugins=kafka)
        await one.agent.reload()

        assert one.agent.kafka.connections.get("main").name == "main"


def test_a_wrong_section_is_refused_when_the_agent_is_made():
    settings = agent_settings("n1", "tcp://10.0.0.1:5062")
    wrong = RawTable((), {"kafka": {"main": {"broker": "127.0.0.1:9"}}})

    with pytest.raises(ConfigError, match=r"kafka\.main"):
        Agent(attrs.evolve(settings, plugins=wrong), has_control=False)
