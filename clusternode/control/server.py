"""The control socket: JSON-RPC 2.0, one object a line, over a unix socket.

Whoever may open it may do everything, so it has mode 0600, and the other end's user is checked.
Described in docs/reference/control.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import attrs
import trio

from clusternode.control.calls import Calls, ControlCounters, as_control_error
from clusternode.control.interface import Controlled
from clusternode.control.requests import (
    INVALID_REQUEST,
    LINE_BYTES_MAX,
    OVERLOADED,
    PARSE_ERROR,
    REFUSED,
    check_parameters_untrusted,
    find_call,
)
from clusternode.errors import AddressInUse, ClusternodeError, ControlError, StateError

logger = logging.getLogger(__name__)

CLIENTS_MAX = 64
CALLS_MAX = 64
"""How many calls of one client may be open at a time."""
OUTBOX_LINES = 64
"""How many answers may wait for a client; whoever makes more waits, and watchers are ended."""
READ_BYTES = 64 * 1024
WRITE_TIMEOUT = 30.0
"""A client that takes nothing for so long is dropped."""
FLUSH_TIMEOUT = 1.0
"""How long an agent that stops waits for its answers to be taken."""
WHO_TIMEOUT = 1.0
"""How long the agent that holds a socket is waited for to say its name."""
BACKLOG = 16
ID_LENGTH_MAX = 128
ID_NUMBER_MAX = 2**63
CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class ControlServer:
    """Serves the control socket of one agent at `path`."""

    def __init__(self, controlled: Controlled, path: Path) -> None:
        self.controlled = controlled
        self.path = path
        self.counters = ControlCounters()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when the socket takes connections.

        Raises:
            AddressInUse: A live agent has the socket; says which.
            StateError: The socket cannot be made there.
        """
        claim = SocketClaim(self.path)
        # In a thread: the agent that is asked who it is may run in this one (tests).
        await trio.to_thread.run_sync(claim.acquire)
        with contextlib.closing(claim):
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(claim.listening))
            async with listener, trio.open_nursery() as nursery:
                task_status.started()
                await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            refusal = self._refusal(stream)
            if refusal is not None:
                self.counters.refused_clients += 1
                logger.warning("control socket: client refused: %s", refusal)
                with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(WHO_TIMEOUT):
                    await stream.send_all(error_line(None, refusal))
                return
            self.counters.clients += 1
            try:
                client = Client(stream, Calls(self.controlled, self.counters))
                await client.run()
            finally:
                self.counters.clients -= 1

    def _refusal(self, stream: trio.SocketStream) -> ControlError | None:
        uid = peer_credentials(stream.socket)[1]
        if uid not in (os.geteuid(), 0):
            return ControlError(
                REFUSED, f"user {uid} may not control this agent: run the command as its user"
            )
        if self.counters.clients >= CLIENTS_MAX:
            return ControlError(OVERLOADED, f"{CLIENTS_MAX} clients are connected: close some")
        return None


def peer_credentials(
    connected: trio.socket.SocketType | socket.socket,
) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the process at the other end."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, gid = CREDENTIALS.unpack(raw)
    return pid, uid, gid


@attrs.define(eq=False)
class Client:
    """One connection: a reader, a writer, and a task for each open call."""

    stream: trio.SocketStream
    calls: Calls
    open_calls: int = 0
    _outbox: trio.MemorySendChannel[tuple[bytes, trio.Event | None]] = attrs.field(init=False)
    _waiting: trio.MemoryReceiveChannel[tuple[bytes, trio.Event | None]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._outbox, self._waiting = trio.open_memory_channel(OUTBOX_LINES)

    async def run(self) -> None:
        """Serve until the client has gone, or takes nothing any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, nursery.cancel_scope)
            async with self._outbox, trio.open_nursery() as calls:
                await self._read(calls)
                if self._is_hung_up():
                    nursery.cancel_scope.cancel()

    def _is_hung_up(self) -> bool:
        """Tell whether the other end is closed, and not only its writing side (`nc -N`)."""
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), select.POLLHUP)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    async def _read(self, nursery: trio.Nursery) -> None:
        buffer = bytearray()
        searched = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some(READ_BYTES):
                buffer += data
                while (end := buffer.find(b"\n", searched)) >= 0:
                    line = bytes(buffer[:end])
                    del buffer[: end + 1]
                    searched = 0
                    if line.strip():
                        await self._take_untrusted(line, nursery)
                searched = len(buffer)
                if searched > LINE_BYTES_MAX:
                    text = f"a line of at most {LINE_BYTES_MAX} bytes; the connection is closed"
                    await self.answer(error_line(None, ControlError(INVALID_REQUEST, text)))
                    nursery.cancel_scope.cancel()
                    return
            if buffer.strip():
                await self._take_untrusted(bytes(buffer), nursery)

    async def _take_untrusted(self, line: bytes, nursery: trio.Nursery) -> None:
        """Begin the call that a line asks for, or answer what is wrong with the line."""
        call_id: object = None
        try:
            request = parse_line_untrusted(line)
            call_id = request["id"]
            call = find_call(request["method"])
            values = check_parameters_untrusted(call, request["params"])
            if call.is_stream and call_id is None:
                raise ControlError(INVALID_REQUEST, f"{call.name} streams, so it needs an `id`")
            if self.open_calls >= CALLS_MAX:
                text = f"{CALLS_MAX} calls are open on this connection: wait for an answer"
                raise ControlError(OVERLOADED, text)
        except ControlError as error:
            self.calls.counters.broken_lines += 1
            await self.answer(error_line(call_id, error))
            return
        self.open_calls += 1
        nursery.start_soon(self._perform, call.name, call_id, values)

    async def _perform(self, name: str, call_id: object, values: dict[str, object]) -> None:
        try:
            result = await self.calls.perform(name, values, ItemStream(self, name, call_id))
            line = json_line({"jsonrpc": "2.0", "id": call_id, "result": result})
        except ClusternodeError as error:
            line = error_line(call_id, as_control_error(error))
        finally:
            self.open_calls -= 1
        try:
            if call_id is not None:
                await self.answer(line, wait=name == "agent.stop")
        finally:
            if name == "agent.stop":
                self.calls.controlled.stop()

    async def answer(self, line: bytes, *, wait: bool = False) -> None:
        """Hand a line to the writer; with `wait`, until it went to the kernel or for a second."""
        written = trio.Event() if wait else None
        with contextlib.suppress(trio.BrokenResourceError):
            if written is None:
                await self._outbox.send((line, None))
                return
            with trio.move_on_after(FLUSH_TIMEOUT):
                await self._outbox.send((line, written))
                await written.wait()

    async def _write(self, scope: trio.CancelScope) -> None:
        """Write what the outbox holds, in one go; the end of it is the end of the client."""
        async with self._waiting:
            async for line, written in self._waiting:
                lines, events = [line], [written]
                with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                    while True:
                        more, event = self._waiting.receive_nowait()
                        lines.append(more)
                        events.append(event)
                if not await self._send(b"".join(lines)):
                    break
                for done in events:
                    if done is not None:
                        done.set()
        scope.cancel()

    async def _send(self, data: bytes) -> bool:
        with trio.move_on_after(WRITE_TIMEOUT) as scope:
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                return False
        if scope.cancelled_caught:
            logger.warning("control socket: a client took nothing for %g s", WRITE_TIMEOUT)
        return not scope.cancelled_caught


@attrs.frozen
class ItemStream:
    """Sends the items of one streaming call as notifications."""

    client: Client
    name: str
    call_id: object

    async def send(self, item: object) -> None:
        params = {"call": self.call_id, "item": item}
        await self.client.answer(
            json_line({"jsonrpc": "2.0", "method": self.name, "params": params})
        )


def parse_line_untrusted(line: bytes) -> dict[str, Any]:
    """Return `id`, `method` and `params` of a request.

    Raises:
        ControlError: It is none.
    """
    try:
        text = line.decode()
        request = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # an escape may be a lone surrogate, which is no character
            json.dumps(request, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error)[:ID_LENGTH_MAX] or type(error).__name__
        raise ControlError(PARSE_ERROR, f"the line is not JSON in UTF-8: {reason}") from None
    if isinstance(request, list):
        raise ControlError(INVALID_REQUEST, "batches are not taken: send one object a line")
    if not isinstance(request, dict):
        raise ControlError(INVALID_REQUEST, "a request is a JSON object")
    call_id = request.get("id")
    if not _is_id(call_id):
        text = f"`id` must be a string of at most {ID_LENGTH_MAX} characters or a whole number"
        raise ControlError(INVALID_REQUEST, text)
    if request.get("jsonrpc", "2.0") != "2.0":
        raise ControlError(INVALID_REQUEST, '`jsonrpc` must be "2.0"')
    return {"id": call_id, "method": request.get("method"), "params": request.get("params")}


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= ID_LENGTH_MAX
    if isinstance(value, int) and not isinstance(value, bool):
        return -ID_NUMBER_MAX <= value < ID_NUMBER_MAX
    return value is None


def json_line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def error_line(call_id: object, error: ControlError) -> bytes:
    told = {"code": error.code, "message": str(error)}
    return json_line({"jsonrpc": "2.0", "id": call_id, "error": told})


class SocketClaim:
    """The right to listen at a path: a dead agent's socket is taken over, a live one's is not.

    A lock on `PATH.lock` lives as long as the claim and decides between two that start at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        self._socket: socket.socket | None = None
        self._inode = 0

    @property
    def listening(self) -> socket.socket:
        assert self._socket is not None, "acquire first"
        return self._socket

    def acquire(self) -> None:
        """Lock, look who is there, and listen. Blocks for about `WHO_TIMEOUT` at most.

        Raises:
            AddressInUse: A live agent has it.
            StateError: It cannot be made there.
        """
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(f"{self.path}.lock", flags, 0o600)
        except OSError as error:
            text = f"control socket {self.path}: {error.strerror}; choose another with --socket"
            raise StateError(text) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _who_has(self.path) or "an agent that is starting or ending has it"
            raise AddressInUse(f"control socket {self.path}: {holder}") from None
        holder = _who_has(self.path)
        if holder:
            raise AddressInUse(f"control socket {self.path}: {holder}")
        self._socket = _listen(self.path)
        self._inode = self.path.stat().st_ino

    def close(self) -> None:
        """Take the socket away, if it is still ours, and let go of the lock."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self._inode:
                    self.path.unlink()
            self._socket.close()
            self._socket = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _listen(path: Path) -> socket.socket:
    """Bind and listen at `path`, in place of a socket that nobody listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise StateError(f"control socket {path}: something that is no socket is there")
            path.unlink()
        # Whoever connects before chmod is still checked by their credentials.
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StateError(f"control socket {path}: {error.strerror or error}") from None
    except StateError:
        listener.close()
        raise
    return listener


def _who_has(path: Path) -> str:
    """Say which agent answers at `path`; empty when nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(WHO_TIMEOUT)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return "another agent has it and does not answer"
        except OSError:
            return ""
        pid = peer_credentials(probe)[0]
        node_id = _ask_who(probe)
    name = f"agent {node_id}" if node_id else "a process"
    return f"{name} (pid {pid}) has it: stop that first, or choose another with --socket"


def _ask_who(probe: socket.socket) -> str:
    try:
        probe.sendall(json_line({"jsonrpc": "2.0", "id": 1, "method": "agent.info"}))
        answer = json.loads(probe.recv(READ_BYTES))
    except (OSError, ValueError):
        return ""
    result = answer.get("result") if isinstance(answer, dict) else None
    node_id = result.get("node_id") if isinstance(result, dict) else None
    return node_id if isinstance(node_id, str) else ""
