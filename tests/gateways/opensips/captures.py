"""The two recorded sessions of real OpenSIPS nodes: what each TCP connection carried, and when.

A reader of the libpcap format (Ethernet, IPv4, TCP) that puts the segments of each direction in
order and cuts them into BIN messages. Node N of the recordings has the address 127.0.61.N.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs

VECTORS = Path(__file__).resolve().parent / "vectors"
SESSION_A = "session_a_three_nodes.pcap"
SESSION_B = "session_b_python_joins.pcap"
BIN_PORT = 5566
HEADER_SIZE = 8
"""Marker and total length."""

Endpoint = tuple[str, int]


@attrs.frozen
class Segment:
    at: float
    source: Endpoint
    target: Endpoint
    sequence: int
    opens: bool
    ends: bool
    data: bytes


@attrs.frozen
class Frame:
    """One BIN message of a recording."""

    at: float
    """When its last byte was seen, in Unix seconds."""
    source: Endpoint
    target: Endpoint
    is_backwards: bool
    """Whether it went against the direction in which the connection was opened."""
    data: bytes

    @property
    def sender(self) -> int:
        """The node that wrote it to the connection, which need not be its author."""
        return node_of(self.source)

    @property
    def receiver(self) -> int:
        return node_of(self.target)


def node_of(endpoint: Endpoint) -> int:
    return int(endpoint[0].rpartition(".")[2])


def address_of(node_id: int) -> str:
    return f"127.0.61.{node_id}"


def segments(path: Path) -> Iterator[Segment]:
    data = path.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1"
    at = 24
    while at < len(data):
        seconds, fraction, length, _ = struct.unpack_from("<IIII", data, at)
        packet = data[at + 16 : at + 16 + length]
        at += 16 + length
        if packet[12:14] != b"\x08\x00" or packet[23] != 6:
            continue
        tcp = 14 + (packet[14] & 15) * 4
        end = 14 + struct.unpack_from(">H", packet, 16)[0]
        hosts = [".".join(map(str, packet[begin : begin + 4])) for begin in (26, 30)]
        from_port, to_port, sequence = struct.unpack_from(">HHI", packet, tcp)
        flags = packet[tcp + 13]
        yield Segment(
            seconds + fraction / 1e6,
            (hosts[0], from_port),
            (hosts[1], to_port),
            sequence,
            bool(flags & 2),
            bool(flags & 5),
            packet[tcp + (packet[tcp + 12] >> 4) * 4 : end],
        )


@attrs.define
class Direction:
    """One half of a connection; takes each byte once, in order."""

    is_backwards: bool
    next_sequence: int
    waiting: dict[int, bytes] = attrs.Factory(dict)  # first sequence number → bytes
    buffered: bytes = b""

    def take(self, segment: Segment) -> list[bytes]:
        """Return the messages that are complete with this segment."""
        if segment.data:
            self.waiting[segment.sequence] = segment.data
        progress = True
        while progress:
            progress = False
            for sequence in list(self.waiting):
                behind = (self.next_sequence - sequence) % 2**32
                if behind < 2**31:
                    data = self.waiting.pop(sequence)[behind:]
                    self.buffered += data
                    self.next_sequence = (self.next_sequence + len(data)) % 2**32
                    progress = progress or bool(data)
        return list(self._messages())

    def _messages(self) -> Iterator[bytes]:
        while len(self.buffered) >= HEADER_SIZE:
            assert self.buffered[:4] == b"P4CK"
            (length,) = struct.unpack_from("<I", self.buffered, 4)
            if len(self.buffered) < length:
                return
            yield self.buffered[:length]
            self.buffered = self.buffered[length:]


@cache
def frames(name: str) -> tuple[Frame, ...]:
    """Read all messages of a recording, in the order of their last bytes."""
    open_now: dict[tuple[Endpoint, Endpoint], Direction] = {}
    found = []
    for segment in segments(VECTORS / name):
        way = (segment.source, segment.target)
        if segment.opens:
            is_backwards = segment.source[1] == BIN_PORT and way[::-1] in open_now
            open_now[way] = Direction(is_backwards, (segment.sequence + 1) % 2**32)
        direction = open_now.get(way)
        if direction is not None:
            found += [
                Frame(segment.at, segment.source, segment.target, direction.is_backwards, data)
                for data in direction.take(segment)
            ]
    return tuple(found)
