"""The other end of the control socket, for the command line: blocking, and quick to import."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clusternode.control.requests import LINE_BYTES_MAX, find_call
from clusternode.errors import AgentNotReachable, ControlError

CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 120.0
"""For a call without a time limit of its own: result_timeout is 30 s by default."""
READ_BYTES = 256 * 1024
NODE_SUFFIX = ".sock"


class ControlClient:
    """A connection to the agent at `path`.

    Raises:
        AgentNotReachable: Nobody answers there; says how to start an agent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._buffer = bytearray()
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_TIMEOUT)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise AgentNotReachable(_advice(path, error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(
        self, name: str, params: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Any:  # noqa: ANN401  # JSON
        """Make a call and return its result; parameters that are None are left out.

        Raises:
            ControlError: The agent says no.
            AgentNotReachable: The agent went away, or does not answer.
        """
        result = None
        for is_result, value in self.stream(name, params, timeout=timeout):
            if is_result:
                result = value
        return result

    def stream(
        self, name: str, params: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Iterator[tuple[bool, Any]]:
        """Make a call and give (False, item) for each item, then (True, result).

        Args:
            name: The call.
            params: Its parameters; those that are None are left out.
            timeout: How long to wait for each line; None: as long as it takes for a stream.

        Raises:
            ControlError, AgentNotReachable: As `call`.
        """
        call = find_call(name)
        if timeout is None and not call.is_stream:
            timeout = ANSWER_TIMEOUT
        self._last_id += 1
        given = {key: value for key, value in (params or {}).items() if value is not None}
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": name, "params": given}
        self._socket.settimeout(ANSWER_TIMEOUT)
        with self._translated():
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        self._socket.settimeout(timeout)
        while True:
            answer = self._read_line()
            if "method" in answer:
                yield False, answer["params"]["item"]
            elif "error" in answer:
                raise ControlError(answer["error"]["code"], answer["error"]["message"])
            else:
                yield True, answer["result"]
                return

    def wait_closed(self, timeout: float) -> bool:
        """Wait until the agent closes the connection; False when it has not in time."""
        self._socket.settimeout(timeout)
        try:
            while self._socket.recv(READ_BYTES):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _read_line(self) -> dict[str, Any]:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            with self._translated():
                data = self._socket.recv(READ_BYTES)
            if not data or searched > LINE_BYTES_MAX * 2:
                raise AgentNotReachable(f"the agent at {self.path} closed the connection")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise AgentNotReachable(f"whatever answers at {self.path} is no agent")
        return answer

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            text = f"the agent at {self.path} does not answer; its log may say why"
            raise AgentNotReachable(text) from None
        except OSError as error:
            text = f"the agent at {self.path} went away ({error.strerror})"
            raise AgentNotReachable(text) from None


def _advice(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path} belongs to another user: run the command as the agent's user"
    return (
        f"no agent answers on {path} ({error.strerror or error}): "
        "start one with `clusternode run`, or name another with -c FILE or --socket PATH"
    )


def find_socket(directory: Path) -> Path:
    """Return the one socket in `directory` on which somebody answers.

    Raises:
        AgentNotReachable: There is none, or more than one; lists them.
    """
    try:
        found = sorted(directory.glob(f"*{NODE_SUFFIX}"))
    except OSError:
        found = []
    alive = [path for path in found if _is_alive(path)] if len(found) > 1 else found
    if len(alive) == 1:
        return alive[0]
    if alive:
        listed = ", ".join(map(str, alive))
        raise AgentNotReachable(f"several agents run here, choose one with --socket: {listed}")
    raise AgentNotReachable(
        f"no agent has its control socket in {directory}: "
        "start one with `clusternode run`, or name another with -c FILE or --socket PATH"
    )


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True
