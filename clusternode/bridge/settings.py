"""`[[bridge]]`: the keys of a rule, their checks, and the links that a rule is made of.

`[[kafka_bridge]]` is the older name of rules between events or channels and topics; it is read as
before. Specified in docs/one-bus-from-three.md, "Every key".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, cast

import attrs

from clusternode.bridge.bodies import BODIES, TEMPLATE, check_field, split_name
from clusternode.config.keys import derive
from clusternode.config.kinds import (
    INTEGER_MAX,
    NAME,
    Kind,
    WrongValue,
    choice,
    integer,
    number,
    text_kind,
)
from clusternode.config.raw import RawTable
from clusternode.core.types import Seconds
from clusternode.core.wire.codec import is_content_type
from clusternode.kafka.ends import (
    NAME_FIELD,
    SOURCE,
    TARGET,
    End,
    check_filled,
)
from clusternode.kafka.settings import TOPIC_NAME

SECTION: Final = "bridge"
OLD_SECTION: Final = "kafka_bridge"
RULES_MAX: Final = 1000
FORWARDS_MAX: Final = 255
RULE_NAME_LENGTH_MAX: Final = 48
"""So that the channel by which agents share a rule is a name of at most 64 letters."""
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

CAN_RELAY: Final[Mapping[str, Sequence[str]]] = {
    "channel": ("channel", "kafka", "event", "table", "contacts"),
    "request": ("request",),
    "event": ("channel", "kafka", "table"),
    "kafka": ("channel", "event", "table", "contacts"),
    "table": ("table", "channel", "kafka", "event"),
    "contacts": ("contacts", "channel", "kafka", "event"),
}
"""Kind of the source → kinds of targets."""


@attrs.frozen(kw_only=True)
class BodySettings:
    """What becomes of a message."""

    body: Literal["bytes", "json", "text"] = "bytes"
    """`bytes`: as they are; `json`: an object with cluster, origin, channel and the body; `text`: UTF-8, or what `template` says."""  # noqa: E501
    template: str = ""
    """The body as text, with {origin}, {channel}, {cluster}, {node}, {event}, {message_id}, {content_type}, {body}, {table}, {key}, {value}, {aor}, {param.NAME} and {json.NAME} in it."""  # noqa: E501
    content_type: str = ""
    """Of what is relayed; empty: as it was, or application/octet-stream where nothing says it."""
    max_forwards: int = 0
    """How often other bridges may relay on what this one relays: one less than it came with, or this if it is more."""  # noqa: E501
    key: str = ""
    """Text as in `template`: the key of records, or of a cell that is set in a table."""
    value: str = "1"
    """Text as in `template`: the value of a cell that is set in a table because of a message."""
    expires: int = 0
    """How many seconds a cell lives that comes without a lifetime; 0: for ever."""
    prefix: str = ""
    """Put before the keys of cells at the end `to`, and taken off on the way back."""
    aor_domain: str = ""
    """What addresses of record have behind an @ at the end `to` and not at the end `from`: put there, and taken off on the way back."""  # noqa: E501


@attrs.frozen(kw_only=True)
class TopicSettings:
    """How a topic is read."""

    group: str = ""
    """The consumer group; empty: that of the connection, else clusternode-NAME."""
    retries: int = 5
    """How often a record that nobody took is tried again."""
    dead_letter: str = ""
    """The topic for such records; empty: the partition stops."""


@attrs.frozen(kw_only=True)
class LimitSettings:
    """How much a rule relays."""

    rate: float = 0.0
    """Messages and requests a second; more are refused with 486, records wait; 0: no limit."""
    burst: int = 100
    """How many may come at once within `rate`."""
    in_flight_max: int = 1000
    """How many may wait for the far side; more are refused with 486."""
    timeout: Seconds = 10.0
    """How long the far side may take; then the sender is told 408."""


@attrs.frozen(kw_only=True)
class LoopSettings:
    """How a rule tells what it has seen, and which agent relays."""

    loop_window: Seconds = 30.0
    """How long what was relayed is remembered."""
    identity: Literal["origin", "content"] = "origin"
    """What makes two messages one: who sent it first (`origin`), or also what it says, when it comes back from where it was put (`content`)."""  # noqa: E501
    agents: Literal["one", "every"] = "one"
    """Of several agents with this rule: `one` relays, chosen by rank, or `every` one does."""
    site: str = ""
    """The place whose gateways are meant, where several places have gateways of one name."""


def _check_rule_name(text: str) -> object:
    if len(text) > RULE_NAME_LENGTH_MAX:
        raise WrongValue
    return NAME.read(text)


def _check_content_type(text: str) -> object:
    if not is_content_type(text):
        raise WrongValue
    return text


RULE_NAME = text_kind(
    "string", f"1 to {RULE_NAME_LENGTH_MAX} of A-Z a-z 0-9 . _ : -", _check_rule_name
)
ANY_TEXT = text_kind("string", "a string", lambda text: text)
KINDS: Final[Mapping[type[attrs.AttrsInstance], Mapping[str, Kind]]] = {
    BodySettings: {
        "body": choice(*BODIES),
        "template": TEMPLATE,
        "content_type": text_kind("string", "a content type", _check_content_type),
        "max_forwards": integer(0, FORWARDS_MAX),
        "key": TEMPLATE,
        "value": TEMPLATE,
        "expires": integer(0, 2**31 - 1),
        "prefix": ANY_TEXT,
        "aor_domain": NAME,
    },
    TopicSettings: {
        "group": NAME,
        "retries": integer(0, 1_000_000),
        "dead_letter": TOPIC_NAME,
    },
    LimitSettings: {
        "rate": number(0.0, float(INTEGER_MAX), unit="messages a second"),
        "burst": integer(1, 1_000_000),
        "in_flight_max": integer(1, 100_000),
        "timeout": number(0.05, 3600.0),
    },
    LoopSettings: {
        "loop_window": number(0.0, 86400.0),
        "identity": choice("origin", "content"),
        "agents": choice("one", "every"),
        "site": NAME,
    },
}
KEYS = tuple(key for cls, kinds in KINDS.items() for key in derive(cls, kinds))
"""The keys that are one value; for the documentation."""
KEY_NAMES: Final = tuple(key.name for key in KEYS)
OTHER_NAMES: Final = ("name", "from", "to", "direction", "filters", "names", "headers")
OLD_NAMES: Final = (
    *("name", "from", "to", "key", "headers", "group", "retries", "dead_letter"),
    *("content_type", "max_forwards"),
)


@attrs.frozen
class Link:
    """One way from one end to another."""

    source: End
    target: End
    is_back: bool = False
    """Whether it is the way back of a rule with direction = "both"."""

    def __str__(self) -> str:
        return f"{self.source} → {self.target}"


@attrs.frozen(kw_only=True)
class Rule:
    """One `[[bridge]]`."""

    name: str
    """Agents with a rule of the same name share its work."""
    links: tuple[Link, ...]
    filters: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """Field → wildcards, one of which its text must match."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Header of records → text as in `template`."""
    bodies: BodySettings = attrs.field(factory=BodySettings)
    topics: TopicSettings = attrs.field(factory=TopicSettings)
    limits: LimitSettings = attrs.field(factory=LimitSettings)
    loops: LoopSettings = attrs.field(factory=LoopSettings)
    is_old: bool = False
    """Whether it is a `[[kafka_bridge]]`."""

    @property
    def channel(self) -> str:
        """The channel on which agents that have this rule listen, to be ranked."""
        return f"bridge:{self.name}"

    @property
    def is_ranked(self) -> bool:
        """Whether one agent is chosen; a topic is shared by its consumer group instead."""
        return self.loops.agents == "one" and any(
            link.source.kind != "kafka" for link in self.links
        )

    @property
    def has_topics(self) -> bool:
        return any("kafka" in (link.source.kind, link.target.kind) for link in self.links)

    @property
    def buses(self) -> frozenset[str]:
        """The clusters and gateways of its ends."""
        ends = [end for link in self.links for end in (link.source, link.target)]
        return frozenset(end.where for end in ends if end.kind != "kafka" and end.where)

    def place(self, end: End) -> str:
        """Return what an end is called in paths: the same on every agent."""
        return f"{end}/{self.loops.site}" if self.loops.site else str(end)


def read_rules(plugins: RawTable, connections: Mapping[str, object] | None) -> tuple[Rule, ...]:
    """Read `[[bridge]]` and `[[kafka_bridge]]`.

    Without connections (None: Kafka is switched off) the rules from and to topics are left out.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    found: dict[str, Rule] = {}
    for section in (OLD_SECTION, SECTION):
        for number_, table in enumerate(plugins.tables(section), 1):
            old = section == OLD_SECTION
            rule = _read_rule(table, f"bridge-{number_}" if old else "", connections)
            if connections is None and rule.has_topics:
                continue
            if rule.name in found or len(found) >= RULES_MAX:
                expected = f"a name that no other bridge has, and at most {RULES_MAX} of them"
                raise table.fail("name", rule.name, expected)
            found[rule.name] = rule
    return tuple(found.values())


def _read_rule(table: RawTable, old_name: str, connections: Mapping[str, object] | None) -> Rule:
    table.refuse_unknown(OLD_NAMES if old_name else [*OTHER_NAMES, *KEY_NAMES])
    name = str(table.value("name", RULE_NAME)) if table.has("name") else old_name
    if not name:
        raise table.fail("name", None, f"{RULE_NAME.expected}: agents with this rule share it")
    for key in ("from", "to"):
        if not table.has(key):
            raise table.fail(key, None, TARGET.expected)
    parts = {cls: _read_part(table, cls) for cls in KINDS}
    loops = cast("LoopSettings", parts[LoopSettings])
    links = tuple(_read_links(table, connections))
    sources = {link.source.kind for link in links}
    if not table.has("agents") and (old_name or sources == {"event"}):
        loops = attrs.evolve(loops, agents="every")
    if not old_name:
        _refuse_idle(table, links)
    rule = Rule(
        name=name,
        links=links,
        filters=_read_filters(table),
        headers=_texts(table, "headers", TEMPLATE),
        bodies=cast("BodySettings", parts[BodySettings]),
        topics=cast("TopicSettings", parts[TopicSettings]),
        limits=cast("LimitSettings", parts[LimitSettings]),
        loops=loops,
        is_old=bool(old_name),
    )
    _check(table, rule)
    return rule


def _read_part(table: RawTable, cls: type[attrs.AttrsInstance]) -> attrs.AttrsInstance:
    kinds = KINDS[cls]
    values: dict[str, Any] = {
        name: table.value(name, kind) for name, kind in kinds.items() if table.has(name)
    }
    return cls(**values)


def _texts(table: RawTable, name: str, kind: Kind) -> dict[str, str]:
    if not table.has(name):
        return {}
    inner = table.table(name)
    return {key: str(inner.value(key, kind)) for key in inner.names()}


def _read_links(table: RawTable, connections: Mapping[str, object] | None) -> Iterator[Link]:
    """Make a link for each name of `from`, and back."""
    sources = cast("tuple[End, ...]", table.value("from", SOURCE))
    template = cast("End", table.value("to", TARGET))
    names = _texts(table, "names", ANY_TEXT)
    both = table.has("direction") and table.value("direction", choice("forward", "both")) == "both"
    for name in names:
        if name not in [source.name for source in sources]:
            raise table.fail("names", name, "names of from")
    if NAME_FIELD not in template.name and (names or (both and len(sources) > 1)):
        raise table.fail("to", str(template), "{name} in it, for each name of from")
    for source in sources:
        target = template.fill(names.get(source.name, source.name))
        try:
            check_filled(target)
        except WrongValue as error:
            raise table.fail("to", str(target), str(error) or TARGET.expected) from None
        for link in (Link(source, target), Link(target, source, True))[: 2 if both else 1]:
            _check_link(table, link, connections)
            yield link


def _check_link(table: RawTable, link: Link, connections: Mapping[str, object] | None) -> None:
    key = "from" if link.is_back else "to"
    kinds = CAN_RELAY[link.source.kind]
    if link.target.kind not in kinds:
        expected = f"for what comes from {link.source.kind}: one of {', '.join(kinds)}:"
        raise table.fail(key, str(link.target), expected)
    if link.source == link.target:
        raise table.fail(key, str(link.target), "another end than from")
    if "*" in link.target.name or "?" in link.target.name:
        raise table.fail(key, str(link.target), "one event, no wildcard")
    if connections is None:
        return
    if link.target.kind == "kafka" and link.target.where not in connections:
        raise _unknown(table, key, link.target, connections)
    if link.source.kind == "kafka" and link.source.where not in connections:
        raise _unknown(table, "from", link.source, connections)


def _unknown(table: RawTable, key: str, end: End, connections: Mapping[str, object]) -> Exception:
    known = ", ".join(connections) or "none"
    return table.fail(key, str(end), f"a connection of [kafka.NAME]: {known}")


def _read_filters(table: RawTable) -> dict[str, tuple[str, ...]]:
    if not table.has("filters"):
        return {}
    inner = table.table("filters")
    found = {}
    for name in inner.names():
        try:
            check_field(*split_name(name))
        except WrongValue as error:
            raise inner.fail(name, inner.values[name], str(error)) from None
        value = inner.values[name]
        wildcards = [value] if isinstance(value, str) else value
        if not isinstance(wildcards, list) or not all(isinstance(one, str) for one in wildcards):
            raise inner.fail(name, value, "a text with wildcards, or a list of them")
        found[name] = tuple(wildcards)
    return found


def _check(table: RawTable, rule: Rule) -> None:
    """See whether the parts of a rule fit together."""
    bodies = rule.bodies
    if bodies.template and bodies.body != "text":
        raise table.fail("template", bodies.template, 'body = "text" beside it')
    for link in rule.links:
        source, target = link.source, link.target
        if target.kind == "table" and source.kind == "event" and not bodies.key:
            raise table.fail("key", None, "the key of the cell, such as {param.key}")


ONLY_TO: Final[Mapping[str, Sequence[str]]] = {
    "key": ("kafka", "table"),
    "headers": ("kafka",),
    "value": ("table",),
    "expires": ("table",),
    "prefix": ("table",),
    "aor_domain": ("contacts",),
}
"""Key → the kinds of targets for which it means anything."""
ONLY_FROM_TOPICS: Final = ("group", "retries", "dead_letter")


def _refuse_idle(table: RawTable, links: Sequence[Link]) -> None:
    """See whether every key means something for a rule: one without effect is a mistake.

    Raises:
        ConfigError: One does not.
    """
    targets = {link.target.kind for link in links}
    for key, kinds in ONLY_TO.items():
        if table.has(key) and not targets.intersection(kinds):
            expected = f"only in a rule to {' or '.join(kinds)}"
            raise table.fail(key, table.values[key], expected)
    for key in ONLY_FROM_TOPICS:
        if table.has(key) and all(link.source.kind != "kafka" for link in links):
            raise table.fail(key, table.values[key], "only in a rule from kafka")
