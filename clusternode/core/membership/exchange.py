"""Digest exchange: how two record tables that differ become equal. Spec: docs/protocol.md, 6.

Every ping and pong carries the digest of the sender's table. Where it is another than ours, we
send the list of what we know; the answer is what we lack, and a wish for what the other lacks.
"""

from __future__ import annotations

from typing import Protocol

from clusternode.core.context import Context
from clusternode.core.membership.identity import Identity
from clusternode.core.membership.links import Link, Links
from clusternode.core.membership.members import Members, Merged
from clusternode.core.membership.twins import Twins
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.core.wire.codec import frame_of, split_records
from clusternode.core.wire.messages import List, Record, Records, Want

EXCHANGE_INTERVAL: Seconds = 1.0
"""Between two digest exchanges that one node begins, at least, and between two with one peer."""
ENTRIES_PER_SECOND = 100
"""A node with a larger table begins exchanges less often: while a large cluster forms, tables
differ everywhere and nearly all of what such a list says is on its way already."""
# Names of their own: to look a member of an enumeration up costs as much as a call.
_IGNORED, _NEW, _CHANGED = Merged.IGNORED, Merged.NEW, Merged.CHANGED


class Listener(Protocol):
    """Who wants to know what an exchange has changed."""

    def learned(self, node_id: NodeId, now: Instant, *, is_new: bool) -> None: ...
    def left(self, node_id: NodeId, now: Instant) -> None: ...
    @property
    def identity(self) -> Identity: ...


class Exchange:
    """Sends and takes records."""

    def __init__(
        self, context: Context, links: Links, members: Members, listener: Listener
    ) -> None:
        self._context = context
        self._links = links
        self._members = members
        self._listener = listener
        self._began_at: Instant | None = None
        self._next: tuple[NodeId, int] | None = None  # the peer whose turn comes, and its digest
        self._twins = Twins(context, links)
        self._introduction = frame_of(Records([members.own]))

    def publish(self, record: Record) -> None:
        """Send the own record to every peer at once."""
        frame = frame_of(Records([record]))
        for link in self._links:
            self._links.send_frame(link, frame)

    def introduce(self, link: Link) -> None:
        """Send the own record to a peer that has just connected; it is encoded once for all."""
        own = self._members.own
        message = self._introduction.message
        if not isinstance(message, Records) or message.records[0] is not own:
            self._introduction = frame_of(Records([own]))
        self._links.send_frame(link, self._introduction)

    def digest_untrusted(self, link: Link, digest: int, now: Instant) -> None:
        """Take a digest that is not ours: begin an exchange, now or when its turn comes."""
        last = link.exchanged_at
        if last is not None and now - last < EXCHANGE_INTERVAL:
            return
        if self._began_at is None or now >= self._began_at + self._interval:
            self._begin(link, now)
            return
        if self._next is None:
            self._context.timers.set(("exchange",), self._began_at + self._interval)
        self._next = (link.node_id, digest)

    def due(self, now: Instant) -> None:
        """Begin the exchange that had to wait, if the tables may still differ.

        Only with the peer that was found last: what the others have told of themselves is old by
        now, and their next ping tells it again.
        """
        if self._next is not None:
            (node_id, digest), self._next = self._next, None
            link = self._links.open_to(node_id)
            if link is not None and digest != self._members.digest:
                self._begin(link, now)

    @property
    def _interval(self) -> Seconds:
        return max(EXCHANGE_INTERVAL, len(self._members.rows) / ENTRIES_PER_SECOND)

    def _begin(self, link: Link, now: Instant) -> None:
        link.exchanged_at = self._began_at = now
        self._context.count("digest_exchanges")
        self._links.send(link, List(self._members.list_entries(now)))

    def list_untrusted(self, link: Link, message: List, now: Instant) -> None:
        """Answer a list with what the sender lacks and a wish for what we lack."""
        link.exchanged_at = now
        own = self._members.own
        about_us = [
            (entry.incarnation, entry.version)
            for entry in message.entries
            if entry.node_id == own.node_id
        ]
        lacking, wanted = self._members.compare_untrusted(message.entries, link.node_id, now)
        self._send(link, lacking)
        if wanted:
            self._links.send(link, Want(wanted))
        if about_us and max(about_us) > own.key:
            self._listener.identity.refute(*max(about_us), now)

    def want_untrusted(self, link: Link, want: Want, now: Instant) -> None:
        """Send the records that a peer asks for, as far as we have them."""
        found: list[Record] = []
        for node_id in dict.fromkeys(want.node_ids):
            row = self._members.rows.get(node_id)
            if row is not None and row.is_told and row.record.version > 0:
                found.append(self._members.told(row, now))
            elif node_id == self._members.own.node_id:
                found.append(self._members.own)
        self._send(link, found)

    def _send(self, link: Link, records: list[Record]) -> None:
        for message in split_records(records):
            self._links.send(link, message)

    def records_untrusted(self, link: Link, message: Records, now: Instant) -> None:
        """Take records from a peer: its own, or those of others."""
        about_us: list[tuple[int, int]] = []
        for record in message.records:
            merged = self._members.merge_untrusted(record, link.node_id, now)
            if merged is _IGNORED:
                continue
            if merged is _NEW or merged is _CHANGED:
                self._listener.learned(record.node_id, now, is_new=merged is _NEW)
            elif merged is Merged.REFUTED:
                about_us.append(record.key)
            elif merged is Merged.TWIN:
                self._listener.identity.met_twin(record, link.node_id, now)
            elif merged is Merged.RIVAL:
                self._twins.heard(record, link.node_id, now)
            elif merged is Merged.LEFT:
                self._listener.left(record.node_id, now)
        if about_us:
            self._listener.identity.refute(*max(about_us), now)
