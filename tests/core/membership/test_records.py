"""Records that come from others: no ghosts, nobody lost, and tables that become equal."""

from __future__ import annotations

import pytest

from clusternode.core.events import NodeStateChanged, PeerRemoved, RecordChanged
from clusternode.core.inputs import Disconnected, RemoveMember, TimePassed
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.limits import COUNT_MAX, ENTRIES_MAX, HEARSAY_MAX, STRANGERS_MAX
from clusternode.core.wire.messages import List, ListEntry, Ping, Record, Records, Resume, Want
from tests.core.harness import Lone, address_of, ids, record_of


def entry_of(node_id: str, incarnation: int = 1, version: int = 1, silent_for: float = 0.0):
    return ListEntry(NodeId(node_id), Incarnation(incarnation), version, silent_for)


def test_a_learned_member_is_dialled_at_once_and_raises_nothing_until_it_answers():
    lone = Lone()
    seed = lone.open("n1")
    lone.effects.clear()
    lone.receive(seed, Records([record_of("n9", silent_for=5.0)]))
    lone.pass_time(0.0)

    assert lone.dials == [address_of("n9")]
    assert lone.status("n9") == "not_active"
    assert not lone.events_of(NodeStateChanged)


def test_the_larger_id_leaves_the_dial_to_the_smaller_for_a_second_once_it_has_joined():
    lone = Lone()
    seed = lone.open("n1")
    lone.pass_time(6.0, answers=(seed,))
    lone.receive(seed, Records([record_of("n2"), record_of("n9")]))
    lone.pass_time(0.9, answers=(seed,))
    assert lone.dials == [address_of("n9")]

    lone.pass_time(0.2, answers=(seed,))
    assert address_of("n2") in lone.dials


def test_a_ghost_that_never_answers_vanishes_without_an_event():
    lone = Lone()
    seed = lone.open("n1")
    lone.effects.clear()
    lone.receive(seed, Records([record_of("n9")]))
    lone.pass_time(30.0, answers=(seed,))

    assert lone.status("n9") is None
    assert not lone.events_of(NodeStateChanged)


def test_a_removed_member_returns_by_a_larger_incarnation_only():
    lone = Lone()
    seed = lone.open("n1")
    lone.open("n9", 1)
    lone.feed(RemoveMember(NodeId("n9")))
    lone.receive(seed, Records([record_of("n9", 1, 5)]))
    assert lone.status("n9") is None

    lone.receive(seed, Records([record_of("n9", 2, 1)]))
    assert lone.status("n9") == "not_active"


def test_a_removed_member_that_left_stays_removed():
    lone = Lone()
    seed = lone.open("n1")
    lone.open("n9", 1)
    lone.feed(RemoveMember(NodeId("n9")))
    lone.receive(seed, Records([record_of("n9", 1, 5, left=True)]))

    assert lone.status("n9") is None


def test_while_connected_a_record_is_taken_from_its_owner_only():
    lone = Lone()
    seed, owner = lone.open("n1"), lone.open("n9")
    lone.receive(seed, Records([record_of("n9", 1, 5, left=True)]))
    assert lone.status("n9") == "active"

    lone.receive(owner, Records([record_of("n9", 1, 2, tags=(("role", "edge"),))]))
    (changed,) = lone.events_of(RecordChanged)
    assert (changed.node_id, changed.version) == ("n9", 2)


def test_a_change_of_nothing_visible_is_no_event():
    lone = Lone()
    owner = lone.open("n9")
    lone.receive(owner, Records([record_of("n9", 1, 2)]))

    assert not lone.events_of(RecordChanged)


def test_a_member_unknown_before_that_has_left_is_listed_as_left_and_not_dialled():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n9", left=True)]))
    lone.pass_time(10.0, answers=(seed,))

    assert lone.status("n9") == "left"
    assert not lone.dials


def test_records_of_members_silent_too_long_or_without_a_version_are_refused():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n9", silent_for=86400.0), record_of("n8", 1, 0)]))

    assert lone.status("n9") is None
    assert lone.status("n8") is None


def test_a_record_whose_address_cannot_be_dialled_is_kept():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n9", address="nonsense")]))
    lone.pass_time(10.0, answers=(seed,))

    assert not lone.dials


def test_a_list_is_answered_with_what_is_lacking_and_what_is_wanted():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n8", 1, 4, silent_for=9.0)]))
    lone.sent.clear()
    lone.receive(seed, List([entry_of("n1"), entry_of("n9"), entry_of("n7", silent_for=1e6)]))

    (records,) = lone.of_type(Records, seed)
    assert [(one.node_id, one.silent_for) for one in records.records] == [("n5", 0), ("n8", 9)]
    assert lone.of_type(Want, seed) == [Want(ids("n9"))]


def test_nothing_is_asked_about_a_member_that_speaks_for_itself():
    lone = Lone()
    seed, owner = lone.open("n1"), lone.open("n9")
    lone.sent.clear()
    lone.receive(seed, List([entry_of("n9", 1, 8)]))
    lone.receive(owner, List([entry_of("n9", 1, 8)]))

    assert not lone.of_type(Want, seed)
    assert lone.of_type(Want, owner) == [Want(ids("n9"))]


def test_no_more_is_wanted_than_there_is_room_for():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, List([entry_of(f"x{index}") for index in range(ENTRIES_MAX)]))

    assert len(lone.of_type(Want, seed)[0].node_ids) == STRANGERS_MAX


def test_wanted_records_are_sent_once_each_and_only_those_there_are():
    lone = Lone()
    seed = lone.open("n1")
    bare = lone.connect("n9")  # has not sent its record
    lone.receive(bare, *[])
    lone.sent.clear()
    lone.receive(seed, Want(ids("n5", "n5", "n1", "n9", "n4")))

    (records,) = lone.of_type(Records, seed)
    assert [one.node_id for one in records.records] == ["n5", "n1"]


def test_digests_that_differ_begin_an_exchange_at_most_once_a_second():
    lone = Lone()
    seed = lone.open("n1")
    for _ in range(3):
        lone.receive(seed, Ping(1, 12345))
    assert len(lone.of_type(List, seed)) == 1

    lone.now += 1.0
    lone.receive(seed, Ping(1, 12345))
    assert len(lone.of_type(List, seed)) == 2


def test_silence_is_the_shortest_that_anybody_knows_of():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n9", silent_for=100.0)]))
    lone.receive(seed, List([entry_of("n9", silent_for=20.0)]))
    lone.receive(seed, List([entry_of("n9", silent_for=50.0)]))
    lone.sent.clear()
    lone.receive(seed, Want(ids("n9")))

    assert lone.of_type(Records, seed)[0].records[0].silent_for == 20.0


def test_who_is_silent_too_long_is_forgotten_altogether():
    lone = Lone(discovery=DiscoverySettings(forget_after=40.0))
    seed = lone.open("n1")
    lone.feed(Disconnected(lone.open("n9")))
    empty = lone.node.snapshot(lone.now).digest
    lone.pass_time(120.0, answers=(seed,))
    lone.dials.clear()
    lone.pass_time(20.0, answers=(seed,))

    members = lone.node._membership.members
    assert list(members.rows) == ["n1"]
    assert members.digest != empty
    assert not lone.dials


def test_a_member_that_is_forgotten_while_it_is_one_is_shown_as_removed():
    lone = Lone(discovery=DiscoverySettings(forget_after=1.0))
    lone.feed(Disconnected(lone.open("n9")))
    lone.pass_time(1.5)

    assert lone.events_of(PeerRemoved)
    assert lone.node._membership.members.active_count == 0


def test_a_protected_member_silent_too_long_is_kept_but_told_to_nobody():
    lone = Lone(
        discovery=DiscoverySettings(notification_addresses=(address_of("n9"),), forget_after=40.0)
    )
    seed = lone.open("n1")
    alone = lone.node.snapshot(lone.now).digest
    lone.feed(Disconnected(lone.open("n9")))
    lone.pass_time(60.0, answers=(seed,))
    assert lone.status("n9") == "not_active"
    assert lone.node.snapshot(lone.now).digest == alone
    lone.sent.clear()
    lone.receive(seed, Want(ids("n9")), List([]))
    assert all(one.node_id != "n9" for one in lone.of_type(Records, seed)[0].records)

    lone.receive(seed, List([entry_of("n9", 1, 1, 5.0)]))
    assert lone.node.snapshot(lone.now).digest != alone


def test_a_large_table_is_sent_in_frames_that_others_take():
    lone = Lone()
    seed = lone.open("n1")
    tags = tuple((f"k{index:02}", "x" * 250) for index in range(64))
    many = [
        Record(NodeId(f"x{i}"), Incarnation(1), 1, "tcp://10.1.0.1:1", tags) for i in range(100)
    ]
    lone.receive(seed, Records(many))
    lone.sent.clear()
    lone.receive(seed, List([]))

    assert len(lone.of_type(Records, seed)) > 1


def test_who_is_forgotten_at_a_late_wake_up_is_neither_pinged_nor_counted_as_failed():
    lone = Lone(discovery=DiscoverySettings(forget_after=1.0))
    lone.feed(Disconnected(lone.open("n9")))
    lone.now += 30.0  # its next ping, and the end of the open one, are over too
    lone.feed(TimePassed())

    assert lone.count("pings_failed") == 0
    assert not lone.node._membership.members.rows


def test_who_is_connecting_is_not_forgotten():
    lone = Lone(discovery=DiscoverySettings(forget_after=4.0))
    lone.feed(Disconnected(lone.open("n1")))
    lone.pass_time(3.5)
    waiting = lone.connect("n1")
    lone.pass_time(1.0)
    lone.receive(waiting, Resume(0, 1))

    assert lone.is_open("n1")
    assert lone.node._membership.members.rows[NodeId("n1")].record.version == 1


def test_a_member_whose_address_cannot_be_dialled_is_waited_for():
    lone = Lone()
    connection = lone.open("n9", address="nowhere")
    lone.receive(connection, Records([record_of("n9", 1, 2, address="nowhere")]))
    lone.feed(Disconnected(connection))
    lone.pass_time(6.0)

    assert not lone.dials


@pytest.mark.parametrize("key", [(COUNT_MAX, 1), (HEARSAY_MAX + 1, 1), (1, COUNT_MAX)])
def test_what_its_owner_could_not_exceed_is_not_believed_of_anyone(key):
    lone = Lone()
    source = lone.open("n1")
    lone.receive(source, List([entry_of("n9", *key)]))
    lone.receive(source, Records([record_of("n9", *key)]))
    assert not lone.of_type(Want, source)
    assert lone.count("records_refused") == 1

    linked = lone.open("n9")
    assert linked not in lone.closed
    assert lone.status("n9") == "active"
