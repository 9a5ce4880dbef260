"""When the record of a node is forgotten: `forget_after` after anyone had contact with it.

Specified in docs/protocol.md, section 6.
"""

from __future__ import annotations

from collections.abc import Callable

from clusternode.core.context import Context
from clusternode.core.membership.links import Links
from clusternode.core.membership.members import Members, Row
from clusternode.core.types import Instant, NodeId, Seconds

FORGET_CHECK_INTERVAL: Seconds = 60.0
FORGET_CHECKS_MIN = 4
"""A record is forgotten late by at most this part of `forget_after`."""


class Forgetting:
    """Looks now and then for those whom nobody has heard from too long."""

    def __init__(
        self,
        context: Context,
        members: Members,
        links: Links,
        is_notification: Callable[[Row], bool],
    ) -> None:
        self._context = context
        self._members = members
        self._links = links
        self._is_notification = is_notification

    def check_later(self, now: Instant) -> None:
        forget_after = self._context.settings.discovery.forget_after
        interval = min(FORGET_CHECK_INTERVAL, forget_after / FORGET_CHECKS_MIN)
        self._context.timers.set(("forget",), now + interval)

    def due(self, now: Instant) -> list[NodeId]:
        """Return whose records are forgotten now; those of notification addresses are kept."""
        self.check_later(now)
        found: list[NodeId] = []
        for node_id in self._members.silent_too_long(now):
            row = self._members.rows[node_id]
            if self._links.of(node_id):
                continue
            if row.is_member and self._is_notification(row):
                self._members.keep_untold(row)
            else:
                found.append(node_id)
        return found
