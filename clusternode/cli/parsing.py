"""What the parsers of all commands share. Nothing here is slow to import."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clusternode.errors import ConfigError

if TYPE_CHECKING:
    from clusternode.control.client import ControlClient

OK = 0
CLUSTER_SAID_NO = 1
USAGE = 2
NO_AGENT = 3
INTERRUPTED = 130
"""128 and SIGINT, as shells have it."""
BODY_BYTES_MAX = 16 * 1024 * 1024
"""The protocol limit; nothing larger is read."""
SOCKET_VARIABLES = ("CLUSTERNODE__NODE__CONTROL_SOCKET", "CLUSTERNODE__NODE__ID")

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run = Callable[[argparse.Namespace], int]


def add_command(
    parsers: Parsers, name: str, *, run: Run | None, summary: str, text: str = "", examples: str
) -> argparse.ArgumentParser:
    """Add a command; `examples` are lines of a shell."""
    shown = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser = parsers.add_parser(
        name,
        help=summary,
        description=summary + ("\n\n" + text.strip() if text else ""),
        epilog=f"examples:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="FILE", type=Path, help="configuration file")


def add_agent_options(parser: argparse.ArgumentParser, *, cluster: bool = True) -> None:
    """Add the options that say which agent a command talks to."""
    add_config_option(parser)
    parser.add_argument("--socket", metavar="PATH", type=Path, help="control socket of the agent")
    if cluster:
        parser.add_argument("--cluster", metavar="NAME", help="cluster; default: the first")


def add_json_option(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def add_body(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("body", metavar="BODY", help="text, `-` for standard input, or @FILE")
    parser.add_argument("--content-type", metavar="TYPE", help="content type of the body")


def connect(arguments: argparse.Namespace) -> ControlClient:
    """Connect to the agent that the options name, else to the only one of this user.

    Raises:
        AgentNotReachable: There is none.
        ConfigError: The configuration file is wrong.
    """
    from clusternode.control.client import ControlClient, find_socket

    if arguments.socket is not None:
        return ControlClient(arguments.socket)
    if arguments.config is not None or any(name in os.environ for name in SOCKET_VARIABLES):
        from clusternode.config import load_settings

        settings = load_settings(arguments.config, environ=os.environ, overrides={})
        return ControlClient(settings.control_socket)
    from clusternode.config.places import socket_directory

    return ControlClient(find_socket(socket_directory(os.environ, os.getuid())))


def body_params(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return the parameters for BODY and --content-type.

    Raises:
        ConfigError: A file cannot be read, or is too large.
    """
    body = _read_body(arguments.body)
    params: dict[str, Any] = {"content_type": arguments.content_type}
    try:
        params["body"] = body.decode()
    except UnicodeDecodeError:
        params["body_base64"] = base64.b64encode(body).decode()
    return params


def _read_body(text: str) -> bytes:
    if text == "-":
        body = sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
    elif text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                body = file.read(BODY_BYTES_MAX + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError("BODY", text, f"a file that can be read ({reason})") from None
    else:
        body = os.fsencode(text)
    if len(body) > BODY_BYTES_MAX:
        raise ConfigError("BODY", text, f"at most {BODY_BYTES_MAX} bytes")
    return body


def positive_seconds(text: str) -> float:
    """Read a number of seconds above 0 (for argparse)."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


positive_seconds.__name__ = "seconds"  # argparse: "invalid seconds value"
