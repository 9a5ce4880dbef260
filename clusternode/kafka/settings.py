"""`[kafka.NAME]`: keys, defaults and limits of res_kafka, and what they are for librdkafka.

Where res_kafka silently puts a default in place of a wrong value, the value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from clusternode.config.keys import Key, Section, derive
from clusternode.config.kinds import (
    BOOLEAN,
    NAME,
    PATH,
    Kind,
    WrongValue,
    choice,
    integer,
    list_of,
    number,
    text_kind,
)
from clusternode.config.raw import RawTable
from clusternode.core.types import Seconds
from clusternode.errors import ConfigError
from clusternode.kafka.properties import CONSUMER_ONLY, PRODUCER_ONLY
from clusternode.kafka.uri import (
    MASK,
    TOPIC,
    TOPIC_EXPECTED,
    KafkaUri,
    masked,
    parse_brokers,
    parse_uri,
    read_property_name,
)

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI")
PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
INT32_MAX = 2**31 - 1
METADATA_REFRESH_MS = 10_000
"""So soon a consumer finds a topic that was made after it; librdkafka looks every five minutes."""
PARTITIONS_MAX = 100_000
IN_FLIGHT_MAX = 50_000
"""Half of librdkafka's own queue: the rest is room for retries and other users of it."""


@attrs.frozen
class TopicSpec:
    """A topic that should exist: `NAME[:PARTITIONS[:REPLICAS]]`; -1 is the broker's default."""

    name: str
    partitions: int = -1
    replicas: int = -1

    def __str__(self) -> str:
        return f"{self.name}:{self.partitions}:{self.replicas}"


@attrs.frozen(kw_only=True)
class KafkaConnection:
    """`[kafka.NAME]`: one named connection; its producer and consumers are made when needed."""

    name: str
    brokers: str = "localhost:9092"
    """The brokers to begin with: HOST:PORT, separated by commas."""
    uri: str = attrs.field(default="", repr=False)
    """Brokers, topic and properties in one: `HOST:PORT/TOPIC?g.NAME=VALUE&t.NAME=VALUE`, as event_kafka's broker_id has them."""  # noqa: E501
    topic: str = ""
    """The topic of records that name none."""
    vhost: str = ""
    """Virtual host: appended to the topics of notifications, on both sides."""
    client_id: str = "clusternode"
    """How the client calls itself in the broker's logs and quotas."""
    request_timeout_ms: int = 5000
    """How long a broker may take for one request; also for admin calls."""
    message_timeout_ms: int = 300_000
    """After so long an undelivered record has failed: the outage of a broker that is tolerated."""
    reconnect_backoff_ms: int = 100
    """The first pause before a broker is connected again."""
    reconnect_backoff_max_ms: int = 10_000
    """The longest such pause."""
    socket_timeout_ms: int = 10_000
    """How long a request may be on the network."""
    security_protocol: str = "plaintext"
    """What the broker's listener speaks."""
    sasl_mechanisms: str = ""
    """How the client proves who it is, for sasl_plaintext and sasl_ssl."""
    sasl_username: str = ""
    """Of PLAIN and SCRAM."""
    sasl_password: str = attrs.field(default="", repr=False)
    """Of PLAIN and SCRAM; better in the environment, `CLUSTERNODE__KAFKA__NAME__SASL_PASSWORD`."""
    ssl_ca_location: str = ""
    """The CA certificates that the broker's certificate must come from; a PEM file."""
    ssl_certificate_location: str = ""
    """The client's own certificate, where the broker asks for one; a PEM file."""
    ssl_key_location: str = ""
    """The private key of that certificate; a PEM file."""
    message_max_bytes: int = 1_000_000
    """The largest record."""
    compression_codec: str = "none"
    """How batches of records are compressed."""
    compression_level: int = -1
    """How hard; -1 is the codec's default."""
    linger_ms: int = 5
    """How long a record may wait for others of its batch."""
    batch_num_messages: int = 10_000
    """The most records of one batch."""
    batch_size: int = 1_000_000
    """The most bytes of one batch."""
    queue_buffering_max_messages: int = 100_000
    """The most records that librdkafka keeps."""
    queue_buffering_max_kbytes: int = 1_048_576
    """The most memory that they take."""
    acks: int = -1
    """Who must have a record before it counts as delivered: -1 all in-sync replicas, 1 the leader, 0 nobody."""  # noqa: E501
    retries: int = INT32_MAX
    """How often a request is tried again within `message_timeout_ms`."""
    enable_idempotence: bool = False
    """Whether the broker drops duplicates of retries and keeps the order."""
    debug: str = ""
    """Contexts of librdkafka's debug log, separated by commas."""
    group_id: str = ""
    """The consumer group; a consumer needs one, here or in its route."""
    auto_offset_reset: str = "latest"
    """Where a group without an offset begins: earliest, latest, or none (an error)."""
    enable_auto_commit: bool = True
    """Whether `commit = "auto"` commits by itself."""
    auto_commit_interval_ms: int = 5000
    """How often it does."""
    session_timeout_ms: int = 45_000
    """After so long a silent member is out of its group."""
    max_poll_interval_ms: int = 300_000
    """After so long without a poll a member is out of its group; ours polls whatever handlers do."""  # noqa: E501
    in_flight_max: int = IN_FLIGHT_MAX
    """High-water mark: records without a report; then `publish` waits and `publish_soon` refuses."""  # noqa: E501
    flush_timeout: Seconds = 5.0
    """How long a stop waits for the reports of what is in flight; the rest has failed then."""
    ensure_topics: tuple[TopicSpec, ...] = ()
    """Topics made at the start where they are missing: NAME, NAME:PARTITIONS or NAME:PARTITIONS:REPLICAS."""  # noqa: E501
    properties: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Any other property of librdkafka, as `"g.NAME"` or `"t.NAME"`; wins over the keys above."""

    @property
    def security(self) -> dict[str, object]:
        """Properties that say how to reach and convince a broker."""
        found: dict[str, object] = {
            "bootstrap.servers": self.brokers,
            "client.id": self.client_id,
            "socket.timeout.ms": self.socket_timeout_ms,
            "reconnect.backoff.ms": self.reconnect_backoff_ms,
            "reconnect.backoff.max.ms": self.reconnect_backoff_max_ms,
            "security.protocol": self.security_protocol,
        }
        optional = {
            "sasl.mechanisms": self.sasl_mechanisms,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "debug": self.debug,
        }
        return {**found, **{name: value for name, value in optional.items() if value}}

    @property
    def producer_properties(self) -> dict[str, object]:
        own: dict[str, object] = {
            "request.timeout.ms": self.request_timeout_ms,
            "message.timeout.ms": self.message_timeout_ms,
            "message.max.bytes": self.message_max_bytes,
            "compression.codec": self.compression_codec,
            "compression.level": self.compression_level,
            "linger.ms": self.linger_ms,
            "batch.num.messages": self.batch_num_messages,
            "batch.size": self.batch_size,
            "queue.buffering.max.messages": self.queue_buffering_max_messages,
            "queue.buffering.max.kbytes": self.queue_buffering_max_kbytes,
            "acks": self.acks,
            "message.send.max.retries": self.retries,
            "enable.idempotence": self.enable_idempotence,
        }
        chosen = {
            name: value
            for name, value in self.properties.items()
            if name not in CONSUMER_ONLY and not name.startswith("test.mock.")
        }
        return {**self.security, **own, **chosen}

    def consumer_properties(self, group: str) -> dict[str, object]:
        own: dict[str, object] = {
            "group.id": group,
            "auto.offset.reset": _reset_of(self.auto_offset_reset),
            "auto.commit.interval.ms": self.auto_commit_interval_ms,
            "session.timeout.ms": self.session_timeout_ms,
            "max.poll.interval.ms": self.max_poll_interval_ms,
            "heartbeat.interval.ms": min(3000, self.session_timeout_ms // 3),
            "topic.metadata.refresh.interval.ms": METADATA_REFRESH_MS,
        }
        chosen = {
            name: value for name, value in self.properties.items() if name not in PRODUCER_ONLY
        }
        return {**self.security, **own, **chosen}

    @property
    def admin_properties(self) -> dict[str, object]:
        chosen = {
            name: value
            for name, value in self.properties.items()
            if name not in CONSUMER_ONLY and name not in PRODUCER_ONLY
        }
        return {**self.security, **chosen}

    def shown(self) -> dict[str, object]:
        """Return every setting as JSON, secrets as `***`."""
        values = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        values["sasl_password"] = MASK if self.sasl_password else ""
        values["uri"] = self.uri.partition("?")[0]
        values["ensure_topics"] = [str(topic) for topic in self.ensure_topics]
        values["properties"] = masked(self.properties)
        return values


def _reset_of(word: str) -> str:
    return "error" if word == "none" else word  # librdkafka's word for it


def _check_brokers(text: str) -> object:
    try:
        return parse_brokers(text)
    except ValueError as error:
        raise WrongValue(str(error)) from None


def _convert_brokers(value: object) -> object:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = ",".join(cast("list[str]", value))
    if not isinstance(value, str):
        raise WrongValue
    return _check_brokers(value)


BROKERS = Kind("brokers", "HOST:PORT, separated by commas", _convert_brokers)


def _check_topic(text: str) -> object:
    if not TOPIC.fullmatch(text):
        raise WrongValue
    return text


TOPIC_NAME = text_kind("topic", TOPIC_EXPECTED, _check_topic)


def _check_spec(text: str) -> object:
    name, *numbers = text.split(":")
    if not TOPIC.fullmatch(name) or len(numbers) > len(("partitions", "replicas")):
        raise WrongValue
    counts = []
    for number_ in numbers:
        if number_ == "-1":
            counts.append(-1)
        elif number_.isascii() and number_.isdigit() and 1 <= int(number_) <= PARTITIONS_MAX:
            counts.append(int(number_))
        else:
            raise WrongValue
    return TopicSpec(name, *counts)


TOPIC_SPEC = text_kind("topic", "TOPIC, TOPIC:PARTITIONS or TOPIC:PARTITIONS:REPLICAS", _check_spec)


def _convert_properties(value: object) -> object:
    if not isinstance(value, Mapping):
        raise WrongValue
    found: dict[str, str] = {}
    for name, given in value.items():
        if isinstance(given, bool):
            given = str(given).lower()
        if not isinstance(given, str | int | float):
            raise WrongValue(f"a string or a number for {name}")
        try:
            found[read_property_name(str(name))] = str(given)
        except ValueError as error:
            raise WrongValue(str(error)) from None
    return found


PROPERTIES = Kind("table", 'a table of "g.NAME" and "t.NAME"', _convert_properties)
ANY_TEXT = text_kind("string", "a string", lambda text: text)
FILE = text_kind("path", "a path of a file", lambda text: str(PATH.read(text)) if text else "")


def _word(*words: str) -> Kind:
    """Return a choice that may be written in capitals, as librdkafka's documentation does."""
    kind = choice(*words)
    folded = {word.casefold(): word for word in words}
    return text_kind(
        "string", kind.expected, lambda text: kind.read(folded.get(text.casefold(), text))
    )


def _yes_no(value: object) -> object:
    words = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    if isinstance(value, str) and value.casefold() in words:
        return words[value.casefold()]
    return BOOLEAN.convert(value)


YES_NO = Kind("boolean", "true or false; yes or no", _yes_no)
ACKS = Kind("integer", "-1, 0 or 1", lambda value: _one_of(value, (-1, 0, 1)))


def _one_of(value: object, numbers: tuple[int, ...]) -> object:
    if isinstance(value, str) and value == "all":
        return -1
    if not isinstance(value, int) or isinstance(value, bool) or value not in numbers:
        raise WrongValue
    return value


KINDS: Mapping[str, Kind] = {
    "name": NAME,
    "brokers": BROKERS,
    "uri": ANY_TEXT,
    "topic": TOPIC_NAME,
    "vhost": ANY_TEXT,
    "client_id": ANY_TEXT,
    "request_timeout_ms": integer(1, 900_000),
    "message_timeout_ms": integer(0, INT32_MAX),
    "reconnect_backoff_ms": integer(0, 3_600_000),
    "reconnect_backoff_max_ms": integer(0, 3_600_000),
    "socket_timeout_ms": integer(10, 300_000),
    "security_protocol": _word(*PROTOCOLS),
    "sasl_mechanisms": _word(*MECHANISMS),
    "sasl_username": ANY_TEXT,
    "sasl_password": ANY_TEXT,
    "ssl_ca_location": FILE,
    "ssl_certificate_location": FILE,
    "ssl_key_location": FILE,
    "message_max_bytes": integer(1000, 1_000_000_000),
    "compression_codec": _word(*CODECS),
    "compression_level": integer(-1, 12),
    "linger_ms": integer(0, 900_000),
    "batch_num_messages": integer(1, 1_000_000),
    "batch_size": integer(1, INT32_MAX),
    "queue_buffering_max_messages": integer(1, INT32_MAX),
    "queue_buffering_max_kbytes": integer(1, INT32_MAX),
    "acks": ACKS,
    "retries": integer(0, INT32_MAX),
    "enable_idempotence": YES_NO,
    "debug": ANY_TEXT,
    "group_id": ANY_TEXT,
    "auto_offset_reset": _word("earliest", "latest", "none"),
    "enable_auto_commit": YES_NO,
    "auto_commit_interval_ms": integer(0, 86_400_000),
    "session_timeout_ms": integer(1, 3_600_000),
    "max_poll_interval_ms": integer(1, 86_400_000),
    "in_flight_max": integer(1, 10_000_000),
    "flush_timeout": number(0.0, 3600.0),
    "ensure_topics": list_of(TOPIC_SPEC),
    "properties": PROPERTIES,
}
KEYS: tuple[Key, ...] = tuple(key for key in derive(KafkaConnection, KINDS) if key.name != "name")
SECTION = Section(
    name="kafka.NAME",
    help="A named connection to a Kafka cluster; needs the extra `clusternode[kafka]`.",
    keys=KEYS,
)
PATHS = ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location")


def read_connections(table: RawTable) -> dict[str, KafkaConnection]:
    """Read `[kafka.NAME]` tables; `[kafka] enabled = false` (res_kafka) leaves none.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    found: dict[str, KafkaConnection] = {}
    is_enabled = True
    for name in table.names():
        if name == "enabled":
            is_enabled = cast("bool", table.value(name, YES_NO))
            continue
        found[name] = _read_connection(name, table.table(name))
    return found if is_enabled else {}


def _read_connection(name: str, table: RawTable) -> KafkaConnection:
    try:
        NAME.read(name)
    except WrongValue:
        raise table.fail("", name, f"a name of {NAME.expected}") from None
    if table.has("type"):  # res_kafka writes `type = connection` into each
        table.value("type", choice("connection"))
    table.refuse_unknown([*(key.name for key in KEYS), "type"])
    values: dict[str, Any] = {
        key.name: table.value(key.name, key.kind) for key in KEYS if table.has(key.name)
    }
    for key in PATHS:
        if values.get(key):
            values[key] = str(table.directory / Path(values[key]))
    _spread_uri(table, values)
    connection = KafkaConnection(name=name, **values)
    _check_together(table, connection)
    return connection


def _spread_uri(table: RawTable, values: dict[str, Any]) -> None:
    """Let the parts of `uri` be what the keys of their own would have been."""
    if not values.get("uri"):
        return
    text = values["uri"].removeprefix("kafka:")
    try:
        uri: KafkaUri = parse_uri(text)
    except ConfigError as error:
        raise table.fail("uri", text.partition("?")[0], error.expected) from None
    if uri.key:
        raise table.fail("uri", uri.shown, "no key=callid; it has no effect on a connection")
    for key, value in (("brokers", uri.brokers), ("topic", uri.topic)):
        if key in values:
            raise table.fail(key, values[key], "either `uri` or this key, not both")
        values[key] = value
    values["properties"] = {**uri.properties, **values.get("properties", {})}


def _check_together(table: RawTable, connection: KafkaConnection) -> None:
    """Check what only several keys together say."""
    if connection.reconnect_backoff_max_ms < connection.reconnect_backoff_ms:
        raise table.fail(
            "reconnect_backoff_max_ms",
            connection.reconnect_backoff_max_ms,
            f"at least reconnect_backoff_ms ({connection.reconnect_backoff_ms})",
        )
    if connection.security_protocol.startswith("sasl_") and not (
        connection.sasl_mechanisms or "sasl.mechanisms" in connection.properties
    ):
        raise table.fail("sasl_mechanisms", "", f"one of {', '.join(MECHANISMS)}")
    if connection.enable_idempotence and connection.acks != -1:
        raise table.fail("acks", connection.acks, "-1, because enable_idempotence needs it")
    if bool(connection.ssl_certificate_location) != bool(connection.ssl_key_location):
        key = "ssl_key_location" if connection.ssl_certificate_location else PATHS[1]
        raise table.fail(key, "", "certificate and key, both or neither")
    if connection.in_flight_max > connection.queue_buffering_max_messages:
        raise table.fail(
            "in_flight_max",
            connection.in_flight_max,
            f"at most queue_buffering_max_messages ({connection.queue_buffering_max_messages})",
        )
