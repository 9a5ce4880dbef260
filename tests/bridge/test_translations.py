"""Cells and registrations between Kamailio, OpenSIPS and neither: what is kept, what is lost."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.bridge import kamailio, opensips
from clusternode.bridge.changes import CellChange, ContactChange, encode, parse_untrusted
from clusternode.bridge.known import KnownCells
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.replication import (
    Cell,
    Cells,
    Set,
    encode_htable,
    parse_usrloc_untrusted,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "kamailio"
NOW = 1_795_184_490.0
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(0, 2**31 - 1)
CONTACTS = st.builds(
    ContactChange,
    action=st.sampled_from(["update", "remove"]),
    aor=TEXTS.filter(bool),
    contact=TEXTS.filter(bool),
    expires=NUMBERS,
    call_id=TEXTS,
    cseq=NUMBERS,
    q=st.integers(-1, 1000),
    received=TEXTS,
    path=TEXTS,
    user_agent=TEXTS,
    instance=TEXTS,
    methods=st.integers(-1, 2**31 - 1),
    last_modified=st.integers(1, 2**31 - 1),
)
CELLS = st.one_of(
    st.builds(
        CellChange,
        st.just("set"),
        st.just("t"),
        TEXTS.filter(bool),
        TEXTS,
        st.one_of(st.none(), st.integers(0, 2**31 - 1)),
    ),
    st.builds(CellChange, st.just("delete"), st.just("t"), TEXTS.filter(bool)),
)
MEMBERS = st.sampled_from(["action", "key", "value", "ttl", "aor", "contact", "table"])
JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(MEMBERS, inner)
)
NONSENSE = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


def body_of(name: str) -> bytes:
    return (VECTORS / name).read_bytes().partition(b"\r\n\r\n")[2]


def test_a_recorded_registration_of_kamailio_becomes_one_of_opensips():
    (change,) = kamailio.read_untrusted(
        "contacts", "location", body_of("kdmq-usrloc-update.txt"), NOW
    )
    form = json.loads(opensips.write(change, NOW))

    assert form["action"] == "insert"
    assert (form["domain"], form["aor"]) == ("location", "alice")
    assert form["contact"] == "sip:alice@127.0.0.1:7777"
    assert (form["callid"], form["cseq"]) == ("6e0aaa2f58a54afdb9ca92cc03394f23", 1)
    assert (form["expires"], form["last_modified"]) == (1795184790, 1795184490)
    assert (form["q"], form["methods"]) == (-1, -1)


def test_a_recorded_removal_finds_what_the_update_has_written():
    (update,) = kamailio.read_untrusted(
        "contacts", "location", body_of("kdmq-usrloc-update.txt"), NOW
    )
    (removal,) = kamailio.read_untrusted(
        "contacts", "location", body_of("kdmq-usrloc-delete.txt"), NOW
    )

    assert isinstance(update, ContactChange)
    assert isinstance(removal, ContactChange)
    assert removal == attrs.evolve(update, action="remove")
    assert kamailio.ruid_of(removal) == kamailio.ruid_of(update)
    assert json.loads(opensips.write(removal, NOW))["action"] == "delete"


def test_what_we_write_has_the_members_of_a_recorded_message_in_their_order():
    recorded = body_of("kdmq-usrloc-update.txt")
    (change,) = kamailio.read_untrusted("contacts", "location", recorded, NOW)
    (written,) = kamailio.write(change, NOW)

    ours, theirs = json.loads(written), json.loads(recorded)
    assert list(ours) == list(theirs)
    assert {**ours, "ruid": ""} == {**theirs, "ruid": ""}
    assert parse_usrloc_untrusted(written)


def test_a_contact_of_a_kamailio_keeps_its_record_id_when_the_other_world_changes_it():
    ids = kamailio.RecordIds(size_max=2)
    change = ContactChange(action="update", aor="carl", contact="sip:carl@192.0.2.7")
    removal = attrs.evolve(change, action="remove")
    (told,) = kamailio.write(change, NOW, "uloc-6-abc-1")
    (other,) = kamailio.write(attrs.evolve(change, aor="eve"), NOW, "uloc-6-abc-2")
    (third,) = kamailio.write(attrs.evolve(change, aor="dan"), NOW, "uloc-6-abc-3")

    ids.learn_untrusted(told)
    (written,) = kamailio.write(removal, NOW, ids.of(removal))
    ids.learn_untrusted(other)
    ids.learn_untrusted(written)
    gone = ids.of(change)
    ids.learn_untrusted(told)
    ids.learn_untrusted(third)

    assert json.loads(written)["ruid"] == "uloc-6-abc-1"
    assert gone == ""
    assert [ids.of(attrs.evolve(change, aor=aor)) for aor in ("eve", "carl", "dan")] == [
        "",
        "uloc-6-abc-1",
        "uloc-6-abc-3",
    ]


@given(CONTACTS)
def test_a_registration_survives_the_way_through_kamailio(change):
    (written,) = kamailio.write(change, NOW)

    assert kamailio.read_untrusted("contacts", "location", written, NOW) == [change]


@given(CONTACTS)
def test_of_a_registration_opensips_keeps_all_and_of_a_removal_what_finds_it(change):
    found = opensips.read_untrusted("contacts", "location", opensips.write(change, NOW))

    if change.action == "update":
        assert found == [change]
    else:
        assert found == [
            ContactChange(
                action="remove",
                aor=change.aor,
                contact=change.contact,
                call_id=change.call_id,
                cseq=change.cseq,
            )
        ]


@given(CELLS)
def test_a_cell_survives_both_worlds_and_ours(change):
    there = opensips.read_untrusted("table", "t", opensips.write(change, NOW))

    assert parse_untrusted("table", encode(change)) == change
    assert there == [
        attrs.evolve(change, ttl=change.ttl or 0) if change.value is not None else change
    ]
    read = [
        each
        for body in kamailio.write(change, NOW)
        for each in kamailio.read_untrusted("table", "t", body, NOW)
    ]
    assert read[0] == attrs.evolve(change, ttl=None)
    assert [each.ttl for each in read[1:] if isinstance(each, CellChange)] == (
        [] if change.ttl is None else [change.ttl]
    )


@given(CONTACTS)
def test_a_registration_survives_as_json(change):
    assert parse_untrusted("contacts", encode(change)) == change


@given(NONSENSE)
def test_nonsense_is_refused(body):
    for kind in ("table", "contacts"):
        try:
            parse_untrusted(kind, body)
        except RemoteProtocolError:
            continue


def test_a_dump_tells_each_cell_of_the_table_with_the_time_that_it_has_left():
    dump = encode_htable(
        Cells(
            (
                Cell("ban", "a", 1, int(NOW) + 60),
                Cell("ban", "b", "x"),
                Cell("ban", "gone", 1, int(NOW) - 1),
                Cell("other", "c", 1),
            )
        )
    )

    assert kamailio.read_untrusted("table", "ban", dump, NOW) == [
        CellChange("set", "ban", "a", 1, 60),
        CellChange("set", "ban", "b", "x", 0),
    ]
    assert kamailio.read_untrusted("table", "ban", b'{"action":1}', NOW) == []
    assert kamailio.read_untrusted("table", "ban", encode_htable(Set("other", "c", 1)), NOW) == []


def test_opensips_has_no_word_for_a_lifetime_alone_or_for_patterns():
    for action in ("expire", "delete_prefix", "delete_regex"):
        with pytest.raises(RemoteProtocolError, match="cannot"):
            opensips.write(CellChange(action, "t", "k"), NOW)


def test_what_names_no_single_cell_is_spelled_out_as_far_as_cells_are_known():
    known = KnownCells(size_max=3)
    for key in ("gone", "ban:1", "ban:2", "old"):
        known.spell_out(CellChange("set", "t", key, "x"))

    assert known.spell_out(CellChange("expire", "t", "old", None, 9)) == [
        CellChange("set", "t", "old", "x", 9)
    ]
    assert known.spell_out(CellChange("expire", "t", "gone", None, 9)) == []
    assert known.spell_out(CellChange("delete_regex", "t", "^ban:[2-9]")) == [
        CellChange("delete", "t", "ban:2")
    ]
    assert known.spell_out(CellChange("delete_prefix", "t", "ban:")) == [
        CellChange("delete", "t", "ban:1")
    ]
    assert known.spell_out(CellChange("delete_regex", "t", "[")) == []
    assert known.spell_out(CellChange("delete", "t", "old")) == [CellChange("delete", "t", "old")]
