"""Which worlds there are, what each of them can simulate, and how one is made for a story."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clusternode.errors import RouteError, ScenarioError
from clusternode.recording.trace import Recorder
from clusternode.routes.loader import load_table
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.scenario import Scenario
from clusternode.simulation.world import World
from clusternode.testing.world.world import AgentsWorld

AGENTS_MAX: Final = 40
"""Whole agents in one process; each has an event loop and a thread."""


def why_not(world: str, scenario: Scenario) -> str:
    """Say why a story cannot be lived through in a world; nothing when it can."""
    if world not in scenario.worlds:
        return scenario.because
    if world == "agents" and len(scenario.plan.node_ids) > AGENTS_MAX:
        return f"{len(scenario.plan.node_ids)} nodes, at most {AGENTS_MAX} whole agents"
    return ""


def check_routes(file: Path | None) -> None:
    """Load the routes of a user once, to see whether they can be.

    Raises:
        ScenarioError: They cannot.
    """
    try:
        load_table(file)
    except RouteError as error:
        raise ScenarioError(str(error)) from error


@contextlib.contextmanager
def world_of(
    world: str,
    scenario: Scenario,
    seed: int,
    *,
    routes: Path | None = None,
    recorder: Recorder | None = None,
) -> Iterator[World]:
    """Make a world for a story, and let go of it afterwards.

    Args:
        world: `model` or `agents`.
        scenario: The story.
        seed: What decides everything that is drawn.
        routes: In place of those that the story names; in the world of agents.
        recorder: Writes what one node was told; in the world of the model.
    """
    if world == "model":
        yield ModelWorld(scenario.plan, seed, recorder=recorder)
        return
    with _on_one_processor(), _quiet():
        made = AgentsWorld(scenario.plan, seed, routes=routes or scenario.routes)
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def _on_one_processor() -> Iterator[None]:
    """Keep the threads of all loops together: only one ever runs, and the turn passes quicker."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    processors = sorted(before)
    os.sched_setaffinity(0, {processors[os.getpid() % len(processors)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the agents log off the terminal, unless somebody has asked for it."""
    logger, handler = logging.getLogger("clusternode"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
