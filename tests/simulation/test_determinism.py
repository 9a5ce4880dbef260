"""The same seed gives the same run, in any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusternode.simulation import swarm
from clusternode.simulation.runner import run
from clusternode.simulation.scenario import load

ROOT = Path(__file__).resolve().parent.parent.parent
STORY = ROOT / "scenarios" / "killed-and-restarted.toml"


def digest_in_a_process_with(hash_seed: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "clusternode", "simulate", str(STORY), "--json"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return str(json.loads(ran.stdout)[0]["digest"])


@pytest.mark.slow
def test_two_processes_that_hash_strings_differently_have_one_digest():
    first = digest_in_a_process_with("1")
    second = digest_in_a_process_with("2")

    assert first == second


def test_a_run_can_be_repeated_in_one_process():
    scenario = load(STORY)

    first, second = run(scenario, 5), run(scenario, 5)

    assert first == second


def test_another_seed_is_another_run():
    scenario = load(STORY)

    assert run(scenario, 5).digest != run(scenario, 6).digest


@pytest.mark.parametrize("seed", range(1, 30))
def test_every_drawn_story_can_be_read(seed):
    scenario = swarm.draw(seed)

    assert scenario.steps
    assert swarm.story(seed) == swarm.story(seed)
