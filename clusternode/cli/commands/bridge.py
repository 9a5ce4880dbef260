"""`clusternode bridge …`: what the bridges of an agent do."""

from __future__ import annotations

import argparse
from typing import Final

from clusternode.cli.output import print_json, print_table
from clusternode.cli.parsing import (
    OK,
    Parsers,
    add_agent_options,
    add_command,
    add_json_option,
    connect,
)

COLUMNS: Final = (
    *(("BRIDGE", "name"), ("STATE", "state"), ("RELAYED", "relayed"), ("FAILED", "failed")),
    *(("IN FLIGHT", "in_flight"), ("HELD", "held"), ("LOOPED", "looped")),
    *(("REPEATED", "repeated"), ("LIMITED", "limited"), ("LAST ERROR", "last_error")),
)


def add_parser(parsers: Parsers) -> None:
    bridge = add_command(
        parsers,
        "bridge",
        run=None,
        summary="bridges between clusters, gateways and Kafka: what they relay",
        examples="clusternode bridge status",
    )
    actions = bridge.add_subparsers(metavar="ACTION", required=True, title="actions")
    status = add_command(
        actions,
        "status",
        run=_status,
        summary="list the bridges, and which of them this agent relays for",
        text="STATE is chosen where this agent relays, standby where another one does, and every\n"
        "where each agent relays what it hears.",
        examples="clusternode bridge status\nclusternode bridge status --json",
    )
    add_agent_options(status)
    add_json_option(status, "print an array")


def _status(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        rows = client.call("bridge.status")
    if arguments.json:
        print_json(rows)
        return OK
    print_table([title for title, _ in COLUMNS], [[row[key] for _, key in COLUMNS] for row in rows])
    for row in rows:
        for link in row["links"]:
            print(f"{row['name']}: {link}")
    return OK
