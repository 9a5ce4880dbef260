"""What the bus promises, with real processes on a bad network: loss, cuts, stalls and kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest
import trio

from clusternode.cli.local.fleet import Fleet, LocalAgent
from tests.real.hosts import Hosts
from tests.real.load import journals, load_routes, rough_proxy
from tests.system.command_line import CLUSTER, PATIENCE, call, counter, exit_status

pytestmark = [pytest.mark.real, pytest.mark.slow]

PORT = 5062
PROXY = 4
"""The number of the host with the proxy."""
HEALTH = {"ping_interval": 1.0, "ping_timeout": 1.0}
DISCOVERY = {"redial_max": 1.0}
MESSAGES = 66_000
"""Of each of three agents, one of which is killed; most go to both others."""
HANDLED_MIN = 100_000
"""By each of them, in all its lives."""
WINDOW = 400
"""Messages of one agent without their results."""
LOSS = 0.05
NARROW = "160kbit"
"""20 kB/s: one body of a mebibyte takes it for nearly a minute, and a ping has a second."""
LOAD_TIMEOUT = 280.0
"""Nothing waits for this: it ends a test that would hang."""


@pytest.fixture
def proxy(fleet: Fleet, hosts: Hosts) -> Iterator[Callable[[], Counter[str]]]:
    """A rough proxy on the fourth host, one port for each agent; gives what ends it and counts."""
    statistics = fleet.directory / "proxy.json"
    ports = [f"{PORT + number}={hosts.address(number)}:{PORT}" for number in (1, 2, 3)]
    command = [*hosts.launcher(PROXY), sys.executable, rough_proxy.__file__]
    process = subprocess.Popen([*command, "seed 3", str(statistics), *ports])

    def end() -> Counter[str]:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        return Counter(json.loads(statistics.read_text()))

    try:
        yield end
    finally:
        process.kill()
        process.wait()


def add_agents(
    fleet: Fleet,
    hosts: Hosts,
    address: Callable[[int], str],
    **sections: Mapping[str, object],
) -> list[LocalAgent]:
    """Agents under load, each dialled at `address` of its number."""
    routes = fleet.directory / "routes.py"
    shutil.copyfile(load_routes.__file__, routes)
    return [
        fleet.add(
            f"n{number}",
            cluster=CLUSTER,
            routes=routes,
            sections={
                "node": {
                    "address": address(number),
                    "listen": f"tcp://{hosts.address(number)}:{PORT}",
                    "insecure": True,
                },
                "health": HEALTH,
                "discovery": {"notification_addresses": [address(1)], **DISCOVERY},
                **sections,
            },
            host=hosts.address(number),
            port=PORT,
            launcher=hosts.launcher(number),
        )
        for number in (1, 2, 3)
    ]


async def go(agent: LocalAgent, **order: object) -> None:
    """Let an agent begin to send."""
    body = json.dumps(order)
    results = await call(agent, "cluster.send", channel="go", node=agent.node_id, body=body)
    assert results[agent.node_id]["code"] == 200


async def test_100_000_messages_for_each_through_loss_cuts_stalls_stops_and_kills(
    fleet, hosts, proxy, require_program
):
    iptables = require_program("iptables")
    n1, n2, n3 = add_agents(
        fleet, hosts, lambda number: f"tcp://{hosts.address(PROXY)}:{PORT + number}"
    )
    for number in (1, 2, 3):
        hosts.lose(number, LOSS, iptables)
    await fleet.start()
    for agent in (n1, n2, n3):
        await go(agent, messages=MESSAGES, window=WINDOW)

    progress = journals.Progress(fleet.directory)

    async def until(share: float) -> None:
        wanted = int(share * 3 * MESSAGES)
        what = f"{wanted} messages are handled"
        await fleet.wait(lambda: progress.handled() >= wanted, what, LOAD_TIMEOUT)

    await until(0.15)
    os.kill(n2.pid, signal.SIGSTOP)
    await trio.sleep(3.0)
    os.kill(n2.pid, signal.SIGCONT)

    await until(0.4)
    hosts.cut(1)
    await trio.sleep(4.0)
    hosts.heal(1)

    await until(0.7)
    n3.kill()
    n3.start()
    await fleet.wait_formed()
    await go(n3, messages=MESSAGES // 2, window=WINDOW)

    await until(0.9)
    hosts.cut(PROXY)
    await trio.sleep(1.0)
    hosts.heal(PROXY)
    await fleet.wait(lambda: progress.ended() == 3, "all have their results", LOAD_TIMEOUT)
    await fleet.wait_formed()
    for agent in (n1, n2, n3):
        agent.terminate()
        assert await exit_status(agent) == 0

    faults = proxy()
    assert faults["cuts"] and faults["stalls"], faults
    lives = journals.read(fleet.directory)
    assert list(journals.problems(lives)) == []
    results = [
        (life.node_id, node_id, code)
        for life in lives
        for one in life.results.values()
        for node_id, code in one
    ]
    handled = Counter[str]()
    for life in lives:
        handled[life.node_id] += len(life.handled)
    assert len(handled) == 3 and min(handled.values()) >= HANDLED_MIN, handled
    between_those_that_lived = Counter(
        code for origin, node_id, code in results if "n3" not in (origin, node_id)
    )
    # 480: not sent to who was stopped or cut off at that moment, and the sender was told.
    assert set(between_those_that_lived) <= {200, 480}, between_those_that_lived


async def test_narrow_links_with_full_queues_all_ways_are_no_death(fleet, hosts, require_program):
    tc = require_program("tc")
    agents = add_agents(
        fleet,
        hosts,
        lambda number: f"tcp://{hosts.address(number)}:{PORT}",
        health={"ping_interval": 2.0, "ping_timeout": 2.0},
        messaging={"outbox_bytes": 2_000_000},
    )
    await fleet.start()
    for number in (1, 2, 3):
        hosts.narrow(number, NARROW, tc)

    for agent in agents:
        await go(agent, messages=100_000, window=2000)
    for _ in range(4):
        before = {agent.node_id: counter(agent, "pings_extended") for agent in agents}
        await fleet.wait(
            lambda before=before: all(
                counter(agent, "pings_extended") > before[agent.node_id] for agent in agents
            ),
            "a ping of each has waited behind a queue",
            PATIENCE,
        )

    for agent in agents:
        assert set(agent.statuses().values()) == {"active"}
        assert counter(agent, "pings_failed") == 0


async def test_a_broken_link_is_gone_around_and_nobody_is_down(fleet, hosts, require_program):
    iptables = require_program("iptables")
    agents = n1, n2, _ = add_agents(
        fleet, hosts, lambda number: f"tcp://{hosts.address(number)}:{PORT}"
    )
    await fleet.start()

    def link(agent: LocalAgent, node_id: str) -> str:
        return next(row["link"] for row in agent.members() if row["node_id"] == node_id)

    hosts.block(1, 2, iptables)
    for agent in (n1, n2):
        await go(agent, messages=3000, window=20)
    progress = journals.Progress(fleet.directory)
    await fleet.wait(
        lambda: link(n1, "n2") == "via n3" and link(n2, "n1") == "via n3",
        "n1 and n2 talk through n3",
        PATIENCE,
    )
    before = progress.handled()
    await fleet.wait(lambda: progress.handled() > before + 100, "messages arrive", PATIENCE)

    hosts.unblock(1, 2, iptables)
    await fleet.wait(
        lambda: link(n1, "n2") == "direct" and link(n2, "n1") == "direct",
        "they talk directly again",
        PATIENCE,
    )
    await fleet.wait(lambda: progress.ended() == 2, "all have their results", LOAD_TIMEOUT)

    lives = journals.read(fleet.directory)
    assert list(journals.problems(lives)) == []
    codes = Counter(code for life in lives for one in life.results.values() for _, code in one)
    assert set(codes) == {200}, codes
    for agent in agents:
        assert counter(agent, "pings_failed") == 0
