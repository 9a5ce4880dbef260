"""What cachedb_local and usrloc say, as values, as bytes and as JSON."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.errors import LocalProtocolError, RemoteProtocolError
from clusternode.gateways.opensips.codec import decode_untrusted, encode
from clusternode.gateways.opensips.messages import (
    CACHE,
    CONTACTS,
    ModulePacket,
    Sync,
    Trailer,
)
from clusternode.gateways.opensips.replication import (
    NOBODY,
    AorDelete,
    AorInsert,
    CacheInsert,
    CacheRemove,
    Contact,
    ContactDelete,
    ContactInsert,
    ContactUpdate,
    Match,
    cache_chunk,
    cache_packet,
    location_chunk,
    location_packet,
    read_cache_chunk_untrusted,
    read_cache_untrusted,
    read_location_chunk_untrusted,
    read_location_untrusted,
)
from clusternode.gateways.opensips.typed import (
    cache_form,
    location_form,
    read_cache_form_untrusted,
    read_location_form_untrusted,
)

VECTORS = Path(__file__).parent / "vectors"

CAROL = Contact(
    "location",
    "carol@example.test",
    "sip:carol@127.0.61.98:5080",
    contact_id=0x03C7400000002EB0,
    callid="dfjrewr12386fd6-343@opensips.mi",
    user_agent="OpenSIPS MI Server",
    expires=0x6B005389,
    q=1000,
    cseq=1,
    methods=511,
)
ALICE = Contact(
    "location",
    "alice@example.test",
    "sip:alice@127.0.61.99:5070",
    contact_id=0x2523000000001B27,
    callid="dfjrewr12386fd6-343@opensips.mi",
    user_agent="OpenSIPS MI Server",
    expires=0x6B005F17,
    q=500,
    cseq=1,
    methods=511,
)
RECORDED = {
    "cachedb_insert.bin": CacheInsert("c1", "k3", b"v-three"),
    "cachedb_remove.bin": CacheRemove("c1", "k2"),
    "usrloc_aor_insert.bin": AorInsert("location", "carol@example.test", 0, 11952),
    "usrloc_aor_delete.bin": AorDelete("location", "carol@example.test"),
    "usrloc_ct_insert.bin": ContactInsert(CAROL),
    "usrloc_ct_delete.bin": ContactDelete(
        "location", "carol@example.test", CAROL.contact, CAROL.callid, 1
    ),
}


def vector(name: str):
    return decode_untrusted((VECTORS / name).read_bytes())


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_changes_are_read_and_written_byte_for_byte(name):
    packet, change = vector(name), RECORDED[name]

    if packet.capability == CACHE:
        assert read_cache_untrusted(packet) == change
        written = cache_packet(packet.trailer, change)
    else:
        assert read_location_untrusted(packet) == change
        written = location_packet(packet.trailer, change)

    assert encode(written) == (VECTORS / name).read_bytes()


def test_recorded_chunks_are_read_and_written_byte_for_byte():
    caches, locations = vector("sync_cachedb_2chunks.bin"), vector("sync_usrloc_2chunks.bin")
    assert isinstance(caches, Sync) and isinstance(locations, Sync)

    entries = [read_cache_chunk_untrusted(chunk, caches.data_version) for chunk in caches.chunks]
    changes = [
        read_location_chunk_untrusted(chunk, locations.data_version) for chunk in locations.chunks
    ]

    assert entries == [CacheInsert("c1", "k2", b"v-two", 599), CacheInsert("c1", "k1", b"v-one")]
    assert changes == [AorInsert("location", ALICE.aor, 0, 6952), ContactInsert(ALICE)]
    assert [cache_chunk(entry) for entry in entries] == [*caches.chunks]
    assert [location_chunk(change) for change in changes] == [*locations.chunks]


def test_the_label_of_the_address_of_record_is_in_the_id_of_a_contact():
    contact = attrs.evolve(CAROL, contact_id=(0xABCD << 46) + (77 << 14) + 5)

    assert contact.aor_label == 77


# --- round trips ----------------------------------------------------------------------------------

texts = st.binary(max_size=12).map(lambda data: data.decode("utf-8", "surrogateescape"))
some = texts.filter(bool)
i32, u32 = st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)
i64, u64 = st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
rules = st.builds(Match, st.sampled_from([-1, 0, 1])) | st.builds(
    Match, st.just(2), st.lists(texts, max_size=3).map(tuple)
)
contacts = st.builds(
    Contact,
    domain=texts,
    aor=some,
    contact=texts,
    contact_id=u64,
    callid=texts,
    path=texts,
    expires=i64,
    q=i32,
    sock=texts,
    cseq=i32,
    flags=u32,
    cflags=texts,
    methods=i32,
    last_modified=i64,
    attributes=texts,
)
locations = st.one_of(
    st.builds(AorInsert, texts, some, u32, u32, texts),
    st.builds(AorDelete, texts, some),
    st.builds(ContactInsert, contacts, rules),
    st.builds(ContactUpdate, contacts, rules),
    st.builds(ContactDelete, texts, some, texts, texts, i32, rules),
)
caches = st.builds(
    CacheInsert, texts, texts, st.binary(max_size=30), st.integers(0, 2**31 - 1)
) | st.builds(CacheRemove, texts, texts)


@given(locations | caches)
def test_what_is_written_is_read_again(change):
    if isinstance(change, CacheInsert | CacheRemove):
        assert read_cache_untrusted(cache_packet(NOBODY, change)) == change
    else:
        assert read_location_untrusted(location_packet(NOBODY, change)) == change


@given(locations | caches)
def test_the_json_form_of_a_change_is_that_change(change):
    if isinstance(change, CacheInsert | CacheRemove):
        form = json.dumps(cache_form(change)).encode()
        again = json.dumps(cache_form(read_cache_form_untrusted(form))).encode()
    else:
        form = json.dumps(location_form(change)).encode()
        again = json.dumps(location_form(read_location_form_untrusted(form))).encode()

    assert again == form  # text that is no UTF-8 is shown with replacements in both


def test_the_json_form_of_a_contact_has_the_names_of_opensips():
    form = location_form(ContactInsert(CAROL, Match(2, ("pn-prid",))))

    assert form["action"] == "insert"
    assert form["contact"] == "sip:carol@127.0.61.98:5080"
    assert form["expires"] == CAROL.expires
    assert (form["match_mode"], form["match_parameters"]) == (2, ["pn-prid"])
    assert read_location_form_untrusted(json.dumps(form).encode()) == ContactInsert(
        CAROL, Match(2, ("pn-prid",))
    )


def test_a_form_may_leave_out_what_has_a_default():
    body = b'{"action":"update","domain":"location","aor":"bob","contact":"sip:b@c"}'

    assert read_location_form_untrusted(body) == ContactUpdate(
        Contact("location", "bob", "sip:b@c")
    )


def test_a_value_that_is_no_text_has_its_own_member():
    form = cache_form(CacheInsert("c1", "k", b"\xff"))

    assert form == {
        "action": "insert",
        "collection": "c1",
        "key": "k",
        "ttl": 0,
        "value_base64": "/w==",
    }
    assert read_cache_form_untrusted(json.dumps(form).encode()) == CacheInsert("c1", "k", b"\xff")


# --- versions of usrloc ---------------------------------------------------------------------------


def old_contact(version: int, *, is_update: bool = False) -> bytes:
    """Lay a contact out as an older usrloc does."""

    def string(value: bytes) -> bytes:
        return struct.pack("<H", len(value)) + value

    contact_id = string(struct.pack("<Q", 7))
    parts = [string(b"location"), string(b"bob"), string(b"sip:b@c")]
    parts += [] if is_update else [contact_id]
    parts += [string(each) for each in (b"call", b"agent", b"", b"", b"", b"")]
    parts += [string(struct.pack("<q", 99)), string(struct.pack("<i", -1)), string(b"")]
    parts += [struct.pack("<iI", 3, 0)]
    parts += [string(b"NAT") if version >= 4 else struct.pack("<I", 6)]
    parts += [struct.pack("<i", -1), string(struct.pack("<q", 5)), string(b"")]
    parts += [contact_id] if is_update else []
    parts += [struct.pack("<i", 1)] if version >= 3 else []
    return b"".join(parts)


@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize(("version", "cflags"), [(2, 6), (3, 6), (4, "NAT"), (5, "NAT")])
def test_contacts_of_older_versions_are_read(version, cflags, is_update):
    body = old_contact(version, is_update=is_update)

    change = read_location_untrusted(ModulePacket(NOBODY, CONTACTS, version, 3 + is_update, body))

    contact = Contact(
        "location",
        "bob",
        "sip:b@c",
        contact_id=7,
        callid="call",
        user_agent="agent",
        expires=99,
        cseq=3,
        cflags=cflags,
        last_modified=5,
    )
    assert change == (ContactUpdate(contact) if is_update else ContactInsert(contact))


def test_an_address_of_record_has_attributes_from_version_5_on():
    body = location_packet(NOBODY, AorInsert("d", "bob", 1, 2, "{}")).body

    packet = ModulePacket(NOBODY, CONTACTS, 4, 1, body[: -len("{}") - 2])
    assert read_location_untrusted(packet) == AorInsert("d", "bob", 1, 2)
    with pytest.raises(RemoteProtocolError):
        read_location_untrusted(attrs.evolve(packet, version=5))


@pytest.mark.parametrize("version", [1, 6])
def test_versions_that_we_do_not_know_are_refused(version):
    packet = attrs.evolve(vector("usrloc_ct_insert.bin"), version=version)
    with pytest.raises(RemoteProtocolError, match=f"version {version}"):
        read_location_untrusted(packet)
    with pytest.raises(RemoteProtocolError, match="version"):
        read_location_chunk_untrusted(b"", version)
    with pytest.raises(RemoteProtocolError, match="version"):
        read_cache_untrusted(attrs.evolve(vector("cachedb_insert.bin"), version=version + 1))


# --- hostile input --------------------------------------------------------------------------------


@given(st.sampled_from([CACHE, CONTACTS]), st.integers(0, 7), st.integers(0, 6), st.binary())
def test_arbitrary_bodies_are_a_change_or_refused(capability, type_, version, body):
    packet = ModulePacket(Trailer(1, 2, 3), capability, version, type_, body)

    with contextlib.suppress(RemoteProtocolError):
        read_cache_untrusted(packet)
    with contextlib.suppress(RemoteProtocolError):
        read_location_untrusted(packet)
    with contextlib.suppress(RemoteProtocolError):
        read_cache_chunk_untrusted(body, version)
    with contextlib.suppress(RemoteProtocolError):
        read_location_chunk_untrusted(body, version)


BAD_LOCATIONS = [
    ("an empty address of record", 2, b"\1\0d\0\0"),
    ("an id of 7 bytes", 3, b"\1\0d\1\0a\1\0c\7\0" + b"1234567"),
    ("bytes after the end", 2, b"\1\0d\1\0a!"),
    ("33 match parameters", 5, b"\1\0d\1\0a\1\0c\0\0\0\0\0\0\2\0\0\0\x21\0\0\0" + b"\0\0" * 33),
    ("a match mode 3", 5, b"\1\0d\1\0a\1\0c\0\0\0\0\0\0\3\0\0\0"),
]


@pytest.mark.parametrize(
    ("_", "type_", "body"), BAD_LOCATIONS, ids=[row[0] for row in BAD_LOCATIONS]
)
def test_bad_changes_are_refused(_, type_, body):
    with pytest.raises(RemoteProtocolError):
        read_location_untrusted(ModulePacket(NOBODY, CONTACTS, 5, type_, body))


BAD_FORMS = [
    b"",
    b"[]",
    b"{}",
    b"[" * 2000,
    b'{"action":"insert"}',
    b'{"action":"fly","collection":"c","key":"k","aor":"a"}',
    b'{"action":"insert","collection":"c","key":"k","value":"v","more":1,"aor":"a"}',
    b'{"action":"insert","collection":"c","key":"k","value":5}',
    b'{"action":"insert","collection":"c","key":"k","value_base64":"!"}',
    b'{"action":"insert","collection":"c","key":"k","value_base64":7}',
    b'{"action":"insert","collection":"c","key":"k","value":"\\ud800"}',
    b'{"action":"insert","collection":"c","key":"k","value":"v","ttl":-1}',
    b'{"action":"insert","collection":"c","key":"k","value":"v","ttl":true}',
    b'{"action":"insert","collection":"c","key":"k","value":"v","ttl":4294967296}',
    b'{"action":"delete","domain":"d","aor":"a","contact":"c","match_mode":7}',
    b'{"action":"delete","domain":"d","aor":"a","contact":"c","match_parameters":[1]}',
    b'{"action":"delete","domain":"d","aor":"a","contact":"c","match_parameters":5}',
    b'{"action":"update","domain":"d","aor":"a","contact":"c","contact_id":-1}',
    b'{"action":"update","domain":"d","aor":"a","contact":"c","expires":1e99}',
    b'{"action":"update","domain":"d","aor":"a","contact":"c","expires":%d}' % 2**64,
    b'{"action":"update","domain":"d","aor":"a","contact":"c","flags":4294967296}',
    b'{"action":"update","domain":"d","aor":"a","contact":"c","flags":-1}',
    b'{"action":"update","domain":"d","aor":"a","contact":"c","attributes":"%b"}' % (b"x" * 66_000),
    b'{"action":"update","domain":"d","aor":"a","contact":"c","cflags":[]}',
    b'{"action":"aor_delete","domain":5,"aor":"a"}',
    b'{"action":"remove","collection":"c","key":"%b"}' % (b"k" * 66_000),
]


@pytest.mark.parametrize("body", BAD_FORMS, ids=lambda body: body[:60].decode())
def test_bad_forms_are_refused(body):
    for read in (read_cache_form_untrusted, read_location_form_untrusted):
        with pytest.raises(RemoteProtocolError):
            read(body)


def test_numbers_that_no_packet_can_hold_are_not_written():
    with pytest.raises(LocalProtocolError):
        location_packet(NOBODY, ContactInsert(attrs.evolve(CAROL, contact_id=2**64)))
