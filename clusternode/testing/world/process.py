"""One process of a simulated host: a whole agent, its loop, and those who use it."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
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
from clusternode.core.types import ChannelName, ConnectionId, Instant, NodeId, Seconds
from clusternode.errors import DuplicateNodeId, NoSuchNode, RouteError
from clusternode.routes.table import RouteTable
from clusternode.runtime.transport import Wire
from clusternode.simulation.history import LifeFact
from clusternode.simulation.hosts import Host, LiveProcess
from clusternode.simulation.surroundings import Wish
from clusternode.simulation.world import CLUSTER, CoreFailed, WorldPlan
from clusternode.testing.world.callers import Callers, Town
from clusternode.testing.world.loop import Loop
from clusternode.testing.world.machine import Outside, SimulatedMachine
from clusternode.testing.world.streams import StreamConnections, StreamEnd, WorldTransport

TURNS_AFTER_DEATH_MAX: Final = 1000
"""How long the tasks of a killed process may take to notice; what they do has no effect."""
ROUNDING: Final[Seconds] = 1e-9
"""What two multiplications may take from a point in time, with room."""
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


class AgentProcess:
    """A running agent, as the world and the network see it."""

    def __init__(self, world: AgentsTown, host: Host, fact: LifeFact) -> None:
        self.world = world
        self.host = host
        self.fact = fact
        self.is_running = True
        self.is_paused = False
        self.connection_ids = itertools.count(1)
        self.ends: dict[ConnectionId, StreamEnd] = {}
        self._time = OwnTime(world.now, host.clock_rate)
        self._loop = Loop(self._main, self._now)
        self._turns = Turns()
        self._transport = WorldTransport(world.connections, self)
        self._user = User(Callers(world, self))

    @property
    def node_id(self) -> NodeId:
        return self.host.node_id

    @property
    def is_listening(self) -> bool:
        listener = self._transport.listener
        return self.is_running and listener is not None and listener.is_open

    @property
    def can_send(self) -> bool:
        is_free = not self.is_paused and self.fact.leaving_since is None
        return is_free and self._user.bus is not None

    def accept(self, wire: Wire) -> None:
        assert self._transport.listener is not None, "it listens"
        self.do(self._transport.listener.deliver, wire)

    def holds_back(self, act: Callable[..., None], *arguments: object) -> bool:
        """Hold nothing back: a kernel takes what comes for a process that stands still."""
        return False

    # Turns.

    def start(self) -> None:
        self._poke()

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Call something in the loop, in its next turn."""
        if self.is_running:
            self._loop.inbox.append((function, arguments))
            self._poke()

    def tell(self, wish: Wish) -> None:
        self.do(self._user.wish, wish)

    def resume(self, lag: Seconds) -> None:
        """Go on: the agent sees by itself that its clock has jumped."""
        self.is_paused = False
        self._poke()

    def _poke(self) -> None:
        """Give it a turn at this instant, after everything that is due before it."""
        if not self._turns.is_poked:
            self._turns.is_poked = True
            self.world.soon(self._turn)

    def _turn(self) -> None:
        self._turns.is_poked = False
        if not self.is_running or self.is_paused:
            return
        world = self.world
        world.counts.inputs += 1
        world.counts.stepping = self.node_id
        self._loop.turn()
        if world.history.faults_of_core:
            raise CoreFailed(world.history.faults_of_core[-1][2])
        if self._loop.is_over:
            self._is_over()
        elif self._loop.inbox:
            self._poke()
        else:
            self._arm()

    def _arm(self) -> None:
        """See to it that it has a turn when its next task wants to wake up."""
        deadline = self._loop.deadline
        if deadline == math.inf:
            return
        at = max(self._time.in_the_world(deadline), self.world.now)
        if at != self._turns.armed_at:
            self._turns.armed_at = at
            self.world.at(at, self._fire, at, deadline)

    def _fire(self, at: Instant, deadline: Instant) -> None:
        if at == self._turns.armed_at:
            self._turns.armed_at = None
            self._time.reach(deadline)
            self._turn_now()

    def _turn_now(self) -> None:
        if not self._turns.is_poked:
            self._turn()

    def _is_over(self) -> None:
        failure = _single(self._loop.failure)
        if failure is None:
            self.world.end_process(self, "left")
        elif isinstance(failure, DuplicateNodeId):
            self.world.end_process(self, "withdrew")
        else:
            self.world.core_failed(self.node_id, f"{type(failure).__name__}: {failure}")

    def end(self) -> None:
        """Take note that it was killed, or is over; its tasks end without any effect."""
        self.is_running = self.is_paused = False
        if self._loop.is_over or not self._turns.has_begun:
            return
        self._time.is_dead = True
        self._loop.inbox.clear()
        self._loop.inbox.append((self._user.scope.cancel, ()))
        for _ in range(TURNS_AFTER_DEATH_MAX):
            if not self._loop.is_over:
                self._loop.turn()
                self._time.reach(self._loop.deadline)

    def snapshot(self) -> NodeSnapshot | None:
        """Return what the agent shows; nothing before it has started."""
        bus, found = self._user.bus, list[NodeSnapshot]()
        if bus is None or self._loop.is_over:
            return None
        self._loop.visit(lambda: found.append(bus.snapshot()))
        return found[0]

    # What runs in the loop.

    def _now(self) -> Instant:
        return self._time.now(self.world.now)

    async def _main(self) -> None:
        self._turns.has_begun = True
        machine = SimulatedMachine(self.world, self.host, self)
        agent = SimulatedAgent(self._settings(), self, transport=self._transport, machine=machine)
        with self._user.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._user.run, agent)
                await agent.run(task_status=self._user.started(agent))
                nursery.cancel_scope.cancel()

    async def let_pass(self, seconds: Seconds) -> None:
        event = trio.Event()
        self.world.after(seconds, self.do, event.set)
        await event.wait()

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
            channels=dict.fromkeys(story.channels, section),
            file=None,
        )


@attrs.define
class Turns:
    """When a process has its turns."""

    is_poked: bool = False
    """Whether it gets one at this instant."""
    armed_at: Instant | None = None
    """When it gets one because something in it wants to wake up."""
    has_begun: bool = False


class OwnTime:
    """The time as a process counts it; its seconds may be those of a bad oscillator."""

    def __init__(self, began: Instant, rate: float) -> None:
        self.is_dead = False
        """Whether time passes by itself, so that everything that waits comes to its end."""
        self._began = began
        self._rate = rate
        self._latest = began

    def now(self, world_now: Instant) -> Instant:
        """Return the present, which never runs backwards."""
        if self._rate == 1.0 and not self.is_dead:
            return world_now
        self._latest = max(self._latest, self._began + (world_now - self._began) * self._rate)
        return self._latest

    def in_the_world(self, deadline: Instant) -> Instant:
        if self._rate == 1.0:
            return deadline
        return self._began + (deadline - self._began) / self._rate

    def reach(self, deadline: Instant) -> None:
        """Make sure that a deadline is there; rounding may keep a drifting clock just below it."""
        if deadline != math.inf:
            self._latest = max(self._latest, deadline)


class User:
    """The user of one agent: does what the story wants, in a task of the agent's loop."""

    def __init__(self, callers: Callers) -> None:
        self.callers = callers
        self.scope = trio.CancelScope()
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


def _single(failure: BaseException | None) -> BaseException | None:
    """Take the one exception out of the groups of nurseries, if there is but one."""
    while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure
