"""Ways through others, seen from one node: n5 between n1, n3 and n9, with n7 behind them."""

from __future__ import annotations

import pytest

from clusternode.core.effects import Write
from clusternode.core.events import LinkChanged, PeerDown, PeerMisbehaved
from clusternode.core.inputs import DialFailed, DialFailure, Disconnected, Lagged, RemoveMember
from clusternode.core.membership.asking import ASKED_AT_ONCE, TURNS_MAX, WIDE_MAX
from clusternode.core.membership.relaying import WANTED_MAX
from clusternode.core.settings import HealthSettings
from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.codec import decode_untrusted, encode, payload_of
from clusternode.core.wire.messages import (
    Close,
    CloseReason,
    NoRoute,
    Ping,
    Pong,
    Records,
    Resume,
    Routed,
    Segment,
)
from tests.core.harness import Lone, address_of, hello_of, record_of


def routed(origin, destination, *relays, message=None, incarnations=(1, 1)) -> Routed:
    message = message or Ping(7, 0)
    return Routed(
        NodeId(origin),
        Incarnation(incarnations[0]),
        NodeId(destination),
        Incarnation(incarnations[1]),
        tuple(NodeId(relay) for relay in relays),
        message.TYPE,
        payload_of(message),
    )


def no_route(origin, destination, *relays, at) -> NoRoute:
    return NoRoute(NodeId(origin), NodeId(destination), tuple(map(NodeId, relays)), NodeId(at))


class Crossing:
    """n5 with open connections to n1, n3 and n9."""

    def __init__(self, **health):
        self.lone = Lone(health=HealthSettings(ping_interval=5.0, ping_timeout=2.0, **health))
        self.links = {name: self.lone.open(name) for name in ("n1", "n3", "n9")}
        self.forget()

    def forget(self):
        for connection in self.links.values():
            self.lone.sent[connection].clear()

    def sent(self, name, kind):
        return self.lone.of_type(kind, self.links[name])

    def receive(self, name, *messages):
        return self.lone.receive(self.links[name], *messages)

    def lose(self, name):
        self.lone.feed(Disconnected(self.links[name]))

    def refuse(self, name):
        self.lone.feed(DialFailed(address_of(name), DialFailure.REFUSED))

    def routed_since(self, effect):
        """Return what was sent over relays since so many effects, in order."""
        writes = [one for one in self.lone.effects[effect:] if isinstance(one, Write)]
        frames = [frame.message for write in writes for frame in write.frames]
        return [message for message in frames if isinstance(message, Routed)]

    def asked(self, name):
        """Return the pings to a node that were sent over relays, in the order of asking."""
        return [
            one for one in self.routed_since(0) if (one.destination, one.type) == (name, Ping.TYPE)
        ]

    def asked_over(self, name):
        """Return the relays over which a node was pinged, in the order of asking."""
        return [one.relays for one in self.asked(name)]

    def pings(self, name, over):
        """Return the pings to a node that were sent over a relay."""
        return [
            one
            for one in self.sent(over, Routed)
            if (one.destination, one.type) == (name, Ping.TYPE)
        ]

    def pong(self, name, over, *, which=-1):
        """Let the last ping over a relay come back from a node, or another one."""
        ping = [one for one in self.asked(name) if one.relays[0] == over][which]
        inner = decode_untrusted(ping.type, ping.payload)
        assert isinstance(inner, Ping)
        answer = Pong(inner.number, 0)
        pong = routed(name, "n5", *ping.relays[::-1], message=answer, incarnations=(1, 100))
        self.receive(over, pong)


def large_cluster():
    """Return n5 with open connections to seventy others beside n1, n3 and n9."""
    node = Crossing()
    node.links |= {name: node.lone.open(name) for name in (f"n{i}" for i in range(100, 170))}
    return node


def test_a_relay_passes_a_frame_on_as_it_is():
    node = Crossing()
    frame = routed("n1", "n9", "n5")
    node.receive("n1", frame)

    assert node.sent("n9", Routed) == [frame]
    assert node.lone.count("routed_frames_relayed") == 1


def test_a_relay_without_a_link_says_so_at_once_to_who_comes_before_it():
    node = Crossing()
    node.receive("n1", routed("n2", "n7", "n1", "n5"))

    assert node.sent("n1", NoRoute) == [no_route("n2", "n7", "n1", "n5", at="n5")]


def test_a_relay_tells_whose_frames_went_over_a_link_that_breaks():
    node = Crossing()
    node.receive("n1", routed("n1", "n9", "n5"))
    node.lose("n9")

    assert node.sent("n1", NoRoute) == [no_route("n1", "n9", "n5", at="n5")]


def test_a_relay_passes_refusals_back():
    node = Crossing()
    refusal = no_route("n1", "n7", "n5", "n9", at="n9")
    node.receive("n9", refusal)

    assert node.sent("n1", NoRoute) == [refusal]


@pytest.mark.parametrize(
    ("source", "frame"),
    [
        ("n1", routed("n1", "n9", "n3")),
        ("n3", routed("n1", "n9", "n5")),
        ("n1", routed("n1", "n9", "n1", "n5")),
        ("n1", routed("n1", "n9", "n5", "n9")),
        ("n1", routed("n1", "n1", "n5")),
        ("n1", routed("n7", "n5", "n9", incarnations=(1, 100))),
        ("n1", no_route("n1", "n9", "n5", at="n5")),
        ("n1", no_route("n1", "n9", "n3", at="n3")),
        ("n3", no_route("n1", "n7", "n5", "n9", at="n9")),
        ("n1", no_route("n5", "n7", "n3", at="n3")),
        ("n1", no_route("n5", "n7", "n1", at="n3")),
        ("n1", Segment(1, 0, 0, b"x")),
    ],
    ids=repr,
)
def test_what_no_honest_relay_sends_ends_its_connection(source, frame):
    node = Crossing()
    node.receive(source, frame)

    assert node.links[source] in node.lone.closed
    assert [event.node_id for event in node.lone.events_of(PeerMisbehaved)] == [source]


@pytest.mark.parametrize(
    "frame",
    [
        routed("n7", "n5", "n1", incarnations=(1, 100)),
        routed("n9", "n5", "n1", incarnations=(2, 100)),
        routed("n9", "n5", "n1", incarnations=(1, 99)),
    ],
    ids=["an unknown origin", "another incarnation of it", "another incarnation of ours"],
)
def test_what_is_not_from_a_member_to_us_is_dropped_and_counted(frame):
    node = Crossing()
    node.receive("n1", frame)

    assert node.sent("n1", Routed) == []
    assert node.lone.count("routed_frames_not_taken") == 1


def test_garbage_inside_is_dropped_and_counted():
    node = Crossing()
    frame = routed("n9", "n5", "n1", incarnations=(1, 100))
    frame.payload = b"\xc1"
    node.receive("n1", frame)

    assert node.lone.count("routed_frames_not_taken") == 1


def test_a_ping_over_others_is_answered_over_the_same():
    node = Crossing()
    node.receive("n1", routed("n9", "n5", "n3", "n1", message=Ping(3, 0), incarnations=(1, 100)))

    (answer,) = node.sent("n1", Routed)
    assert (answer.destination, answer.relays, answer.type) == ("n9", ("n1", "n3"), Pong.TYPE)


def test_a_silent_link_is_asked_around_before_its_node_counts_as_failed():
    node = Crossing()
    answering = tuple(node.links[name] for name in ("n1", "n3"))
    node.lone.pass_time(7.1, answers=answering)
    assert node.asked_over("n9")[:2] == [("n1",), ("n3",)]
    node.lone.pass_time(1.0, answers=answering)

    assert node.lone.status("n9") == "active"
    node.lone.pass_time(1.5, answers=answering)
    assert node.lone.status("n9") == "not_active"


def test_a_node_that_answers_over_another_stays_active_and_its_silent_link_is_given_up():
    node = Crossing()
    node.lose("n9")
    node.pong("n9", over="n1")
    node.refuse("n9")

    assert node.lone.status("n9") == "active"
    assert node.lone.events_of(PeerDown) == []
    (shown,) = [
        one for one in node.lone.node.snapshot(node.lone.now).members if one.node_id == "n9"
    ]
    assert shown.link == "via n1"


def test_a_tunnel_begins_with_a_hello_and_the_surroundings_never_hear_of_it():
    node = Crossing()
    node.lose("n9")
    node.pong("n9", over="n1")
    (inner,) = [one for one in node.sent("n1", Routed) if one.type == Segment.TYPE]

    assert encode(node.lone.node.hello()) in inner.payload
    assert node.lone.surroundings_know_all_connections()


def test_the_larger_id_leaves_it_to_the_smaller_to_begin_a_tunnel():
    node = Crossing()
    node.lose("n1")
    node.pong("n1", over="n9")

    assert [one for one in node.sent("n9", Routed) if one.type == Segment.TYPE] == []


def test_a_killed_node_is_known_as_soon_as_its_host_and_all_relays_have_said_so():
    node = Crossing()
    node.lose("n9")
    node.refuse("n9")
    assert node.lone.status("n9") == "active"
    node.receive("n1", no_route("n5", "n9", "n1", at="n1"))
    assert node.lone.status("n9") == "active"
    node.receive("n3", no_route("n5", "n9", "n3", at="n3"))

    assert node.lone.status("n9") == "not_active"


def test_relays_are_asked_by_priority_and_then_by_id():
    node = Crossing()
    node.receive("n3", Records([record_of("n3", version=2, priority=10)]))
    node.lose("n9")

    assert node.asked_over("n9") == [("n3",), ("n1",)]


def test_a_relay_whose_record_names_the_link_as_down_is_asked_last():
    node = Crossing()
    node.receive("n1", Records([record_of("n1", version=2, down=(NodeId("n9"),))]))
    node.lose("n9")

    assert node.asked_over("n9") == [("n3",), ("n1",)]


def test_the_better_of_two_ways_that_answer_is_used():
    node = Crossing()
    node.lose("n9")
    node.pong("n9", over="n3")
    assert node.lone.node.snapshot(node.lone.now).members[-1].link == "via n3"

    node.pong("n9", over="n1")
    assert node.lone.node.snapshot(node.lone.now).members[-1].link == "via n1"


def test_a_way_that_is_refused_is_left_for_another():
    node = Crossing()
    node.lose("n9")
    node.pong("n9", over="n1")
    node.receive("n1", no_route("n5", "n9", "n1", at="n1"))
    node.pong("n9", over="n3")

    assert node.lone.node.snapshot(node.lone.now).members[-1].link == "via n3"
    assert node.lone.status("n9") == "active"


def test_who_dies_with_its_relay_is_known_although_another_was_reached_over_that_one_too():
    node = Crossing()
    for name in ("n7", "n8"):
        node.links[name] = node.lone.open(name)
        node.lose(name)
        node.pong(name, over="n9", which=0)
    node.lose("n9")
    for name in ("n7", "n8"):
        node.refuse(name)
        for over in ("n1", "n3"):
            assert node.lone.status(name) == "active"
            node.receive(over, no_route("n5", name, over, at=over))

    assert [node.lone.status(name) for name in ("n7", "n8")] == ["not_active", "not_active"]


def test_a_direct_connection_takes_the_place_of_a_way():
    node = Crossing()
    node.lose("n9")
    node.pong("n9", over="n1")
    node.lone.open("n9")

    assert node.lone.node.snapshot(node.lone.now).members[-1].link == "direct"
    told = [(event.node_id, event.link) for event in node.lone.events_of(LinkChanged)]
    assert told == [("n9", "via n1"), ("n9", "direct")]


def test_a_member_without_a_link_is_named_in_the_record_once_an_interval():
    node = Crossing()
    node.lose("n9")
    node.pong("n9", over="n1")
    node.forget()
    node.lone.pass_time(0.1)

    (told,) = node.sent("n3", Records)
    assert told.records[0].down == ("n9",)


def live_on(node, seconds, *, until=lambda: False):
    """Let time pass while all answer: over n1 who has no link. Returns how long `until` took."""
    began_at, relays = node.lone.now, [name for name in node.links if name != "n1"]
    while node.lone.now < began_at + seconds and not until():
        node.forget()
        node.lone.pass_time(0.1)
        for name in ("n1", *relays):
            if node.pings(name, over="n1"):
                node.pong(name, over="n1")
            elif node.sent(name, Ping):
                node.lone.answer_ping(node.links[name])
    return node.lone.now - began_at


def names(node, *down):
    """Return a function that tells whether n5 has just told n1 that these links are down."""
    return lambda: any(told.records[0].down == down for told in node.sent("n1", Records))


def lose_large(node, name):
    """Lose a link of a large cluster, whose node answers over n1 then."""
    node.lose(name)
    node.refuse(name)
    node.pong(name, over="n1")


def test_in_a_large_cluster_a_link_is_named_when_both_could_have_dialled_again():
    node = large_cluster()
    lose_large(node, "n9")

    took = live_on(node, 20.0, until=names(node, "n9"))
    assert took == pytest.approx(5.0 + 2.0, abs=0.2)  # redial_max, ping_timeout


def test_a_link_that_is_back_is_no_longer_named_although_another_is_to_be_named_later():
    node = large_cluster()
    lose_large(node, "n9")
    live_on(node, 20.0, until=names(node, "n9"))
    live_on(node, 3.0)
    lose_large(node, "n3")
    live_on(node, 2.5)  # more than an interval since n9 was named
    node.links["n9"] = node.lone.open("n9")

    assert live_on(node, 20.0, until=names(node)) == pytest.approx(2.0, abs=0.2)  # ping_timeout


def test_a_ping_over_others_makes_us_look_at_our_own_link():
    node = Crossing()
    node.receive("n1", routed("n9", "n5", "n1", message=Ping(3, 0), incarnations=(1, 100)))

    assert len(node.sent("n9", Ping)) == 1


def test_a_relay_that_nobody_has_told_us_of_is_asked_for_nobody():
    node = Crossing()
    node.receive("n1", Records([record_of("n2")]))
    node.receive("n1", routed("n2", "n5", "n7", "n1", incarnations=(1, 100)))  # a stranger

    node.lose("n9")
    node.lone.pass_time(5.0)

    assert {("n1",), ("n3",)} <= set(node.asked_over("n9"))
    assert all("n7" not in over for over in node.asked_over("n9"))


def test_with_rerouting_off_nobody_is_asked_and_nothing_passed_on():
    node = Crossing(enable_rerouting=False)
    node.receive("n1", routed("n1", "n9", "n5"))
    assert node.sent("n1", NoRoute) == [no_route("n1", "n9", "n5", at="n5")]
    assert node.sent("n9", Routed) == []

    node.lose("n9")
    node.refuse("n9")
    assert node.asked_over("n9") == []
    assert node.lone.status("n9") == "not_active"


def test_a_hello_of_somebody_else_in_a_tunnel_is_refused():
    node = Crossing()
    node.lose("n1")
    first = Segment(1, 0, 0, encode(hello_of("n2")))
    node.receive("n9", routed("n1", "n5", "n9", message=first, incarnations=(1, 100)))

    assert node.lone.count("tunnels_refused") == 1


def segments(node, over):
    """Return what was sent in tunnels over a relay, in the order of the wire."""
    return [
        decode_untrusted(one.type, one.payload)
        for one in node.sent(over, Routed)
        if one.type == Segment.TYPE
    ]


def tunnel_to_n9(node):
    """Open a tunnel to n9 over n1."""
    node.lose("n9")
    node.pong("n9", over="n1")
    (hello,) = segments(node, "n1")
    theirs = encode(hello_of("n9")) + encode(Resume(0, 1))
    taken = len(hello.data) + len(encode(Resume(0, 1)))
    for offset, received, data in (
        (0, len(hello.data), theirs[: -len(encode(Resume(0, 1)))]),
        (len(theirs) - len(encode(Resume(0, 1))), taken, encode(Resume(0, 1))),
    ):
        piece = Segment(hello.number, received, offset, data)
        node.receive("n1", routed("n9", "n5", "n1", message=piece, incarnations=(1, 100)))
    node.forget()


def test_the_reason_for_the_end_of_a_tunnel_comes_before_its_end():
    node = Crossing()
    tunnel_to_n9(node)
    node.lone.feed(RemoveMember(NodeId("n9")))
    told = segments(node, "n1")

    assert told[-1].ends
    assert b"".join(one.data for one in told[:-1]).endswith(encode(Close(int(CloseReason.REMOVED))))


def test_the_tunnel_of_one_who_left_is_forgotten_although_nobody_ends_it():
    node = Crossing()
    tunnel_to_n9(node)
    left = encode(Records([record_of("n9", version=2, left=True)]))
    offset = len(encode(hello_of("n9")) + encode(Resume(0, 1)))
    piece = Segment(1, 0, offset, left)
    node.receive("n1", routed("n9", "n5", "n1", message=piece, incarnations=(1, 100)))
    assert node.lone.status("n9") == "left"
    node.lone.pass_time(6.0, answers=tuple(node.links.values()))

    # What others say of it is taken again: a new life of it, without a link to us.
    node.receive("n1", Records([record_of("n9", incarnation=2)]))
    assert node.lone.status("n9") == "not_active"


def test_a_tunnel_whose_hello_never_ends_is_forgotten():
    node = Crossing()
    node.lose("n1")
    first = Segment(1, 0, 0, encode(hello_of("n1"))[:10])
    node.receive("n9", routed("n1", "n5", "n9", message=first, incarnations=(1, 100)))
    node.lone.pass_time(8.0, answers=(node.links["n3"], node.links["n9"]))
    node.forget()
    more = Segment(1, 0, 10, b"x")
    node.receive("n9", routed("n1", "n5", "n9", message=more, incarnations=(1, 100)))

    assert [one.ends for one in segments(node, "n9")] == [True]


def test_a_refusal_of_what_was_never_asked_changes_nothing():
    node = Crossing()
    node.receive("n3", no_route("n5", "n9", "n3", "n1", at="n1"))
    node.lose("n9")

    assert node.asked_over("n9") == [("n1",), ("n3",)]


def test_who_has_no_open_ping_is_not_asked_when_another_way_is_found():
    node = Crossing()
    node.receive("n9", Records([record_of("n7")]))
    ping = routed("n7", "n5", "n9", message=Ping(3, 0), incarnations=(1, 100))
    node.receive("n9", ping)
    node.lose("n1")
    node.pong("n1", over="n9")

    assert node.asked_over("n7") == []


def test_who_was_removed_is_asked_for_over_one_other_at_each_dial_that_fails():
    node = Crossing()
    node.lone.feed(RemoveMember(NodeId("n9")))
    for _ in range(20):
        node.refuse("n9")
    asked = node.asked_over("n9")

    assert len(asked) == 20
    assert set(asked) == {("n1",), ("n3",)}


def test_in_a_large_cluster_who_was_removed_is_asked_for_once_an_interval():
    node = large_cluster()
    removed = ("n1", "n3", "n9")
    for name in removed:
        node.lone.feed(RemoveMember(NodeId(name)))
    for _ in range(100):  # two intervals
        for name in removed:
            node.refuse(name)
        node.lone.pass_time(0.1, answers=tuple(node.links.values()))

    assert [len(node.asked_over(name)) for name in removed] == [2, 2, 2]


def test_a_removed_node_that_asks_over_others_is_answered_and_comes_back_through_a_tunnel():
    node = Crossing()
    node.lone.feed(RemoveMember(NodeId("n9")))
    ping = routed("n9", "n5", "n1", message=Ping(0, 0), incarnations=(1, 100))
    node.receive("n1", ping)
    (hello,) = segments(node, "n1")

    assert hello.data == encode(node.lone.node.hello())


def test_members_whose_links_were_silent_for_a_moment_are_not_counted_as_lost():
    node = Crossing()
    others = [f"n{number}" for number in range(10, 50)]
    node.links |= {name: node.lone.open(name) for name in others}
    node.lone.pass_time(7.5)  # nobody answers; all are asked for over others
    for connection in node.links.values():
        node.lone.answer_ping(connection)
    node.lone.effects.clear()
    node.lose("n9")

    assert len(node.asked_over("n9")) == 5


def test_who_left_behind_a_cut_does_not_count_as_lost_any_more():
    node = Crossing(remove_inactive=False)
    others = [f"n{number}" for number in range(100, 140)]
    links = {name: node.lone.open(name) for name in others}
    for name in others:
        node.lone.feed(Disconnected(links[name]))
    node.receive("n1", Records([record_of(name, version=2, left=True) for name in others]))
    node.lone.effects.clear()
    node.links |= {name: node.lone.open(name) for name in ("n11", "n13", "n15", "n17")}
    node.lose("n9")

    assert len(node.asked_over("n9")) == 5


def test_who_believes_a_larger_incarnation_of_us_behind_a_cut_finds_us_above_it():
    node = Crossing()
    node.lose("n9")
    ping = routed("n9", "n5", "n1", incarnations=(1, 150))
    node.receive("n1", ping)
    assert node.lone.node.hello().incarnation == 151
    assert node.links["n1"] in node.lone.closed

    node.links["n1"] = node.lone.open("n1")
    node.receive("n1", routed("n9", "n5", "n1", incarnations=(1, 160)))
    assert node.lone.node.hello().incarnation == 151  # at most once per ping interval


@pytest.mark.parametrize(
    ("origin", "incarnations"),
    [("n3", (1, 150)), ("n7", (1, 150)), ("n9", (2, 150)), ("n9", (1, 99)), ("n9", (1, 2**63 - 1))],
    ids=["connected with us", "unknown", "another life of it", "a smaller one", "the largest"],
)
def test_our_incarnation_is_exceeded_for_nobody_else(origin, incarnations):
    node = Crossing()
    node.lose("n9")
    node.receive("n1", routed(origin, "n5", "n1", incarnations=incarnations))

    assert node.lone.node.hello().incarnation == 100
    assert node.lone.count("routed_frames_not_taken") == 1


def test_a_way_that_was_refused_is_not_used_for_that_ping():
    node = Crossing()
    node.lose("n9")
    node.receive("n1", no_route("n5", "n9", "n1", at="n1"))
    node.pong("n9", over="n1")

    assert node.lone.count("pongs_unexpected") == 1
    assert not node.lone.events_of(LinkChanged)


def test_in_a_large_cluster_a_lost_connection_is_dialled_before_others_are_asked():
    node = large_cluster()
    node.lone.dials.clear()
    node.lose("n9")
    node.lone.pass_time(0.01)
    assert address_of("n9") in node.lone.dials
    assert node.asked_over("n9") == []

    node.lone.open("n9")
    node.lone.pass_time(1.9, answers=tuple(node.links.values()))
    assert node.asked_over("n9") == []


def test_in_a_large_cluster_others_are_asked_only_where_what_replaces_a_link_does_not_come():
    node = large_cluster()
    node.receive("n9", Close(CloseReason.DUPLICATE_CONNECTION))
    node.lose("n9")
    assert node.asked_over("n9") == []

    node.lone.pass_time(1.0)  # half of ping_timeout: it has not come
    assert node.asked_over("n9") != []


def test_in_a_large_cluster_others_are_asked_where_a_dial_says_nothing_for_half_of_the_time():
    node = large_cluster()
    node.lose("n9")
    node.lone.pass_time(1.05, answers=tuple(node.links.values()))

    assert len(node.asked_over("n9")) == 5


def test_in_a_large_cluster_whose_dial_is_refused_is_gone_when_six_relays_refuse_too():
    node = large_cluster()
    node.forget()
    node.lose("n9")
    node.refuse("n9")
    assert node.lone.status("n9") == "active"
    while asked := [way for way in node.asked_over("n9") if node.lone.status("n9") == "active"]:
        for (relay,) in asked:
            node.receive(relay, no_route("n5", "n9", relay, at=relay))

    assert len(node.asked_over("n9")) == 6
    assert [name for name in node.links if node.sent(name, Ping)] == []
    assert node.lone.status("n9") == "not_active"


def test_a_relay_that_says_the_same_again_and_again_does_not_end_the_asking():
    node = Crossing()
    others = [f"n{number}" for number in range(100, 170)]
    node.links |= {name: node.lone.open(name) for name in others}
    for name in others[:10]:
        node.lose(name)
    for _ in range(40):
        node.receive("n1", no_route("n5", others[0], "n1", at="n1"))
    node.lone.effects.clear()
    node.lose("n9")
    node.refuse("n9")

    assert len(node.asked_over("n9")) == 5


def test_strangers_that_do_not_exist_do_not_end_the_asking_for_who_is_active():
    node = Crossing()
    node.receive("n1", Records([record_of(f"n{number}") for number in range(100, 140)]))
    for _ in range(12):
        for number in range(100, 140):
            node.refuse(f"n{number}")
        node.lone.pass_time(1.0, answers=tuple(node.links.values()))
    node.links |= {name: node.lone.open(name) for name in ("n11", "n13", "n15", "n17")}
    node.lone.effects.clear()
    node.lose("n9")

    assert len(node.asked_over("n9")) == 5


class Torn(Crossing):
    """n5 in a cluster of seventy, from which the links to ten others were cut."""

    def __init__(self):
        super().__init__(remove_inactive=False)
        others = [f"n{number}" for number in range(100, 170)]
        self.links |= {name: self.lone.open(name) for name in others}
        self.lost = others[:10]
        for name in self.lost:
            self.lose(name)
        for _ in range(2):
            self.round()

    def pass_time(self, seconds):
        """Let time pass, in which all who are left answer; return what was sent over them."""
        before = len(self.lone.effects)
        relays = (link for name, link in self.links.items() if name not in self.lost)
        self.lone.pass_time(seconds, answers=tuple(relays))
        return self.routed_since(before)

    def round(self):
        """Let all that is asked be refused for an interval; return (member, relay) asked."""
        asked = []
        for _ in range(10):
            for one in self.pass_time(0.5):
                (name,) = one.relays
                asked.append((one.destination, name))
                self.receive(name, no_route("n5", one.destination, name, at=name))
        return asked

    def next_asked(self):
        """Return the next ping over a relay that was never asked, and has refused nobody."""
        before = {one.relays for one in self.routed_since(0)}
        while True:
            for one in self.pass_time(0.1):
                if one.relays not in before:
                    return one


def test_where_nobody_is_found_in_a_large_cluster_one_relay_is_asked_for_each_ping():
    node = Torn()
    asked = node.round() + node.round()

    assert len(node.lost) < len(asked) <= 3 * len(node.lost)
    assert len({relay for _, relay in asked}) > len(asked) / 3


def test_what_is_found_for_one_of_many_lost_members_is_tried_for_the_others():
    node = Torn()
    ping = node.next_asked()
    (relay,) = ping.relays
    node.pong(ping.destination, over=relay)
    node.pass_time(6.0)

    over_it = {one.destination for one in node.routed_since(0) if one.relays == (relay,)}
    assert over_it.issuperset(node.lost)


def test_who_has_answered_is_not_asked_for_again_when_others_are_found():
    node = Torn()
    (relay,) = node.next_asked().relays
    answered: dict[str, int] = {}  # member → how often it had been asked for by then
    while len(answered) < 5:
        for name in node.lost:
            if name not in answered and (relay,) in node.asked_over(name):
                answered[name] = len(node.asked_over(name))
                node.pong(name, over=relay)
        node.pass_time(0.1)

    assert {name: len(node.asked_over(name)) for name in answered} == answered


def test_a_tunnel_that_takes_nothing_is_given_up_although_its_node_answers_over_others():
    node = Crossing()
    tunnel_to_n9(node)
    for _ in range(80):
        node.lone.pass_time(0.5, answers=(node.links["n1"], node.links["n3"]))
        if node.pings("n9", over="n1"):
            node.pong("n9", over="n1")

    assert node.lone.count("tunnels_opened") > 1
    assert node.lone.status("n9") == "active"


def all_refuse(node, *relays):
    """Let relays say that they have no link to n9: first the one in use, then all of them."""
    for over in relays or ("n1", "n3"):
        node.receive(over, no_route("n5", "n9", over, at=over))


def test_a_tunnel_that_all_relays_refuse_is_given_up_and_its_node_asked_for_once_more():
    node = Crossing()
    tunnel_to_n9(node)
    all_refuse(node, "n1", "n1", "n3")
    asked = len(node.asked_over("n9"))
    assert node.lone.status("n9") == "active"

    relays = (node.links["n1"], node.links["n3"])
    node.lone.pass_time(1.05, answers=relays)
    assert len(node.asked_over("n9")) == asked + 2
    all_refuse(node)
    assert node.lone.status("n9") == "not_active"


def test_who_is_found_at_the_second_asking_was_never_down():
    node = Crossing()
    tunnel_to_n9(node)
    all_refuse(node, "n1", "n1", "n3")
    node.lone.pass_time(1.05, answers=(node.links["n1"],))
    node.pong("n9", over="n1")

    assert node.lone.status("n9") == "active"
    assert node.lone.events_of(PeerDown) == []


def silent_n9(node, *, until=lambda node: node.asked_over("n9")):
    """Let n9 be silent until a ping of it is on its way over n1 and n3."""
    while not until(node):
        node.lone.pass_time(0.1, answers=(node.links["n1"], node.links["n3"]))


def test_who_all_relays_refuse_once_while_its_link_is_silent_is_asked_for_again_first():
    """Swarm 100253: the only relay had lost its own link a moment ago, and had it back at once."""
    node = Crossing()
    silent_n9(node)
    all_refuse(node)
    assert node.lone.status("n9") == "active"
    asked = len(node.asked_over("n9"))

    node.lone.pass_time(1.05, answers=(node.links["n1"], node.links["n3"]))
    assert len(node.asked_over("n9")) == asked + 2
    node.pong("n9", over="n3")
    assert node.lone.status("n9") == "active"
    assert node.lone.events_of(PeerDown) == []


def test_who_all_relays_refuse_twice_while_its_link_is_silent_has_failed():
    node = Crossing()
    silent_n9(node)
    all_refuse(node)
    node.lone.pass_time(1.05, answers=(node.links["n1"], node.links["n3"]))
    all_refuse(node)

    assert node.lone.status("n9") == "not_active"


def test_who_is_reached_over_a_member_is_asked_as_second_relay_when_that_one_is_silent():
    """Swarm 601233: the last of three cuts, one after another, left a row of four nodes."""
    node = Crossing()
    silent_n9(node, until=lambda node: node.sent("n9", Ping))
    node.links["n7"] = node.lone.open("n7")
    node.lose("n7")
    node.pong("n7", over="n9")
    silent_n9(node)
    all_refuse(node)
    node.lone.pass_time(1.05, answers=(node.links["n1"], node.links["n3"]))

    assert {("n1", "n7"), ("n3", "n7")} <= set(node.asked_over("n9"))
    node.pong("n9", over="n3")
    assert node.lone.status("n9") == "active"


def test_a_relay_that_falls_silent_while_a_member_is_asked_for_is_looked_for_over_the_others():
    node = Crossing()
    silent_n9(node, until=lambda node: node.sent("n9", Ping))
    node.receive("n1", routed("n3", "n5", "n1", incarnations=(1, 100)))
    node.lone.answer_ping(node.links["n3"])  # the last that it says
    for _ in range(2):
        node.lone.pass_time(1.05, answers=(node.links["n1"],))
    node.receive("n1", no_route("n5", "n9", "n1", at="n1"))
    node.lone.pass_time(1.05, answers=(node.links["n1"],))

    assert ("n1", "n3") in node.asked_over("n9")


def test_who_all_relays_refuse_after_its_host_has_failed_at_once():
    node = Crossing()
    silent_n9(node)
    node.lose("n9")
    node.refuse("n9")
    assert node.lone.status("n9") == "active"
    all_refuse(node)

    assert node.lone.status("n9") == "not_active"


def test_whose_host_refuses_after_all_relays_has_failed_at_once():
    node = Crossing()
    silent_n9(node)
    all_refuse(node)
    node.lose("n9")
    assert node.lone.status("n9") == "active"
    node.refuse("n9")

    assert node.lone.status("n9") == "not_active"


def test_a_new_life_of_a_member_without_a_link_is_asked_for_at_once_and_by_its_incarnation():
    node = Crossing()
    tunnel_to_n9(node)
    all_refuse(node, "n1", "n1", "n3")
    node.forget()
    node.receive("n1", Records([record_of("n9", incarnation=2)]))

    assert [one.destination_incarnation for one in node.pings("n9", over="n3")] == [2]


def test_more_lives_of_a_member_than_there_can_be_are_not_all_asked_for():
    node = Crossing()
    tunnel_to_n9(node)
    all_refuse(node, "n1", "n1", "n3")
    node.forget()
    for incarnation in range(2, 10):
        node.receive("n1", Records([record_of("n9", incarnation=incarnation)]))

    assert len(node.pings("n9", over="n3")) == 1


def told_by(node, name):
    return [one.incarnation for message in node.sent(name, Records) for one in message.records]


def test_a_relay_says_that_who_is_asked_for_has_restarted():
    node = Crossing()
    node.lose("n9")
    node.links["n9"] = node.lone.open("n9", incarnation=2)
    node.forget()
    node.receive("n1", routed("n1", "n9", "n5"))

    assert node.sent("n1", NoRoute) == [no_route("n1", "n9", "n5", at="n5")]
    assert told_by(node, "n1") == [2]
    assert node.sent("n9", Routed) == []


def test_a_relay_tells_who_has_asked_in_vain_when_the_restarted_is_there():
    node = Crossing()
    node.lose("n9")
    node.receive("n1", routed("n1", "n9", "n5"), routed("n1", "n9", "n5", incarnations=(1, 2)))
    node.receive("n3", routed("n3", "n9", "n5"))
    node.receive("n3", routed("n3", "nobody", "n5"))
    node.forget()
    node.lone.open("n9", incarnation=2)

    assert (told_by(node, "n1"), told_by(node, "n3")) == ([], [2])


def test_a_relay_remembers_so_many_who_are_wanted():
    node = Crossing()
    names = [f"n{number}" for number in range(100, 101 + WANTED_MAX)]
    node.receive("n1", Records([record_of(name) for name in names]))
    for name in names:
        node.receive("n3", routed("n3", name, "n5"))
    node.forget()
    for name in (names[0], names[-1]):
        node.lone.open(name, incarnation=2)

    told = {one.node_id for message in node.sent("n3", Records) for one in message.records}
    assert told == {names[-1]}


def comes(node, over, *relays):
    """Let a ping of n9 come over a relay, and over others before it."""
    ping = routed("n9", "n5", *relays, over, message=Ping(3, 0), incarnations=(1, 100))
    node.receive(over, ping)


def test_a_member_that_asks_over_a_way_that_was_refused_is_asked_back_over_it():
    """Swarm 13001330: the only relay had lost its link to the member, and had it back."""
    node = Crossing()
    node.lose("n9")
    all_refuse(node)
    comes(node, "n1")
    assert node.asked_over("n9") == [("n1",), ("n3",), ("n1",)]

    node.pong("n9", over="n1")
    node.lone.pass_time(4.0, answers=(node.links["n1"], node.links["n3"]))
    assert node.lone.events_of(PeerDown) == []


def test_what_all_relays_have_said_before_a_ping_of_a_member_itself_counts_no_more():
    node = Crossing()
    silent_n9(node)
    node.lose("n9")
    all_refuse(node)
    comes(node, "n1")
    all_refuse(node, "n1")

    assert node.lone.status("n9") == "active"


def test_a_refused_dial_before_a_ping_of_the_member_itself_counts_no_more():
    node = Crossing()
    silent_n9(node)
    node.lose("n9")
    node.refuse("n9")
    all_refuse(node, "n1")
    comes(node, "n1")
    all_refuse(node, "n1", "n3")

    assert node.lone.status("n9") == "active"


def test_a_member_is_asked_back_at_most_once_for_each_of_its_pings():
    node = Crossing()
    node.lose("n9")
    all_refuse(node)
    asked = len(node.asked_over("n9"))
    segment = Segment(1, 0, 5, b"x")
    for _ in range(5):
        node.receive("n1", routed("n9", "n5", "n1", message=segment, incarnations=(1, 100)))
    assert len(node.asked_over("n9")) == asked

    for _ in range(5):
        comes(node, "n1")
    assert len(node.asked_over("n9")) == asked + 1
    all_refuse(node, "n1")
    comes(node, "n1")
    assert len(node.asked_over("n9")) == asked + 2


def test_a_member_whose_link_is_silent_is_asked_back_over_the_way_it_asks_over():
    node = Crossing()
    silent_n9(node)
    all_refuse(node)
    asked = len(node.asked_over("n9"))
    comes(node, "n1")

    assert len(node.asked_over("n9")) == asked + 1
    node.pong("n9", over="n1")
    node.lone.pass_time(1.5, answers=(node.links["n1"], node.links["n3"]))
    assert node.lone.events_of(PeerDown) == []


def test_what_was_asked_over_a_relay_is_asked_again_over_its_next_connection():
    node = Crossing()
    silent_n9(node)
    asked = len(node.asked_over("n9"))
    node.lose("n1")
    assert len(node.asked_over("n9")) == asked

    node.links["n1"] = node.lone.open("n1")
    assert node.asked_over("n9")[asked:] == [("n1",)]


def test_a_turn_that_is_waited_for_does_not_end_when_the_way_in_use_is_refused_too():
    node = Crossing()
    silent_n9(node)
    node.lose("n9")
    all_refuse(node)
    assert node.lone.status("n9") == "active"
    segment = Segment(1, 0, 5, b"x")
    node.receive("n1", routed("n9", "n5", "n1", message=segment, incarnations=(1, 100)))
    all_refuse(node, "n1")

    assert node.lone.status("n9") == "active"
    node.lone.pass_time(1.05, answers=(node.links["n1"], node.links["n3"]))
    all_refuse(node)
    assert node.lone.status("n9") == "not_active"


def test_a_turn_that_is_waited_for_does_not_end_when_a_relay_that_is_back_refuses_too():
    node = Crossing()
    silent_n9(node)
    all_refuse(node)
    node.lose("n1")
    node.links["n1"] = node.lone.open("n1")
    assert node.asked_over("n9") == [("n1",), ("n3",), ("n1",)]
    all_refuse(node, "n1")
    assert node.lone.status("n9") == "active"

    node.lone.pass_time(1.05, answers=(node.links["n1"], node.links["n3"]))
    node.pong("n9", over="n1")
    node.lone.pass_time(1.0, answers=(node.links["n1"], node.links["n3"]))
    assert node.lone.events_of(PeerDown) == []


def test_a_member_is_asked_back_over_no_more_ways_than_others_are_asked_in_a_turn():
    node = Crossing()
    node.lose("n9")
    for number in range(200):
        comes(node, "n1", f"invented{number}")

    assert len(node.asked_over("n9")) == WIDE_MAX


def test_an_answer_counts_although_its_way_breaks_while_the_silent_link_is_waited_for():
    """Swarm 13001330: the relay was reset between the answer and the end of the grace."""
    node = Crossing()
    silent_n9(node)
    node.pong("n9", over="n1")
    assert node.links["n9"] not in node.lone.closed
    all_refuse(node)

    assert node.links["n9"] in node.lone.closed
    assert node.lone.count("links_given_up") == 1
    node.lone.pass_time(1.5, answers=(node.links["n1"], node.links["n3"]))
    assert node.lone.events_of(PeerDown) == []


def test_a_silent_link_is_waited_for_while_one_of_two_ways_that_have_answered_is_left():
    node = Crossing()
    silent_n9(node)
    node.pong("n9", over="n1")
    node.pong("n9", over="n3")
    all_refuse(node, "n1")
    assert node.links["n9"] not in node.lone.closed

    all_refuse(node, "n3")
    assert node.links["n9"] in node.lone.closed


def test_a_link_is_not_given_up_for_what_comes_about_a_ping_that_is_over():
    node = Crossing(fail_count_threshold_not_active=1)
    silent_n9(node)
    relays = (node.links["n1"], node.links["n3"])
    while not node.lone.count("pings_failed"):
        node.lone.pass_time(0.1, answers=relays)
    node.pong("n9", over="n1")
    all_refuse(node, "n1")

    assert node.lone.status("n9") == "active"
    assert node.links["n9"] not in node.lone.closed


def test_what_relays_said_while_a_node_stood_still_calls_nobody_down():
    """Swarm 20000421: the refusals were read before the pong, all of them seventeen seconds old."""
    node = Crossing()
    silent_n9(node)
    relays = (node.links["n1"], node.links["n3"])
    node.lone.pass_time(1.05, answers=relays)  # the last turn has begun
    all_refuse(node, "n1")
    node.lone.now += 17.0
    node.lone.feed(Lagged(17.0))
    all_refuse(node, "n3")
    assert node.lone.status("n9") == "active"

    node.lone.pass_time(1.9, answers=relays)
    assert node.lone.status("n9") == "active"
    node.lone.pass_time(4.0, answers=relays)
    assert node.lone.status("n9") == "not_active"


def test_a_turn_in_which_nobody_can_be_asked_is_waited_for_where_others_are_lost():
    """Swarm 13001330: our own links to the relays had been reset a moment ago."""
    node = Crossing()
    silent_n9(node)
    node.lose("n1")
    node.lose("n3")
    node.lone.pass_time(1.05)
    asked = len(node.asked_over("n9"))
    assert node.lone.status("n9") == "active"

    node.links["n1"] = node.lone.open("n1")
    assert len(node.asked_over("n9")) == asked + 1  # as soon as there is somebody again
    node.pong("n9", over="n1")
    node.lone.pass_time(1.0, answers=(node.links["n1"],))
    assert node.lone.events_of(PeerDown) == []


def test_a_turn_in_which_nobody_can_be_asked_is_not_waited_for_where_a_dial_was_refused():
    node = Crossing()
    silent_n9(node)
    for name in ("n1", "n3", "n9"):
        node.lose(name)
    node.refuse("n9")
    assert node.lone.status("n9") == "active"  # the relays have not said anything yet

    node.lone.pass_time(1.05)
    assert node.lone.status("n9") == "not_active"


def test_nothing_is_waited_for_beyond_the_time_of_a_ping_in_a_cluster_of_two():
    lone = Lone(health=HealthSettings(ping_interval=5.0, ping_timeout=2.0))
    connection = lone.open("n9")
    lone.sent[connection].clear()
    while not lone.of_type(Ping, connection):
        lone.pass_time(0.1)
    lone.feed(Disconnected(connection))
    lone.pass_time(1.8)
    assert lone.status("n9") == "active"
    lone.pass_time(0.3)
    assert lone.status("n9") == "not_active"


def test_who_is_cut_off_from_all_others_waits_for_no_more_turns_than_there_are():
    node = Crossing()
    for name in ("n9", "n1", "n3"):
        node.lose(name)
    node.lone.pass_time(2.0 + TURNS_MAX * 1.0 - 0.1)
    assert {node.lone.status(name) for name in node.links} == {"active"}

    node.lone.pass_time(0.2)
    assert {node.lone.status(name) for name in node.links} == {"not_active"}


def n3_refuses(node):
    """Let n3 say that it has no link to n9, nor to n1, over which it was asked for too."""
    node.receive("n3", no_route("n5", "n9", "n3", "n1", at="n3"))
    all_refuse(node, "n3")


def test_who_all_refuse_twice_is_asked_for_again_while_a_relay_is_lost():
    """Both links of the only relay are reset, one after the other: it can be asked no sooner."""
    node = Crossing()
    silent_n9(node)
    all_refuse(node)
    node.lose("n1")
    node.lone.pass_time(1.05, answers=(node.links["n3"],))
    n3_refuses(node)
    assert node.lone.status("n9") == "active"

    node.links["n1"] = node.lone.open("n1")
    node.pong("n9", over="n1")
    node.lone.pass_time(1.0, answers=(node.links["n1"], node.links["n3"]))
    assert node.lone.events_of(PeerDown) == []


def test_who_all_refuse_in_each_turn_has_failed_in_the_last_although_a_relay_is_lost():
    node = Crossing()
    silent_n9(node)
    node.lose("n1")
    for _ in range(TURNS_MAX - 1):
        n3_refuses(node)
        assert node.lone.status("n9") == "active"
        node.lone.pass_time(1.02, answers=(node.links["n3"],))
    n3_refuses(node)

    assert node.lone.status("n9") == "not_active"


def test_who_is_asked_over_relays_that_are_all_reset_is_asked_over_as_many_once_they_are_back():
    node = Crossing()
    names = ["n1", "n3", *(f"n{number}" for number in range(20, 26))]
    node.links |= {name: node.lone.open(name) for name in names[2:]}
    while not node.asked_over("n9"):
        node.lone.pass_time(0.1, answers=tuple(node.links[name] for name in names))
    assert len(node.asked_over("n9")) == ASKED_AT_ONCE < len(names)
    for name in names:
        node.lose(name)
    node.links |= {name: node.lone.open(name) for name in names}

    assert len(node.asked_over("n9")) == 2 * ASKED_AT_ONCE


def test_in_a_large_cluster_a_connection_that_opens_leads_to_no_ping_over_it():
    node = large_cluster()
    others = [name for name in node.links if name != "n9"]
    while not node.asked_over("n9"):
        node.lone.pass_time(0.1, answers=tuple(node.links[name] for name in others))
    asked = node.asked_over("n9")
    (first,) = asked[0]
    node.lose(first)
    node.links[first] = node.lone.open(first)

    assert node.asked_over("n9") == asked
