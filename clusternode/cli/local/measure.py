"""What `clusternode bench` measures, one function each; all with real agents on loopback."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from clusternode.cli.local.fleet import Fleet, FleetError, LocalAgent, cpu_seconds, pss_bytes

ROUTES = Path(__file__).with_name("bench_routes.py")
CLUSTER = "bench"
ORDER_TIMEOUT = 300.0
"""How long one measurement may take."""
WARM_UP = 2000
DELIVERIES_PER_UNIT = 10_000
IDLE_SETTLE_S = 2.0
MIB = 1024 * 1024
PERCENT_99 = 0.99

Progress = Callable[[str], None]


@attrs.frozen
class Row:
    """One line of the table: what was measured, under which conditions, with which figures."""

    what: str
    conditions: str
    figures: dict[str, float]


def _fleet_of(fleet: Fleet, count: int) -> list[LocalAgent]:
    for number in range(count):
        fleet.add(f"n{number}", cluster=CLUSTER, routes=ROUTES, routes_limit=ORDER_TIMEOUT)
    return fleet.agents


async def _order(agent: LocalAgent, channel: str, order: object) -> dict[str, Any]:
    """Ask an agent's own bench route and return its answer."""
    result: list[dict[str, Any]] = []

    def ask() -> None:
        body = order if isinstance(order, str) else json.dumps(order)
        params = {
            "channel": channel,
            "body": body,
            "node": agent.node_id,
            "timeout": ORDER_TIMEOUT,
        }
        with agent.client() as client:
            for is_result, value in client.stream("cluster.request", params, timeout=ORDER_TIMEOUT):
                if is_result and (value["failed"] or value["unanswered"]):
                    raise FleetError(f"{channel}: {value}\n{agent.last_log_lines()}")
                if not is_result:
                    result.append(json.loads(value["body"]))

    await trio.to_thread.run_sync(ask)
    return result[0]


async def measure_broadcast(others: int, size: int, deliveries: int, progress: Progress) -> Row:
    """Broadcast to `others` agents until `deliveries` results are in, all of which must be 200.

    CPU is that of all agents, user and system, from before the first to after the last.
    """
    progress(f"broadcast of {size} bytes to {others} others")
    count = max(1, deliveries // others)
    with Fleet() as fleet:
        agents = _fleet_of(fleet, others + 1)
        await fleet.start()
        await _order(agents[0], "bench:broadcast", {"count": WARM_UP, "size": size})
        before = [cpu_seconds(agent.pid) for agent in agents]
        answer = await _order(agents[0], "bench:broadcast", {"count": count, "size": size})
        spent = [
            cpu_seconds(agent.pid) - start for agent, start in zip(agents, before, strict=True)
        ]
    sent = count * others
    if answer["codes"] != {"200": sent}:
        raise FleetError(f"{sent} deliveries ended as {answer['codes']}, not all as 200")
    unit = sent / DELIVERIES_PER_UNIT
    return Row(
        "broadcast",
        f"{size} B to {others} others",
        {
            "deliveries_per_s": sent / answer["seconds"],
            "cpu_s_per_10k": sum(spent) / unit,
            "cpu_s_per_10k_sender": spent[0] / unit,
            "cpu_s_per_10k_receivers": sum(spent[1:]) / unit,
        },
    )


async def measure_requests(others: int, count: int, progress: Progress) -> Row:
    """Ask `others` agents one question after the other, each until all have answered."""
    progress(f"requests to {others} others")
    with Fleet() as fleet:
        agents = _fleet_of(fleet, others + 1)
        await fleet.start()
        order = {"count": count, "others": others}
        await _order(agents[0], "bench:requests", {**order, "count": count // 10 + 1})
        answer = await _order(agents[0], "bench:requests", order)
    if answer["missing"]:
        raise FleetError(f"{answer['missing']} of {count} requests lacked a reply")
    times = answer["seconds"]
    return Row(
        "request",
        f"all replies of {others} others",
        {
            "p50_ms": percentile(times, 0.5) * 1000,
            "p99_ms": percentile(times, PERCENT_99) * 1000,
        },
    )


async def measure_idle(count: int, seconds: float, progress: Progress) -> Row:
    """Let a cluster stand for a while: CPU and memory of one agent, on average."""
    progress(f"{count} idle agents for {seconds:g} s")
    with Fleet() as fleet:
        agents = _fleet_of(fleet, count)
        await fleet.start()
        await trio.sleep(IDLE_SETTLE_S)
        before = sum(cpu_seconds(agent.pid) for agent in agents)
        await trio.sleep(seconds)
        spent = sum(cpu_seconds(agent.pid) for agent in agents) - before
        memory = [pss_bytes(agent.pid) for agent in agents]
    return Row(
        "idle",
        f"{count} agents",
        {
            "cpu_percent_per_agent": 100 * spent / count / seconds,
            "pss_mib_per_agent": sum(memory) / count / MIB,
        },
    )


async def measure_kill(count: int, rounds: int, progress: Progress) -> Row:
    """Kill one of `count` agents: how long until every survivor shows it not_active."""
    times: list[float] = []
    with Fleet() as fleet:
        agents = _fleet_of(fleet, count)
        await fleet.start()
        victim, survivors = agents[-1], agents[:-1]
        for number in range(rounds):
            progress(f"SIGKILL {number + 1} of {rounds}")
            killed_at = time.monotonic()  # noqa: TID251  # the clock that all processes share
            victim.kill()
            await fleet.wait(
                partial(_all_see, survivors, victim, active=False), "the survivors see the kill"
            )
            for agent in survivors:
                seen = await _order(agent, "bench:seen", victim.node_id)
                times.append(seen["at"] - killed_at)
            victim.start()
            await fleet.wait_formed()
    return Row(
        "kill",
        f"SIGKILL of one of {count}, seen by every survivor",
        {"median_ms": percentile(sorted(times), 0.5) * 1000, "max_ms": max(times) * 1000},
    )


def _all_see(agents: Sequence[LocalAgent], victim: LocalAgent, *, active: bool) -> bool:
    return all((agent.statuses().get(victim.node_id) == "active") is active for agent in agents)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
