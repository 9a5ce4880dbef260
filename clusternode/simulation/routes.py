"""What the hosts of a simulation do with messages and requests: slow, failing, or silent.

Keeps the promises of the agent's dispatcher: in order per (origin, channel), requests concurrently,
bounded, and one entry of `Handled` for each message once its handler has ended.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

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
from clusternode.simulation.history import HandlingFact

if TYPE_CHECKING:
    from clusternode.simulation.process import Process

DEFAULT_CHANNELS = (ChannelName("news"), ChannelName("locate"))


@attrs.frozen(kw_only=True)
class Behaviour:
    """How the handlers of a node behave."""

    channels: tuple[ChannelName, ...] = DEFAULT_CHANNELS
    handling_min: Seconds = 0.0
    handling_max: Seconds = 0.001
    reply_share: float = 0.5
    """How many of the requests are answered with a reply; the others end with nothing to say."""
    failure_share: float = 0.0
    """How many of the handlers raise."""
    queue_size: int = 10_000
    """How many messages may wait for their handlers; beyond it 486."""
    requests_max: int = 100
    """How many request handlers run at a time; beyond it 486."""


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

    def __init__(self, process: Process) -> None:
        self._process = process
        self._free_at: dict[tuple[NodeId, Incarnation, ChannelName], Instant] = defaultdict(float)
        self._waiting = 0
        self._requests = 0

    @property
    def behaviour(self) -> Behaviour:
        return self._process.world.behaviour_of(self._process.node_id)

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
        history = process.world.history
        key = key_in(message.body)
        fact = HandlingFact(key, process.node_id, process.fact.life, process.world.now)
        work = Work(effect.origin, effect.incarnation, position, message, fact)
        if isinstance(message, Request):
            self._requests += 1
            self._begin(work)
            process.later(self._duration(), self._end_request, work)
            return
        history.arrivals.append((key, process.node_id, process.fact.life))
        self._waiting += 1
        lane = (effect.origin, effect.incarnation, message.channel)
        begin = max(self._free_at[lane], process.world.now)
        duration = self._duration()
        self._free_at[lane] = begin + duration
        if begin > process.world.now:
            process.later(begin - process.world.now, self._begin, work)
        else:
            self._begin(work)
        process.later(begin + duration - process.world.now, self._end, work)

    def _duration(self) -> Seconds:
        behaviour = self.behaviour
        low, high = behaviour.handling_min, behaviour.handling_max
        return low if low == high else self._process.world.rng.uniform(low, high)

    def _begin(self, work: Work) -> None:
        work.fact.started = self._process.world.now
        key = (work.fact.key, work.fact.destination)
        self._process.world.history.handlings[key].append(work.fact)

    def _end_request(self, work: Work) -> None:
        self._requests -= 1
        process, request = self._process, work.message
        assert isinstance(request, Request)
        if process.world.rng.random() < self.behaviour.reply_share:
            process.world.traffic.answer(process, work.origin, work.fact.key, request.tag)
        self._finish(work)

    def _end(self, work: Work) -> None:
        self._waiting -= 1
        self._finish(work)

    def _finish(self, work: Work) -> None:
        share = self.behaviour.failure_share
        has_failed = bool(share) and self._process.world.rng.random() < share
        code = ResultCode.FAILED if has_failed else ResultCode.OK
        work.fact.ended = self._process.world.now
        work.fact.code = code
        handled = Handled(work.origin, work.incarnation, [(work.position, code)])
        self._process.feed(handled)


def key_in(body: bytes) -> str:
    """Read the key that a body begins with; the rest is padding."""
    return body.split(b" ", 1)[0].decode()
