"""The calls of the control socket about Kafka; part of `requests.CALLS`."""

from __future__ import annotations

from clusternode.control.declarations import Call, Parameter

CONNECTION = Parameter(
    name="connection", type="string", help="The NAME of a [kafka.NAME].", required=True
)

KAFKA_CALLS: tuple[Call, ...] = (
    Call(
        name="kafka.status",
        help="List the named connections, with the state and counters of their producers.",
        result="An object: enabled, installed, connections (name, brokers, producer, accepted, "
        "delivered, failed, in_flight, refused, bytes, last_error, suppressed_log_lines), bridges "
        "(name, source, target, relayed, failed, looped, last_error).",
    ),
    Call(
        name="kafka.show",
        help="Show every setting of a connection; secrets are shown as ***.",
        parameters=(CONNECTION,),
        result="An object: setting → value.",
    ),
    Call(
        name="kafka.consumers",
        help="List the active consumers.",
        result="An array of objects: name, connection, group_id, subscribed, topics, commit, "
        "counters, last_error, partitions (topic, partition, next_offset, queued, state, detail).",
    ),
    Call(
        name="kafka.consumer",
        help="Show a consumer, or all consumers of a connection.",
        parameters=(
            Parameter(
                name="name", type="string", help="Of the consumer or connection.", required=True
            ),
        ),
        result="An array of objects, as kafka.consumers.",
    ),
    Call(
        name="kafka.send",
        help="Publish a record and wait until the broker has it, or refuses it.",
        parameters=(
            CONNECTION,
            Parameter(
                name="topic", type="string", help="The topic; default: that of the connection."
            ),
            Parameter(name="message", type="text", help="The value as text."),
            Parameter(name="message_base64", type="text", help="The value, if it is not text."),
            Parameter(name="key", type="string", help="The key of the record."),
            Parameter(name="headers", type="object", help="Header → text.", default={}),
            Parameter(
                name="timeout", type="seconds", help="How long to wait for it.", default=10.0
            ),
        ),
        result="An object: topic, partition, offset, latency_ms.",
    ),
    Call(
        name="kafka.notify",
        help="Send a notification, as oslo.messaging's, and wait until the broker has it.",
        parameters=(
            Parameter(name="event_type", type="string", help="Its type.", required=True),
            Parameter(name="payload", type="text", help="The payload, JSON or any other text."),
            Parameter(
                name="priority",
                type="string",
                help="audit, debug, info, warn, error, critical or sample.",
                default="info",
            ),
            Parameter(
                name="publisher_id",
                type="string",
                help="Who sends it, for its readers.",
                default="clusternode",
            ),
            Parameter(
                name="topics",
                type="strings",
                help="Topics without priority and virtual host; default: of [notifications].",
                default=(),
            ),
            Parameter(
                name="drivers",
                type="strings",
                help="Drivers; default: of [notifications].",
                default=(),
            ),
            Parameter(
                name="connection",
                type="string",
                help="The NAME of a [kafka.NAME], in place of [notifications].",
                default="notifications",
            ),
            Parameter(
                name="timeout", type="seconds", help="How long to wait for it.", default=10.0
            ),
        ),
        result="An object: placed, an array of objects (topic, partition, offset, latency_ms); "
        "empty where no driver goes to Kafka.",
    ),
    Call(
        name="kafka.ensure_topic",
        help="Make a topic where it is missing.",
        parameters=(
            CONNECTION,
            Parameter(
                name="topic",
                type="string",
                help="TOPIC, TOPIC:PARTITIONS or TOPIC:PARTITIONS:REPLICAS.",
                required=True,
            ),
        ),
        result="An object: topic, made (false: it was there).",
    ),
)
