"""Executables as handlers: input, environment, results, limits. Real processes, so real time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from clusternode.config import ExecRoute
from clusternode.core.events import PeerUp
from clusternode.routes.loader import load_table


@pytest.fixture
def shell(tmp_path):
    """Make a table whose one route is a shell script."""

    def make(text, on="request:locate", **options):
        file = tmp_path / "route.sh"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return load_table(None, [ExecRoute(on=on, exec=("./route.sh",), **options)], tmp_path)

    return make


@pytest.mark.parametrize(
    ("text", "code", "replies"),
    [
        ("cat", 200, [b"alice"]),
        ("exit 0", 200, []),
        ("exit 75", 486, []),
        ("exit 3", 500, []),
        ("kill -9 $$", 500, []),
        ("head -c 2000 /dev/zero", 500, []),
    ],
)
async def test_the_exit_status_is_the_result(bus, run, shell, text, code, replies):
    async with run(shell(text, output_size_max=1000)):
        assert await bus.finished(bus.request("locate", "alice")) == [code]

    assert [each[2] for each in bus.replied] == replies


async def test_the_first_line_of_stderr_is_in_the_log(bus, run, shell, caplog):
    async with run(shell("echo no database >&2; echo more >&2; exit 1")):
        await bus.finished(bus.request("locate", "alice"))

    assert "route.sh: exit status 1: no database" in caplog.text


async def test_a_missing_program_is_500_and_named(bus, run, tmp_path, caplog):
    table = load_table(None, [ExecRoute(on="message:c", exec=("./none",))], tmp_path)
    async with run(table):
        assert await bus.finished(bus.message("c", "x")) == [500]
    assert "none: No such file" in caplog.text


async def test_the_environment_is_clean_and_tells_who_asks(bus, run, shell, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    bus.tags["site.name"] = "nul\0"
    async with run(shell("env", environment={"MINE": "1"})):
        (ticket,) = bus.request("locate", "alice")
        await bus.finished([ticket])
    lines = bus.replied[0][2].decode().splitlines()
    variables = dict(line.split("=", 1) for line in lines)

    assert variables["CLUSTERNODE_TAG"] == f"tag-{ticket}"
    assert variables["CLUSTERNODE_ORIGIN"] == "n2"
    assert variables["CLUSTERNODE_CHANNEL"] == variables["SERF_QUERY_NAME"] == "locate"
    assert variables["CLUSTERNODE_NODE_ID"] == variables["SERF_SELF_NAME"] == "n1"
    assert variables["SERF_EVENT"] == "query" and variables["SERF_SELF_ROLE"] == "registrar"
    assert variables["MINE"] == "1"
    assert "SECRET_OF_THE_AGENT" not in variables and "SERF_TAG_SITE_NAME" not in variables


async def test_events_come_as_json_with_serfs_names(bus, run, shell, tmp_path):
    out = tmp_path / "out"
    table = shell(f"(echo $SERF_EVENT $CLUSTERNODE_PARAM_NODE_ID; cat) > {out}", on="event:peer:up")
    async with run(table) as dispatcher:
        dispatcher.observed(bus, PeerUp("voip", "n7", "tcp://h:1"))
        while dispatcher.routes()[0].calls == 0 or dispatcher.routes()[0].running:
            await trio.lowlevel.checkpoint()
    first, second = out.read_text().splitlines()

    assert first == "member-join n7"
    assert json.loads(second)["params"]["node_id"] == "n7"


async def test_the_whole_process_group_ends_at_the_time_limit(bus, run, shell, tmp_path):
    pid_file = tmp_path / "pid"
    text = f"sleep 60 & echo $! > {pid_file}; wait"
    async with run(shell(text, timeout=0.3)):
        assert await bus.finished(bus.request("locate", "alice")) == [500]

    with trio.fail_after(5):
        while is_running(int(pid_file.read_text())):
            await trio.lowlevel.checkpoint()


def is_running(pid):
    """Tell whether a process is there and not a zombie that nobody has reaped yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def test_a_child_left_behind_does_not_hold_the_result(bus, run, shell):
    async with run(shell("sleep 60 & echo here")):
        assert await bus.finished(bus.request("locate", "alice")) == [200]
    assert bus.replied[0][2] == b"here\n"


async def test_more_at_a_time_than_allowed_is_486(bus, run, shell):
    async with run(shell("read line; echo $line; sleep 0.2", concurrency=1)):
        codes = await bus.finished(bus.request("locate", "a", "b"))
    assert codes == [200, 486]
