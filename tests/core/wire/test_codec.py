"""Tests of clusternode.core.wire.codec and schema."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.types import ChannelName, Incarnation, NodeId, ResultCode
from clusternode.core.wire import limits, schema
from clusternode.core.wire.codec import (
    decode_untrusted,
    encode,
    encoded_of,
    frame_of,
    is_content_type,
    is_tag,
    is_tag_value,
    split_records,
)
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, MAGIC
from clusternode.core.wire.messages import (
    Ack,
    Close,
    CloseReason,
    Hello,
    List,
    Message,
    Ping,
    Record,
    Records,
    Reply,
    Request,
    Results,
    Run,
    Unknown,
    Want,
)
from clusternode.errors import LocalProtocolError, RemoteProtocolError
from tests import strategies

MESSAGE = Message(ChannelName("fraud"), "text/plain", b"192.0.2.7", 5)


def fields_of(message):
    return msgpack.unpackb(encode(message)[HEADER_SIZE:], use_list=True)


def read(type_: int, payload: bytes | memoryview) -> Any:
    return decode_untrusted(type_, payload)


def decode(type_: int, fields: object) -> Any:
    return read(type_, msgpack.packb(fields))


# --- both ways ------------------------------------------------------------------------------------


@given(strategies.messages | strategies.hellos)
def test_every_message_survives_the_wire(message):
    encoded = encode(message)
    magic, size, type_, flags = HEADER.unpack_from(encoded)

    assert (magic, size, type_, flags) == (MAGIC, len(encoded), message.TYPE, 0)
    assert read(type_, memoryview(encoded)[HEADER_SIZE:]) == message
    assert read(type_, encoded[HEADER_SIZE:]) == message  # now with known names


@given(strategies.messages)
def test_a_frame_counts_for_at_least_its_encoded_size(message):
    frame = frame_of(message)

    assert frame.size_bytes >= len(encoded_of(frame))


def test_positioned_frames_are_sized_without_being_encoded():
    frame = frame_of(MESSAGE)

    assert frame.encoded is None
    assert encoded_of(frame) is encoded_of(frame)


def test_the_largest_positioned_frame_without_its_body_is_within_the_overhead():
    message = Message(
        ChannelName("c" * limits.NAME_LENGTH_MAX),
        "t" * limits.CONTENT_TYPE_LENGTH_MAX,
        bytes(70_000),
        limits.COUNT_MAX,
        limits.U8_MAX,
        True,
        "s" * limits.NAME_LENGTH_MAX,
    )

    assert len(encode(message)) - 70_000 < limits.MESSAGE_OVERHEAD_MAX


def test_a_full_list_fits_into_a_control_frame():
    entry = ("n" * limits.NAME_LENGTH_MAX, limits.COUNT_MAX, limits.COUNT_MAX, 1.5)
    payload = msgpack.packb([[entry] * limits.ENTRIES_MAX])

    assert len(payload) < limits.CONTROL_PAYLOAD_MAX
    assert len(read(List.TYPE, payload).entries) == limits.ENTRIES_MAX


def test_records_are_spread_over_frames_that_are_accepted():
    tags = tuple((f"{number:064}", "v" * limits.TAG_VALUE_LENGTH_MAX) for number in range(64))
    channels = tuple(ChannelName(f"{number:064}") for number in range(limits.CHANNELS_MAX))
    largest = Record(NodeId("n"), Incarnation(1), 1, "tcp://h:1", tags, channels)
    small = Record(NodeId("n"), Incarnation(1), 1, "tcp://h:1")
    records = [largest] * 25 + [small] * 5000

    frames = split_records(records)

    assert split_records([]) == []
    assert [record for frame in frames for record in frame.records] == records
    assert len(frames) < 9
    for frame in frames:
        assert decode_untrusted(Records.TYPE, encode(frame)[HEADER_SIZE:]) == frame


# --- versions -------------------------------------------------------------------------------------


@given(strategies.messages | strategies.hellos_with_a_challenge)
def test_fields_appended_by_a_newer_version_are_ignored(message):
    assert decode(message.TYPE, [*fields_of(message), "new", [1, 2]]) == message


def test_fields_missing_from_an_older_version_get_their_defaults():
    assert decode(Message.TYPE, fields_of(MESSAGE)[:4]) == MESSAGE
    assert decode(Close.TYPE, [3]) == Close(3, "", 0)
    assert decode(Records.TYPE, [[["n1", 1, 2, "tcp://h:1"]]]) == Records(
        [Record(NodeId("n1"), Incarnation(1), 2, "tcp://h:1")]
    )


@pytest.mark.parametrize("type_", [0, 14, 15, 99, 65535])
def test_types_of_a_newer_version_are_unknown_whatever_is_in_them(type_):
    assert read(type_, b"\xc1 garbage") == Unknown(type_)


def test_a_code_of_a_newer_version_is_read_as_its_class():
    runs = [[1, 1, 204], [2, 2, 499], [3, 3, 100], [4, 4, 699]]

    assert [run.code for run in decode(Results.TYPE, [runs]).runs] == [
        ResultCode.OK,
        ResultCode.FAILED,
        ResultCode.FAILED,
        ResultCode.FAILED,
    ]


# --- refusals -------------------------------------------------------------------------------------

NOTHING: Any = object()
RECORD: list[object] = ["n1", 1, 2, "tcp://h:1", [["role", "x"]], ["fraud"], False, 50, 0.0]


def record_with(index, value):
    fields = [*RECORD]
    fields[index] = value
    return [[RECORD, fields]]


def message_with(index, value):
    fields = fields_of(MESSAGE)
    fields[index] = value
    return fields


@pytest.mark.parametrize(
    ("type_", "fields", "complaint"),
    [
        (Message.TYPE, 5, "Message = 5: expected an array of 4 to 32 fields"),
        (Message.TYPE, ["fraud"], "Message = 'array of 1': expected an array of 4 to 32 fields"),
        (Message.TYPE, [0] * 40, "exceeds max_array_len"),
        (Message.TYPE, message_with(0, "a b"), r"Message\.channel = 'a b': expected 1 to 64"),
        (Message.TYPE, message_with(0, "a" * 65), r"Message\.channel = 'a+…: expected 1 to 64"),
        (Message.TYPE, message_with(0, b"a"), r"Message\.channel = 1 bytes: expected"),
        (Message.TYPE, message_with(1, "a\r\nb: c"), r"Message\.content_type"),
        (Message.TYPE, message_with(1, "é"), r"Message\.content_type"),
        (Message.TYPE, message_with(1, None), r"Message\.content_type = None"),
        (Message.TYPE, message_with(2, "text"), r"Message\.body = 'text'"),
        (Message.TYPE, message_with(3, -1), r"Message\.message_id = -1: expected a whole number"),
        (Message.TYPE, message_with(3, True), r"Message\.message_id = True"),
        (Message.TYPE, message_with(3, 2**63), r"Message\.message_id"),
        (Message.TYPE, message_with(4, 256), r"Message\.max_forwards = 256"),
        (Message.TYPE, message_with(5, 1), r"Message\.replicated = 1: expected true or false"),
        (Message.TYPE, message_with(6, "no name"), r"Message\.source"),
        (Request.TYPE, ["c", "t", b"", "", 1.0], r"Request\.tag = ''"),
        (Request.TYPE, ["c", "t", b"", 7, 1.0], r"Request\.tag = 7"),
        (Request.TYPE, ["c", "t", b"", "tag", -1.0], r"Request\.timeout = -1.0"),
        (Request.TYPE, ["c", "t", b"", "tag", -1], r"Request\.timeout = -1.0"),
        (Request.TYPE, ["c", "t", b"", "tag", float("nan")], r"Request\.timeout = nan"),
        (Request.TYPE, ["c", "t", b"", "tag", float("inf")], r"Request\.timeout = inf"),
        (Request.TYPE, ["c", "t", b"", "tag", "1"], r"Request\.timeout = '1'"),
        (Reply.TYPE, ["tag", "t", b"", 99], r"Reply\.code = 99"),
        (Ack.TYPE, [-1], r"Ack\.position = -1"),
        (Ack.TYPE, [1.0], r"Ack\.position = 1.0"),
        (Ping.TYPE, [1, -1], r"Ping\.digest = -1"),
        (Results.TYPE, [7], r"Results\.runs = 7: expected an array of at most 4096"),
        (Results.TYPE, [[[0, 1, 200]]], r"Results\.runs\[0\]\.first = 0"),
        (Results.TYPE, [[[1, 1, 200], [2, 1, 200]]], r"Results\.runs\[1\]\.last = 1"),
        (Results.TYPE, [[[1, 1 + limits.RUN_LENGTH_MAX, 200]]], r"Results\.runs\[0\]\.last"),
        (Results.TYPE, [[[1, 1, 700]]], r"Results\.runs\[0\]\.code = 700"),
        (Want.TYPE, [["n1", 5]], r"Want\.node_ids\[1\] = 5"),
        (Records.TYPE, record_with(3, "srv://name"), r"Records\.records\[1\]\.address"),
        (Records.TYPE, record_with(3, "tcp://h:99999"), r"\.address"),
        (Records.TYPE, record_with(3, "tcp://" + "h" * 400 + ":1"), r"\.address"),
        (Records.TYPE, record_with(3, 9), r"\.address = 9"),
        (Records.TYPE, record_with(4, [["a b", "x"]]), r"\.tags\[0\]\[0\] = 'a b'"),
        (Records.TYPE, record_with(4, [["a", "x\n"]]), r"\.tags\[0\]\[1\]"),
        (Records.TYPE, record_with(4, [["a", "x" * 257]]), r"\.tags\[0\]\[1\]"),
        (Records.TYPE, record_with(4, [["a"]]), r"\.tags\[0\] = 'array of 1'"),
        (Records.TYPE, record_with(4, [["a", "1"], ["a", "2"]]), r"\.tags .* no key twice"),
        (Records.TYPE, record_with(4, [["a", "1"]] * 65), r"\.tags .* an array of at most 64"),
        (Records.TYPE, record_with(5, ["x", "x"]), r"\.channels .* no name twice"),
        (Hello.TYPE, ["c", "n", 1, b"short", 1, 1, "tcp://h:1", 1, 1], r"Hello\.nonce = 5 bytes"),
        (Hello.TYPE, ["c", "n", 1, b"n" * 16, 1, 1, "tcp://h:1", 2**25, 1], "body_size_max"),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_with_its_path(type_, fields, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint) as raised:
        decode(type_, fields)

    assert raised.value.reason == CloseReason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x91",
        b"\xc1",
        b"\x90\x90",
        b"\x91\xa1\xff",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\x01",
        b"\xdf\x00\x00\x00\x01\x80\x80",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\xff",
        b"\x80",
    ],
    ids=bytes.hex,
)
@pytest.mark.parametrize("type_", sorted(schema.TYPES))
def test_malformed_and_nested_payloads_are_refused(type_, payload):
    with pytest.raises(RemoteProtocolError):
        read(type_, payload)


@given(st.sampled_from([*sorted(schema.TYPES), 12, 30]), st.binary(max_size=80))
def test_arbitrary_bytes_raise_nothing_but_remote_protocol_errors(type_, payload):
    with contextlib.suppress(RemoteProtocolError):
        read(type_, payload)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | strategies.names
    | strategies.addresses,
    lambda inner: st.lists(inner, max_size=9),
    max_leaves=20,
)


@given(st.sampled_from(sorted(schema.TYPES)), st.lists(anything, max_size=10))
def test_whatever_is_accepted_can_be_sent_on(type_, fields):
    try:
        message = decode(type_, fields)
    except RemoteProtocolError:
        return

    assert read(type_, encode(message)[HEADER_SIZE:]) == message


@given(
    st.sampled_from([Message.TYPE, Request.TYPE, Reply.TYPE, Results.TYPE, Ack.TYPE]),
    st.data(),
)
def test_the_hand_written_checks_agree_with_the_schema(type_, data):
    good = data.draw(
        {
            Message.TYPE: strategies.channel_messages,
            Request.TYPE: strategies.requests,
            Reply.TYPE: strategies.replies,
            Results.TYPE: strategies.results,
            Ack.TYPE: st.builds(Ack, strategies.counts),
        }[type_]
    )
    read(type_, encode(good)[HEADER_SIZE:])  # its names are known from here on
    fields = fields_of(good)
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(anything)
    unpacked = msgpack.unpackb(msgpack.packb(fields), use_list=False)
    expected: object
    try:
        expected = schema.read_message(type_, unpacked)
    except RemoteProtocolError as error:
        expected = str(error)

    try:
        decoded = decode(type_, fields)
    except RemoteProtocolError as error:
        decoded = str(error)

    assert decoded == expected


@pytest.mark.parametrize("type_", [List.TYPE, Results.TYPE, 9, 14])
def test_control_payloads_over_the_limit_are_refused_unread(type_):
    with pytest.raises(RemoteProtocolError, match="at most 1048576") as raised:
        read(type_, bytes(limits.CONTROL_PAYLOAD_MAX + 1))

    assert raised.value.reason == CloseReason.LIMIT


def test_remembered_names_are_bounded():
    for number in range(limits.NAMES_REMEMBERED_MAX + 10):
        message = Message(ChannelName(f"channel-{number}"), "text/plain", b"", 1)
        assert read(Message.TYPE, encode(message)[HEADER_SIZE:]) == message


# --- our own side ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        Unknown(77),
        Ack(2**64),
        Message(ChannelName("c"), "\ud800", b"", 1),
        Want([NOTHING]),
        attrs.evolve(MESSAGE, body=NOTHING),
    ],
)
def test_what_cannot_be_sent_is_our_own_fault(message):
    with pytest.raises(LocalProtocolError, match="cannot encode"):
        encode(message)


@given(st.text(max_size=600))
def test_whatever_a_close_repeats_can_be_read(detail):
    encoded = encode(Close(1, detail))

    decoded = read(Close.TYPE, encoded[HEADER_SIZE:])

    assert decoded.detail.isprintable()
    assert len(decoded.detail) <= limits.DETAIL_LENGTH_MAX


def test_longer_runs_than_may_be_sent_are_split():
    step = limits.RUN_LENGTH_MAX
    message = Results([Run(5, 5, 200), Run(10, 10 + 2 * step, 408)])

    decoded = read(Results.TYPE, encode(message)[HEADER_SIZE:])

    assert decoded.runs == [
        Run(5, 5, 200),
        Run(10, 9 + step, 408),
        Run(10 + step, 9 + 2 * step, 408),
        Run(10 + 2 * step, 10 + 2 * step, 408),
    ]


def test_what_others_would_refuse_can_be_asked_before_sending():
    assert is_content_type("application/json; charset=utf-8")
    assert not is_content_type("a\r\nb")
    assert is_tag("n1:7")
    assert not is_tag("")
    assert not is_tag("x" * 193)
    assert is_tag_value("Zürich")
    assert not is_tag_value("a\tb")
    assert not is_tag_value("\ud800" * 90)


@given(strategies.records, st.floats(0, 1e6))
def test_a_record_told_by_another_is_the_same_but_for_its_silence(record, silent_for):
    told = record.told_after(silent_for)

    assert attrs.asdict(told) == attrs.asdict(record) | {"silent_for": silent_for}


def test_every_known_type_is_in_the_schema_in_wire_order():
    for cls, readers in schema.SCHEMAS.items():
        assert [field.name for field in attrs.fields(cls)] == list(readers)
    assert sorted(schema.TYPES) == [*range(1, 14), *range(16, 20)]
