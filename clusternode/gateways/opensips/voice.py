"""What this node says of itself, its links and its capabilities, and what it passes on."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import attrs

from clusternode.core.types import Instant, Seconds
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

QUIET_TIME: Final[Seconds] = 0.5
"""After a message with number 0, before the next of its kind.

A real node takes a 0 for a restart whenever it holds another number. If 0 goes to one neighbour and
1 to the next at once, the second gets the first one's copy of 0 after its 1, believes in a restart,
and passes on both, as do all others: with a dozen nodes that is a storm. So the copies of our 0 get
time to arrive everywhere.
"""


@attrs.define
class _Sequence:
    """One of our own three counters: they begin at 0 with each start, which tells the others."""

    number: int = -1
    quiet_until: Instant = -math.inf

    def use(self, now: Instant) -> int:
        """Return the next number."""
        self.number += 1
        if self.number == 0:
            self.quiet_until = now + QUIET_TIME
        return self.number


class Kind(enum.Enum):
    """What has a counter of its own."""

    LINK = "link"
    TOPOLOGY = "topology"
    CAPABILITY = "capability"


Held = tuple[Kind, int, str]
"""What is said later: its kind, the node that it is for or about, and a capability or nothing."""


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
        self._sequences = {kind: _Sequence() for kind in Kind}
        self._held: dict[Held, Callable[[], None]] = {}
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

        def say() -> None:
            own_number = self._sequences[Kind.LINK].number
            rows = self._topology.adjacencies(own_number, node_id, listed)
            self._send_rows(node_id, rows)

        self._when_quiet((Kind.TOPOLOGY, node_id, ""), say)

    def _send_rows(self, node_id: int, rows: Sequence[Adjacency]) -> None:
        """Send a FULL_TOP_UPDATE, or several where the lists do not fit into one."""
        sequence = self._sequences[Kind.TOPOLOGY]
        number = sequence.number + 1
        packet = TopologyUpdate(
            *self._head, number, self._context.unix_now, tuple(rows), self._path
        )
        try:
            frame = encode(packet)
        except BodyTooLarge:
            half = len(rows) // 2 + 1
            self._send_rows(node_id, rows[:half])
            self._send_rows(node_id, [rows[0], *rows[half:]])
            return
        sequence.use(self._context.now)
        self._urgent(node_id, frame)

    def capabilities(self, node_id: int, *, wants_reply: bool) -> None:
        """Tell one node all capabilities that we know of; nothing where there are none."""

        def say() -> None:
            rows = tuple(row for row in self._announced.all() if row.node_id != node_id)
            if rows:
                self._tell([node_id], self._capability_update(rows, wants_reply=wants_reply))

        self._when_quiet((Kind.CAPABILITY, node_id, ""), say)

    # --- to all neighbours ----------------------------------------------------------------------

    def link(self, neighbour: int) -> None:
        """Tell our other neighbours the state of our link with one."""

        def say() -> None:
            state = LinkState.UP if self._links.is_up(neighbour) else LinkState.DOWN
            self._send_link(neighbour, state, [e for e in self._links.up() if e != neighbour])

        self._when_quiet((Kind.LINK, neighbour, ""), say)

    def _send_link(self, neighbour: int, state: LinkState, receivers: Sequence[int]) -> None:
        """Announce a link; a number is used up only where somebody hears it."""
        if receivers:
            number = self._sequences[Kind.LINK].use(self._context.now)
            unix_now = self._context.unix_now
            packet = LinkUpdate(*self._head, number, unix_now, neighbour, state, self._path)
            self._tell(receivers, packet)

    def capability(self, name: str, *, is_synced: bool) -> None:
        """Announce the state of one capability of ours."""

        def say() -> None:
            receivers = self._links.up()
            if receivers:
                row = NodeCapabilities(self._context.own_id, ((name, is_synced),))
                self._tell(receivers, self._capability_update((row,), wants_reply=False))

        self._when_quiet((Kind.CAPABILITY, self._context.own_id, name), say)

    def pass_on(self, packet: Flooded) -> None:
        """Flood what was news to us."""
        changed, receivers = self.flooding.passed_on(self._context.now, packet, self._links.up())
        if receivers:
            self._tell(receivers, changed)

    def goodbye(self) -> None:
        """Tell each neighbour that our link with it is down: it need not wait for pings.

        OpenSIPS has no message for this; a node that hears this of its own link pings at once.
        """
        up = self._links.up()
        # There and back: who has heard a later number from another first drops the earlier one.
        for node_id in (*up, *reversed(up)):
            self._send_link(node_id, LinkState.DOWN, [node_id])

    # --- when -----------------------------------------------------------------------------------

    def _when_quiet(self, held: Held, say: Callable[[], None]) -> None:
        """Say something now, or when the copies of our first message have arrived everywhere."""
        self._held.pop(held, None)
        if self._context.now < self._sequences[held[0]].quiet_until:
            self._held[held] = say
        else:
            say()

    def next_deadline(self) -> Instant | None:
        return min((self._sequences[kind].quiet_until for kind, _, _ in self._held), default=None)

    def tick(self) -> None:
        """Say what had to wait, in the order in which it came."""
        for held in list(self._held):
            if self._sequences[held[0]].quiet_until <= self._context.now:
                say = self._held.pop(held)
                if held[1] == self._context.own_id or self._topology.get(held[1]) is not None:
                    say()

    def _capability_update(
        self, rows: tuple[NodeCapabilities, ...], *, wants_reply: bool
    ) -> CapabilityUpdate:
        number = self._sequences[Kind.CAPABILITY].use(self._context.now)
        unix_now = self._context.unix_now
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
