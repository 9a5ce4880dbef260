"""`exec:PATH`: a program per event. Specified in docs/events.md, "exec:"."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import ClassVar

import trio

from clusternode.backends.base import BackendServices, Publication, wrong_uri
from clusternode.backends.options import Option, encode, query_of, read_options, read_path
from clusternode.config.kinds import STRING, number
from clusternode.routes.execute import (
    DEFAULT_PATH,
    EXIT_BUSY,
    ExecutableFailed,
    ProcessRun,
    is_passable,
)
from clusternode.routes.views import as_text

OPTIONS = (
    Option(
        name="args",
        kind=STRING,
        default="",
        help="Its arguments, split as a shell does; no shell is run. A blank is %20.",
    ),
    Option(
        name="timeout",
        kind=number(0.01, 600.0),
        default=10.0,
        help="Seconds after which its whole process group is killed.",
    ),
)
OUTPUT_SIZE_MAX = 64 * 1024
"""Nobody reads what it writes; more than that is a program gone mad."""
REAP_MARGIN = 6.0
"""How long the clean-up of a killed process may take (routes/execute.py)."""


class ProgramBackend:
    """Runs a program with the notification on its standard input; delivered when it ends with 0."""

    scheme: ClassVar[str] = "exec"
    batch_max = 1

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        body, values = read_options("exec", rest, OPTIONS)
        path, timeout = read_path("exec", body), values["timeout"]
        assert isinstance(timeout, float)
        try:
            arguments = shlex.split(str(values["args"]))
        except ValueError as error:
            raise wrong_uri(
                f"exec:{body}?args=…", f"args= as a shell splits it ({error})"
            ) from None
        self.identity = self.shown = f"exec:{encode(path)}{query_of(OPTIONS, values, None)}"
        self.publish_timeout = timeout + REAP_MARGIN
        self._timeout = timeout
        self._command = [path, *arguments]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def publish(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            await self._run_program(publication)

    async def _run_program(self, publication: Publication) -> None:
        try:
            process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_environment(publication),
                start_new_session=True,
            )
        except OSError as error:
            publication.fail(f"it cannot be run: {error.strerror}")
            return
        run = ProcessRun(process, OUTPUT_SIZE_MAX)
        try:
            with trio.move_on_after(self._timeout) as scope:
                await run.communicate(publication.notification + b"\n")
        except ExecutableFailed as error:
            publication.fail(str(error), definite=False)
            return
        if scope.cancelled_caught:
            publication.fail(f"killed after {self._timeout:g} s", definite=False)
        elif process.returncode == 0:
            publication.settle()
        elif process.returncode == EXIT_BUSY:
            publication.fail("it is busy (exit status 75)")
        else:
            lines = bytes(run.errors).decode("utf-8", "replace").splitlines()
            detail = f": {lines[0][:200]}" if lines else ""
            publication.fail(f"exit status {process.returncode}{detail}", definite=False)


def _environment(publication: Publication) -> dict[str, str]:
    event = publication.event
    variables = {
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
        "CLUSTERNODE_EVENT": event.name,
        "CLUSTERNODE_ALIAS": event.alias,
    }
    for key, value in event.parameters.items():
        variables[f"CLUSTERNODE_PARAM_{key.upper()}"] = as_text(value)
    return {key: value for key, value in variables.items() if is_passable(key, value)}
