"""A whole simulated OpenSIPS, with the script functions and commands that a test or demo uses."""

from __future__ import annotations

import string
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

import attrs

from clusternode.core.types import Instant
from clusternode.simulation.opensips.data import (
    AOR_DELETE,
    AOR_INSERT,
    CACHE,
    CACHE_INSERT,
    CACHE_REMOVE,
    CACHE_VERSION,
    CONTACT_DELETE,
    CONTACT_INSERT,
    CONTACTS,
    CONTACTS_VERSION,
    DOMAIN,
    Cache,
    Contacts,
    contact_fields,
    contact_keys,
)
from clusternode.simulation.opensips.links import LinkState
from clusternode.simulation.opensips.peers import Peer
from clusternode.simulation.opensips.sync import SYNC, SYNC_END, SYNC_REQ, Capabilities
from clusternode.simulation.opensips.tags import Tags
from clusternode.simulation.opensips.topology import Config, Hooks, Topology
from clusternode.simulation.opensips.transport import HostPort, Machine, Transport
from clusternode.simulation.opensips.wire import (
    EXTRA,
    INTERNAL,
    PLAIN_VERSION,
    TRAILER_SIZE,
    Message,
    Reader,
    Refused,
    fields,
    message_of,
)

REMOVE_NODE, GENERIC_MSG, MI_CMD, SHTAG_ACTIVE = 6, 7, 8, 13
BRIDGE_MARKER: Final = 0xC0000000 - 2**32
"""In place of a destination, since 4.0; as a signed integer."""
TAG_SIZE: Final = 24
PARAMETERS_MAX: Final = 20
REMEMBERED_MAX: Final = 100_000
"""Events and commands that are kept for whoever asks."""

REQUEST_RECEIVED: Final = "E_CLUSTERER_REQ_RECEIVED"
REPLY_RECEIVED: Final = "E_CLUSTERER_RPL_RECEIVED"
NODE_STATE_CHANGED: Final = "E_CLUSTERER_NODE_STATE_CHANGED"
TAG_CHANGED: Final = "E_CLUSTERER_SHARING_TAG_CHANGED"

Script = Callable[[int, bytes], bytes | None]
"""The event route for requests: gets source and text, returns the text of its reply, if any."""


@attrs.frozen
class Raised:
    """An event of the event interface."""

    at: Instant
    name: str
    source: int
    """src_id, node_id, or 0."""
    text: bytes
    """msg, new_state, or the state of a tag."""
    tag: str = ""
    """The tag of a message, or the name of a sharing tag."""


@attrs.frozen
class CommandRun:
    """A management command that another node sent."""

    name: str
    parameters: tuple[bytes, ...]


def no_script(source: int, text: bytes) -> bytes | None:
    """Answer nothing."""
    del source, text
    return None


class SimulatedOpenSips:
    """One node. Its owner brings what comes over TCP, and wakes it at its next deadline."""

    def __init__(
        self,
        config: Config,
        machine: Machine,
        rng: Random,
        *,
        collections: tuple[str, ...] = ("c1",),
        script: Script = no_script,
    ) -> None:
        self.config = config
        self.events: deque[Raised] = deque(maxlen=REMEMBERED_MAX)
        self.commands: deque[CommandRun] = deque(maxlen=REMEMBERED_MAX)
        self.script = script
        self.transport = Transport(machine, config.quirks, rng, self._handle)
        self.topology = Topology(config, machine, self.transport)
        self.capabilities = Capabilities(config, machine, self.topology, self._route)
        self.topology.hooks = Hooks(self._link_up, self._reached, self.capabilities.received)
        self.tags = Tags(self._send_tag, self._tag_changed)
        self.cache = Cache(machine, collections)
        self.contacts = Contacts()
        self._machine = machine
        self._rng = rng
        self.topology.next_tick += rng.uniform(0, config.timing.tick)

    def start(self, *, wants_sync: bool = True) -> None:
        """Load the modules; the timer begins within one tick."""
        self.capabilities.register(self.cache, wants_sync=wants_sync)
        self.capabilities.register(self.contacts, wants_sync=wants_sync)

    # --- what the owner brings

    def next_deadline(self) -> Instant:
        held = self.transport.next_deadline()
        timers = min(self.topology.next_tick, self.capabilities.next_check)
        return timers if held is None else min(timers, held)

    def tick(self) -> None:
        self.transport.tick()
        self.topology.tick()
        self.capabilities.check()

    def accepted(self, connection: int, remote: HostPort) -> None:
        """Take a connection that somebody made to us; its number must be negative."""
        self.transport.accepted(connection, remote)

    def connected(self, connection: int) -> None:
        self.transport.connected(connection)

    def closed(self, connection: int) -> None:
        self.transport.closed(connection)

    def read(self, connection: int, data: bytes) -> None:
        """Take what one read returned."""
        self.transport.read(connection, data)

    # --- what is seen

    def link_states(self) -> dict[int, str]:
        """Return node id → link_state of `clusterer:list`."""
        words = {LinkState.UP: "Up", LinkState.DOWN: "Down"}
        return {peer.node_id: words.get(peer.link.state, "Probe") for peer in self.topology.peers}

    def adjacency(self) -> dict[int, list[int]]:
        """Return node id → sorted neighbours of `clusterer:list_topology`, ourselves included."""
        own = self.config.node_id
        up = self.topology.peers.neighbours
        lists = {own: sorted(up)}
        for peer in self.topology.peers:
            ours = [own] if peer.node_id in up else []
            lists[peer.node_id] = sorted([*peer.neighbours, *ours])
        return lists

    def next_hops(self) -> dict[int, int]:
        """Return node id → next hop of all nodes that can be reached."""
        hops = {peer.node_id: self.topology.peers.next_hop(peer) for peer in self.topology.peers}
        return {node_id: hop.node_id for node_id, hop in hops.items() if hop is not None}

    def replies(self, tag: str) -> list[Raised]:
        """Return the replies that carried a tag: what would wake `wait_for_event`."""
        return [e for e in self.events if e.name == REPLY_RECEIVED and e.tag == tag]

    # --- script functions and commands

    def broadcast_request(self, text: bytes) -> str:
        """cluster_broadcast_req: return the tag; empty when nobody could be reached."""
        tag = self._new_tag()
        message = Message(EXTRA, GENERIC_MSG, PLAIN_VERSION, fields(1, tag.encode(), text))
        return tag if self._broadcast(message) else ""

    def send_request(self, node_id: int, text: bytes) -> str:
        """cluster_send_req."""
        tag = self._new_tag()
        if node_id == self.config.node_id:
            self._generic(1, node_id, tag, text)
            return tag
        message = Message(EXTRA, GENERIC_MSG, PLAIN_VERSION, fields(1, tag.encode(), text))
        return tag if self._route(message, node_id) else ""

    def send_reply(self, node_id: int, text: bytes, tag: str) -> bool:
        """cluster_send_rpl."""
        body = fields(0, tag.encode(), text)
        return self._route(Message(EXTRA, GENERIC_MSG, PLAIN_VERSION, body), node_id)

    def store(self, key: bytes, value: bytes, ttl: int = 0, collection: str = "c1") -> None:
        """cache_store."""
        self.cache.store(collection.encode(), key, value, ttl)
        body = fields(collection.encode(), key, value, ttl)
        self.replicate(CACHE, CACHE_VERSION, CACHE_INSERT, body)

    def remove(self, key: bytes, collection: str = "c1") -> None:
        """cache_remove."""
        self.cache.remove(collection.encode(), key)
        self.replicate(CACHE, CACHE_VERSION, CACHE_REMOVE, fields(collection.encode(), key))

    def add_contact(self, aor: str, contact: str, call_id: str, *, lifetime: int = 3600) -> None:
        """Do what a REGISTER does."""
        expires = self._machine.unix_now + lifetime
        record = fields(DOMAIN, aor.encode(), 0, 1, b"")
        body = contact_fields(aor, contact, call_id, expires=expires)
        for kind, data in ((AOR_INSERT, record), (CONTACT_INSERT, body)):
            self.contacts.packet(kind, Reader(data))
            self.replicate(CONTACTS, CONTACTS_VERSION, kind, data)

    def delete_contact(self, aor: str, contact: str, call_id: str) -> None:
        """Do what a REGISTER with Expires 0 does."""
        keys = contact_keys(aor, contact, call_id)
        for kind, data in ((CONTACT_DELETE, keys), (AOR_DELETE, fields(DOMAIN, aor.encode()))):
            self.contacts.packet(kind, Reader(data))
            self.replicate(CONTACTS, CONTACTS_VERSION, kind, data)

    def activate_tag(self, name: str) -> None:
        """clusterer:shtag_set_active."""
        node_ids = [peer.node_id for peer in self.topology.peers]
        self.tags.activate(name, node_ids, "MI command")

    def send_command(self, node_id: int | None, name: str, *parameters: bytes) -> None:
        """clusterer:send_mi, or broadcast_mi when no node is given."""
        body = fields(name.encode(), len(parameters), *parameters)
        message = Message(EXTRA, MI_CMD, PLAIN_VERSION, body)
        if node_id is None:
            self._broadcast(message)
        else:
            self._route(message, node_id)

    def remove_node(self, node_id: int) -> None:
        """clusterer:remove_node: tell everybody, the removed one included, and forget it."""
        self._broadcast(Message(EXTRA, REMOVE_NODE, PLAIN_VERSION, fields(node_id)))
        self._forget(node_id)

    def set_status(self, is_enabled: bool, node_id: int | None = None) -> None:
        """clusterer:set_status, of this node or of how it sees another one."""
        if node_id is None or node_id == self.config.node_id:
            self._set_own_status(is_enabled)
            return
        peer = self.topology.peers.get(node_id)
        if peer is None or peer.is_enabled == is_enabled:
            return
        peer.is_enabled = is_enabled
        state = LinkState.RESTART_PINGING if is_enabled else LinkState.DOWN
        self.topology.set_state(peer, state)
        self.topology.tell_changes()

    def _set_own_status(self, is_enabled: bool) -> None:
        if self.topology.is_enabled == is_enabled:
            return
        self.topology.is_enabled = is_enabled
        state = LinkState.RESTART_PINGING if is_enabled else LinkState.DOWN
        for peer in self.topology.peers:
            self.topology.set_state(peer, state, quietly=True)
        self.topology.tell_changes()

    def _new_tag(self) -> str:
        letters = string.ascii_letters + string.digits
        random = "".join(self._rng.choice(letters) for _ in range(TAG_SIZE))
        return f"{self.config.cluster_id}-{self.config.node_id}-{random}"

    # --- sending

    def _trailed(self, message: Message, destination: int) -> bytes:
        trailer = fields(self.config.cluster_id, self.config.node_id, destination)
        return attrs.evolve(message, body=message.body + trailer).encoded()

    def _route(self, message: Message, destination: int) -> bool:
        peer = self.topology.peers.get(destination)
        if peer is None or not self.topology.is_enabled:
            return False
        return not peer.is_enabled or self._carry(peer, self._trailed(message, destination))

    def _carry(self, target: Peer, data: bytes) -> bool:
        """Send towards a node; try another way when a neighbour takes nothing more."""
        while (hop := self.topology.peers.next_hop(target)) is not None:
            if self.topology.send(hop, data):
                hop.link.last_sent = self._machine.now
                return True
        return False

    def _broadcast(self, message: Message) -> bool:
        targets = [peer for peer in self.topology.peers if peer.is_enabled]
        if not self.topology.is_enabled:
            return False
        sent = [self._carry(peer, self._trailed(message, peer.node_id)) for peer in targets]
        return any(sent)

    def replicate(self, name: str, version: int, kind: int, body: bytes) -> None:
        """Send a packet of a module to everybody, unless its capability is switched off."""
        if self.capabilities.own[name].is_enabled:
            self._broadcast(Message(name.encode(), kind, version, body))

    def _send_tag(self, name: str, node_id: int) -> bool:
        body = fields(name.encode())
        return self._route(Message(EXTRA, SHTAG_ACTIVE, PLAIN_VERSION, body), node_id)

    # --- receiving

    def _handle(self, connection: int, host: str, data: bytes) -> None:
        try:
            message = message_of(data)
            if message.capability == INTERNAL:
                self.topology.receive(connection, host, message)
            else:
                self._routed(host, message, data)
        except Refused:
            return  # a real node writes a line into its log

    def _routed(self, host: str, message: Message, data: bytes) -> None:
        reader = Reader(message.body[-TRAILER_SIZE:])
        cluster_id, source, destination = (reader.integer() for _ in range(3))
        body = message.body[:-TRAILER_SIZE]
        if source == self.config.node_id or cluster_id != self.config.cluster_id:
            return
        if not self.topology.is_enabled:
            return
        name = message.capability.decode("utf-8", "replace")
        if destination == BRIDGE_MARKER and message.capability != EXTRA:
            if self.config.takes_bridged:
                self.capabilities.module_packet(name, message.kind, body[:-4])
            return
        peer = self.topology.peers.get(source)
        if peer is None or not self.topology.peers.has_host(host):
            return
        peer.link.last_received = self._machine.now
        own = self.capabilities.own.get(name)
        if not peer.is_enabled or (
            message.capability != EXTRA and (own is None or not own.is_enabled)
        ):
            return
        if peer.link.state is LinkState.DOWN:
            peer.link.state = LinkState.RESTART_PINGING
        if destination != self.config.node_id:
            target = self.topology.peers.get(destination)
            if target is not None:
                self._carry(target, data)
        elif message.capability == EXTRA:
            self._extra(peer, message, Reader(body))
        else:
            self.capabilities.module_packet(name, message.kind, body)
        self.topology.tell_changes()

    def _extra(self, peer: Peer, message: Message, reader: Reader) -> None:
        match message.kind:
            case kind if kind == REMOVE_NODE:
                self._forget(reader.integer())
            case kind if kind == GENERIC_MSG:
                is_request, tag = reader.integer(), reader.string().decode("utf-8", "replace")
                self._generic(is_request, peer.node_id, tag, reader.string())
            case kind if kind == MI_CMD:
                self._command(reader)
            case kind if kind == SHTAG_ACTIVE:
                self.tags.active_elsewhere(reader.string().decode(), peer.node_id)
            case kind if kind == SYNC_REQ:
                self.capabilities.sync_wanted(peer, reader.string().decode())
            case kind if kind in (SYNC, SYNC_END):
                self.capabilities.sync_packet(kind, message.version, reader)

    def _generic(self, is_request: int, source: int, tag: str, text: bytes) -> None:
        name = REQUEST_RECEIVED if is_request else REPLY_RECEIVED
        self._raise(name, source, text, tag)
        if is_request:
            answer = self.script(source, text)
            if answer is not None:
                self.send_reply(source, answer, tag)

    def _command(self, reader: Reader) -> None:
        name = reader.string().decode("utf-8", "replace")
        count = reader.integer()
        if count <= PARAMETERS_MAX:
            self.commands.append(CommandRun(name, tuple(reader.string() for _ in range(count))))

    def _forget(self, node_id: int) -> None:
        if node_id == self.config.node_id:
            self._set_own_status(False)
            return
        peer = self.topology.peers.get(node_id)
        if peer is not None:
            self.topology.set_state(peer, LinkState.DOWN, quietly=True)
            self.topology.tell_changes()
            self.topology.peers.remove(peer)

    # --- events

    def _raise(self, name: str, source: int, text: bytes, tag: str = "") -> None:
        self.events.append(Raised(self._machine.now, name, source, text, tag))

    def _link_up(self, peer: Peer) -> None:
        self.capabilities.announce_to(peer, wants_reply=True)

    def _reached(self, peer: Peer, is_reachable: bool) -> None:
        if is_reachable:
            self.capabilities.reached(peer)
        self._raise(NODE_STATE_CHANGED, peer.node_id, b"1" if is_reachable else b"0")
        if is_reachable:
            self.tags.reached(peer.node_id)

    def _tag_changed(self, name: str, is_active: bool, reason: str) -> None:
        del reason
        self._raise(TAG_CHANGED, 0, b"active" if is_active else b"backup", name)
