"""`clusternode events`: the events that exist, and your own."""

from __future__ import annotations

import argparse
import json

from clusternode.cli.output import print_json, print_table, printable
from clusternode.cli.parsing import (
    OK,
    Parsers,
    add_agent_options,
    add_command,
    add_json_option,
    connect,
)
from clusternode.errors import ConfigError


def add_parser(parsers: Parsers) -> None:
    events = add_command(
        parsers,
        "events",
        run=None,
        summary="list the events, or raise your own",
        examples="clusternode events list\nclusternode events raise E_SITE_DRAINED site=fra",
    )
    actions = events.add_subparsers(metavar="ACTION", required=True, title="actions")
    listing = add_command(
        actions,
        "list",
        run=_list,
        summary="list the events that this agent can raise",
        examples="clusternode events list --json",
    )
    add_agent_options(listing, cluster=False)
    add_json_option(listing, "print an array of objects")
    raising = add_command(
        actions,
        "raise",
        run=_raise,
        summary="raise an event of your own on this node",
        text="VALUE is JSON, or else text.",
        examples="clusternode events raise E_SITE_DRAINED site=fra calls=12",
    )
    raising.add_argument("name", metavar="NAME", help="name of the event, by custom E_…")
    raising.add_argument("parameters", metavar="KEY=VALUE", nargs="*", help="its parameters")
    add_agent_options(raising, cluster=False)
    add_json_option(raising, "print an object")


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        events = client.call("event.list")
    if arguments.json:
        print_json(events)
    else:
        rows = [(event["event"], event["alias"] or "-", event["help"]) for event in events]
        print_table(("EVENT", "ALIAS", "MEANING"), rows)
    return OK


def _raise(arguments: argparse.Namespace) -> int:
    parameters = dict(map(_parameter, arguments.parameters))
    with connect(arguments) as client:
        result = client.call("event.raise", {"name": arguments.name, "parameters": parameters})
    if arguments.json:
        print_json(result)
    else:
        print(printable(f"{result['raised']} was raised"))
    return OK


def _parameter(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError("KEY=VALUE", text, "a parameter as KEY=VALUE, for instance site=fra")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value
