"""What a ping costs does not grow with the cluster: the figures of docs/scale.md, counted."""

from __future__ import annotations

import pytest

from clusternode.core.settings import HealthSettings
from clusternode.core.types import NodeId
from clusternode.core.wire.codec import encoded_of, frame_of
from clusternode.core.wire.limits import DIGEST_MAX
from clusternode.core.wire.messages import Ping
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.world import WorldPlan, address_of

PING_INTERVAL = 10.0
ROUNDS = 3
FRAMES_PER_PING = 2
"""The ping and its pong."""
INPUTS_PER_PING = 4
"""Here: its time has come, the pong comes. There: it comes, the pong is written."""


def counts_per_ping(number: int) -> tuple[float, float]:
    """Return (frames, inputs) for each ping of a cluster in which nothing happens."""
    plan = WorldPlan(
        node_ids=[NodeId(f"n{index}") for index in range(1, number + 1)],
        notification=[address_of(0)],
        health=HealthSettings(ping_interval=PING_INTERVAL),
    )
    world = ModelWorld(plan, 1)
    for node_id in world.hosts:
        world.start(node_id)
    world.run_until(world.now + 3 * PING_INTERVAL)
    frames, inputs = world.counts.messages, world.counts.inputs
    world.run_until(world.now + ROUNDS * PING_INTERVAL)
    pings = number * (number - 1) * ROUNDS
    return (world.counts.messages - frames) / pings, (world.counts.inputs - inputs) / pings


@pytest.mark.parametrize(
    "number",
    [10, pytest.param(30, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.long)],
)
def test_a_ping_is_two_frames_and_four_inputs_in_a_cluster_of_any_size(number):
    frames, inputs = counts_per_ping(number)

    assert frames == pytest.approx(FRAMES_PER_PING, rel=0.15)
    assert 3.0 <= inputs <= INPUTS_PER_PING * 1.15  # fewer where more pings share a wake-up


@pytest.mark.parametrize(("pings_so_far", "size"), [(10, 23), (1000, 25), (1_000_000, 27)])
def test_the_size_of_a_ping_grows_with_its_number_only(pings_so_far, size):
    assert len(encoded_of(frame_of(Ping(pings_so_far, DIGEST_MAX)))) == size
