"""Bodies of htable and usrloc, the tables made of them, and expressions from strangers."""

from __future__ import annotations

import contextlib
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.htable import Refused, Tables
from clusternode.gateways.kamailio.regex import BadPattern, Regex
from clusternode.gateways.kamailio.replication import (
    CELLS_BODY_SIZE_MAX,
    INTEGER_MAX,
    Cell,
    Cells,
    Delete,
    RemovePrefix,
    RemoveRegex,
    Set,
    SetExpire,
    SyncRequest,
    encode_dump,
    encode_htable,
    parse_htable_untrusted,
    parse_usrloc_untrusted,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.one_of(texts, st.integers(-INTEGER_MAX, INTEGER_MAX))
messages = st.one_of(
    st.builds(Set, texts, texts, values, st.integers(0, 1)),
    st.builds(SetExpire, texts, texts, st.integers(0, 2**31)),
    st.builds(Delete, texts, texts),
    st.builds(RemoveRegex, texts, texts),
    st.builds(RemovePrefix, texts, texts),
    st.just(SyncRequest()),
    st.builds(
        Cells,
        st.lists(st.builds(Cell, texts, texts, values, st.integers(0, 2**31)), max_size=5).map(
            tuple
        ),
    ),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.dictionaries(
    st.sampled_from(
        ["action", "htname", "cname", "type", "strval", "intval", "cells", "multi", "aor", "expire"]
    ),
    st.one_of(json_values, st.integers(0, 7), texts),
)


@given(messages)
def test_what_we_write_is_what_we_read(message):
    assert parse_htable_untrusted(encode_htable(message)) == message


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=100),
        json_values.map(lambda value: json.dumps(value).encode()),
        fields.map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_body_raises_anything_else(body):
    for parse in (parse_htable_untrusted, parse_usrloc_untrusted):
        with contextlib.suppress(RemoteProtocolError):
            parse(body)


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b'{"a":' * 10_000, b"9" * 60_000, b'{"cells":' + b"1" * 5000 + b"}"]
)
def test_deep_or_long_json_is_refused(body):
    with pytest.raises(RemoteProtocolError):
        parse_htable_untrusted(body)


def test_half_a_character_is_refused():
    with pytest.raises(RemoteProtocolError, match="Unicode"):
        parse_htable_untrusted(b'{"action":4,"htname":"ht","cname":"\\ud800"}')


def test_a_batch_of_contacts_is_read_one_by_one():
    body = b'{"multi":{"1":{"action":1,"aor":"a"},"2":{"action":2,"aor":"b"}}}'

    assert [(each.action, each.fields["aor"]) for each in parse_usrloc_untrusted(body)] == [
        ("update", "a"),
        ("remove", "b"),
    ]


def test_a_dump_is_cut_into_bodies_that_kamailio_takes():
    cells = [Cell("ht", f"key{n}", "x" * 1000) for n in range(200)]

    bodies = list(encode_dump(cells))

    assert len(bodies) > 1
    assert all(len(body) <= CELLS_BODY_SIZE_MAX + 1200 for body in bodies)
    dumps = [parse_htable_untrusted(body) for body in bodies]
    found = [cell for dump in dumps if isinstance(dump, Cells) for cell in dump.cells]
    assert found == cells
    assert list(encode_dump([])) == [b'{"cells":[]}']


def test_cells_live_as_long_as_the_table_says():
    tables = Tables({"ht": 60, "kept": 0})
    tables.apply(Set("ht", "a", "1"), 1000.0)
    tables.apply(Set("kept", "a", "1"), 1000.0)
    tables.apply(Set("other", "a", "1"), 1000.0)

    assert tables.get("ht", "a", 1059.0) == "1"
    assert tables.get("ht", "a", 1060.0) is None
    assert tables.get("kept", "a", 1e9) == "1"
    assert tables.get("other", "a", 1000.0) is None
    tables.apply(SetExpire("ht", "a", 600), 1000.0)
    assert tables.get("ht", "a", 1500.0) == "1"
    tables.purge(2000.0)
    assert [cell.table for cell in tables.cells(2000.0)] == ["kept"]


def test_a_late_cell_of_6_2_does_not_replace_a_newer_one():
    tables = Tables({"ht": 0})
    tables.apply(Set("ht", "a", "new", 1, 2000), 10.0)
    tables.apply(Cells((Cell("ht", "a", "old", 0, 1000),)), 10.0)
    assert tables.get("ht", "a", 10.0) == "new"
    tables.apply(Set("ht", "a", "of 5.6"), 10.0)
    assert tables.get("ht", "a", 10.0) == "of 5.6"


def test_expired_cells_of_a_dump_are_not_taken():
    tables = Tables({"ht": 0})
    tables.apply(Cells((Cell("ht", "a", "x", 99), Cell("ht", "b", "x", 101))), 100.0)

    assert [cell.key for cell in tables.cells(100.0)] == ["b"]


def test_cells_are_removed_by_prefix_and_expression():
    tables = Tables({"ht": 0})
    for key in ("a1", "a2", "b1", "c"):
        tables.apply(Set("ht", key, key), 0.0)
    tables.apply(RemovePrefix("ht", "a"), 0.0)
    tables.apply(RemoveRegex("ht", "^b[0-9]$"), 0.0)

    assert [cell.key for cell in tables.cells(0.0)] == ["c"]


def test_a_table_has_a_bound():
    tables = Tables({"ht": 0}, cells_max=2)
    tables.apply(Set("ht", "a", "1"), 0.0)
    tables.apply(Set("ht", "b", "1"), 0.0)
    tables.apply(Set("ht", "a", "2"), 0.0)

    with pytest.raises(Refused):
        tables.apply(Set("ht", "c", "1"), 0.0)


atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "(a|b)", "(ab|)", "(a)", "^", "$", "\\."])
repeats = st.sampled_from(["", "*", "+", "?", "{2}", "{0,1}", "{1,}"])
patterns = st.lists(st.tuples(atoms, repeats), max_size=5).map(
    lambda parts: "".join(atom + ("" if atom in "^$" else repeat) for atom, repeat in parts)
)


@settings(max_examples=300)
@given(patterns, st.text("abc.", max_size=8))
def test_expressions_mean_what_they_mean_elsewhere(pattern, text):
    expected = re.search(pattern.replace("$", "\\Z"), text) is not None

    assert Regex(pattern).search(text) == expected


@settings(max_examples=300)
@given(st.text("ab()[]{}|*+?^$\\.-:0,", max_size=20), st.text("ab", max_size=8))
def test_no_expression_raises_anything_else(pattern, text):
    with contextlib.suppress(BadPattern):
        Regex(pattern).search(text)


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|aa)*$b", "((a{0,9}){0,9})c", "(.*)(.*)(.*)b"])
def test_evil_expressions_take_no_long_time(pattern):
    begin = time.perf_counter()
    Regex(pattern).search("a" * 1000)

    assert time.perf_counter() - begin < 1.0


@pytest.mark.parametrize("text", ["[[:digit:]]", "[]x]", "[a-c]", "[^]]", "a{2}", "x|y"])
def test_what_posix_knows_is_known(text):
    Regex(text)


def test_a_removal_that_is_too_much_work_is_refused():
    tables = Tables({"ht": 0})
    for n in range(300):
        tables.apply(Set("ht", f"{n}" + "a" * 900, ""), 0.0)

    with pytest.raises(Refused, match="work"):
        tables.apply(RemoveRegex("ht", "((a{0,9}){0,9})c"), 0.0)
