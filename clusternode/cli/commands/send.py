"""`clusternode send`: a message to one node."""

from __future__ import annotations

import argparse

from clusternode.cli.commands.broadcast import print_results
from clusternode.cli.parsing import (
    Parsers,
    add_agent_options,
    add_body,
    add_command,
    add_json_option,
    body_params,
    connect,
)


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "send",
        run=run,
        summary="send a message to one node",
        text="Waits for its final result. Status 1: the node has not handled it.",
        examples="clusternode send config edge-2 @dialplan.json",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel")
    parser.add_argument("node", metavar="NODE", help="node id or address")
    add_body(parser)
    add_agent_options(parser)
    add_json_option(parser, "print an object: node id → {code, definite, text}")


def run(arguments: argparse.Namespace) -> int:
    params = {
        "channel": arguments.channel,
        "node": arguments.node,
        "cluster": arguments.cluster,
        **body_params(arguments),
    }
    with connect(arguments) as client:
        results = client.call("cluster.send", params)
    return print_results(results, as_json=arguments.json)
