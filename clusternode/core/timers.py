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

STALE_ENTRIES_MIN = 64
"""So few stale entries are never worth a rebuild of the heap."""


class Timers:
    """At most one deadline per key; setting it again replaces it.

    Replaced and cancelled entries stay in the heap until they reach its top, or until they are
    more than the live ones: the heap is then rebuilt, so it holds at most twice the live entries
    and `STALE_ENTRIES_MIN`. Setting and cancelling cost O(log n) on average.
    """

    __slots__ = ("_entries", "_heap", "_order")

    def __init__(self) -> None:
        self._entries: dict[
            TimerKey, tuple[Instant, int, TimerKey]
        ] = {}  # key → its live heap entry
        self._heap: list[tuple[Instant, int, TimerKey]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: TimerKey) -> bool:
        return key in self._entries

    def set(self, key: TimerKey, at: Instant) -> None:
        """Make `key` due at `at`, whatever was set for it before."""
        self._order += 1
        entry = (at, self._order, key)
        entries, heap = self._entries, self._heap
        entries[key] = entry
        heappush(heap, entry)
        if len(heap) > 2 * len(entries) + STALE_ENTRIES_MIN:
            self._compact()

    def cancel(self, key: TimerKey) -> None:
        """Forget `key`; one that is not set is no error."""
        entries = self._entries
        if entries.pop(key, None) is not None:
            if len(self._heap) > 2 * len(entries) + STALE_ENTRIES_MIN:
                self._compact()

    def deadline_of(self, key: TimerKey) -> Instant | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def next_deadline(self) -> Instant | None:
        """Tell the earliest deadline; None when nothing is set."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is entry:
                return entry[0]
            heappop(heap)
        return None

    def pop_due(self, now: Instant) -> list[TimerKey]:
        """Take out the keys whose deadline is `now` or earlier.

        Returns:
            In the order of their deadlines; equal deadlines in the order in which they were set.
        """
        due: list[TimerKey] = []
        heap, entries = self._heap, self._entries
        while heap and heap[0][0] <= now:
            entry = heappop(heap)
            key = entry[2]
            if entries.get(key) is entry:
                del entries[key]
                due.append(key)
        return due

    def deadlines(self) -> list[tuple[Instant, TimerKey]]:
        """Return all that is set, in the order in which it was set."""
        entries = sorted(self._entries.values(), key=lambda entry: entry[1])
        return [(at, key) for at, _, key in entries]

    def restore(self, deadlines: list[tuple[Instant, TimerKey]]) -> None:
        """Forget everything, and set these in this order."""
        self._entries.clear()
        self._heap.clear()
        for at, key in deadlines:
            self.set(key, at)

    def _compact(self) -> None:
        self._heap = list(self._entries.values())
        heapify(self._heap)
