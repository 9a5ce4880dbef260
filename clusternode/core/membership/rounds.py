"""When each member is pinged next: a wheel of slots. Specified in docs/node-health.md.

A node with a thousand members would else wake up for each of their pings. The members of one slot
are pinged together, so that it wakes up some thirty times an interval however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from clusternode.core.context import Context
from clusternode.core.types import Instant, NodeId, Seconds

SLOTS_PER_INTERVAL = 32
"""A ping is early by at most this part of an interval, far less than its jitter."""


class Rounds:
    """At most one appointment for each member; a new one replaces it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._interval: Seconds = context.settings.health.ping_interval
        self._width: Seconds = self._interval / SLOTS_PER_INTERVAL
        self._offset: Seconds = self._width * context.rng.random()
        self._slots: dict[int, dict[NodeId, None]] = {}  # number → who is pinged, in order
        self.slot_of: dict[NodeId, int] = {}  # for others to read

    def set(self, node_id: NodeId, at: Instant) -> None:
        """Ping a member at `at`, or earlier by less than the width of a slot."""
        if node_id in self.slot_of:
            self.cancel(node_id)
        slot = int((at - self._offset) // self._width)
        self._members_of(slot)[node_id] = None
        self.slot_of[node_id] = slot

    def take(self, slot: int, now: Instant) -> list[NodeId]:
        """Return the members of a slot whose time has come; each has its next appointment.

        They get it in groups, so small that an even spread over the slots stays even.
        """
        members = list(self._slots.pop(slot, ()))
        size = -(-len(self.slot_of) // SLOTS_PER_INTERVAL)
        for first in range(0, len(members), max(1, size)):
            at = now + self._context.jittered(self._interval)
            self._put(members[first : first + size], at)
        return members

    def cancel(self, node_id: NodeId) -> None:
        """Forget the appointment of a member; having none is no error."""
        slot = self.slot_of.pop(node_id, None)
        if slot is not None:
            members = self._slots[slot]
            del members[node_id]
            if not members:
                del self._slots[slot]
                self._context.timers.cancel(("round", slot))

    def _put(self, group: Sequence[NodeId], at: Instant) -> None:
        """Ping some members at `at`, or earlier by less than the width of a slot."""
        slot = int((at - self._offset) // self._width)
        self._members_of(slot).update(dict.fromkeys(group))
        self.slot_of.update(dict.fromkeys(group, slot))

    def _members_of(self, slot: int) -> dict[NodeId, None]:
        """Return who is pinged in a slot; one that was empty gets its timer."""
        members = self._slots.get(slot)
        if members is None:
            members = self._slots[slot] = {}
            self._context.timers.set(("round", slot), self._offset + slot * self._width)
        return members
