"""Starts, kills and watches real agents on loopback, each a process with a file of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
import trio

from clusternode.control.client import ControlClient
from clusternode.errors import AgentNotReachable, ClusternodeError, ControlError

LOOPBACK = "127.0.0.1"
POLL_INTERVAL = 0.02
"""Between two looks at an agent that is waited for."""
START_TIMEOUT = 30.0
"""A small machine under load may take seconds to import everything."""
STOP_TIMEOUT = 5.0
LOG_LINES_SHOWN = 12


class FleetError(ClusternodeError):
    """An agent did not start, or did not do in time what was waited for."""


@attrs.define(eq=False)
class LocalAgent:
    """One agent on this machine; `process` is None while it does not run."""

    node_id: str
    port: int
    directory: Path
    config: Path
    control_socket: Path
    host: str = LOOPBACK
    launcher: tuple[str, ...] = ()
    """What starts the command, for instance `ip netns exec NAME`; it must become the command."""
    process: subprocess.Popen[bytes] | None = None
    is_ending: bool = False
    """Whether its end is wanted, so that it is no failure."""

    @property
    def address(self) -> str:
        return tcp_address(self.host, self.port)

    @property
    def log_file(self) -> Path:
        return self.directory / f"{self.node_id}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None, "it does not run"
        return self.process.pid

    def start(self) -> None:
        """Start the process; it may take a while until it answers."""
        self.is_ending = False
        command = [*self.launcher, sys.executable, "-m", "clusternode"]
        command += ["run", "-c", str(self.config)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill the process at once (SIGKILL) and wait for its end."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the process to leave politely (SIGTERM), without waiting."""
        self.is_ending = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait_ended(self) -> None:
        """Wait for the end of a terminated process; kill it when it takes too long."""
        if self.process is None:
            return
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)
        self.process = None

    def _end(self, signal_number: signal.Signals) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal_number)
            self.process.wait()
            self.process = None

    def client(self) -> ControlClient:
        return ControlClient(self.control_socket)

    def call(self, name: str, **params: object) -> Any:  # noqa: ANN401  # JSON
        """Make one call to the agent's control socket.

        Raises:
            AgentNotReachable, ControlError: As `ControlClient.call`.
        """
        timeout = params.get("timeout")
        patience = float(timeout) + STOP_TIMEOUT if isinstance(timeout, int | float) else None
        with self.client() as client:
            return client.call(name, params, timeout=patience)

    def members(self) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = self.call("cluster.list")
        return rows

    def statuses(self) -> dict[str, str]:
        """Return the status of every member but itself; nothing when it does not answer."""
        try:
            return {row["node_id"]: row["status"] for row in self.members() if not row["local"]}
        except (AgentNotReachable, ControlError):
            return {}

    def answers(self) -> bool:
        """Tell whether the control socket does."""
        try:
            self.call("agent.info")
        except (AgentNotReachable, ControlError):
            return False
        return True

    def last_log_lines(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:])


class Fleet:
    """Agents in one temporary directory; all are killed and the directory is removed at the end."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="clusternode-")
        self.directory = Path(self._directory.name)
        self.agents: list[LocalAgent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for agent in self.agents:
            agent.kill()
        self._directory.cleanup()

    def add(
        self,
        node_id: str,
        *,
        cluster: str,
        routes: Path | None = None,
        sections: Mapping[str, Mapping[str, object]] | None = None,
        tags: Mapping[str, str] | None = None,
        routes_limit: float | None = None,
        host: str = LOOPBACK,
        port: int | None = None,
        launcher: Sequence[str] = (),
        more: str = "",
    ) -> LocalAgent:
        """Write the configuration of one more agent; the first one is the others' way in.

        Args:
            node_id: Its name, and that of its files.
            cluster: Its cluster.
            routes: Its routes.
            sections: More of its configuration, table → key → value; wins over the rest.
            tags: Its tags.
            routes_limit: How many seconds a handler may run.
            host: The IP address it listens on.
            port: Its port; None: a free one.
            launcher: What starts the command; it must become the command (exec).
            more: Further lines of its configuration, in TOML.
        """
        port = free_port(host) if port is None else port
        tables: dict[str, dict[str, object]] = {
            "node": {
                "id": node_id,
                "address": tcp_address(host, port),
                "state_dir": f"{node_id}.state",
                "control_socket": f"{node_id}.sock",
            },
            "cluster": {"name": cluster},
            "discovery": {"notification_addresses": [self._way_in()]},
        }
        if not self.agents:
            tables["discovery"]["notification_addresses"] = [tables["node"]["address"]]
        if tags:
            tables["node"]["tags"] = dict(tags)
        if routes is not None:
            tables["routes"] = {"file": str(routes)}
            if routes_limit is not None:
                tables["routes"]["time_limit"] = routes_limit
        for name, section in (sections or {}).items():
            tables.setdefault(name, {}).update(section)
        config = self.directory / f"{node_id}.toml"
        config.write_text(to_toml(tables) + more)
        agent = LocalAgent(
            node_id,
            port,
            self.directory,
            config,
            self.directory / str(tables["node"]["control_socket"]),
            host,
            tuple(launcher),
        )
        self.agents.append(agent)
        return agent

    def _way_in(self) -> str:
        return self.agents[0].address if self.agents else ""

    async def start(self) -> None:
        """Start all agents that do not run, and wait until everyone sees everyone as active."""
        for agent in self.agents:
            if agent.process is None:
                agent.start()
        await self.wait_formed()

    async def wait_formed(self) -> None:
        count = len(self.agents) - 1
        await self.wait(
            lambda: all(
                sum(status == "active" for status in agent.statuses().values()) == count
                for agent in self.agents
            ),
            f"all {count + 1} agents see each other",
        )

    async def wait(
        self, holds: Callable[[], bool], what: str, timeout: float = START_TIMEOUT
    ) -> None:
        """Look again and again until something holds.

        Raises:
            FleetError: It does not in time, or an agent has ended by itself; shows its log.
        """
        with trio.move_on_after(timeout):
            while True:
                for agent in self.agents:
                    process = agent.process
                    has_ended = process is not None and process.poll() is not None
                    if process is not None and has_ended and not agent.is_ending:
                        raise FleetError(
                            f"{agent.node_id} ended with status {process.returncode}; its log:\n"
                            + agent.last_log_lines()
                        )
                if holds():
                    return
                await trio.sleep(POLL_INTERVAL)
        logs = "\n".join(f"{each.node_id}:\n{each.last_log_lines()}" for each in self.agents)
        raise FleetError(f"not in {timeout:g} s: {what}; the logs:\n{logs}")


def tcp_address(host: str, port: int) -> str:
    """Write an address as the configuration has it, IPv6 in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def free_port(host: str = LOOPBACK) -> int:
    """Return a port of one of this machine's addresses that nobody listens on right now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def to_toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Write tables of strings, numbers, booleans, lists and tables of strings as TOML."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml_value(one) for one in value) + "]"
    return json.dumps(value)  # TOML's strings, numbers and booleans are JSON's


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
