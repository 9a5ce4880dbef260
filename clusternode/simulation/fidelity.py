"""How close to the wire a world is: messages as they are, or through bytes and back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from clusternode.core.wire.codec import decode_untrusted, encoded_of
from clusternode.core.wire.framing import FrameDecoder
from clusternode.core.wire.limits import BODY_SIZE_LIMIT, CONTROL_PAYLOAD_MAX
from clusternode.core.wire.messages import Frame, WireMessage
from clusternode.errors import RemoteProtocolError

CUTS_MAX = 3
"""Into how many more pieces than one a write falls on its way."""


class Wire(Protocol):
    """Turns what one end wrote into what the other one reads."""

    def carry(self, frames: Sequence[Frame]) -> list[WireMessage]: ...
    def carry_part(self, frames: Sequence[Frame]) -> list[WireMessage]:
        """Carry what arrives of a write when the connection breaks in the middle of it."""
        ...


class MessageWire:
    """Hands messages over as they are: fast."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def carry(self, frames: Sequence[Frame]) -> list[WireMessage]:
        return [frame.message for frame in frames]

    def carry_part(self, frames: Sequence[Frame]) -> list[WireMessage]:
        return [frame.message for frame in frames[: self._rng.randint(0, len(frames))]]


class ByteWire:
    """Encodes, cuts the bytes anywhere, and decodes them: what one node says, another can read."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def carry(self, frames: Sequence[Frame]) -> list[WireMessage]:
        """Carry one write.

        Raises:
            RemoteProtocolError: The codec does not read what the codec wrote: a bug.
        """
        data = b"".join(encoded_of(frame) for frame in frames)
        messages = self._decode(data)
        if len(messages) != len(frames):
            raise RemoteProtocolError(f"{len(frames)} frames became {len(messages)}")
        return messages

    def carry_part(self, frames: Sequence[Frame]) -> list[WireMessage]:
        """Cut at any byte: what was complete before it is read, the rest of a frame is not.

        Raises:
            RemoteProtocolError: The codec made something of the rest of a frame: a bug.
        """
        pieces = [encoded_of(frame) for frame in frames]
        data = b"".join(pieces)
        cut = self._rng.randint(0, len(data))
        messages = self._decode(data[:cut])
        whole, length = 0, 0
        for piece in pieces:
            length += len(piece)
            whole += length <= cut
        if len(messages) != whole:
            raise RemoteProtocolError(f"{whole} whole frames became {len(messages)}")
        return messages

    def _decode(self, data: bytes) -> list[WireMessage]:
        cuts = sorted(self._rng.randint(0, len(data)) for _ in range(CUTS_MAX))
        decoder = FrameDecoder(BODY_SIZE_LIMIT + CONTROL_PAYLOAD_MAX)
        messages: list[WireMessage] = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            found, problem = decoder.feed_untrusted(data[start:end])
            if problem:
                raise RemoteProtocolError(problem)
            messages += [decode_untrusted(type_, payload) for type_, payload in found]
        return messages


WIRES = ("bundles", "messages", "bytes")
"""What a scenario may say for `fidelity`."""


def wire_of(fidelity: str, rng: random.Random) -> Wire:
    return ByteWire(rng) if fidelity == "bytes" else MessageWire(rng)
