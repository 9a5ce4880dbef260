"""Tunnels: connections to members without a direct link. Spec: docs/protocol.md, section 13.

To the rest of the node a tunnel is a connection like any other, with HELLO, Resume and all that
follows; only its bytes travel in `Routed`, and it ends when a direct one opens. So everything that
is promised across connections holds across changes of the path too.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from clusternode.core.context import Context
from clusternode.core.inputs import Connected, Measured
from clusternode.core.membership.links import Link, Links
from clusternode.core.membership.membership import Membership
from clusternode.core.types import ConnectionId, Incarnation, Instant, NodeId
from clusternode.core.wire.codec import encode, encoded_of
from clusternode.core.wire.messages import Close, Frame, Hello, Segment, WireMessage
from clusternode.core.wire.session import Session
from clusternode.core.wire.tunnel import Tunnel
from clusternode.errors import RemoteProtocolError

RESEND_DIVISOR = 2
"""An acknowledgement is waited for this part of `ping_timeout` before segments are sent again."""

RESENDS_MAX = 5
"""What was sent so often in a row for nothing belongs to a tunnel that the other end has not got,
although it answers pings over others; another one is begun then."""


@attrs.define(eq=False)
class End:
    """Our end of one tunnel."""

    connection: ConnectionId
    node_id: NodeId
    incarnation: Incarnation
    """The peer's."""
    tunnel: Tunnel
    session: Session
    begun_at: Instant
    is_connected: bool = False
    """Whether both HELLOs are exchanged, and the node knows the connection."""


class Owner(Protocol):
    """What goes into tunnels, and what comes out of them."""

    def hello(self) -> Hello: ...
    def take(self, link: Link, bytes_max: int) -> tuple[list[Frame], bool]: ...
    def frames(self, link: Link, messages: list[WireMessage], now: Instant) -> None: ...


class Tunnels:
    """All tunnels of one node: at most one for each member."""

    def __init__(
        self, context: Context, links: Links, membership: Membership, owner: Owner
    ) -> None:
        self._context = context
        self._links = links
        self._membership = membership
        self._rerouting = membership.rerouting
        self._owner = owner
        self._ends: dict[ConnectionId, End] = {}
        self._by_node: dict[NodeId, End] = {}
        self.dirty: dict[ConnectionId, None] = {}  # those that may have something to send
        self._made = 0
        links.carrier = self._rerouting.tunnels = self

    # --- life -----------------------------------------------------------------------------------

    def dial(self, node_id: NodeId, now: Instant) -> None:
        """Begin a tunnel to a member, unless there is one."""
        if node_id not in self._by_node:
            end = self._begin(node_id, self._made + 1, Session.dial(self._owner.hello()), now)
            end.tunnel.write(end.session.data_to_send())

    def _begin(self, node_id: NodeId, number: int, session: Session, now: Instant) -> End:
        self._made += 1
        incarnation = self._membership.members.rows[node_id].record.incarnation
        resend_delay = self._context.settings.health.ping_timeout / RESEND_DIVISOR
        tunnel = Tunnel(number, resend_delay)
        connection = ConnectionId(-self._made)
        end = End(connection, node_id, incarnation, tunnel, session, now)
        self._ends[connection] = self._by_node[node_id] = end
        self.dirty[connection] = None
        self._context.count("tunnels_opened")
        return end

    def _hello_for(self, cluster: str) -> Hello | None:
        return self._owner.hello() if cluster == self._context.settings.cluster else None

    def _forget(self, end: End) -> None:
        del self._ends[end.connection]
        del self._by_node[end.node_id]
        self.dirty.pop(end.connection, None)
        self._context.timers.cancel(("tunnel", end.connection))

    def _lost(self, end: End, detail: str, now: Instant) -> None:
        """A tunnel has ended, and the node does not know yet."""
        self._forget(end)
        link = self._links.get(end.connection)
        if link is not None:
            self._membership.disconnected(link, detail, now, misbehaved=False)

    def closed(self, connection: ConnectionId, close: Close | None) -> None:
        """The node has given a tunnel up: tell the other end, as far as it can be told now."""
        end = self._ends.get(connection)
        if end is None:
            return
        self._forget(end)
        if close is not None:
            end.tunnel.write(encode(close))
        for segment in end.tunnel.segments():
            self._rerouting.send_segment(end.node_id, segment)
        self._end_there(end.node_id, end.tunnel.number, end.tunnel.received)

    def _end_there(self, node_id: NodeId, number: int, received: int) -> None:
        segment = Segment(number, received, 0, b"", ends=True)
        self._rerouting.send_segment(node_id, segment)

    # --- what comes in --------------------------------------------------------------------------

    def segment_untrusted(self, node_id: NodeId, segment: Segment, now: Instant) -> None:
        """Take a segment of a member; one of a new tunnel begins it here too."""
        end = self._end_for(node_id, segment, now)
        if end is None:
            if not segment.ends:
                self._end_there(node_id, segment.number, 0)
            return
        if segment.ends:
            self._lost(end, "the other side has ended the tunnel", now)
            return
        taken = end.tunnel.receive_untrusted(segment)
        if taken is None:
            self._lost(end, "an acknowledgement of what was never sent", now)
            return
        data, is_progress = taken
        self.dirty[end.connection] = None
        if is_progress:
            self._context.timers.cancel(("tunnel", end.connection))
        if data:
            self._feed(end, data, now)

    def _end_for(self, node_id: NodeId, segment: Segment, now: Instant) -> End | None:
        """Return our end of the tunnel that a segment belongs to; the smaller id begins tunnels."""
        end = self._by_node.get(node_id)
        incarnation = self._membership.members.rows[node_id].record.incarnation
        if end is not None:
            if end.incarnation == incarnation and end.tunnel.number == segment.number:
                return end
            if end.incarnation == incarnation and segment.number < end.tunnel.number:
                return None
        if node_id > self._context.settings.node_id or segment.offset or not segment.data:
            return None
        if end is not None:
            self._lost(end, "a new tunnel takes its place", now)
        return self._begin(node_id, segment.number, Session.listen(self._hello_for), now)

    def _feed(self, end: End, data: bytes, now: Instant) -> None:
        session = end.session
        problem = ""
        try:
            messages = session.receive_data_untrusted(data)
        except RemoteProtocolError as error:
            messages, problem = session.salvaged, str(error)
        outgoing = session.data_to_send()
        if outgoing:
            end.tunnel.write(outgoing)
        if session.peer is not None and not end.is_connected:
            peer = session.peer
            if (peer.node_id, peer.incarnation) != (end.node_id, end.incarnation):
                problem = "a HELLO of somebody else"
            else:
                end.is_connected = True
                self._membership.opening.connected(Connected(end.connection, peer, None, ""), now)
        link = self._links.get(end.connection)
        if link is not None and messages:
            self._owner.frames(link, messages, now)
        if problem or session.peer_close is not None:
            link = self._links.get(end.connection)
            if link is not None:
                self._membership.misbehaved(link, problem, now)
            elif end.connection in self._ends:
                self._context.count("tunnels_refused")
                self._lost(end, problem, now)

    # --- what goes out --------------------------------------------------------------------------

    def ready(self, connection: ConnectionId) -> None:
        """Something waits to be written."""
        self.dirty[connection] = None

    def measure(self, connection: ConnectionId) -> Measured:
        """Tell how far the bytes of a tunnel have come."""
        tunnel = self._ends[connection].tunnel
        return Measured(connection, tunnel.acknowledged, tunnel.waiting_bytes, tunnel.received)

    def rerouted(self, node_id: NodeId, now: Instant) -> None:
        """There is another way to a member: send again what may be lost on the old one."""
        end = self._by_node.get(node_id)
        if end is not None:
            end.tunnel.go_back()
            self._context.timers.cancel(("tunnel", end.connection))
            self.dirty[end.connection] = None

    def flush(self, now: Instant) -> None:
        """Send what can be sent, at the end of a step."""
        while self.dirty:
            connection = next(iter(self.dirty))
            del self.dirty[connection]
            end = self._ends.get(connection)
            if end is not None:
                self._fill(end, now)
                for segment in end.tunnel.segments():
                    self._rerouting.send_segment(end.node_id, segment)
                self._wait(end, now)

    def _fill(self, end: End, now: Instant) -> None:
        link = self._links.get(end.connection)
        if link is None:
            return
        tunnel = end.tunnel
        has_more = True
        while has_more and tunnel.room > 0:
            frames, has_more = self._owner.take(link, tunnel.room)
            if not frames:
                break
            tunnel.write(b"".join([encoded_of(frame) for frame in frames]))
        link.is_announced = False
        link.is_writing = tunnel.room <= 0

    def _wait(self, end: End, now: Instant) -> None:
        key = ("tunnel", end.connection)
        if not end.tunnel.waiting_bytes and end.is_connected:
            self._context.timers.cancel(key)
        elif key not in self._context.timers:
            self._context.timers.set(key, now + end.tunnel.resend_delay)

    def due(self, connection: ConnectionId, now: Instant) -> None:
        """Nothing was acknowledged in time: send it again, and look for other ways."""
        end = self._ends.get(connection)
        if end is None:
            return
        timeout = self._context.settings.discovery.handshake_timeout
        if not end.is_connected and now - end.begun_at >= timeout:
            self._end_there(end.node_id, end.tunnel.number, end.tunnel.received)
            self._lost(end, "no HELLO in time", now)
            return
        if end.tunnel.resends >= RESENDS_MAX:
            self._end_there(end.node_id, end.tunnel.number, end.tunnel.received)
            self._lost(end, "nothing is taken at its other end", now)
            return
        self.dirty[connection] = None
        if end.tunnel.waiting_bytes:
            self._context.count("tunnel_resends")
            end.tunnel.timed_out()
            self._rerouting.doubt(end.node_id, now)
