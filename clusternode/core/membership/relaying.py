"""Passing on what others say to each other. Spec: docs/protocol.md, section 13.

A relay decides nothing: the whole way is in every frame. It passes a frame on over an open
connection, with a bound on what may wait there, or says at once that it cannot.
"""

from __future__ import annotations

from clusternode.core.context import Context
from clusternode.core.membership.links import Link, Links
from clusternode.core.membership.ways import Way
from clusternode.core.types import NodeId
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import NoRoute, Routed, Segment

CARRIED_MAX = 256
"""Ways over one of our links whose origins are told when it breaks; the oldest are forgotten."""


class Relaying:
    """The relay in a node."""

    def __init__(self, context: Context, links: Links) -> None:
        self._context = context
        self._links = links
        self._node_id = context.settings.node_id
        # Who comes next → (origin, destination, relays) of what went there, the oldest first.
        self._carried: dict[NodeId, dict[tuple[NodeId, NodeId, Way], None]] = {}

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
        if onward is None or not self._context.settings.health.enable_rerouting:
            self._refuse(link, routed.origin, routed.destination, relays)
            return None
        self._remember(following, (routed.origin, routed.destination, relays))
        self._context.count("routed_frames_relayed")
        self._links.relay(onward, frame_of(routed), is_urgent=routed.type != Segment.TYPE)
        return None

    def _refuse(self, link: Link, origin: NodeId, destination: NodeId, relays: Way) -> None:
        self._context.count("routed_frames_refused")
        no_route = NoRoute(origin, destination, relays, self._node_id)
        self._links.relay(link, frame_of(no_route), is_urgent=True)

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
