"""Whatever peers, networks and operators do to a node: it never raises and stays bounded."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clusternode.core.effects import Dial, LeaveFinished
from clusternode.core.inputs import (
    AddMember,
    ChangeStatus,
    Connected,
    DialFailed,
    DialFailure,
    Disconnected,
    FramesReceived,
    Lagged,
    Leave,
    RemoveMember,
    Resolved,
    ResolvedAddress,
    TimePassed,
    WriteReady,
)
from clusternode.core.membership.digest import digest_of_record
from clusternode.core.membership.discovery import ADDRESSES_OF_NODE_MAX, TargetState
from clusternode.core.membership.health import Health
from clusternode.core.membership.links import Phase
from clusternode.core.node import Node
from clusternode.core.settings import DiscoverySettings, HealthSettings
from clusternode.core.types import Address, NodeId
from clusternode.core.wire import limits
from clusternode.core.wire.messages import (
    Ack,
    Close,
    CloseReason,
    Hello,
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
)
from tests.core.harness import Lone, address_of, hello_of, record_of

ids = st.sampled_from(["n1", "n2", "n5", "n8", "n9"])
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
    ids,
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
    st.builds(List, st.lists(st.builds(ListEntry, ids, small, small, silences), max_size=4)),
    st.builds(Want, st.lists(ids, max_size=4)),
    st.builds(lambda: Message("ch", "text/plain", b"x", 1)),
    st.builds(lambda: Request("ch", "text/plain", b"x", "tag", 5.0)),
    st.builds(lambda: Reply("tag", "text/plain", b"x")),
    st.builds(
        lambda first, code: Results([Run(first, first, code)]), small.filter(bool), st.just(200)
    ),
    st.builds(Unknown, st.integers(0, 30)),
    st.builds(hello_of, ids),
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
    st.builds(RemoveMember, ids),
    st.builds(ChangeStatus, ids, st.sampled_from(["active", "not_active", "disabled"])),
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
    st.tuples(st.just("connect"), ids, small, st.none() | addresses),
    st.tuples(st.just("open"), ids, st.integers(1, 3), st.none() | addresses),
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
    check_links(node)
    check_targets(node)
    check_timers(node)


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
    assert set(node._membership.keepalive.round_trips) <= set(members.rows)
    assert members.own.version <= limits.COUNT_MAX
    assert members.own.incarnation <= limits.COUNT_MAX


def check_links(node: Node) -> None:
    links = node._links
    timers = node._context.timers
    for link in links.every():
        assert links.get(link.connection) is link
        assert link in links.of(link.node_id)
        assert (links.open_to(link.node_id) is link) == (link.phase is Phase.OPEN)
        assert (("link", link.connection) in timers) == (link.phase is not Phase.OPEN)
        if link.phase is Phase.PROVING or link.held_resume is not None:
            assert links.is_open_to(link.node_id)
        if link.phase in (Phase.OPEN, Phase.RESUMING):
            assert link.node_id in node._messaging.deliveries.streams
        assert link.control_bytes == sum(frame.size_bytes for frame in link.control)
    assert sum(len(links.of(one)) for one in links._by_node) == len(links.every())


def check_targets(node: Node) -> None:
    discovery = node._membership.discovery
    for address, target in discovery._targets.items():
        is_due = ("dial", address) in node._context.timers
        if target.state is TargetState.WAITING:
            assert is_due != discovery._is_parked(target)
        else:
            assert not is_due
        if target.state is TargetState.CONNECTED:
            assert target.node_id is not None
            assert node._links.of(target.node_id)
    for node_id, owned in discovery._of_node.items():
        assert all(discovery._targets[address].node_id == node_id for address in owned)
        assert 0 < len([one for one in owned if not discovery._targets[one].names]) + 1
        assert len(owned) <= ADDRESSES_OF_NODE_MAX + 4  # notification addresses are kept beyond


def check_timers(node: Node) -> None:
    timers = node._context.timers
    members = node._membership.members
    keepalive = node._membership.keepalive
    for key in timers._entries:
        if key[0] == "ping":
            assert members.rows[key[1]].health not in (Health.LEFT, Health.REMOVED)
        elif key[0] == "pong":
            assert keepalive.is_open(key[1])
    for node_id in keepalive._open:
        assert ("pong", node_id) in timers
        assert node_id in members.rows


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
