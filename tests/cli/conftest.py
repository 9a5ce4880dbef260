"""The command line against a control server on a real unix socket, with a fake agent."""

from __future__ import annotations

import io
import sys
from functools import partial

import attrs
import pytest
import trio

from clusternode.cli.main import main
from clusternode.control.server import ControlServer
from tests.fakes.bus import FakeControlled


@attrs.frozen
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
async def controlled():
    return FakeControlled()


@pytest.fixture
async def server(controlled, tmp_path, nursery):
    server = ControlServer(controlled, tmp_path / "n1.sock")
    await nursery.start(server.run)
    return server


@pytest.fixture
def command(server, capsys):
    """Run a command in a thread, talking to the server."""

    async def run_command(*words, where=True) -> Ran:
        added = ("--socket", str(server.path)) if where else ()
        status = await trio.to_thread.run_sync(partial(main, [*words, *added]))
        return Ran(status, *capsys.readouterr())

    return run_command


@pytest.fixture
def stdin(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give
