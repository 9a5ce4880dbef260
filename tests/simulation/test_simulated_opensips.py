"""The simulated OpenSIPS has the traps of the real one, as they were met on running nodes."""

from __future__ import annotations

from random import Random

import attrs
import pytest

from clusternode.simulation.opensips.cluster import COLLECTION, JOIN_TIME, TIMING, Cluster
from clusternode.simulation.opensips.data import CACHE, Contacts, contact_fields
from clusternode.simulation.opensips.node import BRIDGE_MARKER, SimulatedOpenSips
from clusternode.simulation.opensips.peers import Description
from clusternode.simulation.opensips.topology import Config, Kind
from clusternode.simulation.opensips.transport import V36, V40
from clusternode.simulation.opensips.wire import (
    EXTRA,
    INTERNAL,
    MESSAGE_SIZE_MAX,
    Message,
    Reader,
    fields,
)

STRANGER = ("10.9.9.9", 40000)
PING = Message(INTERNAL, Kind.PING, 1, fields(1, 9, 1)).encoded()


class Machine:
    """Remembers what a node wants."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dialled: list[tuple[str, int]] = []
        self.written: list[tuple[int, bytes]] = []
        self.closed: list[int] = []

    @property
    def unix_now(self) -> int:
        return 1_800_000_000 + int(self.now)

    def dial(self, connection: int, host: str, port: int) -> None:
        del connection
        self.dialled.append((host, port))

    def write(self, connection: int, data: bytes) -> None:
        self.written.append((connection, data))

    def close(self, connection: int) -> None:
        self.closed.append(connection)


@pytest.fixture
def machine():
    return Machine()


def make(machine, **more) -> SimulatedOpenSips:
    config = Config(node_id=1, description=Description("bin:10.0.0.1:5555"), timing=TIMING)
    node = SimulatedOpenSips(attrs.evolve(config, **more), machine, Random(1))
    node.start(wants_sync=False)
    node.accepted(-1, STRANGER)
    return node


@pytest.mark.parametrize(("pieces", "is_closed"), [(16, False), (32, False), (46, True)])
def test_a_message_in_too_many_pieces_costs_the_connection(machine, pieces, is_closed):
    node = make(machine)
    for at in range(pieces - 1):
        node.read(-1, PING[at : at + 1])
    node.read(-1, PING[pieces - 1 :])

    assert bool(machine.closed) is is_closed
    assert bool(machine.written) is not is_closed


@pytest.mark.parametrize(
    "head", [b"P4CX" + b"\x2e\0\0\0", b"P4CK\x10\0\0\0", b"P4CK" + b"\xff\xff\0\0"]
)
def test_a_bad_marker_or_length_costs_the_connection(machine, head):
    make(machine).read(-1, head + bytes(60))

    assert machine.closed == [-1]
    assert MESSAGE_SIZE_MAX < 0xFFFF


def test_a_stranger_is_told_on_his_connection_and_then_never_heard_from_another_address(machine):
    node = make(machine)
    node.read(-1, PING)
    assert [number for number, _ in machine.written] == [-1]
    description = Description("bin:10.0.0.9:5555").encoded()
    body = fields(1, 9) + description + fields(1, 9)
    node.read(-1, Message(INTERNAL, Kind.NODE_DESCRIPTION, 1, body).encoded())
    assert node.link_states() == {9: "Probe"}

    node.read(-1, PING)
    assert machine.dialled == []


def test_a_command_with_too_many_parameters_is_dropped(machine):
    node = make(machine, neighbours=((9, Description("bin:10.9.9.9:5555")),))
    for count in (20, 21):
        body = fields(b"core:uptime", count, *[b"x"] * count) + fields(1, 9, 1)
        node.read(-1, Message(EXTRA, 8, 1, body).encoded())

    assert [len(run.parameters) for run in node.commands] == [20]


@pytest.mark.parametrize("takes_bridged", [False, True])
def test_the_bridge_marker_needs_no_known_address_since_4_0(machine, takes_bridged):
    node = make(machine, takes_bridged=takes_bridged)
    body = fields(b"c1", b"key", b"value", 0) + fields(7) + fields(1, 99, BRIDGE_MARKER)
    node.read(-1, Message(CACHE.encode(), 1, 1, body).encoded())

    assert bool(node.cache.contents(COLLECTION)) is takes_bridged


@pytest.mark.parametrize(("quirks", "is_closed"), [(V36, False), (V40, True)])
def test_a_burst_costs_the_connection_since_4_0(machine, quirks, is_closed):
    make(machine, quirks=quirks).read(-1, PING * 400)

    assert bool(machine.closed) is is_closed


def test_a_seed_that_finds_no_donor_goes_on_with_what_it_has():
    cluster = Cluster(1)
    node = cluster.start_theirs(1)
    cluster.run(1.0)
    assert not node.capabilities.own[CACHE].is_synced

    cluster.run(TIMING.seed_fallback_interval)
    assert node.capabilities.own[CACHE].is_synced


def test_a_silent_donor_is_waited_for_without_end():
    cluster = Cluster(2)
    cluster.form([1, 2], [])
    for donor in (1, 2):
        cluster.theirs[donor].capabilities.own[CACHE].falls_silent = True
    node = cluster.start_theirs(3)
    cluster.run(60.0)
    cluster.theirs[1].capabilities.own[CACHE].falls_silent = False
    cluster.run(60.0)

    assert not node.capabilities.own[CACHE].is_synced


def test_a_capability_switched_off_and_on_is_announced_as_synced_and_is_not():
    cluster = Cluster(3)
    cluster.form([1, 2], [])
    capabilities = cluster.theirs[2].capabilities
    capabilities.set_enabled(CACHE, False)
    capabilities.set_enabled(CACHE, True)
    cluster.run(1.0)

    seen = cluster.theirs[1].topology.peers.get(2)
    assert seen is not None
    assert seen.capabilities[CACHE].is_synced
    assert not capabilities.own[CACHE].is_synced


def test_a_dead_node_is_listed_as_down_for_ever():
    cluster = Cluster(4)
    cluster.form([1, 2], [])
    cluster.kill(2)
    cluster.run(20 * TIMING.node_timeout)

    assert cluster.theirs[1].link_states() == {2: "Down"}


def test_messages_overtake_one_another_since_4_0():
    cluster = Cluster(5, quirks=V40)
    cluster.form([1, 2], [])
    for number in range(1000):
        cluster.theirs[1].send_request(2, b"%d" % number)
        cluster.run(0.001)
    heard = [int(event.text) for event in cluster.theirs[2].events if event.text.isdigit()]
    heard = heard[-1000:]

    assert sorted(heard) != heard
    assert len(set(heard)) == 1000


def test_a_join_of_many_is_a_storm():
    costs = []
    cluster = Cluster(6)
    for node_id in range(1, 8):
        before = cluster.writes()
        cluster.start_theirs(node_id)
        cluster.run(JOIN_TIME)
        costs.append(cluster.writes() - before)

    assert costs[6] > 2 * costs[5] > 3 * costs[4]


def test_the_id_of_a_contact_is_where_an_update_has_it():
    insert = contact_fields("bob@example.org", "sip:bob@10.1.1.1", "call", expires=5)
    reader = Reader(insert)
    head = len(fields(reader.string(), reader.string(), reader.string()))
    contact_id, rest = insert[head : head + 10], insert[head + 10 :]
    update = insert[:head] + rest[:-4] + contact_id + rest[-4:]
    contacts = Contacts()
    contacts.packet(4, Reader(update))

    assert contacts.contacts_of("bob@example.org") == [b"sip:bob@10.1.1.1"]
    assert contacts.chunks()[1] == fields(1) + insert
