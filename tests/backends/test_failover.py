"""FAILOVER from `tcp:` to `flatstore:` loses nothing, with a real server that goes and comes back.

Ten thousand numbered events, each accounted for: at the server, in the file, or in both.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing

from clusternode.backends.flatstore_format import LineFormat, read_file
from clusternode.testing.backends import LIMIT, backend_world, until

pytestmark = pytest.mark.slow

EVENTS = 10_000
EVENT = "E_NUMBERED"
BATCH = 250
"""Events that are raised before everything else gets its turn: a busy script."""
PAUSE = 0.002


class Server:
    """A JSON-RPC server that answers, or hangs, or is killed with its connections."""

    def __init__(self, nursery: trio.Nursery, port: int) -> None:
        self.port = port
        self.got: list[int] = []
        self.hangs = False
        self.dies_after = 0
        """How many requests it takes before it kills itself in the middle of a batch; 0: all."""
        self._nursery = nursery
        self._scope = trio.CancelScope()

    async def start(self) -> None:
        self._scope = trio.CancelScope()
        await self._nursery.start(self._serve, self._scope)

    def kill(self) -> None:
        self._scope.cancel()

    async def _serve(self, scope, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await trio.serve_tcp(self._talk, self.port, host="127.0.0.1", task_status=task_status)

    async def _talk(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            try:
                async for data in stream:
                    buffer += data
                    *lines, buffer = buffer.split(b"\n")
                    answers = b"".join(map(self._take, lines))
                    if self.hangs:
                        continue
                    await stream.send_all(answers)
            except trio.BrokenResourceError:
                pass

    def _take(self, line: bytes) -> bytes:
        if self.hangs:
            return b""
        request = json.loads(line)
        self.got.append(request["params"]["number"])
        if self.dies_after and len(self.got) >= self.dies_after:
            self.dies_after = 0
            self.kill()
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": 1}).encode() + b"\n"


async def refuses(server: Server) -> None:
    """Be down from the start, and come up in the middle."""
    await trio.sleep(0.05)
    await server.start()


async def is_killed_and_comes_back(server: Server) -> None:
    await server.start()
    for _ in range(3):
        await trio.sleep(0.04)
        server.kill()
        await trio.sleep(0.02)
        await server.start()


async def hangs_for_a_while(server: Server) -> None:
    await server.start()
    await trio.sleep(0.03)
    server.hangs = True
    await trio.sleep(0.5)
    server.hangs = False


async def dies_in_the_middle_of_a_batch(server: Server) -> None:
    server.dies_after = 1111
    await server.start()
    await until(lambda: not server.dies_after)
    await trio.sleep(0.05)
    await server.start()


async def is_unreachable(server: Server) -> None:
    """Drop what wants to connect, as a firewall does: the queue of a listener is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", server.port))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
        await trio.sleep_forever()


async def never_listens(server: Server) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "story",
    [
        refuses,
        is_killed_and_comes_back,
        hangs_for_a_while,
        dies_in_the_middle_of_a_batch,
        is_unreachable,
        never_listens,
    ],
    ids=lambda story: story.__name__,
)
async def test_ten_thousand_events_are_all_accounted_for(story, nursery, tmp_path):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(nursery, listener.socket.getsockname()[1])
    await listener.aclose()
    path = tmp_path / "events"
    first = f"tcp:127.0.0.1:{server.port}?reliable_mode=1&timeout=0.2"
    uri = f"virtual:FAILOVER?failover_timeout=0.05 {first} flatstore:{path}?format=json"

    async with backend_world() as world:
        world.subscribe(EVENT, uri)
        nursery.start_soon(story, server)
        raised = []
        for start in range(0, EVENTS, BATCH):
            numbers = range(start, start + BATCH)
            raised += [world.hub.raise_event(EVENT, {"number": number}) for number in numbers]
            await trio.sleep(PAUSE)
        with trio.fail_after(LIMIT):
            for each in raised:
                await each
        counters = world.only
    nursery.cancel_scope.cancel()

    written = numbers_in(path)
    found = Counter(server.got) + Counter(written)
    assert all(each.is_ok for each in raised)
    assert (counters.delivered, counters.failed, counters.overflowed) == (EVENTS, 0, 0)
    assert sorted(found) == list(range(EVENTS))
    assert max(Counter(written).values(), default=0) <= 1  # twice only where it was in doubt
    in_doubt = [number for number, times in found.items() if times > 1]
    assert len(in_doubt) <= 64 * 5  # what a batch holds, for each time that the server died


def numbers_in(path: Path) -> list[int]:
    if not path.exists():
        return []
    return [record.values[0] for record in read_file(path, LineFormat(is_json=True))]
