"""The world whose processes are whole agents: up to twenty, with the routes of their user.

The same hosts, links, faults, stories and invariants as in `simulation.model`; what differs is
what runs on the hosts. Described in docs/simulation.md.
"""

from __future__ import annotations

import random
from pathlib import Path

from clusternode.simulation.history import LifeFact
from clusternode.simulation.hosts import Host, LiveProcess
from clusternode.simulation.surroundings import DEFAULT_CHANNELS
from clusternode.simulation.world import World, WorldPlan
from clusternode.testing.world.process import AgentProcess, Story
from clusternode.testing.world.streams import StreamConnections


class AgentsWorld(World):
    """All hosts, with an agent on each."""

    connections: StreamConnections

    def __init__(self, plan: WorldPlan, seed: int, *, routes: Path | None = None) -> None:
        super().__init__(plan, seed)
        self.story = Story(DEFAULT_CHANNELS, routes)

    def _new_connections(self) -> StreamConnections:
        is_cut = self.plan.fidelity == "bytes"
        return StreamConnections(self, random.Random(f"{self.seed}/wire") if is_cut else None)

    def _new_process(self, host: Host, fact: LifeFact) -> LiveProcess:
        return AgentProcess(self, host, fact)

    def digest(self) -> str:
        """Return nothing: the order of an agent's tasks is trio's, which no seed decides."""
        return ""

    def close(self) -> None:
        """End the threads of all agents."""
        for process in self.processes():
            process.end()
