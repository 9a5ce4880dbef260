"""When each member is pinged next: a wheel of slots. Specified in docs/node-health.md.

A node with a thousand members would else wake up for each of their pings. The members of one slot
are pinged together, so that it wakes up some thirty times an interval however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from math import ceil

import attrs

from clusternode.core.context import Context
from clusternode.core.types import Instant, NodeId, Seconds

SLOTS_PER_INTERVAL = 32
"""A ping is early by at most this part of an interval, far less than its jitter."""


FAIR_MIN = 2.0
"""Members are grouped where the even part of a slot is more than this: groups of one or two would
spare nothing."""
GROUP_MIN, GROUP_MAX = 0.5, 2.0
"""How large a group is, by the even part of a slot: it stays as it is as long as this is so. Those
that meet in a slot while a cluster forms are mostly within it."""
ASKED_TOGETHER_MAX = 16
"""All of a slot are asked with one ping where they are no more than this, else each group: with
more members a frame and an effect of its own cost less than to look each of them up."""


@attrs.define(eq=False)
class Group:
    """Members that have their turn together."""

    slot: int
    node_ids: list[NodeId]
    """Another list when one of them is gone: who has seen it may keep what it found for it."""


@attrs.define(eq=False)
class Slot:
    """Whose turn comes at the same time."""

    singles: dict[NodeId, None] = attrs.Factory(dict)  # in order
    groups: list[Group] = attrs.Factory(list)


class Rounds:
    """At most one appointment for each member; a new one replaces it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._interval: Seconds = context.settings.health.ping_interval
        self.width: Seconds = self._interval / SLOTS_PER_INTERVAL  # for others to read
        self._offset: Seconds = self.width * context.rng.random()
        self._slots: dict[int, Slot] = {}  # number → who is pinged
        self._place_of: dict[NodeId, int | Group] = {}  # the number of a slot, or a group in one

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._place_of

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._place_of)

    def slot_of(self, node_id: NodeId) -> int:
        """Return the slot of somebody who has an appointment."""
        place = self._place_of[node_id]
        return place if isinstance(place, int) else place.slot

    def set(self, node_id: NodeId, at: Instant) -> None:
        """Ping a member at `at`, or earlier by less than the width of a slot."""
        if node_id in self._place_of:
            self.cancel(node_id)
        number = self._number_at(at)
        self._slot(number).singles[node_id] = None
        self._place_of[node_id] = number

    def members_of(self, number: int) -> list[NodeId]:
        """Return the members of a slot, in order."""
        slot = self._slots.get(number)
        if slot is None:
            return []
        return list(chain(*(group.node_ids for group in slot.groups), slot.singles))

    def move(self, node_ids: Sequence[NodeId], at: Instant) -> None:
        """Ping those who have an appointment at `at` instead: what `set` does, for many."""
        if node_ids:
            for node_id in node_ids:
                self.cancel(node_id)
            number = self._number_at(at)
            self._slot(number).singles.update(dict.fromkeys(node_ids))
            self._place_of.update(dict.fromkeys(node_ids, number))

    def take(self, number: int, now: Instant) -> list[list[NodeId]]:
        """Return the members of a slot whose time has come; each has its next appointment.

        Returns:
            Those that are asked with one ping, in lists. That of a group is the same one as long
            as the group stays as it is.
        """
        slot = self._slots.pop(number, None)
        if slot is None:
            return []
        fair = len(self._place_of) / SLOTS_PER_INTERVAL
        singles = list(slot.singles)
        if fair <= FAIR_MIN:
            singles = [*chain(*(group.node_ids for group in slot.groups)), *singles]
            for node_id in singles:
                self._place_of[node_id] = at = self._number_at(self._next(now))
                self._slot(at).singles[node_id] = None
            return [singles]
        found = [*slot.groups, self._new_group(singles)] if singles else slot.groups
        groups = self._fit(found, fair)
        for group in groups:
            group.slot = self._number_at(self._next(now))
            self._slot(group.slot).groups.append(group)
        lists = [group.node_ids for group in groups]
        if len(lists) > 1 and sum(map(len, lists)) <= ASKED_TOGETHER_MAX:
            return [list(chain(*lists))]
        return lists

    def _fit(self, groups: list[Group], fair: float) -> list[Group]:
        """Return the same members in the same order, in groups neither too large nor too small."""
        largest, smallest = int(GROUP_MAX * fair), GROUP_MIN * fair
        fitting: list[Group] = []
        for group in groups:
            node_ids, last = group.node_ids, fitting[-1].node_ids if fitting else []
            count = len(node_ids)
            if count > largest:
                size = ceil(count / ceil(count / largest))
                parts = [node_ids[first : first + size] for first in range(0, count, size)]
                fitting += map(self._new_group, parts)
            elif last and min(count, len(last)) < smallest and count + len(last) <= largest:
                fitting[-1] = self._new_group(last + node_ids)
            else:
                fitting.append(group)
        return fitting

    def _new_group(self, node_ids: list[NodeId]) -> Group:
        group = Group(0, node_ids)
        self._place_of.update(dict.fromkeys(node_ids, group))
        return group

    def cancel(self, node_id: NodeId) -> None:
        """Forget the appointment of a member; having none is no error."""
        place = self._place_of.pop(node_id, None)
        if place is None:
            return
        number = place if isinstance(place, int) else place.slot
        slot = self._slots[number]
        if isinstance(place, int):
            del slot.singles[node_id]
        else:
            place.node_ids = [one for one in place.node_ids if one != node_id]
            if not place.node_ids:
                slot.groups.remove(place)
        if not (slot.singles or slot.groups):
            del self._slots[number]
            self._context.timers.cancel(("round", number))

    def _next(self, now: Instant) -> Instant:
        return now + self._context.jittered(self._interval)

    def _number_at(self, at: Instant) -> int:
        """Return the slot for `at`: it begins then, or earlier by less than its width."""
        return int((at - self._offset) / self.width)

    def _slot(self, number: int) -> Slot:
        """Return a slot to put somebody into; one that was empty gets its timer."""
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Slot()
            self._context.timers.set(("round", number), self._offset + number * self.width)
        return slot
