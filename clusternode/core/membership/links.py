"""Connections between nodes: which one is kept, when it is open, and what waits to be written.

Specified in docs/protocol.md, section 5. One connection per pair of nodes: after both HELLOs the
smaller node id decides and says so with `Resume`; the larger answers with its own.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator

import attrs

from clusternode.core.context import Context
from clusternode.core.effects import Disconnect, OutputReady
from clusternode.core.types import Address, ConnectionId, Instant, NodeId
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Close, CloseReason, Frame, Hello, WireMessage

CONTROL_FRAMES_MAX = 4096
"""Control frames that may wait for one peer: a table of 800 000 records, or as many pongs."""
WAITING_LINKS_MAX = 4
"""Connections of one peer that may wait for a decision: two dials each way, crossing."""


class Phase(enum.Enum):
    """How far a connection has come."""

    PROVING = "proving"
    """Held back while an older connection of the same node id is asked whether it lives."""
    WAITING = "waiting"
    """The peer decides; its Resume opens the connection."""
    RESUMING = "resuming"
    """We decided for it and sent Resume; the peer's Resume opens it."""
    OPEN = "open"


@attrs.define(eq=False)
class Link:
    """One connection whose HELLOs are exchanged."""

    connection: ConnectionId
    node_id: NodeId
    hello: Hello
    dialed: Address | None
    remote: str
    connected_at: Instant
    phase: Phase
    control: deque[Frame] = attrs.Factory(deque)
    """Frames without a position; written before all data."""
    is_announced: bool = False
    """Whether OutputReady was given and WriteReady has not come yet."""
    is_writing: bool = False
    """Whether a Write with frames was given and the next WriteReady has not come yet."""
    progress_at: Instant = 0.0
    """When the writer last took something or was done with it."""


class Links:
    """All connections of one node, by connection and, once open, by node."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._by_connection: dict[ConnectionId, Link] = {}
        self._open: dict[NodeId, Link] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(self._open.values())

    def get(self, connection: ConnectionId) -> Link | None:
        return self._by_connection.get(connection)

    def open_to(self, node_id: NodeId) -> Link | None:
        return self._open.get(node_id)

    def is_open_to(self, node_id: NodeId) -> bool:
        return node_id in self._open

    def others_of(self, node_id: NodeId) -> list[Link]:
        """Return the connections of a node that are not open, oldest first."""
        return [
            link
            for link in self._by_connection.values()
            if link.node_id == node_id and link.phase is not Phase.OPEN
        ]

    # --- life -----------------------------------------------------------------------------------

    def add(self, link: Link) -> None:
        self._by_connection[link.connection] = link
        link.progress_at = link.connected_at
        timeout = self._context.settings.discovery.handshake_timeout
        self._context.timers.set(("link", link.connection), link.connected_at + timeout)

    def decide(self, candidate: Link, now: Instant) -> Link:
        """Choose between a connection and those there are, and return the one to keep.

        Of two made less than `handshake_timeout` apart the one that we dialled stays, else the
        newer one replaces the older.
        """
        rivals = [
            link
            for link in self._by_connection.values()
            if link.node_id == candidate.node_id
            and link is not candidate
            and link.phase in (Phase.OPEN, Phase.RESUMING)
        ]
        window = self._context.settings.discovery.handshake_timeout
        for rival in rivals:
            is_close = now - rival.connected_at < window
            if is_close and rival.dialed is not None and candidate.dialed is None:
                return rival
        return candidate

    def opened(self, link: Link) -> None:
        """Make a connection the open one of its node; any other is closed."""
        self._context.timers.cancel(("link", link.connection))
        for rival in list(self._by_connection.values()):
            if rival.node_id == link.node_id and rival is not link and rival.phase is Phase.OPEN:
                self.close(rival, CloseReason.DUPLICATE_CONNECTION)
        link.phase = Phase.OPEN
        self._open[link.node_id] = link

    def close(
        self, link: Link, reason: CloseReason | None, detail: str = "", value: int = 0
    ) -> None:
        """End a connection and forget it; with no reason nothing is said to the peer."""
        self.lost(link)
        close = None if reason is None else Close(int(reason), detail, value)
        self._context.effects.append(Disconnect(link.connection, close))

    def lost(self, link: Link) -> None:
        """Forget a connection."""
        del self._by_connection[link.connection]
        self._context.timers.cancel(("link", link.connection))
        if self._open.get(link.node_id) is link:
            del self._open[link.node_id]

    # --- writing --------------------------------------------------------------------------------

    def send(self, link: Link, message: WireMessage) -> None:
        """Queue a message without a position; it overtakes all data.

        A peer that asks without reading the answers gets no more of them (`CONTROL_FRAMES_MAX`).
        """
        if len(link.control) >= CONTROL_FRAMES_MAX:
            self._context.count("control_frames_dropped")
            return
        link.control.append(frame_of(message))
        self.announce(link)

    def announce(self, link: Link) -> None:
        """Say that something waits to be written, unless that is known already."""
        if not link.is_announced and not link.is_writing:
            link.is_announced = True
            self._context.effects.append(OutputReady(link.connection))
