"""Three hosts with network interfaces of their own: the demo's story, and a cut cable."""

import pytest
import trio

from clusternode.cli.local.story import ATTACKER, NODE_IDS, QUESTION, ROUTES
from tests.system.command_line import (
    CLUSTER,
    PATIENCE,
    SLACK,
    call,
    clusternode,
    exit_status,
    log_of,
    sees,
)

pytestmark = [pytest.mark.real, pytest.mark.slow]

PORT = 5062
HEALTH = {"ping_interval": 1.0, "ping_timeout": 0.5}
DISCOVERY = {"redial_max": 1.0}
NOTICED = HEALTH["ping_interval"] + HEALTH["ping_timeout"]
HEALED = 2 * HEALTH["ping_interval"] + DISCOVERY["redial_max"] + HEALTH["ping_timeout"]
HANDLED = "banned {}, found by"
"""What the demo's route prints for each message."""


def add_agents(fleet, hosts, **sections):
    """An agent on each host; n1 is everybody's way in, and n2's, so that it may be lost."""
    return [
        fleet.add(
            node_id,
            cluster=CLUSTER,
            routes=ROUTES,
            sections={
                "node": {"insecure": True},
                "health": HEALTH,
                "discovery": DISCOVERY,
                **sections,
            },
            host=hosts.address(number),
            port=PORT,
            launcher=hosts.launcher(number),
        )
        for number, node_id in enumerate(NODE_IDS, 1)
    ]


def everyone_sees_everyone(*agents):
    ids = {agent.node_id for agent in agents}
    return all(
        agent.statuses() == dict.fromkeys(ids - {agent.node_id}, "active") for agent in agents
    )


def not_active(status):
    return status in (None, "not_active", "disabled")


async def seconds_until(fleet, holds, what):
    began = trio.current_time()
    await fleet.wait(holds, what, PATIENCE)
    return trio.current_time() - began


async def test_the_story_of_the_demo_on_three_hosts(fleet, hosts):
    n1, n2, n3 = add_agents(fleet, hosts)
    await fleet.start()

    asked = await clusternode("request", "locate", QUESTION, "--include-self", "-c", str(n1.config))
    assert asked.status == 0
    assert "sip:alice@n2.example.net" in asked.output
    banned = await call(n2, "cluster.broadcast", channel="fraud", body=ATTACKER)
    assert {node_id: result["code"] for node_id, result in banned.items()} == {"n1": 200, "n3": 200}

    seen: list[str] = []
    n3.kill()
    async with trio.open_nursery() as nursery:

        async def watch():
            while True:
                status = (await trio.to_thread.run_sync(n1.statuses)).get("n3", "removed")
                if status not in seen[-1:]:
                    seen.append(status)
                await trio.sleep(0.02)

        nursery.start_soon(watch)
        await fleet.wait(lambda: seen[-1:] == ["removed"], "n3 is removed", PATIENCE)
        nursery.cancel_scope.cancel()
    assert [status for status in seen if status != "active"] == [
        "not_active",
        "disabled",
        "removed",
    ]
    await sees(fleet, n2, n1="active")

    n3.start()
    await fleet.wait(lambda: everyone_sees_everyone(n1, n2, n3), "n3 is back", PATIENCE)

    n1.terminate()
    assert await exit_status(n1) == 0
    await sees(fleet, n2, n1="left", n3="active")
    await sees(fleet, n3, n1="left", n2="active")


async def test_a_cut_cable_is_noticed_on_both_sides_and_nothing_is_lost_silently(fleet, hosts):
    n1, n2, n3 = add_agents(fleet, hosts, messaging={"delivery_timeout": 2.0})
    await fleet.start()

    hosts.cut(3)
    results = {}

    async def broadcast():
        results.update(await call(n1, "cluster.broadcast", channel="fraud", body="in the cut"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broadcast)
        took = await seconds_until(
            fleet,
            lambda: (
                all(not_active(one.statuses().get("n3")) for one in (n1, n2))
                and all(not_active(n3.statuses().get(other)) for other in ("n1", "n2"))
            ),
            "both sides have noticed",
        )
    assert took < NOTICED + SLACK
    assert results["n2"]["code"] == 200
    assert results["n3"]["code"] in (408, 480)
    assert results["n3"]["definite"] == (results["n3"]["code"] == 480)
    assert n1.statuses()["n2"] == "active"

    again = await clusternode("send", "fraud", "n3", "to nobody", "-c", str(n1.config))
    assert again.status == 1

    hosts.heal(3)
    took = await seconds_until(
        fleet, lambda: everyone_sees_everyone(n1, n2, n3), "all see each other again"
    )
    assert took < HEALED + SLACK
    healed = await call(n3, "cluster.broadcast", channel="fraud", body="all is well")
    assert {node_id: result["code"] for node_id, result in healed.items()} == {"n1": 200, "n2": 200}


async def test_a_message_sent_into_the_cut_arrives_once_when_it_heals_in_time(fleet, hosts):
    n1, n2, n3 = add_agents(fleet, hosts)  # delivery_timeout is 30 s
    await fleet.start()
    results = []

    async def send(body):
        results.append(await call(n1, "cluster.send", channel="fraud", node="n3", body=body))

    hosts.cut(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, "first")
        nursery.start_soon(send, "second")
        await fleet.wait(
            lambda: not_active(n1.statuses().get("n3")) and not_active(n3.statuses().get("n1")),
            "both sides have noticed",
        )
        hosts.heal(3)
        took = await seconds_until(
            fleet, lambda: everyone_sees_everyone(n1, n2, n3), "all see each other again"
        )

    assert took < HEALED + SLACK
    assert [result["n3"]["code"] for result in results] == [200, 200]
    for body in ("first", "second"):
        assert log_of(n3).count(HANDLED.format(body)) == 1


async def test_a_short_cut_changes_nothing_but_the_delay(fleet, hosts):
    n1, n2, n3 = add_agents(fleet, hosts, health={"ping_interval": 4.0, "ping_timeout": 3.0})
    await fleet.start()
    lost = [agent.call("cluster.show")["counters"]["connections_lost"] for agent in (n1, n2, n3)]

    hosts.cut(3)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            results = []

            async def send():
                results.append(
                    await call(n1, "cluster.send", channel="fraud", node="n3", body="late")
                )

            nursery.start_soon(send)
            await trio.sleep(0.5)
            assert results == []
            hosts.heal(3)

    assert results == [{"n3": {"code": 200, "definite": False, "text": "ok"}}]
    assert log_of(n3).count(HANDLED.format("late")) == 1
    assert everyone_sees_everyone(n1, n2, n3)
    after = [agent.call("cluster.show")["counters"]["connections_lost"] for agent in (n1, n2, n3)]
    assert after == lost
