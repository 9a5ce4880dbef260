"""Every recorded packet in both directions, and whatever else may arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.errors import BodyTooLarge, LocalProtocolError, RemoteProtocolError
from clusternode.gateways.opensips.codec import (
    BRIDGE_DESTINATION,
    FRAME_SIZE_MAX,
    NODES_MAX,
    PATH_LENGTH_MAX,
    BridgeRefused,
    FrameReader,
    decode_untrusted,
    encode,
    route_of_untrusted,
)
from clusternode.gateways.opensips.messages import (
    EXTRA,
    INTERNAL,
    Adjacency,
    CapabilityUpdate,
    Command,
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
    SharingTagActive,
    Sync,
    SyncEnd,
    SyncRequest,
    TopologyUpdate,
    Trailer,
    UnknownId,
)

VECTORS = Path(__file__).parent / "vectors"
RECORDED = json.loads((VECTORS / "messages.json").read_text("utf-8"))
FULL_SYNC = "sync_cachedb_32k.bin"  # its fields are cut off in messages.json

# --- recorded packets -----------------------------------------------------------------------------


class Named:
    """The fields of a recorded packet in wire order; each is asked for by its name."""

    def __init__(self, message: dict) -> None:
        self.fields = iter(message["fields"][5:])  # after the header

    def __call__(self, name: str):
        _, _, found, value = next(self.fields)
        assert found.rpartition(".")[2].startswith(name), (found, name)
        return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value

    def many(self, name: str, item: str) -> tuple:
        return tuple([self(item) for _ in range(self(name))])

    def path(self) -> tuple[int, ...]:
        return self.many("path_len", "path[")

    def description(self) -> Description:
        return Description(self("url"), self("sip_addr"), self("priority"), self("no_ping_retries"))

    def trailer(self) -> Trailer:
        return Trailer(self("cluster_id"), self("src_node"), self("dst_node"))


def packet_of(message: dict, data: bytes):
    """Build what the fields of messages.json say, without a look at the bytes."""
    named = Named(message)
    if message["capability"] == INTERNAL:
        return topology_of(message["name"], named, (named("cluster_id"), named("src_node")))
    *rest, cluster, source, destination = message["fields"]
    assert [field[2] for field in (cluster, source, destination)] == [
        "trailer.cluster_id",
        "trailer.src_node",
        "trailer.dst_node",
    ]
    trailer = Trailer(cluster[3], source[3], destination[3])
    if message["capability"] == EXTRA:
        return extra_of(message, named, trailer, data)
    first, last = rest[5], rest[-1]
    body = data[first[0] : last[0] + last[1]]
    return ModulePacket(trailer, message["capability"], message["version"], message["type"], body)


def topology_of(name: str, named: Named, common: tuple[int, int]):
    match name:
        case "PING":
            return Ping(*common, named("req_node_list") == 1)
        case "PONG":
            return Pong(*common, named.many("nr_nodes", "node["))
        case "UNKNOWN_ID":
            return UnknownId(*common)
        case "NODE_DESCRIPTION":
            return NodeDescription(*common, named.description(), named.path())
        case "LS_UPDATE":
            sequence, timestamp = named("ls_seq_no"), named("timestamp")
            neighbour, state = named("neigh_id"), LinkState(named("link_state"))
            return LinkUpdate(*common, sequence, timestamp, neighbour, state, named.path())
        case "FULL_TOP_UPDATE":
            sequence, timestamp = named("top_seq_no"), named("timestamp")
            nodes = tuple([adjacency_of(named) for _ in range(named("no_nodes"))])
            return TopologyUpdate(*common, sequence, timestamp, nodes, named.path())
        case "CAP_UPDATE":
            sequence, timestamp = named("cap_seq_no"), named("timestamp")
            listed = tuple([capabilities_of(named) for _ in range(named("nr_nodes"))])
            wants_reply = named("require_reply") == 1
            return CapabilityUpdate(*common, sequence, timestamp, listed, wants_reply, named.path())
    raise AssertionError(name)


def adjacency_of(named: Named) -> Adjacency:
    node_id = named("node_id")
    description = named.description() if named("has_descr") else None
    sequence, timestamp = named("ls_seq_no"), named("ls_timestamp")
    return Adjacency(node_id, description, sequence, timestamp, named.many("no_neigh", "neigh["))


def capabilities_of(named: Named) -> NodeCapabilities:
    node_id, count = named("node_id"), named("nr_cap")
    pairs = [(named("name"), named("state") == 1) for _ in range(count)]
    return NodeCapabilities(node_id, tuple(pairs))


def extra_of(message: dict, named: Named, trailer: Trailer, data: bytes):
    match message["name"]:
        case "REMOVE_NODE":
            return RemoveNode(trailer, named("target_node"))
        case "GENERIC_MSG":
            is_request, tag = named("req_like") == 1, named("tag")
            return Generic(trailer, is_request, tag, named("msg").encode())
        case "MI_CMD":
            return Command(trailer, named("cmd_name"), named.many("no_params", "param["))
        case "SHTAG_ACTIVE":
            return SharingTagActive(trailer, named("tag_name"))
        case "SYNC_REQ":
            return SyncRequest(trailer, named("capability"))
        case "SYNC_END":
            return SyncEnd(trailer, named("capability"), named("no_chunks"))
        case "SYNC":
            capability, version = named("capability"), named("data_version")
            return Sync(trailer, capability, version, tuple(chunks_of(message, data)))
    raise AssertionError(message["name"])


def chunks_of(message: dict, data: bytes) -> Iterator[bytes]:
    for offset, _, name, size in message["fields"]:
        if name.startswith("chunk") and name.endswith(".size"):
            yield data[offset + 8 : offset + 8 + size]  # size and marker are before it


@pytest.mark.parametrize("message", RECORDED, ids=lambda message: message["file"])
def test_every_recorded_packet_is_read_field_by_field_and_written_byte_for_byte(message):
    data = (VECTORS / message["file"]).read_bytes()

    packet = decode_untrusted(data)

    assert encode(packet) == data
    if message["file"] != FULL_SYNC:
        assert packet == packet_of(message, data)


def test_a_full_sync_packet_has_its_chunks():
    packet = decode_untrusted((VECTORS / FULL_SYNC).read_bytes())

    assert isinstance(packet, Sync)
    assert (packet.trailer, packet.capability, packet.data_version) == (
        Trailer(1, 1, 2),
        "cachedb-local-repl",
        1,
    )
    assert len(packet.chunks) * 6 == 9 + 4179  # fields, as messages.json counts them
    assert packet.chunks[0] == b"\2\0c1\x09\0key-18990\x13\0value-for-key-18990\0\0\0\0"


def test_every_recorded_packet_has_a_file_and_every_file_a_record():
    assert sorted(path.name for path in VECTORS.glob("*.bin")) == sorted(
        message["file"] for message in RECORDED
    )


# --- round trips ----------------------------------------------------------------------------------

ids = st.integers(1, 2**31 - 1)
counts = st.integers(0, 2**31 - 1)
times = st.integers(0, 2**32 - 1)
names = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
capability_names = names.filter(lambda name: name not in ("", INTERNAL, EXTRA))
paths = st.lists(ids, max_size=PATH_LENGTH_MAX).map(tuple)
id_lists = st.lists(ids, max_size=8).map(tuple)
trailers = st.builds(Trailer, ids, ids, ids)
descriptions = st.builds(Description, names, names, counts, counts)
adjacencies = st.builds(
    Adjacency, ids, st.none() | descriptions, st.integers(-1, 2**31 - 1), times, id_lists
)
node_capabilities = st.builds(
    NodeCapabilities, ids, st.lists(st.tuples(names, st.booleans()), max_size=4).map(tuple)
)
packets = st.one_of(
    st.builds(Ping, ids, ids, st.booleans()),
    st.builds(Pong, ids, ids, id_lists),
    st.builds(LinkUpdate, ids, ids, counts, times, ids, st.sampled_from(LinkState), paths),
    st.builds(
        TopologyUpdate, ids, ids, counts, times, st.lists(adjacencies, max_size=4).map(tuple), paths
    ),
    st.builds(UnknownId, ids, ids),
    st.builds(NodeDescription, ids, ids, descriptions, paths),
    st.builds(
        CapabilityUpdate,
        ids,
        ids,
        counts,
        times,
        st.lists(node_capabilities, max_size=4).map(tuple),
        st.booleans(),
        paths,
    ),
    st.builds(RemoveNode, trailers, ids),
    st.builds(Generic, trailers, st.booleans(), names, st.binary(max_size=100)),
    st.builds(Command, trailers, names, st.lists(names, max_size=20).map(tuple)),
    st.builds(SyncRequest, trailers, names),
    st.builds(
        Sync,
        trailers,
        names,
        st.integers(-(2**31), 2**31 - 1),
        st.lists(st.binary(max_size=40), max_size=5).map(tuple),
    ),
    st.builds(SyncEnd, trailers, names, counts),
    st.builds(SharingTagActive, trailers, names),
    st.builds(
        ModulePacket,
        trailers,
        capability_names,
        st.integers(-(2**15), 2**15 - 1),
        st.integers(-(2**31), 2**31 - 1),
        st.binary(max_size=60),
    ),
)


@given(packets)
def test_what_is_written_is_read_again(packet):
    frame = encode(packet)

    assert decode_untrusted(frame) == packet
    assert route_of_untrusted(frame) == getattr(packet, "trailer", None)


@given(st.lists(packets, max_size=5), st.data())
def test_frames_survive_any_chopping(sent, data):
    frames = [encode(packet) for packet in sent]
    stream, reader, got = b"".join(frames), FrameReader(), []

    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += reader.receive_data_untrusted(stream[:cut])
        stream = stream[cut:]

    assert got == frames
    assert reader.pending_bytes == 0


# --- hostile input --------------------------------------------------------------------------------

TRAILER = Trailer(1, 2, 3)


def ints(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little", signed=True) for value in values)


def frame_of(capability: str, type_: int, fields: bytes, version: int = 1) -> bytes:
    name = capability.encode()
    tail = version.to_bytes(2, "little") + len(name).to_bytes(2, "little") + name + ints(type_)
    return b"P4CK" + ints(8 + len(tail) + len(fields)) + tail + fields


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_packet_or_refused(data):
    for each in (data, frame_of(INTERNAL, data[0] % 10 if data else 0, data)):
        try:
            packet = decode_untrusted(each)
        except RemoteProtocolError:
            continue
        assert decode_untrusted(encode(packet)) == packet


@given(st.sampled_from(RECORDED[:-20]), st.data())
def test_a_changed_recorded_packet_is_a_packet_or_refused(message, data):
    frame = bytearray((VECTORS / message["file"]).read_bytes()[:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(8, len(frame) - 1))] = data.draw(st.integers(0, 255))

    try:
        packet = decode_untrusted(bytes(frame))
    except RemoteProtocolError:
        return
    assert decode_untrusted(encode(packet)) == packet


LYING = [
    ("a pong with more nodes than bytes", INTERNAL, 1, ints(1, 2, 100, 7)),
    ("a pong with a negative count", INTERNAL, 1, ints(1, 2, -1)),
    ("a pong with two thousand million nodes", INTERNAL, 1, ints(1, 2, 2**31 - 1)),
    ("a pong with 129 nodes", INTERNAL, 1, ints(1, 2, NODES_MAX + 1, *range(1, NODES_MAX + 2))),
    ("a path of 26", INTERNAL, 2, ints(1, 2, 0, 0, 3, 0, 26, *range(1, 27))),
    ("a link state 2", INTERNAL, 2, ints(1, 2, 0, 0, 3, 2, 1, 2)),
    ("129 adjacencies", INTERNAL, 3, ints(1, 2, 0, 0, 129, *[1, 0, 0, 0, 0] * 129, 1, 2)),
    ("129 neighbours", INTERNAL, 3, ints(1, 2, 0, 0, 1, 1, 0, 0, 0, 129, *[5] * 129, 1, 2)),
    ("a string longer than the frame", INTERNAL, 5, ints(1, 2) + b"\xff\xff"),
    ("a url of 2000 bytes", INTERNAL, 5, ints(1, 2) + b"\xd0\x07" + b"u" * 2000 + ints(0, 3, 3, 0)),
    ("65 capabilities", INTERNAL, 9, ints(1, 2, 0, 0, 1, 1, 65) + b"\0\0\0\0\0\0" * 65),
    ("a cluster id of 0", INTERNAL, 4, ints(0, 2)),
    ("a negative source", INTERNAL, 4, ints(1, -2)),
    ("bytes after the last field", INTERNAL, 4, ints(1, 2, 3)),
    ("an unknown topology type", INTERNAL, 6, ints(1, 2)),
    ("an unknown extra type", EXTRA, 14, ints(1, 2, 3)),
    ("21 parameters", EXTRA, 8, b"\1\0c" + ints(21) + b"\0\0" * 21 + ints(1, 2, 3)),
    ("no trailer", EXTRA, 6, ints(1, 2)),
    ("a module packet without trailer", "tm-repl", 1, b"12345678"),
    ("a request that is 2", EXTRA, 7, ints(2) + b"\0\0\0\0" + ints(1, 2, 3)),
    ("a destination of 0", EXTRA, 6, ints(3, 1, 2, 0)),
    ("a chunk longer than the packet", EXTRA, 11, b"\1\0c" + ints(1, 99, 101010101, 1, 2, 3)),
    ("a negative chunk", EXTRA, 11, b"\1\0c" + ints(1, -8, 101010101, 1, 2, 3)),
    ("a chunk without marker", EXTRA, 11, b"\1\0c" + ints(1, 0, 101010102, 1, 2, 3)),
]


@pytest.mark.parametrize(
    ("_", "capability", "type_", "fields"), LYING, ids=[row[0] for row in LYING]
)
def test_lying_counts_and_lengths_are_refused(_, capability, type_, fields):
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(frame_of(capability, type_, fields, 3 if type_ in (10, 11, 12) else 1))


def test_an_error_says_what_and_where():
    with pytest.raises(RemoteProtocolError) as caught:
        decode_untrusted(frame_of(INTERNAL, 1, ints(1, 2, 129)))

    assert str(caught.value) == "clusterer-internal 1: nodes at byte 46 is 129, expected 0 to 128"


@pytest.mark.parametrize("type_", [10, 11, 12])
def test_sync_packets_of_another_version_are_refused(type_):
    with pytest.raises(RemoteProtocolError, match="version 2, expected 3"):
        decode_untrusted(frame_of(EXTRA, type_, b"\1\0c" + ints(0, 1, 2, 3), 2))


def test_the_version_of_other_packets_is_not_looked_at():
    assert decode_untrusted(frame_of(INTERNAL, 4, ints(1, 2), 77)) == UnknownId(1, 2)


@pytest.mark.parametrize("capability", ["cachedb-local-repl", "ratelimit-pipe-repl", EXTRA])
def test_a_packet_with_the_bridge_marker_is_refused_with_its_own_error(capability):
    destination = BRIDGE_DESTINATION.to_bytes(4, "little")
    frame = frame_of(capability, 6, ints(9, 9, 1, 2) + destination)

    for read in (decode_untrusted, route_of_untrusted):
        with pytest.raises(BridgeRefused):
            read(frame)


def test_the_route_of_a_packet_that_cannot_be_read_is_read():
    frame = frame_of(EXTRA, 99, b"whatever" + ints(1, 2, 3))

    assert route_of_untrusted(frame) == Trailer(1, 2, 3)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        frame_of("", 1, ints(1, 2, 3)),
        frame_of("x" * 1025, 1, ints(1, 2, 3)),
        b"P4CK" + ints(30) + b"\1\0\xff\0" + bytes(18),
        encode(UnknownId(1, 2)) + b"more",
        bytes(FRAME_SIZE_MAX + 1),
    ],
    ids=["empty", "no name", "a long name", "a name beyond the end", "more", "too much"],
)
def test_a_wrong_header_is_refused(frame):
    for read in (decode_untrusted, route_of_untrusted):
        with pytest.raises(RemoteProtocolError):
            read(frame)


def test_times_after_2106_begin_again():
    packet = LinkUpdate(1, 2, 0, 2**32 + 5, 3, LinkState.UP, (2,))

    assert decode_untrusted(encode(packet)) == attrs.evolve(packet, timestamp=5)


@pytest.mark.parametrize(
    "start",
    [b"Q", b"P4CX", b"P4CK" + ints(16), b"P4CK" + ints(FRAME_SIZE_MAX + 1), b"P4CK" + ints(-1)],
)
def test_a_wrong_marker_or_length_is_found_at_once_and_ends_the_stream(start):
    reader = FrameReader()

    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            reader.receive_data_untrusted(start)
    assert reader.pending_bytes == 0


def test_frames_before_a_wrong_one_are_not_lost():
    good = encode(UnknownId(1, 2))
    reader = FrameReader()

    assert reader.receive_data_untrusted(good + good + b"nonsense") == [good, good]
    with pytest.raises(RemoteProtocolError):
        reader.receive_data_untrusted(b"")


def test_the_longest_frame_is_read_and_a_longer_one_is_not_written():
    room = FRAME_SIZE_MAX - len(encode(ModulePacket(TRAILER, "x", 1, 1, b"")))
    longest = encode(ModulePacket(TRAILER, "x", 1, 1, bytes(room)))

    assert len(longest) == FRAME_SIZE_MAX
    assert FrameReader().receive_data_untrusted(longest) == [longest]
    with pytest.raises(BodyTooLarge, match="65516 bytes, at most 65515"):
        encode(ModulePacket(TRAILER, "x", 1, 1, bytes(room + 1)))
    with pytest.raises(BodyTooLarge, match="string of 65536 bytes"):
        encode(Generic(TRAILER, True, "t", bytes(65536)))


@pytest.mark.parametrize(
    "packet",
    [
        Pong(1, 2, tuple(range(1, NODES_MAX + 2))),
        NodeDescription(1, 2, Description("", "", 3, 3), tuple(range(1, PATH_LENGTH_MAX + 2))),
        Command(TRAILER, "x", ("",) * 21),
        RemoveNode(TRAILER, 2**31),
        SharingTagActive(TRAILER, "\ud800"),
        ModulePacket(TRAILER, "", 1, 1, b""),
        ModulePacket(TRAILER, "x", 2**15, 1, b""),
    ],
)
def test_what_a_peer_would_refuse_is_not_written(packet):
    with pytest.raises(LocalProtocolError):
        encode(packet)
