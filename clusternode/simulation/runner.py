"""Runs a scenario from a seed, and says what was wrong with the run."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs

from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.simulation.checks import View, Violation, violations_of
from clusternode.simulation.invariants import ALWAYS, EVENTUALLY
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.scenario import Hope, Scenario
from clusternode.simulation.world import TIME_ZERO, CoreFailed, World

VIOLATIONS_SHOWN_MAX = 20
"""Of one invariant: the first ones tell the story, the rest is their echo."""
SAMPLE_INTERVAL: Seconds = 5.0
"""Between two looks at the outboxes of a small world."""
SAMPLE_PAIRS_PER_SECOND = 400.0
"""A large world is looked at less often: so many rows a virtual second."""

PROGRESS_INTERVAL: Seconds = 1.0
"""Virtual seconds between two words on how far a run has come."""
UNCONDITIONAL = "no-node-fails"
"""What holds in every scenario, whatever it names."""

Progress = Callable[[Seconds, Seconds], None]
"""Told the virtual time and the duration of the story."""


@attrs.frozen(kw_only=True)
class RunResult:
    """How one run went."""

    name: str
    seed: int
    ok: bool
    digest: str
    virtual_s: Seconds
    messages: int
    inputs: int
    counters: Mapping[str, int]
    """Those of all nodes that run at the end, added up; none where the core failed."""
    violations: Sequence[Violation]
    """With times in seconds from the start of the story."""


def run(scenario: Scenario, seed: int, *, progress: Progress | None = None) -> RunResult:
    """Live through a story once."""
    return run_in(ModelWorld(scenario.plan, seed), scenario, progress)


def run_in(world: World, scenario: Scenario, progress: Progress | None = None) -> RunResult:
    """Live through a story in a world that was made for it, and may be looked at afterwards."""
    view, violations = live(world, scenario, progress)
    counters = Counter[str]()
    for snapshot in view.snapshots.values():
        counters.update(snapshot.counters)
    shown = [attrs.evolve(v, at=v.at - TIME_ZERO) for v in violations]
    return RunResult(
        name=scenario.name,
        seed=world.seed,
        ok=not shown,
        digest=world.digest(),
        virtual_s=world.now - TIME_ZERO,
        messages=world.counts.messages,
        inputs=world.counts.inputs,
        counters=dict(sorted(counters.items())),
        violations=shown,
    )


def live(
    world: World, scenario: Scenario, progress: Progress | None = None
) -> tuple[View, list[Violation]]:
    """Let the story happen in `world`; return how it ended, and what was wrong."""
    violations: list[Violation] = []
    view: View | None = None
    end = TIME_ZERO + scenario.duration
    _prepare(world, scenario, end)
    try:
        for hope in scenario.eventually:
            _run_until(world, TIME_ZERO + hope.by, scenario, progress)
            view = View(world.now, world.glances(), world.history)
            violations += _broken_hopes(view, hope)
        _run_until(world, end, scenario, progress)
        if view is None or view.now != world.now:  # else nothing has happened since
            view = View(world.now, world.glances(), world.history)
    except CoreFailed:
        return _faults_of_core(world)
    except Exception as error:  # noqa: BLE001  # the code under test; its fault is the result
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        world.history.faults_of_core.append((world.now, NodeId(world.counts.stepping), what))
        return _faults_of_core(world)
    for name in dict.fromkeys([*scenario.always, UNCONDITIONAL]):
        violations += violations_of(name, ALWAYS[name], view)[:VIOLATIONS_SHOWN_MAX]
    return view, violations


def _prepare(world: World, scenario: Scenario, end: Instant) -> None:
    for name, answer in scenario.names.items():
        world.resolver.script(name, answer)
    for node_id in scenario.initial:
        world.at(TIME_ZERO + world.rng.uniform(0, scenario.spread), world.start, node_id)
    for step in scenario.steps:
        world.at(TIME_ZERO + step.at, step.action, world)
    if "bounded-queues" in scenario.always:
        interval = max(SAMPLE_INTERVAL, len(world.hosts) ** 2 / SAMPLE_PAIRS_PER_SECOND)
        _sample(world, interval, end)


def _sample(world: World, interval: Seconds, end: Instant) -> None:
    world.sample_outboxes()
    if world.now + interval <= end:
        world.after(interval, _sample, world, interval, end)


def _run_until(world: World, limit: Instant, scenario: Scenario, progress: Progress | None) -> None:
    if progress is None:
        world.run_until(limit)
        return
    while world.now < limit:
        world.run_until(min(limit, world.now + PROGRESS_INTERVAL))
        progress(world.now - TIME_ZERO, scenario.duration)


def _broken_hopes(view: View, hope: Hope) -> list[Violation]:
    found: list[Violation] = []
    for name in hope.holds:
        found += violations_of(name, EVENTUALLY[name], view)[:VIOLATIONS_SHOWN_MAX]
    return found


def _faults_of_core(world: World) -> tuple[View, list[Violation]]:
    """Return what ended the run; what else is wrong with a run cut short means nothing."""
    view = View(world.now, {}, world.history)
    return view, violations_of(UNCONDITIONAL, ALWAYS[UNCONDITIONAL], view)
