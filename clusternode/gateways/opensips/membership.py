"""Taking part in the topology: joining, pings, floods, and who can be reached.

Facts about OpenSIPS from its module clusterer, 3.3 to 4.0; written down in
docs/gateway-opensips.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, assert_never

import attrs

from clusternode.core.events import (
    DuplicateId,
    Joined,
    LimitReached,
    NodeStateChanged,
    PeerDown,
    PeerRemoved,
    PeerUp,
)
from clusternode.core.types import Instant, NodeId
from clusternode.gateways.opensips import effects, messages
from clusternode.gateways.opensips.context import Context
from clusternode.gateways.opensips.links import Links, Signal, Timing
from clusternode.gateways.opensips.messages import (
    Adjacency,
    CapabilityUpdate,
    Description,
    LinkState,
    LinkUpdate,
    NodeDescription,
    Ping,
    Pong,
    TopologyUpdate,
    UnknownId,
)
from clusternode.gateways.opensips.outbox import Connection, Outbox
from clusternode.gateways.opensips.settings import PRIORITY_OF_NEIGHBOURS, RETRIES_DEFAULT
from clusternode.gateways.opensips.topology import NODES_MAX, Node, Progress, Topology
from clusternode.gateways.opensips.voice import Announced, Voice

RETRIES_MAX: Final = 100
"""Of what a node says of itself: with more it would be pinged without a pause for ever."""
SIP_ADDR_LENGTH_MAX: Final = 256

NodeChanged = Callable[[int, bool], None]
"""Takes a node and whether it can be reached now."""


class Membership:
    """Hears everything of capability `clusterer-internal`, and knows who is there."""

    def __init__(self, context: Context, announced: Announced, on_node: NodeChanged) -> None:
        settings = context.settings
        self.is_enabled = True
        """Whether we take part; an operator can disable us, here or by removing us elsewhere."""
        self.topology = Topology(context.own_id, is_rerouting=settings.enable_rerouting)
        timing = Timing(settings.ping_interval, settings.ping_timeout, settings.node_timeout)
        self.links = Links(timing, self._send_ping, self._link_changed)
        self.outbox = Outbox(settings.pace, context.effects, self._send_failed)
        self.early: OrderedDict[int, CapabilityUpdate] = OrderedDict()
        """Node → the row of it that came before its description; OpenSIPS 4.0 keeps no order."""
        self.voice = Voice(context, self.topology, self.links, self.outbox, announced)
        self._context = context
        self._announced = announced
        self._on_node = on_node
        self._listed: Sequence[int] = ()  # the ids that the pong in hand names
        self._hops_told: object = None

    def start(self) -> None:
        """Begin to ping the configured neighbours."""
        for each in self._context.settings.neighbor_node_info:
            description = Description(str(each.url), "", PRIORITY_OF_NEIGHBOURS, RETRIES_DEFAULT)
            self._add(each.node_id, description)

    # --- packets --------------------------------------------------------------------------------

    def is_from_member(self, source: int, connection: Connection) -> bool:
        """Tell whether a packet may come from a known node on a connection.

        As in OpenSIPS: the address must be that of any node, for a flooded packet comes from
        others than its source.
        """
        node = self.topology.get(source)
        if node is None or not self.topology.has_address(connection.host):
            reason = f"a packet of node {source} from an address that is no node's"
            self._context.complain("strangers", source, connection.host, reason)
            return False
        return node.is_enabled

    def receive(self, packet: messages.Topology, connection: Connection) -> None:
        """Take a packet of our cluster."""
        source = packet.source
        if source == self._context.own_id:
            event = DuplicateId(self._context.cluster, NodeId(str(source)), connection.host)
            self._context.object("own_id", event)
        elif self.topology.get(source) is None:
            self._stranger(packet, connection)
        elif self.is_from_member(source, connection):
            self._known(packet, connection)

    def _stranger(self, packet: messages.Topology, connection: Connection) -> None:
        match packet:
            case Ping():
                self.voice.unknown_id(connection)
            case NodeDescription() if self.voice.flooding.is_sound(packet):
                if self._add(packet.source, packet.description, packet) is None:
                    reason = (
                        f"node {packet.source} cannot be taken: {packet.description.url[:80]!r}"
                    )
                    self._context.complain("nodes_refused", packet.source, connection.host, reason)
            case _:
                self._context.count("strangers")

    def _known(self, packet: messages.Topology, connection: Connection) -> None:
        now, source = self._context.now, packet.source
        node = self.topology.get(source)
        assert node is not None, "checked by the caller"
        match packet:
            case Ping():
                self.outbox.bind(connection, node)
                self.voice.pong(source, wants_nodes=packet.wants_nodes)
                self.links.pinged(now, source)
            case Pong():
                self.outbox.bind(connection, node)
                self._listed = packet.node_ids
                self.links.ponged(now, source)
            case UnknownId():
                self.links.heard(now, source)
                self.voice.description(source)
            case NodeDescription() | LinkUpdate() | TopologyUpdate() | CapabilityUpdate():
                if not self.voice.flooding.is_sound(packet):
                    self._context.count("loops")
                    return
                self.links.heard(now, packet.path[-1])
                self._flooded(packet, node)
            case _:
                assert_never(packet)

    def _flooded(
        self,
        packet: NodeDescription | LinkUpdate | TopologyUpdate | CapabilityUpdate,
        node: Node,
    ) -> None:
        match packet:
            case NodeDescription():
                is_news = False  # known nodes keep what they said first, as in OpenSIPS
            case LinkUpdate():
                is_news = self._link_update(packet, node)
            case TopologyUpdate():
                is_news = self._topology_update(packet, node)
            case CapabilityUpdate():
                is_news = self._capability_update(packet, node)
            case _:
                assert_never(packet)
        if is_news:
            self.voice.pass_on(packet)
        else:
            self._context.count("stale")

    def _link_update(self, packet: LinkUpdate, node: Node) -> bool:
        if not _take(node.link, packet):
            return False
        self.topology.set_link(node, packet.neighbour, packet.state)
        if packet.neighbour == self._context.own_id:
            signal = Signal.SAYS_UP if packet.state is LinkState.UP else Signal.SAYS_DOWN
            self.links.signal(self._context.now, node.node_id, signal)
        return True

    def _topology_update(self, packet: TopologyUpdate, node: Node) -> bool:
        if not _take(node.topology, packet):
            return False
        for row in packet.nodes:
            if row.description is not None and self.topology.get(row.node_id) is None:
                self._add(row.node_id, row.description)
        for row in packet.nodes:
            known = self.topology.get(row.node_id)
            if known is not None:
                self._neighbours(row, known, node, packet)
        if self._context.own_id in node.neighbours:
            self.links.signal(self._context.now, node.node_id, Signal.SAYS_UP)
        return True

    def _neighbours(
        self, row: Adjacency, known: Node, author: Node, packet: TopologyUpdate
    ) -> None:
        """Take one list; news may have overtaken it, for OpenSIPS 4.0 keeps no order."""
        neighbours = row.neighbours
        if known is author:
            # A node that has restarted counts from 0 again, and its 0 need not come to us.
            is_restart = packet.sequence == 0 or packet.timestamp > known.link.timestamp
            is_news = is_restart or row.link_sequence >= known.link.number
            if is_news:
                known.link.number = row.link_sequence
                known.link.timestamp = max(known.link.timestamp, packet.timestamp)
        else:
            is_news = known.link.take_rumour(row.link_sequence, row.link_timestamp)
            if known.node_id in author.neighbours:
                # OpenSIPS leaves the author out of the lists of others: its own list tells.
                neighbours = (author.node_id, *neighbours)
        if is_news:
            self.topology.set_neighbours(known, neighbours)
        elif row.neighbours:
            self.topology.fill_neighbours(known, neighbours)

    def _capability_update(self, packet: CapabilityUpdate, node: Node) -> bool:
        if not _take(node.capability, packet):
            return False
        rows = [row for row in packet.nodes if self.topology.get(row.node_id) is not None]
        self._announced.received(attrs.evolve(packet, nodes=tuple(rows)))
        for row in packet.nodes:
            if row not in rows and row.node_id != self._context.own_id:
                self.early[row.node_id] = attrs.evolve(packet, nodes=(row,))
                self.early.move_to_end(row.node_id)
        while len(self.early) > NODES_MAX:
            self.early.popitem(last=False)
        if packet.wants_reply:
            self.voice.capabilities(node.node_id, wants_reply=False)
        return True

    # --- nodes ----------------------------------------------------------------------------------

    def _add(
        self, node_id: int, description: Description, packet: NodeDescription | None = None
    ) -> Node | None:
        """Take a node, flood what introduced it, and ping it."""
        if len(description.sip_addr) > SIP_ADDR_LENGTH_MAX:
            return None
        node = self.topology.add(node_id, description)
        if node is None:
            if len(self.topology) >= NODES_MAX:
                detail = f"{NODES_MAX} nodes are known"
                limit = LimitReached(self._context.cluster, "nodes", str(node_id), detail)
                if not self._context.counters.get("nodes_refused"):
                    self._context.raise_event(limit)
            return None
        if packet is not None:
            self.voice.pass_on(packet)
        self.links.add(self._context.now, node_id, min(description.retries, RETRIES_MAX))
        if not self.is_enabled:
            self.links.silence(self._context.now, node_id)
        early = self.early.pop(node_id, None)
        if early is not None:
            self._announced.received(early)
        return node

    def remove(self, node_id: int, reason: str) -> bool:
        """Forget a node; False where it is not known."""
        node = self.topology.get(node_id)
        if node is None:
            return False
        self.links.remove(node_id)
        self.outbox.drop(node_id)
        self.topology.set_own_link(node_id, is_up=False)
        self._tell_reachability()
        self.topology.remove(node_id)
        self._announced.forget(node_id)
        self._tell_reachability()
        self._state_changed(node, "removed", reason)
        removed = PeerRemoved(self._context.cluster, str(node_id), str(node.url))
        self._context.raise_event(removed)
        return True

    def set_enabled(self, node_id: int, *, is_enabled: bool, reason: str = "operator") -> bool:
        """Let a node take part again, or no more, as far as this node is concerned."""
        now = self._context.now
        node = self.topology.get(node_id)
        if node_id == self._context.own_id:
            if is_enabled is not self.is_enabled:
                self._own_state_changed(is_enabled=is_enabled, reason=reason)
            self.is_enabled = is_enabled
            for each in self.topology:
                if not is_enabled:
                    self.links.silence(now, each.node_id)
                elif each.is_enabled:
                    self.links.restart(now, each.node_id)
        elif node is None:
            return False
        elif node.is_enabled is not is_enabled:
            self.topology.set_enabled(node, is_enabled=is_enabled)
            if is_enabled:
                self.links.restart(now, node_id)
            else:
                self.links.silence(now, node_id)
        return True

    def resolved(self, host: str, addresses: Sequence[str]) -> None:
        """Take the addresses of a name."""
        for node in self.topology:
            if node.url.host == host and addresses:
                is_first = not node.addresses
                self.topology.set_addresses(node, tuple(addresses))
                if is_first:
                    self.links.restart(self._context.now, node.node_id)

    # --- links ----------------------------------------------------------------------------------

    def _send_ping(self, node_id: int, wants_nodes: bool) -> None:
        node = self.topology.get(node_id)
        assert node is not None, "links and nodes are added and removed together"
        if not node.url.is_numeric and wants_nodes:
            self._context.effects.append(effects.Resolve(node.url.host))
        self.voice.ping(node_id, wants_nodes=wants_nodes)

    def _link_changed(self, node_id: int, is_up: bool) -> None:
        self.topology.set_own_link(node_id, is_up=is_up)
        self.voice.link(node_id)
        if is_up:
            self.voice.topology(node_id, self._listed)
            self.voice.capabilities(node_id, wants_reply=True)

    def _send_failed(self, node_id: int) -> None:
        self.links.failed(self._context.now, node_id)

    def closed(self, number: int) -> None:
        """Take note that a connection has ended, or that a dial came to nothing."""
        now = self._context.now
        connection = self.outbox.get(number)
        was_lossy = self.outbox.closed(number)
        if connection is None or connection.node_id is None:
            return
        if was_lossy:
            self.links.failed(now, connection.node_id)
        elif connection.is_ours:
            self.links.closed(now, connection.node_id)

    # --- who can be reached ---------------------------------------------------------------------

    def is_reachable(self, node_id: int) -> bool:
        return node_id == self._context.own_id or node_id in self.topology.hops

    def tick(self) -> None:
        self.voice.tick()
        self.links.tick(self._context.now)
        self.outbox.tick(self._context.now)

    def next_deadline(self) -> Instant | None:
        parts = (self.voice, self.links, self.outbox)
        deadlines = [part.next_deadline() for part in parts]
        return min((each for each in deadlines if each is not None), default=None)

    def settle(self) -> None:
        """Tell who can be reached now and could not before, or the other way round."""
        while self._hops_told is not self.topology.hops:
            self._hops_told = self.topology.hops
            self._tell_reachability()

    def _tell_reachability(self) -> None:
        hops = self.topology.hops
        was_alone = not any(node.status == "active" for node in self.topology)
        for node in list(self.topology):
            is_reachable = node.node_id in hops
            if is_reachable is (node.status == "active"):
                continue
            name = str(node.node_id)
            if not is_reachable:
                self.topology.forget_links(node)
                self.outbox.give_up(node.node_id)
            self._state_changed(node, "active" if is_reachable else "not_active", "link state")
            peer = PeerUp if is_reachable else PeerDown
            self._context.raise_event(peer(self._context.cluster, name, str(node.url)))
            if is_reachable and was_alone:
                was_alone = False
                self._context.raise_event(Joined(self._context.cluster, name))
            self._on_node(node.node_id, is_reachable)

    def _state_changed(self, node: Node, status: str, reason: str) -> None:
        previous, node.status = node.status, status
        self._raise_state(node.node_id, status, previous, reason)

    def _own_state_changed(self, *, is_enabled: bool, reason: str) -> None:
        """Tell that we take part no more, or again: nothing else does where we were removed."""
        statuses = ("active", "disabled") if is_enabled else ("disabled", "active")
        self._raise_state(self._context.own_id, *statuses, reason)

    def _raise_state(self, node_id: int, status: str, previous: str, reason: str) -> None:
        new_state = int(status == "active")
        event = NodeStateChanged(
            self._context.cluster, str(node_id), new_state, status, previous, reason
        )
        self._context.raise_event(event)


def _take(progress: Progress, packet: LinkUpdate | TopologyUpdate | CapabilityUpdate) -> bool:
    is_direct = len(packet.path) == 1
    return progress.take(packet.sequence, packet.timestamp, is_direct=is_direct)
