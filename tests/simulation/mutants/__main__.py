"""Lives through the stories of mutants; see the package's docstring."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clusternode.simulation import swarm
from clusternode.simulation.runner import run_in
from clusternode.simulation.scenario import Scenario, load
from clusternode.testing.world.worlds import world_of
from tests.simulation.mutants.catalogue import Mutant
from tests.simulation.mutants.shell import ALL

LIVES_OF_AGENTS = 5
"""Lives of a story until a mutant of the shell counts as unnoticed: whole agents are not lived
through twice in the same way, for trio's order of tasks has no seed."""

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def story_of(name: str) -> Scenario:
    kind, _, seed = name.partition(":")
    return swarm.draw(int(seed)) if kind == "swarm" else load(ROOT / "scenarios" / f"{name}.toml")


def hunt(mutant: Mutant) -> dict[str, Any]:
    """Run a mutant until a story fails; return which, and what was broken how often."""
    mutant.apply()
    broken: Counter[str] = Counter()
    lives = LIVES_OF_AGENTS if mutant.world == "agents" else 1
    for name, life in itertools.product(mutant.stories, range(lives)):
        scenario = story_of(name)
        with world_of(mutant.world, scenario, scenario.seed + life) as world:
            result = run_in(world, scenario)
        broken = Counter(violation.invariant for violation in result.violations)
        if broken.keys() & set(mutant.caught_by):
            first = next(v for v in result.violations if v.invariant in mutant.caught_by)
            return {
                "mutant": mutant.name,
                "story": name,
                "broken": dict(broken),
                "first": f"{first.at:.3f} s {first.invariant}: {first.detail}",
            }
    return {"mutant": mutant.name, "story": None, "broken": dict(broken), "first": ""}


def main(names: Sequence[str]) -> int:
    if len(names) == 1:
        print(json.dumps(hunt(ALL[names[0]])))
        return 0
    survivors = 0
    for name in names or ALL:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.simulation.mutants", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(ran.stdout)
        survivors += found["story"] is None
        print(f"{name}: {found['story'] or 'SURVIVED'} {found['first']}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
