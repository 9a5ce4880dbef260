"""The digest of the record table: 64 bits that differ where tables differ. Spec: protocol.md, 7."""

from __future__ import annotations

import functools
import hashlib
import struct

from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.limits import ENTRIES_MAX

DIGEST_BYTES = 8

# incarnation: u64; version: u64; then the node id in ASCII, to the end. Network byte order.
_KEY = struct.Struct(">QQ")
_DIGEST = struct.Struct(">Q")


@functools.lru_cache(maxsize=ENTRIES_MAX)  # told by many before its owner says it
def digest_of_record(node_id: NodeId, incarnation: Incarnation, version: int) -> int:
    """Return what one record contributes to the digest of a table, in 0 … 2^64 - 1.

    The digest of a table is the exclusive or over its records, so a change costs two of these
    whatever the size of the table; that of an empty table is 0.
    """
    encoded = _KEY.pack(incarnation, version) + node_id.encode("ascii")
    (digest,) = _DIGEST.unpack(hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest())
    return int(digest)
