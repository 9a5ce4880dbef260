"""Streams that nothing was ever sent over: they are made when needed, and work as others do."""

from __future__ import annotations

import attrs
import pytest

from clusternode.core.messaging.streams import MEMORY_FACTOR
from clusternode.core.types import Incarnation, NodeId, ResultCode
from clusternode.core.wire.messages import Resume
from tests.core.messaging.halves import Cable, Half, joined

B = NodeId("b")
FRESH = Resume(0, 1)


def offered():
    """Return a half that has sent its Resume, and what the peer said of itself."""
    half, peer = Half("a"), Half("b")
    hello = attrs.evolve(peer.hello, window_bytes=5000, body_size_max=700)
    assert half.do(half.messaging.resume_of, B, hello) == FRESH
    return half, hello


def made(half):
    return [stream.node_id for stream in half.messaging.deliveries.made()]


def test_a_stream_is_made_by_the_first_message_on_both_sides():
    a, b, cable = joined()
    assert (made(a), made(b)) == ([], [])
    assert a.messaging.is_quiet(B) and not a.messaging.has_output(B)
    assert a.messaging.take(B, 1000) == []
    assert a.messaging.position_mark(B) == 0

    one = a.publish("b")
    cable.settle()

    assert (made(a), made(b)) == (["b"], ["a"])
    assert a.results == {(one, "b"): [ResultCode.OK]}


def test_only_streams_that_are_used_have_their_positions_looked_up():
    a, _, cable = joined()
    a.messaging.resume_of(NodeId("c"), Half("c").hello)
    a.publish("b")
    cable.settle()

    assert a.messaging.position_marks([NodeId("c"), B, NodeId("d")]) == [0, 1, 0]
    assert made(a) == ["b"]


@pytest.mark.parametrize("is_opened", [False, True])
def test_a_stream_that_is_made_late_knows_what_was_agreed(is_opened):
    half, hello = offered()
    if is_opened:
        assert half.do(half.messaging.resumed_untrusted, B, FRESH, half.now)
    stream = half.stream("b")

    assert stream.is_bound
    assert stream.is_opened is is_opened
    assert stream.incarnation == hello.incarnation
    assert (stream.body_size_max, stream.sending.window_bytes) == (700, 5000)


def test_what_is_sent_between_two_connections_that_carried_nothing_arrives():
    a, b, cable = joined()
    cable.cut()

    one = a.publish("b")
    assert a.results == {}
    cable.begin()
    cable.settle()

    assert a.results == {(one, "b"): [ResultCode.OK]}
    assert len(b.taken) == 1


@pytest.mark.parametrize(("last_received", "first_held"), [(7, 4), (7, 1), (0, 4)])
def test_a_peer_that_remembers_more_is_believed_on_an_unused_stream(last_received, first_held):
    half, _ = offered()

    resume = Resume(last_received, first_held)
    assert half.do(half.messaging.resumed_untrusted, B, resume, half.now)
    assert half.stream("b").sending.given == last_received
    assert half.stream("b").receiving.last_received == first_held - 1


def test_an_unused_stream_is_forgotten_when_its_member_is_gone_and_its_connection_has_ended():
    a, _, cable = joined()
    a.gone("b")
    cable.cut()
    a.advance_to(a.now + MEMORY_FACTOR * a.settings.messaging.delivery_timeout + 0.1)

    assert not a.messaging.deliveries.streams


def test_the_last_hello_of_a_life_counts_for_an_unused_stream():
    half, hello = offered()
    half.do(half.messaging.resume_of, B, attrs.evolve(hello, window_bytes=9000))

    assert half.stream("b").sending.window_bytes == 9000


def test_an_unused_stream_ends_with_the_life_of_its_peer():
    half, hello = offered()
    half.do(half.messaging.resumed_untrusted, B, FRESH, half.now)
    later = attrs.evolve(hello, incarnation=Incarnation(hello.incarnation + 1))

    assert half.do(half.messaging.resume_of, B, later) == FRESH
    assert half.stream("b").incarnation == later.incarnation
    assert not half.stream("b").is_opened


def test_streams_end_in_the_order_in_which_they_began_and_not_in_that_of_their_use():
    a = Half("a")
    for name in ("b", "c"):
        Cable(a, Half(name)).pump()
    for name in ("c", "b"):
        a.publish(name)
    a.do(a.messaging.abandon_all)

    assert [node_id for _, node_id in a.results] == ["b", "c"]
