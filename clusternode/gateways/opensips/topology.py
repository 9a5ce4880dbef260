"""Who is in the cluster, who is whose neighbour, and the way to each node.

Link state as in OpenSIPS's clusterer (4.0, `topology.c`): every node floods its list of
neighbours, and each computes its own next hops from all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import attrs

from clusternode.gateways.opensips.messages import Adjacency, Description, LinkState
from clusternode.gateways.opensips.settings import BinUrl

NODES_MAX: Final = 128
"""Of one cluster, us among them (OpenSIPS: MAX_NO_NODES)."""
LATE_MAX: Final = 60
"""Seconds by which a flooded message may be late; one that is older is of a clock set back."""
NEVER: Final = -1
"""The sequence number of who has not said anything yet."""


@attrs.define
class Progress:
    """The last number of one of the three kinds of flooded messages of one source.

    A restarted node begins at 0 again, so OpenSIPS takes 0 for news unless 0 was the last; then the
    sender's time decides. But 4.0 does not keep the order of messages, so here a 0 that others
    have passed on and that is not younger than what followed it is a late copy. And its 0 may have
    gone to others only: a smaller number that is younger than the last one tells of it as well.
    """

    number: int = NEVER
    timestamp: int = 0
    reset_at: int | None = None
    """The timestamp of the first message of its present life that we know of."""

    def take(self, number: int, timestamp: int, *, is_direct: bool) -> bool:
        """Tell whether a message is news, and if so remember it."""
        if self._is_of_former_life(timestamp):
            return False
        if number > self.number:
            is_news = True
        elif number:
            is_news = timestamp > self.timestamp > 0
        elif self.number == 0:
            is_news = timestamp > self.timestamp
        else:
            is_late = 0 <= self.timestamp - timestamp <= LATE_MAX and not is_direct
            is_news = timestamp != self.reset_at and not is_late
        if is_news:
            if number <= self.number or not number:
                self.reset_at = timestamp
            self.number, self.timestamp = number, timestamp
        return is_news

    def take_rumour(self, number: int, timestamp: int) -> bool:
        """As `take`, for what somebody else says of the source, which may be old."""
        is_news = number > self.number or (number == 0 and timestamp > self.timestamp)
        if is_news and not self._is_of_former_life(timestamp):
            self.number, self.timestamp = number, timestamp
            return True
        return False

    def _is_of_former_life(self, timestamp: int) -> bool:
        return self.reset_at is not None and 0 < self.reset_at - timestamp <= LATE_MAX


@attrs.define(eq=False)
class Node:
    """Another node of the cluster."""

    node_id: int
    description: Description
    url: BinUrl
    neighbours: tuple[int, ...] = ()
    has_list: bool = False
    """Whether its whole list has come, and not changes of it alone."""
    link: Progress = attrs.Factory(Progress)
    topology: Progress = attrs.Factory(Progress)
    capability: Progress = attrs.Factory(Progress)
    addresses: tuple[str, ...] = ()
    """Numeric; none while the name of its url is not looked up."""
    is_enabled: bool = True
    status: str = "new"
    """As it was told last: active, not_active or removed."""


class Topology:
    """All known nodes, by id, and the next hop to each."""

    def __init__(self, own_id: int, *, is_rerouting: bool) -> None:
        self.neighbours: tuple[int, ...] = ()
        """Ours: the nodes to which our link is up, the latest first."""
        self._own_id = own_id
        self._is_rerouting = is_rerouting
        self._nodes: dict[int, Node] = {}
        self._hops: dict[int, int] | None = None  # node → next hop; None: to be computed
        self._hosts: frozenset[str] | None = None  # of all nodes; None: to be collected

    # --- the nodes ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Node]:
        """All nodes but us, the latest first, as OpenSIPS lists them."""
        return reversed(self._nodes.values())

    def __len__(self) -> int:
        """Return how many nodes there are, us among them."""
        return len(self._nodes) + 1

    def get(self, node_id: int) -> Node | None:
        return self._nodes.get(node_id)

    def add(self, node_id: int, description: Description) -> Node | None:
        """Take a node that was not known; None where there is no room or its url is none."""
        if node_id == self._own_id or node_id in self._nodes or len(self) >= NODES_MAX:
            return None
        try:
            url = BinUrl.parse(description.url)
        except ValueError:
            return None
        node = self._nodes[node_id] = Node(node_id, description, url)
        self.set_addresses(node, (url.host,) if url.is_numeric else ())
        return node

    def remove(self, node_id: int) -> None:
        """Forget a node, and that it was anybody's neighbour."""
        self._nodes.pop(node_id, None)
        for node in self._nodes.values():
            node.neighbours = _without(node.neighbours, node_id)
        self.neighbours = _without(self.neighbours, node_id)
        self._hops = self._hosts = None

    def enabled(self) -> list[int]:
        """Return all other nodes that are not disabled here, by id."""
        return sorted(node.node_id for node in self._nodes.values() if node.is_enabled)

    def has_address(self, host: str) -> bool:
        """Tell whether a numeric address is that of any other node."""
        if self._hosts is None:
            self._hosts = frozenset(
                address for node in self._nodes.values() for address in node.addresses
            )
        return host in self._hosts

    def set_addresses(self, node: Node, addresses: tuple[str, ...]) -> None:
        """Take what the name of a node's url stands for."""
        node.addresses = addresses
        self._hosts = None

    def set_enabled(self, node: Node, *, is_enabled: bool) -> None:
        node.is_enabled = is_enabled
        self._hops = None

    # --- the links ------------------------------------------------------------------------------

    def set_own_link(self, node_id: int, *, is_up: bool) -> None:
        """Take note that our link to a node came up or went down."""
        rest = _without(self.neighbours, node_id)
        self.neighbours = (node_id, *rest) if is_up else rest
        self._hops = None

    def set_link(self, node: Node, neighbour: int, state: LinkState) -> None:
        """Take the news of an LS_UPDATE."""
        rest = _without(node.neighbours, neighbour)
        if state is LinkState.UP and self._is_known(neighbour):
            rest = (neighbour, *rest)
        node.neighbours = rest
        self._hops = None

    def set_neighbours(self, node: Node, neighbours: Sequence[int]) -> None:
        """Take the list of a FULL_TOP_UPDATE; ids that nobody has described are passed over."""
        known = dict.fromkeys(each for each in neighbours if self._is_known(each))
        known.pop(node.node_id, None)
        node.neighbours = tuple(known)
        node.has_list = True
        self._hops = None

    def fill_neighbours(self, node: Node, neighbours: Sequence[int]) -> None:
        """Take a list that changes have overtaken: it is what they began with.

        What has gone since may be in it, until the node tells its list again.
        """
        if not node.has_list:
            self.set_neighbours(node, (*node.neighbours, *neighbours))

    def forget_links(self, node: Node) -> None:
        """Believe no more in the list of a node that cannot be reached any more.

        What somebody else says of it then is news again. OpenSIPS keeps such a list, and has
        found ways through dead nodes in it.
        """
        node.neighbours = ()
        node.has_list = False
        node.link.number = NEVER
        self._hops = None

    def _is_known(self, node_id: int) -> bool:
        return node_id == self._own_id or node_id in self._nodes

    # --- the ways -------------------------------------------------------------------------------

    @property
    def hops(self) -> Mapping[int, int]:
        """Every reachable node with the neighbour that is the next hop to it.

        Fewest hops first, then the smallest priority, then the smallest id.
        """
        if self._hops is None:
            self._hops = self._compute()
        return self._hops

    def _compute(self) -> dict[int, int]:
        hops: dict[int, int] = {}
        level = [(node_id, node_id) for node_id in self.neighbours]
        while level:
            level.sort(key=self._rank)
            following: list[tuple[int, int]] = []
            for node_id, first in level:
                node = self._nodes[node_id]
                if node_id in hops or not node.is_enabled:
                    continue
                hops[node_id] = first
                following += [
                    (each, first)
                    for each in node.neighbours
                    if each not in hops and each in self._nodes
                ]
            level = following if self._is_rerouting else []
        return hops

    def _rank(self, way: tuple[int, int]) -> tuple[int, int]:
        return (self._nodes[way[0]].description.priority, way[0])

    def next_hop(self, node_id: int, *, but: int | None = None) -> int | None:
        """Return the neighbour through which a node is reached; `but` never is."""
        hop = self.hops.get(node_id)
        return None if hop == but else hop

    # --- what we tell ---------------------------------------------------------------------------

    def adjacencies(
        self, own_sequence: int, receiver: int, listed: Collection[int]
    ) -> tuple[Adjacency, ...]:
        """Return the nodes of a FULL_TOP_UPDATE: us first, all but the receiver.

        `listed` are the ids that the receiver has named in its pong, which need no description.
        """
        rows = [Adjacency(self._own_id, None, own_sequence, 0, self.neighbours)]
        for node in self:
            if node.node_id != receiver:
                description = None if node.node_id in listed else node.description
                rows.append(
                    Adjacency(
                        node.node_id,
                        description,
                        node.link.number,
                        node.link.timestamp,
                        node.neighbours,
                    )
                )
        return tuple(rows)


def _without(ids: tuple[int, ...], node_id: int) -> tuple[int, ...]:
    return tuple(each for each in ids if each != node_id)
