"""One node of one cluster: `step(now, input) -> effects`. Composition only."""

from __future__ import annotations

import random

from clusternode.core.effects import Effect
from clusternode.core.inputs import Input
from clusternode.core.settings import NodeSettings
from clusternode.core.snapshots import NodeSnapshot
from clusternode.core.types import Instant


class Node:
    """The sans-IO node. Never raises for what a peer did; deterministic given its arguments."""

    def __init__(self, settings: NodeSettings, now: Instant, rng: random.Random) -> None:
        self.settings = settings

    def step(self, now: Instant, input_: Input) -> list[Effect]:
        """Take one input and return what the surroundings should do, in order."""
        return []

    def next_deadline(self) -> Instant | None:
        """Tell when the next `TimePassed` is due; None when nothing waits for time."""
        return None

    def snapshot(self, now: Instant) -> NodeSnapshot:
        raise NotImplementedError
