"""How many nodes a member can make us believe in, and what that leaves for those that exist."""

from __future__ import annotations

from clusternode.core.inputs import Disconnected
from clusternode.core.settings import DiscoverySettings
from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.limits import ENTRIES_MAX, STRANGERS_MAX
from clusternode.core.wire.messages import List, ListEntry, Record, Records, Want
from tests.core.harness import Lone, address_of, record_of

DIALS_PER_SECOND = 20.0


def ghosts(count: int, first: int = 0) -> list[Record]:
    """Make records of nodes that nobody has ever seen."""
    return [
        Record(NodeId(f"x{number}"), Incarnation(1), 1, f"tcp://10.1.0.1:{1 + number}")
        for number in range(first, first + count)
    ]


def rows_of(lone: Lone) -> int:
    return len(lone.node._membership.members.rows)


def test_as_many_strangers_as_allowed_are_believed_in_and_one_more_is_refused():
    lone = Lone()
    seed = lone.open("n1")

    lone.receive(seed, Records(ghosts(STRANGERS_MAX)))
    assert lone.count("records_refused") == 0
    assert rows_of(lone) == 1 + STRANGERS_MAX

    lone.receive(seed, Records(ghosts(1, STRANGERS_MAX)))
    assert lone.count("records_refused") == 1
    assert rows_of(lone) == 1 + STRANGERS_MAX


def test_the_longest_list_that_fits_displaces_nobody_and_an_honest_member_still_gets_in():
    lone = Lone()
    seed, friend = lone.open("n1"), lone.open("n2")
    for turn in range(3):
        lone.receive(seed, Records(ghosts(ENTRIES_MAX, turn * ENTRIES_MAX)))

    honest = lone.open("n3")

    assert honest not in lone.closed and friend not in lone.closed
    assert [lone.status(one) for one in ("n1", "n2", "n3")] == ["active"] * 3
    assert rows_of(lone) == 3 + STRANGERS_MAX
    lone.receive(seed, Records([record_of("n2", version=2, priority=7)]))
    lone.receive(friend, Records([record_of("n2", version=2, priority=7)]))
    assert lone.node._membership.members.rows[NodeId("n2")].record.priority == 7


def test_a_stranger_that_answers_leaves_its_place_to_another():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records([record_of("n3"), *ghosts(STRANGERS_MAX - 1)]))
    lone.receive(seed, Records(ghosts(1, STRANGERS_MAX)))
    assert lone.count("records_refused") == 1

    lone.open("n3")
    lone.receive(seed, Records(ghosts(1, STRANGERS_MAX)))

    assert lone.count("records_refused") == 1
    assert lone.node._membership.members.stranger_count == STRANGERS_MAX


def test_strangers_that_are_forgotten_leave_their_places():
    lone = Lone(discovery=DiscoverySettings(forget_after=30.0))
    seed = lone.open("n1")
    lone.receive(seed, Records(ghosts(3)))

    lone.pass_time(60.0, answers=(seed,))

    assert rows_of(lone) == 1
    assert lone.node._membership.members.stranger_count == 0


def test_of_too_many_strangers_those_are_wanted_that_were_heard_of_last():
    lone = Lone()
    seed = lone.open("n1")
    lone.receive(seed, Records(ghosts(STRANGERS_MAX - 2)))
    silences = {"x9001": 50.0, "x9002": 3.0, "x9003": 70.0, "x9004": 0.0}
    entries = [
        ListEntry(NodeId(node_id), Incarnation(1), 1, silent_for)
        for node_id, silent_for in silences.items()
    ]

    lone.receive(seed, List(entries))

    assert lone.of_type(Want, seed)[-1] == Want([NodeId("x9004"), NodeId("x9002")])


def test_strangers_are_dialled_no_faster_than_the_rate_allows():
    lone = Lone(discovery=DiscoverySettings(dials_per_second=DIALS_PER_SECOND))
    seed = lone.open("n1")
    lone.receive(seed, Records(ghosts(200)))
    dials = len(lone.dials)

    lone.pass_time(3.0, answers=(seed,))

    assert DIALS_PER_SECOND <= len(lone.dials) - dials <= 4 * DIALS_PER_SECOND


def test_strangers_do_not_keep_a_member_from_being_dialled_again():
    lone = Lone(discovery=DiscoverySettings(dials_per_second=DIALS_PER_SECOND))
    seed, friend = lone.open("n1"), lone.open("n9")
    lone.receive(seed, Records(ghosts(400)))
    lone.pass_time(4.0, answers=(seed, friend))
    lone.dials.clear()

    lone.feed(Disconnected(friend, "reset"))
    lone.pass_time(1.0, answers=(seed,))

    assert address_of("n9") in lone.dials
