"""`clusternode nodes`: the member list of the running agent."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from clusternode.cli.output import duration, milliseconds, print_json, print_table, printable
from clusternode.cli.parsing import (
    OK,
    Parsers,
    add_agent_options,
    add_command,
    add_json_option,
    connect,
)

TROUBLED_STATES = ("waiting", "unresolved")
"""States of an address that is not reached (core/snapshots.py)."""
NAME_STATES = ("unresolved", "resolving", "resolved")
"""States of a name; one with an error may still be resolved to what was known before."""


def add_parser(parsers: Parsers) -> None:
    nodes = add_command(
        parsers,
        "nodes",
        run=None,
        summary="show and change the member list",
        examples="clusternode nodes list\nclusternode nodes show edge-2 --json",
    )
    actions = nodes.add_subparsers(metavar="ACTION", required=True, title="actions")
    listing = add_command(
        actions,
        "list",
        run=_list,
        summary="list the members and how they are",
        text="The own row is marked with `*`. Notification addresses that cannot be reached or\n"
        "resolved stand below the table.",
        examples="clusternode nodes list\nclusternode nodes list --json -c node.toml",
    )
    add_agent_options(listing)
    add_json_option(listing, "print an array of objects")
    show = add_command(
        actions,
        "show",
        run=_show,
        summary="show everything that the agent knows of itself, or of one member",
        examples="clusternode nodes show\nclusternode nodes show edge-2",
    )
    show.add_argument("node", metavar="NODE", nargs="?", help="node id; default: the agent itself")
    add_agent_options(show)
    add_json_option(show, "print an object")
    remove = add_command(
        actions,
        "remove",
        run=_remove,
        summary="take a node off the list of this agent",
        text="Local, as Kamailio's dmq.remove: a node that is alive comes back, a dead one stays\n"
        "away.",
        examples="clusternode nodes remove edge-2",
    )
    remove.add_argument("node", metavar="NODE", help="node id or address")
    add = add_command(
        actions,
        "add",
        run=_add,
        summary="dial an address from now on",
        examples="clusternode nodes add tcp://10.0.0.23:5062",
    )
    add.add_argument("address", metavar="ADDRESS", help="tcp://HOST:PORT")
    status = add_command(
        actions,
        "set-status",
        run=_set_status,
        summary="set the status of a node here until its next ping ends",
        examples="clusternode nodes set-status edge-2 not_active",
    )
    status.add_argument("node", metavar="NODE", help="node id or address")
    status.add_argument("status", choices=("active", "not_active", "disabled"), help="the status")
    for parser in (remove, add, status):
        add_agent_options(parser)
        add_json_option(parser, "print an object")


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        if arguments.json:
            print_json(client.call("cluster.list", {"cluster": arguments.cluster}))
            return OK
        shown = client.call("cluster.show", {"cluster": arguments.cluster})
    headings = ("NODE", "STATUS", "ADDRESS", "FAILS", "SEEN", "LINK", "PING", "TAGS", "CHANNELS")
    print_table(headings, [_row(member) for member in shown["members"]])
    for line in _trouble(shown["addresses"]):
        print(line)
    return OK


def _row(member: Mapping[str, Any]) -> Sequence[str]:
    return (
        member["node_id"] + ("*" if member["local"] else ""),
        member["status"],
        member["address"],
        str(member["fail_count"]),
        "-" if member["local"] else duration(member["last_seen_s"]),
        member["link"],
        milliseconds(member["round_trip_ms"]),
        _pairs(member["tags"]) or "-",
        " ".join(member["channels"]) or "-",
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def _trouble(addresses: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each address that is not reached, and when it is tried again."""
    lines = []
    for address in addresses:
        if not address["error"] and address["state"] not in TROUBLED_STATES:
            continue
        what = "not resolved" if address["state"] in NAME_STATES else "not reached"
        text = f"{address['address']}: {what}"
        if address["failures"] is not None:
            text += f", {address['failures']} attempts"
        if address["error"]:
            text += f": {address['error']}"
        if address["retry_in_s"] is not None:
            text += f"; next in {duration(address['retry_in_s'])}"
        lines.append(printable(text))
    return ["", *lines] if lines else []


def _show(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        shown = client.call("cluster.show", {"cluster": arguments.cluster})
    if arguments.node is not None:
        member = _find(shown, arguments.node)
        if arguments.json:
            print_json(member)
        else:
            _print_fields(member)
        return OK
    if arguments.json:
        print_json(shown)
        return OK
    fields = {key: shown[key] for key in ("node_id", "cluster", "incarnation", "digest")}
    _print_fields({**fields, "members": len(shown["members"])})
    if shown["addresses"]:
        print()
        headings = ("ADDRESS", "STATE", "NODE", "FAILURES", "ERROR")
        keys = ("address", "state", "node_id", "failures", "error")
        print_table(headings, [[entry[key] or "-" for key in keys] for entry in shown["addresses"]])
    print()
    print_table(("COUNTER", "COUNT"), list(shown["counters"].items()))
    if shown["routes"]:
        print()
        keys = tuple(shown["routes"][0])
        rows = [[_cell(route.get(key, "-")) for key in keys] for route in shown["routes"]]
        print_table([key.upper() for key in keys], rows)
    return OK


def _cell(value: object) -> str:
    """Write fractions with three digits: nobody reads more of them in a table."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _find(shown: Mapping[str, Any], node: str) -> Mapping[str, Any]:
    from clusternode.errors import NoSuchNode  # only where it goes wrong

    for member in shown["members"]:
        if node in (member["node_id"], member["address"]):
            found: Mapping[str, Any] = member
            return found
    known = ", ".join(member["node_id"] for member in shown["members"])
    raise NoSuchNode(f"no member {node!r} in the cluster {shown['cluster']}; members: {known}")


def _print_fields(values: Mapping[str, Any]) -> None:
    width = max(map(len, values))
    for key, value in values.items():
        if isinstance(value, Mapping):
            text = _pairs(value)
        elif isinstance(value, list):
            text = " ".join(map(str, value))
        else:
            text = "-" if value is None else str(value)
        print(f"{key.ljust(width)}  {printable(text)}".rstrip())


def _remove(arguments: argparse.Namespace) -> int:
    params = {"node": arguments.node, "cluster": arguments.cluster}
    return _change(arguments, "dmq.remove", params, "{removed} was removed here")


def _add(arguments: argparse.Namespace) -> int:
    params = {"address": arguments.address, "cluster": arguments.cluster}
    return _change(arguments, "dmq.add", params, "{added} is dialled from now on")


def _set_status(arguments: argparse.Namespace) -> int:
    params = {
        "node": arguments.node,
        "status": arguments.status,
        "cluster": arguments.cluster,
    }
    return _change(arguments, "dmq.change_status", params, "{node_id} is {status} here")


def _change(
    arguments: argparse.Namespace, call: str, params: Mapping[str, object], text: str
) -> int:
    with connect(arguments) as client:
        result = client.call(call, params)
    if arguments.json:
        print_json(result)
    else:
        print(printable(text.format_map(result)))
    return OK
