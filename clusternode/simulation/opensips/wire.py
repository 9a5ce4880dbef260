"""BIN messages, as the simulated OpenSIPS reads and writes them.

Little-endian; an integer has 32 bits and a sign, a string 16 bits of length and its bytes. Knows
nothing of the gateway's codec, so that each can be wrong alone. Layouts: docs/gateway-opensips.md.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

MARKER: Final = b"P4CK"
LENGTH_SIZE: Final = 8
"""Marker and total length."""
MESSAGE_SIZE_MIN: Final = 17
MESSAGE_SIZE_MAX: Final = 65_515
"""65535 less what OpenSIPS keeps for itself."""
TRAILER_SIZE: Final = 12
READS_MAX: Final = 32
"""bin_max_msg_chunks: a message that takes more reads costs its sender the connection."""

INTERNAL: Final = b"clusterer-internal"
EXTRA: Final = b"clusterer-extra"
PLAIN_VERSION: Final = 1
SYNC_VERSION: Final = 3


class Refused(Exception):
    """What a real node does not accept; it closes the connection, or drops the message."""


@attrs.frozen
class Message:
    """A message without its outer shell."""

    capability: bytes
    kind: int
    version: int
    body: bytes
    """All after the header, trailer and path included."""

    def encoded(self) -> bytes:
        head = struct.pack("<H", len(self.capability)) + self.capability
        rest = head + struct.pack("<i", self.kind) + self.body
        size = LENGTH_SIZE + 2 + len(rest)
        return MARKER + struct.pack("<IH", size, self.version) + rest


def message_of(data: bytes) -> Message:
    """Take the header off one whole message.

    Raises:
        Refused: The capability's name or the type does not fit in.
    """
    reader = Reader(data[LENGTH_SIZE + 2 :])
    (version,) = struct.unpack_from("<H", data, LENGTH_SIZE)
    capability = reader.string()
    kind = reader.integer()
    return Message(capability, kind, version, reader.rest())


class Reader:
    """Takes one field after the other off a body."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integer(self) -> int:
        (value,) = struct.unpack("<i", self._take(4))
        assert isinstance(value, int)
        return value

    def string(self) -> bytes:
        (size,) = struct.unpack("<H", self._take(2))
        return self._take(size)

    def integers(self) -> list[int]:
        """Read a count and so many integers."""
        return [self.integer() for _ in range(self.integer())]

    def raw(self, size: int) -> bytes:
        """Read so many bytes."""
        return self._take(size)

    def rest(self) -> bytes:
        return self._take(len(self._data) - self._at)

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self._at:
            raise Refused(f"{size} bytes wanted at {self._at} of {len(self._data)}")
        self._at += size
        return self._data[self._at - size : self._at]


def fields(*values: int | bytes) -> bytes:
    """Write integers and strings one after the other."""
    return b"".join(
        struct.pack("<i", value)
        if isinstance(value, int)
        else struct.pack("<H", len(value)) + value
        for value in values
    )


def counted(values: list[int]) -> bytes:
    """Write a count and so many integers."""
    return fields(len(values), *values)


class Cutter:
    """Cuts a connection's bytes into messages, and counts the reads that each one takes."""

    def __init__(self) -> None:
        self._buffered = b""
        self._reads = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that `data`, which one read returned, completes.

        Raises:
            Refused: As a real node, which closes the connection then: a bad marker, an impossible
                length, or too many reads for one message.
        """
        self._buffered += data
        self._reads += 1
        found = []
        begin = 0
        while len(self._buffered) - begin >= LENGTH_SIZE:
            marker, size = struct.unpack_from("<4sI", self._buffered, begin)
            if marker != MARKER:
                raise Refused(f"marker {marker!r}")
            if not MESSAGE_SIZE_MIN <= size <= MESSAGE_SIZE_MAX:
                raise Refused(f"message of {size} bytes")
            if len(self._buffered) - begin < size:
                break
            found.append(self._buffered[begin : begin + size])
            begin += size
        if begin:
            self._buffered = self._buffered[begin:]
            self._reads = 1 if self._buffered else 0
        if self._reads > READS_MAX:
            raise Refused(f"message in more than {READS_MAX} pieces")
        return found
