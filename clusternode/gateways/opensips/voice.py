"""What this node says of itself, its links and its capabilities, and what it passes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import attrs

from clusternode.errors import BodyTooLarge
from clusternode.gateways.opensips.codec import encode
from clusternode.gateways.opensips.context import Context
from clusternode.gateways.opensips.flooding import Flooded, Flooding
from clusternode.gateways.opensips.links import Links
from clusternode.gateways.opensips.messages import (
    Adjacency,
    CapabilityUpdate,
    LinkState,
    LinkUpdate,
    NodeCapabilities,
    NodeDescription,
    Packet,
    Ping,
    Pong,
    TopologyUpdate,
    UnknownId,
)
from clusternode.gateways.opensips.outbox import Connection, Outbox
from clusternode.gateways.opensips.topology import Topology


@attrs.define
class _Sequences:
    """Our own three counters: they begin at 0 with each start, which tells the others."""

    link: int = -1
    topology: int = -1
    capability: int = -1


class Announced(Protocol):
    """The table of capabilities, as far as the topology needs it."""

    def all(self) -> Sequence[NodeCapabilities]:
        """Return the nodes that have any, us first."""
        ...

    def received(self, packet: CapabilityUpdate) -> None: ...
    def forget(self, node_id: int) -> None: ...


class Voice:
    """Makes every packet of `clusterer-internal`."""

    def __init__(
        self,
        context: Context,
        topology: Topology,
        links: Links,
        outbox: Outbox,
        announced: Announced,
    ) -> None:
        self.flooding = Flooding(context.own_id, context.now)
        self._context = context
        self._topology = topology
        self._links = links
        self._outbox = outbox
        self._announced = announced
        self._sequences = _Sequences()
        self._head = (context.cluster_id, context.own_id)
        self._path = (context.own_id,)

    # --- to one node ----------------------------------------------------------------------------

    def ping(self, node_id: int, *, wants_nodes: bool) -> None:
        self._tell([node_id], Ping(*self._head, wants_nodes))

    def pong(self, node_id: int, *, wants_nodes: bool) -> None:
        """Answer a ping: with all ids that we know but the asker's, where it wants them."""
        known = tuple(each.node_id for each in self._topology if each.node_id != node_id)
        self._tell([node_id], Pong(*self._head, known if wants_nodes else ()))

    def unknown_id(self, connection: Connection) -> None:
        """Tell a stranger to introduce itself, on its own connection."""
        self._outbox.answer(connection, encode(UnknownId(*self._head)))

    def description(self, node_id: int) -> None:
        packet = NodeDescription(*self._head, self._context.settings.description, self._path)
        self._tell([node_id], packet)

    def topology(self, node_id: int, listed: Collection[int]) -> None:
        """Send the neighbour lists of all nodes to one whose link came up."""
        rows = self._topology.adjacencies(self._sequences.link, node_id, listed)
        self._send_rows(node_id, rows)

    def _send_rows(self, node_id: int, rows: Sequence[Adjacency]) -> None:
        """Send a FULL_TOP_UPDATE, or several where the lists do not fit into one."""
        self._sequences.topology += 1
        unix_now, number = self._context.unix_now, self._sequences.topology
        packet = TopologyUpdate(*self._head, number, unix_now, tuple(rows), self._path)
        try:
            frame = encode(packet)
        except BodyTooLarge:
            half = len(rows) // 2 + 1
            self._sequences.topology -= 1
            self._send_rows(node_id, rows[:half])
            self._send_rows(node_id, [rows[0], *rows[half:]])
            return
        self._urgent(node_id, frame)

    def capabilities(self, node_id: int, *, wants_reply: bool) -> None:
        """Tell one node all capabilities that we know of; nothing where there are none."""
        rows = tuple(row for row in self._announced.all() if row.node_id != node_id)
        if rows:
            self._tell([node_id], self._capability_update(rows, wants_reply=wants_reply))

    # --- to all neighbours ----------------------------------------------------------------------

    def link(self, neighbour: int, state: LinkState, receivers: Sequence[int]) -> None:
        """Announce a link of ours to some neighbours; a number is used up only where there are."""
        if receivers:
            self._sequences.link += 1
            unix_now, number = self._context.unix_now, self._sequences.link
            packet = LinkUpdate(*self._head, number, unix_now, neighbour, state, self._path)
            self._tell(receivers, packet)

    def capability(self, name: str, *, is_synced: bool) -> None:
        """Announce the state of one capability of ours."""
        receivers = self._links.up()
        if receivers:
            row = NodeCapabilities(self._context.own_id, ((name, is_synced),))
            self._tell(receivers, self._capability_update((row,), wants_reply=False))

    def pass_on(self, packet: Flooded) -> None:
        """Flood what was news to us."""
        changed, receivers = self.flooding.passed_on(self._context.now, packet, self._links.up())
        if receivers:
            self._tell(receivers, changed)

    def goodbye(self) -> None:
        """Tell each neighbour that our link with it is down: it need not wait for pings.

        OpenSIPS has no message for this; a node that hears this of its own link pings at once.
        """
        for node_id in self._links.up():
            self.link(node_id, LinkState.DOWN, [node_id])

    def _capability_update(
        self, rows: tuple[NodeCapabilities, ...], *, wants_reply: bool
    ) -> CapabilityUpdate:
        self._sequences.capability += 1
        unix_now, number = self._context.unix_now, self._sequences.capability
        return CapabilityUpdate(*self._head, number, unix_now, rows, wants_reply, self._path)

    def _tell(self, node_ids: Sequence[int], packet: Packet) -> None:
        try:
            frame = encode(packet)
        except BodyTooLarge:
            self._context.count("too_large")
            return
        for node_id in node_ids:
            self._urgent(node_id, frame)

    def _urgent(self, node_id: int, frame: bytes) -> None:
        node = self._topology.get(node_id)
        if node is not None:
            self._links.sent(self._context.now, node_id)
            self._outbox.send_urgent(self._context.now, node, frame)
