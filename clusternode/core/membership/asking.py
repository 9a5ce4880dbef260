"""Whom a node asks for a member that does not answer, and in which turn. See docs/protocol.md, 13.

One broken link is found around by the first few that are asked. Where more is broken, those who
are asked may be cut off from us themselves: so they are pinged too, and who is silent is then
asked for over those who are not.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterator

import attrs

from clusternode.core.context import Context
from clusternode.core.membership.keepalive import Keepalive
from clusternode.core.membership.links import Links
from clusternode.core.membership.members import Members
from clusternode.core.membership.ways import LOOKED_AT_MAX, Hints, Way, Ways, pairs_of
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.core.wire.messages import Ping

ASKED_AT_ONCE = 5
"""Ways that are asked at the same time: a relay that is silent itself delays nothing."""
ASKED_MAX = 12
"""Ways that are asked for one ping; a dead member of a large cluster is not asked for everywhere.
"""
WIDE_AT_ONCE = 32
"""The same from the second turn on, where there are no more than `LOOKED_AT_MAX` relays: with
those of the first turn, every relay of nearly forty; the square of it is nothing to a cluster."""
WIDE_MAX = 64
ASKED_FOR_LOST_MAX = 6
"""Ways that are asked for a member that is not active anyway; in a cluster of more than
`LOOKED_AT_MAX` also for one whose host has refused a dial, or that all have refused once."""
MANY_LOST = 32
"""Where more members than that have no way, the network is torn apart, and not one link broken."""
ASKED_IF_MANY = 2
"""Ways that are asked for each of so many: a pair of halves of a thousand must not ask millions."""
FRUITLESS_MAX = 32
"""Where so many in a row knew no way, for whomever, a cluster of more than `LOOKED_AT_MAX` shares
out the asking: for the lost, and, where more than `LOST_IF_TORN` are lost, for all."""
LOST_IF_TORN = 8
SHARE_IF_TORN = 8
"""A node then asks for one in so many members of the cluster in each interval, or for all that are
lost if they are fewer."""
CALL_INTERVAL: Seconds = 1.0
"""Between two questions for removed members in such a cluster: there may be hundreds of them."""
TURNS = 2
"""A ping that the direct way has failed gets one more `ping_timeout`, in so many turns: the ways
that are silent in one, of relays perhaps that do not know yet that their link is dead, leave the
next one to others."""
TURNS_MAX = 3
"""And one turn more where others are silent too: only then can it take two relays."""
SILENT_DIVISOR = 4
"""Who has not answered a ping for this part of `ping_timeout` may be cut off from us."""


class Direct(enum.IntEnum):
    """What is known of the direct connection of a member while a ping of it is open."""

    AWAITED = 0
    SILENT = 1
    """It has not answered in time."""
    REFUSED = 2
    """It is certain, and not only late, that nobody listens there."""


@attrs.define(eq=False)
class Path:
    """How a member without a direct link is reached, and what is known of its open ping."""

    way: Way = ()
    """In use; empty while none is known."""
    found_at: Instant = 0.0
    """Since when there is a way, be it a better one now; anew where the one in use was lost."""
    number: int = -1
    """The ping that the rest is about; none has this number."""
    tried: dict[Way, None] = attrs.Factory(dict)
    asked: dict[Way, None] = attrs.Factory(dict)
    """The part of `tried` that neither an answer nor a refusal has come for."""
    answered: dict[Way, None] = attrs.Factory(dict)
    turns: int = 0
    """How often the ping has got more time, for the other ways (`TURNS`)."""
    direct: Direct = Direct.AWAITED
    refused_in: int = -1
    """The turn in which all have refused, or a dial was; none has this number."""
    told: Way = ()
    """The way that the observers were told of last."""
    incarnation: int = 0
    """Whom was asked for last."""
    renewed_at: Instant | None = None
    """When everyone was asked again, for a larger one."""

    def awaits(self, way: Way) -> bool:
        """Tell whether what comes back over a way counts: it was asked, and has not refused."""
        return way in self.asked or way in self.answered

    @property
    def is_hopeless(self) -> bool:
        """Whether it has failed when all refuse in a later turn: they, or a dial, did before."""
        return self.refused_in >= 0

    @property
    def asked_count(self) -> int:
        """Over how many ways it is asked for that were not lost with a connection since."""
        return sum(way in self.tried for way in self.asked)

    def give_time(self) -> None:
        """Let the ping have all its turns, and the direct connection its time."""
        self.turns, self.direct, self.refused_in = 0, Direct.AWAITED, -1

    def begin(self) -> None:
        """Ask everyone anew."""
        self.tried.clear()
        self.asked.clear()
        self.answered.clear()


class Asking:
    """What is known of the ways to members without a direct link, and what is asked for them."""

    def __init__(
        self,
        context: Context,
        members: Members,
        links: Links,
        keepalive: Keepalive,
        send: Callable[[NodeId, Way, Ping], None],
        verify: Callable[[NodeId, Instant], None],
    ) -> None:
        self._context = context
        self._members = members
        self._links = links
        self._keepalive = keepalive
        self._send = send
        self._verify = verify
        self.ways = Ways(members)
        self.paths: dict[NodeId, Path] = {}
        self.found: dict[NodeId, Way] = {}
        """The ways in use."""
        self._called: dict[NodeId, Instant] = {}  # who was removed → when asked for, the last ones

    @property
    def _turn(self) -> Seconds:
        return self._context.settings.health.ping_timeout / TURNS

    def path_of_ping(self, node_id: NodeId) -> Path:
        """Return the path to a member, about its ping that is open now."""
        path = self.paths.get(node_id)
        if path is None:
            path = self.paths[node_id] = Path()
        number = self._keepalive.number_of(node_id)
        path.incarnation = self._members.rows[node_id].record.incarnation
        if path.number != number:
            path.number = number
            path.give_time()
            path.begin()
        return path

    def lagged(self) -> None:
        """It was we who stood still: what has come too late, or since, fails no ping by itself."""
        for path in self.paths.values():
            path.give_time()

    def take_turn(self, node_id: NodeId, now: Instant) -> bool:
        """Give a ping that the direct way has failed one more turn; tells whether it has one.

        A turn in which nobody can be asked is waited for where others are lost too: the links to
        those who could pass it on may only have been reset. Not where a dial was refused.
        """
        path = self.path_of_ping(node_id)
        self.silent(node_id, path, now)
        if not self.has_turn(node_id, path, now):
            return False
        path.direct = max(path.direct, Direct.SILENT)
        path.begin()
        path.turns += 1
        if not self.more(node_id, path, now) and (
            path.direct is Direct.REFUSED or not self._is_worth_more(node_id, now)
        ):
            return False
        self._keepalive.prolong(node_id, now + self._turn)
        return True

    def has_turn(self, node_id: NodeId, path: Path, now: Instant) -> bool:
        """Tell whether a ping may get one more turn."""
        return path.turns < (TURNS_MAX if self._is_worth_more(node_id, now) else TURNS)

    def may_wait(self, node_id: NodeId, path: Path, now: Instant) -> bool:
        """Tell whether those who all refuse are asked again when this turn is over.

        The link of one may only have been reset, and a second relay may not be found yet. That is
        so once, and as long as others are lost too: the one that can may not have been asked. A
        turn that is waited for does not end because one more refuses.
        """
        if path.direct is Direct.REFUSED or not self._members.is_active(node_id):
            return False
        if path.refused_in == path.turns:
            return True
        if path.is_hopeless and not self._is_worth_more(node_id, now):
            return False
        path.refused_in = path.turns
        return not self._is_torn_for(node_id) and self.has_turn(node_id, path, now)

    def _is_worth_more(self, node_id: NodeId, now: Instant) -> bool:
        if self._is_torn_for(node_id) or self._is_shared_out(node_id):
            return False
        return self._members.is_active(node_id) and bool(self._suspects(node_id, now))

    def _is_torn_for(self, node_id: NodeId) -> bool:
        """Tell whether so many are lost with a member that it is no matter of a few links."""
        is_active = self._members.is_active(node_id)
        return (self._missed_count if is_active else self._lost_count) > MANY_LOST

    def silent(self, node_id: NodeId, path: Path, now: Instant) -> None:
        """Ask those later from whom nothing has come for a member, although we hear them."""
        for way in path.asked:
            if not self._is_silent(way[0], now):
                self.ways.refused(way[-1], node_id)

    def more(self, node_id: NodeId, path: Path, now: Instant) -> bool:
        """Ask over further ways; tells whether any is waited for."""
        if path.way and path.way not in path.tried:
            self.over(node_id, path, path.way, now)
        if self.is_large and len(path.asked) < ASKED_AT_ONCE:
            for way in self.ways.newest(node_id, self.found, path.tried):
                self.over(node_id, path, way, now)
        if self._is_shared_out(node_id):
            for way in self._in_turn(node_id, path):
                self.over(node_id, path, way, now)
            return bool(path.asked)
        at_once, most = self._limits(node_id, path)
        room = min(at_once - path.asked_count, most - len(path.tried))
        if room > 0:
            turn = self._members.rows[node_id].fail_count
            hints = self._hints(node_id, path, now)
            ways = self.ways.candidates(node_id, self.found, path.tried, turn, hints)
            for way in itertools.islice(ways, room):
                self.over(node_id, path, way, now)
        return bool(path.asked)

    def _limits(self, node_id: NodeId, path: Path) -> tuple[int, int]:
        """Return how many ways are asked at once, and in one turn."""
        if self._is_torn_for(node_id):
            return ASKED_AT_ONCE, ASKED_IF_MANY
        if not self._members.is_active(node_id) or (path.is_hopeless and self.is_large):
            return ASKED_AT_ONCE, ASKED_FOR_LOST_MAX
        if path.turns > 1 and self.ways.relay_count <= LOOKED_AT_MAX:
            return WIDE_AT_ONCE, WIDE_MAX
        return ASKED_AT_ONCE, ASKED_MAX

    def lost_with(self, relay: NodeId) -> None:
        """What was asked over a relay may be lost with its connection: ask again over the next."""
        for path in self.paths.values():
            for way in [way for way in path.tried if way[0] == relay]:
                del path.tried[way]

    def more_for_others(self, relay: NodeId, now: Instant) -> None:
        """Somebody can be reached again: it may pass on what is asked for and not answered yet."""
        for other, path in list(self.paths.items()):
            is_asked = path.number == self._keepalive.number_of(other) and not path.answered
            if is_asked and other != relay:
                self.more(other, path, now)

    def back(self, node_id: NodeId, way: Way, now: Instant) -> None:
        """Send the open ping of a member over the way that one of its own has come.

        It lives, whatever was said of it before. No more ways than in one turn: others could
        invent as many as they like.
        """
        path = self.paths[node_id]
        path.refused_in, path.direct = -1, min(path.direct, Direct.SILENT)
        if path.number == self._keepalive.number_of(node_id) and not path.awaits(way):
            if way in path.tried or len(path.tried) < WIDE_MAX:
                self.over(node_id, path, way, now)

    @property
    def is_large(self) -> bool:
        """Tell whether the cluster is too large for asking everybody for everybody."""
        return len(self._members.rows) > LOOKED_AT_MAX

    @property
    def _lost_count(self) -> int:
        return len(self.paths) - len(self.found)

    @property
    def _missed_count(self) -> int:
        """Who is lost without those that never answered: whoever invents some changes nothing."""
        return self._lost_count - self._members.stranger_count

    def _is_shared_out(self, node_id: NodeId) -> bool:
        """Tell whether asking for a member has to be cheap: it has led to nothing for long."""
        if not self.is_large or self.ways.fruitless <= FRUITLESS_MAX:
            return False
        return self._missed_count > LOST_IF_TORN or not self._members.is_active(node_id)

    def _in_turn(self, node_id: NodeId, path: Path) -> list[Way]:
        """Return one way at most, another for each ping: the lost members share out the relays."""
        every = max(1, self._lost_count * SHARE_IF_TORN // len(self._members.rows))
        turn, is_left_out = divmod(path.number, every)
        if not self._members.is_active(node_id) and (is_left_out or path.turns):
            return []
        return [] if path.tried else self.ways.one_in_turn(node_id, turn + path.turns)

    def one_for_removed(self, node_id: NodeId, now: Instant) -> Way:
        """Return a way over one relay to somebody who was removed; none where that is too often.

        A large cluster asks for each of them as often as for a member: once an interval.
        """
        if self.is_large and not self._may_call(node_id, now):
            return ()
        return self.ways.any_one(node_id, self._context.rng)

    def _may_call(self, node_id: NodeId, now: Instant) -> bool:
        called = self._called
        interval = max(self._context.settings.health.ping_interval, CALL_INTERVAL)
        while called and (first := next(iter(called.items())))[1] + interval <= now:
            del called[first[0]]
        if node_id in called or (called and now < next(reversed(called.values())) + CALL_INTERVAL):
            return False
        called[node_id] = now
        return True

    def over(self, node_id: NodeId, path: Path, way: Way, now: Instant) -> None:
        """Ask over one way; a relay that may be cut off from us itself is pinged too."""
        path.tried[way] = path.asked[way] = None
        self._context.count("pings_rerouted")
        self._send(node_id, way, Ping(path.number, self._members.digest))
        if path.turns and not self._is_heard(way[0], now - self._turn):
            self._verify(way[0], now)

    # --- who is silent --------------------------------------------------------------------------

    def _hints(self, node_id: NodeId, path: Path, now: Instant) -> Hints:
        """Return what our own pings say about the relays: who is silent, and who is not."""

        def is_silent(relay: NodeId) -> bool:
            return self._is_silent(relay, now)

        def pairs() -> Iterator[Way]:
            sent_at = self._keepalive.sent_at(node_id)
            heard = [
                relay
                for relay in self.ways.relays()
                if sent_at is not None and self._is_heard(relay, sent_at) and not is_silent(relay)
            ]
            yield from pairs_of(heard, self._beyond(node_id, now))

        if path.turns < TURNS or self._is_torn_for(node_id):
            return Hints(is_silent)
        return Hints(is_silent, pairs)

    def _beyond(self, node_id: NodeId, now: Instant) -> list[NodeId]:
        """Return the active members that a relay may reach, but not we: who may be lost first.

        Those that others reach for us are among them: it may be their way that has just broken.
        """
        found = itertools.islice(self.found, LOOKED_AT_MAX)
        others = dict.fromkeys([*self._suspects(node_id, now), *found])
        return [other for other in others if other != node_id and self._members.is_active(other)]

    def _suspects(self, node_id: NodeId, now: Instant) -> list[NodeId]:
        """Return the active members that may be cut off from us like this one, but not from all."""
        lost = [
            other
            for other in self.paths
            if other not in self.found and self._links.direct_to(other) is None
        ]
        linked = [relay for relay in self.ways.relays() if self._is_silent(relay, now)]
        return [
            other
            for other in itertools.islice(dict.fromkeys([*linked, *lost]), LOOKED_AT_MAX)
            if other != node_id and self._members.is_active(other)
        ]

    def _is_silent(self, node_id: NodeId, now: Instant) -> bool:
        sent_at = self._keepalive.sent_at(node_id)
        patience: Seconds = self._context.settings.health.ping_timeout / SILENT_DIVISOR
        return sent_at is not None and sent_at <= now - patience

    def _is_heard(self, relay: NodeId, since: Instant) -> bool:
        """Tell whether a relay has answered us since then."""
        heard_at = self._members.rows[relay].heard_at
        return heard_at is not None and heard_at >= since
