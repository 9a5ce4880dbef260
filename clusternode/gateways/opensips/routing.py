"""Packets with a trailer: ours to their destination, and those of others that pass through.

OpenSIPS gives such packets neither a path nor a hop limit, so while the lists of neighbours
disagree they may go in a circle. Here a packet passes only once, for as long as it is remembered.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from clusternode.core.types import Instant, ResultCode, Seconds
from clusternode.errors import BodyTooLarge, LocalProtocolError
from clusternode.gateways.opensips.codec import encode
from clusternode.gateways.opensips.context import Context
from clusternode.gateways.opensips.membership import Membership
from clusternode.gateways.opensips.messages import Routed, Trailer
from clusternode.gateways.opensips.outbox import Connection
from clusternode.gateways.opensips.pacing import OnEnd

PASSED_TIME: Final[Seconds] = 10.0
"""How long a packet that went through is remembered: circles turn in milliseconds."""
PASSED_MAX: Final = 20_000
"""Packets remembered; the oldest is forgotten first."""


class Router:
    """Finds the next hop of a packet."""

    def __init__(self, context: Context, membership: Membership) -> None:
        self._context = context
        self._topology = membership.topology
        self._links = membership.links
        self._outbox = membership.outbox
        self._passed: OrderedDict[bytes, tuple[Instant, int]] = OrderedDict()
        # digest → (when, the connection's other end)

    def send(self, packet: Routed, on_end: OnEnd | None) -> bool:
        """Send a packet of ours; False when it was not taken, and `on_end` has heard why."""
        try:
            frame = encode(packet)
        except (BodyTooLarge, LocalProtocolError):
            return self._end(on_end, ResultCode.TOO_LARGE)
        destination = packet.trailer.destination
        hop = self._topology.next_hop(destination)
        if hop is None and self._links.is_speaking(self._context.now, destination):
            hop = destination  # it sees us up before we see it so, and has asked already
        if hop is None:
            return self._end(on_end, ResultCode.UNAVAILABLE)
        return self._send(hop, frame, on_end) or self._end(on_end, ResultCode.BUSY)

    def _end(self, on_end: OnEnd | None, code: ResultCode) -> bool:
        self._context.count("unroutable")
        if on_end is not None:
            on_end(code)
        return False

    def _send(self, hop: int, frame: bytes, on_end: OnEnd | None) -> bool:
        node = self._topology.get(hop)
        assert node is not None, "a next hop is a known node"
        self._links.sent(self._context.now, hop)
        return self._outbox.send_data(self._context.now, node, frame, on_end)

    def forward(self, frame: bytes, trailer: Trailer, connection: Connection) -> None:
        """Pass on, unchanged, what is for somebody else; never back to where it came from."""
        hop = self._topology.next_hop(trailer.destination, but=connection.node_id)
        if hop is None:
            self._context.count("unroutable")
        elif not self._is_first(frame, connection):
            self._context.count("loops")
        elif self._send(hop, frame, None):
            self._context.count("forwarded")
        else:
            self._context.count("unroutable")

    def _is_first(self, frame: bytes, connection: Connection) -> bool:
        """Tell whether a packet has not passed before on another way.

        The same bytes from the same neighbour are another message with the same text; what comes
        back in a circle comes from somebody else than at first.
        """
        now, sender = self._context.now, connection.node_id or connection.number
        while self._passed:
            digest, (when, _) = next(iter(self._passed.items()))
            if now - when < PASSED_TIME and len(self._passed) < PASSED_MAX:
                break
            del self._passed[digest]
        digest = hashlib.blake2b(frame, digest_size=16).digest()
        known = self._passed.setdefault(digest, (now, sender))
        return known[1] == sender
