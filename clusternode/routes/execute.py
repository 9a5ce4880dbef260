"""`[[route]]`: an executable as a handler. Specified in docs/scripting.md, "Executables"."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

from clusternode.config import AgentSettings, ExecRoute
from clusternode.core.types import ResultCode
from clusternode.errors import ConfigError, RouteError
from clusternode.routes.contexts import (
    AgentContext,
    IncomingEvent,
    IncomingMessage,
    IncomingRequest,
)
from clusternode.routes.table import Handler, Kind, Refuse, make_handler

EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""
STDERR_KEPT_BYTES = 4096
"""Enough for the first line, which is all that is shown."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READ_BYTES = 65536
REAP_TIMEOUT = 5.0
"""A killed process ends at once, unless the kernel itself is stuck with it."""

SERF_EVENTS: Mapping[str, str] = {
    "E_CLUSTERNODE_PEER_UP": "member-join",
    "E_CLUSTERNODE_PEER_DOWN": "member-failed",
    "E_CLUSTERNODE_PEER_DISABLED": "member-failed",
    "E_CLUSTERNODE_PEER_LEFT": "member-leave",
    "E_CLUSTERNODE_PEER_REMOVED": "member-reap",
    "E_CLUSTERNODE_RECORD_CHANGED": "member-update",
}


class ExecutableFailed(RouteError):
    """An executable ended with a status other than 0 and 75, or wrote too much."""


def exec_handler(route: ExecRoute, directory: Path) -> Handler:
    """Return the handler that runs a route's executable, in `directory`.

    Raises:
        RouteError: `on` or `exec` is wrong.
    """
    word, separator, rest = route.on.partition(":")
    kinds = {kind.value: kind for kind in (Kind.MESSAGE, Kind.REQUEST, Kind.EVENT)}
    if not separator or word not in kinds or not rest:
        expected = "request:CHANNEL, message:CHANNEL or event:NAME"
        raise RouteError(f"route on = {route.on!r}: expected {expected}")
    if not route.exec or not route.exec[0]:
        raise RouteError(f"route on = {route.on!r}: exec: expected a program and its arguments")
    executable = Executable(route, directory)
    handler = make_handler(kinds[word], rest, executable, time_limit=route.timeout)
    handler.name = f"{route.on} {Path(route.exec[0]).name}"
    return handler


def check_executables(settings: AgentSettings) -> None:
    """See whether each `[[route]]` could start its program now.

    Raises:
        ConfigError: A program does not exist, or may not be executed.
    """
    directory = settings.file.parent if settings.file is not None else Path.cwd()
    for number, route in enumerate(settings.exec_routes, 1):
        handler = exec_handler(route, directory)
        path = route.environment.get("PATH", os.environ.get("PATH", DEFAULT_PATH))
        program = program_of(route, directory)
        if shutil.which(program, path=path) is not None:
            continue
        expected = "a program on the PATH" if "/" not in program else "a file that exists"
        if Path(program).is_file():
            expected = "a file that may be executed (chmod +x)"
        raise ConfigError(f"route {number} ({handler.name}): exec", program, expected)


def program_of(route: ExecRoute, directory: Path) -> str:
    """Return what is started: with a slash a file, from `directory` on; else a name on the PATH."""
    program = route.exec[0]
    return str((directory / program).absolute()) if "/" in program else program


class Executable:
    """One `[[route]]`. Calling it with a context runs the program once."""

    def __init__(self, route: ExecRoute, directory: Path) -> None:
        self._route = route
        self._directory = directory
        self._running = 0

    async def __call__(self, context: AgentContext) -> bytes | None:
        """Return what the program wrote, None when it wrote nothing.

        Raises:
            Refuse: Too many of them run, or the program said so.
            ExecutableFailed: The program failed.
        """
        if self._running >= self._route.concurrency:
            raise Refuse(ResultCode.BUSY, f"{self._running} of {self._route.exec[0]} run")
        self._running += 1
        try:
            output = await self._run(context)
        finally:
            self._running -= 1
        return output or None

    async def _run(self, context: AgentContext) -> bytes:
        program = program_of(self._route, self._directory)
        try:
            process = await trio.lowlevel.open_process(
                [program, *self._route.exec[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._directory,
                env={**environment_of(context), **self._route.environment},
                start_new_session=True,
            )
        except OSError as error:
            raise ExecutableFailed(f"{program}: {error.strerror}") from error
        run = ProcessRun(process, self._route.output_size_max)
        await run.communicate(_input_of(context))
        if process.returncode == 0:
            return bytes(run.output)
        if process.returncode == EXIT_BUSY:
            raise Refuse(ResultCode.BUSY, f"{program}: busy")
        lines = bytes(run.errors).decode("utf-8", "replace").splitlines()
        reason = lines[0] if lines else "it said nothing on stderr"
        raise ExecutableFailed(f"{program}: exit status {process.returncode}: {reason}")


@attrs.define(eq=False)
class ProcessRun:
    """One process: its pipes and what it wrote."""

    process: trio.Process
    output_size_max: int
    output: bytearray = attrs.Factory(bytearray)
    errors: bytearray = attrs.Factory(bytearray)
    is_too_large: bool = False

    async def communicate(self, body: bytes) -> None:
        """Feed the process and wait for its end. Its whole group ends with it, or with us."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, body)
                nursery.start_soon(self._read_output)
                nursery.start_soon(self._read_errors)
                await self.process.wait()
                self._kill()  # children that it left behind hold the pipes open
        finally:
            self._kill()
            with trio.CancelScope(deadline=trio.current_time() + REAP_TIMEOUT, shield=True):
                await self.process.wait()
                await self._close()
        if self.is_too_large:
            raise ExecutableFailed(f"more than {self.output_size_max} bytes of output")

    async def _feed(self, body: bytes) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        with contextlib.suppress(trio.BrokenResourceError):  # it need not read its input
            await stdin.send_all(body)
        await stdin.aclose()

    async def _read_output(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        while chunk := await stdout.receive_some(READ_BYTES):
            if len(self.output) + len(chunk) > self.output_size_max:
                self.is_too_large = True
                self._kill()
                return
            self.output += chunk

    async def _read_errors(self) -> None:
        stderr = self.process.stderr
        assert stderr is not None
        while chunk := await stderr.receive_some(READ_BYTES):
            self.errors += chunk[: STDERR_KEPT_BYTES - len(self.errors)]

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def _close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)


def environment_of(context: AgentContext) -> dict[str, str]:
    """Return what an executable is told: nothing of our own environment but PATH."""
    bus = context.bus
    variables = {
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
        "CLUSTERNODE_CLUSTER": bus.name,
        "CLUSTERNODE_NODE_ID": bus.node_id,
        "SERF_SELF_NAME": bus.node_id,
    }
    for key, value in bus.snapshot().members[0].tags.items():
        name = "".join(letter if letter.isalnum() else "_" for letter in key.upper())
        variables[f"SERF_TAG_{name}"] = value
        if key == "role":
            variables["SERF_SELF_ROLE"] = value
    if isinstance(context, IncomingMessage | IncomingRequest):
        variables |= _of_arrival(context)
    elif isinstance(context, IncomingEvent):
        variables["CLUSTERNODE_EVENT"] = context.name
        variables["SERF_EVENT"] = SERF_EVENTS.get(context.name, context.alias or context.name)
        for key, value in context.parameters.items():
            variables[f"CLUSTERNODE_PARAM_{key.upper()}"] = (
                value if isinstance(value, str) else json.dumps(value)
            )
    return {key: value for key, value in variables.items() if is_passable(key, value)}


def _of_arrival(context: IncomingMessage | IncomingRequest) -> dict[str, str]:
    variables = {
        "CLUSTERNODE_CHANNEL": context.channel,
        "CLUSTERNODE_ORIGIN": context.origin,
        "CLUSTERNODE_CONTENT_TYPE": context.content_type,
    }
    if isinstance(context, IncomingRequest):
        variables |= {
            "CLUSTERNODE_EVENT": "request",
            "CLUSTERNODE_TAG": context.tag,
            "CLUSTERNODE_TIMEOUT": f"{context.timeout:g}",
            "SERF_EVENT": "query",
            "SERF_QUERY_NAME": context.channel,
        }
    else:
        variables |= {
            "CLUSTERNODE_EVENT": "message",
            "CLUSTERNODE_MESSAGE_ID": str(context.message_id),
            "SERF_EVENT": "user",
            "SERF_USER_EVENT": context.channel,
            "SERF_USER_LTIME": str(context.message_id),
        }
    return variables


def is_passable(key: str, value: str) -> bool:
    """Tell whether it can be an environment variable: UTF-8 without NUL."""
    try:
        return "=" not in key and b"\0" not in f"{key}{value}".encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _input_of(context: AgentContext) -> bytes:
    if isinstance(context, IncomingMessage | IncomingRequest):
        return context.body
    if isinstance(context, IncomingEvent):
        event = {"jsonrpc": "2.0", "method": context.name, "params": dict(context.parameters)}
        return json.dumps(event).encode() + b"\n"
    return b""
