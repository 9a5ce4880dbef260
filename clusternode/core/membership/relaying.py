"""Passing on what others say to each other. Spec: docs/protocol.md, section 13.

A relay decides nothing: the whole way is in every frame. It passes a frame on over an open
connection, with a bound on what may wait there, or says at once that it cannot.
"""

from __future__ import annotations

from clusternode.core.context import Context
from clusternode.core.membership.links import Link, Links
from clusternode.core.membership.members import Members
from clusternode.core.membership.ways import Way
from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import NoRoute, Records, Routed, Segment

CARRIED_MAX = 256
"""Ways over one of our links whose origins are told when it breaks; the oldest are forgotten."""
WANTED_MAX = 64
"""Members that others were refused a way to, and who, until there is one; the oldest likewise."""


class Relaying:
    """The relay in a node."""

    def __init__(self, context: Context, members: Members, links: Links) -> None:
        self._context = context
        self._members = members
        self._links = links
        self._node_id = context.settings.node_id
        # Who comes next → (origin, destination, relays) of what went there, the oldest first.
        self._carried: dict[NodeId, dict[tuple[NodeId, NodeId, Way], None]] = {}
        # Who was asked for → (who asked, with which incarnation), the oldest first.
        self._wanted: dict[NodeId, dict[NodeId, Incarnation]] = {}

    def pass_on_untrusted(self, link: Link, routed: Routed) -> str | None:
        """Pass a frame on that is not for us; returns what is wrong with it, if anything."""
        relays = routed.relays
        if self._node_id not in relays:
            return "Routed on a way that does not lead over us"
        index = relays.index(self._node_id)
        if link.node_id != (relays[index - 1] if index else routed.origin):
            return "Routed from one who is not before us on its way"
        following = relays[index + 1] if index + 1 < len(relays) else routed.destination
        onward = self._links.direct_to(following)
        is_last = following == routed.destination
        is_restarted = is_last and self._is_restarted(onward, routed.destination_incarnation)
        if onward is None or is_restarted or not self._context.settings.health.enable_rerouting:
            self._refuse(link, routed.origin, routed.destination, relays)
            if is_last and link.node_id == routed.origin:
                self._want(routed)
            return None
        self._remember(following, (routed.origin, routed.destination, relays))
        self._context.count("routed_frames_relayed")
        self._links.relay(onward, frame_of(routed), is_urgent=routed.type != Segment.TYPE)
        return None

    def _refuse(self, link: Link, origin: NodeId, destination: NodeId, relays: Way) -> None:
        """Say that we have no link there; and first, to an origin next to us, if it has left."""
        self._context.count("routed_frames_refused")
        row = self._members.rows.get(destination)
        if row is not None and row.record.left and link.node_id == origin:
            self._links.relay(link, frame_of(Records([row.record])), is_urgent=True)
        no_route = NoRoute(origin, destination, relays, self._node_id)
        self._links.relay(link, frame_of(no_route), is_urgent=True)

    @staticmethod
    def _is_restarted(link: Link | None, incarnation: Incarnation) -> bool:
        return link is not None and link.hello.incarnation > incarnation

    def _want(self, routed: Routed) -> None:
        """Keep in mind who asked for a member that is not there, or not the same any more."""
        wanted = routed.destination
        if wanted not in self._members.rows:
            return
        askers = self._wanted.pop(wanted, {})
        if len(self._wanted) >= WANTED_MAX:
            del self._wanted[next(iter(self._wanted))]
        self._wanted[wanted] = askers
        if len(askers) < CARRIED_MAX:
            askers[routed.origin] = routed.destination_incarnation
        self.known(wanted)

    def known(self, node_id: NodeId) -> None:
        """Tell those who have asked for a node in vain that it has restarted: here it is."""
        askers = self._wanted.get(node_id)
        link = None if askers is None else self._links.direct_to(node_id)
        if askers is None or link is None:
            return
        record = self._members.rows[node_id].record
        if record.version and record.incarnation == link.hello.incarnation:
            del self._wanted[node_id]
            for asker, incarnation in askers.items():
                back = self._links.direct_to(asker)
                if back is not None and self._is_restarted(link, incarnation):
                    self._links.relay(back, frame_of(Records([record])), is_urgent=True)

    def _remember(self, following: NodeId, carried: tuple[NodeId, NodeId, Way]) -> None:
        """Keep in mind whom to tell if the link breaks: perhaps this frame is not through yet."""
        others = self._carried.setdefault(following, {})
        if carried not in others:
            if len(others) >= CARRIED_MAX:
                del others[next(iter(others))]
            others[carried] = None

    def link_closed(self, node_id: NodeId) -> None:
        """The direct connection to a node has ended: tell those whose frames went over it."""
        for origin, destination, relays in self._carried.pop(node_id, {}):
            index = relays.index(self._node_id)
            back = self._links.direct_to(relays[index - 1] if index else origin)
            if back is not None:
                self._refuse(back, origin, destination, relays)

    def pass_back_untrusted(self, link: Link, no_route: NoRoute) -> str | None:
        """Pass a refusal on to its origin; returns what is wrong with it, if anything."""
        relays = no_route.relays
        if self._node_id not in relays:
            return "NoRoute on a way that does not lead over us"
        index = relays.index(self._node_id)
        if no_route.at not in relays[index + 1 :] or link.node_id != relays[index + 1]:
            return "NoRoute from one who is not behind us on its way"
        back = self._links.direct_to(relays[index - 1] if index else no_route.origin)
        if back is not None:
            self._links.relay(back, frame_of(no_route), is_urgent=True)
        return None
