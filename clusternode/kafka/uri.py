"""`brokers/topic?g.name=value&t.name=value`: event_kafka's event socket.

What the original only logs is refused here: an unknown prefix, a property that librdkafka does
not know, a `key=` other than `callid`. Meaning: OpenSIPS event_kafka README 1.1 and 1.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from clusternode.errors import ConfigError

TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
"""What Kafka allows (org.apache.kafka.common.internals.Topic)."""
TOPIC_EXPECTED = "a topic of 1 to 249 of the characters A-Z a-z 0-9 . _ -"
DEFAULT_PORT = 9092
PORT_MAX = 65535
BROKERS_MAX = 256

# CONFIGURATION.md of librdkafka, "Topic configuration properties".
TOPIC_PROPERTIES = frozenset(
    {
        "acks",
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "compression.codec",
        "compression.level",
        "compression.type",
        "consume.callback.max.messages",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "message.timeout.ms",
        "offset.store.method",
        "offset.store.path",
        "offset.store.sync.interval.ms",
        "partitioner",
        "produce.offset.report",
        "queuing.strategy",
        "request.required.acks",
        "request.timeout.ms",
    }
)
RESERVED_PROPERTIES = frozenset({"bootstrap.servers", "metadata.broker.list"})
"""What the URI, or `brokers`, says in its own place."""
SECRET = re.compile(r"password|secret|\.pem$|sasl\.oauthbearer\.config|token")
MASK = "***"


@attrs.frozen
class KafkaUri:
    """A URI, read."""

    brokers: str
    """As librdkafka wants them: host:port,host:port."""
    topic: str
    properties: Mapping[str, str]
    """Names as librdkafka has them, without `g.` and `t.`."""
    key: str = ""
    """`callid`: the record's key is the Call-ID parameter of the event."""

    @property
    def shown(self) -> str:
        """Brokers and topic: properties may be secrets."""
        return f"{self.brokers}/{self.topic}"


def parse_uri(text: str) -> KafkaUri:
    """Read `brokers/topic[?properties]`.

    Raises:
        ConfigError: Says what was expected; never shows the properties.
    """
    socket, question, query = text.partition("?")
    brokers, slash, topic = socket.partition("/")

    def wrong(expected: str) -> ConfigError:
        return ConfigError("to", f"kafka:{socket}", expected)

    if not slash or not topic:
        raise wrong("kafka:HOST:PORT[,HOST:PORT…]/TOPIC[?PROPERTIES], with a topic")
    if not TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise wrong(TOPIC_EXPECTED)
    if question and not query:
        raise wrong("properties after the `?`, as g.linger.ms=100&t.message.timeout.ms=1000")
    try:
        checked = parse_brokers(brokers)
    except ValueError as error:
        raise wrong(str(error)) from None
    properties: dict[str, str] = {}
    key = ""
    for part in query.split("&") if query else ():
        name, separator, value = part.partition("=")
        if not separator or not name or not value:
            shown = name if SECRET.search(name) is None else MASK
            raise wrong(f"NAME=VALUE between `&`, not {shown!r}")
        if "=" in value:
            raise wrong(f"{name}: one `=`; a value cannot hold `=` or `&`")
        if name == "key":
            if value != "callid":
                raise wrong(f"key=callid, not key={value}")
            key = value
            continue
        try:
            properties[read_property_name(name)] = value
        except ValueError as error:
            raise wrong(str(error)) from None
    return KafkaUri(checked, topic, properties, key)


def read_property_name(name: str) -> str:
    """Return librdkafka's name of `g.NAME` or `t.NAME`.

    Raises:
        ValueError: Says what was expected instead.
    """
    prefix, _, own = name.partition(".")
    if prefix not in ("g", "t") or not own:
        raise ValueError(f"g.NAME for a global property or t.NAME for one of the topic, not {name}")
    if own in RESERVED_PROPERTIES:
        raise ValueError(f"the brokers in their own place, not as the property {own}")
    if prefix == "t" and own not in TOPIC_PROPERTIES:
        raise ValueError(f"a property of topics after `t.`; perhaps g.{own}")
    return own


def parse_brokers(text: str) -> str:
    """Read `host:port,host:port`; a missing port is 9092. IPv6 in brackets.

    Raises:
        ValueError: Says what was expected.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(parts) > BROKERS_MAX:
        raise ValueError(f"brokers as HOST:PORT, separated by commas, at most {BROKERS_MAX}")
    return ",".join(map(_broker, parts))


def _broker(text: str) -> str:
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"an IPv6 address as [ADDRESS]:PORT, not {text!r}")
        port = rest[1:]
    elif ":" in text:
        host, _, port = text.rpartition(":")
    if not host or not host.isascii() or not host.isprintable() or " " in host:
        raise ValueError(f"a broker as HOST:PORT, not {text!r}")
    if ":" in host and not host.startswith("["):
        raise ValueError(f"an IPv6 address in brackets, not {text!r}")
    if not port and ":" not in text.rpartition("]")[2]:
        return f"{host}:{DEFAULT_PORT}"
    if not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= PORT_MAX:
        raise ValueError(f"a port from 1 to {PORT_MAX} in {text!r}")
    return f"{host}:{int(port)}"


def masked(properties: Mapping[str, object]) -> dict[str, object]:
    """Return properties with what is secret as `***`."""
    return {
        name: MASK if SECRET.search(name) is not None and value != "" else value
        for name, value in properties.items()
    }


def read_topics(topics: str | Iterable[str]) -> tuple[str, ...]:
    """Return topics of a list, or of a text with commas (res_kafka); `^…` is a regular expression.

    Raises:
        ValueError: Says what was expected.
    """
    listed = topics.split(",") if isinstance(topics, str) else list(topics)
    names = tuple(dict.fromkeys(name.strip() for name in listed))
    if not names or not all(names):
        raise ValueError("at least one topic, separated by commas")
    for name in names:
        if name.startswith("^"):
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(f"a regular expression after `^`, not {name!r}: {error}") from None
        elif not TOPIC.fullmatch(name):
            raise ValueError(f"{TOPIC_EXPECTED}, not {name!r}")
    return names
