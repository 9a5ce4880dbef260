"""The engine of a link: what it relays, in which words, and that nothing goes in a circle."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import attrs
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from clusternode.bridge.bodies import Parcel
from clusternode.bridge.changes import CellChange, ContactChange
from clusternode.bridge.engine import Arrival, Counters, LinkEngine, Outgoing, Refusal
from clusternode.bridge.marks import Mark, identity_of, place_of
from clusternode.bridge.memory import Memory, TokenBucket
from clusternode.bridge.service import read_bridges
from clusternode.bridge.settings import Link, Rule
from clusternode.config.raw import RawTable
from clusternode.errors import ConfigError

TABLES: dict[str, Any] = {"kafka": {"k": {}}, "gateway": {"kamailio": {}, "opensips": {}}}
PLAIN = {"name": "r", "from": "channel:fraud@kamailio", "to": "channel:bans@m1"}


def rules_of(*bridges: dict[str, Any]) -> tuple[Rule, ...]:
    return read_bridges(RawTable((), {**TABLES, "bridge": list(bridges)}), ("m1", "m2"))


def engine_of(
    changes: dict[str, Any] | None = None, number: int = 0, memory: Memory | None = None
) -> LinkEngine:
    (rule,) = rules_of({**PLAIN, **(changes or {})})
    bucket = TokenBucket(rule.limits.rate, rule.limits.burst)
    return LinkEngine(
        rule, rule.links[number], Memory() if memory is None else memory, bucket, Counters()
    )


def arrival(body: bytes | str = b"192.0.2.66", identity: str = "1", **more: Any) -> Arrival:
    data = body.encode() if isinstance(body, str) else body
    fields = {"origin": "10.0.0.1:5060", "channel": "fraud", "cluster": "kamailio"}
    parcel = Parcel(data, "text/plain", fields, more.pop("parameters", {}))
    return Arrival(parcel=parcel, identity=identity_of(identity), **more)


def relayed(engine: LinkEngine, thing: Arrival) -> Outgoing:
    decided = engine.take(0.0, thing)
    assert isinstance(decided, Outgoing), decided
    return decided


# --- bodies ---------------------------------------------------------------------------------------


def test_a_body_goes_as_it_is_with_a_mark_of_where_it_has_been():
    out = relayed(engine_of(), arrival(b"\xff\0"))

    assert (out.body, out.content_type, out.max_forwards) == (b"\xff\0", "text/plain", 0)
    places = [place_of("channel:fraud@kamailio"), place_of("channel:bans@m1")]
    assert out.mark == Mark(identity_of("1"), tuple(places))


def test_a_body_as_json_says_where_it_comes_from():
    engine = engine_of({"body": "json"})

    text, json_, raw = (
        json.loads(relayed(engine, arrival(body, body.hex())).body)
        for body in (b"hello", b'{"a": 1}', b"\xff")
    )

    assert text == {
        "cluster": "kamailio",
        "origin": "10.0.0.1:5060",
        "channel": "fraud",
        "content_type": "text/plain",
        "text": "hello",
    }
    assert (json_["json"], raw["base64"]) == ({"a": 1}, "/w==")


def test_a_body_as_text_is_made_by_a_template():
    engine = engine_of(
        {"body": "text", "template": "{json.ip} by {origin} {json.no.thing}{param.x}"}
    )

    out = relayed(engine, arrival('{"ip": "192.0.2.66"}'))

    assert out.body == b"192.0.2.66 by 10.0.0.1:5060 "


def test_an_event_becomes_a_notification_and_a_message_an_event():
    to_topic = engine_of({"from": "event:E_CALL", "to": "kafka:k/calls", "key": "{param.id}"})
    to_event = engine_of({"to": "event:E_FRAUD"})

    topic = relayed(to_topic, arrival(b"", event="E_CALL", parameters={"id": "c1"}))
    event = relayed(to_event, arrival('{"ip": "192.0.2.66"}'))
    plain = relayed(to_event, arrival("text", "2"))

    assert json.loads(topic.body)["params"] == {"id": "c1"}
    assert topic.key == "c1"
    assert event.parameters == {"origin": "10.0.0.1:5060", "ip": "192.0.2.66"}
    assert plain.parameters["body"] == "text"


def test_a_message_sets_a_cell_of_a_table():
    engine = engine_of(
        {"to": "table:local@opensips", "key": "ban:{body}", "value": "{origin}", "expires": 60}
    )

    out = relayed(engine, arrival())

    assert out.change == CellChange("set", "local", "ban:192.0.2.66", "10.0.0.1:5060", 60)


def test_a_prefix_is_put_before_keys_and_taken_off_on_the_way_back():
    rule: dict[str, Any] = {
        "from": "table:ban@kamailio", "to": "table:local@opensips",
        "direction": "both", "prefix": "ban:",
    }  # fmt: skip
    there, back = engine_of(rule), engine_of(rule, 1)

    out = relayed(there, arrival(change=CellChange("set", "ban", "x", 1)))
    home = relayed(back, arrival(change=CellChange("delete", "local", "ban:x")))
    other = back.take(0.0, arrival("", "2", change=CellChange("delete", "local", "y")))

    assert out.change == CellChange("set", "local", "ban:x", 1)
    assert home.change == CellChange("delete", "ban", "x")
    assert other is Refusal.UNREADABLE


def test_changes_travel_as_json_where_nobody_has_tables():
    out = engine_of({"from": "contacts:location@kamailio", "to": "kafka:k/users"})
    back = engine_of({"from": "kafka:k/users", "to": "contacts:users@opensips"})
    change = ContactChange(action="update", aor="alice", contact="sip:alice@192.0.2.1")

    there = relayed(out, arrival(change=change))
    again = relayed(back, arrival(there.body))
    nonsense = back.take(0.0, arrival("nonsense", "2"))

    assert again.change == attrs.evolve(change, domain="users")
    assert nonsense is Refusal.UNREADABLE


@pytest.mark.parametrize("depth", [65, 989, 100_000])
def test_json_that_is_nested_too_deep_is_text(depth):
    body = '{"a":' + "[" * depth + "]" * depth + "}"
    as_json, template, event = (
        relayed(engine_of(changes), arrival(body))
        for changes in (
            {"body": "json"},
            {"body": "text", "template": "{json.a}"},
            {"to": "event:E_FRAUD"},
        )
    )

    assert json.loads(as_json.body)["text"] == body
    assert template.body == b""
    assert event.parameters["body"] == body
    filtered = engine_of({"filters": {"json.a": "*"}}).take(0.0, arrival(body))
    assert filtered is Refusal.FILTERED


def test_json_that_is_no_unicode_can_still_be_said_everywhere():
    engine = engine_of({"to": "table:c1@opensips", "key": "ban:{json.k}", "value": "{json.k}"})

    out = relayed(engine, arrival('{"k": "\\ud800"}'))

    assert out.change == CellChange("set", "c1", "ban:?", "?")


def test_a_domain_is_put_behind_users_and_taken_off_on_the_way_back():
    rule = {
        "from": "contacts:location@kamailio",
        "to": "contacts:location@opensips",
        "direction": "both",
        "aor_domain": "example.org",
    }
    there, back = engine_of(rule), engine_of(rule, 1)
    alice = ContactChange(action="update", aor="alice", contact="sip:alice@192.0.2.1")

    out = relayed(there, arrival(change=alice))
    assert isinstance(out.change, ContactChange)
    assert out.change.aor == "alice@example.org"
    assert relayed(back, arrival(change=out.change)).change == alice
    assert back.take(0.0, arrival("", "2", change=alice)) is Refusal.UNREADABLE


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ({"origin": "10.0.0.*"}, True),
        ({"origin": ["10.1.*", "*:5060"], "channel": "fraud"}, True),
        ({"json.score": "9?"}, True),
        ({"json.list.1": "b"}, True),
        ({"json.deep.er": "*"}, False),
        ({"content_type": "application/*"}, False),
        ({"param.x": "*"}, False),
    ],
)
def test_filters_look_at_fields_parameters_and_json(filters, fits):
    decided = engine_of({"filters": filters}).take(
        0.0, arrival('{"score": 95, "list": ["a", "b"]}')
    )

    assert isinstance(decided, Outgoing) is fits


def test_what_may_go_no_further_or_has_been_there_is_not_relayed():
    engine = engine_of()
    been = Mark(identity_of("2"), (place_of("channel:bans@m1"),))
    tired = Mark(identity_of("3"), tuple(place_of(str(number)) for number in range(8)))

    assert engine.take(0.0, arrival(max_forwards=0)) is Refusal.LOOPED
    assert engine.take(0.0, arrival(mark=been)) is Refusal.LOOPED
    assert engine.take(0.0, arrival(mark=tired)) is Refusal.LOOPED
    assert engine.take(0.0, arrival(is_of_an_agent=True)) is Refusal.LOOPED


def test_the_same_message_is_relayed_once_in_a_window_and_again_when_nobody_took_it():
    engine = engine_of({"loop_window": 10})

    first = relayed(engine, arrival())
    assert engine.take(0.0, arrival()) is Refusal.BUSY
    engine.ended(0.0, first, is_taken=False)
    second = relayed(engine, arrival())
    engine.ended(0.0, second, is_taken=True)

    assert engine.take(10.0, arrival()) is Refusal.REPEATED
    assert isinstance(engine.take(10.1, arrival()), Outgoing)
    assert engine.counters == Counters(relayed=1, failed=1, busy=1, repeated=1, in_flight=1)


def test_by_content_only_what_comes_back_from_where_it_was_put_is_a_loop():
    memory = Memory()
    options: dict[str, Any] = {"direction": "both", "identity": "content"}
    there, back = engine_of(options, 0, memory), engine_of(options, 1, memory)

    relayed(there, arrival("x", "1"))
    relayed(there, arrival("x", "2"))  # equal, and no loop

    assert back.take(0.0, arrival("x", "3")) is Refusal.LOOPED
    assert isinstance(back.take(0.0, arrival("y", "4")), Outgoing)
    assert isinstance(back.take(30.1, arrival("x", "5")), Outgoing)


def test_beyond_the_rate_and_beyond_what_may_wait_it_is_refused():
    limited = engine_of({"rate": 2, "burst": 2})
    narrow = engine_of({"in_flight_max": 1})

    taken = [limited.take(0.0, arrival(identity=str(number))) for number in range(3)]
    assert [isinstance(one, Outgoing) for one in taken] == [True, True, False]
    assert taken[2] is Refusal.LIMITED
    assert limited.delay(0.0) == 0.5
    assert isinstance(limited.take(0.5, arrival(identity="4")), Outgoing)
    relayed(narrow, arrival())
    assert narrow.take(0.0, arrival(identity="2")) is Refusal.BUSY


def test_a_content_type_that_leaves_no_room_for_the_mark_is_refused():
    parcel = Parcel(b"", "x" * 128)

    decided = engine_of().take(0.0, Arrival(parcel=parcel, identity=identity_of(1)))

    assert decided is Refusal.UNREADABLE


# --- no circle, for any rules that are accepted ---------------------------------------------------

ENDS = (
    *("channel:a@m1", "channel:b@m1", "channel:a@m2"),
    *("channel:a@kamailio", "channel:generic@opensips", "kafka:k/t"),
)
UNMARKED = "channel:generic@opensips"
RELAYS_MAX = 2000
"""More than there are ways through as many ends without being anywhere twice."""


@attrs.frozen
class Letter:
    """A message on an end: who put it there, and what came with it."""

    end: str
    sender: int | None
    mark: Mark | None
    number: int


@attrs.define
class Fleet:
    """Agents with the same rules around ends that all of them hear."""

    engines: list[list[LinkEngine]]
    is_parted: bool
    """Whether the agents do not see each other, so that each takes itself for the chosen one."""
    reached: set[str] = attrs.Factory(set)
    relays: int = 0

    def send(self, end: str) -> None:
        letters = deque([Letter(end, None, None, 0)])
        while letters:
            assert self.relays <= RELAYS_MAX, "round and round"
            letter = letters.popleft()
            self.reached.add(letter.end)
            for agent, engines in enumerate(self.engines):
                if not self._hears(agent, letter):
                    continue
                for engine in engines:
                    if str(engine.link.source) == letter.end:
                        letters += self._relay(agent, engine, letter)

    def _hears(self, agent: int, letter: Letter) -> bool:
        if letter.end.startswith("kafka:"):
            return agent == 0  # one of the group
        is_own = letter.sender == agent and not letter.end.endswith(("@m1", "@m2"))
        return not is_own and (self.is_parted or agent == 0 or letter.sender == 0)

    def _relay(self, agent: int, engine: LinkEngine, letter: Letter) -> list[Letter]:
        mark = None if letter.end == UNMARKED else letter.mark
        thing = Arrival(
            parcel=Parcel(b"x", "text/plain"),
            identity=identity_of(letter.sender, letter.number),
            mark=mark,
            max_forwards=255,
            is_of_an_agent=letter.end == UNMARKED and letter.sender is not None,
        )
        decided = engine.take(0.0, thing)
        if not isinstance(decided, Outgoing):
            return []
        engine.ended(0.0, decided, is_taken=True)
        self.relays += 1
        return [Letter(str(engine.link.target), agent, decided.mark, self.relays)]


def reachable(links: list[Link], start: str) -> set[str]:
    """Return where rules lead, by way of our own clusters and topics."""
    found, waiting = {start}, [start]
    while waiting:
        end = waiting.pop()
        if end != start and not end.endswith(("@m1", "@m2", "/t")):
            continue  # an agent does not hear what it says itself on a foreign bus
        for link in links:
            if str(link.source) == end and str(link.target) not in found:
                found.add(str(link.target))
                waiting.append(str(link.target))
    return found


@st.composite
def bridges(draw: st.DrawFn) -> list[dict[str, Any]]:
    pairs = draw(
        st.lists(st.lists(st.sampled_from(ENDS), min_size=2, max_size=2, unique=True), max_size=7)
    )
    return [
        {
            "name": f"r{number}",
            "from": pair[0],
            "to": pair[1],
            "direction": draw(st.sampled_from(["forward", "both"])),
            **({"filters": {"content_type": "*"}} if draw(st.booleans()) else {}),
        }
        for number, pair in enumerate(pairs)
    ]


def accepted(tables: list[dict[str, Any]]) -> tuple[Rule, ...]:
    try:
        return rules_of(*tables)
    except ConfigError:
        reject()


@settings(max_examples=150)
@given(bridges(), st.sampled_from(ENDS), st.integers(1, 3), st.booleans())
def test_a_message_goes_where_the_rules_say_and_never_round_and_round(
    tables, start, agents, is_parted
):
    rules = accepted(tables)
    fleet = Fleet([engines_of(rules) for _ in range(agents)], is_parted)

    fleet.send(start)

    links = [link for rule in rules for link in rule.links]
    assert fleet.relays <= agents * len(links)
    assert fleet.reached >= reachable(links, start)


@settings(max_examples=50)
@given(bridges(), st.sampled_from(ENDS))
def test_the_mark_alone_ends_every_circle(tables, start):
    rules = accepted([{**table, "loop_window": 0} for table in tables])
    fleet = Fleet([engines_of(rules)], is_parted=False)

    fleet.send(start)

    assert fleet.reached >= reachable([link for rule in rules for link in rule.links], start)


def engines_of(rules: tuple[Rule, ...]) -> list[LinkEngine]:
    memory = Memory()
    return [
        LinkEngine(rule, link, memory, TokenBucket(0, 1), Counters())
        for rule in rules
        for link in rule.links
    ]
