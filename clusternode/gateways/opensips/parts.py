"""How the parts of the OpenSIPS node above its topology (sync, tags, commands) see the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clusternode.core.events import Event
from clusternode.core.types import Instant
from clusternode.gateways.opensips.messages import Routed, Trailer


class Surroundings(Protocol):
    """What `node.OpenSipsNode` offers to a part. Nothing here blocks or raises."""

    @property
    def cluster_name(self) -> str:
        """The `cluster_id` of events: the bus's name."""
        ...

    @property
    def node_id(self) -> int: ...

    @property
    def now(self) -> Instant:
        """The instant of the current step."""
        ...

    @property
    def unix_now(self) -> int:
        """Unix time of the current step, in whole seconds."""
        ...

    def trailer(self, destination: int) -> Trailer:
        """Make the trailer of a packet of ours."""
        ...

    def others(self) -> Sequence[int]:
        """All known enabled nodes but us, by id."""
        ...

    def is_reachable(self, node_id: int) -> bool:
        """Tell whether the direct link is up, or another route is known."""
        ...

    def send(self, packet: Routed) -> bool:
        """Queue a packet for its destination; False when there is no route or no room."""
        ...

    def raise_event(self, event: Event) -> None: ...

    def announce_capability(self, name: str, *, is_synced: bool) -> None:
        """Take note of one of our capabilities and flood a CAP_UPDATE of it."""
        ...

    def capability_state(self, node_id: int, name: str) -> bool | None:
        """Tell what a node announced: synced, not synced, or None when it lacks it."""
        ...

    def count(self, counter: str, by: int = 1) -> None: ...
