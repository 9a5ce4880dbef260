"""Our connections to the other nodes, and what goes over each.

A frame for a node goes over the connection that we have opened to its url, or over one that it has
opened from there. It is opened when there is something to say, and stays.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from clusternode.core.types import Instant
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
    is_open: bool = True
    """False while we dial it."""
    urgent: deque[int] = attrs.Factory(deque)
    """The sizes of the urgent frames that are not written."""
    urgent_bytes: int = 0
    last_frames: int | None = None
    """Of a connection that is closed when so many frames have been written."""


@attrs.define(eq=False)
class _Way:
    """How one node is reached."""

    node: Node
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

    def connected(self, number: int) -> None:
        connection = self._connections.get(number)
        if connection is not None:
            connection.is_open = True

    def closed(self, number: int) -> bool:
        """Forget a connection; tell whether something of ours was lost with it."""
        connection = self._connections.pop(number, None)
        if connection is None:
            return False
        is_lossy = bool(connection.urgent)
        way = self._ways.get(connection.node_id or 0)
        if way is not None and way.connection is connection:
            way.connection = None
            is_lossy = is_lossy or way.lane.unwritten > 0
            way.lane.lost()
            if not connection.is_open:
                way.lane.give_up()
        return is_lossy

    def drop(self, node_id: int) -> None:
        """Close the connection to a node that is removed or disabled; what waits ends as 480."""
        way = self._ways.pop(node_id, None)
        if way is None:
            return
        if way.connection is not None:
            # The last that it hears may be that it was removed.
            way.connection.last_frames = len(way.connection.urgent) + way.lane.unwritten
            self._close_when_done(way.connection)
        way.lane.lost()
        way.lane.give_up()

    def _close_when_done(self, connection: Connection) -> None:
        if connection.last_frames is not None and connection.last_frames <= 0:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        del self._connections[connection.number]
        self._effects.append(effects.Close(connection.number))

    # --- sending --------------------------------------------------------------------------------

    def send_urgent(self, now: Instant, node: Node, frame: bytes) -> None:
        """Send what must not wait behind data."""
        connection = self._connected(self._way(now, node))
        if connection is None:
            self._failed(node.node_id)
        else:
            self.answer(connection, frame)

    def answer(self, connection: Connection, frame: bytes) -> None:
        """Send something urgent over a connection."""
        connection.urgent.append(len(frame))
        connection.urgent_bytes += len(frame)
        if connection.urgent_bytes > URGENT_BYTES_MAX:
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
        self._advance(now, way)
        return True

    def written(self, now: Instant, number: int, urgent: int, data: int) -> None:
        """Take note that so many frames of each kind have gone to the kernel, in their order."""
        connection = self._connections.get(number)
        if connection is None:
            return
        for _ in range(min(urgent, len(connection.urgent))):
            connection.urgent_bytes -= connection.urgent.popleft()
        if connection.last_frames is not None:
            connection.last_frames -= urgent + data
            self._close_when_done(connection)
            return
        way = self._ways.get(connection.node_id or 0)
        if data and way is not None and way.connection is connection:
            way.lane.written(data)
            self._advance(now, way)

    def next_deadline(self) -> Instant | None:
        deadlines = [way.lane.next_at() for way in self._ways.values()]
        return min((each for each in deadlines if each is not None), default=None)

    def tick(self, now: Instant) -> None:
        """Send what has waited for its turn."""
        for way in list(self._ways.values()):
            self._advance(now, way)

    def _way(self, now: Instant, node: Node) -> _Way:
        way = self._ways.get(node.node_id)
        if way is None:
            way = self._ways[node.node_id] = _Way(node, Lane(self._pace, self._room, now))
        return way

    def _connected(self, way: _Way) -> Connection | None:
        """Return the connection to a node; dial where there is none yet."""
        node = way.node
        if way.connection is None and node.addresses:
            number = next(self._numbers)
            host, port = node.addresses[0], node.url.port
            way.connection = Connection(
                number, host, port, node.node_id, is_ours=True, is_open=False
            )
            self._connections[number] = way.connection
            self._effects.append(effects.Dial(number, host, port, node.url.is_tls))
        return way.connection

    def _advance(self, now: Instant, way: _Way) -> None:
        if way.lane.next_at() is None:
            return
        connection = self._connected(way)
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
