"""Pings of one node: which answers count, what a failure is, and what becomes of the member."""

from __future__ import annotations

import pytest

from clusternode.core.effects import LeaveFinished, Persist, Settle
from clusternode.core.events import (
    LoopLagged,
    NodeStateChanged,
    PeerLeft,
    RecordChanged,
    StateNotWritten,
)
from clusternode.core.inputs import (
    ChangeStatus,
    ChannelsChanged,
    DialFailed,
    DialFailure,
    Disconnected,
    KnownMember,
    Lagged,
    Leave,
    Persisted,
    PersistFailed,
    Publish,
    RecordSettingsChanged,
    RemoveMember,
    TimePassed,
)
from clusternode.core.membership.links import WRITE_BYTES_MAX, WRITE_BYTES_MIN
from clusternode.core.settings import DiscoverySettings, HealthSettings
from clusternode.core.types import ChannelName, ConnectionId, DeliveryId, NodeId
from clusternode.core.wire.messages import (
    Ack,
    List,
    Ping,
    Pong,
    Records,
    Results,
    Resume,
    Run,
)
from tests.core.harness import Lone, address_of, record_of


def statuses(lone: Lone) -> list[tuple[str, str]]:
    return [(one.previous, one.status) for one in lone.events_of(NodeStateChanged)]


def refuse(lone: Lone, node_id: str = "n9") -> None:
    lone.feed(DialFailed(address_of(node_id), DialFailure.REFUSED))


def test_a_pong_with_another_number_proves_nothing():
    lone = Lone()
    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1), Pong(999, 0))

    assert lone.status("n9") == "not_active"
    assert lone.count("pongs_unexpected") == 1


def test_the_round_trip_is_that_of_the_answered_ping():
    lone = Lone()
    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1))
    lone.now += 0.25
    lone.answer_ping(connection)

    assert lone.node.snapshot(lone.now).members[1].round_trip_s == pytest.approx(0.25)


def test_a_member_that_does_not_answer_has_no_round_trip():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n9")))
    refuse(lone)

    assert lone.node.snapshot(lone.now).members[1].round_trip_s is None


def test_a_killed_process_on_a_live_host_is_not_active_at_the_refused_dial():
    lone = Lone()
    connection = lone.open("n9")
    lone.feed(Disconnected(connection))
    lone.pass_time(0.0)
    refuse(lone)

    assert lone.status("n9") == "not_active"
    assert statuses(lone) == [("new", "active"), ("active", "not_active")]


def test_who_stays_silent_has_left_if_others_say_so():
    lone = Lone()
    other = lone.open("n8")
    lone.open("n9")
    lone.receive(other, Records([record_of("n9", 1, 2, left=True)]))
    assert lone.status("n9") == "active"  # it speaks for itself as long as it answers

    lone.pass_time(30.0, answers=(other,))

    assert [one.status for one in lone.events_of(NodeStateChanged)][-1] == "left"
    assert ("active", "not_active") not in statuses(lone)


def test_who_answered_after_others_said_that_it_left_has_failed_when_it_falls_silent():
    lone = Lone()
    other = lone.open("n8")
    connection = lone.open("n9")
    lone.receive(other, Records([record_of("n9", 1, 2, left=True)]))
    lone.pass_time(15.0, answers=(other, connection))

    lone.pass_time(8.0, answers=(other,))

    assert lone.status("n9") == "not_active"


def test_refused_dials_between_two_pings_are_not_counted():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n9")))
    for _ in range(5):
        refuse(lone)

    assert lone.node.snapshot(lone.now).members[1].fail_count == 1


def test_a_dial_that_is_only_slow_or_reset_is_no_failed_ping():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n9")))
    for failure in (DialFailure.CLOSED, DialFailure.UNREACHABLE, DialFailure.UNRESOLVED):
        lone.feed(DialFailed(address_of("n9"), failure))

    assert lone.status("n9") == "active"


def test_a_refused_dial_counts_however_the_node_spells_its_address():
    lone = Lone()
    connection = lone.open("n9", address="tcp://EDGE-9.example:05062")
    lone.receive(connection, Records([record_of("n9", 1, 2, address="tcp://EDGE-9.example:05062")]))
    lone.feed(Disconnected(connection))
    lone.pass_time(0.0)
    lone.feed(DialFailed(lone.dials[0], DialFailure.REFUSED))

    assert lone.status("n9") == "not_active"


def test_finding_another_node_where_one_should_be_fails_its_ping():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n9")))
    lone.connect("n8", dialed=address_of("n9"))

    assert lone.status("n9") == "not_active"


def test_a_silent_member_is_not_active_disabled_and_then_removed():
    lone = Lone()
    lone.open("n9")
    lone.pass_time(30.0)

    assert [status for _, status in statuses(lone)] == [
        "active",
        "not_active",
        "disabled",
        "removed",
    ]
    assert lone.status("n9") is None


def test_a_removed_member_is_dialled_on_and_comes_back_by_its_own_answer():
    lone = Lone()
    lone.open("n9")
    lone.pass_time(30.0)
    lone.dials.clear()
    refuse(lone)
    lone.pass_time(10.0)
    assert address_of("n9") in lone.dials

    lone.open("n9")
    assert statuses(lone)[-1] == ("removed", "active")


def test_an_event_goes_on_from_the_status_that_was_told_last():
    lone = Lone()
    seed = lone.open("n1")
    connection = lone.open("n9")
    lone.receive(connection, Records([record_of("n9", 1, 2, left=True)]))
    lone.feed(Disconnected(connection))
    lone.receive(seed, Records([record_of("n9", 2)]))  # it is back, says somebody
    lone.pass_time(30.0, answers=(seed,))  # but it answers nothing
    assert lone.status("n9") is None

    lone.receive(lone.connect("n9", 3), Resume(0, 1))
    lone.answer_ping(ConnectionId(3))
    told = [one for one in lone.events_of(NodeStateChanged) if one.node_id == "n9"]
    assert [(one.previous, one.status) for one in told] == [
        ("new", "active"),
        ("active", "left"),
        ("left", "active"),
    ]


def test_a_notification_address_is_not_active_at_worst():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(address_of("n9"),)))
    lone.open("n9")
    lone.pass_time(60.0)

    assert lone.status("n9") == "not_active"


def test_a_member_at_the_address_where_another_now_lives_is_not_protected():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(address_of("n9"),)))
    lone.feed(Disconnected(lone.open("n9")))
    other = lone.open("n8", dialed=address_of("n9"))
    lone.pass_time(30.0, answers=(other,))

    assert lone.status("n9") is None
    assert lone.status("n8") == "active"


def test_other_traffic_extends_an_open_ping_once_and_never_activates():
    lone = Lone(health=HealthSettings(ping_interval=5.0, ping_timeout=2.0))
    connection = lone.connect("n1")
    lone.receive(connection, Resume(0, 1), Records([record_of("n1")]))
    for _ in range(3):
        lone.pass_time(0.9)
        lone.receive(connection, Ping(1, 0))
    assert lone.status("n1") == "not_active"
    assert lone.count("pings_failed") == 0

    lone.pass_time(1.5)
    assert lone.count("pings_failed") == 1


def test_the_first_ping_of_a_larger_id_is_enough_for_both_that_have_just_met():
    lone = Lone(health=HealthSettings(ping_interval=5.0))
    connection = lone.connect("n9")
    lone.pass_time(0.25)
    lone.receive(connection, Resume(0, 1), Records([record_of("n9", tags=(("role", "proxy"),))]))
    assert lone.status("n9") == "not_active"

    lone.receive(connection, Ping(7, 0))
    assert lone.status("n9") == "active"
    assert not lone.of_type(Ping, connection)
    assert lone.of_type(Pong, connection)
    assert not lone.of_type(List, connection)  # its digest is older than our record there
    assert not lone.events_of(RecordChanged)  # its tags were known before it was told of
    assert lone.node.snapshot(lone.now).members[-1].round_trip_s == pytest.approx(0.25)

    lone.pass_time(0.8 * 5.0 * 31 / 32 - 0.01)
    assert not lone.of_type(Ping, connection)
    lone.pass_time(5.0 - 0.8 * 5.0 * 31 / 32 + 0.01)
    assert lone.of_type(Ping, connection)


def test_the_second_ping_of_who_was_met_has_its_digest_compared():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Ping(2, 0))

    assert lone.of_type(List, connection)


def test_who_never_pings_is_asked_within_an_interval_and_fails_if_it_does_not_answer():
    lone = Lone(health=HealthSettings(ping_interval=5.0, ping_timeout=2.0))
    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1), Records([record_of("n9")]))
    lone.pass_time(5.0)
    assert lone.of_type(Ping, connection)

    lone.pass_time(2.0)
    assert lone.count("pings_failed") == 1
    assert lone.status("n9") == "not_active"


def test_who_has_failed_to_answer_is_asked_even_if_it_never_has():
    lone = Lone(health=HealthSettings(ping_interval=5.0, ping_timeout=2.0))
    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1), Records([record_of("n9")]))
    lone.pass_time(7.1)
    assert lone.count("pings_failed") == 1

    again = lone.connect("n9")
    lone.receive(again, Resume(0, 1), Ping(1, 0))
    assert lone.status("n9") == "not_active"
    assert lone.of_type(Ping, again)


@pytest.mark.parametrize("seed", range(40))
def test_whoever_is_met_or_learned_of_is_pinged_later_and_never_at_once(seed):
    lone = Lone()
    lone.node._context.rng.seed(seed)
    other = lone.open("n1")
    lone.pass_time(0.05, answers=(other,))
    lone.receive(other, Records([record_of("n8")]))
    lone.receive(lone.connect("n9"), Resume(0, 1))

    rounds = lone.node._membership.keepalive._rounds
    earliest = min(rounds._offset + slot * rounds.width for slot in rounds._slots)
    assert earliest > lone.now


@pytest.mark.parametrize("is_lost", [True, False], ids=["after another", "instead of another"])
def test_who_has_ever_answered_is_asked_anew_on_each_connection(is_lost):
    lone = Lone()
    first = lone.open("n9")
    if is_lost:
        lone.feed(Disconnected(first))
    second = lone.connect("n9")
    lone.receive(second, Resume(0, 1), Ping(1, 0))

    assert lone.of_type(Ping, second)
    assert lone.node._membership.keepalive.is_open(NodeId("n9"))


def test_a_ping_that_is_open_when_two_meet_is_answered_by_a_pong_only():
    lone = Lone(health=HealthSettings(ping_interval=5.0, ping_timeout=2.0))
    other = lone.open("n1")
    lone.receive(other, Records([record_of("n9")]))
    lone.pass_time(5.0, answers=(other,))
    assert lone.node._membership.keepalive.is_open(NodeId("n9"))

    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1), Ping(1, 0))
    assert lone.status("n9") == "not_active"
    lone.answer_ping(connection)
    assert lone.status("n9") == "active"


def test_traffic_of_a_newcomer_does_not_extend_the_ping_of_the_old_one():
    lone = Lone()
    old = lone.open("n1", 1)
    newcomer = lone.connect("n1", 2)
    lone.receive(newcomer, Resume(0, 1))
    lone.pass_time(2.01)

    assert old in lone.closed


def test_an_acknowledgement_of_what_was_sent_after_the_ping_answers_it():
    lone = Lone()
    connection = lone.open("n9")
    while not lone.node._membership.keepalive.is_open(NodeId("n9")):
        lone.pass_time(0.1)
    lone.feed(Publish(DeliveryId(1), ChannelName("ch"), b"x"))
    lone.receive(connection, Ack(1))

    assert not lone.node._membership.keepalive.is_open(NodeId("n9"))
    lone.receive(connection, Ack(1))
    assert lone.status("n9") == "active"


def test_an_acknowledgement_of_what_was_never_sent_is_a_fault():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Ack(4))

    assert connection in lone.closed


def test_a_ping_whose_bytes_are_still_draining_gets_more_time():
    lone = Lone()
    lone.open("n9")
    keepalive = lone.node._membership.keepalive
    while not keepalive.is_open(NodeId("n9")):
        lone.pass_time(0.1)
    lone.progress = (0, 5000, 0)
    lone.pass_time(1.5)
    lone.progress = (100, 4900, 0)
    lone.pass_time(1.0)
    assert lone.status("n9") == "active"

    lone.pass_time(2.0)
    assert lone.status("n9") == "not_active"


def test_a_node_that_stood_still_gives_everyone_the_full_time_again():
    lone = Lone()
    lone.open("n9")
    while not lone.node._membership.keepalive.is_open(NodeId("n9")):
        lone.pass_time(0.1)
    lone.now += 10.0
    lone.feed(Lagged(10.0))
    lone.feed(TimePassed())

    assert lone.status("n9") == "active"
    assert lone.events_of(LoopLagged)
    lone.pass_time(2.0)
    assert lone.status("n9") == "not_active"


def test_a_connection_that_opens_late_gives_its_ping_the_full_time_but_only_once():
    lone = Lone()
    lone.feed(Disconnected(lone.open("n9")))
    lone.pass_time(1.9)
    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1))
    lone.pass_time(1.0)
    assert lone.status("n9") == "active"

    lone.feed(Disconnected(connection))
    lone.receive(lone.connect("n9"), Resume(0, 1))
    lone.pass_time(3.1)  # with what other traffic extends a ping by, once
    assert lone.status("n9") == "not_active"


def test_a_ping_does_not_fail_while_its_dial_waits_for_our_own_rate_limit():
    lone = Lone(discovery=DiscoverySettings(dials_per_second=1.0))
    links = [lone.open(f"n{number}") for number in range(6, 16)]
    for connection in links:
        lone.feed(Disconnected(connection))
    lone.pass_time(3.0)

    waiting = [number for number in range(6, 16) if address_of(f"n{number}") not in lone.dials]
    assert len(waiting) >= 6
    assert all(lone.status(f"n{number}") == "active" for number in waiting)


def test_a_failed_ping_below_the_threshold_keeps_the_connection():
    lone = Lone(health=HealthSettings(fail_count_threshold_not_active=1))
    connection = lone.open("n9")
    while lone.count("pings_failed") == 0:
        lone.pass_time(0.5)

    assert lone.status("n9") == "active"
    assert connection not in lone.closed


def test_a_live_member_that_is_removed_comes_back_with_its_next_hello():
    lone = Lone()
    connection = lone.open("n9")
    waiting = lone.connect("n9")
    lone.feed(RemoveMember(NodeId("n9")))
    lone.feed(RemoveMember(NodeId("n9")))
    assert connection in lone.closed and waiting in lone.closed
    assert lone.status("n9") is None

    lone.open("n9")
    assert lone.status("n9") == "active"


def test_a_removed_member_without_an_address_to_dial_waits_for_a_hello():
    lone = Lone()
    connection = lone.open("n9", address="tcp://nowhere")
    lone.receive(connection, Records([record_of("n9", 1, 2, address="tcp://nowhere")]))
    lone.feed(RemoveMember(NodeId("n9")))
    lone.pass_time(30.0)

    assert not lone.dials


def test_an_operator_sets_a_status_until_the_next_ping_ends():
    lone = Lone()
    connection = lone.open("n9")
    for status in ("disabled", "not_active", "active", "disabled"):
        lone.feed(ChangeStatus(NodeId("n9"), status))
        assert lone.status("n9") == status
    lone.feed(ChangeStatus(NodeId("n4"), "active"))

    lone.pass_time(6.0, answers=(connection,))
    assert lone.status("n9") == "active"


def test_a_member_that_left_is_neither_pinged_nor_dialled_and_its_connection_may_end():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Records([record_of("n9", 1, 2, left=True)]))
    lone.receive(connection, Records([record_of("n9", 1, 3, left=True)]))
    lone.sent.clear()
    lone.feed(ChangeStatus(NodeId("n9"), "active"))
    lone.feed(Disconnected(connection))
    lone.pass_time(60.0)

    assert lone.status("n9") == "left"
    assert len(lone.events_of(PeerLeft)) == 1
    assert not lone.dials and not lone.of_type(Ping, connection)


def test_a_notification_address_of_a_member_that_left_is_dialled_on():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(address_of("n9"),)))
    connection = lone.open("n9", dialed=address_of("n9"))
    lone.receive(connection, Records([record_of("n9", 1, 2, left=True)]))
    lone.feed(Disconnected(connection))
    lone.pass_time(6.0)

    assert lone.dials == [address_of("n9")]


def test_a_member_that_left_can_still_give_its_results():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Records([record_of("n9", 1, 2, left=True)]), Ack(0))

    assert connection not in lone.closed


def test_leaving_waits_until_everyone_has_answered_a_ping_sent_after_it():
    lone = Lone(health=HealthSettings(ping_interval=100.0, ping_timeout=2.0))
    first, second = lone.open("n1"), lone.open("n9")
    lone.feed(Leave())
    lone.feed(Leave())
    assert lone.of_type(Records, first)[-1].records[0].left
    lone.answer_ping(first)
    assert not lone.effects_of(LeaveFinished)
    assert lone.status("n5") == "left"

    lone.answer_ping(second)

    assert len(lone.effects_of(LeaveFinished)) == 1
    assert first in lone.closed and second in lone.closed


def test_leaving_does_not_wait_for_a_connection_that_has_ended_or_longer_than_half_a_second():
    lone = Lone()
    connection = lone.open("n9")
    lone.feed(Leave())
    lone.feed(Disconnected(connection))
    assert lone.effects_of(LeaveFinished)

    lone = Lone()
    lone.open("n9")
    lone.feed(Leave())
    lone.pass_time(0.5)
    assert lone.effects_of(LeaveFinished)


def test_leaving_waits_for_what_is_on_the_way():
    lone = Lone()
    connection = lone.open("n9")
    lone.feed(Publish(DeliveryId(1), ChannelName("ch"), b"x"))
    lone.feed(Leave())
    lone.answer_ping(connection)
    assert not lone.effects_of(LeaveFinished)

    lone.receive(connection, Ack(1), Results([Run(1, 1, 200)]))
    assert lone.effects_of(LeaveFinished)


def test_who_has_left_stays_so_whatever_changes():
    lone = Lone()
    lone.open("n9")
    lone.feed(Leave())
    lone.feed(ChannelsChanged((ChannelName("a"),)))

    assert lone.node._membership.members.own.left


def test_a_changed_record_is_sent_to_everyone_at_once_and_an_unchanged_one_is_not():
    lone = Lone()
    connection = lone.open("n9")
    lone.sent.clear()
    for _ in range(2):
        lone.feed(ChannelsChanged((ChannelName("b"), ChannelName("a"))))
        lone.feed(RecordSettingsChanged((("role", "edge"),), 7))

    channels, tags = lone.of_type(Records, connection)
    assert channels.records[0].channels == ("a", "b")
    assert (tags.records[0].tags, tags.records[0].priority) == ((("role", "edge"),), 7)


def test_the_members_are_written_to_disk_a_second_after_a_change():
    lone = Lone()
    lone.open("n9")
    lone.open("n1")
    lone.pass_time(1.0)
    (persist,) = lone.effects_of(Persist)
    lone.feed(Persisted())
    lone.feed(PersistFailed("disk full"))

    assert [(one.node_id, one.silent_for) for one in persist.members] == [("n9", 0), ("n1", 0)]
    assert lone.events_of(StateNotWritten)


def test_members_known_from_before_are_dialled_unless_forgotten_or_ourselves():
    known = (
        KnownMember(NodeId("n1"), address_of("n1"), 10.0),
        KnownMember(NodeId("n2"), address_of("n2"), 1e6),
        KnownMember(NodeId("n3"), address_of("n5"), 10.0),
    )
    lone = Lone(known=known)
    lone.pass_time(0.0)

    assert lone.dials == [address_of("n1")]


def test_a_peer_whose_digest_is_ours_is_sent_no_list():
    lone = Lone()
    connection = lone.open("n9")
    digest = lone.node.snapshot(lone.now).digest
    lone.receive(connection, Ping(5, digest))

    assert lone.of_type(Pong, connection)[-1] == Pong(5, digest)
    assert not lone.of_type(List, connection)


def test_every_result_that_is_still_awaited_is_given_before_leaving_ends():
    lone = Lone()
    lone.open("n9")
    lone.feed(Publish(DeliveryId(1), ChannelName("ch"), b"x"))
    lone.feed(Leave())
    lone.pass_time(0.5)

    settle, finished = lone.effects_of(Settle)[-1], lone.effects_of(LeaveFinished)[-1]
    assert settle.results[0][:2] == (1, "n9")
    assert lone.effects.index(settle) < lone.effects.index(finished)


def test_a_ping_whose_pong_may_be_behind_a_large_frame_gets_more_time():
    lone = Lone()
    lone.open("n9")
    keepalive = lone.node._membership.keepalive
    while not keepalive.is_open(NodeId("n9")):
        lone.pass_time(0.1)
    for second in range(10):
        lone.progress = (0, 0, second * 20_000)
        lone.pass_time(1.0)
    assert lone.status("n9") == "active"

    lone.pass_time(4.1)
    assert lone.status("n9") == "not_active"


def test_a_connection_that_cannot_be_looked_at_excuses_nothing():
    lone = Lone()
    lone.open("n9")
    lone.measures = False
    lone.pass_time(9.1)

    assert lone.status("n9") == "not_active"


def test_a_write_is_as_long_as_the_link_takes_an_eighth_of_a_ping_timeout_for():
    lone = Lone()
    link = lone.node._links.get(lone.open("n9"))
    assert link is not None
    link.is_writing, link.granted_at = True, lone.now
    for _ in range(10):
        link.pace(lone.now, 0.25)
    assert link.bytes_max == WRITE_BYTES_MAX

    link.pace(lone.now + 0.5, 0.25)
    assert link.bytes_max == WRITE_BYTES_MAX // 2
    link.pace(lone.now + 50.0, 0.25)
    assert link.bytes_max == WRITE_BYTES_MIN
    link.pace(lone.now + 0.2, 0.25)
    assert link.bytes_max == WRITE_BYTES_MIN
