"""Whatever peers, networks and operators do to a node: it never raises and stays bounded."""

from __future__ import annotations

from typing import Any, get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusternode.core.effects import Asked, Fanout, LeaveFinished, Settle
from clusternode.core.inputs import (
    AddMember,
    Answer,
    Ask,
    ChangeStatus,
    DialFailed,
    DialFailure,
    Disconnected,
    FramesReceived,
    Input,
    Lagged,
    Leave,
    Publish,
    RemoveMember,
    Resolved,
    ResolvedAddress,
    TimePassed,
    WriteReady,
)
from clusternode.core.membership.digest import digest_of_record
from clusternode.core.membership.discovery import ADDRESSES_OF_NODE_MAX
from clusternode.core.membership.health import Health
from clusternode.core.membership.links import PATIENCE, Phase
from clusternode.core.membership.targets import TargetState
from clusternode.core.node import _POSITIONED, Node
from clusternode.core.settings import DiscoverySettings, HealthSettings
from clusternode.core.snapshots import MemberGlance
from clusternode.core.types import (
    Address,
    ChannelName,
    DeliveryId,
    NodeId,
    RequestId,
    ResultCode,
    Tag,
)
from clusternode.core.wire import limits
from clusternode.core.wire.messages import (
    Ack,
    Close,
    CloseReason,
    List,
    ListEntry,
    Message,
    Ping,
    Pong,
    Records,
    Reply,
    Request,
    Results,
    Resume,
    Run,
    Unknown,
    Want,
    WireMessage,
)
from tests.core.harness import Lone, address_of, hello_of, ids, record_of

CHANNEL = ChannelName("ch")

node_ids = st.sampled_from(["n1", "n2", "n5", "n8", "n9"])
connections = st.integers(1, 8)
small = st.sampled_from([0, 1, 2, 3, 100, 101, limits.COUNT_MAX - 1, limits.COUNT_MAX])
addresses = st.builds(
    Address,
    st.just("tcp"),
    st.sampled_from(["10.0.0.1", "10.0.0.5"]),
    st.integers(5060, 5075),
)
silences = st.sampled_from([0.0, 1.0, 30.0, 1e6])
records = st.builds(
    lambda node_id, incarnation, version, address, left, silent: record_of(
        node_id, incarnation, version, address=str(address), left=left, silent_for=silent
    ),
    node_ids,
    small,
    small,
    addresses,
    st.booleans(),
    silences,
)
messages = st.one_of(
    st.builds(Resume, small, small.filter(bool)),
    st.builds(Close, st.integers(0, 12), st.just("x"), small),
    st.builds(Ping, small, small),
    st.builds(Pong, st.integers(0, 12), small),
    st.builds(Ack, small),
    st.builds(Records, st.lists(records, max_size=3)),
    st.builds(List, st.lists(st.builds(ListEntry, node_ids, small, small, silences), max_size=4)),
    st.builds(Want, st.lists(node_ids, max_size=4)),
    st.builds(lambda: Message(ChannelName("ch"), "text/plain", b"x", 1)),
    st.builds(lambda: Request(ChannelName("ch"), "text/plain", b"x", Tag("tag"), 5.0)),
    st.builds(lambda: Reply(Tag("tag"), "text/plain", b"x")),
    st.builds(
        lambda first, code: Results([Run(first, first, code)]), small.filter(bool), st.just(200)
    ),
    st.builds(Unknown, st.integers(0, 30)),
    st.builds(hello_of, node_ids),
)
inputs = st.one_of(
    st.builds(FramesReceived, connections, st.lists(messages, max_size=5)),
    st.builds(Disconnected, connections, st.just("gone"), st.booleans()),
    st.builds(WriteReady, connections, st.sampled_from([1, 70, 65536])),
    st.builds(
        DialFailed,
        addresses,
        st.sampled_from(DialFailure),
        st.just(""),
        st.none() | st.sampled_from(CloseReason),
        small,
    ),
    st.builds(AddMember, addresses | st.just(Address("srv", "example.net", 0))),
    st.builds(RemoveMember, node_ids),
    st.builds(ChangeStatus, node_ids, st.sampled_from(["active", "not_active", "disabled"])),
    st.builds(Lagged, st.floats(0, 10)),
    st.builds(
        Resolved,
        st.sampled_from([Address("srv", "example.net", 0), Address("tcp", "seeds.example", 5062)]),
        st.lists(
            st.builds(ResolvedAddress, addresses, st.integers(0, 2), st.integers(0, 2)), max_size=3
        ),
        st.none() | st.just("SERVFAIL"),
    ),
)
steps = st.one_of(
    inputs.map(lambda one: ("feed", one)),
    st.tuples(st.just("connect"), node_ids, small, st.none() | addresses),
    st.tuples(st.just("open"), node_ids, st.integers(1, 3), st.none() | addresses),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.3, 2.1, 7.0, 100.0])),
    st.tuples(st.just("pong"), connections),
)


def live(lone: Lone, step: tuple[Any, ...]) -> None:
    match step:
        case ("feed", input_):
            lone.feed(input_)
        case ("connect", node_id, incarnation, dialed):
            lone.connect(node_id, incarnation, dialed=dialed)
        case ("open", node_id, incarnation, dialed):
            connection = lone.connect(node_id, incarnation, dialed=dialed)
            lone.receive(connection, Resume(0, 1), Records([record_of(node_id, incarnation)]))
        case ("pong", connection):
            if lone.of_type(Ping, connection):
                lone.answer_ping(connection)
        case ("pass", seconds):
            lone.pass_time(seconds)


def check(lone: Lone) -> None:
    """Hold the state of a node to what must be true between any two steps."""
    node = lone.node
    deadline = node.next_deadline()
    assert deadline is not None and deadline >= lone.now - 1e-6
    check_members(node)
    check_glance(node, lone.now)
    check_links(node)
    check_targets(node)
    check_timers(node)


def check_glance(node: Node, now: float) -> None:
    """A glance is a part of the snapshot."""
    glance, whole = node.glance(), node.snapshot(now)
    fields = [field.name for field in attrs.fields(MemberGlance)]
    shown = [tuple(getattr(row, name) for name in fields) for row in whole.members]
    assert [attrs.astuple(row) for row in glance.members] == shown
    assert (glance.node_id, glance.incarnation) == (whole.node_id, whole.incarnation)
    assert (glance.digest, glance.counters) == (whole.digest, whole.counters)


def check_members(node: Node) -> None:
    members = node._membership.members
    digest = digest_of_record(members.own.node_id, members.own.incarnation, members.own.version)
    for node_id, row in members:
        assert row.is_linked == node._links.is_open_to(node_id)
        if row.is_told and row.record.version > 0:
            digest ^= digest_of_record(node_id, row.record.incarnation, row.record.version)
    assert members.digest == digest
    active = [row for _, row in members if row.health is Health.ACTIVE]
    assert members.active_count == len(active)
    assert members.own.version <= limits.COUNT_MAX
    assert members.own.incarnation <= limits.COUNT_MAX


def check_links(node: Node) -> None:
    links = node._links
    for link in links.every():
        assert links.get(link.connection) is link
        assert link in links.of(link.node_id)
        assert (links.open_to(link.node_id) is link) == (link.phase is Phase.OPEN)
        row = node._membership.members.rows.get(link.node_id)
        has_left = row is not None and row.health is Health.LEFT  # it has its time to hang up
        if not has_left:
            assert (link.connection in links._patience) == (link.phase is not Phase.OPEN)
        if link.phase is Phase.PROVING:
            phases = [other.phase for other in links.of(link.node_id)]
            assert Phase.OPEN in phases or Phase.RESUMING in phases
        if link.held_resume is not None:
            assert links.is_open_to(link.node_id)
        if link.phase in (Phase.OPEN, Phase.RESUMING):
            assert link.node_id in node._messaging.deliveries.streams
        assert link.control_bytes == sum(frame.size_bytes for frame in link.control)
        if link.control or link.relayed:
            assert link.is_routed or link.is_announced or link.is_writing
    assert sum(len(links.of(one)) for one in links._by_node) == len(links.every())
    assert links._patience.keys() <= links.by_connection.keys()
    assert list(links._patience.values()) == sorted(links._patience.values())
    if links._patience:
        soonest = node._context.timers.deadline_of(PATIENCE)
        assert soonest is not None
        assert soonest <= min(links._patience.values())


def check_targets(node: Node) -> None:
    discovery = node._membership.discovery
    for address, target in discovery.targets.items():
        is_due = ("dial", address) in node._context.timers or target.is_queued
        if target.state is TargetState.WAITING:
            assert is_due != discovery._is_parked(target)
        else:
            assert not is_due
        if target.is_queued:
            assert ("turn",) in node._context.timers
        if target.state is TargetState.CONNECTED:
            assert target.node_id is not None
            assert node._links.of(target.node_id)
    for node_id, owned in discovery._of_node.items():
        assert all(target.node_id == node_id for target in owned)
        assert all(discovery.targets[target.address] is target for target in owned)
        assert len(owned) <= ADDRESSES_OF_NODE_MAX + 4  # notification addresses are kept beyond


def check_timers(node: Node) -> None:
    timers = node._context.timers
    members = node._membership.members
    keepalive = node._membership.keepalive
    for node_id in keepalive._rounds:
        assert members.rows[node_id].health not in (Health.LEFT, Health.REMOVED)
    assert {("round", slot) for slot in keepalive._rounds._slots} == {
        key for key in timers._entries if key[0] == "round"
    }
    awaited = {
        node_id
        for _, number, node_ids in keepalive._awaited
        for node_id in node_ids
        if node_id in keepalive.opened and keepalive.opened[node_id].opened_as == number
    }
    assert (("pongs",) in timers) == bool(keepalive._awaited)
    for node_id in keepalive.opened:
        assert ("pong", node_id) in timers or node_id in awaited
        assert node_id in members.rows


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(steps, max_size=40), st.booleans(), st.lists(steps, max_size=5))
def test_nothing_that_happens_to_a_node_raises_or_leaves_it_in_disorder(story, is_counting, rest):
    seeds = (address_of("n1"), Address("tcp", "seeds.example", 5062))
    lone = Lone(
        health=HealthSettings(fail_count_enabled=is_counting),
        discovery=DiscoverySettings(notification_addresses=seeds, forget_after=60.0),
    )
    for step in story:
        live(lone, step)
        check(lone)
    lone.feed(Leave())
    for step in rest:
        live(lone, step)
    lone.pass_time(1.0)
    assert lone.effects_of(LeaveFinished)


def test_every_message_and_every_input_has_a_handler():
    node = Lone().node

    assert set(node._messages) | set(node._when_open) | _POSITIONED == set(get_args(WireMessage))
    assert set(node._inputs) == set(get_args(Input))


def test_a_broadcast_goes_to_everyone_that_has_not_left_but_the_excluded():
    lone = Lone()
    for node_id in ("n1", "n8", "n9"):
        lone.open(node_id)
    gone = lone.open("n2")
    lone.receive(gone, Records([record_of("n2", 1, 2, left=True)]))
    lone.feed(Publish(DeliveryId(1), CHANNEL, b"x", excluded=ids("n8")))
    lone.feed(Publish(DeliveryId(2), CHANNEL, b"x", destinations=ids("n9", "n9", "n4")))

    fanouts = [fanout.destinations for fanout in lone.effects_of(Fanout)]
    assert fanouts == [["n1", "n9"], ["n9", "n4"]]
    settled = [result for settle in lone.effects_of(Settle) for result in settle.results]
    assert settled == [(2, "n4", ResultCode.UNAVAILABLE)]


def test_a_request_asks_everyone_and_ourselves_only_if_told_so():
    lone = Lone()
    lone.open("n9")
    for number, include_self in ((1, False), (2, True)):
        tag = Tag(f"t{number}")
        lone.feed(Ask(RequestId(number), CHANNEL, b"x", tag, 5.0, include_self=include_self))

    assert [asked.node_ids for asked in lone.effects_of(Asked)] == [["n9"], ["n9", "n5"]]


def test_a_reply_to_an_active_member_is_sent_to_it():
    lone = Lone()
    connection = lone.open("n9")
    lone.feed(Answer(DeliveryId(1), NodeId("n9"), Tag("t"), b"here"))
    lone.feed(Answer(DeliveryId(2), NodeId("n4"), Tag("t"), b"here"))

    assert len(lone.of_type(Reply, connection)) == 1
    settled = [result for settle in lone.effects_of(Settle) for result in settle.results]
    assert settled == [(2, "n4", ResultCode.UNAVAILABLE)]


def test_what_was_taken_is_acknowledged_a_moment_later():
    lone = Lone()
    connection = lone.open("n9")
    lone.receive(connection, Message(CHANNEL, "text/plain", b"x", 1))
    assert not lone.of_type(Ack, connection)
    lone.pass_time(0.03)

    assert lone.of_type(Ack, connection) == [Ack(1)]


def test_an_acknowledgement_is_not_written_to_a_connection_given_up_at_the_same_wake_up():
    lone = Lone()
    connection = lone.connect("n1")
    lone.receive(connection, Resume(0, 1))  # extends its ping, once, to 4 s
    lone.pass_time(3.99)
    lone.receive(connection, Message(CHANNEL, "text/plain", b"x", 1))
    lone.now += 0.5
    lone.feed(TimePassed())

    assert connection in lone.closed
    assert not lone.of_type(Ack, connection)
