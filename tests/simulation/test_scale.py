"""What a ping costs does not grow with the cluster: the figures of docs/scale.md, counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusternode.core.settings import HealthSettings
from clusternode.core.types import NodeId
from clusternode.core.wire.codec import encoded_of, frame_of
from clusternode.core.wire.limits import DIGEST_MAX
from clusternode.core.wire.messages import Ping
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.runner import RunResult, run
from clusternode.simulation.scenario import load
from clusternode.simulation.world import WorldPlan, address_of

ROOT = Path(__file__).resolve().parent.parent.parent
LARGE = ROOT / "scenarios" / "large"
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


def counted(story: str, number: int) -> RunResult:
    return run(load(LARGE / f"{story}.toml", nodes=number), 1)


def figures(section: str, number: int) -> list[float]:
    """Return the row of a number of nodes in the first table of a section of docs/scale.md."""
    _, _, page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").partition(section)
    row = next(line for line in page.splitlines() if line.startswith(f"| {number} |"))
    return [float(cell.replace(" ", "")) for cell in row.strip("|").split(" | ")[1:]]


@pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.long)])
def test_what_the_page_on_scale_says_is_what_its_stories_count(number):
    forms, rests = counted("forms", number), counted("forms-and-rests", number)
    pings = rests.counters["pings_opened"] - forms.counters["pings_opened"]
    _, frames, lists = figures("## Forming a cluster", number)

    assert frames == pytest.approx(forms.messages / number / (number - 1), rel=0.02)
    assert lists == pytest.approx(forms.counters["digest_exchanges"] / number, rel=0.02)
    row = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").partition("## A ping")[2]
    assert f"| {number} | {pings:,} |".replace(",", " ") in row
    assert (rests.messages - forms.messages) / pings == pytest.approx(2.0, abs=0.01)
