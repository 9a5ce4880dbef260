"""The record table and the member list: what is known of every node, and how two tables merge.

Specified in docs/protocol.md, section 6 (records) and docs/node-health.md (statuses).
"""

from __future__ import annotations

import enum
import functools
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
from clusternode.core.membership.health import Health, apply_left, apply_returned
from clusternode.core.types import ChannelName, Incarnation, Instant, NodeId, Seconds
from clusternode.core.wire.limits import ENTRIES_MAX, HEARSAY_MAX, STRANGERS_MAX
from clusternode.core.wire.messages import ListEntry, Record

_STATUSES = {health: health.value for health in Health}
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
    """Whether it has answered us since it came (back); until then nothing is raised about it."""
    has_answered: bool = False
    """Whether it has ever answered us."""
    told: Health | None = None
    """The status that observers were told last: the next event goes on from there."""
    is_linked: bool = False
    """Whether a connection to it is open, so that only it speaks for itself."""
    is_told: bool = True
    """Whether its record is in the digest and told to others: it was not silent too long."""
    farewell: tuple[Instant, Record] | None = None
    """When others said that it left while a connection to it was open, and the record."""

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
    TWIN = "twin"
    """It is of another process with our node id, which the sender has refused."""
    RIVAL = "rival"
    """It is of another process than the one that we are connected with, and lives, it says."""


# Names of their own: to look a member of an enumeration up costs as much as a call.
_IGNORED, _NEW, _CHANGED = Merged.IGNORED, Merged.NEW, Merged.CHANGED
_ACTIVE, _NOT_ACTIVE = Health.ACTIVE, Health.NOT_ACTIVE
_LEFT, _REMOVED = Health.LEFT, Health.REMOVED


class Members:
    """All rows but our own, and our own record; keeps the digest of all of them."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context = context
        self._forget_after: Seconds = context.settings.discovery.forget_after
        self.own = record
        self.rows: dict[NodeId, Row] = {}
        self.digest = self._digest_of(record)
        self.active_count = 0
        self.stranger_count = 0

    def __iter__(self) -> Iterator[tuple[NodeId, Row]]:
        return iter(self.rows.items())

    @property
    def is_full(self) -> bool:
        """Tell whether the table has no room for another record: a list would not fit a frame."""
        return len(self.rows) + 1 >= ENTRIES_MAX

    @property
    def room_for_strangers(self) -> int:
        """Return how many more records are taken of nodes that have never answered us."""
        return max(0, min(ENTRIES_MAX - 1 - len(self.rows), STRANGERS_MAX - self.stranger_count))

    def is_active(self, node_id: NodeId) -> bool:
        row = self.rows.get(node_id)
        return row is not None and row.health is _ACTIVE

    # --- our own record -------------------------------------------------------------------------

    def change_own(
        self,
        *,
        channels: Iterable[ChannelName] | None = None,
        tags: tuple[tuple[str, str], ...] | None = None,
        priority: int | None = None,
        down: tuple[NodeId, ...] | None = None,
        left: bool = False,
        incarnation: Incarnation | None = None,
        version_above: int = 0,
    ) -> Record:
        """Make the next version of the own record and return it; who has left stays so."""
        own = self.own
        changed = attrs.evolve(
            own,
            version=max(own.version, version_above) + 1,
            channels=own.channels if channels is None else tuple(sorted(channels)),
            tags=own.tags if tags is None else tags,
            priority=own.priority if priority is None else priority,
            down=own.down if down is None else down,
            left=left or own.left,
            incarnation=own.incarnation if incarnation is None else incarnation,
        )
        self.digest ^= self._digest_of(own) ^ self._digest_of(changed)
        self.own = changed
        return changed

    # --- others' records ------------------------------------------------------------------------

    def merge_untrusted(self, record: Record, source: NodeId, now: Instant) -> Merged:
        """Take a record that `source` sent. Only (incarnation, version) decides which is newer."""
        if record.node_id == self.own.node_id:
            if record.version == 0:
                is_twin = record.incarnation != self.own.incarnation
                return Merged.TWIN if is_twin else _IGNORED
            return Merged.REFUTED if record.key > self.own.key else _IGNORED
        if record.silent_for >= self._forget_after or record.version == 0:
            return _IGNORED
        row = self.rows.get(record.node_id)
        silent_since = now - record.silent_for
        is_extreme = record.incarnation > HEARSAY_MAX or record.version > HEARSAY_MAX
        if is_extreme and source != record.node_id:
            self._context.count("records_refused")  # its owner could not exceed it
            return _IGNORED
        if row is None and self.room_for_strangers == 0:
            self._context.count("records_refused")
            return _IGNORED
        if row is None:
            health = Health.LEFT if record.left else _NOT_ACTIVE
            self._insert(Row(record, health, now, silent_since))
            return Merged.LEFT if record.left else _NEW
        if row.is_linked and source != record.node_id:
            if record.left and record.incarnation == row.record.incarnation:
                row.farewell = now, record
            return Merged.RIVAL if self._is_rival(row, record) else _IGNORED
        if silent_since > row.silent_since:
            self._heard_of(row, silent_since)
        known = row.record
        if (record.incarnation, record.version) > (known.incarnation, known.version):
            return self._replace(row, record, now)
        if record.left and source == record.node_id and record.key == known.key:
            return self._left_again(row, now)
        return _IGNORED

    def _left_again(self, row: Row, now: Instant) -> Merged:
        """Believe a farewell again that its owner repeats on a connection that brought it back.

        Such a connection has crossed the farewell on another one, and its node is about to go.
        """
        if row.health is _LEFT or row.health is _REMOVED:
            return _IGNORED
        self.set_health(row, apply_left(row.health), "it said so", now)
        return Merged.LEFT

    def believe_farewell(self, row: Row, now: Instant) -> bool:
        """Tell whether a member that does not answer has left, as others have said, or itself.

        They are believed unless it has answered since: our connection to it may be broken, and it
        may have said so to them only (semantics, section 3). It said so itself, and was brought
        back by a connection that has then brought nothing: it has left again.
        """
        if row.record.left and not row.is_confirmed:
            return self._left_again(row, now) is Merged.LEFT
        if row.farewell is None:
            return False
        (said_at, record), row.farewell = row.farewell, None
        has_answered = row.heard_at is not None and row.heard_at > said_at
        if has_answered or record.key <= row.record.key:
            return False
        return self._replace(row, record, now) is Merged.LEFT

    @staticmethod
    def _is_rival(row: Row, record: Record) -> bool:
        """Tell whether the sender is connected with a process elsewhere that has the same id."""
        known = row.record
        is_other = record.incarnation != known.incarnation and record.address != known.address
        return is_other and record.silent_for == 0 and not record.left

    def _replace(self, row: Row, record: Record, now: Instant) -> Merged:
        is_new_life = record.incarnation > row.record.incarnation
        visible = (record.address, record.tags, record.channels, record.priority)
        old = row.record
        is_visible_change = visible != (old.address, old.tags, old.channels, old.priority)
        self._swap(row, record)
        if record.left:
            if row.health in (Health.LEFT, Health.REMOVED):
                return _CHANGED
            self.set_health(row, apply_left(row.health), "it said so", now)
            return Merged.LEFT
        if is_new_life and self._returned(row):
            return _NEW
        if is_visible_change and row.is_confirmed:
            self._context.emit(
                RecordChanged(
                    self._context.settings.cluster, record.node_id, record.version, record.address
                )
            )
        return _CHANGED

    def meet(self, node_id: NodeId, incarnation: Incarnation, address: str, now: Instant) -> Row:
        """Return the row of a node whose HELLO was accepted; a removed or left one is back."""
        row = self.rows.get(node_id)
        if row is None:
            row = Row(Record(node_id, incarnation, 0, address), _NOT_ACTIVE, now, now)
            self._insert(row)
            return row
        known = row.record
        if incarnation != known.incarnation:
            self._swap(row, Record(node_id, incarnation, 0, address, known.tags, known.channels))
        self._returned(row)
        self._heard_of(row, now)
        return row

    @staticmethod
    def _returned(row: Row) -> bool:
        """Make a removed or left member one again that has yet to answer; tell whether it was."""
        if row.health is not _LEFT and row.health is not _REMOVED:
            return False
        row.health = apply_returned(row.health)
        row.is_confirmed = False
        row.fail_count = 0
        return True

    def _insert(self, row: Row) -> None:
        self.rows[row.record.node_id] = row
        self.stranger_count += 1
        self.digest ^= self._digest_of(row.record)

    def _swap(self, row: Row, record: Record) -> None:
        self._hush(row)
        row.record = record
        row.is_told = True
        self.digest ^= self._digest_of(record)

    def _hush(self, row: Row) -> None:
        if row.is_told:
            row.is_told = False
            self.digest ^= self._digest_of(row.record)

    def _heard_of(self, row: Row, at: Instant) -> None:
        """Take note that somebody had contact with a node at `at`."""
        if at > row.silent_since:
            row.silent_since = at
            if not row.is_told:
                row.is_told = True
                self.digest ^= self._digest_of(row.record)

    def forget(self, node_id: NodeId) -> None:
        """Take a record out of the table altogether."""
        row = self.rows.pop(node_id)
        self.stranger_count -= not row.has_answered
        self._hush(row)

    def keep_untold(self, row: Row) -> None:
        """Keep a member that nobody has heard from too long for ourselves only."""
        self._hush(row)

    def dispensable(self) -> NodeId | None:
        """Return who has been silent longest of those that left or were removed."""
        gone = (Health.LEFT, Health.REMOVED)
        found = [
            (row.silent_since, node_id)
            for node_id, row in self.rows.items()
            if row.health in gone and not row.is_linked
        ]
        return min(found)[1] if found else None

    def silent_too_long(self, now: Instant) -> list[NodeId]:
        """Return the nodes that nobody has heard from for `forget_after`."""
        limit = now - self._forget_after
        return [
            node_id
            for node_id, row in self.rows.items()
            if not row.is_linked and row.silent_since <= limit
        ]

    @staticmethod
    def _digest_of(record: Record) -> int:
        """Return what a record adds to the digest: nothing before its owner has sent it."""
        if record.version == 0:
            return 0
        return digest_of_record(record.node_id, record.incarnation, record.version)

    # --- digest exchange ------------------------------------------------------------------------

    def list_entries(self, now: Instant) -> list[ListEntry]:
        """Return every (node_id, incarnation, version, silent_for), our own first."""
        own = self.own
        entries = [_entry_of_linked(own.node_id, own.incarnation, own.version)]
        entries += [
            _entry_of_linked(node_id, record.incarnation, record.version)
            if row.is_linked
            else ListEntry(node_id, record.incarnation, record.version, silence_of(row, now))
            for node_id, row in self.rows.items()
            if row.is_told and (record := row.record).version > 0
        ]
        return entries

    def compare_untrusted(
        self, entries: Sequence[ListEntry], source: NodeId, now: Instant
    ) -> tuple[list[Record], list[NodeId]]:
        """Return (records that `source` lacks, ids that we lack), given all that it knows.

        Of more strangers than there is room for, we want those that were heard of last.
        """
        told = {entry.node_id: entry for entry in entries}  # node → what is known of it there
        wanted: list[NodeId] = []
        strangers: list[tuple[Seconds, NodeId]] = []
        rows, own_id, forget_after = self.rows, self.own.node_id, self._forget_after
        for entry in entries:
            node_id, silent_for = entry.node_id, entry.silent_for
            row = rows.get(node_id)
            if row is not None and row.is_linked and node_id != source:
                if entry.incarnation == row.record.incarnation:  # nearly always
                    continue  # it speaks for itself
            if (
                entry.incarnation > HEARSAY_MAX or entry.version > HEARSAY_MAX
            ) and source != node_id:
                continue
            if row is None:
                if silent_for < forget_after and node_id != own_id:
                    strangers.append((silent_for, node_id))
                continue
            record = row.record
            if row.is_linked and source != node_id:
                if entry.incarnation != record.incarnation and silent_for == 0:
                    wanted.append(node_id)  # is it another process?
            elif silent_for >= forget_after:
                continue
            elif (entry.incarnation, entry.version) > (record.incarnation, record.version):
                wanted.append(node_id)
            elif now - silent_for > row.silent_since:
                self._heard_of(row, now - silent_for)
        room = self.room_for_strangers
        if len(strangers) > room:
            strangers = sorted(strangers, key=lambda one: one[0])[:room]
        wanted += [node_id for _, node_id in strangers]
        mine = told.get(own_id)
        is_ahead = mine is None or self.own.key > (mine.incarnation, mine.version)
        lacking = [self.own] if is_ahead else []
        differing = [
            (row, known)
            for node_id, row in rows.items()
            if (known := told.get(node_id)) is None
            or known.version != row.record.version
            or known.incarnation != row.record.incarnation
        ]
        for row, known in differing:
            record = row.record
            if row.is_told and record.version > 0:
                if known is None or record.key > (known.incarnation, known.version):
                    lacking.append(self.told(row, now))
        return lacking, wanted

    def told(self, row: Row, now: Instant) -> Record:
        """Return the record of a row as it is told to others: with its silence."""
        record, silent_for = row.record, silence_of(row, now)
        if silent_for == record.silent_for:
            return record
        return record.told_after(silent_for)

    # --- health ---------------------------------------------------------------------------------

    def set_health(self, row: Row, health: Health, reason: str, now: Instant) -> None:
        """Change a status and tell the observers, if it ever answered us or now does."""
        previous = row.health
        if previous is health:
            return
        was_confirmed = row.is_confirmed
        row.health = health
        if health is _ACTIVE:
            self.stranger_count -= not row.has_answered
            row.is_confirmed = row.has_answered = True
        if health is _ACTIVE or previous is _ACTIVE:
            self._count_active(row.record.node_id, health)
        if not (was_confirmed or row.is_confirmed):
            return
        cluster, record, told = self._context.settings.cluster, row.record, row.told
        row.told = health
        self._context.emit(
            NodeStateChanged(
                cluster_id=cluster,
                node_id=record.node_id,
                new_state=1 if health is _ACTIVE else 0,
                status=_STATUSES[health],
                previous="new" if told is None else _STATUSES[told],
                reason=reason,
                fail_count=row.fail_count,
            )
        )
        self._context.emit(_PEER_EVENTS[health](cluster, record.node_id, record.address))

    def _count_active(self, node_id: NodeId, health: Health) -> None:
        if health is _ACTIVE:
            self.active_count += 1
            if self.active_count == 1:
                self._context.emit(Joined(self._context.settings.cluster, node_id))
        else:
            self.active_count -= 1


@functools.lru_cache(maxsize=ENTRIES_MAX)  # lists are sent often while a large cluster forms
def _entry_of_linked(node_id: NodeId, incarnation: Incarnation, version: int) -> ListEntry:
    """Return what a list says of a member that is connected, or of ourselves."""
    return ListEntry(node_id, incarnation, version, 0.0)


def silence_of(row: Row, now: Instant) -> float:
    """Return the seconds since anyone had contact, as far as we know."""
    if row.is_linked:
        return 0.0
    return max(0.0, now - row.silent_since)
