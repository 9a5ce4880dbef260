"""Whether a ping, or what lies before its pong, still moves over a slow connection.

Specified in docs/node-health.md; why it is so, in ADR 0010. A ping overtakes whatever the core
holds, but neither what the kernel holds nor the rest of a frame that is being written.
"""

from __future__ import annotations

import attrs

from clusternode.core.inputs import Measured
from clusternode.core.types import Instant, Seconds
from clusternode.core.wire.limits import KIB, MIB

BEFORE_PONG_BYTES = MIB
"""What may come before a pong beside the largest frame: a write that had begun, and what the
kernel and the link hold. Bufferbloat of more than that is longer than any ping timeout."""
SLOW_SHARE = 0.25
"""A connection is slow when a round trip takes more than this part of `ping_timeout`."""
RETRANSMISSIONS_MAX = 2
"""On a slow connection nothing may move for so many retransmission timeouts: a lost packet."""
RATE_MIN = 2 * KIB
"""Bytes per second; what comes in more slowly stands still. A tenth of a narrow link."""


@attrs.define(eq=False)
class Passage:
    """What is known of the way of one ping, from looks at its connection."""

    seen: Measured | None = None
    """What the last look has shown."""
    seen_at: Instant = 0.0
    through_at: int | None = None
    """When so many bytes have arrived, the ping has; None while it is not written."""
    returns_from: int = 0
    """What had been read when the ping was last seen on its way."""
    moved_at: Instant = 0.0
    """When something was last seen to have moved, or the looking began."""

    def begin(self) -> None:
        """Follow another ping: the old one does not matter any more."""
        self.through_at = None

    def look(
        self,
        seen: Measured,
        now: Instant,
        *,
        is_written: bool,
        frame_bytes_max: int,
        ping_timeout: Seconds,
    ) -> bool:
        """Take a look; tells whether what moves excuses the ping.

        Something has to have moved since the last look; on a slow connection, not longer ago than
        a lost packet takes.

        Args:
            seen: How far the bytes of the connection have come.
            now: The present.
            is_written: Whether the ping was given to the writer.
            frame_bytes_max: The largest frame that the peer may send.
            ping_timeout: The time of a ping.
        """
        is_first = self.seen is None or self.seen.connection != seen.connection
        has_moved = self._moves(seen, now, is_written=is_written, frame_bytes_max=frame_bytes_max)
        if is_first or has_moved:
            self.moved_at = now
        is_slow = seen.round_trip > ping_timeout * SLOW_SHARE
        patience = RETRANSMISSIONS_MAX * seen.retransmission_timeout if is_slow else 0.0
        return has_moved or now - self.moved_at < patience

    def _moves(
        self, seen: Measured, now: Instant, *, is_written: bool, frame_bytes_max: int
    ) -> bool:
        """Tell whether the ping has moved since the last look, or what may be before its pong."""
        last, elapsed = self.seen, now - self.seen_at
        self.seen, self.seen_at = seen, now
        if last is None or last.connection != seen.connection:
            last, self.through_at, self.returns_from = None, None, seen.received_bytes
        was_through = (
            last is not None
            and self.through_at is not None
            and last.arrived_bytes >= self.through_at
        )
        if self.through_at is None and is_written:
            self.through_at = seen.arrived_bytes + seen.waiting_bytes
        if last is None:
            return False
        if not was_through and seen.moved_bytes > last.moved_bytes:
            self.returns_from = seen.received_bytes
            return True
        is_arriving = seen.received_bytes - last.received_bytes >= RATE_MIN * elapsed
        before_pong = last.received_bytes - self.returns_from
        return is_arriving and before_pong <= frame_bytes_max + BEFORE_PONG_BYTES
