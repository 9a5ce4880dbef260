"""`clusternode events`: the events that exist, who gets them, and your own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from clusternode.cli.commands import watch
from clusternode.cli.output import duration, print_json, print_table, printable
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
from clusternode.errors import ConfigError

STATUS_TIMEOUT = 5.0
"""How long `raise` waits for the back ends where nothing else is said."""
COLUMNS = ("EVENT", "TO", "STATE", "QUEUED", "DELIVERED", "FAILED", "OVERFLOWED", "EXPIRES")


def add_parser(parsers: Parsers) -> None:
    events = add_command(
        parsers,
        "events",
        run=None,
        summary="list events and their subscribers, subscribe back ends, raise your own",
        examples="clusternode events list\n"
        "clusternode events subscribe 'peer:*' flatstore:/var/log/peers\n"
        "clusternode events raise E_SITE_DRAINED site=fra",
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
    _add_subscribers(actions)
    _add_raise(actions)
    watching = add_command(
        actions,
        "watch",
        run=watch.run,
        summary="print events as they happen; the same as `clusternode watch`",
        examples="clusternode events watch 'subscriber:*'",
    )
    watch.add_arguments(watching)


def _add_subscribers(actions: Parsers) -> None:
    showing = add_command(
        actions,
        "subscribers",
        run=_subscribers,
        summary="list the back ends that get events, with what became of them",
        examples="clusternode events subscribers\nclusternode events subscribers E_SITE_DRAINED",
    )
    showing.add_argument("event", metavar="EVENT", nargs="?", help="only of this event or wildcard")
    showing.add_argument("to", metavar="URI", nargs="?", help="only this back end")
    add_agent_options(showing, cluster=False)
    add_json_option(showing, "print an array of objects")
    subscribing = add_command(
        actions,
        "subscribe",
        run=_subscribe,
        summary="deliver events to a back end; again: refresh the expiry",
        text="URI is described in docs/events.md. It lasts until it expires or the agent ends;\n"
        "what shall last longer belongs into [[subscribe]] of the configuration.",
        examples="clusternode events subscribe node:state tcp:127.0.0.1:8080 --expire 600\n"
        "clusternode events subscribe '*' 'virtual:FAILOVER tcp:10.0.0.9:80 flatstore:/var/log/ev'",
    )
    ending = add_command(
        actions,
        "unsubscribe",
        run=_unsubscribe,
        summary="end a subscription; what is queued is still delivered",
        examples="clusternode events unsubscribe node:state tcp:127.0.0.1:8080",
    )
    for parser in (subscribing, ending):
        parser.add_argument("event", metavar="EVENT", help="name, alias or wildcard; quote it")
        parser.add_argument("to", metavar="URI", help="the back end")
    subscribing.add_argument(
        "--expire", metavar="S", type=positive_seconds, help="seconds it lasts; default: 3600"
    )
    rotating = add_command(
        actions,
        "rotate",
        run=_rotate,
        summary="let flatstore: open its file again, after logrotate",
        examples="clusternode events rotate /var/log/peers",
    )
    rotating.add_argument("to", metavar="PATH", help="the file, as in its URI")
    for parser in (subscribing, ending, rotating):
        add_agent_options(parser, cluster=False)
        add_json_option(parser, "print an object")


def _add_raise(actions: Parsers) -> None:
    raising = add_command(
        actions,
        "raise",
        run=_raise,
        summary="raise an event of your own on this node, and show who got it",
        text="KEY=VALUE gives named parameters, VALUE alone those without names.\n"
        "VALUE is JSON, or else text.",
        examples="clusternode events raise E_SITE_DRAINED site=fra calls=12\n"
        "clusternode events raise E_SITE_DRAINED fra 12",
    )
    raising.add_argument("name", metavar="NAME", help="name of the event, by custom E_…")
    raising.add_argument(
        "parameters", metavar="[KEY=]VALUE", nargs="*", help="its parameters, all with KEY or none"
    )
    raising.add_argument(
        "--positional", action="store_true", help="no KEY in front: `a=b` is a value"
    )
    raising.add_argument(
        "--timeout",
        metavar="S",
        type=positive_seconds,
        default=STATUS_TIMEOUT,
        help=f"seconds to wait for the back ends; default: {STATUS_TIMEOUT:g}",
    )
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


def _subscribers(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        found = client.call("event.subscribers", {"event": arguments.event, "to": arguments.to})
    if arguments.json:
        print_json(found)
        return OK
    print_table(COLUMNS, [_row(subscriber) for subscriber in found])
    for subscriber in found:
        if subscriber["state"] == "failing":
            print(printable(f"{subscriber['to']}: {subscriber['last_error']}"))
    return OK


def _row(subscriber: Mapping[str, Any]) -> Sequence[object]:
    left = subscriber["expires_in_s"]
    return (
        *(subscriber[key] for key in ("event", "to", "state", "queued", "delivered", "failed")),
        subscriber["overflowed"],
        "never" if left is None else duration(left),
    )


def _subscribe(arguments: argparse.Namespace) -> int:
    params = {"event": arguments.event, "to": arguments.to, "expire": arguments.expire}
    with connect(arguments) as client:
        result = client.call("event.subscribe", params)
    if arguments.json:
        print_json(result)
    else:
        print(printable(f"{arguments.event} is delivered from now on"))
    return OK


def _unsubscribe(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        result = client.call("event.unsubscribe", {"event": arguments.event, "to": arguments.to})
    if arguments.json:
        print_json(result)
    else:
        done = "is ended" if result["unsubscribed"] else "was not there"
        print(printable(f"the subscription to {arguments.event} {done}"))
    return OK if result["unsubscribed"] else CLUSTER_SAID_NO


def _rotate(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        result = client.call("event.rotate", {"to": arguments.to})
    if arguments.json:
        print_json(result)
    else:
        print("the file is opened again before the next event")
    return OK


def _raise(arguments: argparse.Namespace) -> int:
    params = {
        "name": arguments.name,
        "parameters": _parameters(arguments.parameters, positional=arguments.positional),
        "timeout": arguments.timeout,
    }
    with connect(arguments) as client:
        result = client.call("event.raise", params)
    statuses = result["statuses"]
    if arguments.json:
        print_json(result)
    else:
        print(printable(f"{result['raised']} was raised"))
        for status in statuses:
            outcome = "delivered" if status["ok"] else "failed"
            print(printable(f"{status['to']}: {outcome} {status['detail']}").rstrip())
        if len(statuses) < result["subscribers"]:
            print(f"{result['subscribers'] - len(statuses)} back ends have said nothing yet")
    all_ok = len(statuses) == result["subscribers"] and all(each["ok"] for each in statuses)
    return OK if all_ok else CLUSTER_SAID_NO


def _parameters(texts: Sequence[str], *, positional: bool) -> dict[str, object] | list[object]:
    if positional or (texts and not any("=" in text for text in texts)):
        return [_value(text) for text in texts]
    return dict(map(_parameter, texts))


def _parameter(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError("KEY=VALUE", text, "a parameter as KEY=VALUE, for instance site=fra")
    return key, _value(value)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
