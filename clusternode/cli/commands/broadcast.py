"""`clusternode broadcast`: a message to every other member, with one result per node."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from clusternode.cli.output import note, print_json, print_table
from clusternode.cli.parsing import (
    CLUSTER_SAID_NO,
    OK,
    Parsers,
    add_agent_options,
    add_body,
    add_command,
    add_json_option,
    body_params,
    connect,
)

HANDLED_CODES = (200, 202)


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "broadcast",
        run=run,
        summary="send a message to every other member",
        text="Waits for one final result per node. Status 1: not every node has handled it.",
        examples="clusternode broadcast fraud 203.0.113.7\n"
        "clusternode broadcast config @dialplan.json --json\n"
        "echo 203.0.113.7 | clusternode broadcast fraud -",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel")
    add_body(parser)
    parser.add_argument(
        "--except",
        metavar="NODE",
        action="append",
        dest="excluded",
        help="leave a node out; may be given again",
    )
    add_agent_options(parser)
    add_json_option(parser, "print an object: node id → {code, definite, text}")


def run(arguments: argparse.Namespace) -> int:
    params = {
        "channel": arguments.channel,
        "except": arguments.excluded,
        "cluster": arguments.cluster,
        **body_params(arguments),
    }
    with connect(arguments) as client:
        results = client.call("cluster.broadcast", params)
    if not results and not arguments.json:
        note("there are no other members")
        return OK
    return print_results(results, as_json=arguments.json)


def print_results(results: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> int:
    """Print the result of each node and return the exit status."""
    if as_json:
        print_json(results)
    else:
        rows = [
            (node, result["code"], result["text"], _certainty(result))
            for node, result in results.items()
        ]
        print_table(("NODE", "CODE", "RESULT", ""), rows)
    failed = any(result["code"] not in HANDLED_CODES for result in results.values())
    return CLUSTER_SAID_NO if failed else OK


def _certainty(result: Mapping[str, Any]) -> str:
    if result["code"] in HANDLED_CODES:
        return ""
    return "certainly not handled" if result["definite"] else "may have been handled"
