"""Every story in scenarios/ is a test: collected by itself.

But for the slow ones, whose clusters are large: `.ci/run` lives through all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from clusternode.simulation.runner import run, run_in
from clusternode.simulation.scenario import load
from clusternode.testing.world.worlds import why_not, world_of

FILES = sorted((Path(__file__).resolve().parent.parent / "scenarios").glob("*.toml"))


QUICK = [path for path in FILES if not load(path).is_slow]


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_the_story_ends_well(path):
    scenario = load(path)

    result = run(scenario, scenario.seed)

    assert list(result.violations) == []
    assert result.virtual_s == pytest.approx(scenario.duration)


AGENTS_TOO = (
    "clean-stop-nobody-heard-of",
    "dns-fails-then-works",
    "dns-lies",
    "halves-merge",
    "killed-and-restarted",
    "narrow-link-is-not-death",
    "seed-alone-in-a-partition",
    "state-that-cannot-be-written",
    "two-halves-with-one-id",
    "wrong-wall-clock",
)
"""Quick ones, of every kind; `.ci/run` lives through all of them."""


@pytest.mark.parametrize("name", AGENTS_TOO)
def test_the_story_ends_well_with_whole_agents(name):
    scenario = load(FILES[0].with_name(f"{name}.toml"))

    with world_of("agents", scenario, scenario.seed) as world:
        result = run_in(world, scenario)

    assert list(result.violations) == []
    assert result.virtual_s == pytest.approx(scenario.duration)


def test_most_stories_make_sense_in_both_worlds():
    skipped = [path.stem for path in FILES if why_not("agents", load(path))]

    assert skipped == ["thirty-at-the-default", "two-hundred"]


def test_there_are_stories():
    assert len(FILES) >= 5
