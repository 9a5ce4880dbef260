"""Bounds, overflow policies and time limits: every message gets exactly one result."""

from __future__ import annotations

from clusternode.core.events import LimitReached
from clusternode.core.messaging.delivery import UNANSWERED_MAX
from clusternode.core.settings import ChannelSettings
from clusternode.core.types import OverflowPolicy, ResultCode
from clusternode.core.wire.messages import Results, Run
from tests.core.messaging.halves import Half, joined

OK, BUSY, TIMEOUT = ResultCode.OK, ResultCode.BUSY, ResultCode.TIMEOUT
CHANNELS = {
    "drop": ChannelSettings(overflow=OverflowPolicy.DROP_OLDEST),
    "wait": ChannelSettings(overflow=OverflowPolicy.WAIT),
}
BODY = b"." * 900  # four of them fit into the outbox


def narrow(**more):
    """Two halves that are not connected, and room for four bodies."""
    a, b, cable = joined(channels=CHANNELS, outbox_bytes=4100, **more)
    cable.cut()
    return a, b, cable


def codes(half, *deliveries, node_id="b"):
    return [half.results.get((one, node_id)) for one in deliveries]


def test_a_member_that_is_not_active_gets_unavailable_at_once():
    half = Half("a")
    one = half.publish("b", "c", active=False)

    assert half.fanouts[one] == ["b", "c"]
    assert codes(half, one) == [[ResultCode.UNAVAILABLE]]
    assert codes(half, one, node_id="c") == [[ResultCode.UNAVAILABLE]]


def test_an_active_member_without_a_stream_gets_unavailable():
    half = Half("a")

    assert codes(half, half.publish("b")) == [[ResultCode.UNAVAILABLE]]


def test_a_body_larger_than_the_receiver_takes_is_not_sent():
    a, b, cable = joined(body_size_max=10)
    large, fitting = a.publish("b", body=b"." * 11), a.publish("b", body=b"." * 10)
    cable.settle()

    assert codes(a, large, fitting) == [[ResultCode.TOO_LARGE], [OK]]
    assert len(b.taken) == 1


def test_a_full_outbox_rejects_and_says_so_once_until_it_is_over():
    a, _, cable = narrow()
    deliveries = [a.publish("b", body=BODY) for _ in range(6)]
    assert codes(a, *deliveries) == [None] * 4 + [[BUSY]] * 2
    assert [type(event) for event in a.events] == [LimitReached]
    cable.settle()
    a.advance_to(a.now + 1)
    cable.settle()
    assert codes(a, a.publish("b")) == [None]
    cable.cut()
    for _ in range(6):
        a.publish("b", body=BODY)

    assert codes(a, *deliveries[:4]) == [[OK]] * 4
    assert len(a.events) == 2


def test_an_outbox_takes_what_fits_exactly_and_not_one_byte_more():
    probe, _, _ = narrow()
    probe.publish("b", body=BODY)
    size = probe.stream("b").held_bytes
    for outbox_bytes, expected in ((2 * size, None), (2 * size - 1, [BUSY])):
        a, _, cable = joined(outbox_bytes=outbox_bytes)
        cable.cut()

        first, second = a.publish("b", body=BODY), a.publish("b", body=BODY)

        assert codes(a, first, second) == [None, expected]


def test_the_last_result_that_may_be_waited_for_has_room_and_one_more_has_not():
    a, _, cable = joined()
    one = a.publish("b")
    cable.pump()
    sending = a.stream("b").sending
    waits = sending.pending[1]
    sending.pending.update((-number, waits) for number in range(1, UNANSWERED_MAX - 1))

    last = a.publish("b")
    cable.pump()
    beyond = a.publish("b")

    assert len(sending.pending) == UNANSWERED_MAX
    assert codes(a, one, last, beyond) == [None, None, [BUSY]]


def test_drop_oldest_drops_only_unwritten_messages_of_its_channel():
    a, b, cable = narrow()
    other = a.publish("b", body=BODY)
    request = a.ask("b", channel="drop")
    old = [a.publish("b", body=BODY, channel="drop") for _ in range(3)]
    new = a.publish("b", body=BODY, channel="drop")

    assert codes(a, other, *old, new) == [None, [BUSY], None, None, None]
    a.check()
    cable.settle()
    assert codes(a, other, *old[1:], new) == [[OK]] * 4
    assert request in a.ended
    assert len(b.taken) == 5


def test_drop_oldest_drops_nothing_when_that_would_not_be_enough():
    a, b, cable = joined(channels=CHANNELS, outbox_bytes=4000)
    written = a.publish("b", body=BODY, channel="drop")
    cable.write(a)
    cable.cut()
    others = [a.publish("b", body=BODY) for _ in range(3)]
    new = a.publish("b", body=BODY, channel="drop")

    assert codes(a, written, *others, new) == [None] * 4 + [[BUSY]]
    a.check()
    cable.settle()
    assert len(b.taken) == 4


def test_a_waiting_message_goes_when_there_is_room():
    a, _, cable = narrow()
    first = [a.publish("b", body=BODY) for _ in range(4)]
    waiting = [a.publish("b", body=BODY, channel="wait") for _ in range(2)]
    assert codes(a, *waiting) == [None, None]
    cable.pump()
    for half in (cable.right, cable.left):
        half.advance_to(half.now + 0.1)
    cable.settle()

    assert codes(a, *first, *waiting) == [[OK]] * 6


def test_a_waiting_message_ends_as_busy_after_wait_max():
    a, _, _ = narrow()
    for _ in range(4):
        a.publish("b", body=BODY)
    first = a.publish("b", body=BODY, channel="wait")
    a.advance_to(a.now + 0.5)
    second = a.publish("b", body=BODY, channel="wait")
    a.advance_to(a.now + 0.6)
    assert codes(a, first, second) == [[BUSY], None]
    a.advance_to(a.now + 0.5)
    assert codes(a, second) == [[BUSY]]


def test_too_much_that_waits_is_busy_at_once():
    a, _, _ = narrow()
    for _ in range(4):
        a.publish("b", body=BODY)
    waiting = [a.publish("b", body=BODY, channel="wait") for _ in range(5)]

    assert codes(a, *waiting) == [None] * 4 + [[BUSY]]


def test_others_that_find_room_pass_those_that_wait():
    a, _, _ = narrow()
    for _ in range(3):
        a.publish("b", body=BODY)
    large = a.publish("b", body=b"." * 2000, channel="wait")
    small_behind = a.publish("b", channel="wait")
    small = a.publish("b")

    sending = a.stream("b").sending
    assert [one.delivery for one in sending.unsent][-1] == small
    assert [one.delivery for one, _ in a.stream("b").waiting] == [large, small_behind]


def test_room_that_time_makes_is_given_to_those_that_wait():
    a, _, _ = narrow(wait_max=100.0, delivery_timeout=5.0, result_timeout=5.0)
    first = [a.publish("b", body=BODY) for _ in range(4)]
    a.advance_to(a.now + 1)
    waiting = a.publish("b", body=BODY, channel="wait")
    a.advance_to(a.now + 4.5)

    assert codes(a, *first) == [[ResultCode.UNAVAILABLE]] * 4
    assert not a.stream("b").waiting
    a.advance_to(a.now + 5)
    assert codes(a, waiting) == [[ResultCode.UNAVAILABLE]]


def test_what_waits_ends_when_the_member_is_gone():
    a, _, _ = narrow()
    for _ in range(4):
        a.publish("b", body=BODY)
    waiting = a.publish("b", body=BODY, channel="wait")
    request = a.ask("b", channel="wait", body=BODY)
    other = a.ask("b", channel="wait", body=BODY)
    a.disabled("b")
    assert {request, other} == set(a.ended)
    a.gone("b")

    assert codes(a, waiting) == [[ResultCode.UNAVAILABLE]]


def test_a_waiting_request_that_is_cancelled_waits_no_longer():
    a, _, _ = narrow()
    for _ in range(4):
        a.publish("b", body=BODY)
    request = a.ask("b", channel="wait", body=BODY)
    a.cancel(request)

    assert not a.stream("b").waiting


def test_a_peer_that_acknowledges_and_never_answers_gets_a_bounded_number():
    a, _, cable = joined(channels=CHANNELS)
    sending = a.stream("b").sending
    one = a.publish("b")
    cable.pump()
    waits = sending.pending[1]
    sending.pending.update((-number, waits) for number in range(UNANSWERED_MAX - 1))
    rejected, dropping = a.publish("b"), a.publish("b", channel="drop")
    waiting = a.publish("b", channel="wait")

    assert codes(a, one, rejected, dropping, waiting) == [None, [BUSY], [BUSY], None]
    for number in range(UNANSWERED_MAX - 1):
        del sending.pending[-number]
    stream = a.stream("b")
    a.do(a.messaging.receive_untrusted, stream, [Results([Run(1, 1, 200)])], a.now)
    assert not stream.waiting


def test_a_result_that_does_not_come_is_a_timeout():
    a, b, cable = joined()
    first = a.publish("b")
    cable.pump()
    a.advance_to(a.now + 10)
    second = a.publish("b")
    cable.pump()
    a.advance_to(a.now + 20)
    assert codes(a, first, second) == [[TIMEOUT], None]
    a.advance_to(a.now + 10)
    b.handle()
    cable.settle()

    assert codes(a, first, second) == [[TIMEOUT], [TIMEOUT]]


def test_long_requests_do_not_delay_the_timeouts_of_messages():
    a, _, cable = joined()
    request = a.ask("b", timeout=300.0)
    written = a.publish("b")
    cable.pump()
    cable.cut()
    a.ask("b", timeout=300.0)
    unwritten = a.publish("b")
    a.advance_to(a.now + 30)

    assert codes(a, written, unwritten) == [[TIMEOUT], [ResultCode.UNAVAILABLE]]
    assert request not in a.ended


def test_a_message_that_waited_gets_its_timeout_too():
    a, b, cable = narrow()
    for _ in range(4):
        a.publish("b", body=BODY)
    waiting = a.publish("b", body=BODY, channel="wait")
    cable.pump()
    b.advance_to(b.now + 0.02)
    cable.pump()
    a.advance_to(a.now + 32)

    assert codes(a, waiting) == [[TIMEOUT]]
    assert not a.stream("b").sending.pending


def test_nothing_that_is_settled_leaves_a_timer_that_spins():
    a, b, cable = joined()
    a.publish("b")
    cable.settle()
    for half in (b, a):
        half.advance_to(half.now + 0.1)
        cable.settle()
    a.advance_to(a.now + 100)

    assert not len(a.context.timers)
    assert not a.stream("b").is_expiry_set


def test_a_stopping_node_gives_every_result_that_is_still_waited_for():
    a, _, cable = joined()
    one, request, own, asked = a.publish("b"), a.ask("b"), a.publish("a"), a.ask("a")
    cable.pump()
    assert not a.messaging.is_drained()
    a.handle(1)
    assert not a.messaging.is_drained()
    a.handle(1)
    own_late = a.publish("a")
    a.do(a.messaging.abandon_all)

    assert codes(a, one) == [[TIMEOUT]]
    assert codes(a, own, own_late, node_id="a") == [[OK], [TIMEOUT]]
    assert set(a.ended) == {request, asked}


def test_a_node_is_drained_when_nothing_is_handled_or_waited_for():
    a, b, cable = joined()
    a.publish("b")
    cable.pump()
    assert not b.messaging.is_drained()
    assert not a.messaging.is_drained()
    b.handle()
    assert b.messaging.has_output(a.node_id)
    cable.settle()
    for half in (b, a):
        half.advance_to(half.now + 0.1)
    cable.settle()
    for half in (b, a):
        half.advance_to(half.now + 0.1)
    cable.settle()

    assert a.messaging.is_drained()
    assert b.messaging.is_drained()


def test_a_leaving_node_refuses_messages_and_requests_and_still_shows_replies():
    a, b, cable = joined()
    asked = b.ask("a")
    cable.pump()
    b.messaging.is_leaving = True
    one, request = a.publish("b"), a.ask("b")
    a.handle_request(b"yes")
    cable.settle()

    assert codes(a, one) == [[ResultCode.LEAVING]]
    assert a.finished[request] == [("b", "failed", 503)]
    assert b.replies[asked] == [("a", b"yes")]
    assert [type(message).__name__ for *_, message in b.taken] == ["Reply"]


# To ourselves


def test_a_message_to_ourselves_takes_the_same_path():
    half = Half("a")
    one, two = half.publish("a"), half.publish("a")
    half.handle(1)
    half.handle(1, ResultCode.FAILED)

    assert codes(half, one, two, node_id="a") == [[OK], [ResultCode.FAILED]]
    assert half.messaging.is_drained()


def test_a_message_to_ourselves_obeys_our_own_limits():
    half = Half("a", body_size_max=10)
    large = half.publish("a", body=b"." * 11)
    asked = half.ask("a", body=b"." * 11)
    half.messaging.is_leaving = True
    late = half.publish("a")

    assert codes(half, large, late, node_id="a") == [[ResultCode.TOO_LARGE], [ResultCode.LEAVING]]
    assert half.finished[asked] == [("a", "failed", 413)]
    assert not half.taken


def test_a_message_to_ourselves_that_is_handled_for_too_long_is_a_timeout():
    half = Half("a")
    first = half.publish("a")
    half.advance_to(half.now + 10)
    second = half.publish("a")
    half.advance_to(half.now + 21)
    assert codes(half, first, second, node_id="a") == [[TIMEOUT], None]
    half.handle()
    half.advance_to(half.now + 30)

    assert codes(half, first, second, node_id="a") == [[TIMEOUT], [OK]]


def test_what_was_not_written_in_time_ends_each_at_its_own_time():
    a, _, _ = narrow()
    early = a.publish("b")
    request = a.ask("b", timeout=100.0)
    a.advance_to(a.now + 1)
    late = a.publish("b")
    a.advance_to(a.now + 29.5)
    assert codes(a, early, late) == [[ResultCode.UNAVAILABLE], None]
    a.advance_to(a.now + 1)

    assert codes(a, late) == [[ResultCode.UNAVAILABLE]]
    assert request not in a.ended
    a.check()
