"""A byte stream is cut into frames. Spec: docs/protocol.md, 3."""

from __future__ import annotations

import struct

from clusternode.core.wire.messages import CloseReason
from clusternode.errors import RemoteProtocolError

MAGIC = b"CLN1"
"""Names the protocol and its major version."""

# magic: 4 bytes; total length with this header: u32; type: u16; flags: u16, 0 when sent and
# ignored when received. Network byte order.
HEADER = struct.Struct(">4sIHH")
HEADER_SIZE = HEADER.size
_LENGTH = struct.Struct(">I")
_LENGTH_OFFSET = len(MAGIC)
_LENGTH_END = _LENGTH_OFFSET + _LENGTH.size


class FrameDecoder:
    """The incomplete end of one byte stream.

    Keeps at most one incomplete frame, of at most `frame_size_max` bytes, and one read.
    """

    __slots__ = ("_buffer", "_needed", "frame_size_max")

    def __init__(self, frame_size_max: int) -> None:
        self.frame_size_max = frame_size_max
        """The longest frame that is taken, with its header, in bytes."""
        self._buffer = bytearray()
        self._needed = 0  # nothing can be complete before the buffer has so many bytes

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def feed_untrusted(self, data: bytes) -> tuple[list[tuple[int, memoryview]], str]:
        """Return the frames that `data` completes, in order, and what is wrong after them.

        Returns:
            (type, payload) of each frame, and a description of the error that follows them, empty
            when there is none. After an error the decoder is of no further use. The payloads are
            views of a buffer that nobody changes.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return [], ""
            data = bytes(self._buffer)
            self._buffer.clear()
        view = memoryview(data)
        offset, end = 0, len(data)
        frames: list[tuple[int, memoryview]] = []
        append, unpack_header, frame_size_max = (
            frames.append,
            HEADER.unpack_from,
            self.frame_size_max,
        )
        while end - offset >= HEADER_SIZE:
            magic, size, type_, _flags = unpack_header(data, offset)
            if magic != MAGIC or not HEADER_SIZE <= size <= frame_size_max:
                break
            after = offset + size
            if after > end:
                break
            append((type_, view[offset + HEADER_SIZE : after]))
            offset = after
        if offset == end:
            return frames, ""
        rest = view[offset:]
        self._buffer += rest
        self._needed, error = check_start_untrusted(rest, frame_size_max)
        return frames, error


def check_start_untrusted(start: bytes | memoryview, frame_size_max: int) -> tuple[int, str]:
    """Look at the first bytes of a frame, however few.

    Returns:
        How many bytes are needed to get further, and what is wrong with the frame, empty when
        nothing is. A wrong magic or length is found as soon as its bytes are there.
    """
    magic = bytes(start[: len(MAGIC)])
    if not MAGIC.startswith(magic):
        return 0, f"magic {magic!r}, expected {MAGIC!r}"
    if len(start) < _LENGTH_END:
        return len(start) + 1, ""
    (size,) = _LENGTH.unpack_from(start, _LENGTH_OFFSET)
    if size < HEADER_SIZE:
        return 0, f"frame of {size} bytes, at least {HEADER_SIZE}"
    if size > frame_size_max:
        return 0, f"frame of {size} bytes, at most {frame_size_max}"
    return size, ""


def first_frame_untrusted(buffer: bytes | bytearray, frame_size_max: int) -> int | None:
    """Return the size of the frame that `buffer` begins with; None while it is incomplete.

    Raises:
        RemoteProtocolError: It is not a frame, or too long.
    """
    needed, error = check_start_untrusted(bytes(buffer[:HEADER_SIZE]), frame_size_max)
    if error:
        raise RemoteProtocolError(error, CloseReason.PROTOCOL_ERROR)
    return needed if len(buffer) >= needed else None
