"""Agents in two of our clusters, with bridges between them, on a network in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from clusternode.agent import Agent
from clusternode.config import AgentSettings
from clusternode.config.raw import RawTable
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import SEED, Running, agent_settings, eventually, host_of, start

LISTENER = """
from clusternode import routes

@routes.message("fraud")
def heard(message):
    message.raise_event("E_HEARD", {
        "text": message.text, "cluster": message.bus.name, "type": message.content_type,
    })

@routes.request("locate")
def locate(request):
    if request.text == "alice":
        return "at " + request.bus.node_id
    return None
"""


@attrs.define(eq=False)
class World:
    """Agents by name; `heard` is what the routes of each have taken, in order."""

    network: MemoryNetwork
    nursery: trio.Nursery
    directory: Path
    agents: dict[str, Running] = attrs.Factory(dict)
    heard: dict[str, list[Mapping[str, Any]]] = attrs.Factory(dict)
    settings: dict[str, AgentSettings] = attrs.Factory(dict)
    """What each agent reads when it reloads."""

    async def add(
        self,
        node_id: str,
        clusters: Sequence[str],
        *,
        bridges: Sequence[Mapping[str, Any]] = (),
        routes: str = "",
        **sections: Any,
    ) -> Running:
        file = self.directory / f"{node_id}.py"
        file.write_text(routes or "from clusternode import routes\n")
        host = host_of(node_id)
        settings = agent_settings(
            node_id, f"tcp://{host}:5062", [SEED], clusters=clusters, routes=file
        )
        plugins = RawTable((), {**({"bridge": list(bridges)} if bridges else {}), **sections})
        self.settings[node_id] = attrs.evolve(settings, plugins=plugins)
        agent = Agent(
            self.settings[node_id],
            reload_settings=lambda: self.settings[node_id],
            transport=self.network.transport(host),
            resolver=FakeResolver(),
            has_control=False,
        )
        running = self.agents[node_id] = await start(self.nursery, agent)
        taken = self.heard[node_id] = []
        agent.events.declare(["E_HEARD"])
        agent.events.on_event("E_HEARD", lambda _, view: taken.append(view.parameters))
        return running

    def with_bridges(self, node_id: str, bridges: Sequence[Mapping[str, Any]]) -> AgentSettings:
        return attrs.evolve(self.settings[node_id], plugins=RawTable((), {"bridge": list(bridges)}))

    async def settled(self) -> None:
        """Wait until everyone sees everyone as active in each cluster that both are in."""
        await eventually(self._is_settled)

    def _is_settled(self) -> bool:
        for running in self.agents.values():
            for name, bus in running.agent.buses.items():
                wanted = {other for other, each in self.agents.items() if name in each.agent.buses}
                active = {one.node_id for one in bus.members() if one.status == "active"}
                if active != wanted:
                    return False
        return True

    def texts(self, node_id: str) -> list[str]:
        return [each["text"] for each in self.heard[node_id]]

    def rows(self, node_id: str) -> Mapping[str, Mapping[str, Any]]:
        return {row["name"]: row for row in self.agents[node_id].agent.bridge_status()}

    def states(self, name: str) -> dict[str, str]:
        """Return agent → the state of a bridge there."""
        found = {node_id: self.rows(node_id) for node_id in self.agents}
        return {node_id: rows[name]["state"] for node_id, rows in found.items() if name in rows}


@contextlib.asynccontextmanager
async def world_of(directory: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(MemoryNetwork(), nursery, directory)
        nursery.cancel_scope.cancel()
