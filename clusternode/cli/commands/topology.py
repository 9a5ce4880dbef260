"""`clusternode topology`: what every node sees of every other."""

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
    add_command,
    add_json_option,
    connect,
    positive_seconds,
)


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "topology",
        run=run,
        summary="show how every node sees every other",
        text="Asks all members for their own view. A row is who looks, a column who is seen: the\n"
        "round trip of the last ping, or the status where that is not active.\n"
        "Status 1: a node did not answer.",
        examples="clusternode topology\nclusternode topology --json --timeout 5",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=positive_seconds, help="how long to wait; default 2"
    )
    add_agent_options(parser)
    add_json_option(parser, "print an object")


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        result = client.call(
            "cluster.topology", {"cluster": arguments.cluster, "timeout": arguments.timeout}
        )
    if arguments.json:
        print_json(result)
    else:
        nodes, views = result["nodes"], result["views"]
        rows = [
            [node, *(_cell(node, other, views[node]) for other in nodes)]
            for node in nodes
            if node in views
        ]
        print_table(["", *nodes], rows)
        if len(set(result["digests"].values())) > 1:
            note("the member lists of these nodes differ just now")
        for node, why in result["unanswered"].items():
            note(f"{node}: {why}")
    return CLUSTER_SAID_NO if result["unanswered"] else OK


def _cell(node: str, other: str, view: Mapping[str, Mapping[str, Any]]) -> str:
    if node == other:
        return "·"
    seen = view.get(other)
    if seen is None:
        return "unknown"
    if seen["status"] != "active":
        return str(seen["status"])
    if seen["round_trip_ms"] is None:
        return "active"
    via = "" if seen["link"] == "direct" else f" {seen['link']}"
    return f"{seen['round_trip_ms']:.1f} ms{via}"
