"""Who is in the cluster, as one simulated OpenSIPS knows it: neighbours, sequences, routes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

import attrs

from clusternode.simulation.opensips.links import Link
from clusternode.simulation.opensips.wire import Reader, Refused, fields

DEFAULT_PORT: Final = 5555
NODES_MAX: Final = 128
"""Of one cluster."""
PRIORITY: Final = 3
"""What a node that is configured in the script says of itself, whatever the manual promises."""


@attrs.frozen
class Description:
    """What a node says of itself."""

    url: str
    sip_addr: str = ""
    priority: int = PRIORITY
    retries: int = 3

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the url; `bin:` may be missing."""
        rest = self.url.partition(":")[2] if self.url.startswith("bin:") else self.url
        host, _, port = rest.partition(":")
        return host, int(port) if port.isdigit() else DEFAULT_PORT

    def encoded(self) -> bytes:
        texts = fields(self.url.encode(), self.sip_addr.encode())
        return texts + fields(self.priority, self.retries)


def read_description(reader: Reader) -> Description:
    url = reader.string().decode("utf-8", "replace")
    sip_addr = reader.string().decode("utf-8", "replace")
    if not url:
        raise Refused("description without url")
    return Description(url, sip_addr, reader.integer(), reader.integer())


@attrs.define
class Sequence:
    """The last number and time of one kind of flooded message of one node."""

    takes_any_zero: bool
    number: int = -1
    timestamp: int = 0

    def accepts(self, number: int, timestamp: int) -> bool:
        """Tell whether a message is news: 0 means that its author has restarted."""
        if number != 0:
            return number > self.number
        is_newer = self.number < 0 or timestamp > self.timestamp
        return is_newer or (self.takes_any_zero and self.number > 0)

    def take(self, number: int, timestamp: int) -> None:
        self.number, self.timestamp = number, timestamp


@attrs.define
class RemoteCapability:
    """A capability of another node."""

    is_synced: bool = False
    is_sync_owed: bool = False
    """Whether it asked for data while it could not be reached."""


@attrs.define
class Peer:
    """Another node of the cluster."""

    node_id: int
    description: Description
    links: Sequence
    topology: Sequence
    announced: Sequence
    link: Link = attrs.Factory(Link)
    is_enabled: bool = True
    was_reachable: bool = False
    """As the last event said."""
    neighbours: list[int] = attrs.Factory(list)
    """Its links with others but us, newest first."""
    capabilities: dict[str, RemoteCapability] = attrs.Factory(dict)

    @property
    def address(self) -> tuple[str, int]:
        return self.description.address


class Peers:
    """All other nodes, the latest first, and how they are reached."""

    def __init__(self, own_id: int, *, reroutes: bool, takes_any_zero: bool) -> None:
        self.own_id = own_id
        self.neighbours: list[int] = []
        """Our links that are up, newest first."""
        self._peers: list[Peer] = []
        self._reroutes = reroutes
        self._takes_any_zero = takes_any_zero

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers))

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, node_id: int) -> Peer | None:
        return next((peer for peer in self._peers if peer.node_id == node_id), None)

    def add(self, node_id: int, description: Description) -> Peer | None:
        """Add a node; None when the cluster is full."""
        if len(self._peers) >= NODES_MAX:
            return None
        links, topology, announced = (Sequence(self._takes_any_zero) for _ in range(3))
        peer = Peer(node_id, description, links, topology, announced)
        self._peers.insert(0, peer)
        return peer

    def remove(self, peer: Peer) -> None:
        self._peers.remove(peer)
        for list_ in (self.neighbours, *(other.neighbours for other in self._peers)):
            if peer.node_id in list_:
                list_.remove(peer.node_id)

    def has_host(self, host: str) -> bool:
        """Tell whether some node's url has this host: the only check of a sender."""
        return any(peer.address[0] == host for peer in self._peers)

    def next_hop(self, peer: Peer) -> Peer | None:
        """Return where a message for `peer` goes: to itself over a link that is up, or around."""
        if peer.link.is_up:
            return peer
        return self._around(peer) if self._reroutes else None

    def _around(self, target: Peer) -> Peer | None:
        """Search the lists; nodes of low priority, then of low id, are looked at first."""
        first_hop: dict[int, int] = {}
        queue: list[tuple[int, int, int]] = []  # priority, id, first hop
        for node_id in self.neighbours:
            self._enqueue(queue, first_hop, node_id, node_id)
        while queue:
            _, node_id, hop = heapq.heappop(queue)
            if node_id == target.node_id:
                return self.get(hop) if hop != node_id else None
            found = self.get(node_id)
            for neighbour in found.neighbours if found else ():
                self._enqueue(queue, first_hop, neighbour, hop)
        return None

    def _enqueue(
        self, queue: list[tuple[int, int, int]], seen: dict[int, int], node_id: int, hop: int
    ) -> None:
        peer = self.get(node_id)
        if peer is not None and node_id not in seen:
            seen[node_id] = hop
            heapq.heappush(queue, (peer.description.priority, node_id, hop))
