"""Every bound of the shell on what strangers and peers can do, each with its reason.

Those of the protocol are in core/wire/limits.py, those that an operator may set in the
configuration; docs/security.md lists all.
"""

from __future__ import annotations

from typing import Final

from clusternode.core.types import Seconds

CONNECTIONS_MAX: Final = 4096
"""Accepted connections at a time: four times a cluster of a thousand."""
CONNECTIONS_PER_HOST_MAX: Final = 256
"""Accepted connections from one IP address: a whole cluster behind one address, or on loopback."""
HANDSHAKES_MAX: Final = 512
"""Connections that have not proved who they are; the oldest of the busiest host gives way."""
HANDSHAKES_PER_HOST_MAX: Final = 64
"""The same from one IP address: the oldest gives way, so nobody fills the places of others."""
HANDSHAKE_READ_SIZE: Final = 16 * 1024
"""A HELLO and what a peer sends right after it; the rest is read when the handshake is over.

With the two limits of the first frames (core/wire/limits.py) it bounds what is held for a
stranger.
"""
READ_SIZE: Final = 256 * 1024
"""Some thousand small messages in one pass; above that nothing is gained."""
WRITE_SIZE: Final = 256 * 1024
"""What one write takes; about what the kernel takes at once."""
LOG_INTERVAL: Final[Seconds] = 60.0
"""Between two log lines with one cause, for instance one peer's faults."""
LOG_KEYS_MAX: Final = 256
"""Causes of which the last line is remembered; the oldest is forgotten."""
LOG_LINES_MAX: Final = 60
"""Warnings of one place in the code within the interval, whatever their causes: an attacker who
comes from many addresses fills no disk."""
