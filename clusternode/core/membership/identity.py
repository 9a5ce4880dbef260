"""Who we are: two processes with one node id, and incarnations that others know better than we.

Specified in docs/protocol.md, section 5. The younger of two, which is the one with the larger
incarnation, withdraws; the older one announces itself again with a larger incarnation.
"""

from __future__ import annotations

from collections.abc import Callable

from clusternode.core.context import Context
from clusternode.core.effects import Withdraw
from clusternode.core.events import DuplicateId
from clusternode.core.membership.links import Link
from clusternode.core.membership.members import Members
from clusternode.core.types import Incarnation, Instant, NodeId
from clusternode.core.wire.limits import HEARSAY_MAX
from clusternode.core.wire.messages import CloseReason, Hello, Record

INCARNATION_STEP = 1
"""A refuted or stale incarnation is exceeded by this much."""
REFUTE_INTERVAL = 1.0
"""Between two refutations in seconds: a digest exchange asks for the next one soon enough. And
between two reports of what peers say about other processes with our node id."""


def twin_of(hello: Hello) -> Record:
    """Return what tells a node of another process with its id: version 0, which no record has."""
    return Record(hello.node_id, hello.incarnation, 0, hello.address)


class Identity:
    """Defends our node id and our own record."""

    def __init__(
        self,
        context: Context,
        members: Members,
        publish: Callable[[Record], None],
        reconnect: Callable[[Instant], None],
    ) -> None:
        self._context = context
        self._members = members
        self._publish = publish
        self._reconnect = reconnect
        self._raised_at: Instant | None = None
        self._refuted_at: Instant | None = None
        self._told_at: Instant | None = None
        self._is_withdrawn = False

    def met_other(self, link: Link) -> None:
        """Another process has our node id: withdraw if we are the younger."""
        settings = self._context.settings
        hello = link.hello
        where = f"{hello.address} ({link.remote})" if link.dialed is None else str(link.dialed)
        self.report(where)
        if (self._members.own.incarnation, settings.nonce) > (hello.incarnation, hello.nonce):
            self._withdraw(where)

    def met_twin(self, twin: Record, source: NodeId, now: Instant) -> None:
        """A peer has refused another process with our node id, and tells us; that one knows."""
        if self._told_at is None or now - self._told_at >= REFUTE_INTERVAL:
            self._told_at = now
            self.report(f"{twin.address}, says {source}")

    def report(self, where: str) -> None:
        """Tell the observers that there is another process with our node id."""
        settings = self._context.settings
        self._context.count("duplicate_ids")
        self._context.emit(DuplicateId(settings.cluster, settings.node_id, where))

    def refused(self, reason: int, value: int, where: str, now: Instant) -> None:
        """Take the reason for which a peer did not open a connection with us.

        A node that has no active member is a newcomer and withdraws before any live one; between
        two halves of a cluster that meet again, the younger does.
        """
        if reason == CloseReason.STALE_INCARNATION:
            self.exceed(Incarnation(value), now)
        elif reason == CloseReason.DUPLICATE_ID:
            self.report(where)
            is_younger = value == 0 or self._members.own.incarnation > value
            if is_younger or self._members.active_count == 0:
                self._withdraw(where)

    def _withdraw(self, where: str) -> None:
        if self._is_withdrawn:
            return
        self._is_withdrawn = True
        self._context.effects.append(Withdraw(where))

    def exceed(self, known: Incarnation, now: Instant) -> None:
        """Somebody knows a larger incarnation of us than ours: exceed it and say hello again.

        At most once per ping interval, so that nobody can keep us busy with it.
        """
        own = self._members.own
        if known < own.incarnation or own.left:
            return
        interval = self._context.settings.health.ping_interval
        is_early = self._raised_at is not None and now - self._raised_at < interval
        if is_early or known > HEARSAY_MAX:
            return
        self._raised_at = now
        self._members.change_own(incarnation=Incarnation(known + INCARNATION_STEP))
        self._context.count("incarnations_raised")
        self._reconnect(now)

    def refute(self, incarnation: int, version: int, now: Instant) -> None:
        """Others hold a newer record of us than ours: say the truth, above it.

        Where it takes a larger incarnation, that is, where every connection would have to be made
        anew, hearsay is not enough while somebody is active: our peers believe nobody but us, and
        whoever is dialled and really knows a larger one says so in its CLOSE.
        """
        if incarnation > self._members.own.incarnation or version > HEARSAY_MAX:
            if self._members.active_count == 0:
                self.exceed(Incarnation(incarnation), now)
            return
        if self._refuted_at is None or now - self._refuted_at >= REFUTE_INTERVAL:
            self._refuted_at = now
            self._publish(self._members.change_own(version_above=version))
