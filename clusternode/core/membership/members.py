"""The record table and the member list: what is known of every node, and how two tables merge.

Specified in docs/protocol.md, section 6 (records) and docs/node-health.md (statuses).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from clusternode.core.context import Context
from clusternode.core.events import (
    Event,
    Joined,
    NodeStateChanged,
    PeerDisabled,
    PeerDown,
    PeerLeft,
    PeerRemoved,
    PeerUp,
    RecordChanged,
)
from clusternode.core.membership.digest import digest_of_record
from clusternode.core.membership.health import Health
from clusternode.core.types import ChannelName, Incarnation, Instant, NodeId
from clusternode.core.wire.limits import ENTRIES_MAX
from clusternode.core.wire.messages import ListEntry, Record

_PEER_EVENTS: dict[Health, Callable[[str, str, str], Event]] = {
    Health.ACTIVE: PeerUp,
    Health.NOT_ACTIVE: PeerDown,
    Health.DISABLED: PeerDisabled,
    Health.LEFT: PeerLeft,
    Health.REMOVED: PeerRemoved,
}


@attrs.define(eq=False)
class Row:
    """What we know of one other node. REMOVED rows are records without being members."""

    record: Record
    health: Health
    known_since: Instant
    silent_since: Instant
    """When anyone, as far as we know, last had contact with it."""
    heard_at: Instant | None = None
    """When it last proved to us that it is there."""
    fail_count: int = 0
    is_confirmed: bool = False
    """Whether it has ever answered us; until then nothing is raised about it."""
    is_linked: bool = False
    """Whether a connection to it is open, so that only it speaks for itself."""

    @property
    def is_member(self) -> bool:
        return self.health is not Health.REMOVED


class Merged(enum.Enum):
    """What a record from elsewhere did to the table."""

    IGNORED = "ignored"
    NEW = "new"
    """A member that was not there before, or a removed or left one that lives again."""
    CHANGED = "changed"
    LEFT = "left"
    REFUTED = "refuted"
    """It was about ourselves and newer than what we say: we must speak again."""


class Members:
    """All rows but our own, and our own record; keeps the digest of all of them."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context = context
        self.own = record
        self.rows: dict[NodeId, Row] = {}
        self.digest = self._digest_of(record)
        self._active_count = 0

    def __iter__(self) -> Iterator[tuple[NodeId, Row]]:
        return iter(self.rows.items())

    @property
    def is_full(self) -> bool:
        """Tell whether the table has no room for another record: a list would not fit a frame."""
        return len(self.rows) + 1 >= ENTRIES_MAX

    def active_ids(self) -> list[NodeId]:
        active = Health.ACTIVE
        return [node_id for node_id, row in self.rows.items() if row.health is active]

    def is_active(self, node_id: NodeId) -> bool:
        row = self.rows.get(node_id)
        return row is not None and row.health is Health.ACTIVE

    # --- our own record -------------------------------------------------------------------------

    def change_own(
        self,
        *,
        channels: Iterable[ChannelName] | None = None,
        tags: tuple[tuple[str, str], ...] | None = None,
        priority: int | None = None,
        left: bool = False,
        incarnation: Incarnation | None = None,
        version_above: int = 0,
    ) -> Record:
        """Make the next version of the own record and return it."""
        own = self.own
        changed = attrs.evolve(
            own,
            version=max(own.version, version_above) + 1,
            channels=own.channels if channels is None else tuple(sorted(channels)),
            tags=own.tags if tags is None else tags,
            priority=own.priority if priority is None else priority,
            left=left,
            incarnation=own.incarnation if incarnation is None else incarnation,
        )
        self.digest ^= self._digest_of(own) ^ self._digest_of(changed)
        self.own = changed
        return changed

    # --- others' records ------------------------------------------------------------------------

    def merge_untrusted(self, record: Record, source: NodeId, now: Instant) -> Merged:
        """Take a record that `source` sent. Only (incarnation, version) decides which is newer."""
        if record.node_id == self.own.node_id:
            return Merged.REFUTED if record.key > self.own.key else Merged.IGNORED
        if record.silent_for >= self._context.settings.discovery.forget_after:
            return Merged.IGNORED
        row = self.rows.get(record.node_id)
        silent_since = now - record.silent_for
        if row is None and self.is_full:
            self._context.count("records_refused")
            return Merged.IGNORED
        if row is None:
            health = Health.LEFT if record.left else Health.NOT_ACTIVE
            self._insert(Row(record, health, now, silent_since))
            return Merged.LEFT if record.left else Merged.NEW
        if row.is_linked and source != record.node_id:
            return Merged.IGNORED
        row.silent_since = max(row.silent_since, silent_since)
        if record.key <= row.record.key:
            return Merged.IGNORED
        return self._replace(row, record, now)

    def _replace(self, row: Row, record: Record, now: Instant) -> Merged:
        is_new_life = record.incarnation > row.record.incarnation
        visible = (record.address, record.tags, record.channels, record.priority)
        old = row.record
        is_visible_change = visible != (old.address, old.tags, old.channels, old.priority)
        self._swap(row, record)
        if record.left:
            if row.health is Health.LEFT:
                return Merged.IGNORED
            self.set_health(row, Health.LEFT, "it said so", now)
            return Merged.LEFT
        if is_new_life and row.health in (Health.REMOVED, Health.LEFT):
            row.health = Health.NOT_ACTIVE
            row.is_confirmed = False
            row.fail_count = 0
            return Merged.NEW
        if is_visible_change and row.is_confirmed:
            self._context.emit(
                RecordChanged(
                    self._context.settings.cluster, record.node_id, record.version, record.address
                )
            )
        return Merged.CHANGED

    def meet(self, node_id: NodeId, incarnation: Incarnation, address: str, now: Instant) -> Row:
        """Return the row of a node whose HELLO was accepted; a removed or left one is back."""
        row = self.rows.get(node_id)
        provisional = Record(node_id, incarnation, 0, address)
        if row is None:
            row = Row(provisional, Health.NOT_ACTIVE, now, now)
            self._insert(row)
            return row
        if incarnation != row.record.incarnation:
            known = row.record
            self._swap(
                row, attrs.evolve(provisional, channels=known.channels, tags=known.tags)
            )
        if row.health in (Health.REMOVED, Health.LEFT):
            row.health = Health.NOT_ACTIVE
            row.fail_count = 0
        row.silent_since = now
        return row

    def _insert(self, row: Row) -> None:
        self.rows[row.record.node_id] = row
        self.digest ^= self._digest_of(row.record)

    def _swap(self, row: Row, record: Record) -> None:
        self.digest ^= self._digest_of(row.record) ^ self._digest_of(record)
        row.record = record

    def forget(self, node_id: NodeId) -> None:
        """Take a record out of the table altogether."""
        row = self.rows.pop(node_id)
        self.digest ^= self._digest_of(row.record)

    def silent_too_long(self, now: Instant) -> list[NodeId]:
        """Return the nodes that nobody has heard from for `forget_after`."""
        limit = now - self._context.settings.discovery.forget_after
        return [
            node_id
            for node_id, row in self.rows.items()
            if not row.is_linked and row.silent_since <= limit
        ]

    @staticmethod
    def _digest_of(record: Record) -> int:
        return digest_of_record(record.node_id, record.incarnation, record.version)

    # --- digest exchange ------------------------------------------------------------------------

    def list_entries(self, now: Instant) -> list[ListEntry]:
        """Return every (node_id, incarnation, version, silent_for), our own first."""
        own = self.own
        entries = [ListEntry(own.node_id, own.incarnation, own.version, 0.0)]
        entries += [
            ListEntry(node_id, row.record.incarnation, row.record.version, silence_of(row, now))
            for node_id, row in self.rows.items()
        ]
        return entries

    def compare_untrusted(
        self, entries: Sequence[ListEntry], now: Instant
    ) -> tuple[list[Record], list[NodeId], bool]:
        """Return (records the other side lacks, ids that we lack, whether we must refute)."""
        told = {entry.node_id: entry for entry in entries}
        forget_after = self._context.settings.discovery.forget_after
        lacking: list[Record] = []
        wanted: list[NodeId] = []
        must_refute = False
        for entry in entries:
            key = (entry.incarnation, entry.version)
            if entry.node_id == self.own.node_id:
                must_refute = key > self.own.key
                continue
            row = self.rows.get(entry.node_id)
            if row is None or key > row.record.key:
                if entry.silent_for < forget_after:
                    wanted.append(entry.node_id)
            else:
                row.silent_since = max(row.silent_since, now - entry.silent_for)
        own_entry = told.get(self.own.node_id)
        if own_entry is None or (own_entry.incarnation, own_entry.version) < self.own.key:
            lacking.append(self.own)
        for node_id, row in self.rows.items():
            entry_or_none = told.get(node_id)
            if entry_or_none is None or row.record.key > (
                entry_or_none.incarnation,
                entry_or_none.version,
            ):
                if row.record.version > 0:
                    lacking.append(self.told(row, now))
        return lacking, wanted, must_refute

    def told(self, row: Row, now: Instant) -> Record:
        """Return the record of a row as it is told to others: with its silence."""
        return attrs.evolve(row.record, silent_for=silence_of(row, now))

    # --- health ---------------------------------------------------------------------------------

    def set_health(self, row: Row, health: Health, reason: str, now: Instant) -> None:
        """Change a status and tell the observers, if it ever answered us or now does."""
        previous = row.health
        if previous is health:
            return
        was_confirmed = row.is_confirmed
        row.health = health
        if health is Health.ACTIVE:
            row.is_confirmed = True
        self._count_active(row.record.node_id, previous, health)
        if not (was_confirmed or row.is_confirmed):
            return
        cluster, record = self._context.settings.cluster, row.record
        self._context.emit(
            NodeStateChanged(
                cluster_id=cluster,
                node_id=record.node_id,
                new_state=1 if health is Health.ACTIVE else 0,
                status=health.value,
                previous=previous.value if was_confirmed else "new",
                reason=reason,
                fail_count=row.fail_count,
            )
        )
        self._context.emit(_PEER_EVENTS[health](cluster, record.node_id, record.address))

    def _count_active(self, node_id: NodeId, previous: Health, health: Health) -> None:
        if health is Health.ACTIVE:
            self._active_count += 1
            if self._active_count == 1:
                self._context.emit(Joined(self._context.settings.cluster, node_id))
        elif previous is Health.ACTIVE:
            self._active_count -= 1


def silence_of(row: Row, now: Instant) -> float:
    """Return the seconds since anyone had contact, as far as we know."""
    if row.is_linked:
        return 0.0
    return max(0.0, now - row.silent_since)
