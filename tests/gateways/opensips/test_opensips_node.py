"""Machines of our own, several of them, on a network in memory."""

from __future__ import annotations

from functools import partial

import attrs
import pytest

from clusternode.core.effects import Outcome
from clusternode.core.events import DuplicateId, Joined, NodeStateChanged, PeerMisbehaved
from clusternode.core.types import DeliveryId, NodeId, RequestId, ResultCode, Tag
from clusternode.core.wire.messages import Message, Reply, Request
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.codec import decode_untrusted, encode
from clusternode.gateways.opensips.messages import (
    Adjacency,
    CapabilityUpdate,
    Description,
    Generic,
    LinkState,
    LinkUpdate,
    ModulePacket,
    NodeCapabilities,
    NodeDescription,
    Ping,
    Pong,
    RemoveNode,
    TopologyUpdate,
    Trailer,
    UnknownId,
)
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.settings import BinUrl, Neighbour
from tests.gateways.opensips.memory import World, node_ids, settings

TAG = Tag("1-1-abc")


def joined(*numbers: int) -> World:
    world = World()
    for number in numbers:
        world.start(number)
    world.run(3.0)
    return world


def test_a_node_joins_with_the_address_of_one_and_everybody_is_up_with_everybody():
    world = joined(1, 2, 3, 4)
    for number in world.members:
        others = [each for each in (1, 2, 3, 4) if each != number]
        assert world.sees_up(number) == others
        assert world.hops(number) == {each: each for each in others}
        assert sorted(world.members[number].node.membership.topology.neighbours) == others


def test_everybody_knows_everybodys_neighbours():
    world = joined(1, 2, 3, 4, 5)
    for number, member in world.members.items():
        for node in member.node.membership.topology:
            assert sorted(node.neighbours) == [e for e in range(1, 6) if e != node.node_id], number


def test_events_tell_of_nodes_that_come_and_go():
    world = joined(1, 2)
    events = world.members[1].events
    assert [e.node_id for e in events if isinstance(e, Joined)] == ["2"]

    world.kill(2)
    world.run(1.0)

    world.perform(1, world.members[1].node.perform(world.now, partial(remove, world, 2)))

    changes = [event for event in events if isinstance(event, NodeStateChanged)]
    assert [(each.previous, each.status, each.new_state) for each in changes] == [
        ("new", "active", 1),
        ("active", "not_active", 0),
        ("not_active", "removed", 0),
    ]


def remove(world: World, number: int) -> None:
    assert world.members[1].node.remove(number)


def test_a_killed_process_is_known_in_some_round_trips():
    world = joined(1, 2, 3)
    world.kill(3)
    world.run(0.05)
    assert world.sees_up(1) == [2] and world.hops(2) == {1: 1}


def test_a_node_that_returns_is_up_again_though_its_numbers_begin_anew():
    world = joined(1, 2, 3)
    world.kill(3)
    world.run(2.0)
    world.start(3)
    world.run(6.0)
    assert world.sees_up(3) == [1, 2] and world.hops(1) == {2: 2, 3: 3}
    known = world.members[1].node.membership.topology.get(3)
    assert known is not None and sorted(known.neighbours) == [1, 2]


def test_around_a_broken_link_messages_go_through_a_third_node_and_replies_return():
    world = joined(1, 2, 3)
    world.block(1, 2)
    world.run(4.0)
    assert world.hops(1) == {3: 3, 2: 3} and world.sees_up(1) == [3]
    states = [e for e in world.members[1].events if isinstance(e, NodeStateChanged)]
    assert len(states) == 2, "it could be reached all the time"

    ask(world, 1, node_ids(2))
    world.run(0.1)
    answer(world, 2, 1)
    world.run(0.1)

    assert [each.body for each in world.members[1].of(effects.Replied)] == [b"yes"]
    assert world.members[3].node.context.counters["forwarded"] == 2


def ask(world: World, number: int, to: list[NodeId] | None, timeout: float = 1.0) -> None:
    node = world.members[number].node
    world.perform(
        number,
        node.perform(
            world.now,
            lambda: node.scripts.ask(RequestId(1), TAG, b"who", timeout, to, include_self=False),
        ),
    )


def answer(world: World, number: int, to: int, body: bytes = b"yes") -> None:
    node = world.members[number].node
    world.perform(
        number,
        node.perform(
            world.now, lambda: node.scripts.reply(DeliveryId(9), NodeId(str(to)), TAG, body)
        ),
    )


def test_a_request_reaches_all_and_ends_when_each_has_replied_once():
    world = joined(1, 2, 3)

    ask(world, 1, None)
    world.run(0.05)
    answer(world, 2, 1, b"two")
    answer(world, 2, 1, b"two again")
    answer(world, 3, 1, b"three")
    world.run(0.05)
    answer(world, 3, 1, b"late")
    world.run(2.0)

    asker = world.members[1]
    for number in (2, 3):
        (arrived,) = world.members[number].of(effects.Arrived)
        request, message = arrived.messages
        assert isinstance(request, Request) and isinstance(message, Message)
        assert (request.tag, request.body, message.body) == (TAG, b"who", b"who")
    assert [each.body for each in asker.of(effects.Replied)] == [b"two", b"two again", b"three"]
    assert [each.outcome for each in asker.of(effects.Finished)] == [Outcome.REPLIED] * 2
    replies = [e.messages[0] for e in asker.of(effects.Arrived)]
    assert all(isinstance(each, Reply) for each in replies) and len(replies) == 4
    assert asker.node.context.counters["late_replies"] == 1


def test_who_does_not_answer_ends_at_the_timeout_and_who_is_not_there_at_once():
    world = joined(1, 2)
    ask(world, 1, node_ids(2, 77))
    finished = world.members[1].of(effects.Finished)
    assert [(e.node_id, e.code) for e in finished] == [("77", ResultCode.UNAVAILABLE)]

    world.run(1.5)

    finished = world.members[1].of(effects.Finished)
    assert (finished[1].outcome, finished[1].code) == (Outcome.UNANSWERED, ResultCode.TIMEOUT)
    assert world.members[1].node.scripts.next_deadline() is None


def publish(world: World, number: int, body: bytes, to: list[NodeId], delivery: int = 1) -> None:
    node = world.members[number].node
    wanted = node.perform(
        world.now, lambda: node.scripts.publish(DeliveryId(delivery), TAG, body, to)
    )
    world.perform(number, wanted)


def test_a_message_ends_as_queued_when_it_is_written_and_not_before():
    world = joined(1, 2)
    publish(world, 1, b"x", node_ids(2))
    assert not world.members[1].of(effects.Settled)
    world.run(0.01)
    assert [each.code for each in world.members[1].of(effects.Settled)] == [ResultCode.QUEUED]


def test_what_a_broken_connection_had_not_written_may_have_happened():
    world = joined(1, 2)
    publish(world, 1, b"x", node_ids(2))
    connection = world.members[1].node.membership.outbox.connection_to(2)
    assert connection is not None

    world.perform(1, world.members[1].node.closed(world.now, connection.number))

    assert [each.code for each in world.members[1].of(effects.Settled)] == [ResultCode.TIMEOUT]


def test_a_burst_leaves_at_the_pace_and_pings_overtake_it():
    world = World()
    world.start(1, pace=200)
    world.start(2, pace=200)
    world.run(3.0)
    sent = len(world.members[1].frames)

    for number in range(1000):
        publish(world, 1, b"x", node_ids(2), delivery=number)
    assert len(world.members[1].frames) - sent <= 64  # what a connection gets unwritten
    world.run(1.0)

    frames = [decode_untrusted(each) for each in world.members[1].frames[sent:]]
    data = [each for each in frames if isinstance(each, Generic)]
    assert 250 <= len(data) <= 310
    assert world.sees_up(2) == [1]
    world.run(5.0)
    assert len(world.members[1].of(effects.Settled)) == 1000


def test_beyond_the_queue_of_a_node_messages_are_refused():
    world = World()
    world.start(1, pace=1)
    world.start(2)
    world.run(3.0)
    for number in range(10_200):
        publish(world, 1, b"x", node_ids(2), delivery=number)
    codes = [each.code for each in world.members[1].of(effects.Settled)]
    assert codes.count(ResultCode.BUSY) >= 100


def test_what_passes_in_a_circle_is_dropped():
    world = joined(1, 2, 3)
    router = world.members[1].node
    trailer = Trailer(1, 2, 3)
    frame = encode(Generic(trailer, True, "t", b"x"))
    ends = {peer: number for number, (peer, _) in world.members[1].ends.items() if number < 0}

    for sender in (2, 2, 3):
        world.perform(1, router.received(world.now, ends[sender], frame))

    counters = router.context.counters
    assert counters["forwarded"] == 2  # twice the same text of one node are two messages
    assert counters["unroutable"] == 1  # it is not sent back where it came from


def test_who_leaves_is_gone_in_a_round_trip():
    world = joined(1, 2, 3)
    world.perform(3, world.members[3].node.leave(world.now))
    world.run(0.05)
    assert world.sees_up(1) == [2] and world.hops(2) == {1: 1}


def test_a_removed_node_is_gone_everywhere_and_disables_itself():
    world = joined(1, 2, 3)
    node = world.members[1].node
    world.perform(1, node.perform(world.now, lambda: node.remove(3)))
    world.run(12.0)
    assert world.hops(1) == {2: 2} and world.hops(2) == {1: 1} and world.hops(3) == {}
    assert not world.members[3].node.membership.is_enabled
    assert world.members[2].node.membership.topology.get(3) is None


def test_a_node_that_others_remove_tells_its_own_operator_so_and_who_it_was():
    world = joined(1, 2)
    node, removed = world.members[1].node, world.members[2]
    world.perform(1, node.perform(world.now, lambda: node.remove(2)))
    world.run(0.5)
    enable = partial(removed.node.membership.set_enabled, 2, is_enabled=True)
    for _ in range(2):  # once is enough
        world.perform(2, removed.node.perform(world.now, enable))

    own = [e for e in removed.events if isinstance(e, NodeStateChanged) and e.node_id == "2"]
    assert [(e.new_state, e.status, e.previous, e.reason) for e in own] == [
        (0, "disabled", "active", "removed by node 1"),
        (1, "active", "disabled", "operator"),
    ]


@pytest.mark.parametrize("tag", ["\udcff\udcfe", "t" * 1000, "a\nb"])
def test_a_tag_that_nobody_could_write_down_or_answer_is_malformed(tag):
    world = joined(1, 2)
    stranger(world, Generic(Trailer(1, 2, 1), True, tag, b"x"), "10.0.0.2")
    assert world.members[1].of(effects.Arrived) == []
    assert world.members[1].node.context.counters["malformed"] == 1


def test_a_disabled_node_is_not_heard_and_comes_back_when_it_is_enabled():
    world = joined(1, 2)
    node = world.members[1].node
    world.perform(
        1, node.perform(world.now, lambda: node.membership.set_enabled(2, is_enabled=False))
    )
    world.run(3.0)
    assert world.hops(1) == {} and node.others() == []
    world.perform(
        1, node.perform(world.now, lambda: node.membership.set_enabled(2, is_enabled=True))
    )
    world.run(6.0)
    assert world.hops(1) == {2: 2}


# --- strangers and enemies -----------------------------------------------------------------------


def stranger(world: World, packet: object, host: str = "10.0.0.99") -> list[object]:
    """Let a packet come on a connection from somewhere."""
    node = world.members[1].node
    node.accepted(world.now, -9000, host, 1234)
    wanted = node.received(world.now, -9000, encode(packet))  # type: ignore[arg-type]
    world.perform(1, wanted)
    return [decode_untrusted(e.frame) for e in wanted if isinstance(e, effects.Send)]


def test_an_unknown_id_that_pings_is_asked_who_it_is_on_its_own_connection():
    world = joined(1, 2)
    assert stranger(world, Ping(1, 50, True)) == [UnknownId(1, 1)]


def test_a_packet_of_a_known_id_from_an_unknown_address_is_dropped():
    world = joined(1, 2)
    assert stranger(world, Ping(1, 2, True)) == []
    assert world.members[1].node.context.counters["strangers"] == 1
    assert isinstance(world.members[1].events[-1], PeerMisbehaved)


def test_a_packet_of_a_known_id_from_the_address_of_another_node_is_taken_as_by_opensips():
    world = joined(1, 2, 3)
    assert [type(each) for each in stranger(world, Ping(1, 3, False), "10.0.0.2")] == [Pong]


@pytest.mark.parametrize(
    ("packet", "counter"),
    [
        (Ping(7, 2, True), "foreign"),
        (Ping(1, 1, True), "own_id"),
        (LinkUpdate(1, 2, 900, 0, 1, LinkState.UP, (2, 1)), "loops"),
        (LinkUpdate(1, 2, 900, 0, 1, LinkState.UP, (3,)), "loops"),
        (Generic(Trailer(7, 2, 1), True, "t", b""), "foreign"),
        (Generic(Trailer(1, 1, 2), True, "t", b""), "loops"),
        (Generic(Trailer(1, 2, 70), True, "t", b""), "unroutable"),
        (ModulePacket(Trailer(1, 2, 1), "no-such-module", 1, 1, b"x"), "packets_unregistered"),
    ],
)
def test_what_makes_no_sense_is_dropped_and_counted(packet, counter):
    world = joined(1, 2)
    assert stranger(world, packet, "10.0.0.2") == []
    assert world.members[1].node.context.counters[counter] == 1


def test_the_marker_of_a_bridge_is_refused():
    world = joined(1, 2)
    frame = bytearray(encode(Generic(Trailer(1, 2, 1), True, "t", b"x")))
    frame[-4:] = (0xC0000000).to_bytes(4, "little")
    node = world.members[1].node
    node.accepted(world.now, -9000, "10.0.0.2", 1)
    assert not [
        e for e in node.received(world.now, -9000, bytes(frame)) if isinstance(e, effects.Arrived)
    ]
    assert node.context.counters["bridged"] == 1


def test_a_crowd_of_invented_nodes_is_bounded_as_in_opensips():
    world = joined(1, 2)
    for number in range(100, 260):
        description = Description(f"bin:10.1.0.{number % 250}:1", "", 50, 2**31 - 1)
        stranger(world, NodeDescription(1, number, description, (number,)))
    node = world.members[1].node
    assert len(node.membership.topology) == 128
    assert node.context.counters["nodes_refused"] >= 30
    world.run(0.5)
    assert world.sees_up(1) == [2]


def test_removing_everybody_by_a_packet_is_what_opensips_believes_too():
    world = joined(1, 2, 3)
    stranger(world, RemoveNode(Trailer(1, 2, 1), 3), "10.0.0.2")
    assert world.members[1].node.membership.topology.get(3) is None


def test_a_list_whose_changes_come_first_is_whole_in_any_order():
    world = joined(1, 2, 3)
    node = world.members[1].node
    other = node.membership.topology.get(2)
    assert other is not None
    node.membership.topology.forget_links(other)
    rows = (Adjacency(2, None, 4, 0, (1, 3)),)

    up = LinkState.UP
    stranger(world, LinkUpdate(1, 2, 5, 1_900_000_000, 1, up, (2,)), "10.0.0.2")
    stranger(world, TopologyUpdate(1, 2, 9, 1_900_000_000, rows, (2,)), "10.0.0.2")

    assert sorted(other.neighbours) == [1, 3]


def test_capabilities_that_come_before_their_node_are_believed_once_it_is_known():
    world = joined(1, 2)
    node = world.members[1].node
    rows = (NodeCapabilities(2, (("c", True),)), NodeCapabilities(50, (("c", True),)))
    stranger(world, CapabilityUpdate(1, 2, 5, 1_900_000_000, rows, False, (2,)), "10.0.0.2")
    assert [each.node_id for each in node.capabilities.all()] == [2]

    description = Description("bin:10.0.0.50:5555", "", 50, 3)
    stranger(world, NodeDescription(1, 50, description, (50, 2)), "10.0.0.2")

    assert node.capabilities.state(50, "c") is True


def test_capabilities_of_invented_nodes_cost_bounded_memory():
    world = joined(1, 2)
    early = world.members[1].node.membership.early
    for number in range(10):
        ids = range(1000 + 100 * number, 1100 + 100 * number)
        rows = tuple(NodeCapabilities(each, (("c", True),)) for each in ids)
        packet = CapabilityUpdate(1, 2, 5 + number, 1_900_000_000, rows, False, (2,))
        stranger(world, packet, "10.0.0.2")
    assert len(early) == 128 and 1999 in early


def test_a_neighbour_with_a_name_is_looked_up_before_it_is_dialled_and_again_when_it_is_lost():
    own = settings(1, ())
    named = BinUrl("bin", "sip.example.org", 5555)
    node = OpenSipsNode("opensips", attrs.evolve(own, neighbor_node_info=(Neighbour(2, named),)), 1)

    assert [type(each) for each in node.start(1.0)] == [effects.Resolve]
    (dial,) = [e for e in node.resolved(2.0, named.host, ["10.0.0.2"]) if type(e) is effects.Dial]
    wanted = node.closed(3.0, dial.connection)
    assert not [each for each in wanted if isinstance(each, effects.Dial)]

    assert (dial.host, dial.port) == ("10.0.0.2", 5555)
    deadline = node.next_deadline()
    assert deadline is not None
    assert [e.host for e in node.tick(deadline) if isinstance(e, effects.Resolve)] == [named.host]


def test_a_cluster_that_is_told_of_two_with_our_id_says_so_now_and_then():
    world = joined(1, 2)
    for _ in range(50):
        stranger(world, Ping(1, 1, True))
    told = [event for event in world.members[1].events if isinstance(event, DuplicateId)]
    assert len(told) == 1 and world.members[1].node.context.counters["own_id"] == 50
