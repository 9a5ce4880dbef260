"""Everything about members in one node: connections, pings and dials, put together.

Specified in docs/protocol.md, sections 5 to 7, and docs/node-health.md.
"""

from __future__ import annotations

from clusternode.core.context import Context
from clusternode.core.events import DuplicateId, PeerMisbehaved
from clusternode.core.inputs import DialFailed, DialFailure, KnownMember
from clusternode.core.membership.discovery import DEFERENCE, Discovery, address_of_untrusted
from clusternode.core.membership.exchange import Exchange
from clusternode.core.membership.forgetting import Forgetting
from clusternode.core.membership.health import Health
from clusternode.core.membership.identity import Identity, twin_of
from clusternode.core.membership.keepalive import Keepalive
from clusternode.core.membership.links import Link, Links, Phase, StreamsOfLinks
from clusternode.core.membership.members import Members, Row
from clusternode.core.membership.memory import Memory
from clusternode.core.membership.opening import Opening
from clusternode.core.membership.rerouting import Rerouting
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.core.wire.messages import Close, CloseReason, Ping, Pong, Record, Records

# Names of their own: to look a member of an enumeration up costs as much as a call.
_OPEN, _WAITING, _RESUMING = Phase.OPEN, Phase.WAITING, Phase.RESUMING
_LEFT, _REMOVED = Health.LEFT, Health.REMOVED


class Membership:
    """The membership half of a node."""

    def __init__(
        self, context: Context, links: Links, streams: StreamsOfLinks, record: Record, now: Instant
    ) -> None:
        self._context = context
        self._streams = streams
        self.links = links
        self.members = Members(context, record)
        self.keepalive = Keepalive(context, self.members, links)
        self.discovery = Discovery(context, now)
        self.memory = Memory(context, self.members)
        self.exchange = Exchange(context, links, self.members, self)
        self.identity = Identity(context, self.members, self.exchange.publish, self._reconnect)
        self.rerouting = Rerouting(
            context, self.members, links, self.keepalive, self.exchange.publish, self
        )
        self.forgetting = Forgetting(context, self.members, links, self.is_notification)
        self.opening = Opening(
            context, self.members, links, streams, self.keepalive, self.discovery, self
        )

    def start(self, known: tuple[KnownMember, ...], now: Instant) -> None:
        """Dial the notification addresses and everyone known from before."""
        self.discovery.notification.start(now)
        for member in known:
            is_own = member.address == self._context.settings.address
            if not is_own and member.silent_for < self._context.settings.discovery.forget_after:
                self.discovery.learn(member.address, member.node_id, now - member.silent_for)
                self.discovery.dial_soon(member.address, now)
        self.forgetting.check_later(now)

    # --- connections that begin -----------------------------------------------------------------

    def opened(self, link: Link, now: Instant) -> None:
        """Both Resumes of a connection are exchanged: it is the one in use."""
        self.links.opened(link)
        node_id, hello = link.node_id, link.hello
        link.row = row = self.members.meet(node_id, hello.incarnation, hello.address, now)
        row.is_linked = True
        address = address_of_untrusted(hello.address)
        if address is not None:
            self.discovery.learn(address, node_id, now)
        if not link.is_routed:  # else the direct way is dialled on
            self.discovery.connected(link.dialed, node_id, now)
        self.rerouting.link_opened(link, now)
        self.exchange.introduce(link)
        self.keepalive.watch(node_id, now)
        if not self._will_be_met(link):
            self.keepalive.ping_again(node_id, self._streams.position_mark(node_id), now)
        self._context.count("links_opened")
        self.memory.changed(now)

    def _will_be_met(self, link: Link) -> bool:
        """Tell whether the first ping of a peer says all that our own one would.

        Who decided for the connection is answered by the peer's Resume, and the larger id pings
        as soon as it has said that: as long as it has never answered us, nor failed to since there
        was news of it, one ping is enough for both.
        """
        node_id = link.node_id
        row = self.members.rows[node_id]
        return (
            self._context.settings.node_id < node_id
            and row.heard_at is None
            and row.fail_count == 0
            and row.health is not _LEFT  # it may say so between its Resume and its ping
            and not link.is_routed
            and not self.keepalive.is_open(node_id)
        )

    # --- connections that end -------------------------------------------------------------------

    def disconnected(self, link: Link, detail: str, now: Instant, *, misbehaved: bool) -> None:
        """A connection has ended: dial again at once if it was the one in use."""
        if misbehaved:
            self._report(link, detail)
        self.links.lost(link)
        self._ended(link, now)

    def drop(
        self, link: Link, reason: CloseReason | None, now: Instant, detail: str = "", value: int = 0
    ) -> None:
        """Close a connection from our side, with all that follows from its end."""
        if self.links.get(link.connection) is link:  # one end can lead to that of another
            self.links.close(link, reason, detail, value)
            self._ended(link, now)

    def refuse(
        self, link: Link, reason: CloseReason, detail: str, now: Instant, value: int = 0
    ) -> None:
        """Close a connection that is not to open, and count it."""
        self._context.count("connections_refused")
        self.drop(link, reason, now, detail, value)

    def replace(self, link: Link, reason: CloseReason, now: Instant) -> None:
        """Close a connection for another one that is there: no dial, no ping."""
        self.links.close(link, reason)
        self._unbind(link, now)

    def _unbind(self, link: Link, now: Instant) -> None:
        """Undo what a connection meant for its node."""
        if link.phase in (_OPEN, _RESUMING):
            blames = link.close_reason == CloseReason.PROTOCOL_ERROR
            self._streams.disconnected(link.node_id, now, blames_frame=blames)
        if link.phase is _OPEN:
            row = self.members.rows[link.node_id]
            row.is_linked = False
            row.silent_since = now if row.heard_at is None else row.heard_at
            self.rerouting.link_closed(link, now)
        if link.dialed is not None:
            self.discovery.dial_ended(link.dialed, now)

    def _ended(self, link: Link, now: Instant, *, pings: bool = True) -> None:
        """Let the next one take the place of a forgotten connection, or dial and, if so, ping."""
        node_id = link.node_id
        self._unbind(link, now)
        if link.phase in (_OPEN, _RESUMING):
            for other in self.links.of(node_id):
                if other.phase is Phase.PROVING:
                    self.opening.accept(other, now)
                else:
                    self.opening.take_held_resume(other, now)
        others, row = self.links.of(node_id), self.members.rows.get(node_id)
        if row is None or any(other.phase is not _WAITING for other in others):
            return
        if row.health is _LEFT:
            if not others:
                self._streams.gone(node_id, now)
                self.discovery.forget_node(node_id, now)
                self.rerouting.forget(node_id)
        elif row.health is _REMOVED:
            self.discovery.disconnected(node_id, now, self._context.settings.discovery.redial_max)
        elif link.phase is _OPEN:
            # A peer that closes a duplicate has another connection in mind: let that one open.
            is_replaced = bool(others) or link.close_reason == CloseReason.DUPLICATE_CONNECTION
            delay = DEFERENCE if is_replaced else 0.0
            self.discovery.disconnected(node_id, now, delay)
            self._dial_member(row, now, delay)
            if pings:
                self.verify(node_id, now, is_dialed=not link.is_routed)
        elif not others:
            self.discovery.disconnected(node_id, now, 0.0)

    def closed_by_peer_untrusted(self, link: Link, close: Close, now: Instant) -> None:
        """Take the reason that a peer gave for closing."""
        link.close_reason = close.reason
        if link.phase is not _OPEN:  # an open connection was not refused
            where = f"{link.node_id} ({link.remote}) says: {close.detail}"
            self.identity.refused(close.reason, close.value, where, now)

    def misbehaved(self, link: Link, detail: str, now: Instant) -> None:
        """Close the connection of a peer that broke the rules, and tell the observers."""
        self._report(link, detail)
        self.drop(link, CloseReason.PROTOCOL_ERROR, now, detail)

    def _report(self, link: Link, detail: str) -> None:
        self._context.count("peers_misbehaved")
        cluster = self._context.settings.cluster
        self._context.emit(PeerMisbehaved(cluster, link.node_id, link.remote, detail))

    # --- identity -------------------------------------------------------------------------------

    def _reconnect(self, now: Instant) -> None:
        """Say a new HELLO to everyone; what we sent before is not sent again."""
        self.memory.persist(now)
        for link in self.links.every():
            self.drop(link, CloseReason.BYE, now, "a larger incarnation follows")
        self._streams.renumbered(self.members.own.incarnation)

    def not_there(self, node_id: NodeId | None, address: Address | None, now: Instant) -> None:
        """Fail the open ping of a node that is not where it says."""
        row = None if node_id is None else self.members.rows.get(node_id)
        if node_id is None or row is None or row.is_linked:
            return
        if self.keepalive.is_open(node_id) and address == address_of_untrusted(row.record.address):
            self.ping_unanswered(node_id, now, is_refused=True)

    def proved(self, node_id: NodeId, now: Instant) -> None:
        """The open connection lives: refuse newcomers with its id, tell it, need no other way."""
        if self.rerouting.has_paths and self.links.direct_to(node_id) is not None:
            self.rerouting.forget(node_id)
        newcomers = self.links.proving(node_id)
        rival = self.links.open_to(node_id) if newcomers else None
        for link in newcomers:
            if rival is not None:
                self.links.send(rival, Records([twin_of(link.hello)]))
            value = 0 if rival is None else rival.hello.incarnation
            self._context.emit(DuplicateId(self._context.settings.cluster, node_id, link.remote))
            self._context.count("duplicate_ids")
            where = f"it answers at {self.members.rows[node_id].record.address}"
            self.refuse(link, CloseReason.DUPLICATE_ID, where, now, value)

    # --- pings ----------------------------------------------------------------------------------

    def round_due(self, slot: int, now: Instant) -> None:
        """Ping the members whose turn it is, and dial those without a connection."""
        is_queued = self.discovery.is_queued if self.discovery.has_line else None
        for node_ids in self.keepalive.in_turn(slot, is_queued, now):
            for node_id in self.keepalive.begin(node_ids, self._streams.position_marks, now):
                row = self.members.rows[node_id]
                self._dial_member(row, now)
                if row.has_answered or not self.discovery.is_untried(node_id):
                    self.rerouting.ask(node_id, now)  # else the first dial says more than any way

    def verify(self, node_id: NodeId, now: Instant, *, is_dialed: bool = False) -> None:
        """Open a ping out of turn, unless one is open; over other ways if there is no link.

        Args:
            node_id: The member.
            now: The present.
            is_dialed: Whether a dial has just begun, or is deferred to the connection that the peer
                prefers. In a large cluster that one comes first: where hundreds lose a link to one,
                or one to hundreds, it mostly says enough.
        """
        row = self.members.rows.get(node_id)
        if row is not None and row.health not in (_LEFT, _REMOVED):
            if self.keepalive.ping(node_id, self._streams.position_mark(node_id), now):
                if not (is_dialed and self.rerouting.is_large):
                    self.rerouting.ask(node_id, now)

    def abandon_link(self, link: Link, now: Instant) -> None:
        """Give up a connection whose node answers, but not over it."""
        self.links.close(link, None)
        self._ended(link, now, pings=False)

    def ping_timed_out(self, node_id: NodeId, now: Instant) -> None:
        if not self.keepalive.is_open(node_id):
            return  # it was answered or forgotten at the same wake-up
        if not self.keepalive.timed_out(node_id, now):
            if self.rerouting.is_large and not self.links.is_open_to(node_id):
                self._ask_late(node_id, now)
            return
        if not self.links.is_open_to(node_id) and self.discovery.is_queued(node_id):
            self.keepalive.postpone(node_id, now)
        else:
            self.ping_unanswered(node_id, now)

    def _ask_late(self, node_id: NodeId, now: Instant) -> None:
        """Half of the time is over, and the dial has said nothing yet: ask others, if none was."""
        has_news = self.members.rows[node_id].has_answered or not self.discovery.is_untried(node_id)
        if has_news and not self.rerouting.is_asked(node_id):
            self.rerouting.ask(node_id, now)

    def ping_unanswered(self, node_id: NodeId, now: Instant, *, is_refused: bool = False) -> None:
        """The direct way has not answered a ping; it has failed where no other one does."""
        if not self.rerouting.saves(node_id, now, is_refused=is_refused):
            self.ping_failed(node_id, now)

    def ping_failed(self, node_id: NodeId, now: Instant) -> None:
        """Count a failed ping and do what the new status asks for."""
        row = self.members.rows[node_id]
        if self.members.believe_farewell(row, now):
            self.left(node_id, now)
            return
        before = row.health
        is_protected = self.is_notification(row)
        health = self.keepalive.failed(node_id, row, is_protected=is_protected, now=now)
        if health in (Health.DISABLED, _REMOVED) and health is not before:
            self._streams.disabled(node_id)
        link = self.links.open_to(node_id)
        newcomers = self.links.proving(node_id)
        if link is not None and newcomers:
            self.links.close(link, CloseReason.REPLACED)
            self._ended(link, now, pings=False)
        elif health is _REMOVED:
            self._removed(node_id, now)
        elif link is not None and health is not Health.ACTIVE:
            # The connection may be what is broken, not the node: try another one at once.
            self.links.close(link, None)
            self._ended(link, now, pings=False)
        if health is not Health.ACTIVE:
            self.rerouting.failed(node_id, now)

    def is_notification(self, row: Row) -> bool:
        """Tell whether a member is reached by a notification address."""
        address = address_of_untrusted(row.record.address)
        return self.discovery.is_notification(row.record.node_id, address)

    def _removed(self, node_id: NodeId, now: Instant) -> None:
        """A member is off the list; its address is dialled on until nobody remembers it."""
        self.keepalive.unwatch(node_id)
        for link in self.links.of(node_id):
            self.drop(link, CloseReason.REMOVED, now)
        self.rerouting.forget(node_id)
        self._streams.gone(node_id, now)
        row = self.members.rows[node_id]
        address = address_of_untrusted(row.record.address)
        if address is not None:
            self.discovery.dial_later(address, now)
        self.memory.changed(now)

    def remove(self, node_id: NodeId, now: Instant) -> None:
        """Take a member off the list, because an operator said so."""
        row = self.members.rows.get(node_id)
        if row is not None and row.is_member:
            self.members.set_health(row, _REMOVED, "an operator removed it", now)
            self._removed(node_id, now)

    def ping_untrusted(self, link: Link, ping: Ping, now: Instant) -> None:
        digest = self.members.digest
        self.links.send(link, Pong(ping.number, digest))
        if not link.is_settled:
            if self._will_be_met(link):
                link.is_settled = True
                self.keepalive.met(link, now)
                self.proved(link.node_id, now)
        elif ping.digest != digest:
            self.exchange.digest_untrusted(link, ping.digest, now)

    def pong_untrusted(self, link: Link, pong: Pong, now: Instant) -> bool:
        """Take a pong; tells whether it answers the open ping."""
        is_answer = self.keepalive.answered(link.node_id, pong.number, now)
        if is_answer:
            self.proved(link.node_id, now)
        link.is_settled = True
        if pong.digest != self.members.digest:
            self.exchange.digest_untrusted(link, pong.digest, now)
        return is_answer

    # --- dials ----------------------------------------------------------------------------------

    def _dial_member(self, row: Row, now: Instant, delay: Seconds = 0.0) -> None:
        address = address_of_untrusted(row.record.address)
        if address is not None:
            self.discovery.learn(address, row.record.node_id, row.silent_since)
            self.discovery.dial_soon(address, now, delay)

    def dial_failed(self, failed: DialFailed, now: Instant) -> None:
        """Take a failed dial; a refused one fails the open ping of the node expected there."""
        node_id = self.discovery.failed(failed.address, failed.failure, failed.detail, now)
        self.rerouting.call(node_id, now)
        if failed.close_reason is not None:
            where = f"{failed.address} says: {failed.detail}"
            self.identity.refused(failed.close_reason, failed.close_value, where, now)
        if failed.failure is DialFailure.REFUSED:
            self.not_there(node_id, failed.address, now)

    # --- what others say ------------------------------------------------------------------------

    def learned(self, node_id: NodeId, now: Instant, *, is_new: bool) -> None:
        """Dial a member that was learned from others."""
        self.memory.changed(now)
        self.rerouting.learned(node_id, now)
        row = self.members.rows[node_id]
        address = None if row.is_linked else address_of_untrusted(row.record.address)
        if address is None or row.health in (_LEFT, _REMOVED):
            return
        self.discovery.heard_news(address, node_id, row.silent_since, now)
        if is_new:
            self.keepalive.watch(node_id, now)

    def left(self, node_id: NodeId, now: Instant) -> None:
        """A member has left: wait for nothing more from it, and for a while for its Close."""
        self.memory.changed(now)
        self.keepalive.unwatch(node_id)
        self._streams.disabled(node_id)
        link = self.links.open_to(node_id)
        if link is not None:
            self.links.give_time(link, now)
        elif not self.links.of(node_id):
            self._streams.gone(node_id, now)
            self.discovery.forget_node(node_id, now)
            self.rerouting.forget(node_id)

    # --- housekeeping ---------------------------------------------------------------------------

    def forget_due(self, now: Instant) -> None:
        """Forget the records of those whom nobody has heard from for `forget_after`."""
        for node_id in self.forgetting.due(now):
            self.forget(node_id, now)
        for link in self.links.tunnels():  # their addresses are still worth dialling
            self._dial_member(self.members.rows[link.node_id], now)

    def forget(self, node_id: NodeId, now: Instant) -> None:
        """Forget the record of a node, and all that was kept because of it."""
        row = self.members.rows[node_id]
        if row.health not in (_LEFT, _REMOVED):
            self.members.set_health(row, _REMOVED, "nobody has heard from it", now)
        self.keepalive.unwatch(node_id)
        self._streams.gone(node_id, now)
        self.discovery.forget_node(node_id, now)
        self.rerouting.forget(node_id)
        self.members.forget(node_id)
        self.memory.changed(now)
