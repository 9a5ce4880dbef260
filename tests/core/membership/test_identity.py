"""Two processes with one node id, ourselves at the other end, and incarnations."""

from __future__ import annotations

from typing import Any

import pytest

from clusternode.core.effects import Persist, Settle, Withdraw
from clusternode.core.events import DuplicateId
from clusternode.core.inputs import ChannelsChanged, DialFailed, DialFailure, Leave, Publish
from clusternode.core.membership.twins import TWINS_MAX
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import ChannelName, DeliveryId, Incarnation, NodeId, ResultCode
from clusternode.core.wire.limits import COUNT_MAX, HEARSAY_MAX
from clusternode.core.wire.messages import (
    Close,
    CloseReason,
    List,
    ListEntry,
    Message,
    Records,
    Resume,
    Want,
)
from tests.core.harness import Lone, address_of, record_of

SEED = address_of("n1")


def refused(reason: CloseReason, value: int) -> DialFailed:
    return DialFailed(SEED, DialFailure.CLOSED, "refused", reason, value)


def test_where_we_find_ourselves_we_look_again_rarely_for_an_address_may_move():
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(SEED,)))
    lone.pass_time(0.0)
    own = lone.connect("n5", 100, dialed=SEED, nonce=b"n5".ljust(16))
    lone.pass_time(59.0)

    assert lone.closed[own] is None
    assert lone.dials == [SEED]
    assert lone.node.snapshot(lone.now).addresses[0].state == "self"
    assert not lone.events_of(DuplicateId)

    lone.pass_time(1.1)
    assert lone.dials == [SEED, SEED]
    lone.receive(lone.connect("n1", dialed=SEED), Resume(0, 1))
    assert lone.is_open("n1")


def test_our_own_address_is_not_dialled_again():
    own_address = address_of("n5")
    lone = Lone(discovery=DiscoverySettings(notification_addresses=(own_address,)))
    lone.pass_time(0.0)
    lone.connect("n5", 100, dialed=own_address, nonce=b"n5".ljust(16))
    lone.pass_time(600.0)

    assert lone.dials == [own_address]


def test_the_accepting_end_of_a_connection_to_ourselves_just_closes():
    lone = Lone()
    own = lone.connect("n5", 100, nonce=b"n5".ljust(16))

    assert lone.closed[own] is None


@pytest.mark.parametrize(("incarnation", "withdraws"), [(99, True), (101, False)])
def test_of_two_processes_with_one_id_the_younger_withdraws(incarnation, withdraws):
    lone = Lone()
    other = lone.connect("n5", incarnation)
    again = lone.connect("n5", incarnation, dialed=address_of("n3"))

    for connection in (other, again):
        close = lone.closed[connection]
        assert close is not None
        assert (close.reason, close.value) == (CloseReason.DUPLICATE_ID, 100)
    assert len(lone.events_of(DuplicateId)) == 2
    assert len(lone.effects_of(Withdraw)) == withdraws


@pytest.mark.parametrize(
    ("value", "is_joined", "withdraws"),
    [(50, False, True), (500, False, True), (50, True, True), (500, True, False), (0, True, True)],
)
def test_a_newcomer_or_the_younger_withdraws_when_it_is_refused(value, is_joined, withdraws):
    lone = Lone()
    if is_joined:
        lone.open("n9")
    lone.feed(refused(CloseReason.DUPLICATE_ID, value))

    assert len(lone.effects_of(Withdraw)) == withdraws
    assert lone.events_of(DuplicateId)


def test_a_connection_that_was_open_cannot_make_us_withdraw_or_take_another_incarnation():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Close(CloseReason.DUPLICATE_ID))
    lone.receive(connection, Close(CloseReason.STALE_INCARNATION, value=1000))

    assert not lone.effects_of(Withdraw)
    assert lone.node.hello().incarnation == 100


def test_a_stale_incarnation_is_exceeded_remembered_and_said_to_everyone():
    lone = Lone()
    opened, waiting = lone.open("n9"), lone.connect("n1")
    lone.receive(waiting, Close(CloseReason.STALE_INCARNATION, value=1000))

    assert lone.node.hello().incarnation == 1001
    assert lone.effects_of(Persist)[-1].incarnation == 1001
    assert opened in lone.closed and waiting in lone.closed
    lone.pass_time(0.0)
    assert lone.dials == [address_of("n9")]


def test_an_incarnation_is_raised_at_most_once_per_ping_interval():
    lone = Lone()
    for known in (1000, 2000):
        lone.feed(refused(CloseReason.STALE_INCARNATION, known))
    assert lone.node.hello().incarnation == 1001

    lone.pass_time(5.0)
    lone.feed(refused(CloseReason.STALE_INCARNATION, 2000))
    assert lone.node.hello().incarnation == 2001


def test_an_incarnation_that_cannot_be_exceeded_or_is_smaller_changes_nothing():
    lone = Lone()
    lone.feed(refused(CloseReason.STALE_INCARNATION, COUNT_MAX))
    lone.feed(refused(CloseReason.STALE_INCARNATION, 99))

    assert lone.node.hello().incarnation == 100


def test_who_leaves_takes_no_larger_incarnation():
    lone = Lone()
    lone.feed(Leave())
    lone.feed(refused(CloseReason.STALE_INCARNATION, 1000))

    assert lone.node.hello().incarnation == 100


def test_a_newer_version_of_our_own_record_is_refuted_above_it_but_not_more_than_once_a_second():
    lone = Lone()
    connection = lone.open("n9")
    lone.sent.clear()
    lone.receive(connection, Records([record_of("n5", 100, 7), record_of("n5", 100, 9)]))
    lone.receive(connection, Records([record_of("n5", 100, 20)]))

    (said,) = lone.of_type(Records, connection)
    assert said.records[0].version == 10
    lone.pass_time(1.0)
    lone.receive(connection, List([ListEntry(NodeId("n5"), Incarnation(100), 20, 0.0)]))
    assert lone.of_type(Records, connection)[-1].records[0].version == 21


def silent(lone):
    """Open a connection to n9, which has not answered a ping yet: nobody is active."""
    connection = lone.connect("n9")
    lone.receive(connection, Resume(0, 1))
    return connection


def test_a_larger_incarnation_of_ours_in_a_record_is_exceeded_where_nobody_is_active():
    lone = Lone()
    connection = silent(lone)
    lone.receive(connection, Records([record_of("n5", 200, 1)]))

    assert lone.node.hello().incarnation == 201
    assert connection in lone.closed


@pytest.mark.parametrize("key", [(200, 1), (100, COUNT_MAX)])
def test_hearsay_about_us_does_not_make_us_leave_those_who_know_us(key):
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Records([record_of("n5", *key)]))

    assert lone.node.hello().incarnation == 100
    assert connection not in lone.closed


def test_a_version_that_cannot_be_exceeded_takes_a_larger_incarnation_where_nobody_is_active():
    lone = Lone()
    connection = silent(lone)
    lone.receive(connection, Records([record_of("n5", 100, COUNT_MAX)]))

    assert lone.node.hello().incarnation == 101


def test_older_records_of_ours_are_ignored():
    lone = Lone()
    connection = lone.open("n9")
    lone.sent.clear()
    lone.receive(connection, Records([record_of("n5", 99, 50)]))
    lone.receive(
        connection,
        List(
            [
                ListEntry(NodeId("n5"), Incarnation(100), 1, 0.0),
                ListEntry(NodeId("n9"), Incarnation(1), 1, 0.0),
            ]
        ),
    )

    assert not lone.sent[connection]


def test_what_was_sent_under_the_old_incarnation_is_not_sent_again_under_the_new_one():
    lone = Lone()
    lone.open("n9")
    lone.feed(Publish(DeliveryId(1), ChannelName("ch"), b"x"))
    lone.feed(refused(CloseReason.STALE_INCARNATION, 200))
    (settle,) = lone.effects_of(Settle)
    assert settle.results == [(1, "n9", ResultCode.TIMEOUT)]

    again = lone.connect("n9")
    lone.receive(again, Resume(0, 1))
    assert lone.is_open("n9")
    assert not lone.of_type(Message, again)


def test_whatever_others_claim_leaves_room_for_our_own_changes_and_restarts():
    lone = Lone()
    connection = lone.open("n9")
    for version in (COUNT_MAX - 1, HEARSAY_MAX):
        lone.receive(connection, Records([record_of("n5", 100, version)]))
    lone.feed(refused(CloseReason.STALE_INCARNATION, COUNT_MAX - 1))
    lone.sent.clear()
    lone.feed(ChannelsChanged((ChannelName("a"),)))

    (said,) = lone.of_type(Records, connection)
    assert said.records[0].key == (100, HEARSAY_MAX + 2)


def test_who_has_an_id_in_use_is_told_and_so_is_the_one_that_uses_it():
    lone = Lone()
    old = lone.open("n9", 1)
    newcomer = lone.connect("n9", 2, address="tcp://10.0.0.77:5062")
    lone.sent[old] = [one for one in lone.sent[old] if not isinstance(one, Records)]
    lone.answer_ping(old)

    close = lone.closed[newcomer]
    assert close is not None and close.reason == CloseReason.DUPLICATE_ID
    (told,) = lone.of_type(Records, old)
    (twin,) = told.records
    assert (twin.node_id, twin.key, twin.address) == ("n9", (2, 0), "tcp://10.0.0.77:5062")


def test_what_a_peer_says_of_a_process_with_our_id_is_told_once_a_second():
    lone = Lone()
    connection = lone.open("n9")
    twin = record_of("n5", 99, 0, address="tcp://10.0.0.77:5062")
    lone.receive(connection, Records([twin, twin]))
    lone.receive(connection, Records([record_of("n5", 100, 0)]))  # that is ourselves
    (event,) = lone.events_of(DuplicateId)
    assert event.address == "tcp://10.0.0.77:5062, says n9"

    lone.now += 1.0
    lone.receive(connection, Records([twin]))
    assert len(lone.events_of(DuplicateId)) == 2
    assert not lone.effects_of(Withdraw)


ELSEWHERE = "tcp://10.0.0.77:5062"


def hear_of_another_n9(lone, source, times, *, every=5.0, **record: Any):
    fields: dict[str, Any] = {"incarnation": 2, "address": ELSEWHERE} | record
    for _ in range(times):
        lone.receive(source, Records([record_of("n9", **fields)]))
        lone.now += every


def test_who_others_are_connected_with_elsewhere_for_long_is_told_of_and_told():
    lone = Lone()
    linked, source = lone.open("n9"), lone.open("n1")
    lone.sent[linked].clear()
    hear_of_another_n9(lone, source, 4)

    (event,) = lone.events_of(DuplicateId)
    assert (event.node_id, event.address) == ("n9", f"{ELSEWHERE}, says n1")
    (told,) = lone.of_type(Records, linked)
    (twin,) = told.records
    assert (twin.node_id, twin.key, twin.address) == ("n9", (2, 0), ELSEWHERE)
    assert lone.status("n9") == "active"


@pytest.mark.parametrize(
    "record",
    [
        {"incarnation": 1},
        {"address": "tcp://10.0.0.9:5062"},
        {"silent_for": 1.0},
        {"left": True},
    ],
    ids=["the same process", "its next life", "not connected with it", "it has left"],
)
def test_what_others_say_of_one_process_is_no_other_one(record):
    lone = Lone()
    lone.open("n9")
    hear_of_another_n9(lone, lone.open("n1"), 6, **record)

    assert lone.events_of(DuplicateId) == []


@pytest.mark.parametrize(("times", "every"), [(3, 4.0), (4, 20.0)], ids=["short", "seldom"])
def test_a_connection_elsewhere_that_does_not_last_is_no_other_process(times, every):
    lone = Lone()
    lone.open("n9")
    hear_of_another_n9(lone, lone.open("n1"), times, every=every)

    assert lone.events_of(DuplicateId) == []


def test_other_processes_are_remembered_for_so_many_members():
    lone = Lone()
    source = lone.open("n1")
    names = [f"n{number}" for number in range(100, 101 + TWINS_MAX)]
    for name in names:
        lone.open(name)
    for _ in range(4):
        for name in names:
            lone.receive(source, Records([record_of(name, 2, address=ELSEWHERE)]))
        lone.now += 5.0

    assert lone.events_of(DuplicateId) == []


def test_the_record_of_what_may_be_another_process_is_asked_for():
    lone = Lone()
    lone.open("n9")
    source = lone.open("n1")
    lone.receive(source, List([ListEntry(NodeId("n9"), Incarnation(2), 1, 0.0)]))

    assert lone.of_type(Want, source) == [Want([NodeId("n9")])]
