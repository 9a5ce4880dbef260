"""The simulation notices every bug that is put into the core: each mutant breaks an invariant."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from clusternode.simulation.invariants import ALWAYS, EVENTUALLY
from tests.simulation.mutants.__main__ import ROOT, story_of
from tests.simulation.mutants.shell import ALL as MUTANTS


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name):
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation.mutants", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    found = json.loads(ran.stdout)
    assert found["story"] is not None, f"{MUTANTS[name].what} Nothing noticed it."
    assert found["broken"].keys() & set(MUTANTS[name].caught_by)


def test_there_are_mutants_for_every_promise():
    assert len(MUTANTS) >= 12
    named = {invariant for mutant in MUTANTS.values() for invariant in mutant.caught_by}
    assert named <= ALWAYS.keys() | EVENTUALLY.keys()


@pytest.mark.parametrize("name", sorted({s for one in MUTANTS.values() for s in one.stories}))
def test_the_stories_of_the_mutants_exist(name):
    assert story_of(name).title
