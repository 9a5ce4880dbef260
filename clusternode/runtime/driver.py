"""Puts one node into the real world: inputs in, effects performed, one timer.

`feed` is synchronous and is called by whoever has something to tell: readers, writers, the bus,
the timer. No task ever sees the node half-way, so there is no lock and no queue between them.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, Protocol, assert_never

import attrs
import trio

from clusternode.core import effects
from clusternode.core.effects import Effect
from clusternode.core.events import Event
from clusternode.core.inputs import (
    Input,
    KnownMember,
    Lagged,
    Persisted,
    PersistFailed,
    Resolved,
    Start,
    TimePassed,
)
from clusternode.core.node import Node
from clusternode.core.settings import NodeSettings
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.errors import PeerUnreachable
from clusternode.runtime.eventlog import EventLog
from clusternode.runtime.jobs import Jobs
from clusternode.runtime.recorder import RecordedNode, Recording
from clusternode.runtime.resolver import Resolver
from clusternode.runtime.state import StateKeeper

logger = logging.getLogger(__name__)

LAG_THRESHOLD: Final[Seconds] = 0.25
"""A timer so late means that the loop stood still; an idle host is late by milliseconds."""

COUNTERS: Final = (
    "feeds",
    "timer_wake_ups",
    "loop_lags",
    "names_resolved",
    "names_not_resolved",
    "messages_forbidden",
)
"""What a driver counts; the meanings are in docs/operations.md."""


class Links(Protocol):
    """Who performs what a node wants of its connections (`runtime/connections.py`)."""

    def dial(self, address: Address) -> None: ...
    def output_ready(self, effect: effects.OutputReady) -> None: ...
    def write(self, effect: effects.Write) -> None: ...
    def write_each(self, effect: effects.WriteEach) -> None: ...
    def disconnect(self, effect: effects.Disconnect) -> None: ...
    def measure(self, effect: effects.Measure) -> None: ...

    @property
    def counters(self) -> Mapping[str, int]: ...


class Observer(Protocol):
    """Who takes what a node has for its user (`bus/mesh.py`). No call may block or raise."""

    def handle(self, effect: effects.Handle) -> None: ...
    def settle(self, effect: effects.Settle) -> None: ...
    def fan_out(self, effect: effects.Fanout) -> None: ...
    def asked(self, effect: effects.Asked) -> None: ...
    def replied(self, effect: effects.Replied) -> None: ...
    def request_finished(self, effect: effects.RequestFinished) -> None: ...
    def request_ended(self, effect: effects.RequestEnded) -> None: ...
    def emit(self, event: Event) -> None: ...


@attrs.define
class Surroundings:
    """What a driver works with; the agent puts it together."""

    links: Links
    observer: Observer
    resolver: Resolver
    jobs: Jobs
    keeper: StateKeeper | None
    """None: nothing is remembered, and every `Persist` succeeds."""
    certificates: Callable[[], Mapping[NodeId, datetime]] = dict
    """Until when each node's certificate is valid, of those that have shown one."""


class Driver:
    """Owns one node. `attach` and `start` come first; inputs fed before `start` wait for it."""

    def __init__(
        self,
        settings: NodeSettings,
        rng: random.Random | None = None,
        recording: Recording | None = None,
    ) -> None:
        rng = rng or random.Random(secrets.randbits(256))  # jitter must differ between the nodes
        self.settings = settings
        now = trio.current_time()
        self.node: Node | RecordedNode = (
            Node(settings, now, rng)
            if recording is None
            else RecordedNode(settings, now, rng, recording)
        )
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.left = trio.Event()
        """Set when the others know that we leave."""
        self.on_withdraw: Callable[[str], None] | None = None
        self._log = EventLog()
        self._around: Surroundings | None = None
        self._queue: deque[Input] = deque()
        self._is_busy = True  # until `start`
        self._armed: Instant = float("inf")
        """When the timer fires; never later than the node's next deadline."""
        self._excused: Instant = -float("inf")
        """Until when lateness has been reported: nothing is late twice."""
        self._timer: trio.CancelScope | None = None

    def attach(self, surroundings: Surroundings) -> None:
        self._around = surroundings
        if isinstance(self.node, RecordedNode):
            record = partial(self.node.recording.run, surroundings.observer.emit)
            surroundings.jobs.start_soon(record)

    def count_forbidden(self, count: int) -> None:
        """Count messages and requests that were answered with 403."""
        self.counters["messages_forbidden"] += count

    def start(self, known_members: Sequence[KnownMember] = ()) -> None:
        """Begin: the node joins its cluster."""
        assert self._around is not None, "attach comes before start"
        self._is_busy = False
        self.feed(Start(known_members))

    def snapshot(self) -> NodeSnapshot:
        """Show the node, with the counters of what surrounds it."""
        snapshot = self.node.snapshot(trio.current_time())
        counters = {**snapshot.counters, **self.counters}
        if self._around is not None:
            counters.update(self._around.links.counters)
        return attrs.evolve(snapshot, counters=counters, members=self._certified(snapshot.members))

    def _certified(self, members: Sequence[MemberSnapshot]) -> tuple[MemberSnapshot, ...]:
        expiries = {} if self._around is None else self._around.certificates()
        if not expiries:
            return tuple(members)
        return tuple(
            attrs.evolve(member, certificate_expires=expiries[member.node_id].isoformat())
            if member.node_id in expiries
            else member
            for member in members
        )

    def feed(self, input_: Input) -> None:
        """Tell the node something and perform what it asks for, before this returns.

        Called from inside an effect (a handler that runs in place and broadcasts), the input
        waits until the effects before it are performed.
        """
        if self._is_busy:
            self._queue.append(input_)
            return
        now = trio.current_time()
        self._is_busy = True
        try:
            if now - self._armed > LAG_THRESHOLD:
                self._report_lag(now)
            perform = self._perform
            for effect in self.node.step(now, input_):
                perform(effect)
            while self._queue:
                for effect in self.node.step(now, self._queue.popleft()):
                    perform(effect)
            self.counters["feeds"] += 1
        finally:
            self._is_busy = False
        deadline = self.node.next_deadline()
        if deadline is not None and deadline < self._armed:
            self._armed = max(deadline, now)
            if self._timer is not None:
                self._timer.deadline = self._armed

    def _report_lag(self, now: Instant) -> None:
        """Tell the node before anything else, so that it does not take our silence for others'."""
        lag = now - self._armed
        self._armed = self._excused = now
        self.counters["loop_lags"] += 1
        logger.warning("the event loop stood still for %.2f s", lag)
        for effect in self.node.step(now, Lagged(lag)):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:  # one branch for each effect
        around = self._around
        assert around is not None
        match effect:
            case effects.OutputReady():
                around.links.output_ready(effect)
            case effects.Write():
                around.links.write(effect)
            case effects.WriteEach():
                around.links.write_each(effect)
            case effects.Settle():
                around.observer.settle(effect)
            case effects.Handle():
                around.observer.handle(effect)
            case effects.Fanout():
                around.observer.fan_out(effect)
            case effects.Replied():
                around.observer.replied(effect)
            case effects.RequestFinished():
                around.observer.request_finished(effect)
            case effects.RequestEnded():
                around.observer.request_ended(effect)
            case effects.Asked():
                around.observer.asked(effect)
            case effects.Emit():
                self._log.note(effect.event)
                around.observer.emit(effect.event)
            case effects.Dial():
                around.links.dial(effect.address)
            case effects.Disconnect():
                around.links.disconnect(effect)
            case effects.Measure():
                around.links.measure(effect)
            case effects.Resolve():
                around.jobs.start_soon(partial(self._resolve, effect.name))
            case effects.Persist():
                self._persist(effect)
            case effects.LeaveFinished():
                self.left.set()
            case effects.Withdraw():
                assert self.on_withdraw is not None
                self.on_withdraw(effect.detail)
            case _:
                assert_never(effect)

    async def _resolve(self, name: Address) -> None:
        assert self._around is not None
        try:
            addresses = await self._around.resolver.resolve(name)
        except PeerUnreachable as error:
            self.counters["names_not_resolved"] += 1
            logger.debug("look-up failed: %s", error)
            self.feed(Resolved(name, error=str(error)))
        else:
            self.counters["names_resolved"] += 1
            if self.settings.address.scheme == "tls":  # the nodes that a name stands for are ours
                addresses = [
                    attrs.evolve(one, address=attrs.evolve(one.address, scheme="tls"))
                    for one in addresses
                ]
            self.feed(Resolved(name, addresses))

    def _persist(self, effect: effects.Persist) -> None:
        assert self._around is not None
        keeper = self._around.keeper
        if keeper is None:
            self.feed(Persisted())
        elif keeper.offer(effect):
            self._around.jobs.start_soon(partial(self._write_state, keeper))

    async def _write_state(self, keeper: StateKeeper) -> None:
        error = await keeper.write()
        if error is None:
            self.feed(Persisted())
        else:
            logger.warning("the state could not be written: %s", error)
            self.feed(PersistFailed(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the time: wake the node when something in it is due.

        A deadline that moves away is left to fire once for nothing: moving it costs more.
        """
        task_status.started()
        while True:
            with trio.CancelScope(deadline=self._armed) as self._timer:
                await trio.sleep_forever()
            self._timer = None
            self.counters["timer_wake_ups"] += 1
            self._wake()
            await trio.lowlevel.checkpoint()

    def _wake(self) -> None:
        now = trio.current_time()
        deadline = self.node.next_deadline()
        lag = now - self._armed
        if lag > LAG_THRESHOLD or (deadline is not None and deadline <= now):
            self.feed(TimePassed())  # tells the lag first
        deadline = self.node.next_deadline()
        self._armed = float("inf") if deadline is None else max(deadline, self._excused)
