"""`clusternode watch`: events as they happen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from clusternode.cli.output import print_json, printable
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
        "watch",
        run=run,
        summary="print events as they happen",
        text="PATTERN is the name or the alias of an event, with shell wildcards; quote them.\n"
        "`clusternode events list` shows all. Ends with Ctrl-C.",
        examples="clusternode watch\nclusternode watch 'peer:*' node:state\n"
        "clusternode watch request:received --json",
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("patterns", metavar="PATTERN", nargs="*", help="which events; default: all")
    parser.add_argument("--count", metavar="N", type=int, help="end after so many events")
    add_agent_options(parser, cluster=False)
    add_json_option(parser, "print one object a line")


def run(arguments: argparse.Namespace) -> int:
    left = arguments.count
    with connect(arguments) as client:
        for is_result, event in client.stream("agent.watch", {"patterns": arguments.patterns}):
            if is_result:
                break
            if arguments.json:
                print_json(event)
            else:
                print(_line(event), flush=True)
            if left is not None:
                left -= 1
                if left <= 0:
                    break
    return OK


def _line(event: Mapping[str, Any]) -> str:
    time = datetime.now(UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    parameters = " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in event["parameters"].items()
    )
    return printable(f"{time} {event['alias'] or event['event']} {parameters}").rstrip()
