"""Neighbour lists, sequence numbers with their reset, and next hops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusternode.gateways.opensips.messages import Description, LinkState
from clusternode.gateways.opensips.topology import NODES_MAX, Node, Progress, Topology


def described(number: int, priority: int = 50) -> Description:
    return Description(f"bin:10.0.0.{number % 250}:5555", "", priority, 3)


def topology(links: dict[int, tuple[int, ...]], up: tuple[int, ...], **priorities: int) -> Topology:
    """What node 1 knows: the lists of the others, and to whom its own links are up."""
    known = Topology(1, is_rerouting=True)
    for number in links:
        assert known.add(number, described(number, priorities.get(f"n{number}", 50)))
    for number, neighbours in links.items():
        node = known.get(number)
        assert node is not None
        known.set_neighbours(node, neighbours)
    for number in reversed(up):
        known.set_own_link(number, is_up=True)
    return known


def test_a_neighbour_is_reached_directly_and_others_with_the_fewest_hops():
    known = topology({2: (1, 3), 3: (2, 4), 4: (3,), 5: (1,)}, (2, 5))
    assert known.hops == {2: 2, 5: 5, 3: 2, 4: 2}
    assert known.next_hop(4) == 2 and known.next_hop(4, but=2) is None


def test_among_equally_near_ways_the_smallest_priority_wins_and_then_the_smallest_id():
    lists = {2: (1, 9), 3: (1, 9), 4: (1, 9), 9: (2, 3, 4)}
    assert topology(lists, (4, 3, 2)).next_hop(9) == 2
    assert topology(lists, (4, 3, 2), n3=10).next_hop(9) == 3


def test_without_rerouting_only_neighbours_are_reached():
    known = Topology(1, is_rerouting=False)
    for number in (2, 3):
        known.add(number, described(number))
    node = known.get(2)
    assert node is not None
    known.set_neighbours(node, (1, 3))
    known.set_own_link(2, is_up=True)
    assert known.hops == {2: 2}


def test_the_list_of_a_dead_node_leads_nowhere_and_is_believed_again_when_it_is_told_again():
    known = topology({2: (3,), 3: (2, 4), 4: (3,)}, (2,))
    node = known.get(3)
    assert node is not None and node.link.take(7, 100, is_direct=True)

    known.forget_links(node)

    assert known.hops == {2: 2, 3: 2}
    assert node.link.take_rumour(7, 100)


def test_a_disabled_node_is_no_way():
    known = topology({2: (1, 3), 3: (2,)}, (2,))
    node = known.get(2)
    assert node is not None
    known.set_enabled(node, is_enabled=False)
    assert known.hops == {} and known.enabled() == [3]


def test_ids_that_nobody_has_described_are_nobodys_neighbours():
    known = topology({2: (1,)}, (2,))
    node = known.get(2)
    assert node is not None
    known.set_link(node, 77, LinkState.UP)
    known.set_neighbours(node, (1, 2, 78))
    assert node.neighbours == (1,)


def test_there_is_room_for_as_many_nodes_as_in_opensips():
    known = Topology(1, is_rerouting=True)
    taken = [number for number in range(1, 400) if known.add(number, described(number))]
    assert len(taken) == NODES_MAX - 1 and len(known) == NODES_MAX
    assert known.add(2000, Description("bin:no host:1", "", 1, 1)) is None


def test_a_removed_node_is_in_no_list():
    known = topology({2: (1, 3), 3: (1, 2)}, (2, 3))
    known.remove(3)
    node = known.get(2)
    assert node is not None and node.neighbours == (1,) and known.neighbours == (2,)
    assert not known.has_address("10.0.0.3") and known.has_address("10.0.0.2")


def test_only_larger_numbers_are_news_and_zero_begins_anew():
    progress = Progress()
    assert progress.take(0, 100, is_direct=True)
    assert not progress.take(0, 100, is_direct=True)
    assert progress.take(3, 101, is_direct=False)
    assert not progress.take(2, 101, is_direct=False)
    assert progress.take(0, 103, is_direct=False)
    assert progress.take(1, 104, is_direct=False)


def test_a_late_copy_of_a_zero_is_no_restart():
    progress = Progress()
    progress.take(1, 100, is_direct=False)
    assert not progress.take(0, 100, is_direct=False)
    assert progress.take(0, 100, is_direct=True)
    progress.take(5, 100, is_direct=False)
    assert not progress.take(0, 100, is_direct=True)


def test_a_restart_whose_zero_went_to_others_is_heard_and_late_copies_from_before_are_not():
    progress = Progress()
    progress.take(0, 100, is_direct=True)
    progress.take(9, 110, is_direct=False)
    assert progress.take(2, 120, is_direct=True)
    assert not progress.take(10, 119, is_direct=False)
    assert not progress.take_rumour(10, 119)
    assert progress.take(3, 120, is_direct=False)


def test_a_restarted_node_whose_clock_was_set_back_is_heard():
    progress = Progress()
    progress.take(9, 100_000, is_direct=False)
    assert progress.take(0, 5, is_direct=False)


@given(st.lists(st.integers(0, 50)))
def test_between_restarts_numbers_only_rise(numbers):
    progress = Progress()
    last = -1
    for number in numbers:
        if progress.take(number, 1000, is_direct=False):
            assert number == 0 or number > last
            last = number


def test_what_is_told_names_us_first_and_describes_only_what_is_lacking():
    known = topology({2: (1,), 3: (1,), 4: (1,)}, (2, 3))
    rows = known.adjacencies(5, receiver=3, listed=(2,))
    assert [(row.node_id, row.description is not None) for row in rows] == [
        (1, False), (4, True), (2, False),
    ]  # fmt: skip
    assert rows[0].neighbours == (2, 3) and rows[0].link_sequence == 5


def test_a_name_has_no_address_until_it_is_looked_up():
    known = Topology(1, is_rerouting=True)
    node = known.add(2, Description("bin:sip.example.org:5555", "", 1, 1))
    assert isinstance(node, Node) and node.addresses == ()
    known.set_addresses(node, ("10.9.9.9",))
    assert known.has_address("10.9.9.9")


def test_a_list_that_a_change_has_overtaken_is_what_the_change_began_with():
    known = topology({2: (), 3: (), 4: ()}, ())
    node = known.get(2)
    assert node is not None
    known.forget_links(node)
    known.set_link(node, 4, LinkState.UP)

    known.fill_neighbours(node, (1, 3))
    known.fill_neighbours(node, (7, 8))

    assert sorted(node.neighbours) == [1, 3, 4]
