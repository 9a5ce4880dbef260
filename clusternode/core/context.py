"""What all parts of one node share: settings, chance, timers, effects of this step, counters."""

from __future__ import annotations

import random

import attrs

from clusternode.core.effects import Effect, Emit
from clusternode.core.events import Event
from clusternode.core.settings import NodeSettings
from clusternode.core.timers import Timers
from clusternode.core.types import Seconds


@attrs.define
class Context:
    """The common ground of the parts of a node; each part appends its effects here, in order."""

    settings: NodeSettings
    rng: random.Random
    timers: Timers = attrs.Factory(Timers)
    effects: list[Effect] = attrs.Factory(list)
    counters: dict[str, int] = attrs.Factory(dict)  # counter name → count since the start

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount

    def emit(self, event: Event) -> None:
        self.effects.append(Emit(event))

    def jittered(self, interval: Seconds) -> Seconds:
        """Shorten an interval by up to a fifth, so that nodes started together drift apart."""
        return interval * self.rng.uniform(0.8, 1.0)
