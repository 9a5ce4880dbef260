"""Passing on what was news, to whom, and how much of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import attrs

from clusternode.core.types import Instant
from clusternode.gateways.opensips.messages import (
    CapabilityUpdate,
    LinkUpdate,
    NodeDescription,
    TopologyUpdate,
)
from clusternode.gateways.opensips.pacing import Bucket

PATH_LENGTH_MAX: Final = 25
"""Nodes that a flooded packet has passed; OpenSIPS drops a longer one."""
FLOODS_PER_SECOND: Final = 2000
"""Packets passed on. A cluster of 20 that starts at once has some 1100 pieces of news in all."""
FLOODS_AT_ONCE: Final = 8000

Flooded: TypeAlias = LinkUpdate | TopologyUpdate | NodeDescription | CapabilityUpdate


class Flooding:
    """Decides what is passed on; who has the news already is in its path."""

    def __init__(self, own_id: int, now: Instant) -> None:
        self.dropped = 0
        """News that was not passed on because there was too much of it."""
        self._own_id = own_id
        self._bucket = Bucket(FLOODS_PER_SECOND, FLOODS_AT_ONCE, now)

    def is_sound(self, packet: Flooded) -> bool:
        """Tell whether a packet came on a path that begins at its source and does not name us."""
        path = packet.path
        return bool(path) and path[0] == packet.source and self._own_id not in path

    def passed_on(
        self, now: Instant, packet: Flooded, up: Iterable[int]
    ) -> tuple[Flooded, list[int]]:
        """Return a packet with us in its path, and the neighbours that it goes to."""
        targets = [node_id for node_id in up if node_id not in packet.path]
        if len(packet.path) >= PATH_LENGTH_MAX or not targets:
            return packet, []
        if not self._bucket.take(now):
            self.dropped += 1
            return packet, []
        path = (*packet.path, self._own_id)
        if isinstance(packet, CapabilityUpdate):
            # Only the neighbour of the originator answers it.
            return attrs.evolve(packet, path=path, wants_reply=False), targets
        return attrs.evolve(packet, path=path), targets
