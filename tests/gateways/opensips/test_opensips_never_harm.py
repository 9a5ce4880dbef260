"""Whatever the node is told, what it sends is what OpenSIPS takes, and it stays within bounds.

The reader here is written from the tables of docs/gateway-opensips.md and not from our codec.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clusternode.core.types import DeliveryId, NodeId, RequestId, Tag
from clusternode.errors import ClusternodeError
from clusternode.gateways.opensips import effects, messages, operations
from clusternode.gateways.opensips.codec import encode
from clusternode.gateways.opensips.node import OpenSipsNode
from tests.gateways.opensips.memory import settings

OWN = 1
FRAME_MAX = 65_515
PATH_MAX = 25
TYPES = {  # internal type → the format of its fixed fields after cluster and source
    0: "i", 1: "", 2: "iIii", 3: "iI", 4: "", 5: "", 9: "iI",
}  # fmt: skip
FLOODED = (2, 3, 5, 9)


class Fields:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def integer(self) -> int:
        (value,) = struct.unpack_from("<i", self.data, self.at)
        self.at += 4
        return int(value)

    def text(self) -> bytes:
        (size,) = struct.unpack_from("<H", self.data, self.at)
        self.at += 2 + size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def integers(self, most: int) -> list[int]:
        count = self.integer()
        assert 0 <= count <= most
        return [self.integer() for _ in range(count)]

    def description(self) -> None:
        assert self.text().startswith((b"bin:", b"bins:"))
        self.text()
        assert self.integer() >= 0 and self.integer() >= 0


def check(frame: bytes, numbers: dict[int, int]) -> None:
    """Read a frame of node 1 as a real node does; `numbers` are the last of each kind."""
    marker, size, version, name_size = struct.unpack_from("<4sIhH", frame)
    assert marker == b"P4CK" and size == len(frame) <= FRAME_MAX
    name = frame[12 : 12 + name_size]
    (kind,) = struct.unpack_from("<i", frame, 12 + name_size)
    fields = Fields(frame[16 + name_size :])
    if name != b"clusterer-internal":
        cluster, source, destination = struct.unpack_from("<iiI", frame, len(frame) - 12)
        assert cluster == 1 and 0 < source != destination
        assert destination not in (OWN, 0xC0000000) and destination < 2**31
        return
    assert version == 1 and kind in TYPES
    cluster, source = fields.integer(), fields.integer()
    assert cluster == 1 and source > 0
    number = None
    if kind in (2, 3, 9):
        number = fields.integer()
        fields.integer()
    if kind == 0:
        assert fields.integer() in (0, 1)
    elif kind == 1:
        assert OWN not in (ids := fields.integers(127)) and len({*ids}) == len(ids)
    elif kind == 2:
        assert fields.integer() > 0 and fields.integer() in (0, 1)
    elif kind == 3:
        read_topology(fields, source)
    elif kind == 5:
        fields.description()
    elif kind == 9:
        read_capabilities(fields)
    if kind in FLOODED:
        path = fields.integers(PATH_MAX)
        assert path[0] == source and path[-1] == OWN and len({*path}) == len(path)
        if source == OWN and number is not None:
            assert number >= numbers.get(kind, -1)
            numbers[kind] = number
    assert fields.at == len(fields.data)


def read_topology(fields: Fields, source: int) -> None:
    count = fields.integer()
    assert 1 <= count <= 128
    for index in range(count):
        node = fields.integer()
        assert source != OWN or index or node == OWN
        if fields.integer():
            assert source != OWN or index, "nobody describes himself here"
            fields.description()
        assert fields.integer() >= -1
        fields.integer()
        fields.integers(128)


def read_capabilities(fields: Fields) -> None:
    count = fields.integer()
    assert 1 <= count <= 128
    for _ in range(count):
        assert fields.integer() > 0
        for _ in range(fields.integer()):
            assert fields.text()
            assert fields.integer() in (0, 1)
    assert fields.integer() in (0, 1)


ids = st.one_of(st.integers(1, 6), st.sampled_from([77, 2**31 - 1]))
numbers_ = st.one_of(st.integers(0, 4), st.just(2**31 - 1))
times = st.sampled_from([0, 100, 1_800_000_100, 2**32 - 1])
paths = st.lists(ids, max_size=PATH_MAX).map(tuple)
names = st.sampled_from(["cachedb-local-repl", "usrloc-contact-repl", "x", "dialog-dlg-repl"])
urls = st.sampled_from(
    ["bin:10.0.0.2:5555", "bin:10.0.0.3:5555", "bins:[::1]:1", "bin:name.example", "", "http://x"]
)
descriptions = st.builds(messages.Description, urls, st.text(max_size=5), numbers_, numbers_)
adjacencies = st.builds(
    messages.Adjacency,
    ids,
    st.none() | descriptions,
    st.integers(-1, 5),
    times,
    st.lists(ids, max_size=4).map(tuple),
)
clusters = st.sampled_from([1, 1, 1, 9])
floods: st.SearchStrategy[Any] = st.tuples(clusters, ids, numbers_, times)
trailers = st.builds(messages.Trailer, clusters, ids, ids)
states = st.sampled_from(messages.LinkState)
capabilities = st.builds(
    messages.NodeCapabilities, ids, st.lists(st.tuples(names, st.booleans()), max_size=3).map(tuple)
)
texts = st.text(max_size=8)


def link_update(head: Any, neighbour: int, state: messages.LinkState, path: Any) -> Any:
    cluster, source, number, time = head
    return messages.LinkUpdate(cluster, source, number, time, neighbour, state, path)


def topology_update(head: Any, rows: Any, path: Any) -> Any:
    cluster, source, number, time = head
    return messages.TopologyUpdate(cluster, source, number, time, tuple(rows), path)


def capability_update(head: Any, rows: Any, wants_reply: bool, path: Any) -> Any:
    cluster, source, number, time = head
    return messages.CapabilityUpdate(cluster, source, number, time, tuple(rows), wants_reply, path)


packets: st.SearchStrategy[Any] = st.one_of(
    st.builds(messages.Ping, clusters, ids, st.booleans()),
    st.builds(messages.Pong, clusters, ids, st.lists(ids, max_size=5).map(tuple)),
    st.builds(messages.UnknownId, clusters, ids),
    st.builds(messages.NodeDescription, clusters, ids, descriptions, paths),
    st.builds(
        link_update,
        floods, ids, states, paths,
    ),
    st.builds(
        topology_update,
        floods, st.lists(adjacencies, max_size=5), paths,
    ),
    st.builds(
        capability_update,
        floods, st.lists(capabilities, max_size=3), st.booleans(), paths,
    ),
    st.builds(messages.RemoveNode, trailers, ids),
    st.builds(messages.Generic, trailers, st.booleans(), texts, st.binary(max_size=9)),
    st.builds(messages.Command, trailers, texts, st.lists(texts, max_size=3).map(tuple)),
    st.builds(messages.SyncRequest, trailers, names),
    st.builds(messages.Sync, trailers, names, st.integers(0, 6), st.just((b"chunk",))),
    st.builds(messages.SyncEnd, trailers, names, st.integers(0, 3)),
    st.builds(messages.SharingTagActive, trailers, texts),
    st.builds(
        messages.ModulePacket, trailers, names, st.integers(0, 6), st.integers(-1, 6),
        st.binary(max_size=40),
    ),
)  # fmt: skip
hosts = st.sampled_from(["10.0.0.2", "10.0.0.3", "10.0.0.9"])
commands = st.tuples(
    st.sampled_from([each.name for each in operations.names()]),
    st.lists(st.sampled_from(["1", "2", "77", "0", "vip", "x", "cachedb-local-repl"]), max_size=3),
)


class NeverHarm(RuleBasedStateMachine):
    """Feeds one node everything, and reads everything that it sends."""

    @initialize(seeds=st.lists(st.integers(2, 3), unique=True))
    def begin(self, seeds):
        self.now = 100.0
        self.numbers: dict[int, int] = {}
        self.connections: list[int] = []
        self.accepted = 0
        chosen = settings(
            OWN,
            seeds,
            cache_collections=("c1",),
            usrloc=True,
            capabilities=("x",),
            sharing_tags=(("vip", True),),
            mi_allow=("x",),
        )
        self.node = OpenSipsNode("opensips", chosen, self.now)
        self.node.context.unix_offset = 1_800_000_000.0
        self.read(self.node.start(self.now))

    def read(self, wanted):
        assert len(wanted) < 2000
        for effect in wanted:
            match effect:
                case effects.Dial():
                    assert effect.connection > 0 and 0 < effect.port < 65536
                    self.connections.append(effect.connection)
                case effects.Send():
                    check(effect.frame, self.numbers)
                case effects.Close():
                    self.connections = [c for c in self.connections if c != effect.connection]

    @rule(packet=packets, host=hosts, which=st.integers(0, 5), cut=st.none() | st.integers(0, 200))
    def arrives(self, packet, host, which, cut):
        if which >= len(self.connections):
            self.accepted -= 1
            self.connections.append(self.accepted)
            self.read(self.node.accepted(self.now, self.accepted, host, 5555))
            number = self.accepted
        else:
            number = self.connections[which]
        frame = encode(packet)
        if cut is not None:  # a lying count, a broken text
            at = cut % len(frame)
            frame = frame[:at] + bytes([(frame[at] + 1) % 256]) + frame[at + 1 :]
        self.read(self.node.received(self.now, number, frame))

    @rule(data=st.binary(max_size=80))
    def garbage(self, data):
        for number in self.connections[:1]:
            head = struct.pack("<4sIhH", b"P4CK", 12 + len(data), 1, 18) + data
            self.read(self.node.received(self.now, number, head))
            self.read(self.node.received(self.now, number, data))

    @rule(which=st.integers(0, 5), what=st.sampled_from(["connected", "closed", "written"]))
    def happens(self, which, what):
        if which < len(self.connections):
            number = self.connections[which]
            if what == "written":
                self.read(self.node.written(self.now, number, 3, 2))
            elif what == "connected":
                self.read(self.node.connected(self.now, number))
            else:
                self.connections.remove(number)
                self.read(self.node.closed(self.now, number))

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.3, 2.0]))
    def waits(self, seconds):
        until = self.now + seconds
        for _ in range(500):
            deadline = self.node.next_deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.read(self.node.tick(self.now))
        else:
            raise AssertionError("the clock asks for ever")
        self.now = until

    @rule(body=st.binary(max_size=20), to=st.none() | st.lists(ids, max_size=2))
    def wishes(self, body, to):
        scripts, node_ids = self.node.scripts, None
        if to is not None:
            node_ids = [NodeId(str(each)) for each in to]
        tag = Tag(f"1-1-{len(self.numbers)}{self.now}")

        def say():
            scripts.publish(DeliveryId(1), tag, body, node_ids)
            scripts.ask(RequestId(1), tag, body, 1.0, node_ids, include_self=True)
            scripts.reply(DeliveryId(2), NodeId("2"), tag, body)

        self.read(self.node.perform(self.now, say))

    @rule(command=commands)
    def operates(self, command):
        def operate():
            with contextlib.suppress(ClusternodeError):
                operations.perform(self.node, *command)

        self.read(self.node.perform(self.now, operate))

    @rule(host=st.just("name.example"), addresses=st.lists(hosts, max_size=2))
    def resolves(self, host, addresses):
        self.read(self.node.resolved(self.now, host, addresses))

    @rule()
    def leaves(self):
        if self.now > 130:
            self.read(self.node.leave(self.now))

    @invariant()
    def is_bounded(self):
        if hasattr(self, "node"):
            topology = self.node.membership.topology
            assert len(topology) <= 128
            assert {*topology.hops} <= {node.node_id for node in topology}
            for hop in topology.hops.values():
                assert self.node.membership.links.is_up(hop)


TestNeverHarm = NeverHarm.TestCase
TestNeverHarm.settings = hypothesis_settings(max_examples=30, stateful_step_count=30, deadline=None)
