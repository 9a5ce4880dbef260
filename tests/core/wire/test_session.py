"""Tests of clusternode.core.wire.session."""

from __future__ import annotations

import contextlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.types import ChannelName, Incarnation, NodeId
from clusternode.core.wire import limits
from clusternode.core.wire.codec import encode
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, MAGIC
from clusternode.core.wire.messages import (
    Ack,
    Close,
    CloseReason,
    Hello,
    List,
    ListEntry,
    Message,
    Ping,
    Results,
    Resume,
    Run,
    Unknown,
)
from clusternode.core.wire.session import Session
from clusternode.errors import LocalProtocolError, RemoteProtocolError
from tests import strategies


def hello(node_id, **changes):
    fields = Hello(
        cluster="voip",
        node_id=node_id,
        incarnation=Incarnation(1 << 60),
        nonce=node_id.encode() * 8,
        protocol_min=1,
        protocol_max=1,
        address="tcp://10.0.0.1:5062",
        body_size_max=1000,
        window_bytes=10_000,
    )
    return attrs.evolve(fields, **changes)


A, B = hello("n1"), hello("n2")


def listening(own=B):
    return Session.listen(lambda cluster: own if cluster == own.cluster else None)


def opened(own=B, peer=A):
    """A listener's session after the handshake."""
    session = listening(own)
    session.receive_data_untrusted(encode(peer))
    return session


def refusal(session, data):
    with pytest.raises(RemoteProtocolError) as raised:
        session.receive_data_untrusted(data)
    return raised.value


def test_both_sides_know_each_other_after_the_handshake():
    dialer, listener = Session.dial(A), listening()

    listener.receive_data_untrusted(dialer.data_to_send())
    dialer.receive_data_untrusted(listener.data_to_send())

    assert (dialer.local, dialer.peer, dialer.version) == (A, B, 1)
    assert (listener.local, listener.peer, listener.version) == (B, A, 1)
    assert dialer.is_open and listener.is_open
    assert dialer.data_to_send() == listener.data_to_send() == b""


def test_nobody_is_known_before_the_handshake_ends():
    dialer = Session.dial(A)

    assert dialer.data_to_send() == encode(A)
    assert dialer.data_to_send() == b""
    assert (dialer.local, dialer.peer, dialer.version, dialer.is_open) == (None, None, 0, False)


def test_a_listener_says_nothing_before_it_knows_the_cluster():
    listener = listening()

    assert listener.data_to_send() == b""
    assert listener.receive_data_untrusted(encode(A)[:-1]) == []
    assert listener.data_to_send() == b""
    assert listener.receive_data_untrusted(encode(A)[-1:]) == []
    assert listener.data_to_send() == encode(B)


def test_the_largest_common_version_is_agreed():
    assert opened(hello("n2", protocol_max=3), hello("n1", protocol_max=2)).version == 2


@given(st.lists(strategies.messages, max_size=6), st.data())
def test_messages_survive_any_chopping_from_the_first_byte_on(sent, data):
    session, got = listening(), []
    stream = b"".join(map(encode, [A, *sent]))
    for read in data.draw(strategies.chopped(stream)):
        got += session.receive_data_untrusted(read)

    assert got == sent
    assert session.peer == A


@given(st.lists(st.binary(max_size=99), max_size=5), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_remote_protocol_errors(reads, is_after_hello):
    session = opened() if is_after_hello else listening()
    try:
        for read in reads:
            session.receive_data_untrusted(read)
    except RemoteProtocolError:
        assert not session.is_open


@given(strategies.messages, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_raises_nothing_but_remote_protocol_errors(message, index, change):
    data = bytearray(encode(message))
    data[index % len(data)] ^= change
    with contextlib.suppress(RemoteProtocolError):
        opened().receive_data_untrusted(bytes(data))


def test_a_wrong_cluster_is_refused_by_both_sides():
    assert refusal(listening(), encode(hello("n1", cluster="other"))).reason == (
        CloseReason.WRONG_CLUSTER
    )
    assert refusal(Session.dial(A), encode(hello("n2", cluster="other"))).reason == (
        CloseReason.WRONG_CLUSTER
    )


@pytest.mark.parametrize(("low", "high"), [(2, 3), (0, 0)])
def test_versions_without_overlap_are_refused_with_our_largest(low, high):
    error = refusal(listening(), encode(hello("n1", protocol_min=low, protocol_max=high)))

    assert (error.reason, error.value) == (CloseReason.VERSION, 1)


def test_an_empty_version_range_is_a_protocol_error():
    error = refusal(listening(), encode(hello("n1", protocol_min=2, protocol_max=1)))

    assert error.reason == CloseReason.PROTOCOL_ERROR


def test_our_own_empty_version_range_is_our_own_fault():
    with pytest.raises(LocalProtocolError):
        listening(hello("n2", protocol_min=2)).receive_data_untrusted(encode(A))


def test_garbage_is_refused_at_its_first_byte():
    assert "magic" in str(refusal(listening(), b"GET / HTTP/1.1"))


def test_a_first_message_that_is_no_hello_is_refused():
    assert "expected HELLO" in str(refusal(listening(), encode(Ping(1, 2))))
    assert "expected HELLO" in str(refusal(listening(), HEADER.pack(MAGIC, 12, 99, 0)))


def test_a_second_hello_is_refused():
    assert "second HELLO" in str(refusal(opened(), encode(A)))


def test_a_first_frame_over_the_limit_is_refused_before_it_is_read():
    start = HEADER.pack(MAGIC, limits.HANDSHAKE_BYTES_MAX + 1, Hello.TYPE, 0)

    assert "at most 4096" in str(refusal(listening(), start))


def test_the_largest_hello_fits_into_the_handshake():
    largest = Hello(
        cluster="c" * 64,
        node_id=NodeId("n" * 64),
        incarnation=Incarnation(limits.COUNT_MAX),
        nonce=bytes(16),
        protocol_min=1,
        protocol_max=65535,
        address="tcp://" + "h" * 253 + ":65535",
        body_size_max=limits.BODY_SIZE_LIMIT,
        window_bytes=limits.COUNT_MAX,
        agent="a" * limits.AGENT_LENGTH_MAX,
    )

    assert len(encode(largest)) < limits.HANDSHAKE_BYTES_MAX / 4


def test_a_close_instead_of_a_hello_is_kept():
    dialer = Session.dial(A)

    assert dialer.receive_data_untrusted(Session.close_bytes(5, "n2 is taken", 7)) == []
    assert dialer.peer_close == Close(5, "n2 is taken", 7)
    assert dialer.peer is None
    assert "after CLOSE" in str(refusal(dialer, encode(B)))


def test_a_close_after_the_handshake_is_a_message():
    assert opened().receive_data_untrusted(Session.close_bytes(0)) == [Close(0)]


def test_our_own_nonce_is_left_to_the_node():
    assert opened(B, hello("n2", nonce=B.nonce)).peer.nonce == B.nonce


def test_frames_behind_the_hello_in_the_same_read_are_returned():
    data = encode(A) + encode(Resume(0, 1)) + encode(Ack(3))[:-1]

    assert listening().receive_data_untrusted(data) == [Resume(0, 1)]


def test_types_of_a_newer_version_are_returned_as_unknown():
    data = HEADER.pack(MAGIC, 13, 15, 0) + b"?" + HEADER.pack(MAGIC, 12, 77, 0)

    assert opened().receive_data_untrusted(data) == [Unknown(15), Unknown(77)]


def test_the_good_messages_before_a_fault_are_salvaged():
    session = opened()

    refusal(session, encode(Ack(1)) + encode(Ack(2)) + encode(Ack(3))[:-1] + b"\xc1")

    assert session.salvaged == [Ack(1), Ack(2)]


def test_the_good_messages_before_a_broken_header_are_salvaged():
    session = opened()

    refusal(session, encode(Ack(1)) + b"garbage")

    assert session.salvaged == [Ack(1)]


def test_after_an_error_no_more_data_is_taken():
    session = opened()
    first = refusal(session, b"garbage")

    assert refusal(session, encode(Ack(1))) is first
    assert not session.is_open


def test_bodies_over_our_own_limit_are_refused():
    session = opened()
    message = Message(ChannelName("c"), "t", bytes(1000), 1)
    assert session.receive_data_untrusted(encode(message)) == [message]

    error = refusal(session, encode(Message(ChannelName("c"), "t", bytes(2100), 1)))

    assert error.reason == CloseReason.LIMIT
    assert "at most 2024" in str(error)


def test_lists_and_results_may_be_longer_than_our_bodies():
    entries = List(
        [ListEntry(NodeId(f"n{number}"), Incarnation(1), 1, 0.0) for number in range(900)]
    )

    assert opened().receive_data_untrusted(encode(entries)) == [entries]


def test_results_may_be_longer_than_our_bodies():
    runs = Results([Run(n, n, 200) for n in range(1, 900)])

    assert opened().receive_data_untrusted(encode(runs)) == [runs]


def test_frames_over_every_limit_are_refused_before_they_are_read():
    size = HEADER_SIZE + limits.CONTROL_PAYLOAD_MAX + 1

    assert "at most 1048588" in str(refusal(opened(), HEADER.pack(MAGIC, size, 8, 0)))
