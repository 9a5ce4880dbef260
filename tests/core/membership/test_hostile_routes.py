"""Members that send whatever they like over others: n5 raises nothing and finds them again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from clusternode.core.inputs import DialFailed, DialFailure, Disconnected, RemoveMember
from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.codec import encode, payload_of
from clusternode.core.wire.messages import (
    Close,
    NoRoute,
    Ping,
    Pong,
    Records,
    Resume,
    Routed,
    Segment,
)
from tests.core.harness import Lone, address_of, hello_of, record_of

PEERS = ("n1", "n3", "n9")
NAMES = st.sampled_from([NodeId(name) for name in ("n1", "n3", "n5", "n7", "n9")])
WAYS = st.lists(NAMES, min_size=1, max_size=2, unique=True).map(tuple)
INCARNATIONS = st.sampled_from([Incarnation(1), Incarnation(2), Incarnation(100)])
NUMBERS = st.integers(0, 12)
OFFSETS = st.sampled_from([0, 1, 10, 40, 75, 90, 2**62])
BYTES = st.sampled_from(
    [
        b"",
        b"x",
        encode(hello_of("n1")),
        encode(hello_of("n9")),
        encode(hello_of("n1")) + encode(Resume(0, 1)),
        encode(hello_of("n9"))[:10],
        encode(Resume(0, 1)),
        encode(Resume(9, 1)),
        encode(Close(5, "", 0)),
        encode(Records([record_of("n9", version=3, left=True)])),
    ]
)
INNER = st.one_of(
    st.builds(Ping, NUMBERS, st.just(0)),
    st.builds(Pong, NUMBERS, st.just(0)),
    st.builds(Segment, NUMBERS, OFFSETS, OFFSETS, BYTES, st.booleans()),
)


@st.composite
def routed_frames(draw):
    inner = draw(INNER)
    origin, destination = draw(NAMES), draw(st.sampled_from([NodeId("n5")] * 3 + [NodeId("n9")]))
    return Routed(
        origin,
        draw(INCARNATIONS),
        destination,
        draw(INCARNATIONS),
        draw(WAYS),
        inner.TYPE,
        draw(st.sampled_from([payload_of(inner)] * 9 + [b"\xc1"])),
    )


@st.composite
def plausible_frames(draw):
    """Draw what passes all checks: from a member, over another, to the present n5."""
    origin, relay = draw(st.permutations(PEERS))[:2]
    inner = draw(INNER)
    return relay, Routed(
        NodeId(origin),
        Incarnation(1),
        NodeId("n5"),
        Incarnation(100),
        (NodeId(relay),),
        inner.TYPE,
        payload_of(inner),
    )


PEER = st.sampled_from(PEERS)
ACTS = st.one_of(
    st.tuples(st.just("plausible"), plausible_frames()),
    st.tuples(st.just("frame"), st.tuples(PEER, routed_frames())),
    st.tuples(st.just("frame"), st.tuples(PEER, st.builds(NoRoute, NAMES, NAMES, WAYS, NAMES))),
    st.tuples(st.sampled_from(["lose", "refuse", "open", "remove"]), PEER),
    st.tuples(st.just("leave"), PEER),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.6, 3.0, 20.0])),
)


class Besieged:
    """n5, whose peers come and go and say anything."""

    def __init__(self):
        self.lone = Lone()
        self.links = {name: self.lone.open(name) for name in PEERS}

    def act(self, kind, detail):
        if kind == "wait":
            self.lone.pass_time(detail, answers=tuple(self.links.values()))
        elif kind in ("frame", "plausible"):
            self.say(*detail)
        elif kind == "lose" and detail in self.links:
            self.lone.feed(Disconnected(self.links.pop(detail)))
        elif kind == "refuse":
            self.lone.feed(DialFailed(address_of(detail), DialFailure.REFUSED))
        elif kind == "open" and detail not in self.links:
            connection = self.lone.connect(detail)
            self.lone.receive(connection, Resume(0, 1))
            self.links[detail] = connection
        elif kind == "remove":
            self.lone.feed(RemoveMember(NodeId(detail)))
        elif kind == "leave":
            self.say(detail, Records([record_of(detail, version=9, left=True)]))
        self.links = {
            name: connection
            for name, connection in self.links.items()
            if connection not in self.lone.closed
        }

    def say(self, name, message):
        if name in self.links:
            self.lone.receive(self.links[name], message)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTS, min_size=1, max_size=25))
def test_whatever_members_say_over_others_they_are_found_again(acts):
    besieged = Besieged()
    for kind, detail in acts:
        besieged.act(kind, detail)
    lone = besieged.lone
    assert lone.surroundings_know_all_connections()

    # Honest again: whoever connects and answers is active, whatever was believed before.
    for _ in range(3):
        for name in PEERS:
            besieged.act("open", name)
        besieged.act("wait", 20.0)
    shown = {one.node_id: (one.status, one.link) for one in lone.node.snapshot(lone.now).members}
    assert [shown.get(NodeId(name)) for name in PEERS] == [("active", "direct")] * len(PEERS)
