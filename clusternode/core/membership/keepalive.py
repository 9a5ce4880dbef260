"""Ping rounds: who is asked when, which answers count, and what a failure does to the health.

Specified in docs/node-health.md. At most one ping is open per member. A refused dial fails the
open ping at once; a mere connection reset changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import attrs

from clusternode.core.context import Context
from clusternode.core.effects import Measure
from clusternode.core.inputs import Measured
from clusternode.core.membership.health import (
    Health,
    apply_ping_answered,
    apply_ping_failed,
)
from clusternode.core.membership.links import Link, Links
from clusternode.core.membership.members import Members, Row
from clusternode.core.membership.passage import Passage
from clusternode.core.membership.rounds import Rounds
from clusternode.core.types import Instant, NodeId
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.limits import MESSAGE_OVERHEAD_MAX
from clusternode.core.wire.messages import Frame, Ping

_ACTIVE = Health.ACTIVE


@attrs.define(eq=False)
class OpenPing:
    """A ping that has not been answered yet; one for all members that were asked together."""

    number: int
    sent_at: Instant
    deadline: Instant
    position_mark: int
    """What was given a position after this one proves, acknowledged, that we were heard."""
    opened_as: int
    """Its number when it was opened; it gets another one when it is asked again."""
    is_shared: bool = True
    """Whether it may be that of other members too: it must then not be changed."""
    is_repeated: bool = False
    """Whether it was asked again on a new connection, or for a newcomer; that is done once."""
    has_timer: bool = False
    """Whether its deadline was moved, and has a timer of its own."""
    is_extended: bool = False
    """Whether other traffic of the peer has moved the deadline; it may do so once."""
    is_asked: bool = False
    """Whether `Measure` was given and `Measured` has not come yet."""
    passage: Passage | None = None
    """None until the first look: nearly every ping is answered before."""


class Keepalive:
    """The failure detector: full mesh of pings. Reads and changes the rows of `Members`."""

    def __init__(self, context: Context, members: Members, links: Links) -> None:
        self._context = context
        self._members = members
        self._links = links
        self._rounds = Rounds(context)
        self.opened: dict[NodeId, OpenPing] = {}  # for others to read
        self._awaited: deque[tuple[Instant, int, Sequence[NodeId]]] = deque()
        """When to look first, the number they were opened as, and who was asked; by time."""
        self._next_number = 1

    def is_open(self, node_id: NodeId) -> bool:
        return node_id in self.opened

    def number_of(self, node_id: NodeId) -> int:
        """Return the number of the open ping; 0 when none is open."""
        ping = self.opened.get(node_id)
        return 0 if ping is None else ping.number

    def sent_at(self, node_id: NodeId) -> Instant | None:
        """Return when the open ping was sent; None when none is open."""
        ping = self.opened.get(node_id)
        return None if ping is None else ping.sent_at

    def prolong(self, node_id: NodeId, until: Instant) -> None:
        """Give the open ping until then: it is on its way over others."""
        self._own(node_id).deadline = until
        self._wake_at(node_id, until)

    def watch(self, node_id: NodeId, now: Instant) -> None:
        """Ping a member from now on, for the first time within one interval."""
        if node_id not in self._rounds:
            interval = self._context.settings.health.ping_interval
            wait = max(interval * self._context.rng.random(), self._rounds.width)
            self._rounds.set(node_id, now + wait)

    def unwatch(self, node_id: NodeId) -> None:
        self._rounds.cancel(node_id)
        self._forget(node_id)

    def in_turn(
        self, slot: int, is_queued: Callable[[NodeId], bool] | None, now: Instant
    ) -> list[list[NodeId]]:
        """Return whose round begins now, by who is asked together; the next one is fixed.

        Args:
            slot: The slot whose time has come.
            is_queued: Tells whose first dial still waits in line, if any does: those are let wait
                a little.
            now: The present.
        """
        if is_queued is not None:
            rows = self._members.rows
            late = [
                node_id
                for node_id in self._rounds.members_of(slot)
                if not ((row := rows[node_id]).is_linked or row.has_answered) and is_queued(node_id)
            ]
            self._rounds.move(late, now + self._context.settings.health.ping_timeout)
        return self._rounds.take(slot, now)

    def begin(
        self,
        node_ids: Sequence[NodeId],
        position_marks: Callable[[Sequence[NodeId]], list[int]],
        now: Instant,
    ) -> list[NodeId]:
        """Begin the round of some members: one ping, encoded once, asks them all.

        Args:
            node_ids: Whose turn it is; those with an open ping are not asked again.
            position_marks: Tells the position mark of each.
            now: The present.

        Returns:
            Who must be dialled for that.
        """
        opened = self.opened
        if opened and not opened.keys().isdisjoint(node_ids):
            node_ids = [node_id for node_id in node_ids if node_id not in opened]
        if not node_ids:
            return []
        return self._ask(node_ids, position_marks(node_ids), now)

    def _next_ping(self) -> tuple[int, Frame]:
        number = self._next_number
        self._next_number += 1
        return number, frame_of(Ping(number, self._members.digest))

    def ping(self, node_id: NodeId, position_mark: int, now: Instant) -> bool:
        """Open a ping unless one is; tells whether the member must be dialled for it."""
        if node_id in self.opened:
            return not self._links.is_open_to(node_id)
        self._put_off_round(node_id, now)
        return bool(self._ask_one(node_id, position_mark, now))

    def _put_off_round(self, node_id: NodeId, now: Instant) -> None:
        """Let what is asked or proved out of turn take the place of the next ping.

        A peer that has just gone gets a whole interval to come back before its next failure.
        """
        if node_id in self._rounds:
            interval = self._context.settings.health.ping_interval
            self._rounds.set(node_id, now + self._context.jittered(interval))

    def _ask(
        self, node_ids: Sequence[NodeId], position_marks: Sequence[int], now: Instant
    ) -> list[NodeId]:
        """Open one ping for some members; returns those without a connection to ask on."""
        number, frame = self._next_ping()
        timeout = self._context.settings.health.ping_timeout
        opened = self.opened
        first = position_marks[0]
        ping = OpenPing(number, now, now + timeout, first, number)
        opened.update(dict.fromkeys(node_ids, ping))
        if min(position_marks) != max(position_marks):
            pings = {first: ping}  # position mark → the ping of all that have it
            for node_id, mark in zip(node_ids, position_marks, strict=True):
                if mark not in pings:
                    pings[mark] = OpenPing(number, now, now + timeout, mark, number)
                opened[node_id] = pings[mark]
        self._await(number, node_ids, now + timeout / 2)
        return self._links.send_each(node_ids, frame)

    def _ask_one(self, node_id: NodeId, position_mark: int, now: Instant) -> list[NodeId]:
        """Do what `_ask` does, for one member: the ping is its own from the beginning."""
        number, frame = self._next_ping()
        timeout = self._context.settings.health.ping_timeout
        self.opened[node_id] = OpenPing(
            number, now, now + timeout, position_mark, number, is_shared=False
        )
        node_ids = [node_id]
        self._await(number, node_ids, now + timeout / 2)
        link = self._links.open_to(node_id)
        if link is not None and link.is_announced:  # else it takes no turn of the writer
            self._links.send_frame(link, frame)
            return []
        return self._links.send_each(node_ids, frame)

    def _await(self, number: int, node_ids: Sequence[NodeId], first_look: Instant) -> None:
        if not self._awaited:
            self._context.timers.set(("pongs",), first_look)
        self._awaited.append((first_look, number, node_ids))
        self._context.count("pings_opened", len(node_ids))

    def _own(self, node_id: NodeId) -> OpenPing:
        """Return the open ping of a member, to be changed."""
        ping = self.opened[node_id]
        if ping.is_shared:
            ping = self.opened[node_id] = OpenPing(
                ping.number,
                ping.sent_at,
                ping.deadline,
                ping.position_mark,
                ping.opened_as,
                is_shared=False,
            )
        return ping

    def ping_again(self, node_id: NodeId, position_mark: int, now: Instant) -> None:
        """Ask on the connection there is now: what was sent before proves nothing about it.

        Gives an open ping its full time once more, but only once: connections that come and go
        cannot keep it open.
        """
        link = self._links.open_to(node_id) if node_id in self.opened else None
        if link is None:
            self.ping(node_id, position_mark, now)
            return
        ping = self._own(node_id)
        ping.number, frame = self._next_ping()
        ping.position_mark = position_mark
        ping.sent_at = now
        ping.is_asked = False
        if ping.passage is not None:
            ping.passage.begin()
        self._links.send_frame(link, frame)
        if not ping.is_repeated:
            ping.is_repeated = True
            ping.deadline = now + self._context.settings.health.ping_timeout

    # --- answers --------------------------------------------------------------------------------

    def answered(self, node_id: NodeId, number: int, now: Instant) -> bool:
        """Take a pong; tells whether it was the answer to the open ping."""
        ping = self.opened.get(node_id)
        if ping is None or ping.number != number:
            self._context.count("pongs_unexpected")
            return False
        link = self._links.open_to(node_id)
        if link is not None:
            link.round_trip = now - ping.sent_at
        self._proved(node_id, now)
        return True

    def met(self, link: Link, now: Instant) -> None:
        """Take the first ping on a new connection of a peer that has never answered us.

        It has our Resume, or it would not ping: that proves as much as a pong.
        """
        link.round_trip = now - link.connected_at
        self._put_off_round(link.node_id, now)
        self._proved(link.node_id, now)

    def answered_by(self, links: Sequence[Link], number: int, now: Instant) -> list[Link]:
        """Take the same pong from many; returns those for whom `answered` has to decide."""
        opened = self.opened
        others: list[Link] = []
        usual: OpenPing | None = None  # the one that nearly all of them share
        round_trip = 0.0
        for link in links:
            node_id = link.node_id
            ping = opened.get(node_id)
            row = link.row
            if ping is not usual or ping is None:
                if ping is None or ping.number != number or ping.has_timer:
                    others.append(link)
                    continue
                usual, round_trip = ping, now - ping.sent_at
            if row is None or row.health is not _ACTIVE:
                others.append(link)
                continue
            del opened[node_id]
            row.heard_at = row.silent_since = now
            row.fail_count = 0
            link.round_trip = round_trip
            link.is_settled = True
        self._rest()
        return others

    def acknowledged(self, node_id: NodeId, position: int, now: Instant) -> bool:
        """Take an acknowledgement: it answers the ping if it is for something sent after it."""
        ping = self.opened.get(node_id)
        if ping is None or position <= ping.position_mark:
            return False
        self._proved(node_id, now)
        return True

    def heard(self, node_id: NodeId) -> None:
        """Take any other traffic: it extends the open ping once, and never activates."""
        ping = self.opened.get(node_id)
        if ping is not None and not ping.is_extended:
            if ping.is_shared:
                ping = self._own(node_id)
            ping.is_extended = True
            ping.deadline += self._context.settings.health.ping_timeout

    def postpone(self, node_id: NodeId, now: Instant) -> None:
        """Give an open ping its full time again: we have not even begun to dial."""
        ping = self._own(node_id)
        ping.deadline = now + self._context.settings.health.ping_timeout
        self._wake_at(node_id, ping.deadline)

    def lagged(self, now: Instant) -> None:
        """Give every open ping its full time again: it was we who stood still."""
        for node_id in list(self.opened):
            self._own(node_id).deadline = now + self._context.settings.health.ping_timeout

    def _proved(self, node_id: NodeId, now: Instant) -> None:
        self._forget(node_id)
        row = self._members.rows[node_id]
        row.heard_at = row.silent_since = now
        row.fail_count = 0
        health = apply_ping_answered(row.health)
        if health is not row.health:
            self._members.set_health(row, health, "it answers", now)

    # --- failures -------------------------------------------------------------------------------

    def overdue(self, now: Instant) -> Iterator[NodeId]:
        """Yield whose first look has come, and set the timer for the next one.

        Nearly all of them have answered meanwhile, and cost no timer each.
        """
        awaited = self._awaited
        while awaited and awaited[0][0] <= now:
            _, number, node_ids = awaited.popleft()
            for node_id in node_ids:
                ping = self.opened.get(node_id)
                if ping is not None and ping.opened_as == number:
                    yield node_id
        if awaited:
            self._context.timers.set(("pongs",), awaited[0][0])

    def timed_out(self, node_id: NodeId, now: Instant) -> bool:
        """Take a timer of the open ping; tells whether the ping failed.

        Where there is a connection, half-way and at the deadline, it is looked at first: see
        `measured`.
        """
        ping = self._own(node_id)
        link = self._links.open_to(node_id)
        may_look = link is not None and not ping.is_asked  # who is ending does not answer
        if may_look and (ping.passage is None or ping.deadline <= now):
            assert link is not None
            ping.is_asked = True
            if link.is_routed:
                return self.measured(link, self._links.carrier.measure(link.connection), now)
            self._wake_at(node_id, now + self._context.settings.health.ping_timeout)
            self._context.effects.append(Measure(link.connection))
            return False
        if ping.deadline > now:
            self._wake_at(node_id, ping.deadline)
            return False
        return True

    def measured(self, link: Link, seen: Measured, now: Instant) -> bool:
        """Take a look at the open connection; tells whether the open ping failed.

        The deadline moves while the bytes before the ping move, or those before its pong.
        """
        node_id = link.node_id
        ping = self.opened.get(node_id)
        if ping is None or not ping.is_asked:
            return False
        ping.is_asked = False
        settings = self._context.settings
        if ping.passage is None:
            ping.passage = Passage()
        is_moving = ping.passage.look(
            seen,
            now,
            is_written=not link.control,
            frame_bytes_max=settings.messaging.body_size_max + MESSAGE_OVERHEAD_MAX,
            ping_timeout=settings.health.ping_timeout,
        )
        if now >= ping.deadline and not is_moving:
            return True
        if now >= ping.deadline:
            self._context.count("pings_extended")
            ping.deadline = now + settings.health.ping_timeout
        self._wake_at(node_id, ping.deadline)
        return False

    def failed(self, node_id: NodeId, row: Row, *, is_protected: bool, now: Instant) -> Health:
        """Count a failed ping and return the status after it."""
        self._forget(node_id)
        self._context.count("pings_failed")
        health, row.fail_count = apply_ping_failed(
            row.health,
            row.fail_count,
            self._context.settings.health,
            is_protected=is_protected,
        )
        self._members.set_health(row, health, "it does not answer", now)
        return health

    def _forget(self, node_id: NodeId) -> None:
        ping = self.opened.pop(node_id, None)
        if ping is not None and ping.has_timer:
            self._context.timers.cancel(("pong", node_id))
        self._rest()

    def _rest(self) -> None:
        """Wait for no first look when everyone has answered."""
        if self._awaited and not self.opened:
            self._awaited.clear()
            self._context.timers.cancel(("pongs",))

    def _wake_at(self, node_id: NodeId, at: Instant) -> None:
        """Give the open ping of a member a timer of its own."""
        self._own(node_id).has_timer = True
        self._context.timers.set(("pong", node_id), at)
