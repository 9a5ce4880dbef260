"""`clusternode request`: a question to every member, or one, and the replies as they come."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from clusternode.cli.output import body_text, milliseconds, note, print_json, printable
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
    positive_seconds,
)

TIMEOUT = 5.0
PATIENCE = 30.0
"""How much longer than the request itself its end is waited for."""


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "request",
        run=run,
        summary="ask every other member, or one, and print the replies",
        text="Ends when every asked node has finished, or at the timeout, and says who replied,\n"
        "who had nothing to say, who failed and who did not answer.\n"
        "Status 1: some node failed or did not answer.",
        examples="clusternode request locate alice\n"
        "clusternode request locate alice --json --timeout 2\n"
        "clusternode request conference 4711 --node edge-2",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel")
    add_body(parser)
    parser.add_argument("--node", metavar="NODE", help="ask only this node")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=positive_seconds,
        default=TIMEOUT,
        help=f"how long to wait for replies; default {TIMEOUT:g}",
    )
    parser.add_argument("--include-self", action="store_true", help="ask this node too")
    parser.add_argument("--tag", metavar="TAG", help="tag of the request; default: made")
    add_agent_options(parser)
    add_json_option(parser, "print an object per reply as it comes, and a closing summary")


def run(arguments: argparse.Namespace) -> int:
    params = {
        "channel": arguments.channel,
        "node": arguments.node,
        "timeout": arguments.timeout,
        "include_self": arguments.include_self,
        "tag": arguments.tag,
        "cluster": arguments.cluster,
        **body_params(arguments),
    }
    summary: Mapping[str, Any] = {}
    with connect(arguments) as client:
        patience = arguments.timeout + PATIENCE
        for is_result, value in client.stream("cluster.request", params, timeout=patience):
            if arguments.json:
                print_json(value)
            elif not is_result:
                _print_reply(value)
            if is_result:
                summary = value
    if not arguments.json:
        _print_summary(summary)
    return CLUSTER_SAID_NO if summary["failed"] or summary["unanswered"] else OK


def _print_reply(reply: Mapping[str, Any]) -> None:
    head = f"{reply['node_id']} ({milliseconds(reply['round_trip_ms'])})"
    if reply["code"] != 200:  # OK
        head += f" {reply['code']}"
    text = reply.get("body", "")
    if "body_base64" in reply:
        text = "base64 " + reply["body_base64"]
    print(f"{printable(head)}: {body_text(text)}", flush=True)


def _print_summary(summary: Mapping[str, Any]) -> None:
    parts = [f"{len(summary['asked'])} asked", f"{len(summary['replied'])} replied"]
    if summary["nothing"]:
        parts.append("nothing to say: " + " ".join(summary["nothing"]))
    if summary["failed"]:
        failed = (
            f"{node} ({why['code']} {why['text']})" for node, why in summary["failed"].items()
        )
        parts.append("failed: " + " ".join(failed))
    if summary["unanswered"]:
        parts.append("no answer: " + " ".join(summary["unanswered"]))
    note("; ".join(parts))
