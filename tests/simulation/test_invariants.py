"""Every invariant finds a hand-made violation, and is content with the same story told well."""

from __future__ import annotations

import pytest

from clusternode.core.effects import Outcome
from clusternode.core.snapshots import MemberSnapshot, NodeSnapshot
from clusternode.core.types import ChannelName, Incarnation, NodeId, ResultCode
from clusternode.simulation.checks import View, violations_of
from clusternode.simulation.history import (
    Break,
    DeliveryFact,
    Disturbance,
    HandlingFact,
    History,
    LifeFact,
    Limits,
    OutboxSample,
    ReplyMade,
    RequestFact,
    StatusFact,
)
from clusternode.simulation.invariants import ALWAYS, EVENTUALLY

ONE, TWO, THREE = NodeId("n1"), NodeId("n2"), NodeId("n3")
KEY, LATER, QUESTION, ANSWER = "m/n1/1/1", "m/n1/1/2", "q/n1/1/3", "r/n2/1/1"
NOW = 100.0


def history() -> History:
    """Tell a story in which all is well: two messages, a request, a member that left."""
    told = History()
    for node_id in (ONE, TWO, THREE):
        told.lives[node_id] = [LifeFact(node_id, 1, 0.0)]
    told.lives[THREE][0].leaving_since, told.lives[THREE][0].ended = 50.0, 50.5
    told.lives[THREE][0].how = "left"
    for key, at in ((KEY, 10.0), (LATER, 11.0)):
        sent = DeliveryFact(key, ONE, 1, ChannelName("news"), at)
        sent.fanouts.append([TWO])
        sent.results.append((at + 0.2, TWO, ResultCode.OK))
        told.deliveries[key] = sent
        call = HandlingFact(key, TWO, 1, at + 0.1, at + 0.2, ResultCode.OK)
        told.handlings[key, TWO].append(call)
        told.arrivals.append((key, TWO, 1))
    asked = RequestFact(QUESTION, ONE, 1, 20.0, 5.0)
    asked.asked.append([TWO])
    asked.replies.append((20.1, TWO, ANSWER))
    asked.finished.append((20.2, TWO, Outcome.REPLIED, ResultCode.OK))
    asked.ended.append(20.2)
    asked.wanted, asked.texts = "here", [(TWO, "here")]
    told.requests[QUESTION] = asked
    told.replies_made[ANSWER] = ReplyMade(QUESTION, TWO, 1)
    told.statuses.append(StatusFact(1.0, ONE, 1, THREE, "active", "new", ""))
    told.statuses.append(StatusFact(50.2, ONE, 1, THREE, "left", "active", ""))
    told.outboxes.append(OutboxSample(30.0, ONE, TWO, 10, 100))
    return told


def row(
    node_id: NodeId, status: str = "active", incarnation: int = 1, link: str = "direct"
) -> MemberSnapshot:
    return MemberSnapshot(
        node_id=node_id,
        address="tcp://10.0.0.1:5062",
        status=status,
        fail_count=0,
        incarnation=Incarnation(incarnation),
        version=1,
        last_seen_s=0.0,
        tags={},
        channels=(),
        local=False,
        priority=50,
        link=link,
        round_trip_s=None,
        notification=False,
        remote="",
        outbox_bytes=0,
    )


def shown(node_id: NodeId, *rows: MemberSnapshot, digest: int = 7) -> NodeSnapshot:
    return NodeSnapshot(
        node_id=node_id,
        cluster="simulated",
        incarnation=Incarnation(1),
        digest=digest,
        members=rows,
        addresses=(),
        counters={},
    )


def view(told: History, **changed: NodeSnapshot) -> View:
    rows = (row(ONE), row(TWO), row(THREE, "left"))
    snapshots = {ONE: shown(ONE, *rows), TWO: shown(TWO, *rows)}
    snapshots.update({NodeId(name): snapshot for name, snapshot in changed.items()})
    return View(NOW, snapshots, told)


def no_result(told):
    told.deliveries[KEY].results.clear()


def two_results(told):
    told.deliveries[KEY].results.append((12.0, TWO, ResultCode.TIMEOUT))


def result_of_a_stranger(told):
    told.deliveries[KEY].results.append((12.0, THREE, ResultCode.OK))


def result_too_late(told):
    told.deliveries[KEY].results[:] = [(90.0, TWO, ResultCode.OK)]


def never_fanned_out(told):
    told.deliveries[KEY].fanouts.clear()


def ok_but_never_handled(told):
    told.handlings.clear()


def ok_but_not_yet_ended(told):
    told.handlings[KEY, TWO][0].ended = 10.3


def refused_but_handled(told):
    told.deliveries[KEY].results[:] = [(10.2, TWO, ResultCode.NOT_FOUND)]


def handled_again_by_the_next_life(told):
    told.handlings[KEY, TWO].append(HandlingFact(KEY, TWO, 2, 12.0))


def given_up_on_the_reachable(told):
    told.deliveries[LATER].at = 40.0
    told.deliveries[LATER].results[:] = [(70.0, TWO, ResultCode.UNAVAILABLE)]
    told.handlings.clear()
    told.arrivals.clear()


def given_up_on_what_was_handled(told):
    told.deliveries[LATER].at = 40.0
    told.deliveries[LATER].results[:] = [(70.0, TWO, ResultCode.TIMEOUT)]
    told.handlings[LATER, TWO][0].ended = 40.2


def out_of_order(told):
    told.arrivals.reverse()


def asked_node_never_finished(told):
    told.requests[QUESTION].finished.clear()


def finished_twice(told):
    told.requests[QUESTION].finished *= 2


def never_ended(told):
    told.requests[QUESTION].ended.clear()


def ended_late(told):
    told.requests[QUESTION].ended[:] = [26.0]


def ended_late_by_a_fast_clock(told):
    told.lives[ONE][0].clock_rate = 1.25  # its five seconds are four
    told.requests[QUESTION].ended[:] = [24.5]


def said_to_reply_but_did_not(told):
    told.requests[QUESTION].replies.clear()


def reply_of_a_former_life(told):
    told.replies_made[ANSWER] = ReplyMade("q/n1/0/3", TWO, 1)


def reply_twice(told):
    told.requests[QUESTION].replies *= 2


def no_edge(told):
    told.statuses.append(StatusFact(60.0, ONE, 1, TWO, "removed", "active", ""))


def a_jump(told):
    told.statuses.insert(1, StatusFact(2.0, ONE, 1, THREE, "disabled", "not_active", ""))


def flapping(told):
    told.statuses.append(StatusFact(60.0, ONE, 1, TWO, "not_active", "active", ""))


def a_ghost(told):
    told.statuses.append(StatusFact(60.0, ONE, 1, THREE, "active", "left", ""))


def a_removed_one_is_back(told):
    told.statuses.append(StatusFact(60.0, ONE, 1, THREE, "removed", "left", ""))


def left_without_a_stop(told):
    told.statuses.append(StatusFact(60.0, ONE, 1, TWO, "left", "active", ""))


def a_stop_without_an_end(told):
    told.lives[THREE][0].ended = 60.0


def a_full_outbox(told):
    told.outboxes.append(OutboxSample(30.0, ONE, TWO, 101, 100))


def an_exception(told):
    told.faults_of_core.append((30.0, ONE, "AssertionError"))


def a_withdrawal(told):
    told.lives[THREE][0].how = "withdrew"


def another_reply(told):
    told.requests[QUESTION].texts = [(TWO, "elsewhere")]


def no_reply(told):
    told.requests[QUESTION].texts = []


def a_route_that_raises(told):
    told.lives[ONE][0].routes_failed.append((30.0, "message:news heard: KeyError: 'x'"))


def a_reply_that_nobody_sees(told):
    told.requests[QUESTION].replies.clear()
    told.requests[QUESTION].finished[:] = [(20.2, TWO, Outcome.NOTHING, ResultCode.OK)]
    replied = DeliveryFact(ANSWER, TWO, 1, ChannelName(""), 20.05, is_reply=True)
    replied.fanouts.append([ONE])
    replied.results.append((20.3, ONE, ResultCode.OK))
    told.deliveries[ANSWER] = replied


def a_death_that_nobody_notices(told):
    told.lives[THREE][0].leaving_since = None
    told.lives[THREE][0].how = "powered off"
    told.statuses.pop()


def a_late_notice(told):
    a_death_that_nobody_notices(told)
    told.statuses.append(StatusFact(90.0, ONE, 1, THREE, "not_active", "active", ""))


def a_leaver_that_failed(told):
    told.statuses.insert(1, StatusFact(50.1, ONE, 1, THREE, "not_active", "active", ""))


def ended_long_after_the_last_handler(told):
    asked = told.requests[QUESTION]
    asked.finished[:], asked.ended[:] = [(24.9, TWO, Outcome.REPLIED, ResultCode.OK)], [24.9]
    told.handlings[QUESTION, TWO].append(HandlingFact(QUESTION, TWO, 1, 20.1, 20.2, ResultCode.OK))


def given_up_after_a_moment(told):
    told.deliveries[LATER].results[:] = [(15.0, TWO, ResultCode.TIMEOUT)]
    told.statuses.insert(0, StatusFact(1.0, ONE, 1, TWO, "active", "new", ""))


VIOLATED = {
    "exactly-one-final-result": [
        no_result,
        two_results,
        result_of_a_stranger,
        result_too_late,
        never_fanned_out,
    ],
    "true-results": [ok_but_never_handled, ok_but_not_yet_ended, refused_but_handled],
    "no-duplicate-delivery": [handled_again_by_the_next_life],
    "order-per-origin-and-channel": [out_of_order],
    "replies-accounted": [
        asked_node_never_finished,
        finished_twice,
        never_ended,
        ended_late,
        ended_late_by_a_fast_clock,
        said_to_reply_but_did_not,
        reply_of_a_former_life,
        reply_twice,
        a_reply_that_nobody_sees,
    ],
    "requests-end-early": [ended_long_after_the_last_handler],
    "the-dead-are-noticed": [a_death_that_nobody_notices, a_late_notice],
    "a-clean-stop-is-heard": [a_leaver_that_failed],
    "nothing-is-given-up-early": [given_up_after_a_moment],
    "replies-as-wanted": [another_reply, no_reply],
    "no-route-fails": [a_route_that_raises],
    "health-follows-table": [no_edge, a_jump],
    "the-reachable-are-reached": [given_up_on_the_reachable, given_up_on_what_was_handled],
    "no-flapping-without-fault": [flapping],
    "no-ghost-returns": [a_ghost, a_removed_one_is_back],
    "left-means-left": [left_without_a_stop, a_stop_without_an_end],
    "bounded-queues": [a_full_outbox],
    "no-node-fails": [an_exception, a_withdrawal],
}


def test_every_invariant_has_its_violation():
    assert VIOLATED.keys() == ALWAYS.keys()


@pytest.mark.parametrize("name", ALWAYS)
def test_a_story_told_well_is_accepted(name):
    assert violations_of(name, ALWAYS[name], view(history())) == []


@pytest.mark.parametrize(
    ("name", "spoil"),
    [(name, spoil) for name, spoils in VIOLATED.items() for spoil in spoils],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_violation_is_found(name, spoil):
    told = history()
    spoil(told)

    assert violations_of(name, ALWAYS[name], view(told))


def test_a_slow_clock_counts_its_timeout_slowly():
    told = history()
    told.lives[ONE][0].clock_rate = 0.8  # its five seconds are six and a quarter
    told.requests[QUESTION].ended[:] = [26.25]

    assert violations_of("x", ALWAYS["replies-accounted"], view(told)) == []


def test_what_a_partition_hides_is_no_flapping():
    told = history()
    flapping(told)
    told.disturbances.append(
        Disturbance("block", 55.0, frozenset({ONE}), frozenset({TWO}), until=57.0)
    )

    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told)) == []


def test_a_cut_is_no_excuse_where_a_third_reaches_both():
    told = history()
    told.lives[THREE] = [LifeFact(THREE, 1, 0.0)]
    flapping(told)
    told.disturbances.append(Disturbance("block n1 n2", 50.0, frozenset({ONE}), frozenset({TWO})))
    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told))

    told.disturbances.append(Disturbance("block n3 n2", 55.0, frozenset({THREE}), frozenset({TWO})))
    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told)) == []


def test_one_reset_of_a_way_is_no_excuse_and_another_one_before_an_answer_is():
    told = history()
    told.lives[THREE] = [LifeFact(THREE, 1, 0.0)]
    flapping(told)
    told.disturbances.append(Disturbance("block n1 n2", 50.0, frozenset({ONE}), frozenset({TWO})))
    told.breaks = [Break(55.0, ONE, THREE), Break(57.5, TWO, THREE)]
    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told))

    told.breaks.append(Break(58.5, ONE, THREE))
    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told)) == []


def test_who_was_taken_off_the_list_of_the_only_relay_is_reached_over_nobody():
    told = history()
    told.lives[THREE] = [LifeFact(THREE, 1, 0.0)]
    flapping(told)
    told.disturbances.append(Disturbance("block n1 n2", 50.0, frozenset({ONE}), frozenset({TWO})))
    told.breaks.append(Break(58.0, THREE, TWO, is_removal=True))

    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told)) == []


def test_what_is_sent_over_a_cut_arrives_where_a_third_reaches_both():
    told = history()
    told.lives[THREE] = [LifeFact(THREE, 1, -100.0)]
    for node_id in (ONE, TWO):
        told.lives[node_id][0].started = -100.0
    given_up_on_the_reachable(told)
    told.disturbances.append(Disturbance("block n1 n2", 5.0, frozenset({ONE}), frozenset({TWO})))
    assert violations_of("x", ALWAYS["the-reachable-are-reached"], view(told))

    told.disturbances.append(Disturbance("narrow n1 n2", 5.0, frozenset({ONE}), frozenset({TWO})))
    assert violations_of("x", ALWAYS["the-reachable-are-reached"], view(told)) == []


def test_without_rerouting_a_third_is_of_no_use():
    told = history()
    told.settings = Limits(is_rerouting=False)
    told.lives[THREE] = [LifeFact(THREE, 1, 0.0)]
    flapping(told)
    told.disturbances.append(Disturbance("block n1 n2", 50.0, frozenset({ONE}), frozenset({TWO})))

    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told)) == []


@pytest.mark.parametrize("link", ["direct", "via n2"])
def test_a_link_that_is_cut_is_not_shown(link):
    told = history()
    told.disturbances.append(Disturbance("block n1 n2", 5.0, frozenset({ONE}), frozenset({TWO})))
    snapshot = shown(ONE, row(ONE), row(TWO, link=link))

    assert violations_of("x", EVENTUALLY["links-are-true"], view(told, n1=snapshot))


def test_a_partition_of_others_is_no_excuse():
    told = history()
    flapping(told)
    told.disturbances.append(Disturbance("block", 55.0, frozenset({ONE}), frozenset({THREE})))

    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told))


def test_whoever_stood_still_itself_has_no_excuse():
    told = history()
    flapping(told)
    told.disturbances.append(Disturbance(f"pause {ONE}", 50.0, frozenset({ONE}), until=57.0))

    assert violations_of("x", ALWAYS["no-flapping-without-fault"], view(told))


def test_a_message_that_a_partition_held_back_may_be_given_up():
    told = history()
    given_up_on_the_reachable(told)
    told.disturbances.append(Disturbance("block", 41.0, frozenset({ONE}), frozenset({TWO})))

    assert violations_of("x", ALWAYS["the-reachable-are-reached"], view(told)) == []


def test_a_message_must_arrive_when_what_held_it_back_was_mended_long_ago():
    told = history()
    given_up_on_the_reachable(told)
    held = Disturbance("block", 41.0, frozenset({ONE}), frozenset({TWO}), until=50.0)
    told.disturbances.append(held)

    assert violations_of("x", ALWAYS["the-reachable-are-reached"], view(told))


def test_who_gave_its_asker_up_owes_it_the_result_all_the_same():
    told = history()
    given_up_on_what_was_handled(told)
    told.statuses.append(StatusFact(55.0, TWO, 1, ONE, "disabled", "not_active", ""))

    assert violations_of("x", ALWAYS["the-reachable-are-reached"], view(told))


def test_who_is_back_before_the_others_had_to_know_was_not_missed():
    told = history()
    a_death_that_nobody_notices(told)
    told.lives[THREE].append(LifeFact(THREE, 2, 55.0))

    assert violations_of("x", ALWAYS["the-dead-are-noticed"], view(told)) == []


def test_a_leaver_behind_a_cut_cannot_be_heard():
    told = history()
    a_leaver_that_failed(told)
    told.disturbances.append(Disturbance("block", 45.0, frozenset({THREE}), frozenset({ONE})))
    told.disturbances.append(Disturbance("block", 45.0, frozenset({THREE}), frozenset({TWO})))

    assert violations_of("x", ALWAYS["a-clean-stop-is-heard"], view(told)) == []


def test_who_stood_still_learns_of_a_death_meanwhile_only_afterwards():
    told = history()
    given_up_after_a_moment(told)
    told.settings = Limits(grace=3.0)
    told.lives[TWO] = [LifeFact(TWO, 1, -9.0, -5.0, "powered off"), LifeFact(TWO, 2, 0.0)]
    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told))

    told.disturbances.append(Disturbance("pause n1", -6.0, frozenset({ONE}), until=10.0))
    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told)) == []


def test_what_waits_for_a_member_that_was_given_up_ends_with_it():
    told = history()
    given_up_after_a_moment(told)
    told.statuses.append(StatusFact(15.0, ONE, 1, TWO, "disabled", "not_active", ""))

    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told)) == []


def test_what_was_sent_to_who_was_given_up_and_not_told_to_be_back_may_end_early():
    told = history()
    given_up_after_a_moment(told)
    told.statuses.append(StatusFact(2.0, ONE, 1, TWO, "removed", "disabled", ""))
    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told)) == []

    told.statuses.append(StatusFact(4.0, ONE, 1, TWO, "active", "removed", ""))
    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told))


def test_what_was_sent_to_who_was_never_told_to_be_there_may_end_early():
    told = history()
    given_up_after_a_moment(told)
    told.statuses[0] = StatusFact(1.0, ONE, 2, TWO, "active", "new", "")

    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told)) == []


def test_what_waits_for_a_member_that_an_operator_removed_ends_with_it():
    told = history()
    given_up_after_a_moment(told)
    told.breaks.append(Break(15.0, ONE, TWO, is_removal=True))

    assert violations_of("x", ALWAYS["nothing-is-given-up-early"], view(told)) == []


def test_whoever_is_killed_while_it_stands_still_owes_no_results():
    told = history()
    no_result(told)
    told.lives[ONE][0].ended = 60.0
    assert violations_of("x", ALWAYS["exactly-one-final-result"], view(told))

    told.disturbances.append(Disturbance("pause n1", 30.0, frozenset({ONE}), until=60.0))
    assert violations_of("x", ALWAYS["exactly-one-final-result"], view(told)) == []


def test_a_pause_at_another_time_is_no_excuse():
    told = history()
    result_too_late(told)
    told.disturbances.append(Disturbance("pause n1", 70.0, frozenset({ONE}), until=75.0))

    assert violations_of("x", ALWAYS["exactly-one-final-result"], view(told))


def test_a_killed_caller_needs_no_results():
    told = history()
    no_result(told)
    told.lives[ONE][0].ended = 10.1

    assert violations_of("x", ALWAYS["exactly-one-final-result"], view(told)) == []


@pytest.mark.parametrize("name", EVENTUALLY)
def test_a_good_end_is_accepted(name):
    assert violations_of(name, EVENTUALLY[name], view(history())) == []


ALL = (row(ONE), row(TWO), row(THREE, "left"))


@pytest.mark.parametrize(
    ("name", "snapshot"),
    [
        ("everyone-sees-everyone", shown(ONE, row(ONE))),
        ("everyone-sees-everyone", shown(ONE, row(ONE), row(TWO, "not_active"))),
        ("everyone-sees-everyone", shown(ONE, row(ONE), row(TWO, incarnation=9))),
        ("everyone-sees-everyone", shown(ONE, row(ONE), row(TWO), row(THREE))),
        ("the-dead-are-removed", shown(ONE, *ALL[:2], row(THREE, "not_active"))),
        ("leavers-are-left", shown(ONE, *ALL[:2], row(THREE, "not_active"))),
        ("converged-digests", shown(ONE, *ALL, digest=8)),
        ("links-are-true", shown(ONE, row(ONE), row(TWO, link="none"))),
        ("links-are-direct", shown(ONE, row(ONE), row(TWO, link="via n3"))),
    ],
)
def test_a_bad_end_is_found(name, snapshot):
    assert violations_of(name, EVENTUALLY[name], view(history(), n1=snapshot))


@pytest.mark.parametrize("spoil", [no_result, never_ended])
def test_whoever_waits_is_found(spoil):
    told = history()
    spoil(told)

    assert violations_of("nobody-waits", EVENTUALLY["nobody-waits"], view(told))
