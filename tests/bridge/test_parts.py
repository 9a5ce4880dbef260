"""Marks, memory, what is held by agents that stand by, and what the far side says as a whole."""

from __future__ import annotations

import json
import tracemalloc

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.bridge.marks import (
    PARAMETER,
    PATH_MAX,
    Mark,
    identity_of,
    parse_untrusted,
    place_of,
    split_untrusted,
)
from clusternode.bridge.memory import Memory, TokenBucket
from clusternode.bridge.records import arrival_of
from clusternode.bridge.running import RunningRule
from clusternode.bridge.service import BridgeService, read_bridges
from clusternode.bridge.standby import Held, Notice, parse_notice_untrusted
from clusternode.bridge.verdicts import combine, verdict
from clusternode.config.raw import RawTable
from clusternode.core.types import ChannelName, ResultCode
from clusternode.core.wire.codec import is_content_type
from clusternode.errors import RemoteProtocolError
from clusternode.kafka.records import Record
from clusternode.kafka.service import KafkaService, KafkaSettings
from tests.fakes.bus import member

MARKS = st.builds(
    lambda identity, ends: Mark(identity_of(identity), tuple(map(place_of, ends))),
    st.text(),
    st.lists(st.text(), max_size=PATH_MAX, unique=True),
)


@given(MARKS, st.sampled_from(["", "text/plain", "text/plain; charset=utf-8", "a;bridged=x"]))
def test_a_mark_travels_in_a_content_type_and_leaves_it_as_it_was(mark, content_type):
    marked = mark.on(content_type)

    assert marked is not None
    assert is_content_type(marked)
    assert split_untrusted(marked) == (content_type, mark)
    assert parse_untrusted(mark.text) == mark


@given(st.text(max_size=150))
def test_what_is_no_mark_is_left_where_it_is(content_type):
    plain, mark = split_untrusted(content_type)

    assert mark is not None or plain == content_type


def test_what_is_remembered_is_forgotten_after_its_window_and_beyond_the_bound():
    memory = Memory(size_max=2)
    for now, name in enumerate("abc"):
        memory.remember(float(now), (name,))

    assert [memory.knows(2.0, (name,), 1.0) for name in "abc"] == [False, True, True]
    assert not memory.knows(2.1, ("b",), 1.0)
    assert (len(memory), memory.forgotten) == (2, 1)
    memory.purge(3.5, 2.0)
    assert len(memory) == 1


def test_a_bucket_without_a_rate_lets_everything_pass():
    bucket = TokenBucket(0, 1)

    assert all(bucket.take(0.0) for _ in range(1000))


def test_a_copy_is_held_until_it_was_dealt_with_or_too_long():
    held: Held[str] = Held()
    for now, name in enumerate(["a", "b", "b", "c"]):
        held.hold(float(now), name, f"{name}{now}", 1)

    held.done(4.0, ["b", "a", "d"])
    held.hold(5.0, "d", "told before it came", 1)
    held.hold(5.0, "d", "another one", 1)

    assert held.overdue(5.0, 3.0) == ["b2"]
    assert held.overdue(5.0, 0.0) == ["c3", "another one"]
    assert len(held) == 0


def test_what_was_told_long_before_is_no_longer_believed():
    held: Held[str] = Held()

    held.done(0.0, ["a"])
    held.hold(11.0, "a", "new", 1)

    assert held.overdue(11.0, 0.0) == ["new"]


def test_what_is_told_again_and_again_before_it_comes_takes_bounded_memory():
    held: Held[str] = Held()
    tracemalloc.start()
    for now in range(20_000):
        held.done(float(now), ["a"])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size < 100_000
    held.hold(20_000.0, "a", "told", 1)
    assert len(held) == 0


def test_of_several_marks_none_is_left_to_hide_the_next():
    ours = f"text/plain;{PARAMETER}={'a' * 10};{PARAMETER}={'b' * 10}"

    assert split_untrusted(ours) == ("text/plain", Mark("a" * 10))


def test_records_of_two_connections_are_not_one():
    record = Record("fraud", 0, 5, None, b"x", (), 0)

    one, two = (arrival_of(record, name) for name in ("here", "there"))

    assert one is not None
    assert two is not None
    assert one.identity != two.identity


def test_beyond_the_bound_the_oldest_copies_go_and_are_counted():
    held: Held[int] = Held()
    for number in range(3):
        held.hold(0.0, "same", number, 30 * 1024 * 1024)

    assert (held.dropped, held.overdue(0.0, 0.0)) == (1, [1, 2])


def test_a_notice_survives_and_nonsense_is_refused():
    notice = Notice({"opensips": "9"}, ("a", "b"), ("kamailio",))

    assert parse_notice_untrusted(notice.encode()) == notice
    wrong: list[object] = [
        [],
        {"nodes": []},
        {"nodes": {"a": 1}},
        {"done": 1},
        {"done": ["x" * 33]},
        {"cut_off": 1},
        {"cut_off": [1]},
    ]
    for body in (b"", *(json.dumps(each).encode() for each in wrong)):
        with pytest.raises(RemoteProtocolError):
            parse_notice_untrusted(body)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 480),
        ([200, 202], 200),
        ([202, 404], 202),
        ([480, 202], 202),
        ([200, 480, 503, 404], 200),
        ([404, 404], 404),
        ([480, 404], 480),
        ([200, 408], 408),
        ([200, 486], 486),
        ([480, 500], 500),
    ],
)
def test_the_far_side_has_it_when_all_that_are_there_have_it(codes, expected):
    results = {str(number): ResultCode(code) for number, code in enumerate(codes)}

    assert verdict(results) == expected


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 404),
        ([404, 200], 200),
        ([202, 404], 202),
        ([200, 202], 202),
        ([200, 480], 480),
        ([480, 408], 408),
    ],
)
def test_of_several_rules_the_one_that_failed_counts(codes, expected):
    assert combine([ResultCode(code) for code in codes]) == expected


@pytest.mark.parametrize(
    ("cut_off", "chosen"),
    [
        ({}, True),
        ({"n1": ["b"]}, False),
        ({"n1": ["elsewhere"]}, True),
        ({"n1": ["b"], "n2": ["a"]}, True),
        ({"n2": ["b"]}, True),
    ],
)
def test_an_agent_that_sees_nobody_on_a_bus_stands_back_for_one_that_does(cut_off, chosen):
    bridge = {"name": "x", "from": "channel:x@a", "to": "channel:x@b"}
    (rule,) = read_bridges(RawTable((), {"bridge": [bridge]}), ("a", "b"))
    running = RunningRule(rule, Memory(), BridgeService((), KafkaService(KafkaSettings())))
    names = (ChannelName("bridge:x"),)
    members = [
        attrs.evolve(member("n1", local=True), channels=names),
        attrs.evolve(member("n2"), channels=names),
        member("n0"),
    ]

    running.rank(members, cut_off)

    assert running.is_chosen is chosen
    assert running.shares
