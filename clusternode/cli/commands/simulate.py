"""`clusternode simulate`: many nodes in virtual time, from a story and a seed."""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs

from clusternode.cli.local.huge_pages import HugePages
from clusternode.cli.output import complain, note, print_json, print_table
from clusternode.cli.parsing import (
    CLUSTER_SAID_NO,
    OK,
    USAGE,
    Parsers,
    add_command,
    add_json_option,
)
from clusternode.core.types import NodeId
from clusternode.errors import ScenarioError
from clusternode.recording.trace import Recorder
from clusternode.simulation import swarm
from clusternode.simulation.report import page
from clusternode.simulation.runner import Progress, RunResult, run_in
from clusternode.simulation.scenario import WORLDS, Scenario, from_mapping, load, read
from clusternode.simulation.shrinking import Values, as_toml, shrink, spelt_out
from clusternode.simulation.world import World
from clusternode.testing.world.worlds import check_routes, why_not, world_of

SEEDS_MAX = 1_000_000
"""Of one call: a larger range is a slip of the pen."""
JOBS_MAX = 256
BAR_WIDTH = 24
SHRINKING_TIME_MAX = 120.0
"""Seconds after which the smallest story that was found is good enough."""
NEWEST_COLLECTED_AFTER, YOUNG_COLLECTED_AFTER, OLD_COLLECTED_AFTER = 50_000, 20, 1_000
"""Objects of a world live long, and there are millions of them: nearly never look at the old."""
NEWEST_IN_MODEL_COLLECTED_AFTER = 10_000_000
"""A world without agents leaves little in cycles but closed connections: it need not look at its
millions of objects more than once, and garbage takes about a gigabyte at most."""
OBJECTS_OF_A_PAIR = 50
"""More than two nodes need to know each other: where there are more, none of it is garbage."""


@attrs.frozen
class Job:
    """One run: a story of a file, or, without a file, of the swarm."""

    file: Path | None
    seed: int | None
    """None: the seed that the file names."""
    nodes: int | None
    world: str = "model"
    routes: Path | None = None
    """In place of those that the story names."""

    def scenario(self) -> Scenario:
        if self.file is None:
            return swarm.draw(self.seed or 0)
        return load(self.file, nodes=self.nodes)

    def place(
        self, scenario: Scenario, seed: int, recorder: Recorder | None = None
    ) -> AbstractContextManager[World]:
        """Return the world in which it happens."""
        return world_of(self.world, scenario, seed, routes=self.routes, recorder=recorder)

    def command(self, seed: int) -> str:
        """Return the command that repeats the run."""
        words = ["clusternode", "simulate"]
        words += ["--swarm"] if self.file is None else [str(self.file)]
        words += ["--seed", str(seed)]
        if self.nodes is not None:
            words += ["--nodes", str(self.nodes)]
        if self.world != "model":
            words += ["--world", self.world]
        if self.routes is not None:
            words += ["--routes", str(self.routes)]
        return shlex.join(words)


@attrs.frozen
class Outputs:
    """What else a run leaves behind."""

    report: Path | None
    trace: Path | None
    node: str | None

    def run(self, job: Job, scenario: Scenario, seed: int, progress: Progress | None) -> RunResult:
        """Live through a story, and write what is wanted of it.

        Raises:
            ScenarioError: A file cannot be written, or the story has no such node.
        """
        if self.node is not None and self.node not in scenario.plan.node_ids:
            raise ScenarioError(f"--node: {self.node!r}: the story has no such node")
        try:
            with contextlib.ExitStack() as stack:
                recorder = None
                if self.trace is not None:
                    file = stack.enter_context(self.trace.open("w", encoding="utf-8"))
                    recorder = Recorder(file, NodeId(self.node or ""))
                world = stack.enter_context(job.place(scenario, seed, recorder))
                result = run_in(world, scenario, progress)
            if self.report is not None:
                self.report.write_text(page(scenario, result, world.history), encoding="utf-8")
        except OSError as error:
            raise ScenarioError(f"{error.filename}: {error.strerror}") from error
        return result


class Bar:
    """How far all runs have come, how fast, and how long they still take."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._done = 0
        self._began = time.perf_counter()

    def show_part(self, virtual_s: float, duration: float) -> None:
        """Take how far the run has come that is under way."""
        self._show(min(virtual_s / duration, 1.0))

    def run_done(self, *, is_shown: bool) -> None:
        self._done += 1
        if is_shown:
            self._show(0.0)

    def _show(self, part: float) -> None:
        share = (self._done + part) / self._runs
        if share >= 1:
            _show("")
        else:
            _show(bar_text(share, self._done, self._runs, time.perf_counter() - self._began))


def bar_text(share: float, done: int, runs: int, elapsed: float) -> str:
    """Return the line that shows progress: a bar, a rate, and the time left."""
    full = int(share * BAR_WIDTH)
    bar = "█" * full + "░" * (BAR_WIDTH - full)
    text = f"{bar} {share:4.0%}  {done} of {runs} runs"
    if share > 0 and elapsed > 0:
        left = int(elapsed * (1 - share) / share)
        rate = share * runs / elapsed
        text += f"  {rate:.2g} runs/s  {left // 60}:{left % 60:02d} left"
    return text


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "simulate",
        run=run,
        summary="live through stories of many nodes in virtual time",
        text="The nodes are those of the agent; hosts, links, DNS and time are simulated.\n"
        "Equal seeds give equal runs, and with whole agents the same verdict.\n"
        "Status 1: something that must hold did not.",
        examples="clusternode simulate scenarios/*.toml\n"
        "clusternode simulate scenarios/split-heals.toml --seeds 1..100 --jobs 2\n"
        "clusternode simulate --swarm --seeds 1..50\n"
        "clusternode simulate scenarios/*.toml --world agents\n"
        "clusternode simulate split.toml --world agents --routes routes.py\n"
        "clusternode simulate scenarios/split-heals.toml --report split.html\n"
        "clusternode simulate scenarios/split-heals.toml --trace n3.trace --node n3",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="stories, in TOML")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", metavar="N", type=_seed, help="default: what the story says, or 1")
    seeds.add_argument("--seeds", metavar="A..B", type=_seeds, help="one run for each of these")
    parser.add_argument("--jobs", metavar="N", type=_count(JOBS_MAX), default=1,
                        help="how many runs at a time; default 1")  # fmt: skip
    parser.add_argument("--nodes", metavar="N", type=_count(5000),
                        help="instead of the number of nodes in the story")  # fmt: skip
    parser.add_argument(
        "--swarm", action="store_true", help="random clusters and faults, drawn from each seed"
    )
    parser.add_argument("--world", choices=WORLDS, default="model",
                        help="nodes of the core alone (default), or whole agents")  # fmt: skip
    parser.add_argument("--routes", metavar="FILE", type=Path,
                        help="your event routes, on every agent; with --world agents")  # fmt: skip
    parser.add_argument("--report", metavar="FILE", type=Path,
                        help="draw the run as a page; of one run only")  # fmt: skip
    parser.add_argument("--trace", metavar="FILE", type=Path,
                        help="write what --node was told, for replay; of one run only")  # fmt: skip
    parser.add_argument("--node", metavar="ID", help="whose inputs --trace writes")
    add_json_option(parser, "print an array with one object for each run")


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number") from None
    if seed < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 0")
    return seed


def _seeds(text: str) -> range:
    first, separator, last = text.partition("..")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r}: expected A..B")
    seeds = range(_seed(first), _seed(last) + 1)
    if not 1 <= len(seeds) <= SEEDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to {SEEDS_MAX} seeds")
    return seeds


def _count(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        number = _seed(text)
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to {most}")
        return number

    return count


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.files) == arguments.swarm:
        complain("simulate: expected either files with stories, or --swarm")
        return USAGE
    if arguments.swarm and arguments.nodes is not None:
        complain("simulate: --nodes: the swarm draws its own number of nodes")
        return USAGE
    try:
        files = _files(arguments)
    except ScenarioError as error:
        complain(str(error))
        return USAGE
    jobs = list(_jobs(arguments, files))
    problem = _problem_with_options(arguments, len(jobs))
    if problem:
        complain(f"simulate: {problem}")
        return USAGE
    results = []
    outputs = Outputs(arguments.report, arguments.trace, arguments.node)
    try:
        for job, result in _run_all(jobs, arguments.jobs, outputs):
            results.append(result)
            if not result.ok and not arguments.json:
                _explain(job, result, shrinks=all(one.ok for one in results[:-1]))
    except ScenarioError as error:
        complain(str(error))
        return USAGE
    if arguments.json:
        print_json([_as_object(job, result) for job, result in zip(jobs, results, strict=True)])
    else:
        _print_results(results)
    return OK if all(result.ok for result in results) else CLUSTER_SAID_NO


def _files(arguments: argparse.Namespace) -> list[Path]:
    """Read all stories, so that a wrong one is said before hours of right ones.

    Returns:
        Those that make sense in the world that is asked for; of the others the reason is said.

    Raises:
        ScenarioError: One of them is wrong, or the routes are.
    """
    found = []
    for file in arguments.files:
        scenario = load(file, nodes=arguments.nodes)
        reason = why_not(arguments.world, scenario)
        if reason:
            note(f"{scenario.name}: not with --world {arguments.world}: {reason}")
            continue
        if arguments.world == "agents":
            check_routes(arguments.routes or scenario.routes)
        found.append(file)
    return found


def _problem_with_options(arguments: argparse.Namespace, runs: int) -> str:
    """Say what is wrong with options that do not fit; nothing when all is well."""
    if not runs:
        return "nothing is left to run"
    if arguments.routes is not None and arguments.world != "agents":
        return "--routes belongs to --world agents"
    if arguments.trace is not None and arguments.world != "model":
        return "--trace belongs to --world model; an agent writes one with run --record"
    if (arguments.trace is None) != (arguments.node is None):
        return "--trace and --node belong together"
    wants_one = [name for name in ("report", "trace") if getattr(arguments, name) is not None]
    if wants_one and runs != 1:
        return f"--{wants_one[0]} is for one run; these are {runs}"
    return ""


def _jobs(arguments: argparse.Namespace, stories: Sequence[Path]) -> Iterator[Job]:
    files: Sequence[Path | None] = [None] if arguments.swarm else stories
    default = 1 if arguments.swarm else None
    single = default if arguments.seed is None else arguments.seed
    seeds: Sequence[int | None] = [single] if arguments.seeds is None else arguments.seeds
    for file, seed in itertools.product(files, seeds):
        yield Job(file, seed, arguments.nodes, arguments.world, arguments.routes)


def _run_all(
    jobs: Sequence[Job], at_a_time: int, outputs: Outputs
) -> Iterator[tuple[Job, RunResult]]:
    """Yield results in the order of the jobs, each as soon as those before it are there."""
    is_terminal = sys.stderr.isatty()
    bar = Bar(len(jobs))
    if at_a_time == 1:
        for job in jobs:
            yield job, run_job(job, bar.show_part if is_terminal else None, outputs)
            bar.run_done(is_shown=is_terminal)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_a_time, mp_context=context) as pool:
        for job, result in zip(jobs, pool.map(run_job, jobs), strict=True):
            bar.run_done(is_shown=is_terminal)
            yield job, result


def run_job(
    job: Job, progress: Progress | None = None, outputs: Outputs | None = None
) -> RunResult:
    """Do one run."""
    scenario = job.scenario()
    gc.unfreeze()
    gc.collect()  # the world of the run before
    gc.freeze()  # what was imported and read need not be looked at again
    before = gc.get_threshold()
    newest = NEWEST_COLLECTED_AFTER
    if job.world == "model":
        pairs = len(scenario.plan.node_ids) ** 2 // 2
        newest = max(NEWEST_IN_MODEL_COLLECTED_AFTER, OBJECTS_OF_A_PAIR * pairs)
    gc.set_threshold(newest, YOUNG_COLLECTED_AFTER, OLD_COLLECTED_AFTER)
    pages = HugePages()

    def follow(virtual_s: float, duration: float) -> None:
        pages.keep_up()
        if progress is not None:
            progress(virtual_s, duration)

    try:
        seed = scenario.seed if job.seed is None else job.seed
        told = follow if job.world == "model" else progress
        return (outputs or Outputs(None, None, None)).run(job, scenario, seed, told)
    finally:
        gc.set_threshold(*before)
        gc.freeze()  # a world that is over is garbage: for the next run, or the end of the process


def _show(text: str) -> None:
    """Replace the last line of the terminal."""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def _explain(job: Job, result: RunResult, *, shrinks: bool) -> None:
    note(f"{result.name}, seed {result.seed}:")
    for violation in result.violations:
        note(f"  {violation.at:.3f} s  {violation.invariant}: {violation.detail}")
    note(f"  repeat it: {job.command(result.seed)}")
    if shrinks:
        note("  smaller, and failing in the same way; as a file in scenarios/ it is a test:")
        note("")
        for line in shrunk(job, result).splitlines():
            note(line)


def shrunk(job: Job, result: RunResult) -> str:
    """Make a story smaller while it still breaks the same invariant; return its file."""
    broken = result.violations[0].invariant
    until = time.perf_counter() + SHRINKING_TIME_MAX

    def fails(story: Values) -> bool:
        if time.perf_counter() > until:
            return False
        try:
            scenario = from_mapping(story, name="shrunk", file=job.file)
        except ScenarioError:
            return False
        with job.place(scenario, result.seed) as world:
            again = run_in(world, scenario)
        return any(one.invariant == broken for one in again.violations)

    story = swarm.story(result.seed) if job.file is None else spelt_out(read(job.file), job.nodes)
    return as_toml(shrink(story, fails) | {"seed": result.seed})


def _print_results(results: Sequence[RunResult]) -> None:
    rows = [
        [
            result.name,
            result.seed,
            "ok" if result.ok else f"{len(result.violations)} violations",
            f"{result.virtual_s:.0f} s",
            result.messages,
            result.digest or "-",
        ]
        for result in results
    ]
    print_table(["STORY", "SEED", "RESULT", "VIRTUAL", "MESSAGES", "DIGEST"], rows)


def _as_object(job: Job, result: RunResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "seed": result.seed,
        "ok": result.ok,
        "digest": result.digest or None,
        "virtual_s": round(result.virtual_s, 6),
        "messages": result.messages,
        "inputs": result.inputs,
        "counters": dict(result.counters),
        "violations": [
            {"invariant": v.invariant, "at_s": round(v.at, 6), "detail": v.detail}
            for v in result.violations
        ],
        "command": job.command(result.seed),
    }
