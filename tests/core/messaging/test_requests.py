"""Requests: who was asked, who has finished, and when it is over."""

from __future__ import annotations

from clusternode.core.messaging.sending import Outgoing
from clusternode.core.types import ResultCode, Tag
from clusternode.core.wire.messages import Reply
from tests.core.messaging.halves import Cable, Half, joined

OK = ResultCode.OK


def test_a_request_ends_when_the_last_asked_node_has_finished():
    a, b, cable = joined()
    c = Half("c")
    second = Cable(a, c)
    second.pump()
    request = a.ask("b", "c", "d")
    cable.pump()
    second.pump()
    assert a.asked[request] == ["b", "c", "d"]
    assert a.finished[request] == [("d", "failed", 480)]
    b.handle_request(b"here", b"and here")
    cable.pump()
    assert request not in a.ended
    c.handle_request()
    second.pump()

    assert a.replies[request] == [("b", b"here"), ("b", b"and here")]
    assert a.finished[request][1:] == [("b", "replied", 200), ("c", "nothing", 200)]
    assert a.ended == [request]


def test_a_request_to_nobody_ends_at_once():
    half = Half("a")
    request = half.ask()

    assert half.ended == [request]
    assert not len(half.messaging.requests)


def test_a_request_to_members_that_are_not_active_ends_at_once():
    half = Half("a")
    request = half.ask("b", active=False)

    assert half.ended == [request]
    assert half.finished[request] == [("b", "failed", 480)]


def test_a_handler_that_fails_is_named_with_its_code():
    a, b, cable = joined()
    request = a.ask("b")
    cable.pump()
    b.handle(1, ResultCode.NOT_FOUND)
    cable.pump()

    assert a.finished[request] == [("b", "failed", 404)]


def test_a_timeout_names_those_who_did_not_answer_and_leaves_nothing():
    a, b, cable = joined()
    request = a.ask("b", timeout=2.0)
    cable.pump()
    cable.cut()
    unsent = a.ask("b", timeout=3.0)
    b.answer("a", f"a-{request}")
    a.advance_to(a.now + 4)

    assert a.finished[request] == [("b", "unanswered", 408)]
    assert a.finished[unsent] == [("b", "unanswered", 408)]
    sending = a.stream("b").sending
    assert not sending.asking
    assert not sending.unsent
    assert sending.unsent_bytes == 0
    cable.settle()
    assert request not in a.replies
    assert [message for *_, message in a.taken if isinstance(message, Reply)]


def test_a_cancelled_request_leaves_nothing_and_says_nothing():
    a, _, cable = joined()
    local = a.ask("a")
    written = a.ask("b")
    other = a.ask("b")
    cable.pump()
    cable.cut()
    a.publish("b")
    unwritten, last = a.ask("b"), a.ask("b")
    for request in (unwritten, other, local, written, 99):
        a.cancel(request)
    a.cancel(local)
    a.check()

    sending = a.stream("b").sending
    assert not a.finished
    assert not sending.asking
    assert [isinstance(one, Outgoing) and one.request for one in sending.unsent] == [None, last]
    assert len(a.messaging.requests) == 1


def test_a_cancelled_request_to_ourselves_is_not_answered():
    half = Half("a")
    first, second = half.ask("a"), half.ask("a")
    half.cancel(second)
    half.handle()

    assert half.ended == [first]


def test_a_finished_request_to_ourselves_times_out_quietly():
    half = Half("a")
    request = half.ask("a", "b", timeout=1.0, active=True)
    half.handle()
    half.advance_to(half.now + 2)

    assert half.ended == [request]


def test_asking_ourselves_takes_the_same_path():
    half = Half("a")
    request = half.ask("a")
    half.handle_request(b"me")

    assert half.replies[request] == [("a", b"me")]
    assert half.finished[request] == [("a", "replied", 200)]
    assert [type(message).__name__ for *_, message in half.taken] == ["Request", "Reply"]


def test_a_reply_to_ourselves_that_nobody_waits_for_is_not_found():
    half = Half("a")
    one = half.answer("a", "none")

    assert half.results[one, "a"] == [ResultCode.NOT_FOUND]


def test_a_reply_of_a_node_that_was_not_asked_is_not_taken():
    a, b, cable = joined()
    request = a.ask("d", "a")
    one = b.answer("a", f"a-{request}")
    cable.settle()

    assert b.results[one, "a"] == [ResultCode.NOT_FOUND]
    assert request not in a.replies


def test_a_reply_after_its_nodes_end_is_only_shown():
    a, b, cable = joined()
    request = a.ask("b", "a")
    cable.pump()
    b.handle_request()
    late = b.answer("a", f"a-{request}")
    cable.pump()

    assert b.results[late, "a"] == [ResultCode.NOT_FOUND]
    assert request not in a.replies


def test_a_disabled_member_finishes_requests_and_nothing_else():
    a, b, cable = joined()
    one, written = a.publish("b"), a.ask("b")
    cable.pump()
    cable.cut()
    two, unwritten = a.publish("b"), a.ask("b")
    a.disabled("b")
    a.check()

    assert a.finished[written] == [("b", "failed", 408)]
    assert a.finished[unwritten] == [("b", "failed", 480)]
    cable.settle()
    assert [a.results[delivery, "b"] for delivery in (one, two)] == [[OK], [OK]]
    assert len(b.taken) == 3


def test_a_disabled_member_without_requests_loses_nothing():
    a, _, _ = joined()
    a.publish("b")
    a.disabled("b")

    assert len(a.stream("b").sending.unsent) == 1


def test_a_member_that_is_gone_finishes_requests_that_have_no_frame_with_it():
    a, _, cable = joined()
    cable.cut()
    request = a.ask("b", "c")
    a.messaging.deliveries.streams.clear()
    a.gone("b")

    assert ("b", "failed", 408) in a.finished[request]


def test_a_tag_that_is_open_and_one_request_too_many_are_refused():
    half = Half("a", open_requests_max=2)
    first = half.ask("a", tag="t")
    same = half.ask("a", tag="t")
    second = half.ask("a")
    third = half.ask("a", "b")

    assert half.finished[same] == [("a", "failed", 400)]
    assert half.finished[third] == [("a", "failed", 486), ("b", "failed", 486)]
    assert half.ended == [same, third]
    assert half.messaging.requests.channel_of(Tag("t")) == "ch"
    assert half.messaging.requests.channel_of(Tag("u")) is None
    half.handle()
    assert half.ended == [same, third, first, second]


def test_two_that_ask_each_other_both_get_their_answers():
    a, b, cable = joined()
    mine, yours = a.ask("b"), b.ask("a")
    cable.settle()

    assert a.ended == [mine]
    assert b.ended == [yours]


def test_a_timer_that_comes_after_its_request_has_ended_does_nothing():
    a, _, _ = joined()
    request = a.ask("b", "a")
    a.cancel(request)
    a.do(a.messaging.request_timed_out, request)

    assert not a.finished


def test_a_member_that_is_gone_finishes_no_request_that_did_not_ask_it():
    half = Half("a")
    request = half.ask("a")
    half.gone("b")

    assert request not in half.finished
