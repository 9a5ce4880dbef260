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
    Proof,
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


# --- the cluster secret ---------------------------------------------------------------------------

OLD, NEW = b"the old secret of ours", b"the new secret of ours"
C = hello("n1", challenge=bytes(range(16)))
D = hello("n2", challenge=bytes(range(16, 32)))


def proving(dialer_secrets, listener_secrets, *, client=C, server=D):
    return (
        Session.dial(client, dialer_secrets),
        Session.listen(
            lambda cluster: server if cluster == server.cluster else None,
            lambda cluster: listener_secrets,
        ),
    )


def shake(dialer, listener):
    """Carry bytes until nobody has more to say; whatever is raised ends it."""
    while True:
        to_listener, to_dialer = dialer.data_to_send(), listener.data_to_send()
        if not to_listener and not to_dialer:
            return
        if to_listener:
            listener.receive_data_untrusted(to_listener)
        if to_dialer:
            dialer.receive_data_untrusted(to_dialer)


@pytest.mark.parametrize(
    ("dialer_secrets", "listener_secrets"),
    [
        ([OLD], [OLD]),
        ([OLD], [OLD, NEW]),
        ([OLD, NEW], [NEW, OLD]),
        ([NEW, OLD], [OLD, NEW]),
        ([NEW], [NEW, OLD]),
    ],
)
def test_a_secret_is_changed_in_three_steps_that_all_understand_each_other(
    dialer_secrets, listener_secrets
):
    dialer, listener = proving(dialer_secrets, listener_secrets)

    shake(dialer, listener)

    assert dialer.is_open and listener.is_open
    assert (dialer.peer, listener.peer) == (D, C)


@pytest.mark.parametrize(
    ("dialer_secrets", "listener_secrets"), [([OLD], [NEW]), ([NEW, OLD], [OLD])]
)
def test_another_secret_is_refused_by_the_side_that_reads_the_proof(
    dialer_secrets, listener_secrets
):
    dialer, listener = proving(dialer_secrets, listener_secrets)

    with pytest.raises(RemoteProtocolError, match="n1 has another cluster secret") as raised:
        shake(dialer, listener)

    assert raised.value.reason == CloseReason.AUTHENTICATION
    assert not dialer.is_open and not listener.is_open
    assert dialer.peer is None and listener.peer is None
    assert listener.data_to_send() == b""  # no proof for somebody who has none


def test_a_listener_that_does_not_know_the_secret_is_refused_by_the_dialer():
    dialer, listener = proving([OLD], [OLD])
    listener.receive_data_untrusted(dialer.data_to_send())
    dialer.receive_data_untrusted(listener.data_to_send())
    dialer.data_to_send()

    error = refusal(dialer, encode(Proof(bytes(limits.PROOF_LENGTH))))

    assert error.reason == CloseReason.AUTHENTICATION
    assert not dialer.is_open


@pytest.mark.parametrize(
    ("dialer", "listener"),
    [
        (Session.dial(A), proving([OLD], [OLD])[1]),
        (proving([OLD], [OLD])[0], listening()),
    ],
)
def test_a_secret_on_one_side_only_is_refused_before_anything_else_is_said(dialer, listener):
    error = refusal(listener, dialer.data_to_send())

    assert error.reason == CloseReason.AUTHENTICATION
    assert "on one side only" in str(error)
    assert listener.data_to_send() == b""


def test_a_dialer_with_a_secret_gives_no_proof_to_a_listener_without():
    dialer, _ = proving([OLD], [OLD])
    dialer.data_to_send()

    assert refusal(dialer, encode(B)).reason == CloseReason.AUTHENTICATION
    assert dialer.data_to_send() == b""


def test_a_dialer_gets_no_proof_before_it_has_proved_itself():
    dialer, listener = proving([OLD], [OLD])

    listener.receive_data_untrusted(dialer.data_to_send())

    assert listener.data_to_send() == encode(D)  # and no more


def test_a_proof_that_is_sent_back_is_worth_nothing():
    """A dials an attacker, who dials A, and gives each what the other says."""
    dialer, listener = proving([OLD], [OLD], client=C, server=D)
    listener.receive_data_untrusted(dialer.data_to_send())
    dialer.receive_data_untrusted(listener.data_to_send())
    proof = dialer.data_to_send()

    assert refusal(dialer, proof).reason == CloseReason.AUTHENTICATION


def test_a_handshake_that_was_recorded_opens_nothing_again():
    dialer, listener = proving([OLD], [OLD])
    first = dialer.data_to_send()
    listener.receive_data_untrusted(first)
    dialer.receive_data_untrusted(listener.data_to_send())
    second = dialer.data_to_send()
    listener.receive_data_untrusted(second)
    assert listener.is_open

    _, again = proving([OLD], [OLD], server=attrs.evolve(D, challenge=bytes(16)))
    again.receive_data_untrusted(first)

    assert refusal(again, second).reason == CloseReason.AUTHENTICATION


@pytest.mark.parametrize("changed", ["node_id", "incarnation", "address", "window_bytes", "agent"])
def test_what_a_hello_says_cannot_be_changed_on_the_way(changed):
    dialer, listener = proving([OLD], [OLD])
    dialer.data_to_send()
    value = getattr(C, changed)
    other = attrs.evolve(C, **{changed: value + (value.__class__("1"))})

    listener.receive_data_untrusted(encode(other))
    dialer.receive_data_untrusted(listener.data_to_send())

    assert refusal(listener, dialer.data_to_send()).reason == CloseReason.AUTHENTICATION


@pytest.mark.parametrize("message", [Ping(1, 0), Resume(0, 1), C, Unknown])
def test_nothing_but_a_proof_is_read_before_the_proof(message):
    _, listener = proving([OLD], [OLD])
    frame = encode(message) if message is not Unknown else HEADER.pack(MAGIC, HEADER_SIZE, 99, 0)

    error = refusal(listener, encode(C) + frame)

    assert (error.reason, listener.salvaged) == (CloseReason.PROTOCOL_ERROR, [])


def test_where_a_proof_is_expected_only_a_short_frame_is_taken():
    for size, is_refused in ((limits.PROOF_BYTES_MAX, False), (limits.PROOF_BYTES_MAX + 1, True)):
        _, listener = proving([OLD], [OLD])
        listener.receive_data_untrusted(encode(C))
        header = HEADER.pack(MAGIC, size, Close.TYPE, 0)
        if is_refused:
            assert f"at most {limits.PROOF_BYTES_MAX}" in str(refusal(listener, header))
        else:
            assert listener.receive_data_untrusted(header) == []


def test_messages_right_after_the_listeners_proof_are_not_lost():
    dialer, listener = proving([OLD], [OLD])
    listener.receive_data_untrusted(dialer.data_to_send())
    hello_frame = listener.data_to_send()
    dialer.receive_data_untrusted(hello_frame)
    listener.receive_data_untrusted(dialer.data_to_send())

    got = dialer.receive_data_untrusted(listener.data_to_send() + encode(Resume(0, 1)))

    assert got == [Resume(0, 1)]


def test_a_close_instead_of_a_proof_is_heard():
    dialer, listener = proving([OLD], [OLD])
    listener.receive_data_untrusted(dialer.data_to_send())
    dialer.receive_data_untrusted(listener.data_to_send())

    dialer.receive_data_untrusted(Session.close_bytes(CloseReason.AUTHENTICATION, "no"))

    assert dialer.peer_close == Close(CloseReason.AUTHENTICATION, "no")


@given(st.data(), st.booleans())
def test_the_handshake_survives_any_chopping(data, is_same):
    dialer, listener = proving([OLD], [OLD if is_same else NEW])
    with contextlib.suppress(RemoteProtocolError):
        while to_listener := dialer.data_to_send():
            for read in data.draw(strategies.chopped(to_listener)):
                listener.receive_data_untrusted(read)
            for read in data.draw(strategies.chopped(listener.data_to_send())):
                dialer.receive_data_untrusted(read)

    assert dialer.is_open is listener.is_open is is_same


def test_a_hello_without_a_challenge_cannot_go_with_a_secret():
    with pytest.raises(LocalProtocolError):
        Session.dial(A, [OLD])
    with pytest.raises(LocalProtocolError):
        Session.dial(C)


def test_a_certificate_must_name_the_node():
    for names, is_open in ((["n1"], True), (["n2", "n10"], False), ([], False)):
        session = listening()
        session.peer_is_certified_as(names)
        if is_open:
            session.receive_data_untrusted(encode(A))
        else:
            error = refusal(session, encode(A))
            assert error.reason == CloseReason.AUTHENTICATION
            assert "n1 has a certificate that names" in str(error)
        assert session.is_open is is_open
