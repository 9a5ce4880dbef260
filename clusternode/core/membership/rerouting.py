"""Reaching members through others where a link is broken. Spec: docs/protocol.md, section 13.

A way is found by asking: pings go over several ways at once, and the best of those over which the
answer comes back is used. So no table that is old or wrong can lead anything astray, and status
stays what it is everywhere: reachability, by our own pings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from clusternode.core.context import Context
from clusternode.core.events import LinkChanged
from clusternode.core.membership.asking import TURNS, Asking, Direct, Path
from clusternode.core.membership.health import Health
from clusternode.core.membership.identity import Identity
from clusternode.core.membership.keepalive import Keepalive
from clusternode.core.membership.links import Link, Links
from clusternode.core.membership.members import Members, Row
from clusternode.core.membership.relaying import Relaying
from clusternode.core.membership.ways import Way, shown
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.core.wire.codec import decode_untrusted, frame_of, payload_of
from clusternode.core.wire.limits import DOWN_MAX
from clusternode.core.wire.messages import NoRoute, Ping, Pong, Record, Routed, Segment
from clusternode.errors import RemoteProtocolError

GRACE_DIVISOR = 4
"""A direct connection whose peer answers over another way has this part of `ping_timeout` more."""


class Owner(Protocol):
    """What follows from what the other ways say."""

    def ping_failed(self, node_id: NodeId, now: Instant) -> None: ...
    def proved(self, node_id: NodeId, now: Instant) -> None: ...
    def verify(self, node_id: NodeId, now: Instant) -> None: ...
    def abandon_link(self, link: Link, now: Instant) -> None: ...
    @property
    def identity(self) -> Identity: ...


class Carriage(Protocol):
    """The tunnels: connections over ways."""

    def dial(self, node_id: NodeId, now: Instant) -> None: ...
    def rerouted(self, node_id: NodeId, now: Instant) -> None: ...
    def segment_untrusted(self, node_id: NodeId, segment: Segment, now: Instant) -> None: ...


class Rerouting:
    """Finds, uses and gives up ways to members without a direct link."""

    tunnels: Carriage

    def __init__(
        self,
        context: Context,
        members: Members,
        links: Links,
        keepalive: Keepalive,
        publish: Callable[[Record], None],
        owner: Owner,
    ) -> None:
        self._context = context
        self._members = members
        self._links = links
        self._keepalive = keepalive
        self._publish = publish
        self._owner = owner
        self._relaying = Relaying(context, members, links)
        self._asking = Asking(context, members, links, keepalive, self._send, owner.verify)
        self._over: dict[NodeId, dict[NodeId, None]] = {}  # first relay → members reached over it
        self._published_at: Instant | None = None

    @property
    def _is_enabled(self) -> bool:
        return self._context.settings.health.enable_rerouting

    @property
    def _paths(self) -> dict[NodeId, Path]:
        """Looked up where it lives: a node that is restored from a recording has new ones."""
        return self._asking.paths

    @property
    def _found(self) -> dict[NodeId, Way]:
        """As `_paths`."""
        return self._asking.found

    def way_to(self, node_id: NodeId) -> Way:
        """Return the relays to a member; empty where no way is known, or none is needed."""
        path = self._paths.get(node_id)
        return () if path is None else path.way

    # --- what we say of our links -------------------------------------------------------------

    def _links_changed(self, now: Instant) -> None:
        """Say soon, and at most once per ping interval, which links of ours are down.

        In a small cluster at once: it shows others whom not to ask.
        """
        timeout = self._context.settings.health.ping_timeout
        self._look_at(now + (timeout if self._asking.is_large else 0.0))

    def _look_at(self, at: Instant) -> None:
        """Publish then, or sooner, what is to be said, but not too soon after the last time."""
        if self._published_at is not None:
            at = max(at, self._published_at + self._context.settings.health.ping_interval)
        due = self._context.timers.deadline_of(("down",))
        if due is None or at < due:
            self._context.timers.set(("down",), at)

    @property
    def _patience(self) -> Seconds:
        """How long a member is reached through others before we say so.

        In a large cluster until it has been dialled since, from both sides: after a cut of many
        links the dials end nearly all ways, and what is said of them goes to everyone, twice.
        """
        if not self._asking.is_large:
            return 0.0
        settings = self._context.settings
        return settings.discovery.redial_max + settings.health.ping_timeout

    def publish_down(self, now: Instant) -> None:
        """Name in our record the members that we reach through others only."""
        patience = self._patience
        since = {
            node_id: self._paths[node_id].found_at + patience
            for node_id in self._found
            if self._members.is_active(node_id) and self._links.direct_to(node_id) is None
        }
        down = tuple(sorted(node_id for node_id, at in since.items() if at <= now))[:DOWN_MAX]
        own = self._members.own
        if down != own.down and not own.left:
            self._published_at = now
            self._publish(self._members.change_own(down=down))
        later = min((at for at in since.values() if at > now), default=None)
        if later is not None:
            self._look_at(later)

    # --- links ----------------------------------------------------------------------------------

    def link_opened(self, link: Link, now: Instant) -> None:
        """A connection is open; a direct one makes every way to its node superfluous."""
        if not link.is_routed:
            self._asking.ways.opened(link.node_id)
            path = self._asking.paths.get(link.node_id)
            if path is not None:
                if path.told:
                    self._tell(link.node_id, path, ())
                self.forget(link.node_id)
            if path is not None or self._members.own.down:
                self._links_changed(now)
            if not self._asking.is_large:
                self._asking.more_for_others(link.node_id, now)

    def link_closed(self, link: Link, now: Instant) -> None:
        """An open connection has ended: look for other ways for what went over it."""
        if link.is_routed:
            return
        node_id = link.node_id
        self._asking.ways.closed(node_id)
        self._relaying.link_closed(node_id)
        lost = self._over.pop(node_id, {})
        for other in lost:  # all of them first: none is asked for over what is broken
            self._leave(other, self._paths[other])
        for other in lost:
            self._way_lost(other, now)
        if not self._asking.is_large:
            self._asking.lost_with(node_id)
        path, number = self._paths.get(node_id), self._keepalive.number_of(node_id)
        if path is not None and path.number == number and path.answered:
            self._answered(node_id, number, now)  # it was only this connection that was waited for

    def learned(self, node_id: NodeId, now: Instant) -> None:
        """A record has changed: perhaps the priority in it, or it is of a new life."""
        self._asking.ways.changed(node_id)
        self._relaying.known(node_id)
        row, path = self._members.rows[node_id], self._asking.paths.get(node_id)
        if path is None or row.is_linked or path.incarnation >= row.record.incarnation:
            return
        path.incarnation = row.record.incarnation
        pause: Seconds = self._context.settings.health.ping_timeout / GRACE_DIVISOR
        if path.renewed_at is None or now - path.renewed_at >= pause:
            path.renewed_at = now
            path.begin()
            self.doubt(node_id, now)

    def _tell(self, node_id: NodeId, path: Path, way: Way) -> None:
        """Tell the observers how a member is reached, if that is news."""
        if path.told != way:
            path.told = way
            self._context.emit(LinkChanged(self._context.settings.cluster, node_id, shown(way)))

    @property
    def is_large(self) -> bool:
        """Tell whether the cluster is too large for asking everybody for everybody."""
        return self._asking.is_large

    def is_asked(self, node_id: NodeId) -> bool:
        """Tell whether the open ping of a member went over others, or has been to."""
        path = self._paths.get(node_id)
        return path is not None and path.number == self._keepalive.number_of(node_id)

    @property
    def has_paths(self) -> bool:
        """Tell whether any member is asked for, or reached, over others."""
        return bool(self._asking.paths)

    def forget(self, node_id: NodeId) -> None:
        """There is a direct link to a member now, or it is none any more."""
        path = self._paths.pop(node_id, None)
        if path is not None:
            self._leave(node_id, path)

    def _leave(self, node_id: NodeId, path: Path) -> None:
        if path.way:
            over = self._over.get(path.way[0])
            if over is not None:
                over.pop(node_id, None)
            path.way = ()
            del self._found[node_id]

    # --- asking ---------------------------------------------------------------------------------

    def ask(self, node_id: NodeId, now: Instant) -> bool:
        """Send the open ping of a member over other ways; tells whether one is waited for."""
        if not self._is_enabled:
            return False
        return self._asking.more(node_id, self._asking.path_of_ping(node_id), now)

    def saves(self, node_id: NodeId, now: Instant, *, is_refused: bool = False) -> bool:
        """Tell whether a ping that the direct way has failed is still to be waited for.

        Args:
            node_id: The member.
            now: The present.
            is_refused: Whether it is certain, and not only late, that nobody is there.
        """
        if is_refused and self.is_large and not self.is_asked(node_id):
            self.ask(node_id, now)  # which has waited for the dial
        number = self._keepalive.number_of(node_id)
        path = self._paths.get(node_id)
        if path is not None and path.number == number:
            path.direct = max(path.direct, Direct.REFUSED if is_refused else Direct.SILENT)
            link = self._links.direct_to(node_id)
            if path.answered and link is not None:
                self._give_up_direct(link, now)
                return True
            if is_refused:
                path.refused_in = path.turns
                return bool(path.asked or path.answered)
        return self._is_enabled and self._asking.take_turn(node_id, now)

    def lagged(self) -> None:
        """This node stood still: the open pings have all their time again, over others too."""
        self._asking.lagged()

    def call(self, node_id: NodeId | None, now: Instant) -> None:
        """Ask one other for somebody who was removed, and of whom we know an address only.

        Nobody pings it, and if it has removed us too, it does not ping us. Whichever of both hears
        such a ping begins a tunnel, or answers one.
        """
        row = None if node_id is None else self._members.rows.get(node_id)
        if self._is_enabled and row is not None and row.health is Health.REMOVED:
            target = row.record.node_id
            way = self._asking.one_for_removed(target, now)
            if way and self._links.direct_to(target) is None:
                self._context.count("pings_rerouted")
                self._send(target, way, Ping(0, self._members.digest))

    def failed(self, node_id: NodeId, now: Instant) -> None:
        """No way has answered a ping of a member that is not active any more."""
        path = self._paths.get(node_id)
        if path is not None:
            self._asking.silent(node_id, path, now)
            self._leave(node_id, path)
            self._links_changed(now)

    def _answered(self, node_id: NodeId, number: int, now: Instant) -> None:
        """A ping is answered over another way, and the direct connection has ended."""
        if self._members.is_active(node_id):
            self._keepalive.answered(node_id, number, now)
        self._use(node_id, now)

    def _give_up_direct(self, link: Link, now: Instant) -> None:
        """The direct connection is silent while its node answers over another way."""
        self._context.count("links_given_up")
        self._owner.abandon_link(link, now)  # which ends the ping as answered

    # --- what comes in --------------------------------------------------------------------------

    def routed_untrusted(self, link: Link, routed: Routed, now: Instant) -> str | None:
        """Take a frame for us or for others; returns what is wrong with it, if anything."""
        own = self._members.own
        ends = (routed.origin, routed.destination)
        if link.is_routed or ends[0] == ends[1] or any(one in routed.relays for one in ends):
            return "Routed on a way that meets a node twice"
        if routed.destination != own.node_id:
            return self._relaying.pass_on_untrusted(link, routed)
        if link.node_id != routed.relays[-1]:
            return "Routed from one who is not the last on its way"
        row = self._members.rows.get(routed.origin)
        if (
            not self._is_enabled
            or row is None
            or row.health is Health.LEFT
            or row.record.incarnation != routed.origin_incarnation
        ):
            self._context.count("routed_frames_not_taken")
        elif own.incarnation != routed.destination_incarnation:
            self._context.count("routed_frames_not_taken")
            if routed.destination_incarnation > own.incarnation and not row.is_linked:
                # It was told of a larger one, and has no connection to say so in a Close.
                self._owner.identity.exceed(routed.destination_incarnation, now)
        else:
            return self._arrived_untrusted(row, routed, now)
        return None

    def _arrived_untrusted(self, row: Row, routed: Routed, now: Instant) -> str | None:
        if routed.type not in (Ping.TYPE, Pong.TYPE, Segment.TYPE):
            self._context.count("unknown_types")
            return None
        try:
            inner = decode_untrusted(routed.type, routed.payload)
        except RemoteProtocolError:
            self._context.count("routed_frames_not_taken")
            return None
        origin, back = routed.origin, routed.relays[::-1]
        if isinstance(inner, Ping):
            self._send(origin, back, Pong(inner.number, self._members.digest))
            self._asked_by(origin, back, now)
        elif isinstance(inner, Pong):
            self._ponged_untrusted(row, back, inner.number, now)
        elif isinstance(inner, Segment) and self._links.direct_to(origin) is None:
            self._adopt(origin, back, now)
            self.tunnels.segment_untrusted(origin, inner, now)
        elif isinstance(inner, Segment):
            self._owner.verify(origin, now)
        return None

    def _asked_by(self, node_id: NodeId, back: Way, now: Instant) -> None:
        """Somebody has no direct link to us: look at ours, and meet it with a tunnel."""
        if self._links.direct_to(node_id) is not None:
            self._owner.verify(node_id, now)
        else:
            self._adopt(node_id, back, now)
        if self.is_asked(node_id):
            self._asking.back(node_id, back, now)
        if self._links.direct_to(node_id) is None:
            self._use(node_id, now)

    def _adopt(self, node_id: NodeId, way: Way, now: Instant) -> None:
        """Answer the way that something came, where we know no other."""
        path = self._paths.get(node_id)
        if path is None:
            path = self._paths[node_id] = Path()
        if not path.way:
            self._take(node_id, path, way, now)

    def _ponged_untrusted(self, row: Row, way: Way, number: int, now: Instant) -> None:
        node_id = row.record.node_id
        path = self._paths.get(node_id)
        if path is None or path.number != number or not path.awaits(way):
            self._context.count("pongs_unexpected")
            return
        path.asked.pop(way, None)
        path.answered[way] = None
        self._asking.ways.proved(way, node_id)
        self._choose(node_id, path, way, now)
        if self._keepalive.number_of(node_id) != number:
            return
        link = self._links.open_to(node_id)
        if link is not None and not link.is_routed:
            grace: Seconds = self._context.settings.health.ping_timeout / GRACE_DIVISOR
            if len(path.answered) == 1:
                self._keepalive.prolong(node_id, now + grace)
        elif row.health is Health.ACTIVE or link is not None:
            self._keepalive.answered(node_id, number, now)
            if link is not None:
                self._owner.proved(node_id, now)

    def _choose(self, node_id: NodeId, path: Path, way: Way, now: Instant) -> None:
        """Use a way over which an answer came, unless the one in use answered and is better."""
        if path.way != way:
            if path.way in path.answered and self._asking.ways.rank(
                path.way
            ) < self._asking.ways.rank(way):
                return
            self._take(node_id, path, way, now)
            self.tunnels.rerouted(node_id, now)
            self._asking.more_for_others(node_id, now)
        if self._links.direct_to(node_id) is None:
            self._use(node_id, now)

    def _take(self, node_id: NodeId, path: Path, way: Way, now: Instant) -> None:
        if not path.way:
            path.found_at = now
        self._leave(node_id, path)
        path.way = self._found[node_id] = way
        self._over.setdefault(way[0], {})[node_id] = None

    def _use(self, node_id: NodeId, now: Instant) -> None:
        """Let a tunnel take the place of the direct connection; the smaller id makes it."""
        if self._context.settings.node_id < node_id and self.way_to(node_id):
            self.tunnels.dial(node_id, now)
        if self._members.is_active(node_id):
            self._tell(node_id, self._paths[node_id], self.way_to(node_id))
        self._links_changed(now)

    def no_route_untrusted(self, link: Link, no_route: NoRoute, now: Instant) -> str | None:
        """Take a refusal, ours or another's; returns what is wrong with it, if anything."""
        if no_route.origin != self._members.own.node_id:
            return self._relaying.pass_back_untrusted(link, no_route)
        way, node_id = no_route.relays, no_route.destination
        if link.node_id != way[0] or no_route.at not in way:
            return "NoRoute for what did not go this way"
        path = self._paths.get(node_id)
        if path is None or not (path.awaits(way) or way == path.way):
            return None  # it is late, said again, or about what we never sent
        index = way.index(no_route.at)
        self._asking.ways.refused(no_route.at, (*way, node_id)[index + 1])
        direct = self._links.direct_to(node_id)
        is_open = path.number == self._keepalive.number_of(node_id)
        if is_open and path.direct and list(path.answered) == [way] and direct is not None:
            self._give_up_direct(direct, now)  # before the answer is gone with its way
        is_asked = way in path.asked
        path.asked.pop(way, None)
        path.answered.pop(way, None)
        if path.way == way:
            self._leave(node_id, path)
            self._way_lost(node_id, now)
            is_asked = True
        if is_asked and path.number == self._keepalive.number_of(node_id):
            if not self._asking.more(node_id, path, now) and not path.answered:
                self._refused_by_all(node_id, path, now)
        return None

    def _refused_by_all(self, node_id: NodeId, path: Path, now: Instant) -> None:
        """Every relay says that it has no link to a member, and none is silent.

        The ping has failed where the direct way is out too, but an active member is asked for once
        more, when the turn is over. Else a tunnel is given up, and all are asked once more a little
        later: perhaps their links were only reset.
        """
        link = self._links.open_to(node_id)
        if path.direct:
            if not self._asking.may_wait(node_id, path, now):
                self._owner.ping_failed(node_id, now)
        elif link is not None and link.is_routed:
            path.refused_in = path.turns
            self._owner.abandon_link(link, now)
            turn: Seconds = self._context.settings.health.ping_timeout / TURNS
            self._keepalive.prolong(node_id, now + turn)

    def _way_lost(self, node_id: NodeId, now: Instant) -> None:
        """A way that is broken was left: ask over others, without waiting for the next ping."""
        if self._members.rows[node_id].health in (Health.LEFT, Health.REMOVED):
            self.forget(node_id)  # it is not asked for: it would count as lost for ever
            return
        self.doubt(node_id, now)

    def doubt(self, node_id: NodeId, now: Instant) -> None:
        """What went over a way is lost, or may be: ask over all of them."""
        if self._links.direct_to(node_id) is None:
            self._owner.verify(node_id, now)
            if self._keepalive.is_open(node_id):
                self.ask(node_id, now)

    # --- what goes out --------------------------------------------------------------------------

    def send_segment(self, node_id: NodeId, segment: Segment) -> None:
        """Send a segment over the way in use; it is lost where there is none."""
        way = self.way_to(node_id)
        if way:
            self._send(node_id, way, segment, is_urgent=not (segment.data or segment.ends))

    def _send(
        self, node_id: NodeId, way: Way, message: Ping | Pong | Segment, *, is_urgent: bool = True
    ) -> None:
        link = self._links.direct_to(way[0])
        if link is None:
            return
        own, record = self._members.own, self._members.rows[node_id].record
        routed = Routed(
            own.node_id,
            own.incarnation,
            node_id,
            record.incarnation,
            way,
            message.TYPE,
            payload_of(message),
        )
        self._links.relay(link, frame_of(routed), is_urgent=is_urgent)
