"""A control server of a fake agent that has real back ends, and the commands that talk to it."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio

from clusternode.backends.subscriptions import BackendSubscriptions
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
async def controlled(nursery):
    controlled = FakeControlled()
    subscriptions = BackendSubscriptions(controlled.events, controlled.buses)
    controlled.events.set_subscriptions(subscriptions)
    await nursery.start(subscriptions.run)
    return controlled


@pytest.fixture
def command(controlled, capsys, nursery, tmp_path):
    """Run a command in a thread, talking to a control server that is started for it."""

    async def run_command(*words) -> Ran:
        path = tmp_path / "sockets" / "n1.sock"
        if not path.exists():
            await nursery.start(ControlServer(controlled, path).run)
        status = await trio.to_thread.run_sync(partial(main, [*words, "--socket", str(path)]))
        return Ran(status, *capsys.readouterr())

    return run_command
