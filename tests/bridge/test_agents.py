"""Bridges of whole agents: what is relayed, what the sender is told, and who takes over."""

from __future__ import annotations

import pytest
import trio

from tests.agents import eventually
from tests.bridge.world import LISTENER, world_of

BOTH = {"name": "fraud", "from": "channel:fraud@a", "to": "channel:fraud@b", "direction": "both"}
LOCATE = {"name": "locate", "from": "request:locate@a", "to": "request:locate@b"}


@pytest.fixture
async def world(tmp_path):
    """n1 and n2 are in the clusters a and b and bridge them; n3 is in a only, n4 in b only."""
    async with world_of(tmp_path) as world:
        for node_id in ("n1", "n2"):
            await world.add(node_id, ["a", "b"], bridges=[BOTH, LOCATE])
        await world.add("n3", ["a"], routes=LISTENER)
        await world.add("n4", ["b"], routes=LISTENER)
        await world.settled()
        await eventually(lambda: world.states("fraud") == {"n1": "chosen", "n2": "standby"})
        yield world


async def test_a_message_crosses_once_each_way_and_never_comes_back(world, autojump_clock):
    there = await world.agents["n3"].bus.broadcast("fraud", "192.0.2.66")
    back = await world.agents["n4"].bus.broadcast("fraud", "192.0.2.77")
    await trio.sleep(60)

    assert {node: int(code) for node, code in there.items()} == {"n1": 200, "n2": 202}
    assert {node: int(code) for node, code in back.items()} == {"n1": 200, "n2": 202}
    assert (world.texts("n3"), world.texts("n4")) == (["192.0.2.77"], ["192.0.2.66"])
    assert world.heard["n4"][0]["type"].startswith("text/plain;bridged=")
    assert world.rows("n1")["fraud"]["relayed"] == 2
    assert world.rows("n2")["fraud"]["held"] == 0


async def test_two_equal_messages_are_not_a_loop(world, autojump_clock):
    for _ in range(2):
        await world.agents["n3"].bus.broadcast("fraud", "192.0.2.66")

    assert world.texts("n4") == ["192.0.2.66", "192.0.2.66"]


async def test_a_request_is_asked_there_and_its_replies_come_back(world, autojump_clock):
    found = await world.agents["n3"].bus.broadcast_request("locate", "alice").gather()
    nothing = await world.agents["n3"].bus.broadcast_request("locate", "bob").gather()

    assert [(reply.node_id, reply.text) for reply in found] == [("n1", "at n4")]
    assert nothing == []


async def test_another_agent_takes_over_when_the_chosen_one_dies(world, autojump_clock):
    await world.agents.pop("n1").kill()
    await eventually(lambda: world.states("fraud") == {"n2": "chosen"})
    await world.settled()  # else the far side waits for the dead one, too

    results = await world.agents["n3"].bus.broadcast("fraud", "192.0.2.88")

    assert int(results["n2"]) == 200
    assert world.texts("n4") == ["192.0.2.88"]


async def test_what_the_dead_one_had_not_relayed_is_relayed_by_the_other(world, autojump_clock):
    bus, sent, answered = world.agents["n3"].bus, 200, set()

    async def send(number: int) -> None:
        results = await bus.broadcast("fraud", str(number))
        if any(code in (200, 202) for code in results.values()):
            answered.add(str(number))

    async with trio.open_nursery() as nursery:
        for number in range(sent):
            nursery.start_soon(send, number)
            await trio.sleep(0.001)
            if number == sent // 2:
                nursery.start_soon(world.agents.pop("n1").kill)
    await trio.sleep(30)

    assert len(answered) == sent
    assert set(world.texts("n4")) == answered


async def test_the_sender_is_told_when_nobody_is_on_the_far_side(world, autojump_clock):
    await world.agents.pop("n4").kill()
    await eventually(lambda: "n4" not in world.agents["n1"].statuses())
    await trio.sleep(30)

    results = await world.agents["n3"].bus.broadcast("fraud", "x")

    assert {node: int(code) for node, code in results.items()} == {"n1": 404, "n2": 202}


async def test_a_partition_may_repeat_a_message_and_heals(world, autojump_clock):
    others = ("10.0.0.2", "10.0.0.3", "10.0.0.4")
    for other in others:
        world.network.cut("10.0.0.1", other)
    await eventually(lambda: world.states("fraud") == {"n1": "chosen", "n2": "chosen"})

    results = await world.agents["n3"].bus.broadcast("fraud", "parted")
    for other in others:
        world.network.heal("10.0.0.1", other)
    await eventually(lambda: world.states("fraud") == {"n1": "chosen", "n2": "standby"})
    await eventually(lambda: "parted" in world.texts("n4"))
    await world.settled()
    await world.agents["n3"].bus.broadcast("fraud", "healed")

    assert int(results["n2"]) == 200
    assert world.texts("n4").count("healed") == 1


async def test_a_bridge_says_when_the_far_side_stops_taking_and_takes_again(world, autojump_clock):
    told = []
    events = world.agents["n1"].agent.events
    events.declare(["E_BRIDGE_FAILING", "E_BRIDGE_RECOVERED"])
    for name in ("E_BRIDGE_FAILING", "E_BRIDGE_RECOVERED"):
        events.on_event(name, lambda _, view: told.append((view.name, view.parameters["bridge"])))
    await world.agents.pop("n4").kill()
    await world.agents["n3"].bus.broadcast("fraud", "1")
    await world.agents["n3"].bus.broadcast("fraud", "2")
    await world.add("n4", ["b"], routes=LISTENER)
    await eventually(lambda: world.agents["n4"].statuses().get("n1") == "active")

    await world.agents["n3"].bus.broadcast("fraud", "3")

    assert told == [("E_BRIDGE_FAILING", "fraud"), ("E_BRIDGE_RECOVERED", "fraud")]


async def test_a_reload_swaps_the_rules_and_keeps_what_is_held(tmp_path, autojump_clock):
    async with world_of(tmp_path) as world:
        one = await world.add("n1", ["a", "b"], bridges=[BOTH])
        await world.add("n2", ["a"])
        await world.add("n3", ["b"], routes=LISTENER)
        await world.settled()
        bus = world.agents["n2"].bus
        await bus.broadcast("fraud", "before")

        changed = {**BOTH, "body": "text", "template": "{origin} says {body}"}
        world.settings["n1"] = world.with_bridges("n1", [changed])
        await one.agent.reload()
        await bus.broadcast("fraud", "after")
        world.settings["n1"] = world.with_bridges("n1", [])
        await one.agent.reload()
        results = await bus.broadcast("fraud", "nobody")

        assert world.texts("n3") == ["before", "n2 says after"]
        assert int(results["n1"]) == 404
        assert one.agent.bridge_status() == []
