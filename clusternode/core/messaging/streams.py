"""One stream per peer incarnation: both directions, and the positions that both sides agree on.

Specified in docs/protocol.md, section 8. A stream outlives its connections and, for a while, the
membership of its peer: positions are dense and count positioned frames only, `Resume` says on each
new connection what was taken and what can still be sent. The receiver takes each position once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import attrs

from clusternode.core.messaging.sending import NOBODY, NOTHING, Outgoing, Sending
from clusternode.core.types import Incarnation, Instant, NodeId, RequestId, Seconds
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Ack, Frame

ACK_EVERY_BYTES = 512 * 1024
"""Beyond so many bytes an acknowledgement waits for nothing: an eighth of a default window."""
MEMORY_FACTOR = 2
"""A position is kept for so many times `delivery_timeout` after the last connection: what the
other side still holds was written before that, and is dropped there after one."""


@attrs.define(eq=False)
class Receiving:
    """The direction from one incarnation of a peer to us."""

    last_received: int = 0
    open_requests: dict[int, None] = NOBODY  # position → a request being handled
    handling: int = 0
    """Messages and requests that the routes have not answered yet."""
    acknowledged: int = 0
    """The last position that we have acknowledged on this connection."""
    unacknowledged_bytes: int = 0

    def resume_untrusted(self, peer_first_held: int) -> None:
        """Skip what the peer cannot send any more; our Resume has acknowledged the rest."""
        self.last_received = max(self.last_received, peer_first_held - 1)
        self.acknowledged = self.last_received
        self.unacknowledged_bytes = 0


@attrs.define(eq=False)
class Stream:
    """Both directions between us and one incarnation of a peer."""

    node_id: NodeId
    incarnation: Incarnation
    body_size_max: int
    """The largest body that the peer takes."""
    sending: Sending
    receiving: Receiving = attrs.Factory(Receiving)
    waiting: deque[tuple[Outgoing, Instant]] = NOTHING
    """Messages of channels with the policy `wait`, and until when."""
    is_bound: bool = False
    """Whether our Resume has been sent on a connection that lives: positions are fixed by it."""
    is_opened: bool = False
    """Whether the peer's Resume has ever come."""
    is_ending: bool = False
    """Whether the member has left or was removed: its last connection ends what is waited for."""
    unbound_at: Instant = 0.0
    """When the last connection ended."""
    is_expiry_set: bool = False
    """Whether a timer will call `Deliveries.expire`."""
    is_full: bool = False
    """Whether the last message for the peer found no room."""

    @property
    def held_bytes(self) -> int:
        return self.sending.unsent_bytes + self.sending.unacknowledged_bytes

    @property
    def has_output(self) -> bool:
        """Tell whether a writer that is free now would get something that is worth a write."""
        return self.sending.has_output or self.is_ack_urgent

    @property
    def is_ack_owed(self) -> bool:
        return self.receiving.last_received > self.receiving.acknowledged

    @property
    def is_ack_urgent(self) -> bool:
        return self.receiving.unacknowledged_bytes >= ACK_EVERY_BYTES

    @property
    def is_forgettable(self) -> bool:
        """Tell whether time alone keeps this stream: no member and no connection does."""
        return not self.is_bound and (self.is_ending or not self.is_opened)

    def take(self, bytes_max: int) -> list[Frame]:
        """Return the frames for one write: the acknowledgement that is owed, then the rest."""
        frames: list[Frame] = []
        receiving = self.receiving
        if receiving.last_received > receiving.acknowledged:
            receiving.acknowledged = receiving.last_received
            receiving.unacknowledged_bytes = 0
            frames.append(frame_of(Ack(receiving.last_received)))
        self.sending.take(frames, bytes_max)
        return frames

    def put_result(self, position: int, code: int) -> None:
        """Queue a final result. Those of requests stay behind the replies queued before them."""
        if position in self.receiving.open_requests:
            del self.receiving.open_requests[position]
            self.sending.put_result_behind(position, code)
        else:
            self.sending.own_results().add(position, code)

    def put_results(self, results: Iterable[tuple[int, int]]) -> None:
        """Queue many final results: what `put_result` does, in one pass."""
        if self.receiving.open_requests:
            for position, code in results:
                self.put_result(position, code)
            return
        runs = self.sending.own_results().runs
        last = runs[-1] if runs else [0, -1, 0]
        for position, code in results:
            if last[1] + 1 == position and last[2] == code:
                last[1] = position
            else:
                last = [position, position, code]
                runs.append(last)

    def forget_request(self, request: RequestId) -> None:
        """Drop a request that has ended, wherever it is."""
        if not self.sending.forget_request(request):
            self.waiting = deque(one for one in self.waiting if one[0].request != request)

    def drain_requests(self) -> tuple[list[Outgoing], list[Outgoing]]:
        """End all requests: return (those that were written, those that never were)."""
        written, unwritten = self.sending.drain_requests()
        unwritten += [one for one, _ in self.waiting if one.request is not None]
        self.waiting = deque(one for one in self.waiting if one[0].request is None)
        return written, unwritten

    def drain(self, *, keeps_results: bool) -> tuple[list[Outgoing], list[Outgoing]]:
        """End everything: return (what was written and has no result, what was never written)."""
        written, unwritten = self.sending.drain(keeps_results=keeps_results)
        unwritten += [one for one, _ in self.waiting]
        self.waiting.clear()
        return written, unwritten

    def forget_at(self, delivery_timeout: Seconds) -> Instant | None:
        """Tell when a forgettable stream is forgotten; None while it has handlers running."""
        if not self.is_forgettable or self.receiving.handling > 0:
            return None
        return self.unbound_at + MEMORY_FACTOR * delivery_timeout

    def next_deadline(self, delivery_timeout: Seconds) -> Instant | None:
        """Tell when `Deliveries.expire` has something to do."""
        if self.is_bound:
            return self.sending.next_deadline()
        deadlines = [
            self.sending.next_deadline(),
            self.forget_at(delivery_timeout),
            self.sending.held_until(self.unbound_at + delivery_timeout),
        ]
        return min((one for one in deadlines if one is not None), default=None)
