"""Whole agents for tests: settings in a line, and clusters on a network in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from clusternode.agent import Agent
from clusternode.config import (
    AgentSettings,
    ChannelSection,
    ClusterSection,
    RoutesSection,
    TlsSection,
)
from clusternode.core.settings import DiscoverySettings, HealthSettings, MessagingSettings
from clusternode.core.types import Address, ChannelName, NodeId
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork

PATIENCE = 60.0
"""Virtual seconds after which something that should happen certainly never will."""
SEED = "tcp://10.0.0.1:5062"


def agent_settings(
    node_id: str,
    address: str,
    seeds: Sequence[str] = (),
    *,
    clusters: Sequence[str] = ("voip",),
    tags: Mapping[str, str] | None = None,
    state_dir: Path | None = None,
    record_dir: Path | None = None,
    routes: Path | None = None,
    insecure: bool = True,
    health: HealthSettings | None = None,
    secret: Sequence[str] = (),
    secret_file: Path | None = None,
    tls: TlsSection | None = None,
    channels: Mapping[ChannelName, ChannelSection] | None = None,
) -> AgentSettings:
    own = Address.parse(address)
    discovery = DiscoverySettings(
        notification_addresses=tuple(Address.parse(seed) for seed in seeds)
    )
    return AgentSettings(
        node_id=NodeId(node_id),
        priority=50,
        state_dir=state_dir,
        record_dir=record_dir,
        control_socket=Path("unused"),
        insecure=insecure,
        log_level="info",
        clusters={
            name: ClusterSection(
                name=name,
                address=own,
                listen=own,
                tags=tags or {},
                discovery=discovery,
                health=health or HealthSettings(),
                messaging=MessagingSettings(),
                secret=tuple(secret),
                secret_file=secret_file,
            )
            for name in clusters
        },
        routes=RoutesSection(file=routes),
        exec_routes=(),
        tls=tls,
        channels=channels or {},
        file=None,
    )


@attrs.define(eq=False)
class Running:
    """An agent in a task of its own."""

    agent: Agent
    scope: trio.CancelScope
    ended: trio.Event

    @property
    def bus(self):
        return next(iter(self.agent.buses.values()))

    def statuses(self) -> dict[str, str]:
        return {member.node_id: member.status for member in self.bus.members()}

    async def leave(self) -> None:
        self.agent.stop()
        await self.ended.wait()

    async def kill(self) -> None:
        """End it without a word, as SIGKILL does: its connections just close."""
        self.scope.cancel()
        await self.ended.wait()


async def start(nursery: trio.Nursery, agent: Agent) -> Running:
    running = Running(agent, trio.CancelScope(), trio.Event())

    async def run(*, task_status=trio.TASK_STATUS_IGNORED):
        try:
            with running.scope:
                await agent.run(task_status=task_status)
        finally:
            running.ended.set()

    await nursery.start(run)
    return running


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds, looking often; fails when it never does."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # any condition, on a virtual clock
            await trio.sleep(0.01)


def host_of(node_id: str) -> str:
    return f"10.0.0.{node_id.removeprefix('n')}"


class Cluster:
    """Agents n1, n2 … on hosts 10.0.0.1, 10.0.0.2 …; n1 is the notification address of all."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self.resolver = FakeResolver()
        self.nodes: dict[str, Running] = {}
        self._nursery = nursery

    async def add(self, node_id: str, **options) -> Running:
        scheme = "tcp" if options.get("tls") is None else "tls"
        seeds = options.pop("seeds", [SEED.replace("tcp", scheme)])
        settings = agent_settings(node_id, f"{scheme}://{host_of(node_id)}:5062", seeds, **options)
        agent = Agent(
            settings,
            transport=self.network.transport(host_of(node_id)),
            resolver=self.resolver,
            has_control=False,
        )
        running = self.nodes[node_id] = await start(self._nursery, agent)
        return running

    async def everyone_active(self) -> None:
        wanted = dict.fromkeys(self.nodes, "active")
        await eventually(lambda: all(node.statuses() == wanted for node in self.nodes.values()))


@contextlib.asynccontextmanager
async def cluster_of(size: int, **options) -> AsyncIterator[Cluster]:
    """A cluster in which everyone sees everyone active."""
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery)
        for number in range(1, size + 1):
            await cluster.add(f"n{number}", **options)
        await cluster.everyone_active()
        yield cluster
        nursery.cancel_scope.cancel()
