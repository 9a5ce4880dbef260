"""Pings of idle connections, many at a time: the same comes of them as one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.context import Context
from clusternode.core.effects import Effect, WriteEach
from clusternode.core.inputs import Disconnected, Publish
from clusternode.core.membership.rounds import SLOTS_PER_INTERVAL, Rounds
from clusternode.core.settings import HealthSettings
from clusternode.core.types import ChannelName, ConnectionId, DeliveryId, NodeId
from clusternode.core.wire.messages import Ping, Pong, Resume
from clusternode.recording.trace import fingerprint
from tests.core.harness import Lone, ids

MEMBERS = 200
INTERVAL = 10.0
CHANNEL = ChannelName("c")
PEERS = ("n1", "n2", "n8", "n9")


def lone_with_a_group() -> tuple[Lone, list[ConnectionId]]:
    """Return a node that has just asked all of its peers at once, and its connections."""
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    connections = [lone.open(name) for name in PEERS]
    keepalive = lone.node._membership.keepalive
    keepalive._ask(ids(*PEERS), [0] * len(PEERS), lone.now)
    lone.pass_time(0.0)
    lone.effects.clear()
    return lone, connections


Trouble = Callable[[Lone, ConnectionId], object]
TROUBLES: dict[str, Trouble] = {
    "nothing": lambda lone, connection: None,
    "it said something": lambda lone, connection: lone.receive(connection, Ping(1, 0)),
    "half of the time is over": lambda lone, connection: lone.pass_time(1.0),
    "all of the time is over": lambda lone, connection: lone.pass_time(2.0),
    "its connection is lost": lambda lone, connection: lone.feed(Disconnected(connection)),
    "a newcomer has its id": lambda lone, connection: lone.receive(
        lone.connect(lone.node._links.by_connection[connection].node_id, 2), Resume(0, 1)
    ),
    "it is not active": lambda lone, connection: lone.node._membership.ping_failed(
        lone.node._links.by_connection[connection].node_id, lone.now
    ),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(TROUBLES)), st.integers(0, 3)), max_size=4))
@pytest.mark.slow
def test_many_pongs_at_once_are_as_many_one_by_one(troubles):
    outcomes = []
    for is_together in (True, False):
        lone, connections = lone_with_a_group()
        number = lone.node._membership.keepalive.number_of(NodeId("n1"))
        pong = Pong(number, lone.node.snapshot(lone.now).digest)
        for name, index in troubles:
            if connections[index] in lone.node._links.by_connection:
                TROUBLES[name](lone, connections[index])
        effects: list[Effect] = []
        if is_together:
            effects += lone.node.pings.answered(connections, pong, lone.now)
        else:
            for connection in connections:
                effects += lone.receive(connection, pong)
        snapshot = lone.node.snapshot(lone.now)
        timers = lone.node._context.timers.deadlines()
        outcomes.append((fingerprint(effects), snapshot, timers))

    assert outcomes[0] == outcomes[1]


def test_a_ping_is_answered_at_once_only_where_a_pong_is_all_that_it_leads_to():
    lone, (one, other, *_) = lone_with_a_group()
    digest = lone.node.snapshot(lone.now).digest
    answers = lone.node.pings.answers

    assert answers(one, Ping(7, digest))
    assert not answers(one, Ping(7, digest ^ 1))
    assert not answers(ConnectionId(99), Ping(7, digest))
    assert not answers(lone.connect("n7"), Ping(7, digest))
    lone.node.step(lone.now, Publish(DeliveryId(1), ChannelName("c"), b"", destinations=ids("n2")))
    assert not answers(other, Ping(7, digest))


def test_one_ping_asks_all_members_of_a_slot_and_no_writer_is_waited_for():
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    connections = [lone.open(f"n{number}") for number in range(10, 10 + MEMBERS)]
    lone.effects.clear()
    lone.pass_time(INTERVAL)

    asked = [number for effect in lone.effects_of(WriteEach) for number in effect.connections]
    assert len(lone.effects_of(WriteEach)) <= 64
    assert set(asked) == set(connections)
    smaller = [number for number in range(10, 10 + MEMBERS) if f"n{number}" < "n5"]
    assert lone.count("pings_opened") == len(smaller) + len(asked)  # the larger ids ping first


def test_a_member_whose_writer_is_busy_is_asked_as_with_any_other_message():
    lone, (one, *_) = lone_with_a_group()
    lone.pass_time(INTERVAL / 2)
    lone.node.step(lone.now, Publish(DeliveryId(1), ChannelName("c"), b"", destinations=ids("n1")))
    lone.effects.clear()
    lone.pass_time(INTERVAL)

    assert all(one not in effect.connections for effect in lone.effects_of(WriteEach))
    lone._write(one)
    assert lone.of_type(Ping, one)


@pytest.mark.parametrize("members", [3, 64, MEMBERS])
def test_nobody_waits_longer_than_an_interval_nor_much_less_than_four_fifths(members):
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    rounds = lone.node._membership.keepalive._rounds
    for number in range(members):
        rounds.set(NodeId(f"n{number}"), lone.now + INTERVAL * number / members)
    began = [rounds.slot_of(node_id) for node_id in rounds]
    width = rounds.width

    for slot in sorted(set(began)):
        at = rounds._offset + slot * width
        for node_id in chain(*rounds.take(slot, at)):
            wait = (rounds.slot_of(node_id) - slot) * width
            assert 0.8 * INTERVAL - width <= wait <= INTERVAL + 1e-6


def test_members_that_were_asked_together_drift_apart():
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    rounds = lone.node._membership.keepalive._rounds
    for number in range(640):
        rounds.set(NodeId(f"n{number}"), lone.now)
    for _ in range(400):
        slot = min(rounds._slots)
        rounds.take(slot, rounds._offset + slot * rounds.width)

    assert max(Counter(rounds.slot_of(node_id) for node_id in rounds).values()) <= 120
    assert len(rounds._slots) > 10


@pytest.mark.parametrize("trouble", ["lost", "replaced", "made anew", "busy"])
def test_of_a_group_that_was_asked_before_everyone_is_asked_as_they_are_now(trouble):
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    connections = {f"n{number}": lone.open(f"n{number}") for number in range(600, 800)}
    answering = dict(connections)
    lone.pass_time(3 * INTERVAL, answers=tuple(answering.values()))
    assert lone.node._links._of_groups
    name, connection = "n700", connections["n700"]
    if trouble == "lost":
        lone.feed(Disconnected(connection))
        del answering[name]
    elif trouble == "replaced":
        lone.connect(name)  # and its Resume never comes
        assert connection in lone.closed
        del answering[name]
    elif trouble == "made anew":
        lone.feed(Disconnected(connection))
        answering[name] = lone.open(name)
    else:
        lone.node.step(lone.now, Publish(DeliveryId(1), CHANNEL, b"", destinations=ids(name)))
        del answering[name]
    lone.effects.clear()
    lone.sent[connection].clear()
    lone.dials.clear()
    lone.pass_time(INTERVAL, answers=tuple(answering.values()))

    asked = [number for effect in lone.effects_of(WriteEach) for number in effect.connections]
    assert connection not in asked
    if trouble in ("lost", "replaced"):
        assert lone.dials
    elif trouble == "made anew":
        assert answering[name] in asked
    else:
        lone._write(connection)
        assert lone.of_type(Ping, connection)
    rows = lone.node._membership.members.rows
    began = lone.now - INTERVAL
    assert all((rows[NodeId(one)].heard_at or 0.0) >= began for one in connections if one != name)


def test_a_group_stays_the_same_list_until_one_of_it_is_gone():
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    rounds = lone.node._membership.keepalive._rounds
    for number in range(320):
        rounds.set(NodeId(f"n{number}"), lone.now + INTERVAL * (number % 8) / 8)

    def take() -> list[list[NodeId]]:
        slot = min(rounds._slots)
        return rounds.take(slot, rounds._offset + slot * rounds.width)

    first = [node_ids for _ in range(8) for node_ids in take()]
    again = [node_ids for _ in range(8) for node_ids in take()]
    assert all(any(one is other for other in first) for one in again)

    gone = again[0][0]
    rounds.cancel(gone)
    later = [node_ids for _ in range(32) for node_ids in take()]
    assert gone not in list(chain(*later))
    assert all(one is not again[0] for one in later)
    assert again[0][1:] in later


@given(
    st.integers(0, 2**32),
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 150), st.floats(0.0, INTERVAL)),
            st.tuples(st.just("set many"), st.integers(0, 150), st.floats(0.0, INTERVAL)),
            st.tuples(st.just("cancel"), st.integers(0, 150), st.just(0.0)),
            st.tuples(st.just("take"), st.just(0), st.just(0.0)),
        ),
        max_size=60,
    ),
)
def test_everyone_has_one_appointment_and_is_asked_when_its_time_has_come(seed, acts):
    lone = Lone(health=HealthSettings(ping_interval=INTERVAL))
    context = Context(lone.settings, random.Random(seed))
    rounds, now = Rounds(context), lone.now
    appointed: dict[NodeId, None] = {}
    for act, number, delay in acts:
        node_id = NodeId(f"n{number}")
        if act == "set":
            rounds.set(node_id, now + delay)
            begin = rounds._offset + rounds.slot_of(node_id) * rounds.width
            assert -1e-6 < now + delay - begin < rounds.width + 1e-6
            appointed[node_id] = None
        elif act == "set many":
            for other in range(number):
                rounds.set(NodeId(f"n{other}"), now + delay)
                appointed[NodeId(f"n{other}")] = None
        elif act == "cancel":
            rounds.cancel(node_id)
            appointed.pop(node_id, None)
        elif rounds._slots:
            slot = min(rounds._slots)
            now = max(now, rounds._offset + slot * rounds.width)
            due = {one for one in rounds if rounds.slot_of(one) == slot}
            context.timers.cancel(("round", slot))  # it has been taken out, as it was due
            lists = rounds.take(slot, now)
            assert Counter(chain(*lists)) == Counter(due)
            assert all(rounds.slot_of(one) > slot for one in due)
            fair = len(appointed) / SLOTS_PER_INTERVAL
            assert fair <= 2 or all(len(one) <= max(16, 2 * fair) for one in lists)
        assert set(rounds) == set(appointed)
        assert {("round", slot) for slot in rounds._slots} == {
            key for _, key in context.timers.deadlines()
        }
        in_slots = [
            (number, one)
            for number, slot in rounds._slots.items()
            for one in chain(slot.singles, *(group.node_ids for group in slot.groups))
        ]
        assert sorted(in_slots) == sorted((rounds.slot_of(one), one) for one in rounds)
