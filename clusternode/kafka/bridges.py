"""Bridges by configuration: a channel or events → a topic, a topic → a channel, without loops.

Two rules keep loops out: a message is relayed only while its `max_forwards` is above 0, and what a
bridge makes has one less; and a record carries in `clusternode.via` where it has been, and is
never brought back there. Specified in docs/kafka.md, "Bridges".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs

from clusternode.bus.interface import Bus
from clusternode.config.kinds import NAME, Kind, WrongValue, integer, text_kind
from clusternode.config.raw import RawTable
from clusternode.core.types import ResultCode
from clusternode.errors import ClusternodeError
from clusternode.kafka.connections import Connection
from clusternode.kafka.consumer import Handled
from clusternode.kafka.records import Record, Report
from clusternode.kafka.settings import TOPIC_NAME
from clusternode.kafka.uri import TOPIC
from clusternode.routes.contexts import IncomingEvent, IncomingMessage
from clusternode.routes.table import Kind as RouteKind
from clusternode.routes.table import RouteTable, make_handler

VIA = "clusternode.via"
"""Header: where the record has been, separated by commas."""
ORIGIN = "clusternode.origin"
MESSAGE_ID = "clusternode.message-id"
"""With the origin unique: by these two a reader knows the copies of several bridges as one."""
MAX_FORWARDS = "clusternode.max-forwards"
CONTENT_TYPE = "content-type"
DEFAULT_CONTENT_TYPE = "application/octet-stream"
BRIDGES_MAX = 1000
VIA_LENGTH_MAX = 4096
"""A longer way is a loop over many hops: such a record is not relayed."""
FORWARDS_MAX = 255

FIELD = re.compile(r"\{([a-z_]+)(?:\.([A-Za-z0-9_.-]+))?\}")
FIELDS = ("origin", "channel", "cluster", "node", "event", "message_id", "content_type")
TAKEN = (ResultCode.OK, ResultCode.QUEUED, ResultCode.NOT_FOUND)
"""404, nobody listens there, is an answer too: to try again would not help."""


def _check_template(text: str) -> object:
    rest = FIELD.sub("", text)
    if "{" in rest or "}" in rest:
        raise WrongValue
    for name, parameter in FIELD.findall(text):
        if (name != "param" or not parameter) and (name not in FIELDS or parameter):
            raise WrongValue(f"fields of {', '.join(FIELDS)} and param.NAME, not {name}")
    return text


TEMPLATE = text_kind("template", "text with {origin}, {channel} … in it", _check_template)


@attrs.frozen
class End:
    """One end of a bridge."""

    kind: str
    """channel, event or kafka."""
    name: str
    """Of the channel, the event (or a wildcard), or the topic."""
    where: str = ""
    """The cluster (empty: the first), or the connection."""

    def __str__(self) -> str:
        if self.kind == "kafka":
            return f"kafka:{self.where}/{self.name}"
        return f"{self.kind}:{self.name}" + (f"@{self.where}" if self.where else "")


def _read_end(text: str) -> object:
    kind, _, rest = text.partition(":")
    if kind == "kafka":
        connection, _, topic = rest.partition("/")
        NAME.read(connection)
        if not TOPIC.fullmatch(topic):
            raise WrongValue
        return End(kind, topic, connection)
    name, at, where = rest.partition("@")
    if kind not in ("channel", "event") or not name or (at and not where):
        raise WrongValue
    if kind == "channel":
        NAME.read(name)
    return End(kind, name, where)


END = text_kind(
    "string", "channel:NAME[@CLUSTER], event:NAME[@CLUSTER] or kafka:CONNECTION/TOPIC", _read_end
)


@attrs.frozen(kw_only=True)
class BridgeSettings:
    """`[[kafka_bridge]]`: what is relayed from where to where."""

    name: str
    """Of this bridge, in `kafka status`; default: bridge-NUMBER."""
    source: End
    target: End
    key: str = ""
    """The key of records: text with {origin}, {channel}, {cluster}, {node}, {event}, {message_id}, {content_type} and {param.NAME} in it; empty: none."""  # noqa: E501
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Headers of records: name → text as in `key`."""
    group: str = ""
    """The consumer group; empty: that of the connection, else clusternode-NAME."""
    retries: int = 5
    """How often a record that no member took is tried again."""
    dead_letter: str = ""
    """The topic for such records; empty: the partition stops."""
    content_type: str = DEFAULT_CONTENT_TYPE
    """Of messages made of records without a header content-type."""
    max_forwards: int = 0
    """Of messages made of records without a header: above 0 another bridge may relay them on."""


KINDS: Mapping[str, Kind] = {
    "name": NAME,
    "key": TEMPLATE,
    "group": NAME,
    "retries": integer(0, 1_000_000),
    "dead_letter": TOPIC_NAME,
    "content_type": text_kind("string", "a content type", lambda text: text),
    "max_forwards": integer(0, FORWARDS_MAX),
}


def read_bridges(
    tables: Sequence[RawTable], connections: Mapping[str, object]
) -> tuple[BridgeSettings, ...]:
    """Read `[[kafka_bridge]]` tables.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    found: dict[str, BridgeSettings] = {}
    for number, table in enumerate(tables, 1):
        bridge = _read_bridge(table, number, connections)
        if bridge.name in found or number > BRIDGES_MAX:
            expected = f"a name that no other bridge has, and at most {BRIDGES_MAX} of them"
            raise table.fail("name", bridge.name, expected)
        found[bridge.name] = bridge
    return tuple(found.values())


def _read_bridge(table: RawTable, number: int, connections: Mapping[str, object]) -> BridgeSettings:
    table.refuse_unknown([*KINDS, "from", "to", "headers"])
    for key in ("from", "to"):
        if not table.has(key):
            raise table.fail(key, None, END.expected)
    source = cast("End", table.value("from", END))
    target = cast("End", table.value("to", END))
    topics = [end for end in (source, target) if end.kind == "kafka"]
    if len(topics) != 1 or target.kind == "event":
        raise table.fail("to", str(target), "channel: or event: to kafka:, or kafka: to channel:")
    if topics[0].where not in connections:
        known = ", ".join(connections) or "none"
        key = "to" if topics[0] is target else "from"
        raise table.fail(key, str(topics[0]), f"a connection of [kafka.NAME]: {known}")
    values: dict[str, Any] = {"name": f"bridge-{number}"}
    values |= {key: table.value(key, kind) for key, kind in KINDS.items() if table.has(key)}
    if table.has("headers"):
        inner = table.table("headers")
        values["headers"] = {name: inner.value(name, TEMPLATE) for name in inner.names()}
    return BridgeSettings(source=source, target=target, **values)


@attrs.define(eq=False)
class Bridge:
    """One bridge at work."""

    settings: BridgeSettings
    find_connection: Callable[[str], Connection]
    buses: Callable[[], Mapping[str, Bus]]
    relayed: int = 0
    failed: int = 0
    looped: int = 0
    """What was not relayed, because it has been there or may not go further."""
    last_error: str = ""

    @property
    def connection(self) -> Connection:
        """The connection as it is now.

        Raises:
            NoSuchConnection: A reload took it away.
        """
        ends = (self.settings.source, self.settings.target)
        return self.find_connection(next(end.where for end in ends if end.kind == "kafka"))

    @property
    def group(self) -> str:
        own = self.settings
        return own.group or self.connection.settings.group_id or f"clusternode-{own.name}"

    def status(self) -> dict[str, Any]:
        own = self.settings
        return {
            "name": own.name,
            "source": str(own.source),
            "target": str(own.target),
            "relayed": self.relayed,
            "failed": self.failed,
            "looped": self.looped,
            "last_error": self.last_error,
        }

    def add_to(self, table: RouteTable) -> None:
        """Register what feeds a topic as an event route like any other."""
        source = self.settings.source
        via = source.where or None
        if source.kind == "channel":
            handler = make_handler(RouteKind.MESSAGE, source.name, self.take_message, via=via)
        elif source.kind == "event":
            handler = make_handler(RouteKind.EVENT, source.name, self.take_event, via=via)
        else:
            return
        handler.name = f"kafka_bridge {self.settings.name}"
        table.add(handler)

    def _failed(self, error: object) -> None:
        self.failed += 1
        self.last_error = str(error)

    # --- to a topic -----------------------------------------------------------------------------

    async def take_message(self, message: IncomingMessage) -> None:
        """Relay a message; it is handled, for its sender, when the broker has it.

        Raises:
            ClusternodeError: The broker has not got it; the sender is told 500.
        """
        if message.max_forwards < 1:
            self.looped += 1
            return
        fields = {
            "origin": message.origin,
            "channel": message.channel,
            "cluster": message.bus.name,
            "node": message.bus.node_id,
            "message_id": str(message.message_id),
            "content_type": message.content_type,
        }
        headers = [
            (CONTENT_TYPE, message.content_type),
            *self._headers(fields, {}),
            (ORIGIN, message.source),
            (MESSAGE_ID, str(message.message_id)),
            (MAX_FORWARDS, str(message.max_forwards - 1)),
            (VIA, f"channel:{message.channel}@{message.bus.name}"),
        ]
        key = _fill(self.settings.key, fields, {}) or None
        try:
            target = self.settings.target.name
            await self.connection.publish(target, message.body, key=key, headers=headers)
        except ClusternodeError as error:
            self._failed(error)
            raise
        self.relayed += 1

    def take_event(self, event: IncomingEvent) -> None:
        """Relay an event as a JSON-RPC 2.0 notification.

        Raises:
            ClusternodeError: Too much is in flight; the event is not relayed, and counted.
        """
        notification: dict[str, Any] = {"jsonrpc": "2.0", "method": event.name}
        if event.parameters:
            notification["params"] = event.parameters
        bus = event.bus
        fields = {"event": event.name, "cluster": bus.name, "node": bus.node_id}
        headers = [
            (CONTENT_TYPE, "application/json"),
            *self._headers(fields, event.parameters),
            (ORIGIN, bus.node_id),
            (MAX_FORWARDS, "0"),
            (VIA, f"event:{event.name}@{bus.name}"),
        ]
        key = _fill(self.settings.key, fields, event.parameters) or None
        value = json.dumps(notification, default=_plain)
        try:
            self.connection.send(
                self.settings.target.name, value, key=key, headers=headers, report=self._report
            )
        except ClusternodeError as error:
            self._failed(error)
            raise

    def _report(self, report: Report) -> None:
        if report.error is None:
            self.relayed += 1
        else:
            self._failed(report.error)

    def _headers(
        self, fields: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> list[tuple[str, str]]:
        templates = self.settings.headers.items()
        return [(name, _fill(template, fields, parameters)) for name, template in templates]

    # --- to a channel ---------------------------------------------------------------------------

    async def take_records(self, records: Sequence[Record], goes_on: Callable[[], bool]) -> Handled:
        """Relay records in order, until one fails."""
        count = 0
        for record in records:
            if count and not goes_on():
                break
            error = await self._relay(record)
            if error:
                self._failed(error)
                return Handled(count, error)
            count += 1
        return Handled(count)

    async def _relay(self, record: Record) -> str:
        """Send one record to every listener of the channel; return what went wrong."""
        target = self.settings.target
        buses = self.buses()
        bus = buses.get(target.where) if target.where else next(iter(buses.values()), None)
        if bus is None:
            return f"this agent is in no cluster {target.where!r}"
        via = _text(record.header(VIA))
        if f"channel:{target.name}@{bus.name}" in via.split(",") or len(via) > VIA_LENGTH_MAX:
            self.looped += 1
            return ""
        content_type = _text(record.header(CONTENT_TYPE)) or self.settings.content_type
        forwards = _text(record.header(MAX_FORWARDS)) or str(self.settings.max_forwards)
        max_forwards = int(forwards) if forwards.isascii() and forwards.isdigit() else 0
        body = record.value or b""
        options: dict[str, Any] = {
            "content_type": content_type,
            "max_forwards": min(max_forwards, FORWARDS_MAX),
        }
        try:
            own = bus.send(target.name, bus.node_id, body, **options)  # a broadcast leaves us out
            others = bus.broadcast(target.name, body, **options)
        except ClusternodeError as error:
            return str(error)
        results = {**await others, **await own}
        if not any(code in TAKEN for code in results.values()):
            codes = ", ".join(f"{node}: {int(code)}" for node, code in results.items())
            return f"no member took it: {codes}"
        self.relayed += 1
        return ""


def _fill(template: str, fields: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    def field(match: re.Match[str]) -> str:
        name, parameter = match[1], match[2]
        if not parameter:
            return fields.get(name, "")
        value = parameters.get(parameter, "")
        return value if isinstance(value, str) else json.dumps(value, default=_plain)

    return FIELD.sub(field, template)


def _plain(value: object) -> str:
    """Write what is no JSON value as text, so that nobody's event is lost for it."""
    return str(value)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
