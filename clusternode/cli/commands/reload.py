"""`clusternode reload`: load the routes again."""

from __future__ import annotations

import argparse

from clusternode.cli.output import body_text, print_json
from clusternode.cli.parsing import (
    OK,
    Parsers,
    add_agent_options,
    add_command,
    add_json_option,
    connect,
)
from clusternode.errors import ControlError


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "reload",
        run=run,
        summary="load the routes of the running agent again",
        text="With an error in them the old ones go on. Status 1: that was so.",
        examples="clusternode reload -c node.toml",
    )
    add_agent_options(parser, cluster=False)
    add_json_option(parser, "print an object: ok, detail")


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        try:
            result = client.call("agent.reload")
        except ControlError as error:
            if arguments.json:
                print_json({"ok": False, "detail": str(error)})
            raise
    if arguments.json:
        print_json({"ok": True, **result})
    else:
        print(body_text(result["detail"]))
    return OK
