"""A control server on a real unix socket, for a fake agent."""

from __future__ import annotations

import json

import pytest
import trio

from clusternode.control.server import ControlServer
from tests.fakes.bus import FakeControlled


class RawClient:
    """Speaks lines with the server."""

    def __init__(self, stream):
        self.stream = stream
        self.buffer = b""

    async def line(self):
        while b"\n" not in self.buffer:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    async def ask(self, method, params=None, call_id=1):
        request = {"jsonrpc": "2.0", "id": call_id, "method": method, "params": params}
        await self.stream.send_all(json.dumps(request).encode() + b"\n")
        return await self.line()

    async def say(self, data):
        await self.stream.send_all(data)
        return await self.line()


@pytest.fixture
async def controlled():
    return FakeControlled()


@pytest.fixture
async def server(controlled, tmp_path, nursery):
    server = ControlServer(controlled, tmp_path / "sockets" / "n1.sock")
    await nursery.start(server.run)
    return server


@pytest.fixture
async def client(server):
    async with await trio.open_unix_socket(str(server.path)) as stream:
        yield RawClient(stream)
