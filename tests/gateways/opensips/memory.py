"""Machines of OpenSIPS nodes, ours, connected in memory and in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import attrs

from clusternode.core.types import Instant, NodeId, ResultCode
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.settings import (
    BinUrl,
    MyNodeInfo,
    Neighbour,
    OpenSipsSettings,
)

LATENCY = 0.001
UNIX = 1_800_000_000.0


def url(number: int) -> BinUrl:
    return BinUrl("bin", f"10.0.0.{number}", 5555)


def settings(number: int, seeds: Iterable[int] = (1,), **more: Any) -> OpenSipsSettings:
    more = {"ping_interval": 1.0, "ping_timeout": 0.2, "node_timeout": 5.0, **more}
    return OpenSipsSettings(
        cluster_id=1,
        my_node_id=number,
        my_node_info=MyNodeInfo(url(number)),
        neighbor_node_info=tuple(Neighbour(each, url(each)) for each in seeds if each != number),
        **more,
    )


@attrs.define(eq=False)
class Member:
    node: OpenSipsNode
    events: list[Any] = attrs.Factory(list)
    effects: list[Effect] = attrs.Factory(list)
    frames: list[bytes] = attrs.Factory(list)
    """All that it has sent."""
    ends: dict[int, tuple[int, int]] = attrs.Factory(dict)  # connection → (member, its number)

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.effects if isinstance(each, kind)]


class World:
    """A network without loss; links can be blocked, and nodes killed."""

    def __init__(self) -> None:
        self.now: Instant = 100.0
        self.members: dict[int, Member] = {}
        self.blocked: list[frozenset[int]] = []
        self._heap: list[tuple[Instant, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._accepted = itertools.count(-1, -1)

    def start(self, number: int, seeds: Iterable[int] = (1,), **more: Any) -> OpenSipsNode:
        self.now += 0.01
        node = OpenSipsNode("opensips", settings(number, seeds, **more), self.now)
        node.context.unix_offset = UNIX
        self.members[number] = Member(node)
        self.perform(number, node.start(self.now))
        return node

    def kill(self, number: int) -> None:
        dead = self.members.pop(number)
        for other, end in dead.ends.values():
            self._later(partial(self._close, other, end))

    def block(self, one: int, other: int) -> None:
        """Let packets between two nodes vanish, and connections stand still."""
        self.blocked.append(frozenset({one, other}))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due = [(each.node.next_deadline(), key) for key, each in self.members.items()]
            timers = [(max(when, self.now), key) for when, key in due if when is not None]
            timer = min(timers, default=(until + 1, 0))
            if self._heap and self._heap[0][0] <= min(timer[0], until):
                self.now, _, action = heapq.heappop(self._heap)
                action()
            elif timer[0] <= until:
                self.now = timer[0]
                self.perform(timer[1], self.members[timer[1]].node.tick(self.now))
            else:
                self.now = until
                return

    def _later(self, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + LATENCY, next(self._order), action))

    def perform(self, number: int, wanted: list[Effect]) -> None:
        member = self.members[number]
        member.effects += wanted
        for effect in wanted:
            match effect:
                case effects.Raise():
                    member.events.append(effect.event)
                case effects.Dial():
                    self._later(partial(self._dial, number, effect))
                case effects.Send():
                    member.frames.append(effect.frame)
                    self._later(partial(self._carry, number, effect))
                case effects.Close():
                    end = member.ends.pop(effect.connection, None)
                    if end is not None:
                        self._later(partial(self._close, *end))

    def _is_blocked(self, one: int, other: int) -> bool:
        return frozenset({one, other}) in self.blocked

    def _dial(self, number: int, effect: effects.Dial) -> None:
        if number not in self.members:
            return
        member = self.members[number]
        to = int(effect.host.rpartition(".")[2])
        if self._is_blocked(number, to):
            return
        other = self.members.get(to)
        if other is None:
            self.perform(number, member.node.closed(self.now, effect.connection))
            return
        end = next(self._accepted)
        other.ends[end] = (number, effect.connection)
        member.ends[effect.connection] = (to, end)
        host = f"10.0.0.{number}"
        self.perform(to, other.node.accepted(self.now, end, host, 40000 - end))
        self.perform(number, member.node.connected(self.now, effect.connection))

    def _carry(self, number: int, effect: effects.Send) -> None:
        member = self.members.get(number)
        if member is None or effect.connection not in member.ends:
            return
        to, end = member.ends[effect.connection]
        urgent = int(effect.is_urgent)
        wanted = member.node.written(self.now, effect.connection, urgent, 1 - urgent)
        self.perform(number, wanted)
        if to in self.members and not self._is_blocked(number, to):
            received = self.members[to].node.received(self.now, end, effect.frame)
            self.perform(to, received)

    def _close(self, number: int, connection: int) -> None:
        member = self.members.get(number)
        if member is not None and member.ends.pop(connection, None) is not None:
            self.perform(number, member.node.closed(self.now, connection))

    # --- what tests ask -------------------------------------------------------------------------

    def sees_up(self, number: int) -> list[int]:
        return sorted(self.members[number].node.membership.links.up())

    def hops(self, number: int) -> dict[int, int]:
        return dict(self.members[number].node.membership.topology.hops)


def node_ids(*numbers: int) -> list[NodeId]:
    return [NodeId(str(number)) for number in numbers]


__all__ = ["LATENCY", "ResultCode", "World", "node_ids", "settings", "url"]
