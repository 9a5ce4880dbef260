"""When each member is pinged next: a wheel of slots. Specified in docs/node-health.md.

A node with a thousand members would else wake up for each of their pings. The members of one slot
are pinged together, so that it wakes up some sixty times an interval however many there are.
"""

from __future__ import annotations

from clusternode.core.context import Context
from clusternode.core.types import Instant, NodeId, Seconds

SLOTS_PER_INTERVAL = 64
"""A ping is early by at most this part of an interval, far less than its jitter."""


class Rounds:
    """At most one appointment for each member; a new one replaces it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._width: Seconds = context.settings.health.ping_interval / SLOTS_PER_INTERVAL
        self._offset: Seconds = self._width * context.rng.random()
        self._slots: dict[int, dict[NodeId, None]] = {}  # number → who is pinged, in order
        self._slot_of: dict[NodeId, int] = {}

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._slot_of

    def set(self, node_id: NodeId, at: Instant) -> None:
        """Ping a member at `at`, or earlier by less than the width of a slot."""
        slot = int((at - self._offset) // self._width)
        if node_id in self._slot_of:
            self.cancel(node_id)
        members = self._slots.get(slot)
        if members is None:
            members = self._slots[slot] = {}
            due = self._offset + slot * self._width
            self._context.timers.set(("round", slot), due)
        members[node_id] = None
        self._slot_of[node_id] = slot

    def cancel(self, node_id: NodeId) -> None:
        """Forget the appointment of a member; having none is no error."""
        slot = self._slot_of.pop(node_id, None)
        if slot is not None:
            members = self._slots[slot]
            del members[node_id]
            if not members:
                del self._slots[slot]
                self._context.timers.cancel(("round", slot))

    def take(self, slot: int) -> list[NodeId]:
        """Take out the members of a slot whose time has come."""
        members = list(self._slots.pop(slot, ()))
        for node_id in members:
            del self._slot_of[node_id]
        return members
