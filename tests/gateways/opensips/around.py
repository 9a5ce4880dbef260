"""What a part of the OpenSIPS node sees of the node, as a test wants it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from clusternode.core.events import Event
from clusternode.gateways.opensips.messages import Routed, Trailer


class Around:
    """A node whose links, capabilities and room are what the test says; keeps what is sent."""

    cluster_name = "sip"

    def __init__(self, node_id: int = 4, others: tuple[int, ...] = (1, 2, 3)) -> None:
        self.node_id = node_id
        self.now = 100.0
        self.nodes = list(others)
        self.unreachable: set[int] = set()
        self.no_room: set[int] = set()
        self.states: dict[tuple[int, str], bool] = {}
        self.sent: list[Routed] = []
        self.events: list[Event] = []
        self.announced: list[tuple[str, bool]] = []
        self.counted: Counter[str] = Counter()

    @property
    def unix_now(self) -> int:
        return 1_795_000_000 + int(self.now)

    def trailer(self, destination: int) -> Trailer:
        return Trailer(1, self.node_id, destination)

    def others(self) -> list[int]:
        return self.nodes

    def is_reachable(self, node_id: int) -> bool:
        return node_id in self.nodes and node_id not in self.unreachable

    def send(self, packet: Routed) -> bool:
        destination = packet.trailer.destination
        if not self.is_reachable(destination) or destination in self.no_room:
            return False
        self.sent.append(packet)
        return True

    def raise_event(self, event: Event) -> None:
        self.events.append(event)

    def announce_capability(self, name: str, *, is_synced: bool) -> None:
        self.announced.append((name, is_synced))

    def capability_state(self, node_id: int, name: str) -> bool | None:
        return self.states.get((node_id, name))

    def count(self, counter: str, by: int = 1) -> None:
        self.counted[counter] += by

    # --- for tests ----------------------------------------------------------------------------

    def taken(self) -> list[Any]:
        """Return what was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent

    def raised(self) -> list[Any]:
        """Return what was raised since the last call."""
        events, self.events = self.events, []
        return events
