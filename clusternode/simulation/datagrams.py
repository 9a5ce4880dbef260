"""A world of SIP nodes on datagrams that are lost, doubled and reordered, in virtual time.

Nodes are those of the gateways: real ones of ours, and simulated Kamailios made of the same pure
halves. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from random import Random
from typing import Protocol

import attrs

from clusternode.core.types import Instant, Seconds
from clusternode.gateways.kamailio.effects import Answer, Effect, Send, Source


class DatagramNode(Protocol):
    """What the world needs of a node."""

    def start(self, now: Instant) -> list[Effect]: ...
    def tick(self, now: Instant) -> list[Effect]: ...
    def next_deadline(self) -> Instant | None: ...
    def receive(self, now: Instant, data: bytes, source: Source) -> list[Effect]: ...


@attrs.frozen
class Weather:
    """What happens to datagrams on the way."""

    loss: float = 0.0
    """The share that is lost."""
    doubled: float = 0.0
    """The share that arrives twice."""
    delay_min: Seconds = 0.0005
    delay_max: Seconds = 0.02
    """Delays differ, so datagrams overtake one another."""


@attrs.define
class DatagramWorld:
    """Nodes by their host; `other_effects` are handed to whoever runs the world."""

    rng: Random
    weather: Weather = attrs.Factory(Weather)
    now: Instant = 0.0
    nodes: dict[str, DatagramNode] = attrs.Factory(dict)
    lost: int = 0
    delivered: int = 0
    _heap: list[tuple[Instant, int, str, bytes, Source]] = attrs.Factory(list)
    _order: int = 0

    def add(self, host: str, node: DatagramNode) -> list[Effect]:
        """Start a node; returns the effects that are not datagrams."""
        self.nodes[host] = node
        return self.carry(host, node.start(self.now))

    def kill(self, host: str) -> None:
        """Take a node away without a word."""
        del self.nodes[host]

    def carry(self, host: str, wanted: Sequence[Effect]) -> list[Effect]:
        """Put datagrams of a node on their way; return the other effects."""
        others: list[Effect] = []
        for effect in wanted:
            if isinstance(effect, Send):
                self._post(host, effect.address.host, effect.data)
            elif isinstance(effect, Answer):
                self._post(host, effect.to.host, effect.data)
            else:
                others.append(effect)
        return others

    def _post(self, sender: str, to: str, data: bytes) -> None:
        copies = 2 if self.rng.random() < self.weather.doubled else 1
        for _ in range(copies):
            if self.rng.random() < self.weather.loss:
                self.lost += 1
                continue
            self._order += 1
            delay = self.rng.uniform(self.weather.delay_min, self.weather.delay_max)
            entry = (self.now + delay, self._order, to, data, Source(sender, 5060))
            heapq.heappush(self._heap, entry)

    def run(self, until: Instant) -> list[tuple[str, Effect]]:
        """Let time pass; return (host, effect) of everything that is no datagram, in order."""
        found: list[tuple[str, Effect]] = []
        while True:
            at, host = self._next_deadline()
            if self._heap and self._heap[0][0] <= at:
                at, _, host, data, source = self._heap[0]
                if at > until:
                    break
                heapq.heappop(self._heap)
                self.now = max(self.now, at)
                if host in self.nodes:
                    self.delivered += 1
                    others = self.carry(host, self.nodes[host].receive(self.now, data, source))
                    found += [(host, effect) for effect in others]
                continue
            if at > until:
                break
            self.now = max(self.now, at)
            others = self.carry(host, self.nodes[host].tick(self.now))
            found += [(host, effect) for effect in others]
        self.now = until
        return found

    def _next_deadline(self) -> tuple[Instant, str]:
        best, host = float("inf"), ""
        for name, node in self.nodes.items():
            deadline = node.next_deadline()
            if deadline is not None and deadline < best:
                best, host = deadline, name
        return best, host
