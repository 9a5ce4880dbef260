"""Capabilities of one simulated OpenSIPS, who announces which, and how their data are synced.

With the holes of the original: a donor that falls silent before its first packet is waited for
without end, and a capability switched off and on is announced as synced when it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import attrs

from clusternode.core.types import Instant, Seconds
from clusternode.simulation.opensips.links import NEVER
from clusternode.simulation.opensips.peers import Peer, RemoteCapability
from clusternode.simulation.opensips.topology import Config, Kind, Topology
from clusternode.simulation.opensips.transport import Machine
from clusternode.simulation.opensips.wire import (
    EXTRA,
    LENGTH_SIZE,
    SYNC_VERSION,
    Message,
    Reader,
    Refused,
    fields,
)

SYNC_REQ, SYNC, SYNC_END = 10, 11, 12
CHUNK_MARKER: Final = 101010101
SYNC_PACKET_SIZE: Final = 32768
CHECK_INTERVAL: Final[Seconds] = 0.5


class Module(Protocol):
    """A module that replicates something."""

    @property
    def name(self) -> str: ...
    @property
    def data_version(self) -> int: ...
    def packet(self, kind: int, reader: Reader) -> None: ...
    def chunks(self) -> list[bytes]: ...
    def chunk(self, reader: Reader) -> None: ...


@attrs.define
class Capability:
    """One of our own."""

    module: Module
    is_synced: bool
    is_enabled: bool = True
    is_pending: bool = False
    """Whether a donor is wanted."""
    is_syncing: bool = False
    wanted_since: Instant = NEVER
    last_packet: Instant = NEVER
    chunks_announced: int = 0
    chunks_taken: int = 0
    buffered: list[tuple[int, bytes]] = attrs.Factory(list)
    """Type and body of what came during the sync."""
    falls_silent: bool = False
    """For tests: take a SYNC_REQ and never answer it."""


class Capabilities:
    """All capabilities of the cluster, as this node knows them."""

    def __init__(
        self,
        config: Config,
        machine: Machine,
        topology: Topology,
        route: Callable[[Message, int], bool],
    ) -> None:
        self.own: dict[str, Capability] = {}
        self._config = config
        self._machine = machine
        self._topology = topology
        self._route = route
        self.next_check: Instant = machine.now + CHECK_INTERVAL

    def register(self, module: Module, *, wants_sync: bool) -> None:
        self.own[module.name] = Capability(module, is_synced=not wants_sync)
        if wants_sync:
            self.request(module.name)

    # --- announcing

    def announce_to(self, peer: Peer, *, wants_reply: bool) -> None:
        """Tell one neighbour all that we know; nothing when nobody has any."""
        lists = []
        if self.own:
            own = [(name, capability.is_synced) for name, capability in self.own.items()]
            lists.append((self._config.node_id, own))
        for other in self._topology.peers:
            if other is not peer and other.capabilities:
                known = [(n, c.is_synced) for n, c in reversed(list(other.capabilities.items()))]
                lists.append((other.node_id, known))
        if lists:
            self._originate(lists, wants_reply=wants_reply, targets=[peer])

    def _announce(self, name: str, *, is_synced: bool) -> None:
        lists = [(self._config.node_id, [(name, is_synced)])]
        if targets := self._topology.up():
            self._originate(lists, wants_reply=False, targets=targets)

    def _originate(
        self,
        lists: list[tuple[int, list[tuple[str, bool]]]],
        *,
        wants_reply: bool,
        targets: list[Peer],
    ) -> None:
        number = self._topology.next_number(Kind.CAP_UPDATE)
        body = fields(number, self._machine.unix_now, len(lists))
        for node_id, states in lists:
            body += fields(node_id, len(states))
            for name, is_synced in states:
                body += fields(name.encode(), int(is_synced))
        self._topology.originate(Kind.CAP_UPDATE, body + fields(int(wants_reply)), targets)

    def received(self, peer: Peer, message: Message, reader: Reader) -> None:
        """Take a CAP_UPDATE."""
        number, timestamp = reader.integer(), reader.integer()
        if not peer.announced.accepts(number, timestamp):
            return
        peer.announced.take(number, timestamp)
        for _ in range(reader.integer()):
            node_id = reader.integer()
            about = self._topology.peers.get(node_id)
            if about is None and node_id != self._config.node_id:
                return
            for _ in range(reader.integer()):
                name, state = reader.string().decode(), reader.integer()
                if about is not None:
                    self._learn(about, name, state)
        wants_reply = reader.integer()
        path = reader.integers()
        if wants_reply:
            self.announce_to(peer, wants_reply=False)
        body = message.body[: -4 * (len(path) + 2)] + fields(0)
        self._topology.flood(message, body, path)

    def _learn(self, peer: Peer, name: str, state: int) -> None:
        known = peer.capabilities.setdefault(name, RemoteCapability())
        if state in (0, 1):
            known.is_synced = bool(state)
        own = self.own.get(name)
        if state == 1 and own is not None and own.is_pending:
            own.is_pending = not self._ask(name, peer.node_id)

    # --- receiving data

    def request(self, name: str) -> None:
        """Want all data of a capability anew, as `MODULE:cluster_sync` does."""
        own = self.own[name]
        if own.is_pending or own.is_syncing or not own.is_enabled:
            return
        own.chunks_announced = own.chunks_taken = 0
        if own.is_synced:
            own.is_synced = False
            self._announce(name, is_synced=False)
        for peer in self._topology.peers:
            known = peer.capabilities.get(name)
            if known is not None and known.is_synced and self._topology.peers.next_hop(peer):
                if self._ask(name, peer.node_id):
                    return
                break
        own.is_pending = True
        own.wanted_since = self._machine.now

    def _ask(self, name: str, donor: int) -> bool:
        return self._route(Message(EXTRA, SYNC_REQ, SYNC_VERSION, fields(name.encode())), donor)

    def sync_packet(self, kind: int, version: int, reader: Reader) -> None:
        """Take SYNC or SYNC_END."""
        own = self.own.get(reader.string().decode())
        if version != SYNC_VERSION or own is None or not own.is_enabled:
            return
        if kind == SYNC_END:
            own.chunks_announced = reader.integer()
            if own.chunks_taken == own.chunks_announced:
                self._finished(own)
            return
        if not own.is_synced:
            own.is_syncing = True
        own.last_packet = self._machine.now
        data_version = reader.integer()
        while not reader.is_empty and data_version == own.module.data_version:
            size, marker = reader.integer(), reader.integer()
            if marker != CHUNK_MARKER:
                raise Refused(f"chunk marker {marker}")
            own.module.chunk(Reader(reader.raw(size)))
            own.chunks_taken += 1
        if own.chunks_announced and own.chunks_taken == own.chunks_announced:
            self._finished(own)

    def _finished(self, own: Capability) -> None:
        self._replay(own)
        own.is_synced = True
        self._announce(own.module.name, is_synced=True)

    def _replay(self, own: Capability) -> None:
        own.is_syncing = False
        buffered, own.buffered = own.buffered, []
        for kind, body in buffered:
            own.module.packet(kind, Reader(body))

    def module_packet(self, name: str, kind: int, body: bytes) -> None:
        """Take a packet of a module, or keep it until the sync is over."""
        own = self.own.get(name)
        if own is None:
            return
        if own.is_syncing:
            own.buffered.append((kind, body))
        else:
            own.module.packet(kind, Reader(body))

    # --- giving data

    def sync_wanted(self, peer: Peer, name: str) -> None:
        """Answer a SYNC_REQ now, or when the node can be reached."""
        own = self.own.get(name)
        if own is None or not own.is_enabled or own.falls_silent:
            return
        if self._topology.peers.next_hop(peer) is not None:
            self._donate(own, peer.node_id)
        elif name in peer.capabilities:
            peer.capabilities[name].is_sync_owed = True

    def _donate(self, own: Capability, target: int) -> None:
        name = own.module.name.encode()
        head = fields(name, own.module.data_version)
        shell = LENGTH_SIZE + 2 + 2 + len(EXTRA) + 4
        bodies: list[bytes] = []
        chunks = own.module.chunks()
        last_size = 0
        for chunk in chunks:
            if not bodies or shell + len(bodies[-1]) + last_size > SYNC_PACKET_SIZE:
                bodies.append(head)
            bodies[-1] += fields(len(chunk), CHUNK_MARKER) + chunk
            last_size = len(chunk)
        for body in bodies:
            self._route(Message(EXTRA, SYNC, SYNC_VERSION, body), target)
        end = Message(EXTRA, SYNC_END, SYNC_VERSION, fields(name, len(chunks)))
        self._route(end, target)

    # --- what else happens

    def reached(self, peer: Peer) -> None:
        """A node has become reachable: ask it, and give it, what was put off."""
        for name, known in peer.capabilities.items():
            own = self.own.get(name)
            if known.is_sync_owed and own is not None:
                known.is_sync_owed = False
                self._donate(own, peer.node_id)
            if own is not None and own.is_pending and known.is_synced:
                own.is_pending = not self._ask(name, peer.node_id)

    def set_enabled(self, name: str, is_enabled: bool) -> None:
        """`clusterer:set_cap_status`: what is announced need not be true."""
        own = self.own[name]
        if own.is_enabled == is_enabled:
            return
        own.is_enabled = is_enabled
        if not is_enabled:
            own.is_synced = False
        self._announce(name, is_synced=is_enabled)

    def check(self) -> None:
        """Let seeds fall back, and syncs time out."""
        now, timing = self._machine.now, self._config.timing
        if now < self.next_check:
            return
        self.next_check = max(self.next_check + CHECK_INTERVAL, now)
        if not self._topology.is_enabled:
            return
        for name, own in self.own.items():
            if own.is_synced or not own.is_enabled:
                continue
            waited = now - own.wanted_since
            if own.is_pending and self._config.is_seed and waited >= timing.seed_fallback_interval:
                own.is_pending = False
                own.is_synced = True
                self._announce(name, is_synced=True)
            elif own.is_syncing and now - own.last_packet >= timing.sync_timeout:
                self._replay(own)
