"""`clusternode stop`: leave the cluster and end the agent."""

from __future__ import annotations

import argparse

from clusternode.cli.output import complain, print_json
from clusternode.cli.parsing import (
    CLUSTER_SAID_NO,
    OK,
    Parsers,
    add_agent_options,
    add_command,
    add_json_option,
    connect,
)

STOP_TIMEOUT = 10.0
"""An agent leaves within a second; a route that does not end may hold it longer."""


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "stop",
        run=run,
        summary="leave the clusters and end the running agent",
        text=f"Waits until it has ended, for at most {STOP_TIMEOUT:g} s (then status 1).",
        examples="clusternode stop -c node.toml",
    )
    add_agent_options(parser, cluster=False)
    add_json_option(parser, "print an object")


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        info = client.call("agent.info")
        client.call("agent.stop")
        stopped = client.wait_closed(STOP_TIMEOUT)
    if arguments.json:
        print_json({"node_id": info["node_id"], "pid": info["pid"], "stopped": stopped})
    elif stopped:
        print(f"{info['node_id']} (pid {info['pid']}) has stopped")
    if not stopped:
        complain(f"{info['node_id']} (pid {info['pid']}) is still stopping; its log may say why")
    return OK if stopped else CLUSTER_SAID_NO
