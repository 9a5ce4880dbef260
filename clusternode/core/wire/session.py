"""One connection: handshake, then messages. Spec: docs/protocol.md, 5.

Bytes in, messages out. A session decides whether the two ends can talk at all; whether they should
(our own nonce, a node id known twice, a second connection) is decided by the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from clusternode.core.wire import limits
from clusternode.core.wire.codec import decode_untrusted, encode
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, FrameDecoder, first_frame_untrusted
from clusternode.core.wire.messages import (
    POSITIONED_TYPE_MIN,
    Close,
    CloseReason,
    Hello,
    Results,
    WireMessage,
)
from clusternode.errors import LocalProtocolError, RemoteProtocolError

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
"""The minor versions that this program speaks; our HELLOs carry them."""


class Session:
    """The protocol state of one end of one connection.

    The dialler speaks first; the listener answers with its HELLO once it knows which cluster is
    meant. Make one with `dial` or `listen`.
    """

    def __init__(self, local: Hello | None, hello_for: Callable[[str], Hello | None]) -> None:
        self._own = local  # what we said or will say
        self._hello_for = hello_for
        self._outgoing = encode(local) if local is not None else b""
        self._handshake = bytearray()
        self._decoder: FrameDecoder | None = None  # None until the peer's HELLO was accepted
        self._body_frame_size_max = 0
        self._error: RemoteProtocolError | None = None
        self.local: Hello | None = None
        """Our HELLO, once both are exchanged and checked."""
        self.peer: Hello | None = None
        """The peer's HELLO, once both are exchanged and checked."""
        self.peer_close: Close | None = None
        """What the peer said when it closed instead of completing the handshake."""
        self.salvaged: list[WireMessage] = []
        """The good messages before the error that `receive_data_untrusted` raised.

        They came first, so they count: feed them to the node before the connection ends.
        """

    @classmethod
    def dial(cls, hello: Hello) -> Session:
        """Begin a connection that we made; `data_to_send` is our HELLO at once."""
        return cls(hello, lambda cluster: hello if cluster == hello.cluster else None)

    @classmethod
    def listen(cls, hello_for: Callable[[str], Hello | None]) -> Session:
        """Begin a connection that was made to us.

        Args:
            hello_for: Tells our HELLO for the cluster that the peer names; None when we are not
                in it.
        """
        return cls(None, hello_for)

    @property
    def is_open(self) -> bool:
        """Whether both HELLOs are exchanged and nothing has gone wrong since."""
        return self._decoder is not None and self._error is None

    @property
    def version(self) -> int:
        """The agreed minor version: the largest that both sides speak; 0 before the handshake."""
        if self.peer is None or self.local is None:
            return 0
        return min(self.peer.protocol_max, self.local.protocol_max)

    def data_to_send(self) -> bytes:
        """Return the bytes of the handshake that are to be written now, once."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def receive_data_untrusted(self, data: bytes) -> list[WireMessage]:
        """Return the messages that `data` completes, in order; none before the handshake's end.

        Raises:
            RemoteProtocolError: The peer broke the protocol, or we cannot talk to it: `reason` is
                what it should be told. `salvaged` has the messages before the fault. The session
                takes no more data.
        """
        if self._error is not None:
            raise self._error
        try:
            if self._decoder is not None:
                return self._receive_frames(self._decoder, data)
            return self._receive_handshake(data)
        except RemoteProtocolError as error:
            self._error = error
            raise

    @staticmethod
    def close_bytes(reason: int, detail: str = "", value: int = 0) -> bytes:
        """Return the frame that tells the peer why the connection ends."""
        return encode(Close(reason, detail, value))

    def _receive_frames(self, decoder: FrameDecoder, data: bytes) -> list[WireMessage]:
        frames, problem = decoder.feed_untrusted(data)
        messages: list[WireMessage] = []
        append, decode, body_max = messages.append, decode_untrusted, self._body_frame_size_max
        try:
            for type_, payload in frames:
                if len(payload) > body_max and type_ >= POSITIONED_TYPE_MIN:
                    self._check_payload(type_, payload)
                elif type_ == Hello.TYPE:
                    raise RemoteProtocolError("a second HELLO")
                append(decode(type_, payload))
            if problem:
                raise RemoteProtocolError(problem)
        except RemoteProtocolError:
            self.salvaged = messages
            raise
        return messages

    def _check_payload(self, type_: int, payload: memoryview) -> None:
        """Refuse a body that is longer than what our HELLO offers to take."""
        if type_ != Results.TYPE:
            raise RemoteProtocolError(
                f"payload of {len(payload)} bytes, at most {self._body_frame_size_max}",
                CloseReason.LIMIT,
            )

    def _receive_handshake(self, data: bytes) -> list[WireMessage]:
        if self.peer_close is not None:
            raise RemoteProtocolError("data after CLOSE")
        self._handshake += data
        size = first_frame_untrusted(self._handshake, limits.HANDSHAKE_BYTES_MAX)
        if size is None:
            return []
        _magic, _size, type_, _flags = HEADER.unpack_from(self._handshake)
        message = decode_untrusted(type_, bytes(self._handshake[HEADER_SIZE:size]))
        rest = bytes(self._handshake[size:])
        self._handshake.clear()
        if isinstance(message, Close):
            self.peer_close = message
            return []
        if not isinstance(message, Hello):
            raise RemoteProtocolError(f"the first message is of type {type_}, expected HELLO")
        decoder = self._accept(message)
        return self._receive_frames(decoder, rest)

    def _accept(self, peer: Hello) -> FrameDecoder:
        """Check the peer's HELLO, answer it if we listened, and open the session."""
        own = self._hello_for(peer.cluster)
        if own is None:
            raise RemoteProtocolError(
                f"cluster {peer.cluster}, which we are not in", CloseReason.WRONG_CLUSTER
            )
        _check_versions(own, peer)
        if self._own is None:
            self._outgoing += encode(own)
        self.local, self.peer = own, peer
        self._body_frame_size_max = own.body_size_max + limits.MESSAGE_OVERHEAD_MAX
        payload_max = max(self._body_frame_size_max, limits.CONTROL_PAYLOAD_MAX)
        self._decoder = FrameDecoder(HEADER_SIZE + payload_max)
        return self._decoder


def _check_versions(own: Hello, peer: Hello) -> None:
    if own.protocol_min > own.protocol_max:
        raise LocalProtocolError(f"our versions {own.protocol_min} to {own.protocol_max}")
    if peer.protocol_min > peer.protocol_max:
        raise RemoteProtocolError(f"versions {peer.protocol_min} to {peer.protocol_max}")
    if peer.protocol_max < own.protocol_min or own.protocol_max < peer.protocol_min:
        raise RemoteProtocolError(
            f"versions {peer.protocol_min} to {peer.protocol_max}, "
            f"expected {own.protocol_min} to {own.protocol_max}",
            CloseReason.VERSION,
            own.protocol_max,
        )
