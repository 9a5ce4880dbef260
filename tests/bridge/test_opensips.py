"""Two agents that bridge a simulated OpenSIPS with one of our clusters, and do not echo."""

from __future__ import annotations

from typing import Any

import pytest

from clusternode.simulation.opensips.links import Timing
from clusternode.simulation.opensips.node import REQUEST_RECEIVED
from clusternode.testing.opensips import PORT, LocalOpenSips
from tests.agents import eventually
from tests.bridge.world import World, world_of

pytestmark = pytest.mark.slow

HOST = "127.0.68.1"
TIMING = Timing(ping_interval=1.0, ping_timeout=0.5, node_timeout=5.0)
THERE = {"name": "there", "from": "channel:talk@a", "to": "channel:generic@opensips"}
BACK = {
    "name": "back",
    "from": "channel:generic@opensips",
    "to": "channel:talk@a",
    "filters": {"body": "*"},
}
CELLS = {
    "name": "cells",
    "from": "table:c1@opensips",
    "to": "channel:cells@a",
    "direction": "forward",
}
CELL = '{"action": "set", "table": "c1", "key": "k", "value": "v", "ttl": 60}'
ROUTES = """
from clusternode import routes

@routes.message("talk")
@routes.message("cells")
def heard(message):
    message.raise_event("E_HEARD", {"text": message.text})
"""


def gateway(number: int) -> dict[str, Any]:
    return {
        "opensips": {
            "cluster_id": 1,
            "my_node_id": number,
            "my_node_info": f"url=bin:127.0.68.{number}:{PORT}",
            "neighbor_node_info": [f"node_id=1, url=bin:{HOST}:{PORT}"],
            "ping_interval": 1.0,
            "ping_timeout": 0.5,
        }
    }


def requests(opensips: LocalOpenSips) -> list[tuple[int, bytes]]:
    found = [each for each in opensips.node.events if each.name == REQUEST_RECEIVED]
    return [(each.source, each.text) for each in found]


def sees_all(world: World, node_id: str) -> bool:
    bus = world.agents[node_id].agent.buses["opensips"]
    return [each.status for each in bus.members()] == ["active"] * 3


async def start(world: World) -> LocalOpenSips:
    """n1 has the way there, n2 the way back, so that neither knows of a circle."""
    opensips = LocalOpenSips(1, HOST, timing=TIMING)
    await world.nursery.start(opensips.run)
    await world.add("n1", ["a"], bridges=[THERE, CELLS], gateway=gateway(8))
    await world.add("n2", ["a"], bridges=[BACK], gateway=gateway(9))
    await world.add("n3", ["a"], routes=ROUTES)
    await eventually(lambda: opensips.node.link_states() == {8: "Up", 9: "Up"})
    await eventually(lambda: all(sees_all(world, node_id) for node_id in ("n1", "n2")))
    return opensips


async def test_what_one_agent_says_there_no_other_brings_back(tmp_path):
    async with world_of(tmp_path) as world:
        opensips = await start(world)

        sent = await world.agents["n3"].bus.broadcast("talk", "hello")
        opensips.node.broadcast_request(b"good day")
        opensips.node.store(b"k", b"v", 60)
        await eventually(lambda: len(world.heard["n3"]) >= 2)
        rows = {**world.rows("n1"), **world.rows("n2")}

    assert {node: int(code) for node, code in sent.items()} == {"n1": 200, "n2": 404}
    assert requests(opensips) == [(8, b"hello")]
    assert set(world.texts("n3")) == {"good day", CELL}
    assert len(world.texts("n3")) == 2
    assert (rows["there"]["relayed"], rows["back"]["relayed"], rows["back"]["looped"]) == (1, 1, 1)
