"""What a node remembers across a restart: its incarnation, and whom it knew."""

from __future__ import annotations

import functools

from clusternode.core.context import Context
from clusternode.core.effects import Persist
from clusternode.core.inputs import KnownMember
from clusternode.core.membership.discovery import address_of_untrusted
from clusternode.core.membership.health import Health
from clusternode.core.membership.members import Members, silence_of
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.core.wire.limits import ENTRIES_MAX

PERSIST_DELAY: Seconds = 1.0
"""Changes of the member list within this time are written together."""
PERSIST_DELAY_PER_MEMBER: Seconds = 0.02
"""A long list is written less often: twenty seconds for a thousand members."""
PERSIST = ("persist",)
"""The key of its timer."""


class Memory:
    """Asks for the member list to be written, not more often than is of use."""

    def __init__(self, context: Context, members: Members) -> None:
        self._context = context
        self._members = members

    def changed(self, now: Instant) -> None:
        """Remember the member list on disk soon."""
        if PERSIST not in self._context.timers:
            delay = max(PERSIST_DELAY, PERSIST_DELAY_PER_MEMBER * len(self._members.rows))
            self._context.timers.set(PERSIST, now + delay)

    def persist(self, now: Instant) -> None:
        """Remember the incarnation and the member list on disk now."""
        self._context.effects.append(
            Persist(self._members.own.incarnation, self.known_members(now))
        )

    def known_members(self, now: Instant) -> list[KnownMember]:
        """Return who is to be dialled after a restart."""
        left = Health.LEFT
        return [
            member if row.is_linked else KnownMember(node_id, member.address, silence_of(row, now))
            for node_id, row in self._members.rows.items()
            if row.is_told and row.health is not left
            if (member := _linked_member_untrusted(node_id, row.record.address)) is not None
        ]


@functools.lru_cache(maxsize=ENTRIES_MAX)  # a large list is written often while it grows
def _linked_member_untrusted(node_id: NodeId, text: str) -> KnownMember | None:
    """Return what is remembered of a member that is connected; None if it cannot be dialled."""
    address = address_of_untrusted(text)
    return None if address is None else KnownMember(node_id, address, 0.0)
