"""One process of a simulated host: a whole agent, its loop, and those who use it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from clusternode.agent import Agent
from clusternode.bus.interface import Bus, Receiver
from clusternode.config import AgentSettings, ChannelSection, ClusterSection, RoutesSection
from clusternode.core.inputs import Ask, Leave, Publish, RemoveMember
from clusternode.core.settings import DiscoverySettings
from clusternode.core.snapshots import NodeSnapshot
from clusternode.core.types import ChannelName
from clusternode.errors import DuplicateNodeId, NoSuchNode, RouteError
from clusternode.routes.table import RouteTable
from clusternode.simulation.history import LifeFact
from clusternode.simulation.hosts import Host, LiveProcess
from clusternode.simulation.surroundings import Wish
from clusternode.simulation.world import CLUSTER, WorldPlan
from clusternode.testing.world.callers import Callers, Town
from clusternode.testing.world.machine import Outside, SimulatedMachine
from clusternode.testing.world.streams import StreamConnections
from clusternode.testing.world.turns import LoopProcess

NO_DISK: Final = Path("simulated")
SUBSCRIBABLE: Final = ("channel:", "log:")
"""Back ends that need nothing from outside of the agent."""


class AgentsTown(Town, Outside, Protocol):
    """The world, as its processes see it."""

    @property
    def plan(self) -> WorldPlan: ...
    @property
    def connections(self) -> StreamConnections: ...
    @property
    def story(self) -> Story: ...
    def end_process(self, process: LiveProcess, how: str) -> None: ...


@attrs.frozen
class Story:
    """What a story says about the routes of its agents."""

    channels: Sequence[ChannelName]
    """Where the story sends and asks."""
    routes: Path | None = None
    """The user's own."""


class SimulatedAgent(Agent):
    """The agent of `clusternode run`, with the handlers of the story beside the user's own."""

    def __init__(self, settings: AgentSettings, process: AgentProcess, **parts: Any) -> None:  # noqa: ANN401  # as Agent's
        super().__init__(settings, has_control=False, **parts)
        self._process = process

    def load_table(self) -> RouteTable:
        table = super().load_table()
        for handler in table.handlers:
            if handler.thread:  # there are no threads here: it runs in its turn, and time waits
                handler.thread = handler.waits = False
        for request in table.subscriptions:
            if not request.uri.startswith(SUBSCRIBABLE):
                raise RouteError(f"subscribe_event: {request.uri}: not in a simulated agent")
        self._process.add_handlers(table)
        return table

    def witnessed(self, receiver: Receiver) -> Receiver:
        return self._process.witness(receiver)


class AgentProcess(LoopProcess):
    """A running agent, as the world and the network see it."""

    def __init__(self, world: AgentsTown, host: Host, fact: LifeFact) -> None:
        super().__init__(world, host, fact)
        self.world = world
        self._user = User(Callers(world, self))

    @property
    def can_send(self) -> bool:
        is_free = not self.is_paused and self.fact.leaving_since is None
        return is_free and self._user.bus is not None

    def tell(self, wish: Wish) -> None:
        self.do(self._user.wish, wish)

    def snapshot(self) -> NodeSnapshot | None:
        """Return what the agent shows; nothing before it has started."""
        bus, found = self._user.bus, list[NodeSnapshot]()
        if bus is not None:
            self.visit(lambda: found.append(bus.snapshot()))
        return found[0] if found else None

    def glance(self) -> NodeSnapshot | None:
        return self.snapshot()

    def over(self, failure: BaseException | None) -> None:
        if failure is None:
            self.world.end_process(self, "left")
        elif isinstance(failure, DuplicateNodeId):
            self.world.end_process(self, "withdrew")
        else:
            self.world.core_failed(self.node_id, f"{type(failure).__name__}: {failure}")

    async def main(self) -> None:
        machine = SimulatedMachine(self.world, self.host, self)
        agent = SimulatedAgent(self._settings(), self, transport=self.transport, machine=machine)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._user.run, agent)
            await agent.run(task_status=self._user.started(agent))
            nursery.cancel_scope.cancel()

    def witness(self, receiver: Receiver) -> Receiver:
        return self._user.callers.witness(receiver)

    def add_handlers(self, table: RouteTable) -> None:
        """Add the routes of the story."""
        self._user.callers.add_handlers(table, self.world.story.channels)

    def _settings(self) -> AgentSettings:
        plan, host, story = self.world.plan, self.host, self.world.story
        behaviour = self.world.behaviour_of(host.node_id)
        notification = plan.notification_of.get(host.node_id, plan.notification)
        discovery: DiscoverySettings = attrs.evolve(
            plan.discovery, notification_addresses=tuple(notification)
        )
        cluster = ClusterSection(
            name=CLUSTER,
            address=host.address,
            listen=host.address,
            tags={},
            discovery=discovery,
            health=plan.health,
            messaging=plan.messaging,
        )
        section = ChannelSection(queue_size=behaviour.queue_size)
        channels = dict.fromkeys(story.channels, section) | {
            name: attrs.evolve(section, overflow=channel.overflow)
            for name, channel in plan.channels.items()
        }
        return AgentSettings(
            node_id=plan.id_of.get(host.node_id, host.node_id),
            priority=50,
            state_dir=NO_DISK,
            control_socket=NO_DISK,
            insecure=True,
            log_level="info",
            clusters={CLUSTER: cluster},
            routes=RoutesSection(
                file=story.routes, watchdog=0.0, requests_max=behaviour.requests_max
            ),
            exec_routes=(),
            channels=channels,
            file=None,
        )


class User:
    """The user of one agent: does what the story wants, in a task of the agent's loop."""

    def __init__(self, callers: Callers) -> None:
        self.callers = callers
        self.bus: Bus | None = None
        """There while the agent takes part in its cluster."""
        self._agent: Agent | None = None
        self._wishes: deque[Wish] = deque()
        self._news = trio.Event()

    def started(self, agent: Agent) -> trio.TaskStatus[None]:
        """Return what the agent tells when it has started."""
        self._agent = agent
        user = self

        class Started:
            def started(self, value: None = None) -> None:
                user.bus = next(iter(agent.buses.values()))

        return Started()

    def wish(self, wish: Wish) -> None:
        self._wishes.append(wish)
        self._news.set()

    async def run(self, agent: Agent) -> None:
        """Do what is wanted, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                while self._wishes:
                    self._obey(self._wishes.popleft(), agent, nursery)

    def _obey(self, wish: Wish, agent: Agent, nursery: trio.Nursery) -> None:
        bus = self.bus
        if isinstance(wish, Leave):
            agent.stop()
        elif bus is None:
            return
        elif isinstance(wish, RemoveMember):
            try:
                bus.remove(wish.node_id)
            except NoSuchNode:
                return
        elif isinstance(wish, Publish):
            self.callers.publish(bus, wish)
        elif isinstance(wish, Ask):
            nursery.start_soon(self.callers.ask, bus, wish)
