"""Every story in scenarios/ is a test: collected by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusternode.simulation.runner import run
from clusternode.simulation.scenario import load

FILES = sorted((Path(__file__).resolve().parent.parent / "scenarios").glob("*.toml"))


def marked(path: Path):
    marks = [pytest.mark.slow] if load(path).is_slow else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_the_story_ends_well(path):
    scenario = load(path)

    result = run(scenario, scenario.seed)

    assert list(result.violations) == []
    assert result.virtual_s == pytest.approx(scenario.duration)


def test_there_are_stories():
    assert len(FILES) >= 5
