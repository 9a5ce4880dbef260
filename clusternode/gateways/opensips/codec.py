"""Bytes ⇄ packets of an OpenSIPS cluster, and the stream that they come in.

Everything read is untrusted and bounded; everything written is what OpenSIPS 3.3 to 4.0 write, byte
for byte. Written down in docs/gateway-opensips.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, assert_never

from clusternode.errors import BodyTooLarge, LocalProtocolError, RemoteProtocolError
from clusternode.gateways.opensips.fields import (
    INT_MAX,
    NAME_LENGTH_MAX,
    STRING_SIZE_MAX,
    FieldReader,
    FieldWriter,
)
from clusternode.gateways.opensips.messages import (
    EXTRA,
    INTERNAL,
    PACKET_VERSION,
    SYNC_VERSION,
    Adjacency,
    CapabilityUpdate,
    Command,
    Description,
    Extra,
    Generic,
    LinkState,
    LinkUpdate,
    ModulePacket,
    NodeCapabilities,
    NodeDescription,
    Packet,
    Ping,
    Pong,
    RemoveNode,
    SharingTagActive,
    Sync,
    SyncEnd,
    SyncRequest,
    Topology,
    TopologyUpdate,
    Trailer,
    UnknownId,
)

MARKER: Final = b"P4CK"
FRAME_SIZE_MIN: Final = 17
"""A header whose capability has one byte; OpenSIPS closes the connection on less."""
FRAME_SIZE_MAX: Final = 65_515
"""65535 less 20: OpenSIPS's bound, beyond which it closes the connection."""
PATH_LENGTH_MAX: Final = 25
"""Nodes that a flooded packet has passed; OpenSIPS drops a longer one."""
NODES_MAX: Final = 128
"""Nodes of one cluster: OpenSIPS's bound."""
CAPABILITIES_MAX: Final = 64
"""Capabilities of one node: a bound of ours; OpenSIPS has twelve modules with one each."""
PARAMETERS_MAX: Final = 20
"""Of a command; more once overflowed OpenSIPS's stack (GHSA-p96q-v5qf-w24h)."""
CHUNK_MARKER: Final = 101_010_101
"""Between the size of a chunk and its data."""
BRIDGE_DESTINATION: Final = 0xC000_0000
"""What OpenSIPS 4.0 writes as destination into packets from another cluster."""

# marker: 4 bytes; length of the whole frame: u32; version: i16; length of the capability: u16.
# The capability follows, and then the type, i32.
_HEADER = struct.Struct("<4sIhH")
_TYPE = struct.Struct("<i")
# cluster id, source, destination.
_TRAILER = struct.Struct("<iiI")


class BridgeRefused(RemoteProtocolError):
    """A packet says that it comes over a bridge from another cluster.

    OpenSIPS 4.0 takes such a packet from anybody, without a look at the sender. We do not.
    """


class FrameReader:
    """The incomplete end of one byte stream: at most one frame and one read are kept."""

    __slots__ = ("_buffer", "_error")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._error: RemoteProtocolError | None = None

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def receive_data_untrusted(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes, in order.

        Raises:
            RemoteProtocolError: No frame can follow: the marker or the length is wrong. Frames
                before the bad one are returned first, and the error comes with the next call. The
                reader is then of no further use; close the connection.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        frames: list[bytes] = []
        offset = 0
        try:
            while (size := _frame_size_untrusted(self._buffer, offset)) is not None:
                frames.append(bytes(self._buffer[offset : offset + size]))
                offset += size
        except RemoteProtocolError as error:
            self._error = error
            self._buffer.clear()
            if not frames:
                raise
            return frames
        del self._buffer[:offset]
        return frames


def _frame_size_untrusted(buffer: bytearray, offset: int) -> int | None:
    """Return the size of the frame at `offset`; None while it is incomplete."""
    start = bytes(buffer[offset : offset + 8])
    if not MARKER.startswith(start[:4]):
        raise RemoteProtocolError(f"marker {start[:4]!r}, expected {MARKER!r}")
    if len(start) < 8:
        return None
    size = int.from_bytes(start[4:], "little")
    if not FRAME_SIZE_MIN <= size <= FRAME_SIZE_MAX:
        raise RemoteProtocolError(
            f"frame of {size} bytes, expected {FRAME_SIZE_MIN} to {FRAME_SIZE_MAX}"
        )
    return size if len(buffer) - offset >= size else None


def decode_untrusted(frame: bytes) -> Packet:
    """Read one whole frame.

    Raises:
        BridgeRefused: It claims to come over a bridge.
        RemoteProtocolError: It is none of the packets that we know, or breaks a bound.
    """
    version, capability, type_, start = _read_header(frame)
    if capability == INTERNAL:
        reader = FieldReader(frame, f"{INTERNAL} {type_}", start)
        read = _TOPOLOGY.get(type_)
        if read is None:
            raise RemoteProtocolError(f"{INTERNAL}: no type {type_}")
        packet = read(reader, reader.integer("cluster id", 1), reader.integer("source", 1))
        reader.expect_end()
        return packet
    trailer = _read_trailer(frame, start, capability)
    end = len(frame) - _TRAILER.size
    if capability != EXTRA:
        return ModulePacket(trailer, capability, version, type_, frame[start:end])
    reader = FieldReader(frame, f"{EXTRA} {type_}", start, end)
    read_extra = _EXTRA.get(type_)
    if read_extra is None:
        raise RemoteProtocolError(f"{EXTRA}: no type {type_}")
    if type_ in _SYNC_TYPES and version != SYNC_VERSION:
        raise RemoteProtocolError(f"{EXTRA} {type_}: version {version}, expected {SYNC_VERSION}")
    extra = read_extra(reader, trailer)
    reader.expect_end()
    return extra


def route_of_untrusted(frame: bytes) -> Trailer | None:
    """Read for whom a frame is, and nothing else of it; None for a topology packet.

    Raises:
        BridgeRefused: It claims to come over a bridge.
        RemoteProtocolError: Header or trailer are wrong.
    """
    _, capability, _, start = _read_header(frame)
    return None if capability == INTERNAL else _read_trailer(frame, start, capability)


def _read_header(frame: bytes) -> tuple[int, str, int, int]:
    """Return version, capability, type, and where the fields begin."""
    if not FRAME_SIZE_MIN <= len(frame) <= FRAME_SIZE_MAX:
        raise RemoteProtocolError(
            f"frame of {len(frame)} bytes, expected {FRAME_SIZE_MIN} to {FRAME_SIZE_MAX}"
        )
    marker, size, version, name_size = _HEADER.unpack_from(frame)
    if marker != MARKER or size != len(frame):
        raise RemoteProtocolError(f"marker {marker!r} and length {size} of {len(frame)} bytes")
    end = _HEADER.size + name_size
    if not 1 <= name_size <= NAME_LENGTH_MAX or end + _TYPE.size > size:
        raise RemoteProtocolError(f"capability of {name_size} bytes in a frame of {size}")
    capability = frame[_HEADER.size : end].decode("utf-8", "surrogateescape")
    (type_,) = _TYPE.unpack_from(frame, end)
    return version, capability, type_, end + _TYPE.size


def _read_trailer(frame: bytes, start: int, capability: str) -> Trailer:
    offset = len(frame) - _TRAILER.size
    if offset < start:
        raise RemoteProtocolError(f"{capability[:64]!r}: no room for the trailer")
    cluster_id, source, destination = _TRAILER.unpack_from(frame, offset)
    if destination == BRIDGE_DESTINATION:
        raise BridgeRefused("a packet over a bridge from another cluster")
    if cluster_id < 1 or source < 1 or not 1 <= destination <= INT_MAX:
        raise RemoteProtocolError(f"trailer: ids {cluster_id}, {source}, {destination}")
    return Trailer(cluster_id, source, destination)


# --- one reader per type --------------------------------------------------------------------------


def _read_ping(reader: FieldReader, cluster_id: int, source: int) -> Ping:
    return Ping(cluster_id, source, reader.flag("wants nodes"))


def _read_pong(reader: FieldReader, cluster_id: int, source: int) -> Pong:
    return Pong(cluster_id, source, _read_ids(reader, "nodes", NODES_MAX))


def _read_link_update(reader: FieldReader, cluster_id: int, source: int) -> LinkUpdate:
    return LinkUpdate(
        cluster_id,
        source,
        reader.integer("sequence", 0),
        reader.unsigned("timestamp"),
        reader.integer("neighbour", 1),
        LinkState(reader.integer("state", 0, 1)),
        _read_path(reader),
    )


def _read_topology(reader: FieldReader, cluster_id: int, source: int) -> TopologyUpdate:
    return TopologyUpdate(
        cluster_id,
        source,
        reader.integer("sequence", 0),
        reader.unsigned("timestamp"),
        reader.items("nodes", NODES_MAX, lambda: _read_adjacency(reader)),
        _read_path(reader),
    )


def _read_adjacency(reader: FieldReader) -> Adjacency:
    return Adjacency(
        reader.integer("node", 1),
        _read_description(reader) if reader.flag("has description") else None,
        reader.integer("link sequence", -1),
        reader.unsigned("link timestamp"),
        _read_ids(reader, "neighbours", NODES_MAX),
    )


def _read_unknown_id(reader: FieldReader, cluster_id: int, source: int) -> UnknownId:
    return UnknownId(cluster_id, source)


def _read_node_description(reader: FieldReader, cluster_id: int, source: int) -> NodeDescription:
    return NodeDescription(cluster_id, source, _read_description(reader), _read_path(reader))


def _read_description(reader: FieldReader) -> Description:
    return Description(
        reader.text("url"),
        reader.text("sip_addr"),
        reader.integer("priority", 0),
        reader.integer("retries", 0),
    )


def _read_capabilities(reader: FieldReader, cluster_id: int, source: int) -> CapabilityUpdate:
    return CapabilityUpdate(
        cluster_id,
        source,
        reader.integer("sequence", 0),
        reader.unsigned("timestamp"),
        reader.items("nodes", NODES_MAX, lambda: _read_node_capabilities(reader)),
        reader.flag("wants reply"),
        _read_path(reader),
    )


def _read_node_capabilities(reader: FieldReader) -> NodeCapabilities:
    node_id = reader.integer("node", 1)
    capabilities = reader.items(
        "capabilities", CAPABILITIES_MAX, lambda: (reader.text("name"), reader.flag("state"))
    )
    return NodeCapabilities(node_id, capabilities)


def _read_path(reader: FieldReader) -> tuple[int, ...]:
    return _read_ids(reader, "path", PATH_LENGTH_MAX)


def _read_ids(reader: FieldReader, name: str, count_max: int) -> tuple[int, ...]:
    return reader.items(name, count_max, lambda: reader.integer(name, 1))


def _read_remove(reader: FieldReader, trailer: Trailer) -> RemoveNode:
    return RemoveNode(trailer, reader.integer("node", 1))


def _read_generic(reader: FieldReader, trailer: Trailer) -> Generic:
    return Generic(trailer, reader.flag("is request"), reader.text("tag"), reader.blob("text"))


def _read_command(reader: FieldReader, trailer: Trailer) -> Command:
    name = reader.text("command")
    read = reader.text
    return Command(
        trailer,
        name,
        reader.items("parameters", PARAMETERS_MAX, lambda: read("parameter", STRING_SIZE_MAX)),
    )


def _read_sync_request(reader: FieldReader, trailer: Trailer) -> SyncRequest:
    return SyncRequest(trailer, reader.text("capability"))


def _read_sync(reader: FieldReader, trailer: Trailer) -> Sync:
    capability, data_version = reader.text("capability"), reader.integer("data version")
    chunks: list[bytes] = []
    while not reader.is_at_end:
        size = reader.integer("chunk size", 0, FRAME_SIZE_MAX)
        reader.integer("chunk marker", CHUNK_MARKER, CHUNK_MARKER)
        chunks.append(reader.take(size, "chunk"))
    return Sync(trailer, capability, data_version, tuple(chunks))


def _read_sync_end(reader: FieldReader, trailer: Trailer) -> SyncEnd:
    return SyncEnd(trailer, reader.text("capability"), reader.integer("chunks", 0))


def _read_sharing_tag(reader: FieldReader, trailer: Trailer) -> SharingTagActive:
    return SharingTagActive(trailer, reader.text("tag"))


_TOPOLOGY: Final[Mapping[int, Callable[[FieldReader, int, int], Topology]]] = {
    Ping.TYPE: _read_ping,
    Pong.TYPE: _read_pong,
    LinkUpdate.TYPE: _read_link_update,
    TopologyUpdate.TYPE: _read_topology,
    UnknownId.TYPE: _read_unknown_id,
    NodeDescription.TYPE: _read_node_description,
    CapabilityUpdate.TYPE: _read_capabilities,
}
_EXTRA: Final[Mapping[int, Callable[[FieldReader, Trailer], Extra]]] = {
    RemoveNode.TYPE: _read_remove,
    Generic.TYPE: _read_generic,
    Command.TYPE: _read_command,
    SyncRequest.TYPE: _read_sync_request,
    Sync.TYPE: _read_sync,
    SyncEnd.TYPE: _read_sync_end,
    SharingTagActive.TYPE: _read_sharing_tag,
}
_SYNC_TYPES: Final = (SyncRequest.TYPE, Sync.TYPE, SyncEnd.TYPE)


# --- writing --------------------------------------------------------------------------------------


def encode(packet: Packet) -> bytes:
    """Write one frame.

    Raises:
        BodyTooLarge: The frame would have more than `FRAME_SIZE_MAX` bytes.
        LocalProtocolError: A number, a count or a name breaks a bound.
    """
    writer = FieldWriter()
    match packet:
        case ModulePacket(trailer, capability, version, type_, body):
            writer.data += body
            _write_trailer(writer, trailer)
        case (
            RemoveNode()
            | Generic()
            | Command()
            | SyncRequest()
            | Sync()
            | SyncEnd()
            | SharingTagActive()
        ):
            capability, type_ = EXTRA, packet.TYPE
            version = SYNC_VERSION if type_ in _SYNC_TYPES else PACKET_VERSION
            _write_extra(writer, packet)
            _write_trailer(writer, packet.trailer)
        case _:
            capability, version, type_ = INTERNAL, PACKET_VERSION, packet.TYPE
            writer.integers(packet.cluster_id, packet.source)
            _write_topology(writer, packet)
    name = capability.encode("utf-8", "surrogateescape")
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not -(2**15) <= version < 2**15:
        raise LocalProtocolError(f"capability of {len(name)} bytes, version {version}")
    size = _HEADER.size + len(name) + _TYPE.size + len(writer.data)
    if size > FRAME_SIZE_MAX:
        raise BodyTooLarge(f"packet of {size} bytes, at most {FRAME_SIZE_MAX}")
    header = _HEADER.pack(MARKER, size, version, len(name))
    return b"".join((header, name, _TYPE.pack(type_), writer.data))


def _write_trailer(writer: FieldWriter, trailer: Trailer) -> None:
    writer.integers(trailer.cluster_id, trailer.source, trailer.destination)


def _write_topology(writer: FieldWriter, packet: Topology) -> None:
    match packet:
        case Ping():
            writer.integers(packet.wants_nodes)
        case Pong():
            _write_ids(writer, packet.node_ids, NODES_MAX)
        case UnknownId():
            pass
        case LinkUpdate():
            writer.integers(packet.sequence)
            writer.time(packet.timestamp)
            writer.integers(packet.neighbour, packet.state)
            _write_ids(writer, packet.path, PATH_LENGTH_MAX)
        case NodeDescription():
            _write_description(writer, packet.description)
            _write_ids(writer, packet.path, PATH_LENGTH_MAX)
        case TopologyUpdate():
            writer.integers(packet.sequence)
            writer.time(packet.timestamp)
            writer.integers(_checked(len(packet.nodes), NODES_MAX))
            for node in packet.nodes:
                _write_adjacency(writer, node)
            _write_ids(writer, packet.path, PATH_LENGTH_MAX)
        case CapabilityUpdate():
            writer.integers(packet.sequence)
            writer.time(packet.timestamp)
            writer.integers(_checked(len(packet.nodes), NODES_MAX))
            for each in packet.nodes:
                writer.integers(each.node_id, _checked(len(each.capabilities), CAPABILITIES_MAX))
                for name, is_synced in each.capabilities:
                    writer.texts(name)
                    writer.integers(is_synced)
            writer.integers(packet.wants_reply)
            _write_ids(writer, packet.path, PATH_LENGTH_MAX)
        case _:
            assert_never(packet)


def _write_adjacency(writer: FieldWriter, node: Adjacency) -> None:
    writer.integers(node.node_id, node.description is not None)
    if node.description is not None:
        _write_description(writer, node.description)
    writer.integers(node.link_sequence)
    writer.time(node.link_timestamp)
    _write_ids(writer, node.neighbours, NODES_MAX)


def _write_description(writer: FieldWriter, description: Description) -> None:
    writer.texts(description.url, description.sip_addr)
    writer.integers(description.priority, description.retries)


def _write_ids(writer: FieldWriter, ids: tuple[int, ...], count_max: int) -> None:
    writer.integers(_checked(len(ids), count_max), *ids)


def _checked(count: int, maximum: int) -> int:
    if count > maximum:
        raise LocalProtocolError(f"{count} items, at most {maximum}")
    return count


def _write_extra(writer: FieldWriter, packet: Extra) -> None:
    match packet:
        case RemoveNode():
            writer.integers(packet.node_id)
        case Generic():
            writer.integers(packet.is_request)
            writer.texts(packet.tag)
            writer.blob(packet.text)
        case Command():
            writer.texts(packet.name)
            writer.integers(_checked(len(packet.parameters), PARAMETERS_MAX))
            writer.texts(*packet.parameters)
        case SyncRequest():
            writer.texts(packet.capability)
        case Sync():
            writer.texts(packet.capability)
            writer.integers(packet.data_version)
            for chunk in packet.chunks:
                writer.integers(len(chunk), CHUNK_MARKER)
                writer.data += chunk
        case SyncEnd():
            writer.texts(packet.capability)
            writer.integers(packet.chunk_count)
        case SharingTagActive():
            writer.texts(packet.tag)
        case _:
            assert_never(packet)
