"""The story that `clusternode demo --bridge` tells: one bus from Kamailio, OpenSIPS and Kafka."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TextIO

import trio

from clusternode.cli.local.bridge_world import AGENTS, World
from clusternode.cli.local.fleet import FleetError
from clusternode.cli.local.screen import Screen
from clusternode.core.types import Seconds
from clusternode.errors import AgentNotReachable, ControlError

ATTACKER: Final = "192.0.2.66"
CELL, OTHER_CELL = "192.0.2.77", "192.0.2.88"
CHOSEN, STANDBY = AGENTS
STEP_TIMEOUT: Seconds = 30.0
LOOK_INTERVAL: Seconds = 0.2
PACE: Seconds = 0.4
LOAD: Final = 200
"""Attackers that are found while the bridging agent is killed."""
LOAD_PAUSE: Seconds = 0.01


class BridgeStory:
    """Plays the steps and shows what each agent relays and each server knows."""

    def __init__(self, world: World, output: TextIO = sys.stdout) -> None:
        self._world = world
        self._rows: dict[str, Mapping[str, Mapping[str, Any]]] = {}  # agent → bridge → its row
        self._screen = Screen(self._table, output)
        self._started_at = trio.current_time()

    async def tell(self) -> None:
        """Play it all.

        Raises:
            FleetError: Something did not happen as it should.
        """
        async with trio.open_nursery() as nursery:
            await self._meet(nursery)
            await self._ban(nursery)
            await self._register()
            await self._kill_under_load()
            await self._check()
            nursery.cancel_scope.cancel()
        self._screen.close()

    # --- the steps ------------------------------------------------------------------------------

    async def _meet(self, nursery: trio.Nursery) -> None:
        self._screen.heading(f"1. Two agents join {self._world.kinds}")
        await self._world.start(nursery)
        nursery.start_soon(self._look)
        await self._until(self._world.is_met, "everyone sees both agents")
        await self._until(
            lambda: self._states("ban") == {CHOSEN: "chosen", STANDBY: "standby"},
            "one agent is chosen",
        )
        self._say(f"{CHOSEN} relays, {STANDBY} stands by")
        await trio.sleep(PACE)

    async def _ban(self, nursery: trio.Nursery) -> None:
        self._screen.heading(f"2. The second Kamailio finds an attacker: {ATTACKER}")
        await self._world.proxies[1].found_attacker(ATTACKER)
        for number, switch in enumerate(self._world.switches, 1):
            await self._until(lambda switch=switch: ATTACKER in switch.bans, "the ban arrives")  # type: ignore[misc]  # bound at once
            self._say(f"OpenSIPS {number} has banned {ATTACKER}")
        topic = self._world.topic
        if topic is not None:
            nursery.start_soon(topic.run)  # the topic is made with its first record
            await self._until(lambda: ATTACKER in topic.values, "the record arrives")
            self._say(f"the topic fraud has {ATTACKER}")
        await self._share_table()
        await trio.sleep(PACE)

    async def _share_table(self) -> None:
        """Set a cell on each side, and see it on the other."""
        proxies, switches = self._world.proxies, self._world.switches
        await proxies[0].set_cell(CELL)
        await self._until(lambda: all(CELL in each.table for each in switches), "the cell arrives")
        self._say(f"$sht(ban=>{CELL}) of the first Kamailio is in all caches")
        switches[1].set_cell(OTHER_CELL)
        for proxy in proxies:
            await self._until(lambda proxy=proxy: proxy.has_cell(OTHER_CELL), "the cell arrives")  # type: ignore[misc]  # bound at once
        self._say(f"{OTHER_CELL} of the second OpenSIPS is in $sht(ban) of all Kamailios")

    async def _register(self) -> None:
        self._screen.heading("3. Alice registers at the first OpenSIPS, bob at the first Kamailio")
        proxies, switches = self._world.proxies, self._world.switches
        switches[0].register("alice", "sip:alice@198.51.100.1")
        await proxies[0].register("bob", "sip:bob@198.51.100.2")
        await self._until(lambda: proxies[2].knows("alice"), "a Kamailio knows alice")
        self._say("the third Kamailio has alice in its location table")
        await self._until(lambda: switches[2].knows("bob"), "an OpenSIPS knows bob")
        self._say("the third OpenSIPS has bob in its location table")
        answer = await proxies[2].ask("alice")
        if "alice is at" not in answer:
            raise FleetError(f"nobody told the Kamailio where alice is: {answer!r}")
        self._say(f'the third Kamailio asks everyone for alice: "{answer}"')
        found = switches[2].ask("bob")
        await self._until(lambda: bool(found()), "an OpenSIPS is told where bob is")
        self._say(f'the third OpenSIPS asks everyone for bob: "{found()}"')
        await trio.sleep(PACE)

    async def _kill_under_load(self) -> None:
        victim = next(agent for agent in self._world.fleet.agents if agent.node_id == CHOSEN)
        self._screen.heading(f"4. {LOAD} attackers more, and {CHOSEN} is killed in the middle")
        for number in range(LOAD):
            await self._world.proxies[number % 3].found_attacker(_attacker(number))
            if number == LOAD // 2:
                victim.kill()
                self._say(f"{CHOSEN} killed with SIGKILL")
            await trio.sleep(LOAD_PAUSE)
        await self._until(lambda: self._states("ban").get(STANDBY) == "chosen", "a takeover")
        self._say(f"{STANDBY} relays now")

    async def _check(self) -> None:
        self._screen.heading("5. Has everything arrived?")
        wanted = {ATTACKER, *map(_attacker, range(LOAD))}
        for number, switch in enumerate(self._world.switches, 1):
            await self._until(lambda switch=switch: switch.bans >= wanted, "all bans arrive")  # type: ignore[misc]  # bound at once
            self._say(f"OpenSIPS {number}: {len(switch.bans)} of {len(wanted)} bans")
        topic = self._world.topic
        if topic is not None:
            await self._until(lambda: set(topic.values) >= wanted, "all records arrive")
            repeated = sum(topic.values.values()) - len(topic.values)
            self._say(f"topic fraud: {len(topic.values)} of {len(wanted)}, {repeated} repeated")

    # --- what is seen ---------------------------------------------------------------------------

    def _states(self, bridge: str) -> dict[str, str]:
        return {agent: rows[bridge]["state"] for agent, rows in self._rows.items() if rows}

    async def _look(self) -> None:
        while True:
            for agent in self._world.fleet.agents:
                rows: Mapping[str, Mapping[str, Any]] = {}
                if agent.process is not None:
                    rows = await trio.to_thread.run_sync(_rows_of, agent.call)
                self._rows[agent.node_id] = rows
            self._screen.draw()
            await trio.sleep(LOOK_INTERVAL)

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        rows = [
            [agent, name, row["state"], *(str(row[key]) for key in ("relayed", "held", "repeated"))]
            for agent, bridges in self._rows.items()
            for name, row in bridges.items()
        ]
        rows += [
            [f"opensips {number}", "-", "-", f"{len(switch.bans)} bans", "-", "-"]
            for number, switch in enumerate(self._world.switches, 1)
        ]
        if self._world.topic is not None:
            rows.append(["kafka", "-", "-", f"{len(self._world.topic.values)} records", "-", "-"])
        return ("WHERE", "BRIDGE", "STATE", "RELAYED", "HELD", "REPEATED"), rows

    def _say(self, text: str) -> None:
        elapsed = trio.current_time() - self._started_at
        self._screen.line(f"   {elapsed:5.2f} s  {text}")

    async def _until(self, holds: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Look again and again until something holds.

        Raises:
            FleetError: It does not in time; shows the logs of the agents.
        """
        with trio.move_on_after(STEP_TIMEOUT):
            while True:
                found = holds()
                if found if isinstance(found, bool) else await found:
                    return
                await trio.sleep(LOOK_INTERVAL / 4)
        agents = self._world.fleet.agents
        logs = "\n".join(f"{each.node_id}:\n{each.last_log_lines()}" for each in agents)
        raise FleetError(f"not in {STEP_TIMEOUT:g} s: {what}; the logs:\n{logs}")


def _attacker(number: int) -> str:
    return f"203.0.113.{number + 1}"


def _rows_of(call: Callable[..., Any]) -> Mapping[str, Mapping[str, Any]]:
    try:
        return {row["name"]: row for row in call("bridge.status")}
    except (AgentNotReachable, ControlError):
        return {}
