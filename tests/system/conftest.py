"""Real agents as processes on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from clusternode.cli.local.fleet import Fleet, LocalAgent
from tests.system.command_line import CLUSTER, HANDSHAKE_TIMEOUT, HEALTH, answers


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


@pytest.fixture(scope="module")
def lone_fleet() -> Iterator[Fleet]:
    """A fleet for all tests that leave its first agent, n1, as it is."""
    with Fleet() as fleet:
        discovery = {"handshake_timeout": HANDSHAKE_TIMEOUT}
        n1 = fleet.add("n1", cluster=CLUSTER, sections={"health": HEALTH, "discovery": discovery})
        n1.start()
        trio.run(answers, fleet, n1)
        yield fleet


@pytest.fixture
def lone(lone_fleet: Fleet) -> LocalAgent:
    """An agent that is alone in its cluster."""
    return lone_fleet.agents[0]
