"""The command `clusternode`: finds the command's module, runs it, turns errors into statuses.

Exit statuses: 0 all well, 1 the cluster said no, 2 usage, 3 no agent reachable.
Described in docs/reference/cli.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from clusternode.cli.output import complain
from clusternode.cli.parsing import CLUSTER_SAID_NO, INTERRUPTED, NO_AGENT, OK, USAGE
from clusternode.errors import AgentNotReachable, ClusternodeError, ConfigError, ControlError

COMMANDS = (
    "run",
    "demo",
    "nodes",
    "topology",
    "broadcast",
    "send",
    "request",
    "watch",
    "events",
    "kafka",
    "bridge",
    "gateway",
    "reload",
    "stop",
    "config",
    "tls",
    "simulate",
    "replay",
    "bench",
    "completion",
)
"""Each is a module of `clusternode.cli.commands` with `add_parser(parsers)` and `run(arguments)`;
those that exist are imported when they are called, or when all are listed."""
DESCRIPTION = """\
A peer-to-peer cluster agent: agents find each other, know who is alive, and carry messages,
requests and events between the services of a fleet.
"""
EPILOG = """\
exit statuses:
  0  all well
  1  the cluster said no: some node failed or did not answer
  2  the command line or the configuration is wrong
  3  no agent can be reached

examples:
  clusternode config init > node.toml
  clusternode run -c node.toml
  clusternode nodes list
  clusternode request locate alice --json
"""
USAGE_CODES = (-32601, -32602, -32001)
"""Of control/requests.py: no such call, wrong parameters, no such cluster."""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status."""
    words = sys.argv[1:] if words is None else words
    try:
        return _run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except AgentNotReachable as error:
        complain(str(error))
        return NO_AGENT
    except ConfigError as error:
        complain(str(error))
        return USAGE
    except ControlError as error:
        complain(str(error))
        return USAGE if error.code in USAGE_CODES else CLUSTER_SAID_NO
    except ClusternodeError as error:
        complain(str(error))
        return CLUSTER_SAID_NO


def _run(words: Sequence[str]) -> int:
    named = words[0] if words else ""
    parser = build_parser(named if named in COMMANDS and _exists(named) else None)
    arguments = parser.parse_args(words)
    status: int = arguments.run(arguments)
    sys.stdout.flush()
    return status


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of every command that exists, or of `only` one."""
    parser = argparse.ArgumentParser(
        prog="clusternode",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    parsers = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for name in COMMANDS if only is None else (only,):
        if _exists(name):
            module = load_command(name)
            module.add_parser(parsers)
            command = parsers.choices[name]
            if command.get_default("run") is None and hasattr(module, "run"):
                command.set_defaults(run=module.run)
    return parser


def load_command(name: str) -> ModuleType:
    return importlib.import_module(f"clusternode.cli.commands.{name}")


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"clusternode.cli.commands.{name}") is not None


class _Version(argparse.Action):
    """Prints the version; looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002  # argparse's name
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        import importlib.metadata  # slow

        try:
            version = importlib.metadata.version("clusternode")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"clusternode {version}")
        parser.exit(OK)
