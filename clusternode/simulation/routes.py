"""What the hosts of a simulation do with messages and requests: slow, failing, or silent.

Keeps the promises of the agent's dispatcher: in order per (origin, channel), requests concurrently,
bounded, and one entry of `Handled` for each message once its handler has ended.
"""

from __future__ import annotations

from collections import defaultdict

import attrs

from clusternode.core.effects import Handle
from clusternode.core.inputs import Handled
from clusternode.core.types import (
    ChannelName,
    Incarnation,
    Instant,
    NodeId,
    ResultCode,
    Seconds,
)
from clusternode.core.wire.messages import Message, Reply, Request
from clusternode.simulation.history import HandlingFact, key_in
from clusternode.simulation.surroundings import Behaviour, NodeView, WorldView
from clusternode.simulation.traffic import Traffic


@attrs.define
class Work:
    """One message on its way through its handler."""

    origin: NodeId
    incarnation: Incarnation
    position: int
    message: Message | Request
    fact: HandlingFact


class SimulatedRoutes:
    """The handlers of one process."""

    def __init__(self, world: WorldView, traffic: Traffic, process: NodeView) -> None:
        self._world = world
        self._traffic = traffic
        self._process = process
        self._free_at: dict[tuple[NodeId, Incarnation, ChannelName], Instant] = defaultdict(float)
        self._waiting = 0
        self._requests = 0

    @property
    def behaviour(self) -> Behaviour:
        return self._world.behaviour_of(self._process.node_id)

    def take(self, effect: Handle) -> None:
        """Perform the effect `Handle`."""
        refused = []
        behaviour = self.behaviour
        for position, message in effect.items:
            if isinstance(message, Reply):
                continue
            code = self._refusal(behaviour, message)
            if code is None:
                self._accept(effect, position, message)
            else:
                refused.append((position, code))
        if refused:
            handled = Handled(effect.origin, effect.incarnation, refused)
            self._process.later(0.0, self._process.feed, handled)

    def _refusal(self, behaviour: Behaviour, message: Message | Request) -> ResultCode | None:
        if message.channel not in behaviour.channels:
            return ResultCode.NOT_FOUND
        if isinstance(message, Request):
            is_full = self._requests >= behaviour.requests_max
        else:
            is_full = self._waiting >= behaviour.queue_size
        return ResultCode.BUSY if is_full else None

    def _accept(self, effect: Handle, position: int, message: Message | Request) -> None:
        process = self._process
        history = self._world.history
        key = key_in(message.body)
        fact = HandlingFact(key, process.node_id, process.fact.life, self._world.now)
        work = Work(effect.origin, effect.incarnation, position, message, fact)
        if isinstance(message, Request):
            self._requests += 1
            self._begin(work)
            process.later(self._duration(), self._end_request, work)
            return
        history.arrivals.append((key, process.node_id, process.fact.life))
        self._waiting += 1
        lane = (effect.origin, effect.incarnation, message.channel)
        begin = max(self._free_at[lane], self._world.now)
        duration = self._duration()
        self._free_at[lane] = begin + duration
        if begin > self._world.now:
            process.later(begin - self._world.now, self._begin, work)
        else:
            self._begin(work)
        process.later(begin + duration - self._world.now, self._end, work)

    def _duration(self) -> Seconds:
        behaviour = self.behaviour
        low, high = behaviour.handling_min, behaviour.handling_max
        return low if low == high else self._world.rng.uniform(low, high)

    def _begin(self, work: Work) -> None:
        work.fact.started = self._world.now
        key = (work.fact.key, work.fact.destination)
        self._world.history.handlings[key].append(work.fact)

    def _end_request(self, work: Work) -> None:
        self._requests -= 1
        process, request = self._process, work.message
        assert isinstance(request, Request)
        if self._world.rng.random() < self.behaviour.reply_share:
            self._traffic.answer(process, work.origin, work.fact.key, request.tag)
        self._finish(work)

    def _end(self, work: Work) -> None:
        self._waiting -= 1
        self._finish(work)

    def _finish(self, work: Work) -> None:
        share = self.behaviour.failure_share
        has_failed = bool(share) and self._world.rng.random() < share
        code = ResultCode.FAILED if has_failed else ResultCode.OK
        work.fact.ended = self._world.now
        work.fact.code = code
        handled = Handled(work.origin, work.incarnation, [(work.position, code)])
        self._process.feed(handled)
