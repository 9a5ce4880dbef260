"""A full outbox in a whole cluster: each policy bounds it, and each sender is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from clusternode.core.types import NodeId, ResultCode
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.runner import live
from clusternode.simulation.scenario import load
from clusternode.simulation.world import TIME_ZERO

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
PEER = NodeId("n2")


def told(policy):
    """Return what the sender was told of each message of the first burst, and how soon."""
    story = load(SCENARIOS / f"overflow-{policy}.toml")
    world = ModelWorld(story.plan, story.seed)
    _, violations = live(world, story)
    assert violations == []
    limit = story.plan.messaging.outbox_bytes
    assert limit * 0.9 < max(one.size_bytes for one in world.history.outboxes) <= limit
    return [
        (ResultCode(code), at - fact.at)
        for fact in world.history.deliveries.values()
        if fact.at == TIME_ZERO + 6.0
        for at, node_id, code in fact.results
        if node_id == PEER
    ]


def test_what_waits_arrives_when_there_is_room_or_ends_after_wait_max():
    results = told("waits")

    codes = Counter(code for code, _ in results)
    assert codes.total() == 300
    assert codes[ResultCode.OK] > 200  # more than an outbox holds
    busy = [after for code, after in results if code is ResultCode.BUSY]
    assert busy == pytest.approx([2.0] * len(busy))


def test_the_oldest_that_is_dropped_is_told_and_the_newest_arrive():
    codes = [code for code, _ in told("drops-the-oldest")]

    assert len(codes) == 300
    assert set(codes) == {ResultCode.OK, ResultCode.BUSY}
    assert codes[-1] is ResultCode.OK
    first = codes.index(ResultCode.BUSY)
    dropped = codes.count(ResultCode.BUSY)
    assert codes[first : first + dropped] == [ResultCode.BUSY] * dropped
