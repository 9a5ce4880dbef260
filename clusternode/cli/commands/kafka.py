"""`clusternode kafka`: named connections, consumers, and records by hand (res_kafka's commands)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from clusternode.cli.output import milliseconds, print_json, print_table, printable
from clusternode.cli.parsing import (
    OK,
    Parsers,
    Run,
    add_agent_options,
    add_command,
    add_json_option,
    body_params,
    connect,
    positive_seconds,
)
from clusternode.errors import ConfigError

CONNECTION_ROWS = (
    ("Name", "name"),
    ("Brokers", "brokers"),
    ("Topic", "topic"),
    ("Client ID", "client_id"),
    ("Message max bytes", "message_max_bytes"),
    ("Request timeout", "request_timeout_ms"),
    ("Message timeout", "message_timeout_ms"),
    ("Socket timeout", "socket_timeout_ms"),
    ("Security protocol", "security_protocol"),
    ("SASL mechanisms", "sasl_mechanisms"),
    ("SASL username", "sasl_username"),
    ("SASL password", "sasl_password"),
    ("SSL CA", "ssl_ca_location"),
    ("SSL certificate", "ssl_certificate_location"),
    ("SSL key", "ssl_key_location"),
    ("Compression codec", "compression_codec"),
    ("Compression level", "compression_level"),
    ("Linger", "linger_ms"),
    ("Batch num messages", "batch_num_messages"),
    ("Batch size", "batch_size"),
    ("Queue buffering max messages", "queue_buffering_max_messages"),
    ("Queue buffering max kbytes", "queue_buffering_max_kbytes"),
    ("In flight max", "in_flight_max"),
    ("Acks", "acks"),
    ("Retries", "retries"),
    ("Enable idempotence", "enable_idempotence"),
    ("Reconnect backoff", "reconnect_backoff_ms"),
    ("Reconnect backoff max", "reconnect_backoff_max_ms"),
    ("Debug", "debug"),
    ("Properties", "properties"),
)
GROUP_ROWS = (
    ("Group ID", "group_id"),
    ("Auto offset reset", "auto_offset_reset"),
    ("Enable auto commit", "enable_auto_commit"),
    ("Auto commit interval", "auto_commit_interval_ms"),
    ("Session timeout", "session_timeout_ms"),
    ("Max poll interval", "max_poll_interval_ms"),
)
CONSUMER_ROWS = (
    ("Name", "name"),
    ("Group ID", "group_id"),
    ("Subscribed", "subscribed"),
    ("Topics", "topics"),
    ("Commit", "commit"),
    ("Brokers", "brokers"),
    *GROUP_ROWS[1:],
    ("Dead letter topic", "dead_letter"),
    ("Read", "read"),
    ("Queued", "queued"),
    ("Handled", "handled"),
    ("Failed attempts", "failed"),
    ("Skipped", "skipped"),
    ("Dead lettered", "dead_lettered"),
    ("Discarded", "discarded"),
    ("Commits", "commits"),
    ("Commit failures", "commit_failures"),
    ("Rebalances", "rebalances"),
    ("Last error", "last_error"),
)
"""Heading → field: the rows of `kafka show connection` and `kafka show consumer`, and ours."""


def add_parser(parsers: Parsers) -> None:
    kafka = add_command(
        parsers,
        "kafka",
        run=None,
        summary="named Kafka connections: state, consumers, and records by hand",
        examples="clusternode kafka status\nclusternode kafka send main calls 'hello world'",
    )
    actions = kafka.add_subparsers(metavar="ACTION", required=True, title="actions")
    status = _add(
        actions, "status", _status, "list the connections and what became of their records"
    )
    status.add_argument(
        "--names", action="store_true", help="print only the names, for completion in shells"
    )
    show = _add(
        actions, "show", _show, "show every setting of a connection; secrets as ***", "main"
    )
    show.add_argument("connection", metavar="CONNECTION", help="name of the connection")
    _add(actions, "consumers", _consumers, "list the active consumers")
    one = _add(actions, "consumer", _consumer, "show a consumer and its partitions", "main")
    one.add_argument("name", metavar="NAME", help="name of the consumer, or of its connection")
    send = _add(
        actions,
        "send",
        _send,
        "publish a record and wait for its delivery",
        "main calls '{}' --key a",
    )
    send.add_argument("connection", metavar="CONNECTION", help="name of the connection")
    send.add_argument("topic", metavar="TOPIC", help="the topic")
    send.add_argument("body", metavar="MESSAGE", help="text, `-` for standard input, or @FILE")
    send.add_argument("--key", metavar="KEY", help="key of the record")
    send.add_argument(
        "--header", metavar="NAME=VALUE", action="append", default=[], help="a header; repeatable"
    )
    send.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=positive_seconds,
        default=10.0,
        help="how long to wait for the delivery; default 10",
    )
    _add_notify(actions)
    ensure = _add(
        actions, "ensure-topic", _ensure, "make a topic where it is missing", "main calls:3:1"
    )
    ensure.add_argument("connection", metavar="CONNECTION", help="name of the connection")
    ensure.add_argument("topic", metavar="TOPIC", help="TOPIC[:PARTITIONS[:REPLICAS]]")


def _add_notify(actions: Parsers) -> None:
    notify = _add(
        actions,
        "notify",
        _notify,
        "send a notification in the manner of oslo.messaging and wait for its delivery",
        """call.ended '{"id": 7}' --priority warn""",
    )
    notify.add_argument("event_type", metavar="EVENT_TYPE", help="its type, such as call.ended")
    notify.add_argument(
        "body",
        metavar="PAYLOAD",
        nargs="?",
        default="{}",
        help="JSON or any other text, `-` for standard input, or @FILE; default {}",
    )
    notify.add_argument(
        "--priority", metavar="PRIORITY", default="info", help="audit to sample; default info"
    )
    notify.add_argument(
        "--publisher-id",
        metavar="ID",
        default="clusternode",
        help="who says it; default clusternode",
    )
    notify.add_argument(
        "--topic", metavar="TOPIC", action="append", default=[], help="without priority; repeatable"
    )
    notify.add_argument(
        "--driver", metavar="DRIVER", action="append", default=[], help="a driver; repeatable"
    )
    notify.add_argument(
        "--connection",
        metavar="CONNECTION",
        default="notifications",
        help="name of a connection; default: that of [notifications]",
    )
    notify.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=positive_seconds,
        default=10.0,
        help="how long to wait for the delivery; default 10",
    )


def _add(
    actions: Parsers, name: str, run: Run, summary: str, example: str = ""
) -> argparse.ArgumentParser:
    example = f"clusternode kafka {name} {example}".rstrip()
    parser = add_command(actions, name, run=run, summary=summary, examples=example)
    add_agent_options(parser, cluster=False)
    add_json_option(parser)
    return parser


def _status(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        status = client.call("kafka.status")
    if arguments.json:
        print_json(status)
        return OK
    if arguments.names:
        for each in status["connections"]:
            print(printable(each["name"]))
        return OK
    if not status["enabled"]:
        print("Kafka disabled")
        return OK
    if not status["installed"]:
        print("confluent-kafka is not installed: pip install 'clusternode[kafka]'")
    rows = [
        (each["name"], each["brokers"], *(each.get(name, "-") for name in COUNTERS))
        for each in status["connections"]
    ]
    print_table(("NAME", "BROKERS", "DELIVERED", "FAILED", "IN FLIGHT", "LAST ERROR"), rows)
    if status["bridges"]:
        print()
        columns = ("name", "source", "target", "relayed", "failed", "looped", "last_error")
        print_table(
            ("BRIDGE", "FROM", "TO", "RELAYED", "FAILED", "LOOPED", "LAST ERROR"),
            [[each[name] for name in columns] for each in status["bridges"]],
        )
    return OK


COUNTERS = ("delivered", "failed", "in_flight", "last_error")


def _show(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        shown = client.call("kafka.show", {"connection": arguments.connection})
    if arguments.json:
        print_json(shown)
    else:
        _print_rows(CONNECTION_ROWS + (GROUP_ROWS if shown["group_id"] else ()), shown)
    return OK


def _consumers(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        consumers = client.call("kafka.consumers")
    if arguments.json:
        print_json(consumers)
    else:
        columns = ("name", "group_id", "subscribed", "topics", "handled", "queued", "last_error")
        print_table(
            ("NAME", "GROUP ID", "SUBSCRIBED", "TOPICS", "HANDLED", "QUEUED", "LAST ERROR"),
            [[_text(name, each[name]) for name in columns] for each in consumers],
        )
    return OK


def _consumer(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        consumers = client.call("kafka.consumer", {"name": arguments.name})
    if arguments.json:
        print_json(consumers)
        return OK
    for each in consumers:
        _print_rows(CONSUMER_ROWS, each)
        columns = ("topic", "partition", "next_offset", "queued", "state", "detail")
        print_table(
            ("TOPIC", "PARTITION", "NEXT OFFSET", "QUEUED", "STATE", "DETAIL"),
            [[row[name] for name in columns] for row in each["partitions"]],
        )
    return OK


def _send(arguments: argparse.Namespace) -> int:
    arguments.content_type = None
    body = body_params(arguments)
    headers = dict(map(_header, arguments.header))
    with connect(arguments) as client:
        placed = client.call(
            "kafka.send",
            {
                "connection": arguments.connection,
                "topic": arguments.topic,
                "message": body.get("body"),
                "message_base64": body.get("body_base64"),
                "key": arguments.key,
                "headers": headers,
                "timeout": arguments.timeout,
            },
        )
    if arguments.json:
        print_json(placed)
    else:
        _print_placed(placed)
    return OK


def _print_placed(placed: Mapping[str, Any]) -> None:
    print(
        printable(
            f"delivered to {placed['topic']}, partition {placed['partition']}, offset"
            f" {placed['offset']}, in {milliseconds(placed['latency_ms'])}"
        )
    )


def _notify(arguments: argparse.Namespace) -> int:
    arguments.content_type = None
    body = body_params(arguments)
    if "body" not in body:
        raise ConfigError("PAYLOAD", arguments.body, "text in UTF-8")
    with connect(arguments) as client:
        result = client.call(
            "kafka.notify",
            {
                "event_type": arguments.event_type,
                "payload": body["body"],
                "priority": arguments.priority,
                "publisher_id": arguments.publisher_id,
                "topics": arguments.topic,
                "drivers": arguments.driver,
                "connection": arguments.connection,
                "timeout": arguments.timeout,
            },
        )
    if arguments.json:
        print_json(result)
        return OK
    for placed in result["placed"]:
        _print_placed(placed)
    if not result["placed"]:
        print("no driver of it goes to Kafka")
    return OK


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError("--header", text, "a header as NAME=VALUE")
    return name, value


def _ensure(arguments: argparse.Namespace) -> int:
    params = {"connection": arguments.connection, "topic": arguments.topic}
    with connect(arguments) as client:
        result = client.call("kafka.ensure_topic", params)
    if arguments.json:
        print_json(result)
    else:
        print(printable(f"{result['topic']} {'was made' if result['made'] else 'was there'}"))
    return OK


def _print_rows(rows: Sequence[tuple[str, str]], values: Mapping[str, Any]) -> None:
    shown = [(f"{title}:", _text(name, values[name])) for title, name in rows if name in values]
    width = max(len(title) for title, _ in shown)
    for title, text in shown:
        if text:
            print(printable(f"{title.ljust(width)}  {text}"))


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return f"{value} ms" if name.endswith("_ms") else str(value)
