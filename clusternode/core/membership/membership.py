"""Everything about members in one node: records, connections, pings and dials, put together.

Specified in docs/protocol.md, sections 5 to 7, and docs/node-health.md.
"""

from __future__ import annotations

from typing import Protocol

from clusternode.core.context import Context
from clusternode.core.effects import Persist, Withdraw
from clusternode.core.events import DuplicateId, PeerMisbehaved
from clusternode.core.inputs import Connected, DialFailed, DialFailure, KnownMember
from clusternode.core.membership.discovery import Discovery, address_of_untrusted
from clusternode.core.membership.health import Health
from clusternode.core.membership.keepalive import Keepalive
from clusternode.core.membership.links import WAITING_LINKS_MAX, Link, Links, Phase
from clusternode.core.membership.members import Members, Merged, Row
from clusternode.core.types import Address, Incarnation, Instant, NodeId, Seconds
from clusternode.core.wire.messages import (
    Close,
    CloseReason,
    Hello,
    List,
    Ping,
    Pong,
    Record,
    Records,
    Resume,
    Want,
)

DEFERENCE: Seconds = 1.0
"""How long the larger of two node ids leaves it to the smaller one to dial."""
JOINING: Seconds = 5.0
"""For so long after its start a node dials everyone itself: nobody knows it yet."""
EXCHANGE_INTERVAL: Seconds = 1.0
"""Between two digest exchanges with one node, at least."""
PERSIST_DELAY: Seconds = 1.0
"""Changes of the member list within this time are written together."""
FORGET_CHECK_INTERVAL: Seconds = 60.0
RECORDS_PER_FRAME_MAX = 200
"""So that a whole table of records is not one frame: about 60 KB with ordinary tags."""
INCARNATION_STEP = 1
"""A refuted or stale incarnation is exceeded by this much."""


class StreamsOfLinks(Protocol):
    """What membership needs to know of messaging."""

    def resume_of(self, node_id: NodeId, hello: Hello) -> Resume: ...
    def resumed_untrusted(self, node_id: NodeId, resume: Resume) -> bool: ...
    def disconnected(self, node_id: NodeId, now: Instant, *, blames_frame: bool) -> None: ...
    def gone(self, node_id: NodeId) -> None: ...
    def disabled(self, node_id: NodeId) -> None: ...
    def position_mark(self, node_id: NodeId) -> int: ...


class Membership:
    """The membership half of a node."""

    def __init__(
        self, context: Context, links: Links, streams: StreamsOfLinks, record: Record, now: Instant
    ) -> None:
        self._context = context
        self._streams = streams
        self._started_at = now
        self.links = links
        self.members = Members(context, record)
        self.keepalive = Keepalive(context, self.members, links)
        self.discovery = Discovery(context, now)
        self._exchanged_at: dict[NodeId, Instant] = {}
        self._closed_for: dict[NodeId, int] = {}  # node → the reason in its last Close
        self._refuted_at: Instant | None = None

    def start(self, known: tuple[KnownMember, ...], now: Instant) -> None:
        """Dial the notification addresses and everyone known from before."""
        self.discovery.start(now)
        for member in known:
            if member.address != self._own_address and member.silent_for < self._forget_after:
                self.discovery.learn(member.address, member.node_id, now - member.silent_for)
                self.discovery.dial_soon(member.address, now)
        self._context.timers.set(("forget",), now + FORGET_CHECK_INTERVAL)

    @property
    def _own_address(self) -> Address:
        return self._context.settings.address

    @property
    def _forget_after(self) -> Seconds:
        return self._context.settings.discovery.forget_after

    # --- connections ----------------------------------------------------------------------------

    def connected(self, connected: Connected, now: Instant) -> None:
        """Decide about a connection whose HELLOs are exchanged."""
        hello = connected.hello
        phase = Phase.PROVING
        link = Link(
            connected.connection,
            hello.node_id,
            hello,
            connected.dialed,
            connected.remote,
            now,
            phase,
        )
        self.links.add(link)
        if hello.node_id == self._context.settings.node_id:
            self._met_own_id(link, now)
            return
        if len(self.links.others_of(hello.node_id)) > WAITING_LINKS_MAX:
            self._refuse(link, CloseReason.LIMIT, "too many connections of one node", now)
            return
        self._found_other(link, now)
        row = self.members.rows.get(hello.node_id)
        if row is None and self.members.is_full:
            self._refuse(link, CloseReason.LIMIT, "the member list is full", now)
            return
        rival = self.links.open_to(hello.node_id)
        if rival is not None and rival.hello.incarnation != hello.incarnation:
            self.keepalive.ping(hello.node_id, self._streams.position_mark(hello.node_id), now)
            return
        known = 0 if row is None else row.record.incarnation
        if hello.incarnation < known:
            self._refuse(link, CloseReason.STALE_INCARNATION, "known is a larger one", now, known)
            return
        self._accept(link, now)

    def _accept(self, link: Link, now: Instant) -> None:
        """Go on with a connection: decide, or wait for the decision of the smaller id."""
        if self._context.settings.node_id > link.node_id:
            link.phase = Phase.WAITING
            return
        kept = self.links.decide(link, now)
        if kept is not link:
            self._end_dial(link, now)
            self.links.close(link, CloseReason.DUPLICATE_CONNECTION)
            return
        for rival in self.links.others_of(link.node_id):
            if rival.phase is Phase.RESUMING:
                self._close(rival, CloseReason.DUPLICATE_CONNECTION, now)
        rival_open = self.links.open_to(link.node_id)
        if rival_open is not None:
            self._replace_open(rival_open, CloseReason.DUPLICATE_CONNECTION, now)
        link.phase = Phase.RESUMING
        self.links.send(link, self._streams.resume_of(link.node_id, link.hello))

    def resume_untrusted(self, link: Link, resume: Resume, now: Instant) -> None:
        """Open a connection by the peer's Resume, answering it if the peer is the one to decide."""
        if link.phase is Phase.WAITING:
            rival = self.links.open_to(link.node_id)
            if rival is not None:
                self._replace_open(rival, CloseReason.DUPLICATE_CONNECTION, now)
            self.links.send(link, self._streams.resume_of(link.node_id, link.hello))
        elif link.phase is not Phase.RESUMING:
            self.misbehaved(link, "Resume at the wrong time", now)
            return
        if not self._streams.resumed_untrusted(link.node_id, resume):
            self.misbehaved(link, "Resume with positions that were never given", now)
            return
        self._opened(link, now)

    def _opened(self, link: Link, now: Instant) -> None:
        self.links.opened(link)
        node_id = link.node_id
        hello = link.hello
        row = self.members.meet(node_id, hello.incarnation, hello.address, now)
        row.is_linked = True
        self._closed_for.pop(node_id, None)
        address = address_of_untrusted(hello.address)
        if address is not None:
            self.discovery.learn(address, node_id, now)
        self.discovery.connected(link.dialed, node_id, now)
        self.links.send(link, Records([self.members.own]))
        self.keepalive.watch(node_id, now)
        self.keepalive.ping(node_id, self._streams.position_mark(node_id), now)
        self._context.count("connections_opened")
        self._changed(now)

    def disconnected(self, link: Link, detail: str, now: Instant, *, misbehaved: bool) -> None:
        """A connection has ended: dial again at once if it was the one in use."""
        if misbehaved:
            self._report(link, detail)
        self._gone(link, now)

    def _close(self, link: Link, reason: CloseReason, now: Instant, detail: str = "") -> None:
        """Close a connection from our side, with all that follows from its end."""
        was_open = self.links.open_to(link.node_id) is link
        was_resuming = link.phase is Phase.RESUMING
        self.links.close(link, reason, detail)
        self._ended(link, now, was_open=was_open, was_resuming=was_resuming)

    def _gone(self, link: Link, now: Instant) -> None:
        was_open = self.links.open_to(link.node_id) is link
        was_resuming = link.phase is Phase.RESUMING
        self.links.lost(link)
        self._ended(link, now, was_open=was_open, was_resuming=was_resuming)

    def _replace_open(self, link: Link, reason: CloseReason, now: Instant) -> None:
        """Close the open connection of a node for another one: no dial, no ping."""
        self.links.close(link, reason)
        self._streams.disconnected(link.node_id, now, blames_frame=False)
        row = self.members.rows.get(link.node_id)
        if row is not None:
            row.is_linked = False

    def _ended(self, link: Link, now: Instant, *, was_open: bool, was_resuming: bool) -> None:
        node_id = link.node_id
        reason = self._closed_for.pop(node_id, None)
        if was_open or was_resuming:
            blames = reason == CloseReason.PROTOCOL_ERROR
            self._streams.disconnected(node_id, now, blames_frame=blames)
        if not was_open:
            self._end_dial(link, now)
            return
        row = self.members.rows[node_id]
        row.is_linked = False
        row.silent_since = now
        candidates = [
            other for other in self.links.others_of(node_id) if other.phase is Phase.PROVING
        ]
        redial = row.health not in (Health.LEFT, Health.REMOVED) and not candidates
        is_immediate = redial and reason != CloseReason.DUPLICATE_CONNECTION
        self.discovery.disconnected(node_id, now, redial=is_immediate)
        if redial:
            # A peer that closes a duplicate has another connection in mind: let that one open.
            self._dial_member(row, now, 0.0 if is_immediate else DEFERENCE)
            self.keepalive.ping(node_id, self._streams.position_mark(node_id), now)
        for candidate in candidates:
            self._decide_proven(candidate, now, old_lives=False)

    def _end_dial(self, link: Link, now: Instant) -> None:
        if link.dialed is not None:
            self.discovery.dial_ended(link.dialed, now)

    def handshake_timed_out(self, link: Link, now: Instant) -> None:
        self._refuse(link, CloseReason.HANDSHAKE_TIMEOUT, "no Resume in time", now)

    # --- identity -------------------------------------------------------------------------------

    def _met_own_id(self, link: Link, now: Instant) -> None:
        """Two ends with our node id: ourselves, or another process."""
        settings = self._context.settings
        hello = link.hello
        if hello.nonce == settings.nonce:
            if link.dialed is not None:
                self.discovery.found_self(link.dialed)
            self.links.close(link, None)
            return
        own = (self.members.own.incarnation, settings.nonce)
        self._end_dial(link, now)
        where = str(link.dialed) if link.dialed is not None else f"{hello.address} ({link.remote})"
        self._context.emit(DuplicateId(settings.cluster, settings.node_id, where))
        self._context.count("duplicate_ids")
        self.links.close(link, CloseReason.DUPLICATE_ID, "this node id is in use")
        if own > (hello.incarnation, hello.nonce):
            self._withdraw(where)

    def _withdraw(self, where: str) -> None:
        node_id = self._context.settings.node_id
        self._context.effects.append(
            Withdraw(f"another live agent has the node id {node_id!r}: it is at {where}")
        )

    def _found_other(self, link: Link, now: Instant) -> None:
        """Where we dialled one node and found another, the one expected there is not there."""
        if link.dialed is None:
            return
        for node_id in self.discovery.expected_at(link.dialed):
            row = self.members.rows.get(node_id)
            if node_id != link.node_id and row is not None and self.keepalive.is_open(node_id):
                if not row.is_linked and row.record.address == str(link.dialed):
                    self.ping_failed(node_id, now)

    def pong_arrived(self, node_id: NodeId, now: Instant) -> None:
        """The open connection lives: newcomers with its node id are refused."""
        for link in self.links.others_of(node_id):
            if link.phase is Phase.PROVING:
                self._decide_proven(link, now, old_lives=True)

    def _decide_proven(self, link: Link, now: Instant, *, old_lives: bool) -> None:
        """Decide about a connection that waited for a sign of life of the older one."""
        if old_lives:
            cluster = self._context.settings.cluster
            self._context.emit(DuplicateId(cluster, link.node_id, link.remote))
            self._context.count("duplicate_ids")
            self._end_dial(link, now)
            self.links.close(link, CloseReason.DUPLICATE_ID, "a live node has this id")
            return
        row = self.members.rows.get(link.node_id)
        known = 0 if row is None else row.record.incarnation
        if link.hello.incarnation < known:
            self._refuse(link, CloseReason.STALE_INCARNATION, "known is a larger one", now, known)
        else:
            self._accept(link, now)

    def _refuse(
        self, link: Link, reason: CloseReason, detail: str, now: Instant, value: int = 0
    ) -> None:
        was_resuming = link.phase is Phase.RESUMING
        self._end_dial(link, now)
        self.links.close(link, reason, detail, value)
        if was_resuming:
            self._streams.disconnected(link.node_id, now, blames_frame=False)
        self._context.count("connections_refused")

    def take_larger_incarnation(self, known: Incarnation, now: Instant) -> None:
        """Somebody knows a larger incarnation of us than ours: exceed it and say hello again."""
        if known < self.members.own.incarnation:
            return
        interval = self._context.settings.health.ping_interval
        if self._refuted_at is not None and now - self._refuted_at < interval:
            return
        self._refuted_at = now
        larger = Incarnation(known + INCARNATION_STEP)
        self.members.change_own(incarnation=larger)
        self._context.count("incarnations_raised")
        self._persist(now)
        for link in list(self.links):
            self._close(link, CloseReason.BYE, now, "a larger incarnation follows")

    def closed_by_peer_untrusted(self, link: Link | None, close: Close, now: Instant) -> None:
        """Take the reason that a peer gave for closing."""
        if close.reason == CloseReason.STALE_INCARNATION:
            self.take_larger_incarnation(Incarnation(close.value), now)
        elif close.reason == CloseReason.DUPLICATE_ID:
            where = "unknown" if link is None else f"{link.node_id} ({link.remote}) knows it"
            self._withdraw(f"{where}: {close.detail}")
        elif link is not None:
            self._closed_for[link.node_id] = close.reason

    def misbehaved(self, link: Link, detail: str, now: Instant) -> None:
        """Close the connection of a peer that broke the rules, and tell the observers."""
        self._report(link, detail)
        self._close(link, CloseReason.PROTOCOL_ERROR, now, detail)

    def _report(self, link: Link, detail: str) -> None:
        self._context.count("peers_misbehaved")
        self._context.emit(
            PeerMisbehaved(self._context.settings.cluster, link.node_id, link.remote, detail)
        )

    # --- pings ----------------------------------------------------------------------------------

    def ping_due(self, node_id: NodeId, now: Instant) -> None:
        row = self.members.rows.get(node_id)
        if row is None or row.health in (Health.LEFT, Health.REMOVED):
            return
        if self.keepalive.tick(node_id, self._streams.position_mark(node_id), now):
            self._dial_member(row, now)

    def ping_timed_out(self, node_id: NodeId, now: Instant) -> None:
        if self.keepalive.timed_out(node_id, now):
            self.ping_failed(node_id, now)
            for link in self.links.others_of(node_id):
                if link.phase is Phase.PROVING:
                    rival = self.links.open_to(node_id)
                    if rival is not None:
                        self._replace_open(rival, CloseReason.REPLACED, now)
                    self._decide_proven(link, now, old_lives=False)

    def ping_failed(self, node_id: NodeId, now: Instant) -> None:
        """Count a failed ping and do what the new status asks for."""
        row = self.members.rows[node_id]
        before = row.health
        is_protected = self.is_notification(row)
        health = self.keepalive.failed(node_id, row, is_protected=is_protected, now=now)
        if health is before:
            return
        if health is Health.DISABLED:
            self._streams.disabled(node_id)
        elif health is Health.REMOVED:
            self._removed(node_id, now)

    def is_notification(self, row: Row) -> bool:
        """Tell whether a member is reached by a notification address."""
        address = address_of_untrusted(row.record.address)
        return self.discovery.is_notification(row.record.node_id, address)

    def _removed(self, node_id: NodeId, now: Instant) -> None:
        """A member is off the list; its address is dialled on until nobody remembers it."""
        self.keepalive.unwatch(node_id)
        link = self.links.open_to(node_id)
        if link is not None:
            self._close(link, CloseReason.REMOVED, now)
        self._streams.gone(node_id)
        row = self.members.rows[node_id]
        address = address_of_untrusted(row.record.address)
        if address is not None:
            self.discovery.dial_later(address, now)
        self._changed(now)

    def remove(self, node_id: NodeId, now: Instant) -> None:
        """Take a member off the list, because an operator said so."""
        row = self.members.rows.get(node_id)
        if row is None or not row.is_member:
            return
        self.members.set_health(row, Health.REMOVED, "an operator removed it", now)
        self._removed(node_id, now)

    def change_status(self, node_id: NodeId, status: str, now: Instant) -> None:
        """Set a status because an operator said so; the next ping may change it again."""
        row = self.members.rows.get(node_id)
        if row is not None and row.is_member and row.health is not Health.LEFT:
            row.is_confirmed = True
            self.members.set_health(row, Health(status), "an operator said so", now)

    def _dial_member(self, row: Row, now: Instant, delay: Seconds = 0.0) -> None:
        address = address_of_untrusted(row.record.address)
        if address is not None and not self.links.is_open_to(row.record.node_id):
            self.discovery.learn(address, row.record.node_id, row.silent_since)
            self.discovery.dial_soon(address, now, delay)

    def dial_failed(self, failed: DialFailed, now: Instant) -> None:
        """Take a failed dial; a refused one fails the open ping of the node expected there."""
        if failed.close_reason is not None:
            close = Close(failed.close_reason, failed.detail, failed.close_value)
            self.closed_by_peer_untrusted(None, close, now)
        node_id = self.discovery.failed(failed.address, failed.failure, failed.detail, now)
        if node_id is None or failed.failure is not DialFailure.REFUSED:
            return
        row = self.members.rows.get(node_id)
        if row is None or row.is_linked or row.record.address != str(failed.address):
            return
        if self.keepalive.is_open(node_id):
            self.ping_failed(node_id, now)

    # --- records --------------------------------------------------------------------------------

    def digest_untrusted(self, link: Link, digest: int, now: Instant) -> None:
        """Compare digests; where they differ, begin an exchange, at most one per second."""
        if digest == self.members.digest:
            return
        last = self._exchanged_at.get(link.node_id)
        if last is None or now - last >= EXCHANGE_INTERVAL:
            self._exchanged_at[link.node_id] = now
            self._context.count("digest_exchanges")
            self.links.send(link, List(self.members.list_entries(now)))

    def ping_untrusted(self, link: Link, ping: Ping, now: Instant) -> None:
        self.links.send(link, Pong(ping.number, self.members.digest))
        self.digest_untrusted(link, ping.digest, now)

    def list_untrusted(self, link: Link, message: List, now: Instant) -> None:
        """Answer a list with what the sender lacks and a wish for what we lack."""
        lacking, wanted, must_refute = self.members.compare_untrusted(message.entries, now)
        for start in range(0, len(lacking), RECORDS_PER_FRAME_MAX):
            self.links.send(link, Records(lacking[start : start + RECORDS_PER_FRAME_MAX]))
        if wanted:
            self.links.send(link, Want(wanted))
        if must_refute:
            own = next(one for one in message.entries if one.node_id == self.members.own.node_id)
            self._refute(own.incarnation, own.version, now)

    def want_untrusted(self, link: Link, want: Want, now: Instant) -> None:
        found: list[Record] = []
        for node_id in want.node_ids:
            row = self.members.rows.get(node_id)
            if row is not None and row.record.version > 0:
                found.append(self.members.told(row, now))
            elif node_id == self.members.own.node_id:
                found.append(self.members.own)
        for start in range(0, len(found), RECORDS_PER_FRAME_MAX):
            self.links.send(link, Records(found[start : start + RECORDS_PER_FRAME_MAX]))

    def records_untrusted(self, link: Link, records: Records, now: Instant) -> None:
        for record in records.records:
            merged = self.members.merge_untrusted(record, link.node_id, now)
            if merged is Merged.REFUTED:
                self._refute(record.incarnation, record.version, now)
            elif merged is Merged.LEFT:
                self._left(record.node_id, now)
            elif merged in (Merged.NEW, Merged.CHANGED):
                self._learned(record.node_id, now, is_new=merged is Merged.NEW)

    def _learned(self, node_id: NodeId, now: Instant, *, is_new: bool) -> None:
        """Dial a member that was learned from others, at once or after the smaller id had time."""
        self._changed(now)
        row = self.members.rows[node_id]
        address = address_of_untrusted(row.record.address)
        if row.is_linked or not row.is_member or address is None:
            return
        self.discovery.learn(address, node_id, row.silent_since)
        is_joining = now - self._started_at < JOINING
        is_smaller = self._context.settings.node_id < node_id
        self.discovery.dial_soon(address, now, 0.0 if is_smaller or is_joining else DEFERENCE)
        if is_new:
            self.keepalive.watch(node_id, now)

    def _left(self, node_id: NodeId, now: Instant) -> None:
        self.keepalive.unwatch(node_id)
        self._streams.gone(node_id)
        if not self.links.is_open_to(node_id):
            self.discovery.forget_node(node_id)
        self._changed(now)

    def _refute(self, incarnation: Incarnation, version: int, now: Instant) -> None:
        """Others hold a newer record of us than ours: say the truth, above it."""
        if incarnation > self.members.own.incarnation:
            self.take_larger_incarnation(incarnation, now)
            return
        self.publish_own(self.members.change_own(version_above=version))

    def publish_own(self, record: Record) -> None:
        """Send the own record to every peer at once."""
        for link in self.links:
            self.links.send(link, Records([record]))

    # --- housekeeping ---------------------------------------------------------------------------

    def forget_due(self, now: Instant) -> None:
        interval = min(FORGET_CHECK_INTERVAL, self._forget_after / 4)
        self._context.timers.set(("forget",), now + interval)
        for node_id in self.members.silent_too_long(now):
            row = self.members.rows[node_id]
            if row.is_member and self.is_notification(row):
                continue
            self.keepalive.unwatch(node_id)
            self._streams.gone(node_id)
            self.discovery.forget_node(node_id)
            self.members.forget(node_id)
            self._exchanged_at.pop(node_id, None)
            self._changed(now)

    def _changed(self, now: Instant) -> None:
        """Remember the member list on disk soon."""
        if self._context.timers.deadline_of(("persist",)) is None:
            self._context.timers.set(("persist",), now + PERSIST_DELAY)

    def _persist(self, now: Instant) -> None:
        self._context.effects.append(
            Persist(self.members.own.incarnation, self.known_members(now))
        )

    def persist_due(self, now: Instant) -> None:
        self._persist(now)

    def known_members(self, now: Instant) -> list[KnownMember]:
        known: list[KnownMember] = []
        for node_id, row in self.members:
            address = address_of_untrusted(row.record.address)
            if address is not None and row.health is not Health.LEFT:
                silent_for = 0.0 if row.is_linked else max(0.0, now - row.silent_since)
                known.append(KnownMember(node_id, address, silent_for))
        return known
