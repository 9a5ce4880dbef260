"""Ping rounds: who is asked when, which answers count, and what a failure does to the health.

Specified in docs/node-health.md. At most one ping is open per member. A refused dial fails the
open ping at once; a mere connection reset changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

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
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.limits import MESSAGE_OVERHEAD_MAX
from clusternode.core.wire.messages import Frame, Ping


@attrs.define(eq=False)
class OpenPing:
    """A ping that has not been answered yet."""

    number: int
    sent_at: Instant
    deadline: Instant
    position_mark: int
    """What was given a position after this one proves, acknowledged, that we were heard."""
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
        self._open: dict[NodeId, OpenPing] = {}
        self._awaited: deque[tuple[Instant, NodeId, OpenPing]] = deque()  # by first look
        self._next_number = 1
        self.round_trips: dict[NodeId, Seconds] = {}

    def is_open(self, node_id: NodeId) -> bool:
        return node_id in self._open

    def number_of(self, node_id: NodeId) -> int:
        """Return the number of the open ping; 0 when none is open."""
        ping = self._open.get(node_id)
        return 0 if ping is None else ping.number

    def sent_at(self, node_id: NodeId) -> Instant | None:
        """Return when the open ping was sent; None when none is open."""
        ping = self._open.get(node_id)
        return None if ping is None else ping.sent_at

    def prolong(self, node_id: NodeId, until: Instant) -> None:
        """Give the open ping until then: it is on its way over others."""
        self._open[node_id].deadline = until
        self._wake_at(node_id, until)

    def watch(self, node_id: NodeId, now: Instant) -> None:
        """Ping a member from now on, for the first time within one interval."""
        if node_id not in self._rounds:
            interval = self._context.settings.health.ping_interval
            self._rounds.set(node_id, now + interval * self._context.rng.random())

    def ask_later(self, node_id: NodeId, now: Instant) -> None:
        """Let the round of a member begin a little later: its first dial still waits in line."""
        self._rounds.set(node_id, now + self._context.settings.health.ping_timeout)

    def unwatch(self, node_id: NodeId) -> None:
        self._rounds.cancel(node_id)
        self._forget(node_id)
        self.round_trips.pop(node_id, None)

    def in_turn(self, slot: int) -> list[NodeId]:
        """Return whose round begins now."""
        return self._rounds.take(slot)

    def tick(self, marks: Iterable[tuple[NodeId, int]], now: Instant) -> list[NodeId]:
        """Begin the next round for some members: one ping, encoded once, asks them all.

        Args:
            marks: Member and its position mark.
            now: The present.

        Returns:
            Who must be dialled for that.
        """
        number, frame = self._next_ping()
        unlinked: list[NodeId] = []
        for node_id, position_mark in marks:
            self._next_round(node_id, now)
            if node_id not in self._open and not self._ask(
                node_id, position_mark, now, number, frame
            ):
                unlinked.append(node_id)
        return unlinked

    def _next_ping(self) -> tuple[int, Frame]:
        number = self._next_number
        self._next_number += 1
        return number, frame_of(Ping(number, self._members.digest))

    def _next_round(self, node_id: NodeId, now: Instant) -> None:
        interval = self._context.settings.health.ping_interval
        self._rounds.set(node_id, now + self._context.jittered(interval))

    def ping(self, node_id: NodeId, position_mark: int, now: Instant) -> bool:
        """Open a ping unless one is; tells whether the member must be dialled for it."""
        if node_id in self._open:
            return not self._links.is_open_to(node_id)
        if node_id in self._rounds:
            # A ping out of turn takes the place of the next one: a peer that has just gone
            # gets a whole interval to come back before its next failure.
            self._next_round(node_id, now)
        return not self._ask(node_id, position_mark, now, *self._next_ping())

    def _ask(
        self, node_id: NodeId, position_mark: int, now: Instant, number: int, frame: Frame
    ) -> bool:
        """Open a ping; tells whether there is a connection to ask on."""
        timeout = self._context.settings.health.ping_timeout
        ping = self._open[node_id] = OpenPing(number, now, now + timeout, position_mark)
        first_look = now + timeout / 2
        if not self._awaited:
            self._context.timers.set(("pongs",), first_look)
        self._awaited.append((first_look, node_id, ping))
        self._context.count("pings_opened")
        link = self._links.open_to(node_id)
        if link is None:
            return False
        self._links.send_frame(link, frame)
        return True

    def ping_again(self, node_id: NodeId, position_mark: int, now: Instant) -> None:
        """Ask on the connection there is now: what was sent before proves nothing about it.

        Gives an open ping its full time once more, but only once: connections that come and go
        cannot keep it open.
        """
        ping = self._open.get(node_id)
        link = self._links.open_to(node_id)
        if ping is None or link is None:
            self.ping(node_id, position_mark, now)
            return
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
        ping = self._open.get(node_id)
        if ping is None or ping.number != number:
            self._context.count("pongs_unexpected")
            return False
        self.round_trips[node_id] = now - ping.sent_at
        self._proved(node_id, now)
        return True

    def acknowledged(self, node_id: NodeId, position: int, now: Instant) -> bool:
        """Take an acknowledgement: it answers the ping if it is for something sent after it."""
        ping = self._open.get(node_id)
        if ping is None or position <= ping.position_mark:
            return False
        self._proved(node_id, now)
        return True

    def heard(self, node_id: NodeId) -> None:
        """Take any other traffic: it extends the open ping once, and never activates."""
        ping = self._open.get(node_id)
        if ping is not None and not ping.is_extended:
            ping.is_extended = True
            ping.deadline += self._context.settings.health.ping_timeout

    def postpone(self, node_id: NodeId, now: Instant) -> None:
        """Give an open ping its full time again: we have not even begun to dial."""
        ping = self._open[node_id]
        ping.deadline = now + self._context.settings.health.ping_timeout
        self._wake_at(node_id, ping.deadline)

    def lagged(self, now: Instant) -> None:
        """Give every open ping its full time again: it was we who stood still."""
        for ping in self._open.values():
            ping.deadline = now + self._context.settings.health.ping_timeout

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
        while awaited:
            due, node_id, ping = awaited[0]
            is_open = self._open.get(node_id) is ping
            if is_open and due > now:
                break
            awaited.popleft()
            if is_open:
                yield node_id
        if awaited:
            self._context.timers.set(("pongs",), awaited[0][0])

    def timed_out(self, node_id: NodeId, now: Instant) -> bool:
        """Take a timer of the open ping; tells whether the ping failed.

        Where there is a connection, half-way and at the deadline, it is looked at first: see
        `measured`.
        """
        ping = self._open[node_id]
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
        ping = self._open.get(node_id)
        if ping is None or not ping.is_asked:
            return False
        ping.is_asked = False
        settings = self._context.settings
        if ping.passage is None:
            ping.passage = Passage()
        is_moving = ping.passage.look(
            seen,
            now,
            is_written=not link.outlet.control,
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
        ping = self._open.pop(node_id, None)
        if ping is not None and ping.has_timer:
            self._context.timers.cancel(("pong", node_id))

    def _wake_at(self, node_id: NodeId, at: Instant) -> None:
        """Give the open ping of a member a timer of its own."""
        self._open[node_id].has_timer = True
        self._context.timers.set(("pong", node_id), at)
