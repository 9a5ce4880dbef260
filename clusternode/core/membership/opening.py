"""Which connection of a pair opens, and when: from its two HELLOs to its two Resumes.

Specified in docs/protocol.md, section 5.
"""

from __future__ import annotations

from typing import Protocol

from clusternode.core.context import Context
from clusternode.core.inputs import Connected
from clusternode.core.membership.discovery import Discovery
from clusternode.core.membership.health import Health
from clusternode.core.membership.identity import Identity
from clusternode.core.membership.keepalive import Keepalive
from clusternode.core.membership.links import WAITING_LINKS_MAX, Link, Links, Phase, StreamsOfLinks
from clusternode.core.membership.members import Members
from clusternode.core.types import Address, Instant, NodeId
from clusternode.core.wire.messages import CloseReason, Resume

# Names of their own: to look a member of an enumeration up costs as much as a call.
_OPEN, _WAITING, _RESUMING = Phase.OPEN, Phase.WAITING, Phase.RESUMING
_LEFT = Health.LEFT


class Owner(Protocol):
    """What follows when a connection has opened, or is not to."""

    def opened(self, link: Link, now: Instant) -> None: ...
    def drop(
        self, link: Link, reason: CloseReason | None, now: Instant, detail: str = "", value: int = 0
    ) -> None: ...
    def refuse(
        self, link: Link, reason: CloseReason, detail: str, now: Instant, value: int = 0
    ) -> None: ...
    def replace(self, link: Link, reason: CloseReason, now: Instant) -> None: ...
    def misbehaved(self, link: Link, detail: str, now: Instant) -> None: ...
    def not_there(self, node_id: NodeId | None, address: Address | None, now: Instant) -> None: ...
    def forget(self, node_id: NodeId, now: Instant) -> None: ...
    @property
    def identity(self) -> Identity: ...


class Opening:
    """Decides about every connection that is not open yet."""

    def __init__(
        self,
        context: Context,
        members: Members,
        links: Links,
        streams: StreamsOfLinks,
        keepalive: Keepalive,
        discovery: Discovery,
        owner: Owner,
    ) -> None:
        self._context = context
        self._members = members
        self._links = links
        self._streams = streams
        self._keepalive = keepalive
        self._discovery = discovery
        self._owner = owner

    def connected(self, connected: Connected, now: Instant) -> None:
        """Decide about a connection whose HELLOs are exchanged."""
        hello = connected.hello
        node_id = hello.node_id
        link = self._links.add(connected, now)
        if node_id == self._context.settings.node_id:
            self._met_own_id(link, now)
            return
        if link.dialed is not None:
            self._found_other(link, link.dialed, now)
        rival = self._links.open_to(node_id)
        others = len(self._links.of(node_id)) - (1 if rival is None else 2)
        if self._members.own.left:
            self._owner.refuse(link, CloseReason.BYE, "leaving", now)
        elif others >= WAITING_LINKS_MAX:
            self._owner.refuse(link, CloseReason.LIMIT, "too many connections of one node", now)
        elif rival is None or not self._must_prove(link, rival):
            self.accept(link, now)
        else:
            self._keepalive.ping_again(node_id, self._streams.position_mark(node_id), now)

    def _must_prove(self, link: Link, rival: Link) -> bool:
        """Tell whether the open connection is of another process, which may still live."""
        is_same = link.hello.incarnation == rival.hello.incarnation
        if is_same or self._members.rows[link.node_id].health is _LEFT:
            return False
        return link.hello.nonce != rival.hello.nonce

    def accept(self, link: Link, now: Instant) -> None:
        """Go on with a connection: decide, or wait for the decision of the smaller id."""
        if self._refused_as_unfit(link, now):
            return
        node_id = link.node_id
        if self._context.settings.node_id > node_id:
            link.phase = _WAITING
            self.take_held_resume(link, now)
            return
        rivals = [one for one in self._links.of(node_id) if one.phase in (_OPEN, _RESUMING)]
        if rivals and not all(self._links.stays(link, rival) for rival in rivals):
            self._owner.drop(link, CloseReason.DUPLICATE_CONNECTION, now)
            return
        link.phase = _RESUMING
        for rival in rivals:
            self._owner.replace(rival, CloseReason.DUPLICATE_CONNECTION, now)
        self._links.send(link, self._streams.resume_of(node_id, link.hello))

    def _refused_as_unfit(self, link: Link, now: Instant) -> bool:
        """Refuse an older incarnation than is known, and who finds no room; tell whether."""
        row = self._members.rows.get(link.node_id)
        if row is not None:
            known = row.record.incarnation
            if link.hello.incarnation >= known:
                return False
            self._owner.refuse(
                link, CloseReason.STALE_INCARNATION, "a larger one is known", now, known
            )
            return True
        if self._members.is_full:
            dispensable = self._members.dispensable()
            if dispensable is None or self._links.of(dispensable):
                self._owner.refuse(link, CloseReason.LIMIT, "the member list is full", now)
                return True
            self._owner.forget(dispensable, now)
        return False

    def resume_untrusted(self, link: Link, resume: Resume, now: Instant) -> None:
        """Open a connection by the peer's Resume, answering it if the peer is the one to decide.

        It is held back while the connection has to wait for an older one, and where another one
        that the peer has decided for later is open already: the Close of one of them is on its way.
        """
        if link.phase is _OPEN or link.held_resume is not None:
            self._owner.misbehaved(link, "a second Resume", now)
            return
        rival = self._links.open_to(link.node_id)
        if link.phase is _WAITING and rival is not None:
            if self._must_prove(link, rival):
                link.phase = Phase.PROVING
                mark = self._streams.position_mark(link.node_id)
                self._keepalive.ping_again(link.node_id, mark, now)
            elif self._links.stays(link, rival):
                self._owner.replace(rival, CloseReason.DUPLICATE_CONNECTION, now)
                rival = None
        if link.phase is not _RESUMING and rival is not None:
            link.held_resume = resume
        elif self._streams.doubts(link.node_id, link.hello, resume, link.connected_at):
            # The peer has chosen another one later.
            self._owner.drop(link, CloseReason.DUPLICATE_CONNECTION, now)
        elif not self._refused_as_unfit(link, now):
            self._resume(link, resume, now)

    def take_held_resume(self, link: Link, now: Instant) -> None:
        """Go on with a connection whose Resume was held back, if it was."""
        resume, link.held_resume = link.held_resume, None
        if resume is not None:
            self.resume_untrusted(link, resume, now)

    def _resume(self, link: Link, resume: Resume, now: Instant) -> None:
        if link.phase is _WAITING:
            self._links.send(link, self._streams.resume_of(link.node_id, link.hello))
            link.phase = _RESUMING
        if self._streams.resumed_untrusted(link.node_id, resume, now):
            self._owner.opened(link, now)
        else:
            self._owner.misbehaved(link, "Resume with positions that were never given", now)

    def _met_own_id(self, link: Link, now: Instant) -> None:
        """Two ends with our node id: ourselves, or another process."""
        if link.hello.nonce == self._context.settings.nonce:
            if link.dialed is not None:
                self._discovery.found_self(link.dialed, now)
            self._owner.drop(link, None, now)
            return
        own = self._members.own.incarnation
        self._owner.drop(link, CloseReason.DUPLICATE_ID, now, "this node id is in use", own)
        self._owner.identity.met_other(link)

    def _found_other(self, link: Link, dialed: Address, now: Instant) -> None:
        """Where we dialled one node and found another, the one expected there is not there."""
        node_id = self._discovery.expected_at(dialed)
        if node_id != link.node_id:
            self._owner.not_there(node_id, dialed, now)

    def timed_out(self, link: Link, now: Instant) -> None:
        """Refuse a connection that has not opened in time, and end that of a member that left."""
        if link.phase is Phase.PROVING and self._keepalive.is_open(link.node_id):
            self._links.give_time(link, now)  # it is the older connection that takes so long
        elif link.phase is not _OPEN:
            self._owner.refuse(link, CloseReason.HANDSHAKE_TIMEOUT, "no Resume in time", now)
        elif self._members.rows[link.node_id].health is _LEFT:
            self._owner.drop(link, None, now)
