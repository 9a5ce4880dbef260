"""Every limit of the protocol, at the limit and one past it."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from clusternode.core.wire import limits
from clusternode.core.wire.codec import decode_untrusted, encode
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, MAGIC, FrameDecoder
from clusternode.core.wire.messages import (
    Ack,
    Close,
    Hello,
    List,
    Message,
    Ping,
    Proof,
    Records,
    Reply,
    Request,
    Results,
    Want,
)
from clusternode.errors import RemoteProtocolError

HELLO = ["voip", "n1", 1, bytes(16), 1, 1, "tcp://h:1", 1, 1, "", bytes(16)]
NESTING_MAX = 1024
"""Arrays in arrays that msgpack takes, in a field that a newer version appended."""


def changed(fields, index, value):
    return [*fields[:index], value, *fields[index + 1 :]]


def record(**changes):
    fields = {
        "id": "n1",
        "inc": 1,
        "version": 1,
        "address": "tcp://h:1",
        "tags": [],
        "channels": [],
    }
    return [list({**fields, **changes}.values())]


LIMITS: dict[str, tuple[Any, Any, Any]] = {  # name → message class, limit, fields with n of it
    "name": (Want, limits.NAME_LENGTH_MAX, lambda n: [["x" * n]]),
    "content type": (
        Message,
        limits.CONTENT_TYPE_LENGTH_MAX,
        lambda n: ["c", "x" * n, b"", 1],
    ),
    "tag of a request": (
        Request,
        limits.TAG_LENGTH_MAX,
        lambda n: ["c", "", b"", "x" * n, 1.0],
    ),
    "tag of a reply": (Reply, limits.TAG_LENGTH_MAX, lambda n: ["x" * n, "", b""]),
    "agent": (Hello, limits.AGENT_LENGTH_MAX, lambda n: changed(HELLO, 9, "x" * n)),
    "nonce": (Hello, limits.NONCE_LENGTH, lambda n: changed(HELLO, 3, bytes(n))),
    "challenge": (Hello, limits.NONCE_LENGTH, lambda n: changed(HELLO, 10, bytes(n))),
    "offered body": (Hello, limits.BODY_SIZE_LIMIT, lambda n: changed(HELLO, 7, n)),
    "version": (Hello, limits.U16_MAX, lambda n: changed(HELLO, 5, n)),
    "proof": (Proof, limits.PROOF_LENGTH, lambda n: [bytes(n)]),
    "detail": (Close, limits.DETAIL_LENGTH_MAX, lambda n: [0, "x" * n]),
    "count": (Ack, limits.COUNT_MAX, lambda n: [n]),
    "forwards": (Message, limits.U8_MAX, lambda n: ["c", "", b"", 1, n]),
    "seconds": (Request, limits.SECONDS_MAX, lambda n: ["c", "", b"", "t", float(n)]),
    "body": (Message, limits.BODY_SIZE_LIMIT, lambda n: ["c", "", bytes(n), 1]),
    "entries": (List, limits.ENTRIES_MAX, lambda n: [[["n", 1, 1, 0]] * n]),
    "ids": (Want, limits.ENTRIES_MAX, lambda n: [["n"] * n]),
    "records": (Records, limits.ENTRIES_MAX, lambda n: [record() * n]),
    "runs": (Results, limits.ENTRIES_MAX, lambda n: [[[1, 1, 200]] * n]),
    "run length": (Results, limits.RUN_LENGTH_MAX, lambda n: [[[1, n, 200]]]),
    "tags": (Records, limits.TAGS_MAX, lambda n: [record(tags=[[f"k{i}", ""] for i in range(n)])]),
    "tag value": (
        Records,
        limits.TAG_VALUE_LENGTH_MAX,
        lambda n: [record(tags=[["k", "x" * n]])],
    ),
    "channels": (
        Records,
        limits.CHANNELS_MAX,
        lambda n: [record(channels=[f"c{i}" for i in range(n)])],
    ),
    "fields": (Ack, limits.FIELDS_MAX, lambda n: [1] * n),
}


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_limit_is_taken_and_one_past_it_is_refused(name):
    cls, limit, fields = LIMITS[name]

    decode_untrusted(cls.TYPE, msgpack.packb(fields(limit)))

    with pytest.raises(RemoteProtocolError):
        decode_untrusted(cls.TYPE, msgpack.packb(fields(limit + 1)))


def test_an_address_has_a_bounded_length():
    host = "h" * 240
    longest = f"tcp://{host}:{1}"
    assert len(longest) < limits.ADDRESS_LENGTH_MAX

    decode_untrusted(Hello.TYPE, msgpack.packb(changed(HELLO, 6, longest)))

    for length in (limits.ADDRESS_LENGTH_MAX, limits.ADDRESS_LENGTH_MAX + 1):
        address = "tcp://" + "h" * (length - len("tcp://:1")) + ":1"
        with pytest.raises(RemoteProtocolError):  # a host has 253 characters at most
            decode_untrusted(Hello.TYPE, msgpack.packb(changed(HELLO, 6, address)))


@pytest.mark.parametrize("payload_max", [limits.CONTROL_PAYLOAD_MAX, 100])
def test_a_frame_has_a_bounded_length(payload_max):
    decoder = FrameDecoder(HEADER_SIZE + payload_max)
    frame = HEADER.pack(MAGIC, HEADER_SIZE + payload_max, 99, 0) + bytes(payload_max)

    assert len(decoder.feed_untrusted(frame)[0]) == 1
    _, problem = decoder.feed_untrusted(HEADER.pack(MAGIC, HEADER_SIZE + payload_max + 1, 99, 0))

    assert "at most" in problem


def test_a_control_message_has_a_bounded_payload():
    for extra, is_refused in ((0, False), (1, True)):
        payload = bytes(limits.CONTROL_PAYLOAD_MAX + extra)
        if is_refused:
            with pytest.raises(RemoteProtocolError):
                decode_untrusted(15, payload)
        else:
            decode_untrusted(15, payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ],
)
def test_what_announces_more_than_there_is_takes_no_memory(payload):
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(Records.TYPE, b"\x91" + payload)


def test_a_digest_has_64_bits():
    frame = encode(Ping(1, limits.DIGEST_MAX))

    assert decode_untrusted(Ping.TYPE, frame[HEADER_SIZE:]) == Ping(1, limits.DIGEST_MAX)


def test_arrays_are_nested_to_a_bounded_depth():
    appended = b"\x92\x01"  # an array of Ack's field and of one that is unknown here

    assert decode_untrusted(Ack.TYPE, appended + b"\x91" * (NESTING_MAX - 1) + b"\x01") == Ack(1)

    with pytest.raises(RemoteProtocolError):
        decode_untrusted(Ack.TYPE, appended + b"\x91" * NESTING_MAX + b"\x01")
