"""Our connections to the other nodes, and what goes over each.

A frame for a node goes over the connection that we have opened to its url, or over one that it has
opened from there. It is opened when there is something to say, and stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from clusternode.core.types import Instant, ResultCode
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.pacing import Lane, OnEnd, Room
from clusternode.gateways.opensips.topology import Node

URGENT_BYTES_MAX: Final = 1024 * 1024
"""Urgent frames that one connection has not written; one that is slower than that is closed."""


@attrs.define(eq=False)
class Connection:
    """One connection, by whomever it was opened."""

    number: int
    host: str
    port: int
    node_id: int | None = None
    """The node at the other end: whose url we dialled, or who has pinged from there."""
    is_ours: bool = False
    urgent: list[int] = attrs.Factory(list)
    """The sizes of the urgent frames that are not written."""


@attrs.define(eq=False)
class _Way:
    """How one node is reached."""

    lane: Lane
    connection: Connection | None = None


Failed = Callable[[int], None]
"""Takes the node to which something could not be sent."""


class Outbox:
    """Sends frames to neighbours, and tells how data ended."""

    def __init__(self, pace: int, effects_: list[Effect], failed: Failed) -> None:
        self.sent = 0
        self._pace = pace
        self._effects = effects_
        self._failed = failed
        self._room = Room()
        self._numbers = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        self._ways: dict[int, _Way] = {}  # node id → way

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._connections.values())

    def get(self, number: int) -> Connection | None:
        return self._connections.get(number)

    def connection_to(self, node_id: int) -> Connection | None:
        way = self._ways.get(node_id)
        return None if way is None else way.connection

    def waiting_bytes(self, node_id: int) -> int:
        way = self._ways.get(node_id)
        return 0 if way is None else way.lane.waiting_bytes

    # --- connections ----------------------------------------------------------------------------

    def accepted(self, number: int, host: str, port: int) -> None:
        """Take a connection that somebody has opened."""
        self._connections[number] = Connection(number, host, port)

    def bind(self, connection: Connection, node: Node) -> None:
        """Take note of who is at the other end; one that comes from its url serves for answers."""
        if connection.is_ours or connection.node_id == node.node_id:
            return
        connection.node_id = node.node_id
        way = self._ways.get(node.node_id)
        is_url = connection.port == node.url.port and connection.host in node.addresses
        if is_url and way is not None and way.connection is None:
            way.connection = connection

    def closed(self, number: int) -> tuple[Connection | None, bool]:
        """Forget a connection; return it, and whether something of ours was lost with it."""
        connection = self._connections.pop(number, None)
        if connection is None:
            return None, False
        is_lossy = bool(connection.urgent)
        way = self._ways.get(connection.node_id or 0)
        if way is not None and way.connection is connection:
            way.connection = None
            is_lossy = is_lossy or way.lane.has_unwritten
            way.lane.lost()
        return connection, is_lossy

    def drop(self, node_id: int) -> None:
        """Close the connection to a node that is removed or disabled; what waits ends as 480."""
        way = self._ways.pop(node_id, None)
        if way is None:
            return
        if way.connection is not None:
            self._close(way.connection)
        way.lane.lost()
        way.lane.give_up()

    def _close(self, connection: Connection) -> None:
        del self._connections[connection.number]
        self._effects.append(effects.Close(connection.number))

    def close_all(self) -> None:
        """Close every connection."""
        for node_id in list(self._ways):
            self.drop(node_id)
        for connection in list(self._connections.values()):
            self._close(connection)

    # --- sending --------------------------------------------------------------------------------

    def send_urgent(self, now: Instant, node: Node, frame: bytes) -> None:
        """Send what must not wait behind data."""
        connection = self._connected(self._way(now, node), node)
        if connection is None:
            self._failed(node.node_id)
        else:
            self.answer(connection, frame)

    def answer(self, connection: Connection, frame: bytes) -> None:
        """Send something urgent over a connection."""
        connection.urgent.append(len(frame))
        if sum(connection.urgent) > URGENT_BYTES_MAX:
            self.lose(connection)
            return
        self.sent += 1
        self._effects.append(effects.Send(connection.number, frame, is_urgent=True))

    def lose(self, connection: Connection) -> None:
        """Close a connection whose other end does not read."""
        self._effects.append(effects.Close(connection.number))
        self.closed(connection.number)
        if connection.node_id is not None and connection.is_ours:
            self._failed(connection.node_id)

    def send_data(self, now: Instant, node: Node, frame: bytes, on_end: OnEnd | None) -> bool:
        """Send at the pace of the node; False when there is no room."""
        way = self._way(now, node)
        if not way.lane.put(frame, on_end):
            return False
        self._advance(now, way, node)
        return True

    def _way(self, now: Instant, node: Node) -> _Way:
        way = self._ways.get(node.node_id)
        if way is None:
            way = self._ways[node.node_id] = _Way(Lane(self._pace, self._room, now))
        return way

    def _connected(self, way: _Way, node: Node) -> Connection | None:
        """Return the connection to a node; dial where there is none yet."""
        if way.connection is None and node.addresses:
            number = next(self._numbers)
            host, port = node.addresses[0], node.url.port
            way.connection = Connection(number, host, port, node.node_id, is_ours=True)
            self._connections[number] = way.connection
            self._effects.append(effects.Dial(number, host, port, node.url.is_tls))
        return way.connection

    def _advance(self, now: Instant, way: _Way, node: Node) -> None:
        if way.lane.next_at(now) is None:
            return
        connection = self._connected(way, node)
        if connection is None:
            way.lane.give_up()
            return
        for frame in way.lane.take(now):
            self.sent += 1
            self._effects.append(effects.Send(connection.number, frame, is_urgent=False))

    def give_up(self, node_id: int) -> None:
        """Let what waits for a node end as 480."""
        way = self._ways.get(node_id)
        if way is not None:
            way.lane.give_up()
