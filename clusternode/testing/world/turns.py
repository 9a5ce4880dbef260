"""A process that is an event loop with turns: when it runs, what its time is, how it dies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import trio

from clusternode.core.types import ConnectionId, Instant, NodeId, Seconds
from clusternode.runtime.transport import Wire
from clusternode.simulation.history import LifeFact
from clusternode.simulation.hosts import Host
from clusternode.simulation.surroundings import WorldView
from clusternode.simulation.world import CoreFailed
from clusternode.testing.world.loop import Loop
from clusternode.testing.world.streams import StreamConnections, StreamEnd, WorldTransport

TURNS_AFTER_DEATH_MAX: Final = 1000
"""How long the tasks of a killed process may take to notice; what they do has no effect."""


class LoopWorld(WorldView, Protocol):
    """The world, as a loop in it sees it."""

    @property
    def connections(self) -> StreamConnections: ...


class LoopProcess:
    """A process whose main function runs in a loop of its own; a subclass says what that does."""

    def __init__(self, world: LoopWorld, host: Host, fact: LifeFact) -> None:
        self.host = host
        self.fact = fact
        self.is_running = True
        self.is_paused = False
        self.connection_ids = itertools.count(1)
        self.ends: dict[ConnectionId, StreamEnd] = {}
        self.transport = WorldTransport(world.connections, self)
        self.scope = trio.CancelScope()
        """Ends the tasks of a process that has been killed."""
        self._in = world
        self._time = OwnTime(world.now, host.clock_rate)
        self._loop = Loop(self._begin, self._now)
        self._turns = Turns()

    async def main(self) -> None:
        """Do what the process does; it is over when this returns."""
        raise AssertionError("a subclass knows")

    def over(self, failure: BaseException | None) -> None:
        """Take note that `main` has ended, and how."""
        raise AssertionError("a subclass knows")

    @property
    def node_id(self) -> NodeId:
        return self.host.node_id

    @property
    def is_listening(self) -> bool:
        listener = self.transport.listener
        return self.is_running and listener is not None and listener.is_open

    def accept(self, wire: Wire) -> None:
        assert self.transport.listener is not None, "it listens"
        self.do(self.transport.listener.deliver, wire)

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

    def resume(self, lag: Seconds) -> None:
        """Go on: the agent sees by itself that its clock has jumped."""
        self.is_paused = False
        self._poke()

    def _poke(self) -> None:
        """Give it a turn at this instant, after everything that is due before it."""
        if not self._turns.is_poked:
            self._turns.is_poked = True
            self._in.soon(self._turn)

    def _turn(self) -> None:
        self._turns.is_poked = False
        if not self.is_running or self.is_paused:
            return
        world = self._in
        world.counts.inputs += 1
        world.counts.stepping = self.node_id
        self._loop.turn()
        if world.history.faults_of_core:
            raise CoreFailed(world.history.faults_of_core[-1][2])
        if self._loop.is_over:
            self.over(_single(self._loop.failure))
        elif self._loop.inbox:
            self._poke()
        else:
            self._arm()

    def _arm(self) -> None:
        """See to it that it has a turn when its next task wants to wake up."""
        deadline = self._loop.deadline
        if deadline == math.inf:
            return
        at = max(self._time.in_the_world(deadline), self._in.now)
        if at != self._turns.armed_at:
            self._turns.armed_at = at
            self._in.at(at, self._fire, at, deadline)

    def _fire(self, at: Instant, deadline: Instant) -> None:
        if at == self._turns.armed_at:
            self._turns.armed_at = None
            self._time.reach(deadline)
            self._turn_now()

    def _turn_now(self) -> None:
        if not self._turns.is_poked:
            self._turn()

    def end(self) -> None:
        """Take note that it was killed, or is over; its tasks end without any effect."""
        self.is_running = self.is_paused = False
        if self._loop.is_over or not self._turns.has_begun:
            return
        self._time.is_dead = True
        self._loop.inbox.clear()
        self._loop.inbox.append((self.scope.cancel, ()))
        for _ in range(TURNS_AFTER_DEATH_MAX):
            if not self._loop.is_over:
                self._loop.turn()
                self._time.reach(self._loop.deadline)

    def visit(self, function: Callable[[], None]) -> None:
        """Call something in the loop's thread while its tasks stand still; not after its end."""
        if not self._loop.is_over:
            self._loop.visit(function)

    # What runs in the loop.

    def _now(self) -> Instant:
        return self._time.now(self._in.now)

    async def _begin(self) -> None:
        self._turns.has_begun = True
        with self.scope:
            await self.main()

    async def let_pass(self, seconds: Seconds) -> None:
        """Wait for the time of the world, however fast the own clock runs."""
        event = trio.Event()
        self._in.after(seconds, self.do, event.set)
        await event.wait()


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


def _single(failure: BaseException | None) -> BaseException | None:
    """Take the one exception out of the groups of nurseries, if there is but one."""
    while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure
