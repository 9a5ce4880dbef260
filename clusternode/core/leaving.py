"""Leaving the cluster: tell everyone, wait until they know, and close.

Specified in docs/protocol.md, section 6.
"""

from __future__ import annotations

from clusternode.core.context import Context
from clusternode.core.effects import LeaveFinished
from clusternode.core.membership.membership import Membership
from clusternode.core.messaging.messaging import Messaging
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.core.wire.messages import CloseReason

LEAVE_TIMEOUT: Seconds = 0.5
"""How long a leaving node waits for the others to know it; a stop ends within a second."""


class Leaving:
    """The end of a node's life; begun once."""

    def __init__(self, context: Context, membership: Membership, messaging: Messaging) -> None:
        self._context = context
        self._membership = membership
        self._messaging = messaging
        self._unaware: dict[NodeId, None] = {}  # who has not proved yet that it knows
        self._until: Instant | None = None
        self.is_under_way = False

    def begin(self, now: Instant) -> None:
        """Publish the last version of our record and ask everyone whether it has arrived."""
        if self._until is not None:
            return
        self.is_under_way = True
        self._until = now + LEAVE_TIMEOUT
        self._context.timers.set(("leave",), self._until)
        self._messaging.is_leaving = True
        membership = self._membership
        membership.memory.persist(now)  # there will be no later
        membership.exchange.publish(membership.members.change_own(left=True))
        for link in membership.links:
            membership.keepalive.unwatch(link.node_id)
            mark = self._messaging.position_mark(link.node_id)
            membership.keepalive.ping(link.node_id, mark, now)
            self._unaware[link.node_id] = None

    def heard_by(self, node_id: NodeId) -> None:
        """A member has proved that what we sent before has arrived."""
        self._unaware.pop(node_id, None)

    def finish_if_done(self, now: Instant) -> None:
        """Close all connections when everyone connected knows, or was waited for long enough."""
        assert self._until is not None
        if now < self._until:
            links = self._membership.links
            if any(links.is_open_to(node_id) for node_id in self._unaware):
                return
            if not self._messaging.is_drained():
                return
        self.is_under_way = False
        self._unaware.clear()
        self._context.timers.cancel(("leave",))
        for link in self._membership.links.every():
            self._membership.links.close(link, CloseReason.BYE, "leaving")
        self._messaging.abandon_all()
        self._messaging.flush()
        self._context.effects.append(LeaveFinished())
