"""A byte stream both ways over a way that may lose, repeat and reorder. Spec: docs/protocol.md, 13.

What a connection is to two nodes with a link, a tunnel is to two without one: the same bytes, in
order and once, or not at all. Each connection between two relays is reliable already, so segments
are lost only where a way breaks or a relay is full; that is why losing is rare and going back to
the first unacknowledged byte is enough.
"""

from __future__ import annotations

from clusternode.core.types import Seconds
from clusternode.core.wire.limits import KIB, SEGMENT_BYTES_MAX
from clusternode.core.wire.messages import Segment

WINDOW_MIN = SEGMENT_BYTES_MAX
WINDOW_MAX = 128 * KIB
"""Unacknowledged bytes: what a relay holds for two others, at most. Fills 1 Gbit/s at 1 ms."""
RESEND_DELAY_MAX: Seconds = 10.0
"""The longest wait for an acknowledgement before what was sent is sent again."""


class Tunnel:
    """One end of a tunnel: what is on the way to the other end, and what has come from there.

    The sender keeps what is not acknowledged, at most a window of it on the way. The window begins
    with one segment, doubles with each acknowledgement up to `WINDOW_MAX`, and begins anew where
    something was lost. The receiver takes the next byte only.
    """

    __slots__ = (
        "_outgoing",
        "_resend_delay_min",
        "_sent",
        "_window",
        "acknowledged",
        "is_ack_owed",
        "number",
        "received",
        "resend_delay",
        "resends",
    )

    def __init__(self, number: int, resend_delay: Seconds) -> None:
        self.number = number
        self.acknowledged = 0
        """How many of our bytes the other end has taken."""
        self.received = 0
        """How many bytes of the other end we have taken."""
        self.is_ack_owed = False
        self.resend_delay = self._resend_delay_min = resend_delay
        """How long to wait for an acknowledgement; doubled at each time that none came."""
        self.resends = 0
        """How often in a row no acknowledgement came in time, on this way."""
        self._outgoing = bytearray()  # from the first unacknowledged byte on
        self._sent = 0  # bytes of `_outgoing` that are on the way
        self._window = WINDOW_MIN

    @property
    def room(self) -> int:
        """Tell how many more bytes may be written now; more are taken, but kept in memory."""
        return WINDOW_MAX - len(self._outgoing)

    @property
    def waiting_bytes(self) -> int:
        """Tell how much is not acknowledged."""
        return len(self._outgoing)

    def write(self, data: bytes) -> None:
        """Queue bytes for the other end."""
        self._outgoing += data

    def segments(self) -> list[Segment]:
        """Return what can be sent now; an acknowledgement alone when one is owed."""
        found: list[Segment] = []
        outgoing = self._outgoing
        end = min(len(outgoing), self._window)
        while self._sent < end:
            data = bytes(outgoing[self._sent : min(end, self._sent + SEGMENT_BYTES_MAX)])
            found.append(Segment(self.number, self.received, self.acknowledged + self._sent, data))
            self._sent += len(data)
        if self.is_ack_owed and not found:
            found.append(Segment(self.number, self.received, self.acknowledged + self._sent))
        self.is_ack_owed = False
        return found

    def go_back(self) -> None:
        """Send everything unacknowledged again, slowly at first: the way is another one now."""
        self._sent = 0
        self._window = WINDOW_MIN
        self.resend_delay = self._resend_delay_min
        self.resends = 0

    def timed_out(self) -> None:
        """Take note that no acknowledgement came for `resend_delay`."""
        delay, resends = self.resend_delay, self.resends
        self.go_back()
        self.resends = resends + 1
        self.resend_delay = min(2 * delay, RESEND_DELAY_MAX)

    def receive_untrusted(self, segment: Segment) -> tuple[bytes, bool] | None:
        """Take a segment; return (new bytes in order, whether ours were acknowledged).

        None when it acknowledges what was never written: it is not of this tunnel.
        """
        released = segment.received - self.acknowledged
        if released > len(self._outgoing):
            return None
        is_progress = released > 0
        if is_progress:
            del self._outgoing[:released]
            self.acknowledged = segment.received
            self._sent = max(0, self._sent - released)
            self._window = min(2 * self._window, WINDOW_MAX)
            self.resend_delay = self._resend_delay_min
            self.resends = 0
        data = segment.data
        if not data:
            return b"", is_progress
        self.is_ack_owed = True
        skipped = self.received - segment.offset
        if not 0 <= skipped < len(data):
            return b"", is_progress
        data = data[skipped:]
        self.received += len(data)
        return data, is_progress
