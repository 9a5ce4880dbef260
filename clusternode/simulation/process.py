"""One process of a simulated host: a `Node` of the core, and everything that it asks for.

Does for a node what the driver, the connections and the resolver of `runtime` do in an agent.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import attrs

from clusternode.core import effects as effect_types
from clusternode.core.echoes import Echoes
from clusternode.core.effects import Effect, Write
from clusternode.core.events import NodeStateChanged
from clusternode.core.inputs import (
    FramesReceived,
    Input,
    Lagged,
    Persisted,
    PersistFailed,
    Start,
    TimePassed,
    WriteReady,
)
from clusternode.core.node import Node
from clusternode.core.settings import NodeSettings
from clusternode.core.snapshots import NodeGlance, NodeSnapshot
from clusternode.core.types import (
    ConnectionId,
    Incarnation,
    Instant,
    NodeId,
    Seconds,
)
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Frame, Hello, Ping, Pong
from clusternode.simulation.connections import Connections, NodeEnd
from clusternode.simulation.history import LifeFact, StatusFact
from clusternode.simulation.hosts import Host, LiveProcess
from clusternode.simulation.resolver import ScriptedResolver
from clusternode.simulation.routes import SimulatedRoutes
from clusternode.simulation.surroundings import Wish, WorldView
from clusternode.simulation.traffic import Traffic

TIMER_FIRST_SHARE = 0.5
"""How often a process that goes on looks at its timers before what has arrived meanwhile."""
DISK_DELAY: Seconds = 0.005
"""From `Persist` to `Persisted`: one fsync of a solid-state disk."""
ROUNDING: Seconds = 1e-9
"""What two multiplications may take from a point in time, with room."""
WAKE_UPS_WITHOUT_PROGRESS_MAX = 100
"""A node whose deadline stays in the past would hold the loop of an agent for ever."""


class HomeWorld(WorldView, Protocol):
    """A world, as a process sees it."""

    @property
    def seed(self) -> int: ...
    @property
    def connections(self) -> Connections: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def resolver(self) -> ScriptedResolver: ...
    def end_process(self, process: LiveProcess, how: str) -> None: ...


class Process:
    """A running node; performs every effect."""

    def __init__(
        self, world: HomeWorld, host: Host, settings: NodeSettings, fact: LifeFact
    ) -> None:
        self.world = world
        self.host = host
        self.fact = fact
        rng = random.Random(f"{world.seed}/{host.node_id}/{fact.life}")
        recorder = world.trace.recorder
        if recorder is not None and recorder.node_id == host.node_id:
            recorder.begin(settings, world.now, rng)
        self.node = Node(settings, world.now, rng)
        self.clock = Clock(self, world.now, host.clock_rate)
        self.connection_ids = itertools.count(1)
        self.ends: dict[ConnectionId, NodeEnd] = {}
        self.is_running = True
        self.is_paused = False
        self.looks: deque[ConnectionId] = deque()  # `Measure`, answered when its step is performed
        self.backlog: deque[tuple[Any, ...]] = deque()  # (function, *arguments) while paused
        self.routes = SimulatedRoutes(world, world.traffic, self)

    @cached_property
    def node_id(self) -> NodeId:
        return self.host.node_id

    @cached_property
    def echoes(self) -> Echoes:
        return self.node.pings

    @cached_property
    def settings(self) -> NodeSettings:
        return self.node.settings

    @cached_property
    def is_recorded(self) -> bool:
        recorder = self.world.trace.recorder
        return recorder is not None and recorder.node_id == self.host.node_id

    @property
    def is_listening(self) -> bool:
        return self.is_running

    @property
    def can_send(self) -> bool:
        return not self.is_paused and self.fact.leaving_since is None

    def snapshot(self) -> NodeSnapshot:
        return self.node.snapshot(self.clock.now)

    def glance(self) -> NodeGlance:
        return self.node.glance()

    @property
    def incarnation(self) -> Incarnation:
        return self.node.incarnation

    @property
    def hello(self) -> Hello:
        return self.node.hello("simulated")

    def start(self) -> None:
        """Begin, with what the disk remembers."""
        written_at, members = self.host.known
        silent = self.world.now - written_at
        self.feed(Start([attrs.evolve(m, silent_for=m.silent_for + silent) for m in members]))

    def tell(self, wish: Wish) -> None:
        self.feed(wish)

    def end(self) -> None:
        """Take note that it is over."""
        self.is_running = self.is_paused = False
        self.backlog.clear()

    def resume(self, lag: Seconds) -> None:
        """Go on after a pause: notice that it lagged, then read what came."""
        self.is_paused = False
        self.feed(Lagged(lag))
        if self.world.rng.random() < TIMER_FIRST_SHARE:
            self.clock.fire_if_due()
        backlog, self.backlog = self.backlog, deque()
        for act, *arguments in backlog:
            act(*arguments)
        for end in list(self.ends.values()):
            self.world.connections.write_again(end)

    def holds_back(self, act: Callable[..., None], *arguments: object) -> bool:
        if self.is_paused:
            self.backlog.append((act, *arguments))
        return self.is_paused

    def feed(self, input_: Input) -> None:
        """Step the node and do what it asks for."""
        if not self.is_running:
            return
        if self.is_paused:
            self.backlog.append((self.feed, input_))
            return
        world = self.world
        trace, counts = world.trace, world.counts
        trace.input(world.now, self.node_id, input_)
        counts.inputs += 1
        counts.stepping = self.node_id
        if self.is_recorded and trace.recorder is not None:
            effects = trace.recorder.step(self.node, self.clock.now, input_)
        else:
            now = world.now if self.clock.is_true else self.clock.now
            effects = self.node.step(now, input_)
        for effect in effects:
            _PERFORM[type(effect)](self, effect)
        while self.looks:
            end = self.ends.get(self.looks.popleft())
            if end is not None:
                self.world.connections.measure(end)
        if self.is_running:
            self.clock.arm()

    def take(self, connection: ConnectionId, bytes_max: int) -> Write | None:
        """Ask the node for what is to be written.

        A node that is recorded, or about to end, takes the long way: None is returned.
        """
        if self.is_recorded or self.fact.leaving_since is not None:
            self.feed(WriteReady(connection, bytes_max))
            return None
        self.world.counts.inputs += 1
        now = self.world.now if self.clock.is_true else self.clock.now
        return self.node.output(connection, bytes_max, now)

    def answers(self, connection: ConnectionId, ping: Ping) -> bool:
        """Let the node answer a ping that came alone; False where that is no simple one."""
        return not self.is_recorded and self.echoes.answers(connection, ping)

    def answered(self, connections: Sequence[ConnectionId], pong: Pong) -> None:
        """Step the node with the pongs of others who have answered like this."""
        if self.is_recorded:
            for connection in connections:
                self.receive(connection, [frame_of(pong)])
            return
        world = self.world
        world.trace.pongs(world.now, self.node_id, connections, pong)
        counts = world.counts
        counts.messages += len(connections)
        counts.inputs += 3 * len(connections)  # each ping comes, its pong is written, and comes
        counts.stepping = self.node_id
        for effect in self.echoes.answered(connections, pong, self.clock.now):
            _PERFORM[type(effect)](self, effect)
        if self.is_running:
            self.clock.arm()

    def receive(self, connection: ConnectionId, frames: Sequence[Frame]) -> None:
        """Step the node with what one read brought, and do what it asks for."""
        messages = [frame.message for frame in frames]
        received = FramesReceived(connection, messages)
        if self.is_recorded:
            self.feed(received)
            return
        world, node_id = self.world, self.node_id
        world.trace.frames(world.now, node_id, connection, messages)
        counts = world.counts
        counts.inputs += 1
        counts.stepping = node_id
        now = world.now if self.clock.is_true else self.clock.now
        for effect in self.node.step(now, received):
            _PERFORM[type(effect)](self, effect)
        if self.is_running:
            self.clock.arm()

    def later(self, delay: Seconds, act: Callable[..., None], *arguments: object) -> None:
        """Do something in this process after `delay`; not at all once it has ended."""
        if delay > 0:
            self.world.after(delay, self._now_or_later, act, arguments)
        else:
            self.world.soon(self._now_or_later, act, arguments)

    def _now_or_later(self, act: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if self.is_paused:
            self.backlog.append((self._now_or_later, act, arguments))
        elif self.is_running:
            act(*arguments)

    # One method per effect.

    def _dial(self, effect: effect_types.Dial) -> None:
        self.world.connections.dial(self, effect.address)

    def _resolve(self, effect: effect_types.Resolve) -> None:
        delay, answer = self.world.resolver.resolve(effect.name)
        self.world.after(delay, self.feed, answer)

    def _output_ready(self, effect: effect_types.OutputReady) -> None:
        end = self.ends.get(effect.connection)
        if end is not None:
            self.world.connections.output_ready(end)

    def _write(self, effect: effect_types.Write) -> None:
        end = self.ends.get(effect.connection)
        if end is not None:
            self.world.connections.written(end, effect)

    def _write_each(self, effect: effect_types.WriteEach) -> None:
        self.world.connections.write_each(self, effect.connections, effect.frame)

    def _disconnect(self, effect: effect_types.Disconnect) -> None:
        end = self.ends.get(effect.connection)
        if end is not None:
            self.world.connections.refuse(end, effect.close)

    def _measure(self, effect: effect_types.Measure) -> None:
        self.looks.append(effect.connection)

    def _handle(self, effect: effect_types.Handle) -> None:
        self.routes.take(effect)

    def _settle(self, effect: effect_types.Settle) -> None:
        self.world.traffic.settled(self, effect)

    def _fanout(self, effect: effect_types.Fanout) -> None:
        self.world.traffic.fanned_out(self, effect)

    def _asked(self, effect: effect_types.Asked) -> None:
        self.world.traffic.asked(self, effect)

    def _replied(self, effect: effect_types.Replied) -> None:
        self.world.traffic.replied(self, effect)

    def _request_finished(self, effect: effect_types.RequestFinished) -> None:
        self.world.traffic.request_finished(self, effect)

    def _request_ended(self, effect: effect_types.RequestEnded) -> None:
        self.world.traffic.request_ended(self, effect)

    def _emit(self, effect: effect_types.Emit) -> None:
        event = effect.event
        world = self.world
        if type(event) is NodeStateChanged:
            member, previous, status = NodeId(event.node_id), event.previous, event.status
            fact = StatusFact(
                world.now, self.node_id, self.fact.life, member, status, previous, event.reason
            )
            world.history.statuses.append(fact)
            world.trace.note(f"{self.node_id} {member} {previous} {status}")
        else:
            world.trace.note(f"{self.node_id} event {type(event).__name__}")

    def _persist(self, effect: effect_types.Persist) -> None:
        self.world.after(DISK_DELAY, self._written, effect, self.world.now)

    def _written(self, effect: effect_types.Persist, asked_at: Instant) -> None:
        if self.is_running and self.host.disk_error:
            self.feed(PersistFailed(self.host.disk_error))
        elif self.is_running:
            self.host.incarnation = max(self.host.incarnation, effect.incarnation)
            self.host.known = (asked_at, tuple(effect.members))
            self.feed(Persisted())

    def _leave_finished(self, _: effect_types.LeaveFinished) -> None:
        self.world.soon(self.world.end_process, self, "left")

    def _withdraw(self, _: effect_types.Withdraw) -> None:
        self.world.soon(self.world.end_process, self, "withdrew")


class Clock:
    """The time of a process, and its one timer, kept at the node's next deadline.

    Its seconds may be longer or shorter than those of the world, as those of a bad oscillator are.
    """

    def __init__(self, process: Process, began: Instant, rate: float) -> None:
        self._process = process
        self._world = process.world
        self._next_deadline = process.node.next_deadline
        self._began = began
        self._rate = rate
        self.is_true = rate == 1.0  # the time of the process is that of the world
        self._latest: Instant = began
        self._armed_at: Instant | None = None
        self._last_wake_up: Instant = 0.0
        self._wake_ups = 0

    @property
    def now(self) -> Instant:
        """The present, as the process counts it; never runs backwards."""
        world_now = self._world.now
        if self.is_true:
            return world_now
        self._latest = max(self._latest, self._began + (world_now - self._began) * self._rate)
        return self._latest

    def _in_the_world(self, deadline: Instant) -> Instant:
        return self._began + (deadline - self._began) / self._rate

    def _is_due(self, deadline: Instant) -> bool:
        """Tell whether a deadline is there; rounding may keep a drifting clock just below it."""
        if deadline - ROUNDING <= self.now:
            self._latest = max(self._latest, deadline)
            return True
        return False

    def arm(self) -> None:
        """See to it that the node is woken at its next deadline."""
        deadline = self._next_deadline()
        if deadline is None:
            return
        if not self.is_true:
            deadline = self._in_the_world(deadline)
        if self._armed_at is not None and self._armed_at <= deadline:
            return
        at = max(deadline, self._world.now)
        self._armed_at = at
        self._world.at(at, self._fire, at)

    def fire_if_due(self) -> None:
        """Wake the node now if its deadline has passed while it could not be woken."""
        process = self._process
        deadline = self._next_deadline()
        if process.is_running and deadline is not None and self._is_due(deadline):
            process.feed(TimePassed())

    def _fire(self, at: Instant) -> None:
        process = self._process
        if at != self._armed_at or not process.is_running:
            return  # an earlier deadline has taken its place
        self._armed_at = None
        if process.is_paused:
            process.backlog.append((self.arm,))
            return
        deadline = self._next_deadline()
        if deadline is None or not self._is_due(deadline):
            self.arm()
            return
        self._count_wake_up(self._world.now)
        process.feed(TimePassed())

    def _count_wake_up(self, now: Instant) -> None:
        self._wake_ups = self._wake_ups + 1 if now == self._last_wake_up else 0
        self._last_wake_up = now
        if self._wake_ups > WAKE_UPS_WITHOUT_PROGRESS_MAX:
            self._world.core_failed(self._process.node_id, "its next deadline stays in the past")


# Any: each method takes one class of the union, which a mapping cannot say.
_PERFORM: dict[type[Any], Callable[[Process, Any], None]] = {
    effect_types.Dial: Process._dial,
    effect_types.Resolve: Process._resolve,
    effect_types.OutputReady: Process._output_ready,
    effect_types.Write: Process._write,
    effect_types.WriteEach: Process._write_each,
    effect_types.Disconnect: Process._disconnect,
    effect_types.Measure: Process._measure,
    effect_types.Handle: Process._handle,
    effect_types.Settle: Process._settle,
    effect_types.Fanout: Process._fanout,
    effect_types.Asked: Process._asked,
    effect_types.Replied: Process._replied,
    effect_types.RequestFinished: Process._request_finished,
    effect_types.RequestEnded: Process._request_ended,
    effect_types.Emit: Process._emit,
    effect_types.Persist: Process._persist,
    effect_types.LeaveFinished: Process._leave_finished,
    effect_types.Withdraw: Process._withdraw,
}
EFFECTS_PERFORMED: frozenset[type[Effect]] = frozenset(_PERFORM)
