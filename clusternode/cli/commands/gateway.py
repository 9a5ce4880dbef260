"""`clusternode gateway`: what the tools of a foreign cluster can ask of this node."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from clusternode.cli.output import print_json, print_table
from clusternode.cli.parsing import (
    OK,
    Parsers,
    add_agent_options,
    add_command,
    add_json_option,
    connect,
)


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "gateway",
        run=run,
        summary="run a command that a foreign cluster's own tools have",
        text="Without COMMAND, list the commands of the gateway.",
        examples="clusternode gateway opensips\n"
        "clusternode gateway opensips list_cap\n"
        "clusternode gateway opensips shtag_set_active vip\n"
        "clusternode gateway opensips send_mi 2 core:uptime",
    )
    parser.add_argument("name", metavar="NAME", help="the gateway: opensips")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="what to do")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="its arguments")
    add_agent_options(parser, cluster=False)
    add_json_option(parser, "print the JSON value of the answer")


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        if arguments.command is None:
            result = client.call("gateway.operations", {"cluster": arguments.name})
        else:
            values = {
                "cluster": arguments.name,
                "command": arguments.command,
                "arguments": arguments.arguments,
            }
            result = client.call("gateway.call", values)
    if arguments.json:
        print_json(result)
    else:
        _print(result if isinstance(result, list) else [result])
    return OK


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        headings = list(rows[0])
        table = [[_cell(row[name]) for name in headings] for row in rows]
        print_table([name.upper() for name in headings], table)


def _cell(value: object) -> str:
    """Return a value for people: lists with blanks between, objects as their values."""
    if isinstance(value, Mapping):
        return ":".join(map(str, value.values()))
    if isinstance(value, list):
        return " ".join(map(_cell, value)) or "-"
    return str(value)
