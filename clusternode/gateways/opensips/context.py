"""What all parts of an OpenSIPS node share: its settings, the time of the step, its effects."""

from __future__ import annotations

from typing import Final

import attrs

from clusternode.core.events import Event, PeerMisbehaved
from clusternode.core.types import Instant, Seconds
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.settings import OpenSipsSettings

COMPLAINT_PAUSE: Seconds = 1.0
"""Between two events about misbehaviour; all of it is counted."""

COUNTERS: Final[tuple[str, ...]] = (
    "bridged",
    "channel_packets_refused",
    "foreign",
    "forwarded",
    "late_replies",
    "loops",
    "malformed",
    "nodes_refused",
    "own_id",
    "stale",
    "strangers",
    "strangers_closed",
    "too_large",
    "unroutable",
)
"""What the node itself counts; its parts have their own."""


@attrs.define(eq=False)
class Context:
    """Made once by the node; nobody else changes `now`."""

    cluster: str
    """The bus's name: the `cluster_id` of events."""
    settings: OpenSipsSettings
    now: Instant
    unix_offset: float = 0.0
    effects: list[Effect] = attrs.Factory(list)
    counters: dict[str, int] = attrs.Factory(dict)
    """Counter → count since the start; the names are in docs/gateway-opensips.md."""
    complained_at: Instant | None = None

    @property
    def own_id(self) -> int:
        return self.settings.my_node_id

    @property
    def cluster_id(self) -> int:
        return self.settings.cluster_id

    @property
    def unix_now(self) -> int:
        return int(self.now + self.unix_offset)

    def raise_event(self, event: Event) -> None:
        self.effects.append(effects.Raise(event))

    def count(self, counter: str, by: int = 1) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + by

    def complain(self, counter: str, node_id: int | None, host: str, reason: str) -> None:
        """Count what somebody did wrong, and tell of it now and then."""
        name = "" if node_id is None else str(node_id)
        self.object(counter, PeerMisbehaved(self.cluster, name, host, reason))

    def object(self, counter: str, event: Event) -> None:
        """Count something, and raise its event now and then."""
        self.count(counter)
        if self.complained_at is None or self.now - self.complained_at >= COMPLAINT_PAUSE:
            self.complained_at = self.now
            self.raise_event(event)

    def take(self) -> list[Effect]:
        """Return what has been asked for since the last time."""
        # The list is shared with the parts, so it is emptied and not replaced.
        taken = self.effects[:]
        self.effects.clear()
        return taken
