"""How each side of a connection proves that it knows the cluster's secret. Spec: protocol.md, 5."""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Sequence

ALGORITHM = "sha256"


class Direction(enum.Enum):
    """Who proves; part of what is proved, so that no proof can be sent back to its maker."""

    CLIENT = b"client"
    """The side that dialled."""
    SERVER = b"server"

    @property
    def other(self) -> Direction:
        return Direction.SERVER if self is Direction.CLIENT else Direction.CLIENT


def transcript_of(client_hello: bytes, server_hello: bytes) -> bytes:
    """Return the hash of both HELLO frames, as they went over the wire.

    Each holds a challenge of its sender that is used once, so nothing can be replayed; and all
    else that they say is proved with it.
    """
    return hashlib.new(ALGORITHM, client_hello + server_hello).digest()


def proof_of(secret: bytes, direction: Direction, transcript: bytes) -> bytes:
    """Return what PROOF says in one direction."""
    return hmac.digest(secret, direction.value + transcript, ALGORITHM)


def is_proved_untrusted(
    proof: bytes, secrets: Sequence[bytes], direction: Direction, transcript: bytes
) -> bool:
    """Tell whether a proof was made with one of the secrets; tries all, in constant time each."""
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(proof, proof_of(secret, direction, transcript))
    return found
