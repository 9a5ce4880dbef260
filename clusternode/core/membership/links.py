"""Connections between nodes: which one is kept, when it is open, and what waits to be written.

Specified in docs/protocol.md, section 5. One connection per pair of nodes: after both HELLOs the
smaller node id decides and says so with `Resume`; the larger answers with its own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn, Protocol

import attrs

from clusternode.core.context import Context
from clusternode.core.effects import Disconnect, OutputReady, WriteEach
from clusternode.core.inputs import Connected, Measured
from clusternode.core.membership.members import Row
from clusternode.core.types import Address, ConnectionId, Incarnation, Instant, NodeId, Seconds
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.limits import KIB, MIB
from clusternode.core.wire.messages import Close, CloseReason, Frame, Hello, Resume, WireMessage

CONTROL_BYTES_MAX = 8 * MIB
"""Control frames that may wait for one peer: a whole table with tags and channels, twice."""
WRITE_BYTES_MIN = 16 * KIB
"""What one write takes on the narrowest link; less costs more turns than it saves waiting."""
WRITE_BYTES_FIRST = 64 * KIB
WRITE_BYTES_MAX = MIB
RELAYED_BYTES_MAX = 4 * MIB
"""Frames of others, and our own for others, that may wait to be passed on to one peer."""
RELAYED_CONTROL_BYTES_MAX = 256 * KIB
"""Their pings and acknowledgements are control frames, but never hold up our own for long."""
WAITING_LINKS_MAX = 4
"""Connections of one peer that may wait for a decision: two dials each way, crossing."""

PATIENCE: Final = ("patience",)
"""The key of the timer of connections that are to open."""


class Phase(enum.Enum):
    """How far a connection has come."""

    PROVING = "proving"
    """Held back while an older connection of the same node id is asked whether it lives."""
    WAITING = "waiting"
    """The peer decides; its Resume opens the connection."""
    RESUMING = "resuming"
    """We decided for it and sent Resume; the peer's Resume opens it."""
    OPEN = "open"


# Names of their own: to look a member of an enumeration up costs as much as a call.
_PROVING, _OPEN = Phase.PROVING, Phase.OPEN


class NoFrames(list[Frame]):
    """A queue that is always empty: idle connections, of which there may be thousands, share one.

    Who has something to put makes one first.
    """

    def append(self, frame: object, /) -> NoReturn:
        raise AssertionError(f"{frame!r}: nothing may be put here, see `NoFrames`")

    def insert(self, index: object, frame: object, /) -> NoReturn:
        self.append(frame)

    extend = __iadd__ = append


NO_FRAMES: Final = NoFrames()


@attrs.define(eq=False, kw_only=True)
class Outlet:
    """What waits to be written on one connection, and what its writer is known to do."""

    control: list[Frame] = NO_FRAMES
    """Frames without a position; written before all data."""
    control_bytes: int = 0
    relayed: list[Frame] = NO_FRAMES
    """Segments of tunnels, which take turns with our own data."""
    relayed_bytes: int = 0
    is_announced: bool = False
    """Whether OutputReady was given and WriteReady has not come yet."""
    is_writing: bool = False
    """Whether a Write was given whose end WriteReady will tell, and it has not come yet."""
    granted_at: Instant = 0.0
    """When that Write was given."""
    bytes_max: int = WRITE_BYTES_FIRST
    """How much one write takes at most: a ping waits behind it."""
    is_over: bool = False
    """Whether the connection has ended, and was forgotten."""

    def pace(self, now: Instant, patience: Seconds) -> None:
        """Let writes be as long as the link takes `patience` for, given the end of the last."""
        if self.is_writing:
            took = now - self.granted_at
            if took > patience:
                self.bytes_max = max(WRITE_BYTES_MIN, int(self.bytes_max * patience / took))
            elif took < patience / 2:
                self.bytes_max = min(2 * self.bytes_max, WRITE_BYTES_MAX)


@attrs.define(eq=False)
class Meeting(Outlet):
    """What is known of a connection from its HELLOs on, whether it ever opens or not.

    With its outlet in one object, as there may be thousands.
    """

    connection: ConnectionId
    node_id: NodeId
    hello: Hello
    dialed: Address | None
    remote: str
    connected_at: Instant
    phase: Phase
    held_resume: Resume | None = None
    """The peer's Resume, while an older connection still has to end or to prove itself."""
    close_reason: int | None = None
    """What the peer said in its Close."""

    @property
    def is_routed(self) -> bool:
        """Tell whether this is a tunnel through others; the core itself gives those numbers."""
        return self.connection < 0


@attrs.define(eq=False)
class Link(Meeting):
    """A connection, and what is found out on it once it is open."""

    row: Row | None = None
    """That of its node in the list of members, which stays there as long as the connection does."""
    exchanged_at: Instant | None = None
    """When the last digest exchange began."""
    round_trip: Seconds | None = None
    """How long its last pong took; before that, the handshake."""
    is_settled: bool = False
    """Whether digests can be compared: the peer has our record, or will have it with its answer to
    the ping that we are answering."""


@attrs.define(eq=False)
class GroupLinks:
    """Connections of a group, all idle when it was asked together, to be asked so again."""

    node_ids: Sequence[NodeId]
    connections: list[ConnectionId]
    links: list[Link]

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing waits to be written on any of them now."""
        for link in self.links:  # noqa: SIM110  # any() would cost as much again
            if link.is_announced or link.is_writing:
                return False
        return True


class StreamsOfLinks(Protocol):
    """What membership needs to know of messaging."""

    def resume_of(self, node_id: NodeId, hello: Hello) -> Resume: ...
    def doubts(
        self, node_id: NodeId, hello: Hello, resume: Resume, connected_at: Instant
    ) -> bool: ...
    def resumed_untrusted(self, node_id: NodeId, resume: Resume, now: Instant) -> bool: ...
    def disconnected(self, node_id: NodeId, now: Instant, *, blames_frame: bool) -> None: ...
    def gone(self, node_id: NodeId, now: Instant) -> None: ...
    def disabled(self, node_id: NodeId) -> None: ...
    def position_mark(self, node_id: NodeId) -> int: ...
    def position_marks(self, node_ids: Sequence[NodeId]) -> list[int]: ...
    def renumbered(self, incarnation: Incarnation) -> None: ...


class Carrier(Protocol):
    """Who writes and closes the connections that are tunnels."""

    def ready(self, connection: ConnectionId) -> None: ...
    def closed(self, connection: ConnectionId, close: Close | None) -> None: ...
    def measure(self, connection: ConnectionId) -> Measured: ...


class Links:
    """All connections of one node, by connection and, once open, by node."""

    carrier: Carrier

    def __init__(self, context: Context) -> None:
        self._context = context
        self.by_connection: dict[ConnectionId, Link] = {}  # for others to read
        self._open: dict[NodeId, Link] = {}
        self._by_node: dict[NodeId, tuple[Link, ...]] = {}  # node → its connections, oldest first
        self._asked: tuple[list[ConnectionId], list[Link]] = ([], [])  # by the last `WriteEach`
        self._of_groups: dict[NodeId, GroupLinks] = {}  # by the first node of the group
        self._patience: dict[ConnectionId, Instant] = {}  # until when, of those that are to open

    def __iter__(self) -> Iterator[Link]:
        return iter(self._open.values())

    def every(self) -> list[Link]:
        """Return all connections, open or not."""
        return list(self.by_connection.values())

    def tunnels(self) -> list[Link]:
        """Return the open connections that are tunnels."""
        if min(self.by_connection, default=0) >= 0:  # nearly always
            return []
        return [link for link in self._open.values() if link.is_routed]

    def get(self, connection: ConnectionId) -> Link | None:
        return self.by_connection.get(connection)

    def open_to(self, node_id: NodeId) -> Link | None:
        return self._open.get(node_id)

    def direct_to(self, node_id: NodeId) -> Link | None:
        """Return the open connection to a node, unless it is a tunnel."""
        link = self._open.get(node_id)
        return None if link is None or link.is_routed else link

    def is_open_to(self, node_id: NodeId) -> bool:
        return node_id in self._open

    def at(self, connections: Sequence[ConnectionId]) -> list[Link]:
        """Return what there still is of some connections; quick for those last asked together."""
        asked, links = self._asked
        if connections == asked:
            return links
        return [link for link in map(self.by_connection.get, connections) if link is not None]

    @property
    def are_all_open(self) -> bool:
        """Tell whether every connection is the open one of its node."""
        return len(self.by_connection) == len(self._open)

    def of(self, node_id: NodeId) -> tuple[Link, ...]:
        """Return all connections of a node, oldest first."""
        return self._by_node.get(node_id, ())

    def proving(self, node_id: NodeId) -> list[Link]:
        """Return the connections of a node that wait until an older one has proved itself."""
        links = self._by_node.get(node_id, ())
        if len(links) <= 1:  # nearly always
            return []
        return [link for link in links if link.phase is _PROVING]

    # --- life -----------------------------------------------------------------------------------

    def add(self, connected: Connected, now: Instant) -> Link:
        """Take up a connection; it is held back until somebody decides about it."""
        hello = connected.hello
        link = Link(
            connected.connection,
            hello.node_id,
            hello,
            connected.dialed,
            connected.remote,
            now,
            _PROVING,
        )
        self.by_connection[connected.connection] = link
        self._by_node[hello.node_id] = (*self._by_node.get(hello.node_id, ()), link)
        self.give_time(link, now)
        return link

    def give_time(self, link: Link, now: Instant) -> None:
        """Give a connection that is not open its full time from now on."""
        until = now + self._context.settings.discovery.handshake_timeout
        self._patience.pop(link.connection, None)
        self._patience[link.connection] = until  # and so the last of all
        if PATIENCE not in self._context.timers:
            self._context.timers.set(PATIENCE, until)

    def overdue(self, now: Instant) -> list[Link]:
        """Return the connections whose time is over, and set the timer for the next ones.

        Nearly all of them have opened meanwhile, and cost no timer each.
        """
        overdue: list[Link] = []
        for connection, until in self._patience.items():
            if until > now:
                self._context.timers.set(PATIENCE, until)
                break
            overdue.append(self.by_connection[connection])
        for link in overdue:
            del self._patience[link.connection]
        return overdue

    def stays(self, link: Link, rival: Link) -> bool:
        """Tell whether a connection is kept, and not its rival; both ends decide alike.

        A direct one stays before a tunnel. Of two made less than `handshake_timeout` apart the
        one stays that the smaller id dialled, else the newer one. One of another incarnation is
        no rival: it is proved or replaced.
        """
        if link.hello.incarnation != rival.hello.incarnation:
            return True
        if link.is_routed != rival.is_routed:
            return rival.is_routed
        window = self._context.settings.discovery.handshake_timeout
        is_close = abs(link.connected_at - rival.connected_at) < window
        is_other_way = (link.dialed is None) != (rival.dialed is None)
        if is_close and is_other_way:
            return (link.dialed is not None) == (self._context.settings.node_id < link.node_id)
        return link.connected_at >= rival.connected_at

    def opened(self, link: Link) -> None:
        """Make a connection the open one of its node; the caller has closed any other."""
        self._patience.pop(link.connection, None)
        link.phase = _OPEN
        self._open[link.node_id] = link

    def close(
        self, link: Link, reason: CloseReason | None, detail: str = "", value: int = 0
    ) -> None:
        """End a connection and forget it; with no reason nothing is said to the peer."""
        self.lost(link)
        close = None if reason is None else Close(int(reason), detail, value)
        if link.is_routed:
            self.carrier.closed(link.connection, close)
        else:
            self._context.effects.append(Disconnect(link.connection, close))

    def lost(self, link: Link) -> None:
        """Forget a connection."""
        del self.by_connection[link.connection]
        self._asked = ([], [])
        self._of_groups.clear()
        link.is_over = True
        links = self._by_node.pop(link.node_id)
        if len(links) > 1:
            self._by_node[link.node_id] = tuple(one for one in links if one is not link)
        self._patience.pop(link.connection, None)
        if self._open.get(link.node_id) is link:
            del self._open[link.node_id]

    # --- writing --------------------------------------------------------------------------------

    def send(self, link: Link, message: WireMessage) -> None:
        """Queue a message without a position; it overtakes all data."""
        self.send_frame(link, frame_of(message))

    def send_frame(self, link: Link, frame: Frame) -> None:
        """Queue the frame of a message without a position.

        A peer that asks without reading the answers gets no more of them (`CONTROL_BYTES_MAX`).
        """
        size = frame.size_bytes
        if link.control_bytes + size > CONTROL_BYTES_MAX:
            self._context.count("control_frames_dropped")
            return
        if link.control is NO_FRAMES:
            link.control = [frame]
        else:
            link.control.append(frame)
        link.control_bytes += size
        if not link.is_announced and not link.is_writing:
            link.is_announced = True
            if link.connection < 0:
                self.carrier.ready(link.connection)
            else:
                self._context.effects.append(OutputReady(link.connection))

    def send_each(self, node_ids: Sequence[NodeId], frame: Frame) -> list[NodeId]:
        """Send one ping to many nodes; returns those without an open connection.

        Where nothing waits to be written it takes no turn of the writer.

        Args:
            node_ids: Who is asked. Where that is the same list as before, and all of them were
                idle then, none is looked up.
            frame: The ping.
        """
        group = self._of_groups.get(node_ids[0])
        if group is not None and group.node_ids is node_ids and group.is_idle:
            self._asked = (group.connections, group.links)
            self._context.effects.append(WriteEach(group.connections, frame))
            return []
        opened = self._open
        idle: list[ConnectionId] = []
        links: list[Link] = []
        unlinked: list[NodeId] = []
        for node_id in node_ids:
            link = opened.get(node_id)
            if link is None:
                unlinked.append(node_id)
                continue
            if link.is_announced or link.is_writing or link.connection < 0:
                self.send_frame(link, frame)
            else:
                idle.append(link.connection)
                links.append(link)
        if idle:
            self._asked = (idle, links)
            self._context.effects.append(WriteEach(idle, frame))
            if len(idle) == len(node_ids) > 1:
                self._of_groups[node_ids[0]] = GroupLinks(node_ids, idle, links)
        return unlinked

    def relay(self, link: Link, frame: Frame, *, is_urgent: bool) -> None:
        """Queue what is to be passed on: behind our own control frames, beside our own data."""
        size = frame.size_bytes
        if is_urgent and link.control_bytes + size <= RELAYED_CONTROL_BYTES_MAX:
            if link.control is NO_FRAMES:
                link.control = []
            link.control.append(frame)
            link.control_bytes += size
        elif not is_urgent and link.relayed_bytes + size <= RELAYED_BYTES_MAX:
            if link.relayed is NO_FRAMES:
                link.relayed = []
            link.relayed.append(frame)
            link.relayed_bytes += size
        else:
            self._context.count("routed_frames_dropped")
            return
        self.announce(link)

    @staticmethod
    def take_relayed(link: Link, bytes_max: int) -> tuple[list[Frame], int]:
        """Return what is to be passed on in one write, and its size: at least one frame."""
        taken = count = 0
        for frame in link.relayed:
            if taken >= bytes_max:
                break
            taken += frame.size_bytes
            count += 1
        frames, link.relayed = link.relayed[:count], link.relayed[count:]
        link.relayed_bytes -= taken
        return frames, taken

    @staticmethod
    def take(link: Link, bytes_max: int) -> tuple[list[Frame], int]:
        """Return the control frames for one write, and their size."""
        frames = link.control
        if link.control_bytes <= bytes_max:
            taken = link.control_bytes
            link.control, link.control_bytes = NO_FRAMES, 0
            return frames, taken
        count = taken = 0
        while taken < bytes_max:
            taken += frames[count].size_bytes
            count += 1
        link.control, link.control_bytes = frames[count:], link.control_bytes - taken
        return frames[:count], taken

    def announce(self, link: Link) -> None:
        """Say that something waits to be written, unless that is known already."""
        if not link.is_announced and not link.is_writing:
            link.is_announced = True
            if link.is_routed:
                self.carrier.ready(link.connection)
            else:
                self._context.effects.append(OutputReady(link.connection))
