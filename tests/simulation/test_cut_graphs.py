"""Whatever links break at one moment: who is three hops away at most is never called down.

`python -m tests.simulation.test_cut_graphs 1..500` tries more than the suite does.
"""

from __future__ import annotations

import itertools
import random
import sys

import pytest

from clusternode.simulation.model import ModelWorld
from clusternode.simulation.runner import live
from clusternode.simulation.scenario import from_mapping
from clusternode.simulation.world import TIME_ZERO

NODES_MIN, NODES_MAX = 4, 12
SHARE_MIN, SHARE_MAX = 0.1, 0.7
"""Of the links that are cut."""
HOPS_MAX = 3
CUT_AT = 20.0
LOOK_AGAIN_AFTER = 20.0
ONCE_FAILED = (1, 10, 48)
"""Seeds in which somebody was called down when relays that are silent were not asked for."""


def hops(nodes, linked, start) -> dict[str, int]:
    """Return how far everyone is who can be reached from a node."""
    found, line = {start: 0}, [start]
    for node in line:
        for other in nodes:
            if other not in found and frozenset((node, other)) in linked:
                found[other] = found[node] + 1
                line.append(other)
    return found


def cuts_of(rng) -> tuple[list[str], list[tuple[str, str]]]:
    """Draw links to cut so that nobody is more than three hops away from anybody."""
    nodes = [f"n{number}" for number in range(1, rng.randint(NODES_MIN, NODES_MAX) + 1)]
    pairs = list(itertools.combinations(nodes, 2))
    while True:
        share = rng.uniform(SHARE_MIN, SHARE_MAX)
        cut = [pair for pair in pairs if rng.random() < share]
        linked = {frozenset(pair) for pair in pairs if pair not in cut}
        far = [hops(nodes, linked, node) for node in nodes]
        if cut and all(len(one) == len(nodes) and max(one.values()) <= HOPS_MAX for one in far):
            return nodes, cut


def story(seed):
    rng = random.Random(f"{seed}/graph")
    nodes, cut = cuts_of(rng)
    ping_interval = rng.choice([1.0, 2.0, 5.0])
    return from_mapping(
        {
            "title": f"{len(cut)} links of {len(nodes)} nodes are cut",
            "nodes": len(nodes),
            "notification": nodes,
            "settings": {"health": {"ping_interval": ping_interval, "ping_timeout": 1.0}},
            "step": [{"at": CUT_AT, "cut": [[one], [other]]} for one, other in cut],
            "expect": {
                "always": ["no-node-fails"],
                "eventually": [
                    {"by": CUT_AT - 0.1, "holds": ["everyone-sees-everyone"]},
                    {
                        "by": CUT_AT + LOOK_AGAIN_AFTER,
                        "holds": ["everyone-sees-everyone", "links-are-true"],
                    },
                ],
            },
        },
        name="cuts",
    )


def wrong_with(seed) -> list[object]:
    """Live through a story; return who was called down, and what else was wrong."""
    scenario = story(seed)
    world = ModelWorld(scenario.plan, seed)
    _, violations = live(world, scenario)
    down = [
        fact
        for fact in world.history.statuses
        if fact.status != "active" and fact.at > TIME_ZERO + CUT_AT - 0.1
    ]
    return [*violations, *down]


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_nobody_is_called_down_who_is_reachable_in_three_hops(seed):
    assert wrong_with(seed) == []


if __name__ == "__main__":
    first, last = map(int, sys.argv[1].split(".."))
    for number in range(first, last + 1):
        if found := wrong_with(number):
            sys.stdout.write(f"{number}: {found[:2]}\n")
