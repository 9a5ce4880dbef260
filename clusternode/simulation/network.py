"""Links between hosts: how long bytes take, and whether they get through at all.

Members talk over TCP, so a lost packet is extra delay and a partition is a stall: nothing is
lost, doubled or overtaken inside one connection (semantics, section 11).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import attrs

from clusternode.core.types import Instant, Seconds

RETRANSMISSION_MIN: Seconds = 0.2
"""Linux: TCP_RTO_MIN. The wait before the first retransmission on a fast link."""
RETRANSMISSION_MAX: Seconds = 120.0
"""Linux: TCP_RTO_MAX. The wait doubles up to this."""

EXPONENTIAL_MAX = 10.0
"""An exponential latency is cut off at so many times its mean: one draw in 22 000."""
DISTRIBUTIONS = ("uniform", "exponential")

LATENCY_POOR: Seconds = 0.25
"""From here on a round trip and a retransmission are near the shortest useful ping timeout."""

HostPair = tuple[str, str]


@attrs.frozen
class LinkQuality:
    """How good the way from one host to another is."""

    latency_min: Seconds = 0.0002
    latency_max: Seconds = 0.002
    loss: float = 0.0
    """The share of packets that are lost and sent again."""
    bandwidth: float | None = None
    """Bytes per second of one connection; None for no limit."""
    distribution: str = "uniform"
    """One of `DISTRIBUTIONS`: uniform between both ends, or exponential above the least, and
    `latency_max - latency_min` on average."""

    @property
    def is_poor(self) -> bool:
        """Whether it excuses messages that are late, and pings unless `is_only_narrow`."""
        worst = self.latency_max
        if self.distribution == "exponential":
            worst = self.latency_min + EXPONENTIAL_MAX * (self.latency_max - self.latency_min)
        return bool(self.loss or self.bandwidth) or worst > LATENCY_POOR

    @property
    def is_only_narrow(self) -> bool:
        """Whether it excuses late messages, but no unanswered ping."""
        return bool(self.bandwidth) and not attrs.evolve(self, bandwidth=None).is_poor


class Network:
    """All links. A link goes one way: (from, to)."""

    def __init__(self, rng: random.Random, quality: LinkQuality) -> None:
        self.quality = quality
        self._rng = rng
        self._special: dict[HostPair, LinkQuality] = {}
        self._blocked: dict[HostPair, None] = {}  # a dict for its order
        self._uplinks: dict[str, float] = {}  # host → bytes per second of all its connections
        self._is_good = not quality.loss and quality.bandwidth is None
        self.is_plain = self._is_good
        """Whether nothing is wrong with any link."""

    def _look(self) -> None:
        """Take note of whether anything is wrong with any link."""
        self.is_plain = self._is_good and not (self._blocked or self._special or self._uplinks)

    def is_plain_between(self, source: str, target: str) -> bool:
        """Tell whether nothing is wrong with a link: it is not blocked, special or narrow."""
        pair = (source, target)
        return (
            self._is_good
            and pair not in self._blocked
            and pair not in self._special
            and source not in self._uplinks
        )

    def quality_of(self, source: str, target: str) -> LinkQuality:
        return self._special.get((source, target), self.quality) if self._special else self.quality

    def set_quality(self, pairs: Iterable[HostPair], quality: LinkQuality) -> None:
        for pair in pairs:
            self._special[pair] = quality
        self._look()

    def delay(self, source: str, target: str) -> Seconds:
        """Draw how long one packet takes, resends included."""
        quality = self.quality_of(source, target) if self._special else self.quality
        low, high = quality.latency_min, quality.latency_max
        if low == high:
            delay = low
        elif quality.distribution == "exponential":
            delay = low + (high - low) * min(self._rng.expovariate(1.0), EXPONENTIAL_MAX)
        else:
            delay = low + (high - low) * self._rng.random()
        wait = RETRANSMISSION_MIN
        while quality.loss and self._rng.random() < quality.loss and wait < RETRANSMISSION_MAX:
            delay += wait
            wait *= 2
        return delay

    def set_uplink(self, host: str, bandwidth: float | None) -> None:
        """Let all connections of a host share one bandwidth, in bytes per second."""
        if bandwidth is None:
            self._uplinks.pop(host, None)
        else:
            self._uplinks[host] = bandwidth
        self._look()

    def uplink_of(self, host: str) -> float | None:
        """Return what all connections of a host share, in bytes per second; None for no limit."""
        return self._uplinks.get(host)

    def is_blocked(self, source: str, target: str) -> bool:
        return bool(self._blocked) and (source, target) in self._blocked

    def block(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Let nothing through from `sources` to `targets`, one way."""
        for source in sources:
            for target in targets:
                if source != target:
                    self._blocked[source, target] = None
        self._look()

    def heal(self, pairs: Iterable[HostPair] | None = None) -> list[HostPair]:
        """Let everything through again, or only these pairs; return which were blocked."""
        wanted = list(self._blocked) if pairs is None else list(pairs)
        healed = [pair for pair in wanted if pair in self._blocked]
        for pair in healed:
            del self._blocked[pair]
        self._look()
        return healed


def next_retransmission(stalled_since: Instant, now: Instant) -> Instant:
    """Tell when TCP tries again, at or after `now`, what it first sent at `stalled_since`.

    RFC 6298 section 5.5: the wait doubles each time.
    """
    at, wait = stalled_since, RETRANSMISSION_MIN
    while at < now:
        at += wait
        wait = min(2 * wait, RETRANSMISSION_MAX)
    return at
