"""The other ends of the back ends, in the test's own process."""

from __future__ import annotations

import json
import logging
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from clusternode.backends.flatstore_format import LineFormat, read_file
from clusternode.backends.options import encode
from clusternode.bus.interface import Delivery
from clusternode.core.types import NodeId, ResultCode
from clusternode.testing.backends import Received, seen


def read_notification(line: bytes | str) -> Received:
    notification = json.loads(line)
    assert notification["jsonrpc"] == "2.0"
    values = notification.get("params", [])
    return seen(
        notification["method"], list(values.values() if isinstance(values, dict) else values)
    )


class StreamPeer:
    """A JSON-RPC server on TCP or a unix socket; answers what has an id."""

    can_fail = True

    def __init__(self, nursery: trio.Nursery, family: str, *, reliable: bool, directory: Path):
        self._nursery = nursery
        self._path = directory / "peer.sock"
        self._family = family
        self._port = free_port() if family == "tcp" else 0
        self._scope: trio.CancelScope | None = None
        self._got: list[Received] = []
        self.answer = True
        """Whether it answers; one that does not hangs."""
        mode = f"reliable_mode={int(reliable)}&timeout=0.5"
        if family == "tcp":
            self.uri = f"tcp:127.0.0.1:{self._port}?{mode}"
        else:
            self.uri = f"unix:{self._path}?type=stream&{mode}"

    async def start(self) -> None:
        if self._family == "tcp":
            listeners: Sequence[trio.SocketListener] = await trio.open_tcp_listeners(
                self._port, host="127.0.0.1"
            )
        else:
            self._path.unlink(missing_ok=True)
            own = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            await own.bind(str(self._path))
            own.listen()
            listeners = [trio.SocketListener(own)]
        self._scope = trio.CancelScope()
        await self._nursery.start(self._serve, listeners, self._scope)

    async def _serve(self, listeners, scope, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await trio.serve_listeners(self._talk, listeners, task_status=task_status)

    async def _talk(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            try:
                async for data in stream:
                    buffer += data
                    *lines, buffer = buffer.split(b"\n")
                    for line in lines:
                        await self._take(stream, line)
            except trio.BrokenResourceError:
                pass

    async def _take(self, stream: trio.SocketStream, line: bytes) -> None:
        self._got.append(read_notification(line))
        request_id = json.loads(line).get("id")
        if request_id is not None and self.answer:
            reply = {"jsonrpc": "2.0", "id": request_id, "result": "ok ✓"}
            await stream.send_all(json.dumps(reply, ensure_ascii=False).encode())

    async def stop(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        self._path.unlink(missing_ok=True)
        await trio.testing.wait_all_tasks_blocked()

    def received(self) -> Sequence[Received]:
        return self._got


class DatagramPeer:
    """A bound socket that is read when somebody asks."""

    can_fail = True

    def __init__(self, family: str, directory: Path):
        self._path = directory / "peer.sock"
        self._port = free_port(socket.SOCK_DGRAM) if family == "udp" else 0
        self._family = family
        self._socket: socket.socket | None = None
        self._got: list[Received] = []
        self.uri = f"udp:127.0.0.1:{self._port}" if family == "udp" else f"unix:{self._path}"

    async def start(self) -> None:
        if self._family == "udp":
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
            self._socket.bind(("127.0.0.1", self._port))
        else:
            self._path.unlink(missing_ok=True)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(str(self._path))
        self._socket.setblocking(False)

    async def stop(self) -> None:
        if self._socket is not None:
            self.received()
            self._socket.close()
            self._socket = None
        self._path.unlink(missing_ok=True)

    def received(self) -> Sequence[Received]:
        while self._socket is not None:
            try:
                self._got.append(read_notification(self._socket.recv(65536)))
            except BlockingIOError:
                break
        return self._got


class HttpPeer:
    """The least of an HTTP/1.1 server: one request after the other on kept connections."""

    can_fail = True

    def __init__(self, nursery: trio.Nursery):
        self._nursery = nursery
        self._port = free_port()
        self._scope: trio.CancelScope | None = None
        self._got: list[Received] = []
        self.status = "204 No Content"
        self.uri = f"http://127.0.0.1:{self._port}/events?of=us#timeout=2.0"

    async def start(self) -> None:
        listeners = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        self._scope = trio.CancelScope()
        await self._nursery.start(self._serve, listeners, self._scope)

    async def _serve(self, listeners, scope, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await trio.serve_listeners(self._talk, listeners, task_status=task_status)

    async def _talk(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            async for data in stream:
                buffer += data
                head, end, rest = buffer.partition(b"\r\n\r\n")
                fields = dict(
                    line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line
                )
                if not end or len(rest) < int(fields[b"content-length"]):
                    continue
                assert head.startswith(b"POST /events?of=us HTTP/1.1")
                assert fields[b"content-type"] == b"application/json"
                size = int(fields[b"content-length"])
                self._got.append(read_notification(rest[:size]))
                buffer = rest[size:]
                await stream.send_all(
                    f"HTTP/1.1 {self.status}\r\ncontent-length: 0\r\n\r\n".encode()
                )

    async def stop(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    def received(self) -> Sequence[Received]:
        return self._got


class FilePeer:
    """A file of flatstore:, read by our reader."""

    can_fail = False

    def __init__(self, directory: Path, form: LineFormat, options: str = ""):
        self._form = form
        self.path = directory / "events with blank"
        self.uri = f"flatstore:{encode(str(self.path))}{options}"

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def received(self) -> Sequence[Received]:
        if not self.path.exists():
            return []
        return [seen(record.name, record.values) for record in read_file(self.path, self._form)]


PROGRAM = """\
#!{python} -IS
import os, sys
line = sys.stdin.buffer.read()
assert os.environ["CLUSTERNODE_EVENT"]
with open({output!r}, "ab") as file:
    file.write(line)
"""


class ProgramPeer:
    """A program that appends its input to a file."""

    can_fail = True

    def __init__(self, directory: Path):
        self._program = directory / "take"
        self._output = directory / "taken"
        self.uri = f"exec:{self._program}"

    async def start(self) -> None:
        python = shlex.quote(sys.executable)
        self._program.write_text(PROGRAM.format(python=python, output=str(self._output)))
        self._program.chmod(0o755)

    async def stop(self) -> None:
        self._program.unlink()

    def received(self) -> Sequence[Received]:
        if not self._output.exists():
            return []
        return [read_notification(line) for line in self._output.read_bytes().splitlines()]


class ChannelPeer:
    """A bus with one other member, that answers or is away."""

    name = "voip"
    node_id = NodeId("n1")
    can_fail = True
    uri = "channel:events@voip"

    def __init__(self) -> None:
        self._got: list[Received] = []
        self.code = ResultCode.UNAVAILABLE

    def broadcast(self, channel: str, body: bytes, *, content_type: str) -> Delivery:
        assert (channel, content_type) == ("events", "application/json")
        delivery = Delivery()
        delivery.fix_destinations(1)
        if self.code is ResultCode.OK:
            self._got.append(read_notification(body))
        delivery.settle(NodeId("n2"), self.code)
        return delivery

    async def start(self) -> None:
        self.code = ResultCode.OK

    async def stop(self) -> None:
        self.code = ResultCode.UNAVAILABLE

    def received(self) -> Sequence[Received]:
        return self._got


class LogPeer(logging.Handler):
    """A handler of the logger of events."""

    can_fail = False
    uri = "log:warning"

    def __init__(self) -> None:
        super().__init__()
        self._got: list[Received] = []

    async def start(self) -> None:
        logging.getLogger("clusternode.events").addHandler(self)

    async def stop(self) -> None:
        logging.getLogger("clusternode.events").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._got.append(read_notification(record.getMessage()))

    def received(self) -> Sequence[Received]:
        return self._got


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])
