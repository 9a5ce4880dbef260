"""One connection: handshake, then messages. Spec: docs/protocol.md, 5.

Bytes in, messages out. A session decides whether the two ends can talk at all; whether they should
(our own nonce, a node id known twice, a second connection) is decided by the node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from clusternode.core.wire import limits
from clusternode.core.wire.codec import decode_untrusted, encode
from clusternode.core.wire.framing import HEADER, HEADER_SIZE, FrameDecoder, first_frame_untrusted
from clusternode.core.wire.messages import (
    POSITIONED_TYPE_MIN,
    Close,
    CloseReason,
    Hello,
    Proof,
    Results,
    WireMessage,
)
from clusternode.core.wire.proof import (
    Direction,
    is_proved_untrusted,
    proof_of,
    transcript_of,
)
from clusternode.errors import LocalProtocolError, RemoteProtocolError

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
"""The minor versions that this program speaks; our HELLOs carry them."""

_HANDSHAKE_TYPES: Final = frozenset({Hello.TYPE, Proof.TYPE})
_NO_SECRETS: Final[Sequence[bytes]] = ()


class Session:
    """The protocol state of one end of one connection.

    The dialler speaks first; the listener answers with its HELLO once it knows which cluster is
    meant. With a secret the dialler proves first that it knows one, so a stranger who dials gets
    no proof to guess at. Make one with `dial` or `listen`.
    """

    def __init__(self, handshake: _Handshake) -> None:
        self._handshake = handshake
        self._decoder: FrameDecoder | None = None  # None until the handshake has succeeded
        self._body_frame_size_max = 0
        self._error: RemoteProtocolError | None = None
        self.local: Hello | None = None
        """Our HELLO, once both are exchanged and checked, and the proofs too."""
        self.peer: Hello | None = None
        """The peer's HELLO, once both are exchanged and checked, and the proofs too."""
        self.peer_close: Close | None = None
        """What the peer said when it closed instead of completing the handshake."""
        self.salvaged: list[WireMessage] = []
        """The good messages before the error that `receive_data_untrusted` raised.

        They came first, so they count: feed them to the node before the connection ends.
        """

    @classmethod
    def dial(cls, hello: Hello, secrets: Sequence[bytes] = _NO_SECRETS) -> Session:
        """Begin a connection that we made; `data_to_send` is our HELLO at once.

        Args:
            hello: What we say; with secrets, a fresh `challenge` is in it.
            secrets: Those of the cluster: we prove with the first and accept all.
        """
        known = {hello.cluster: (hello, secrets)}
        handshake = _Handshake(Direction.CLIENT, lambda cluster: known.get(cluster, _NOT_OURS))
        handshake.say_hello(hello, secrets)
        return cls(handshake)

    @classmethod
    def listen(
        cls,
        hello_for: Callable[[str], Hello | None],
        secrets_for: Callable[[str], Sequence[bytes]] = lambda cluster: _NO_SECRETS,
    ) -> Session:
        """Begin a connection that was made to us.

        Args:
            hello_for: Tells our HELLO for the cluster that the peer names; None when we are not
                in it. Where the cluster has secrets, it has a fresh `challenge`.
            secrets_for: Tells the secrets of that cluster.
        """
        return cls(
            _Handshake(Direction.SERVER, lambda cluster: (hello_for(cluster), secrets_for(cluster)))
        )

    def peer_is_certified_as(self, names: Collection[str]) -> None:
        """Tell what the peer's certificate names, before its HELLO: its node id must be there."""
        self._handshake.peer_names = names

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
        handshake = self._handshake
        outgoing, handshake.outgoing = handshake.outgoing, b""
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
                elif type_ in _HANDSHAKE_TYPES:
                    name = "HELLO" if type_ == Hello.TYPE else "PROOF"
                    raise RemoteProtocolError(f"a second {name}, or one at the wrong time")
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
        handshake = self._handshake
        self.peer_close = handshake.receive_untrusted(data)
        if not handshake.is_done:
            return []
        own, peer = handshake.own, handshake.peer
        assert own is not None and peer is not None
        self.local, self.peer = own, peer
        self._body_frame_size_max = own.body_size_max + limits.MESSAGE_OVERHEAD_MAX
        payload_max = max(self._body_frame_size_max, limits.CONTROL_PAYLOAD_MAX)
        self._decoder = FrameDecoder(HEADER_SIZE + payload_max)
        rest = bytes(handshake.incoming)
        handshake.incoming.clear()
        return self._receive_frames(self._decoder, rest)


_NOT_OURS: Final[tuple[None, Sequence[bytes]]] = (None, _NO_SECRETS)


class _Handshake:
    """HELLO in both directions, then PROOF in both directions where the cluster has a secret."""

    def __init__(
        self,
        direction: Direction,
        find: Callable[[str], tuple[Hello | None, Sequence[bytes]]],
    ) -> None:
        self._direction = direction  # ours
        self._find = find  # cluster → our HELLO for it, and its secrets
        self._own_frame = b""
        self._secrets: Sequence[bytes] = _NO_SECRETS
        self._transcript = b""  # empty until both HELLOs are there
        self.own: Hello | None = None
        """What we said or are about to say."""
        self.peer: Hello | None = None
        """What the peer has said; not proved before `is_done`."""
        self.peer_names: Collection[str] | None = None
        """What the peer's certificate names; None where there is no certificate."""
        self.incoming = bytearray()
        self.outgoing = b""
        self.is_done = False

    def say_hello(self, own: Hello, secrets: Sequence[bytes]) -> None:
        if bool(secrets) != bool(own.challenge):
            raise LocalProtocolError("a HELLO has a challenge where there is a secret, and only so")
        self.own, self._secrets = own, secrets
        self._own_frame = encode(own)
        self.outgoing += self._own_frame

    def receive_untrusted(self, data: bytes) -> Close | None:
        """Take bytes until the handshake is done; return the peer's CLOSE if there is one."""
        self.incoming += data
        while not self.is_done:
            limit = limits.PROOF_BYTES_MAX if self._transcript else limits.HANDSHAKE_BYTES_MAX
            size = first_frame_untrusted(self.incoming, limit)
            if size is None:
                return None
            frame = bytes(self.incoming[:size])
            del self.incoming[:size]
            _magic, _size, type_, _flags = HEADER.unpack_from(frame)
            message = decode_untrusted(type_, frame[HEADER_SIZE:])
            if isinstance(message, Close):
                return message
            if self._transcript:
                self._take_proof(message, type_)
            else:
                self._take_hello(message, type_, frame)
        return None

    def _take_hello(self, peer: WireMessage, type_: int, frame: bytes) -> None:
        if not isinstance(peer, Hello):
            raise RemoteProtocolError(f"the first message is of type {type_}, expected HELLO")
        own, secrets = self._find(peer.cluster)
        if own is None:
            raise RemoteProtocolError(
                f"cluster {peer.cluster}, which we are not in", CloseReason.WRONG_CLUSTER
            )
        _check_versions(own, peer)
        self._check_authentication(own, peer, bool(secrets))
        self.peer = peer
        if self.own is None:
            self.say_hello(own, secrets)
        hellos = [self._own_frame, frame]
        if self._direction is Direction.SERVER:
            hellos.reverse()
        self._transcript = transcript_of(*hellos)
        self.is_done = not secrets
        if secrets and self._direction is Direction.CLIENT:
            self._prove()

    def _check_authentication(self, own: Hello, peer: Hello, has_secret: bool) -> None:
        if has_secret != bool(peer.challenge):
            without = peer.node_id if has_secret else own.node_id
            raise RemoteProtocolError(
                f"a cluster secret on one side only: node {without} has none",
                CloseReason.AUTHENTICATION,
            )
        if self.peer_names is not None and peer.node_id not in self.peer_names:
            named = ", ".join(sorted(self.peer_names)[:NAMES_SHOWN_MAX]) or "nobody"
            raise RemoteProtocolError(
                f"node {peer.node_id} has a certificate that names {named}",
                CloseReason.AUTHENTICATION,
            )

    def _prove(self) -> None:
        mac = proof_of(self._secrets[0], self._direction, self._transcript)
        self.outgoing += encode(Proof(mac))

    def _take_proof(self, proof: WireMessage, type_: int) -> None:
        assert self.peer is not None
        if not isinstance(proof, Proof):
            raise RemoteProtocolError(f"a message of type {type_}, expected PROOF")
        theirs = self._direction.other
        if not is_proved_untrusted(proof.mac, self._secrets, theirs, self._transcript):
            raise RemoteProtocolError(
                f"node {self.peer.node_id} has another cluster secret", CloseReason.AUTHENTICATION
            )
        if self._direction is Direction.SERVER:
            self._prove()
        self.is_done = True


NAMES_SHOWN_MAX: Final = 4
"""Names of a certificate that a refusal repeats."""


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
