"""Every size and count limit of the protocol, each with its reason. Spec: docs/protocol.md, 10.

All of them hold for what comes in; a sender that exceeds one is disconnected. They can only grow,
and only in a new minor version.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

BODY_SIZE_LIMIT = 16 * MIB
"""No node may offer to take larger bodies: a frame is held in memory whole, at both ends."""

MESSAGE_OVERHEAD_MAX = KIB
"""What a positioned frame may be longer than its body: header, names, content type, numbers.

The longest possible is about 400 bytes; the rest is for fields that later versions append.
"""

CONTROL_PAYLOAD_MAX = MIB
"""The longest payload that is not a body: a list of `ENTRIES_MAX` lines is under 400 KiB."""

HANDSHAKE_BYTES_MAX = 4 * KIB
"""The longest first frame: a HELLO is under 1 KiB, and its sender is not known yet."""

FRAME_OVERHEAD_BYTES = 64
"""What a frame counts for beyond its texts and body.

Never less than its header and the msgpack headers and numbers of a positioned message (at most
48), so that very small messages cannot fill memory with what surrounds them.
"""

FIELDS_MAX = 32
"""Fields of one message that is not a list: room for many minor versions."""

ENTRIES_MAX = 4096
"""Elements of any list in a message: nodes in a list, records, runs.

A msgpack array reserves 8 bytes per announced element before they are read, 1024 levels deep at
most, so a malicious frame can claim at most 32 MiB for the moment until it is refused.
"""

STRANGERS_MAX = 2048
"""Records of nodes that have never answered us: twice a cluster of a thousand that joins at once.

Anybody in the cluster can invent nodes. This half of the table is for them; the other half is for
those that have answered, who connect by themselves.
"""

RUN_LENGTH_MAX = MIB
"""Positions in one run of results: more than a window of 64 MiB can hold of the smallest frames."""

NAME_LENGTH_MAX = 64
"""Node ids, channels, tag keys, cluster names."""

CONTENT_TYPE_LENGTH_MAX = 128
"""RFC 6838 section 4.2 allows 127 on each side of the slash; nobody uses half of that."""

TAG_LENGTH_MAX = 192
"""The tag of a request: room for two names and a number, as gateways make them."""

ADDRESS_LENGTH_MAX = 300
"""Scheme, a host of 253 characters (RFC 1035 section 2.3.4), brackets and a port."""

AGENT_LENGTH_MAX = 128
"""Name and version of the program."""

DETAIL_LENGTH_MAX = 256
"""What a closing peer has to say; it goes into a log line."""

NONCE_LENGTH = 16
"""As many random bits as a UUID has, and a few more. Challenges are as long."""

PROOF_LENGTH = 32
"""What HMAC-SHA-256 gives."""

PROOF_BYTES_MAX = 512
"""The longest frame where PROOF is expected: a CLOSE with its detail is the longest allowed.

With `HANDSHAKE_BYTES_MAX` it bounds what is taken from anybody before the proof.
"""

RELAYS_MAX = 2
"""Nodes between the two ends of a way: three hops."""

SEGMENT_BYTES_MAX = 16 * KIB
"""Bytes of a tunnel in one frame: pings wait for at most one of them on a slow link."""

ROUTED_PAYLOAD_MAX = SEGMENT_BYTES_MAX + KIB
"""What is passed on for others in one frame: a full segment and its numbers."""

DOWN_MAX = 64
"""Links of one node that its record names as down; a node that has lost more is cut off."""

TAGS_MAX = 64
"""Tags of one node."""

TAG_VALUE_LENGTH_MAX = 256
"""Bytes of one tag's value, in UTF-8."""

CHANNELS_MAX = 1024
"""Channels that one node listens on."""

U8_MAX = 2**8 - 1
U16_MAX = 2**16 - 1
U32_MAX = 2**32 - 1
COUNT_MAX = 2**63 - 1
"""Positions, incarnations, versions, numbers: one more still fits the 64 bits that carry it."""
HEARSAY_MAX = COUNT_MAX - 2**20
"""Incarnations and versions that third parties are believed: an owner can exceed what is said of it
up to here, and so many restarts and changes of its record are still possible above it."""
DIGEST_MAX = 2**64 - 1

SECONDS_MAX = 10 * 366 * 86400.0
"""Ten years: anything longer is a mistake."""

NAMES_REMEMBERED_MAX = 4096
"""Names and content types that the decoder remembers as checked; it starts anew beyond that."""
