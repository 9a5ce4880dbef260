"""Positions, windows, resending and results between two halves joined by a cable."""

from __future__ import annotations

import pytest

from clusternode.core.messaging.delivery import WINDOW_OVERRUN
from clusternode.core.messaging.sending import (
    RUNS_HELD_MAX,
    RUNS_PER_FRAME_MAX,
    ResultsBuffer,
    Sending,
)
from clusternode.core.types import ChannelName, NodeId, ResultCode, Tag
from clusternode.core.wire.messages import Message, Reply, Request, Results, Resume, Run, Unknown
from tests.core.messaging.halves import Cable, Half, joined

OK = ResultCode.OK


def codes(half, *deliveries, node_id="b"):
    return [half.results.get((one, node_id)) for one in deliveries]


def receive(half, *messages, origin="b"):
    stream = half.stream(origin)
    return half.do(half.messaging.receive_untrusted, stream, list(messages), half.now)


def message(body=b"x", channel="ch"):
    return Message(ChannelName(channel), "t", body, 1)


def test_a_message_is_taken_handled_and_answered_once():
    a, b, cable = joined()

    one = a.publish("b", body=b"hello")
    cable.settle()

    assert [message.body for *_, message in b.taken] == [b"hello"]
    assert codes(a, one) == [[OK]]
    assert not a.stream("b").sending.unacknowledged


def test_results_of_one_batch_travel_as_runs():
    a, b, cable = joined()
    deliveries = [a.publish("b") for _ in range(5)]
    cable.pump()
    b.handle(2)
    b.handle(1, ResultCode.FAILED)
    b.handle()

    assert b.stream("a").sending.own_results().runs == [[1, 2, 200], [3, 3, 500], [4, 5, 200]]
    cable.pump()

    assert codes(a, *deliveries) == [[OK], [OK], [ResultCode.FAILED], [OK], [OK]]


def test_more_runs_than_one_frame_takes_go_into_several():
    b = joined()[1]
    b.stream("a").put_results((one, 200) for one in range(1, 2 * RUNS_PER_FRAME_MAX + 4, 2))
    frames = b.do(b.messaging.take, NodeId("a"), 9999)

    assert [len(frame.message.runs) for frame in frames] == [RUNS_PER_FRAME_MAX, 2]
    assert b.stream("a").sending.given == 2


def test_frames_lost_with_a_connection_are_sent_again_in_their_order():
    a, b, cable = joined()
    deliveries = [a.publish("b", body=b"%d" % one) for one in range(6)]
    cable.write(a, 1)
    cable.read(b)
    cable.write(a, 300)
    cable.cut()
    cable.settle()

    assert [message.body for *_, message in b.taken] == [b"%d" % one for one in range(6)]
    assert codes(a, *deliveries) == [[OK]] * 6


def test_a_resend_is_cut_into_writes_too():
    a, b, cable = joined()
    for one in range(4):
        a.publish("b", body=b"%d" % one)
    cable.write(a)
    cable.cut()
    cable.begin()
    cable.read(b)
    cable.read(a)

    assert [cable.write(a, 1) for _ in range(5)] == [1, 1, 1, 1, 0]


def test_what_was_taken_without_an_acknowledgement_is_not_taken_again():
    a, b, cable = joined()
    one = a.publish("b")
    cable.write(a)
    cable.read(b)
    cable.cut()
    cable.settle()

    assert len(b.taken) == 1
    assert codes(a, one) == [[OK]]


def test_positions_agree_after_a_resume_whose_answer_was_lost():
    a, b, cable = joined()
    lost = a.publish("b", body=b"lost")
    cable.write(a)
    cable.cut()
    cable.begin()  # a's Resume is on the way
    cable.read(b)  # b has answered it
    cable.cut()
    a.advance_to(a.now + 31)  # a drops what b was promised
    b.advance_to(b.now + 31)
    later = a.publish("b", body=b"later")
    cable.settle()

    assert [message.body for *_, message in b.taken] == [b"later"]
    assert codes(a, lost, later) == [[ResultCode.TIMEOUT], [OK]]
    assert a.stream("b").sending.given == b.stream("a").receiving.last_received


def test_a_frame_keeps_its_place_while_its_resume_is_on_the_way():
    a, b, cable = joined(delivery_timeout=2.0)
    one = a.publish("b")
    cable.write(a)
    cable.cut()
    cable.begin()
    a.advance_to(a.now + 3)
    cable.settle()

    assert len(b.taken) == 1
    assert codes(a, one) == [[OK]]


def test_results_that_wait_for_a_connection_are_dropped_after_delivery_timeout():
    a, b, cable = joined(delivery_timeout=5.0)
    one = a.publish("b")
    cable.pump()
    b.handle()
    cable.write(b)
    cable.cut()
    a.advance_to(a.now + 6)
    b.advance_to(b.now + 6)

    assert not b.stream("a").sending.unacknowledged
    cable.settle()
    assert codes(a, one) == [None]
    a.advance_to(a.now + 30)
    assert codes(a, one) == [[ResultCode.TIMEOUT]]


def test_a_request_that_will_never_be_taken_ends_with_the_resume_that_says_so():
    a, _, cable = joined(delivery_timeout=5.0)
    request = a.ask("b", timeout=100.0)
    cable.write(a)
    cable.cut()
    a.advance_to(a.now + 6)
    assert request not in a.ended
    cable.pump()

    assert a.finished[request] == [("b", "failed", 408)]


def test_a_new_incarnation_gets_nothing_of_the_old_one():
    a, _, cable = joined()
    written, request = a.publish("b"), a.ask("b")
    cable.write(a)
    cable.cut()
    unwritten, unwritten_request = a.publish("b"), a.ask("b")

    reborn = Half("b", incarnation=2)
    cable = Cable(a, reborn)
    cable.settle()

    assert not reborn.taken
    assert codes(a, written, unwritten) == [[ResultCode.TIMEOUT], [ResultCode.UNAVAILABLE]]
    assert a.finished[request] == [("b", "failed", 408)]
    assert a.finished[unwritten_request] == [("b", "failed", 480)]
    assert a.ended == [request, unwritten_request]


def test_handlers_of_an_old_incarnation_answer_nobody():
    a, b, cable = joined()
    a.publish("b")
    cable.pump()
    cable.cut()
    reborn = Half("a", incarnation=2)
    cable = Cable(reborn, b)
    cable.pump()
    one = reborn.publish("b")
    b.handle(1)
    cable.pump()

    assert codes(reborn, one) == [None]
    b.handle()
    cable.pump()
    assert codes(reborn, one) == [[OK]]


def test_handlers_of_a_forgotten_node_answer_nobody():
    half = Half("a")
    half.to_handle = [("nobody", 1, 1, message())]
    half.handle()

    assert half.messaging.is_drained()


def test_a_removed_member_that_comes_back_does_not_get_what_it_had_again():
    """The receiver keeps its position for twice delivery_timeout, whatever the member's status."""
    a, b, cable = joined()
    one = a.publish("b")
    cable.write(a)
    cable.read(b)  # b has it, and a does not know that
    cable.cut()
    b.gone("a")
    a.advance_to(a.now + 20)
    b.advance_to(b.now + 20)
    cable.settle()

    assert len(b.taken) == 1
    assert codes(a, one) == [[OK]]


@pytest.mark.parametrize("is_cut_first", [True, False])
def test_a_removed_member_that_comes_back_gets_the_results_that_were_lost(is_cut_first):
    a, b, cable = joined()
    early, one, request = b.publish("a", body=b"early"), a.publish("b"), a.ask("b")
    cable.write(b)
    cable.write(a)
    cable.read(b)
    between = b.publish("a", body=b"between")
    cable.write(b)
    b.handle(1)
    cable.write(b)
    b.publish("a", body=b"late")
    b.handle()
    cable.write(b)  # nothing of all this arrives
    if is_cut_first:
        cable.cut()
        b.gone("a")
    else:
        b.gone("a")
        cable.cut()
    b.check()
    cable.settle()

    assert codes(a, one) == [[OK]]
    assert a.finished[request] == [("b", "nothing", 200)]
    assert codes(b, early, between, node_id="a") == [[ResultCode.TIMEOUT]] * 2
    assert a.taken == []


def test_a_removed_member_is_forgotten_after_twice_delivery_timeout():
    a, _, cable = joined(delivery_timeout=5.0)
    cable.cut()
    a.gone("b")
    a.advance_to(a.now + 9.9)
    assert a.messaging.deliveries.streams
    a.advance_to(a.now + 0.2)

    assert not a.messaging.deliveries.streams
    assert not len(a.context.timers)


def test_a_removed_member_is_not_forgotten_while_its_messages_are_handled():
    a, b, cable = joined(delivery_timeout=5.0)
    a.publish("b")
    cable.pump()
    cable.cut()
    b.gone("a")
    b.advance_to(b.now + 20)
    assert b.messaging.deliveries.streams
    b.handle()
    b.advance_to(b.now)

    assert not b.messaging.deliveries.streams


def test_two_that_have_forgotten_each_other_begin_anew():
    a, b, cable = joined(delivery_timeout=5.0)
    a.publish("b")
    cable.settle()
    cable.cut()
    for half in (a, b):
        half.gone("a" if half is b else "b")
        half.advance_to(half.now + 11)
    one = a.publish("b", active=True)
    assert codes(a, one) == [[ResultCode.UNAVAILABLE]]
    cable.pump()
    two = a.publish("b")
    cable.settle()

    assert codes(a, two) == [[OK]]
    assert a.stream("b").sending.given == b.stream("a").receiving.last_received


def test_one_that_has_forgotten_continues_the_count_of_the_other():
    a, b, cable = joined(delivery_timeout=5.0)
    for _ in range(3):
        a.publish("b")
    cable.settle()
    cable.cut()
    a.gone("b")
    a.advance_to(a.now + 11)
    cable.pump()
    one = a.publish("b")
    cable.settle()

    assert codes(a, one) == [[OK]]
    assert len(b.taken) == 4


def test_a_peer_that_never_opened_leaves_nothing_behind():
    half = Half("a")
    half.do(half.messaging.resume_of, NodeId("b"), Half("b").hello)
    half.disconnected("b")

    assert not half.messaging.deliveries.streams
    half.disconnected("b")
    assert not len(half.context.timers)


def test_what_was_sent_to_a_peer_that_never_opened_ends_before_it_is_forgotten():
    half = Half("a")
    half.do(half.messaging.resume_of, NodeId("b"), Half("b").hello)
    one = half.publish("b")
    half.disconnected("b")
    half.advance_to(half.now + 61)

    assert codes(half, one) == [[ResultCode.UNAVAILABLE]]
    assert not half.messaging.deliveries.streams


def test_a_leaving_member_still_gives_its_results_over_the_connection():
    a, b, cable = joined()
    one, request = a.publish("b"), a.ask("b")
    cable.pump()
    a.gone("b")  # its record says left, and it is still connected
    assert codes(a, one) == [None]
    b.handle(1)
    b.handle_request(b"bye")
    cable.pump()
    cable.cut()

    assert codes(a, one) == [[OK]]
    assert a.replies[request] == [("b", b"bye")]
    assert a.finished[request] == [("b", "replied", 200)]


def test_what_a_leaving_member_did_not_answer_ends_with_its_connection():
    a, _, cable = joined()
    one, request = a.publish("b"), a.ask("b")
    cable.pump()
    a.gone("b")
    cable.cut()

    assert codes(a, one) == [[ResultCode.TIMEOUT]]
    assert a.finished[request] == [("b", "failed", 408)]


def test_a_removed_member_ends_everything_at_once():
    a, _, cable = joined()
    written = a.publish("b")
    cable.write(a)
    cable.cut()
    unwritten, reply = a.publish("b"), a.answer("b", "tag")
    a.gone("b")

    assert codes(a, written) == [[ResultCode.TIMEOUT]]
    assert codes(a, unwritten, reply) == [[ResultCode.UNAVAILABLE]] * 2
    late = a.answer("b", "tag", active=False)
    assert codes(a, late) == [[ResultCode.UNAVAILABLE]]


def test_a_node_that_was_never_met_can_be_gone():
    half = Half("a")
    half.gone("b")
    half.disabled("b")
    half.disconnected("b")

    assert not half.results


def test_a_raised_incarnation_sends_nothing_again_and_goes_on_counting():
    a, b, cable = joined()
    one = a.publish("b")
    cable.write(a)
    cable.read(b)
    b_handles_late = list(b.to_handle)
    a.do(a.messaging.renumbered, 7)
    cable.cut()
    cable.pump()
    two = a.publish("b")
    b.to_handle = b_handles_late
    b.handle()
    cable.pump()

    assert codes(a, one, two) == [[ResultCode.TIMEOUT], None]
    assert len(b.taken) == 2
    assert b.stream("a").incarnation == 7


# Windows and acknowledgements


def test_no_more_than_the_window_is_written_without_an_acknowledgement():
    a, b, cable = joined(window_bytes=500)
    for _ in range(10):
        a.publish("b", body=b"." * 100)

    assert cable.write(a) == 3
    assert not a.messaging.has_output(NodeId("b"))
    cable.read(b)
    b.advance_to(b.now + 0.02)
    assert b.woken[-1] == "a"
    cable.write(b)
    a.woken.clear()
    cable.read(a)
    assert a.woken == ["b"]
    assert a.messaging.has_output(NodeId("b"))


def test_a_window_that_is_exactly_full_takes_nothing_and_one_byte_of_room_one_more():
    probe = joined()[0]
    probe.publish("b", body=b"." * 100)
    size = probe.stream("b").sending.unsent_bytes
    for window_bytes, written in ((2 * size, 2), (2 * size + 1, 3)):
        a, _, cable = joined(window_bytes=window_bytes)
        cable.pump()
        for _ in range(4):
            a.publish("b", body=b"." * 100)

        assert cable.write(a) == written


def test_a_peer_may_overrun_the_window_twice_and_not_by_one_byte_more():
    _, probe, cable = joined()
    cable.pump()
    receive(probe, message(b"." * 900), origin="a")
    overhead = probe.stream("a").receiving.unacknowledged_bytes - 900
    limit = WINDOW_OVERRUN * 500 + 1000
    for excess, is_refused in ((0, False), (1, True)):
        _, b, cable = joined(window_bytes=500, body_size_max=1000)
        cable.pump()
        sizes = (limit // 2 - overhead, limit // 2 - overhead + excess)

        error = receive(b, *(message(b"." * size) for size in sizes), origin="a")

        assert b.stream("a").receiving.unacknowledged_bytes == limit + excess
        assert (error is not None) is is_refused


def test_much_is_acknowledged_at_once():
    a, b, cable = joined()
    b.woken.clear()
    a.publish("b", body=b"." * 600_000)
    cable.write(a)
    cable.read(b)

    assert b.woken == ["a"]
    assert b.messaging.has_output(NodeId("a"))


def test_results_go_beyond_a_full_window():
    a, b, cable = joined(window_bytes=300)
    for half, other in ((a, "b"), (b, "a")):
        half.publish(other, body=b"." * 300)
        half.publish(other, body=b"." * 300)
    cable.write(a)
    cable.write(b)
    cable.read(a)
    cable.read(b)
    b.handle()
    kinds = [type(f.message).__name__ for f in b.do(b.messaging.take, NodeId("a"), 9999)]

    assert kinds == ["Ack", "Results"]


def test_a_node_without_a_stream_has_no_output():
    half = Half("a")

    assert half.messaging.take(NodeId("b"), 100) == []
    assert not half.messaging.has_output(NodeId("b"))
    assert half.messaging.position_mark(NodeId("b")) == 0


def test_the_position_mark_is_the_last_position_given():
    a, _, cable = joined()
    a.publish("b")
    assert a.messaging.position_mark(NodeId("b")) == 0
    cable.pump()
    assert a.messaging.position_mark(NodeId("b")) == 1


# What a peer may do


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (1, 9), (2**62, 2**63 - 1)])
def test_a_result_for_a_position_that_was_never_given_is_refused(first, last):
    a, _, cable = joined()
    a.publish("b")
    cable.write(a)

    assert "a result for the positions" in receive(a, Results([Run(first, last, 200)]))


def test_a_result_that_comes_twice_counts_once():
    a, _, cable = joined()
    one = a.publish("b")
    cable.write(a)
    receive(a, Results([Run(1, 1, 200), Run(1, 1, 500)]), Results([Run(1, 1, 404)]))

    assert codes(a, one) == [[OK]]


def test_a_long_run_settles_what_is_waited_for_in_it():
    a, _, cable = joined()
    deliveries = [a.publish("b") for _ in range(8)]
    cable.write(a)
    receive(a, Results([Run(2, 3, 200), Run(5, 5, 200), Run(7, 7, 404)]))
    receive(a, Results([Run(2, 7, 500)]))
    receive(a, Results([Run(2, 7, 404)]))

    lost = [ResultCode.FAILED]
    assert codes(a, *deliveries) == [
        None, [OK], [OK], lost, [OK], lost, [ResultCode.NOT_FOUND], None,
    ]  # fmt: skip


def test_a_code_that_nobody_knows_is_a_failure():
    a, _, cable = joined()
    one = a.publish("b")
    cable.write(a)
    receive(a, Results([Run(1, 1, 299)]))

    assert codes(a, one) == [[ResultCode.FAILED]]


def test_an_acknowledgement_of_what_was_not_sent_is_refused():
    a, _, cable = joined()
    a.publish("b")
    cable.write(a)
    acknowledged = a.messaging.deliveries.acknowledged_untrusted

    assert not acknowledged(a.stream("b"), 2, a.now)
    assert acknowledged(a.stream("b"), 0, a.now)
    assert acknowledged(a.stream("b"), 1, a.now)
    assert acknowledged(a.stream("b"), 1, a.now)
    a.check()


def test_an_acknowledgement_of_what_is_still_to_be_sent_again_is_refused():
    a, b, cable = joined()
    a.publish("b")
    cable.write(a)
    cable.cut()
    cable.begin()
    cable.read(b)
    cable.read(a)

    assert not a.messaging.deliveries.acknowledged_untrusted(a.stream("b"), 1, a.now)


def test_a_resume_with_positions_that_were_never_given_is_refused():
    a, _, cable = joined()
    a.publish("b")
    cable.write(a)
    cable.cut()
    a.do(a.messaging.resume_of, NodeId("b"), Half("b").hello)

    assert not a.messaging.resumed_untrusted(NodeId("b"), Resume(2, 1), a.now)
    assert not a.messaging.resumed_untrusted(NodeId("nobody"), Resume(0, 1), a.now)
    assert a.messaging.resumed_untrusted(NodeId("b"), Resume(1, 2**63 - 1), a.now)


def test_a_type_that_is_not_known_ends_with_bad_request():
    a, b, _ = joined()

    assert receive(b, Unknown(99), origin="a") is None
    assert b.stream("a").sending.own_results().runs == [[1, 1, 400]]
    assert a.node_id == "a"


def test_a_peer_that_sends_without_reading_acknowledgements_is_cut():
    _, b, _ = joined(window_bytes=1000, body_size_max=1000)
    errors = [receive(b, *[message(b"")] * 10, origin="a") for _ in range(6)]

    assert errors[:4] == [None] * 4
    assert "without an acknowledgement" in errors[-1]


def test_a_peer_that_never_acknowledges_results_is_cut_and_they_are_dropped():
    _, b, cable = joined(window_bytes=1000, body_size_max=1000)
    error = None
    for _ in range(100):
        error = receive(b, message(), origin="a")
        b.handle()
        b.do(b.messaging.take, NodeId("a"), 9999)
        if error is not None:
            break

    assert "not acknowledged" in str(error)
    cable.cut()
    assert not b.stream("a").sending.unacknowledged
    b.check()


def test_a_peer_that_never_reads_results_gets_none():
    _, b, cable = joined()
    receive(b, message(), Request(ChannelName("ch"), "t", b"", Tag("x"), 1.0), origin="a")
    b.publish("a")
    b.handle()
    b.stream("a").put_results((one, 200) for one in range(1, 2 * RUNS_HELD_MAX, 2))
    cable.cut()
    kept = b.stream("a").sending

    assert not kept.results
    assert [type(one).__name__ for one in kept.unsent] == ["Outgoing"]


def test_replies_that_nobody_asked_for_are_only_shown():
    a, b, cable = joined()
    one = b.answer("a", "no such tag")
    cable.settle()

    assert codes(b, one, node_id="a") == [[ResultCode.NOT_FOUND]]
    assert [type(message) for *_, message in a.taken] == [Reply]
    assert not a.replies


# Frames that close the connection


def test_a_frame_that_closed_the_connection_twice_ends_with_bad_request():
    a, b, cable = joined()
    poison, fine = a.publish("b", body=b"poison"), a.publish("b", body=b"fine")
    for _ in range(2):
        cable.write(a)
        cable.cut(blames=b)
        assert codes(a, poison) == [None]
        cable.begin()
        cable.read(b)
        cable.read(a)
    cable.settle()

    assert [message.body for *_, message in b.taken] == [b"fine"]
    assert codes(a, poison, fine) == [[ResultCode.BAD_REQUEST], [OK]]
    a.check()


def test_a_request_that_closed_the_connection_twice_ends_with_bad_request():
    a, b, cable = joined()
    request = a.ask("b")
    for _ in range(2):
        cable.write(a)
        cable.cut(blames=b)
        cable.begin()
        cable.read(b)
        cable.read(a)

    assert a.finished[request] == [("b", "failed", 400)]


def test_a_frame_that_was_taken_is_never_blamed():
    """400 is definite: it must not be said of what the peer has taken and not acknowledged."""
    a, b, cable = joined()
    one = a.publish("b")
    cable.write(a)
    cable.cut(blames=b)
    cable.begin()
    cable.read(b)
    cable.read(a)
    cable.write(a)
    cable.read(b)
    cable.cut(blames=b)
    cable.settle()

    assert len(b.taken) == 1
    assert codes(a, one) == [[OK]]


def test_a_connection_that_carried_nothing_blames_nothing():
    a, b, cable = joined()
    one = a.publish("b")
    cable.write(a)
    for _ in range(4):
        cable.cut(blames=b)
        cable.begin()
        cable.read(b)
        cable.read(a)
    cable.settle()

    assert codes(a, one) == [[OK]]


def test_results_that_closed_the_connection_twice_leave_an_empty_frame():
    a, b, cable = joined()
    one = a.publish("b")
    cable.pump()
    b.handle()
    for _ in range(2):
        cable.write(b)
        cable.cut(blames=a)
        cable.begin()
        cable.read(b)
        cable.read(a)
    cable.settle()

    assert codes(a, one) == [None]
    assert b.stream("a").sending.given == a.stream("b").receiving.last_received


# Order of replies and results


def test_the_end_of_a_request_stays_behind_its_replies():
    a, b, cable = joined(window_bytes=200)
    request = a.ask("b")
    other = a.publish("b")
    cable.pump()
    b.publish("a", body=b"." * 300)  # fills the window
    b.handle_request(b"1" * 100, b"2" * 100)
    b.handle()
    cable.settle()

    assert a.replies[request] == [("b", b"1" * 100), ("b", b"2" * 100)]
    assert a.finished[request] == [("b", "replied", 200)]
    assert codes(a, other) == [[OK]]


def test_ends_of_requests_are_merged_behind_the_same_replies():
    a, b, cable = joined()
    requests = [a.ask("b") for _ in range(3)]
    cable.pump()
    b.handle()

    (buffer,) = b.stream("a").sending.unsent
    assert isinstance(buffer, ResultsBuffer)
    assert buffer.runs == [[1, 3, 200]]
    assert b.stream("a").has_output
    cable.pump()
    assert a.ended == requests


def test_a_fresh_direction_has_nothing_to_do():
    fresh = Sending(1000)

    assert not fresh.has_output
    assert fresh.next_deadline() is None
    assert fresh.held_until(5.0) is None
    assert fresh.drop_oldest(ChannelName("ch"), 1) is None
    fresh.blame_head()
    assert fresh.give_up_blamed() is None
