"""Links and floods of one simulated OpenSIPS: the messages of `clusterer-internal`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs

from clusternode.core.types import Instant
from clusternode.simulation.opensips.links import LinkState, Timing
from clusternode.simulation.opensips.peers import (
    NODES_MAX,
    Description,
    Peer,
    Peers,
    read_description,
)
from clusternode.simulation.opensips.transport import Machine, Quirks, Transport
from clusternode.simulation.opensips.wire import (
    INTERNAL,
    PLAIN_VERSION,
    Message,
    Reader,
    Refused,
    counted,
    fields,
)

PATH_MAX: Final = 25
"""A flooded message with a longer path goes no further."""
LINK_UP: Final = 0
LINK_DOWN: Final = 1


class Kind(enum.IntEnum):
    """The types of topology messages."""

    PING = 0
    PONG = 1
    LS_UPDATE = 2
    FULL_TOP_UPDATE = 3
    UNKNOWN_ID = 4
    NODE_DESCRIPTION = 5
    CAP_UPDATE = 9


@attrs.frozen(kw_only=True)
class Config:
    """What the configuration file of a node says."""

    node_id: int
    description: Description
    cluster_id: int = 1
    neighbours: tuple[tuple[int, Description], ...] = ()
    """neighbor_node_info: id and description of the nodes that it begins with."""
    timing: Timing = attrs.Factory(Timing)
    quirks: Quirks = attrs.Factory(Quirks)
    is_seed: bool = False
    reroutes: bool = True
    takes_bridged: bool = False
    """Whether a packet with the bridge marker is taken from anybody, as 4.0 does."""


@attrs.define
class Hooks:
    """Who else wants to know; each gets the neighbour that it is about."""

    link_up: Callable[[Peer], None]
    """A link has come up, and the topology was sent."""
    reached: Callable[[Peer, bool], None]
    """A node became reachable, or no longer is."""
    capabilities: Callable[[Peer, Message, Reader], None]
    """A CAP_UPDATE, behind the sender's id."""


@attrs.frozen
class Entry:
    """One node of a FULL_TOP_UPDATE."""

    node_id: int
    description: Description | None
    sequence: int
    timestamp: int
    neighbours: list[int]


class Topology:
    """Keeps the links up, and what is known of everybody's links."""

    def __init__(self, config: Config, machine: Machine, transport: Transport) -> None:
        self.peers = Peers(
            config.node_id,
            reroutes=config.reroutes,
            takes_any_zero=config.quirks.takes_any_zero,
        )
        self.is_enabled = True
        self.hooks: Hooks
        self._config = config
        self._machine = machine
        self._transport = transport
        self._numbers = {Kind.LS_UPDATE: -1, Kind.FULL_TOP_UPDATE: -1, Kind.CAP_UPDATE: -1}
        for node_id, description in config.neighbours:
            self.peers.add(node_id, description)
        self.next_tick: Instant = machine.now

    # --- sending

    def next_number(self, kind: Kind) -> int:
        """Count a message of ours; the first one is 0."""
        self._numbers[kind] += 1
        return self._numbers[kind]

    def internal(self, kind: Kind, body: bytes = b"") -> bytes:
        head = fields(self._config.cluster_id, self._config.node_id)
        return Message(INTERNAL, kind, PLAIN_VERSION, head + body).encoded()

    def originate(self, kind: Kind, body: bytes, targets: list[Peer]) -> None:
        """Send a message that others pass on, with us as the beginning of its path."""
        data = self.internal(kind, body + counted([self._config.node_id]))
        for target in targets:
            self.send(target, data)

    def send(self, target: Peer, data: bytes) -> bool:
        """Send to a neighbour; a failure ends the link."""
        if self._transport.send(target.address, data):
            return True
        self.set_state(target, LinkState.RESTART_PINGING)
        return False

    def up(self) -> list[Peer]:
        """Return our neighbours, the newest link first."""
        found = (self.peers.get(node_id) for node_id in self.peers.neighbours)
        return [peer for peer in found if peer is not None]

    def flood(self, message: Message, body: bytes, path: list[int]) -> None:
        """Pass a message on, less its old path, to all neighbours that are not in it."""
        if len(path) > PATH_MAX:
            return
        altered = attrs.evolve(message, body=body + counted([*path, self._config.node_id]))
        for peer in self.up():
            if peer.node_id not in path:
                self.send(peer, altered.encoded())

    def _ping(self, peer: Peer, wants_nodes: bool) -> bool:
        data = self.internal(Kind.PING, fields(int(wants_nodes)))
        peer.link.last_ping_went_out = self._transport.send(peer.address, data)
        peer.link.last_ping = self._machine.now
        return peer.link.last_ping_went_out

    # --- the timer

    def tick(self) -> None:
        """Look at every link, if the timer has come round."""
        now, timing = self._machine.now, self._config.timing
        if now < self.next_tick:
            return
        self.next_tick = max(self.next_tick + timing.tick, now)
        if not self.is_enabled:
            return
        for peer in self.peers:
            if peer.is_enabled:
                ping = partial(self._ping, peer)
                state = peer.link.tick(now, timing, peer.description.retries, ping)
                self.set_state(peer, state)
        self.tell_changes()

    # --- links

    def set_state(self, peer: Peer, state: LinkState, *, quietly: bool = False) -> None:
        """Change a link that is not up afterwards; whoever is told hears that it went down."""
        was_up = peer.link.is_up
        peer.link.state = state
        if not was_up or state is LinkState.UP:
            return
        if peer.node_id in self.peers.neighbours:
            self.peers.neighbours.remove(peer.node_id)
        if not quietly:
            self._tell_link(peer, LINK_DOWN)

    def _tell_link(self, peer: Peer, state: int) -> None:
        targets = [other for other in self.up() if other is not peer]
        if targets:
            number = self.next_number(Kind.LS_UPDATE)
            body = fields(number, self._machine.unix_now, peer.node_id, state)
            self.originate(Kind.LS_UPDATE, body, targets)

    def _link_came_up(self, peer: Peer, known_there: list[int]) -> None:
        peer.link.state = LinkState.UP
        self.peers.neighbours.insert(0, peer.node_id)
        self._tell_link(peer, LINK_UP)
        self._send_topology(peer, known_there)
        self.hooks.link_up(peer)

    def _send_topology(self, target: Peer, known_there: list[int]) -> None:
        number = self.next_number(Kind.FULL_TOP_UPDATE)
        body = fields(number, self._machine.unix_now, len(self.peers))
        body += fields(self._config.node_id, 0, self._numbers[Kind.LS_UPDATE], 0)
        body += counted(self.peers.neighbours)
        for peer in self.peers:
            if peer is target:
                continue
            if peer.node_id in known_there:
                body += fields(peer.node_id, 0)
            else:
                body += fields(peer.node_id, 1) + peer.description.encoded()
            body += fields(peer.links.number, peer.links.timestamp) + counted(peer.neighbours)
        self.originate(Kind.FULL_TOP_UPDATE, body, [target])

    def tell_changes(self) -> None:
        """Raise the events of nodes that became reachable or no longer are."""
        for peer in self.peers:
            is_reachable = self.peers.next_hop(peer) is not None
            if is_reachable != peer.was_reachable:
                peer.was_reachable = is_reachable
                self.hooks.reached(peer, is_reachable)

    # --- receiving

    def receive(self, connection: int, host: str, message: Message) -> None:
        """Handle a topology message that came from `host`.

        Raises:
            Refused: It cannot be read.
        """
        reader = Reader(message.body)
        cluster_id, source = reader.integer(), reader.integer()
        if source == self._config.node_id or cluster_id != self._config.cluster_id:
            return
        if not self.is_enabled:
            return
        peer = self.peers.get(source)
        if peer is None:
            self._from_stranger(connection, message, source, reader)
        elif self.peers.has_host(host):
            if message.kind != Kind.PONG:
                peer.link.last_received = self._machine.now
            if peer.is_enabled:
                self._from_peer(peer, message, reader)
                self.tell_changes()

    def _from_stranger(
        self, connection: int, message: Message, source: int, reader: Reader
    ) -> None:
        if message.kind == Kind.PING:
            self._transport.answer(connection, self.internal(Kind.UNKNOWN_ID))
        elif message.kind == Kind.NODE_DESCRIPTION:
            self.peers.add(source, read_description(reader))
            self._pass_on(message, reader)

    def _from_peer(self, peer: Peer, message: Message, reader: Reader) -> None:
        match message.kind:
            case Kind.PING:
                self._answer_ping(peer, reader)
            case Kind.PONG:
                known_there = reader.integers()
                if len(known_there) <= NODES_MAX and peer.link.pong(
                    self._machine.now, self._config.timing
                ):
                    self._link_came_up(peer, known_there)
            case Kind.LS_UPDATE:
                self._link_update(peer, message, reader)
            case Kind.FULL_TOP_UPDATE:
                self._full_topology(peer, message, reader)
            case Kind.UNKNOWN_ID:
                body = self._config.description.encoded()
                self.originate(Kind.NODE_DESCRIPTION, body, [peer])
                self.set_state(peer, LinkState.RESTART_PINGING)
            case Kind.CAP_UPDATE:
                self.hooks.capabilities(peer, message, reader)

    def _answer_ping(self, peer: Peer, reader: Reader) -> None:
        ids = [other.node_id for other in self.peers if other is not peer]
        pong = counted(ids if reader.integer() else [])
        went_out = self._transport.send(peer.address, self.internal(Kind.PONG, pong))
        if peer.link.state is LinkState.DOWN and went_out:
            state = peer.link.probe(peer.description.retries, partial(self._ping, peer))
            self.set_state(peer, state)
        elif not went_out and peer.link.state in (LinkState.UP, LinkState.DOWN):
            self.set_state(peer, LinkState.RESTART_PINGING)

    def _pass_on(self, message: Message, reader: Reader) -> None:
        """Flood a message that was read up to its path."""
        path = reader.integers()
        self.flood(message, message.body[: -4 * (len(path) + 1)], path)

    def _link_update(self, peer: Peer, message: Message, reader: Reader) -> None:
        number, timestamp = reader.integer(), reader.integer()
        if not peer.links.accepts(number, timestamp):
            return
        peer.links.take(number, timestamp)
        neighbour, state = reader.integer(), reader.integer()
        if neighbour == self._config.node_id:
            changed_from = LinkState.DOWN if state == LINK_UP else LinkState.UP
            if peer.link.state is changed_from:
                self.set_state(peer, LinkState.RESTART_PINGING)
        elif self.peers.get(neighbour) is None:
            return
        elif state == LINK_UP:
            _join(peer, neighbour)
        elif neighbour in peer.neighbours:
            peer.neighbours.remove(neighbour)
        self._pass_on(message, reader)

    def _full_topology(self, peer: Peer, message: Message, reader: Reader) -> None:
        number, timestamp = reader.integer(), reader.integer()
        if not peer.topology.accepts(number, timestamp):
            return
        peer.topology.take(number, timestamp)
        entries = _read_entries(reader)
        described = {entry.node_id: entry.description for entry in entries}
        for position, entry in enumerate(entries):
            node = self._known_or_described(entry.node_id, described)
            if node is None:
                continue
            if position and not node.links.accepts(entry.sequence, entry.timestamp):
                continue
            node.links.take(entry.sequence, entry.timestamp)
            self._replace_neighbours(node, entry.neighbours, described, peer.node_id)
        self._pass_on(message, reader)

    def _known_or_described(
        self, node_id: int, described: dict[int, Description | None]
    ) -> Peer | None:
        description = described.get(node_id)
        peer = self.peers.get(node_id)
        if peer is None and description is not None and node_id != self._config.node_id:
            peer = self.peers.add(node_id, description)
        return peer

    def _replace_neighbours(
        self,
        node: Peer,
        neighbours: list[int],
        described: dict[int, Description | None],
        author: int,
    ) -> None:
        present = []
        for node_id in neighbours:
            if node_id == self._config.node_id:
                if node.link.state is LinkState.DOWN and node.is_enabled:
                    node.link.state = LinkState.RESTART_PINGING
            elif self._known_or_described(node_id, described) is not None:
                _join(node, node_id)
                present.append(node_id)
        # The author lists no links with itself in the lists of others.
        node.neighbours = [
            node_id for node_id in node.neighbours if node_id in present or node_id == author
        ]


def _join(peer: Peer, neighbour: int) -> None:
    if neighbour not in peer.neighbours:
        peer.neighbours.insert(0, neighbour)


def _read_entries(reader: Reader) -> list[Entry]:
    count = reader.integer()
    if not 0 <= count <= NODES_MAX:
        raise Refused(f"{count} nodes")
    entries = []
    for _ in range(count):
        node_id = reader.integer()
        description = read_description(reader) if reader.integer() else None
        sequence, timestamp = reader.integer(), reader.integer()
        neighbours = reader.integers()
        if len(neighbours) > NODES_MAX:
            raise Refused(f"{len(neighbours)} neighbours")
        entries.append(Entry(node_id, description, sequence, timestamp, neighbours))
    return entries
