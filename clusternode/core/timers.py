"""The deadline queue of a node: what is to be done when. Specified in docs/architecture.md.

It knows no clock: instants come in through the arguments.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

from clusternode.core.types import Instant

TimerKey: TypeAlias = tuple[Any, ...]
"""What is to be done, and to whom: `("ping", node_id)`. Hashable; only who set it knows its parts.
"""

Entry: TypeAlias = list[Any]
"""A deadline, the number of its setting, and its key; None instead of the key once it is stale."""
AT, ORDER, KEY = range(3)

STALE_ENTRIES_MIN = 64
"""So few stale entries are never worth a rebuild of the heap."""


class Timers:
    """At most one deadline per key; setting it again replaces it.

    Replaced and cancelled entries stay in the heap until they reach its top, or until they are
    more than the live ones when another one is replaced or cancelled: the heap is then rebuilt.
    Setting and cancelling cost O(log n) on average.
    """

    __slots__ = ("_entries", "_heap", "_order")

    def __init__(self) -> None:
        self._entries: dict[TimerKey, Entry] = {}  # key → its live heap entry
        self._heap: list[Entry] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: TimerKey) -> bool:
        return key in self._entries

    def set(self, key: TimerKey, at: Instant) -> None:
        """Make `key` due at `at`, whatever was set for it before."""
        self._order = order = self._order + 1
        entries, heap = self._entries, self._heap
        replaced = entries.get(key)
        entries[key] = entry = [at, order, key]
        heappush(heap, entry)
        if replaced is not None:
            self._let_go(replaced)

    def cancel(self, key: TimerKey) -> None:
        """Forget `key`; one that is not set is no error."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        entry[KEY] = None
        if len(self._heap) > 2 * len(self._entries) + STALE_ENTRIES_MIN:
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def deadline_of(self, key: TimerKey) -> Instant | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[AT]

    def next_deadline(self) -> Instant | None:
        """Tell the earliest deadline; None when nothing is set."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[KEY] is not None:
                at: Instant = entry[AT]
                return at
            heappop(heap)
        return None

    def pop_due(self, now: Instant) -> list[TimerKey]:
        """Take out the keys whose deadline is `now` or earlier.

        Returns:
            In the order of their deadlines; equal deadlines in the order in which they were set.
        """
        due: list[TimerKey] = []
        heap, entries = self._heap, self._entries
        while heap and heap[0][AT] <= now:
            key = heappop(heap)[KEY]
            if key is not None:
                del entries[key]
                due.append(key)
        return due

    def deadlines(self) -> list[tuple[Instant, TimerKey]]:
        """Return all that is set, in the order in which it was set."""
        entries = sorted(self._entries.values(), key=lambda entry: entry[ORDER])
        return [(at, key) for at, _, key in entries]

    def restore(self, deadlines: list[tuple[Instant, TimerKey]]) -> None:
        """Forget everything, and set these in this order."""
        self._entries.clear()
        self._heap.clear()
        for at, key in deadlines:
            self.set(key, at)
