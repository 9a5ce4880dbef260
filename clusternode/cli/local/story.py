"""The story that `clusternode demo` tells: three agents meet, talk, lose one, and part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from clusternode.cli.local.fleet import Fleet, FleetError, LocalAgent
from clusternode.cli.local.screen import Screen

ROUTES = Path(__file__).with_name("demo_routes.py")
CLUSTER = "demo"
NODE_IDS = ("n1", "n2", "n3")
VICTIM = "n3"
LOOK_INTERVAL = 0.05
STEP_TIMEOUT = 15.0
PACE = 0.4
"""So that a person can read a step before the next one begins."""
HEALTH = {"ping_interval": 1.0, "ping_timeout": 0.5}
"""Quicker than the default of 5 s, so that the demo is over soon."""
QUESTION = "where is alice?"
ATTACKER = "192.0.2.66"
NO_VIEW = "-"


def add_agents(fleet: Fleet) -> None:
    """Write the configuration of the three agents."""
    for node_id in NODE_IDS:
        fleet.add(node_id, cluster=CLUSTER, routes=ROUTES, sections={"health": HEALTH})


class Story:
    """Plays the steps and shows what each agent sees of the others, as it changes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._views: dict[str, dict[str, str]] = {node_id: {} for node_id in NODE_IDS}
        self._screen = Screen(self._table)
        self._started_at = trio.current_time()

    async def tell(self) -> None:
        """Play it all.

        Raises:
            FleetError: Something did not happen as it should.
        """
        add_agents(self._fleet)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            await self._meet()
            await self._ask()
            await self._broadcast()
            await self._lose_one()
            await self._part()
            nursery.cancel_scope.cancel()
        self._screen.close()

    def _agent(self, node_id: str) -> LocalAgent:
        return next(agent for agent in self._fleet.agents if agent.node_id == node_id)

    # --- the steps ------------------------------------------------------------------------------

    async def _meet(self) -> None:
        self._screen.heading("1. Three agents start; n2 and n3 know only the address of n1")
        for agent in self._fleet.agents:
            agent.start()
        await self._until(
            lambda: all(
                self._views[one].get(other) == "active"
                for one in NODE_IDS
                for other in NODE_IDS
                if one != other
            ),
            "all three see each other",
        )
        await trio.sleep(PACE)

    async def _ask(self) -> None:
        self._screen.heading(f'2. n1 asks everyone, itself too: "{QUESTION}"')
        replies: list[Mapping[str, Any]] = []
        summary: Mapping[str, Any] = {}
        params = {"channel": "locate", "body": QUESTION, "include_self": True, "timeout": 3.0}
        with self._agent("n1").client() as client:
            for is_result, value in client.stream("cluster.request", params):
                if is_result:
                    summary = value
                else:
                    replies.append(value)
                    self._say(
                        f"{value['node_id']} answers {value['body']} "
                        f"after {value['round_trip_ms']:.1f} ms"
                    )
        for node_id in summary["nothing"]:
            self._say(f"{node_id} has nothing to say")
        if summary["replied"] != ["n2"] or sorted(summary["nothing"]) != ["n1", "n3"]:
            raise FleetError(f"expected one reply, from n2, and silence from n1 and n3: {summary}")
        await trio.sleep(PACE)

    async def _broadcast(self) -> None:
        self._screen.heading(f"3. n2 tells everyone to ban {ATTACKER}; one true result per node")
        results = self._agent("n2").call("cluster.broadcast", channel="fraud", body=ATTACKER)
        for node_id, result in sorted(results.items()):
            self._say(f"{node_id}: {result['code']} {result['text']}")
        if {node_id: result["code"] for node_id, result in results.items()} != {
            "n1": 200,
            "n3": 200,
        }:
            raise FleetError(f"expected 200 from n1 and n3: {results}")
        await trio.sleep(PACE)

    async def _lose_one(self) -> None:
        victim = self._agent(VICTIM)
        survivors = [node_id for node_id in NODE_IDS if node_id != VICTIM]
        self._screen.heading(f"4. {VICTIM} is killed with SIGKILL (pid {victim.pid})")
        victim.kill()
        self._views[VICTIM] = {}
        for status in ("not_active", "disabled", "removed"):
            await self._until(
                lambda status=status: all(  # type: ignore[misc]  # bound at once
                    self._seen(one, VICTIM, status) for one in survivors
                ),
                f"{VICTIM} is shown {status}",
            )
        await trio.sleep(PACE)
        self._screen.heading(f"5. {VICTIM} is started again")
        victim.start()
        await self._until(
            lambda: all(self._views[one].get(VICTIM) == "active" for one in survivors),
            f"{VICTIM} is active again",
        )
        await trio.sleep(PACE)

    async def _part(self) -> None:
        self._screen.heading("6. All stop, one after the other, and say so (SIGTERM)")
        remaining = list(NODE_IDS)
        while remaining:
            leaving = remaining.pop(0)
            agent = self._agent(leaving)
            process = agent.process
            assert process is not None, "it was started"
            agent.terminate()
            if remaining:
                await self._until(
                    lambda leaving=leaving: all(  # type: ignore[misc]  # bound at once
                        self._views[one].get(leaving) == "left" for one in remaining
                    ),
                    f"{leaving} is shown as left",
                )
            await trio.to_thread.run_sync(agent.wait_ended)
            if process.returncode != 0:
                raise FleetError(f"{leaving} ended with status {process.returncode}, not 0")
            self._views[leaving] = {}
            self._say(f"{leaving} has left, with exit status 0")

    # --- what is seen ---------------------------------------------------------------------------

    def _seen(self, one: str, other: str, status: str) -> bool:
        """Tell whether a status, or one that comes after it, has been shown."""
        order = ("active", "not_active", "disabled", "removed")
        return order.index(self._views[one].get(other, "removed")) >= order.index(status)

    async def _look(self) -> None:
        """Ask every agent for its view, again and again, and show what is new."""
        while True:
            for agent in self._fleet.agents:
                if agent.process is not None:
                    statuses = await trio.to_thread.run_sync(agent.statuses)
                    self._update(agent, statuses)
            self._screen.draw()
            await trio.sleep(LOOK_INTERVAL)

    def _update(self, agent: LocalAgent, statuses: dict[str, str]) -> None:
        view = self._views[agent.node_id]
        if agent.process is None or (not statuses and len(view) > 1):
            if agent.process is None or agent.process.poll() is not None:
                self._views[agent.node_id] = {}
            return
        for other in [*statuses, *(gone for gone in view if gone not in statuses)]:
            status = statuses.get(other, "removed")
            if view.get(other, "removed") != status:
                self._say(f"{agent.node_id} sees {other}: {self._screen.status(status)}")
        self._views[agent.node_id] = statuses

    def _say(self, text: str) -> None:
        elapsed = trio.current_time() - self._started_at
        self._screen.line(f"   {elapsed:5.2f} s  {text}")

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        rows = [
            [
                one,
                *(
                    "·" if one == other else self._views[one].get(other, NO_VIEW)
                    for other in NODE_IDS
                ),
            ]
            for one in NODE_IDS
            if self._views[one]
        ]
        return ("NODE", *(f"SEES {other}" for other in NODE_IDS)), rows

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        await self._fleet.wait(holds, what, STEP_TIMEOUT)
