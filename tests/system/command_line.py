"""The command line as a user has it: one process, its exit status and what it said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import attrs
import trio

from clusternode.cli.local.fleet import Fleet, LocalAgent

PATIENCE = 20.0
"""For what takes less than a second on an idle machine."""
HEALTH = {"ping_interval": 1.0, "ping_timeout": 0.5}
CLUSTER = "voip"
HANDSHAKE_TIMEOUT = 0.5
SLACK = 1.0
"""What a machine may be late, in seconds, that runs other things too."""


@attrs.frozen
class Outcome:
    status: int
    output: str
    error: str


async def clusternode(*words: str, launcher: Sequence[str] = ()) -> Outcome:
    """Run a command to its end."""
    with trio.fail_after(PATIENCE + SLACK):
        ended = await trio.run_process(
            [*launcher, sys.executable, "-m", "clusternode", *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


async def exit_status(agent: LocalAgent) -> int:
    """Wait for the end of an agent that ends by itself."""
    process = agent.process
    assert process is not None
    agent.is_ending = True
    with trio.fail_after(PATIENCE):
        while (status := process.poll()) is None:  # noqa: ASYNC110  # a process sets no event
            await trio.sleep(0.02)
    return status


async def call(agent: LocalAgent, name: str, **params: object):
    """Make a call to an agent, in a thread: its answer may take a while."""
    return await trio.to_thread.run_sync(lambda: agent.call(name, **params))


def counter(agent: LocalAgent, name: str) -> int:
    return agent.call("cluster.show")["counters"].get(name, 0)


def log_of(agent: LocalAgent) -> str:
    return agent.log_file.read_text(errors="replace")


async def logged(fleet: Fleet, agent: LocalAgent, text: str) -> None:
    """Wait until an agent has logged a text."""
    await fleet.wait(lambda: text in log_of(agent), f"{agent.node_id} logs {text!r}", PATIENCE)


async def answers(fleet: Fleet, agent: LocalAgent) -> None:
    """Wait until the control socket of an agent that may be alone answers."""
    await fleet.wait(agent.answers, f"{agent.node_id} answers", PATIENCE)


async def sees(fleet: Fleet, agent: LocalAgent, **wanted: str) -> None:
    """Wait until an agent sees exactly these others, each with this status."""
    await fleet.wait(lambda: agent.statuses() == wanted, f"{agent.node_id} sees {wanted}", PATIENCE)
