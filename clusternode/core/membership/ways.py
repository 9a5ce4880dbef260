"""Which ways to a member may work, best first: what is known of the links of others.

Specified in docs/protocol.md, section 13. Everything in here is only a hint in which order to ask:
a way is used when a ping has come back over it.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from clusternode.core.membership.health import Health
from clusternode.core.membership.members import Members
from clusternode.core.types import NodeId
from clusternode.core.wire.limits import RELAYS_MAX

Way: TypeAlias = tuple[NodeId, ...]
"""The relays from us to a member, in the direction of travel."""


def shown(way: Way) -> str:
    """Write a way for people; without relays it is the direct link."""
    return f"via {','.join(way)}" if way else "direct"


REFUSED_MAX = 4096
"""Links of others that are known to be missing; the oldest are asked again first."""
LOOKED_AT_MAX = 64
"""Relays that are looked at for one ping: in a large cluster that is torn apart every member asks
for every other one. The next ping that fails goes on with the next ones."""
PAIRS_MAX = 256
"""Ways over two relays that are looked at for one ping."""


@attrs.frozen
class Hints:
    """What our own pings say about relays while a member is asked for."""

    is_silent: Callable[[NodeId], bool] = lambda relay: False
    """Which direct neighbours have not answered for a while: they are asked last."""
    pairs: Callable[[], Iterator[Way]] = lambda: iter(())
    """Ways over two relays, drawn up when they are needed: mostly there are enough single ones."""


def pairs_of(heard: Sequence[NodeId], beyond: Sequence[NodeId]) -> Iterator[Way]:
    """Yield the ways over one who is heard and one who is not, every one of these in turn.

    Args:
        heard: Direct neighbours that have answered since the member did not.
        beyond: Active members that do not answer us either, or only over others, but perhaps
            those that are heard.
    """
    for turn in range(len(heard)):
        for number, other in enumerate(beyond):
            first = heard[(number + turn) % len(heard)]
            if first != other:
                yield (first, other)


NO_HINTS = Hints()

NEWEST_MAX = 2
"""Members that were found last; in a large cluster their ways are tried for others at once."""


class Ways:
    """Our neighbours by preference, and which of their links have failed us."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._relays: list[tuple[int, NodeId]] = []  # (priority, id) of those directly connected
        self._newcomers: list[NodeId] = []  # who is not among them yet
        self._priorities: dict[NodeId, int] = {}  # the same by id
        self._refused: dict[tuple[NodeId, NodeId], int] = {}  # (from, to) → when, in refusals
        self._refusals = 0
        self.fruitless = 0
        """Refusals and silences since the last answer."""

    def opened(self, node_id: NodeId) -> None:
        """A direct connection is open: the node can pass things on for us."""
        priority = self._members.rows[node_id].record.priority
        if self._priorities.get(node_id) == priority:
            return
        if node_id in self._priorities:
            self.closed(node_id)
        self._priorities[node_id] = priority
        self._newcomers.append(node_id)

    def closed(self, node_id: NodeId) -> None:
        """The direct connection to a node has ended."""
        if node_id in self._priorities:
            relays = self._in_order()
            priority = self._priorities.pop(node_id)
            del relays[bisect.bisect_left(relays, (priority, node_id))]

    def _in_order(self) -> list[tuple[int, NodeId]]:
        """Return the direct neighbours, best first; put in order when somebody wants to know."""
        if self._newcomers:
            self._relays += [(self._priorities[one], one) for one in self._newcomers]
            self._relays.sort()
            self._newcomers = []
        return self._relays

    def changed(self, node_id: NodeId) -> None:
        """The record of a node is a newer one; its priority may be another."""
        if node_id in self._priorities:
            self.opened(node_id)

    def refused(self, at: NodeId, following: NodeId) -> None:
        """Somebody says that it has no link to who follows it."""
        self._refused.pop((at, following), None)
        if len(self._refused) >= REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._refusals += 1
        self.fruitless += 1
        self._refused[at, following] = self._refusals

    def proved(self, way: Way, target: NodeId) -> None:
        """Something came back over a way: all its links work."""
        self.fruitless = 0
        for pair in zip(way, (*way[1:], target), strict=True):
            self._refused.pop(pair, None)

    def rank(self, way: Way) -> tuple[int, list[tuple[int, NodeId]]]:
        """Return what orders ways, the best first: hops, then priorities, then ids."""
        rows = self._members.rows
        return len(way), [
            (rows[relay].record.priority if relay in rows else 0, relay) for relay in way
        ]

    @property
    def relay_count(self) -> int:
        return len(self._priorities)

    def relays(self) -> list[NodeId]:
        """Return the direct neighbours, best first; of very many the first ones."""
        return [relay for _, relay in self._in_order()[:LOOKED_AT_MAX]]

    def candidates(
        self,
        target: NodeId,
        known: Mapping[NodeId, Way],
        tried: Container[Way],
        turn: int,
        hints: Hints = NO_HINTS,
    ) -> Iterator[Way]:
        """Yield the ways to a member that were not tried yet.

        First those that nobody calls broken, by hops, priority and id; then the others.

        Args:
            target: The member.
            known: The ways that work to members without a direct link: they can pass on too.
            tried: Ways to leave out.
            turn: How many pings of the member have failed: where to go on among many relays.
            hints: Which relays are silent themselves.
        """
        doubtful: list[tuple[int, Way]] = []
        for way in self._all(target, known, turn, hints):
            if way in tried:
                continue
            if hints.is_silent(way[0]) or self._is_doubtful(way, target):
                doubtful.append((self._refused.get((way[-1], target), 0), way))
            else:
                yield way
        doubtful.sort()
        for _, way in doubtful:
            yield way

    def _all(
        self, target: NodeId, known: Mapping[NodeId, Way], turn: int, hints: Hints
    ) -> Iterator[Way]:
        rows, relays = self._members.rows, self._in_order()
        if len(relays) > LOOKED_AT_MAX:
            start = turn * LOOKED_AT_MAX % len(relays)
            relays = (relays[start:] + relays[:start])[:LOOKED_AT_MAX]
        for _, relay in relays:
            if relay != target and rows[relay].health is Health.ACTIVE:
                yield (relay,)
        over_known = ((*way, relay) for relay, way in known.items())
        for way in itertools.islice(itertools.chain(over_known, hints.pairs()), PAIRS_MAX):
            is_active = all(map(self._members.is_active, way))  # the first may be a stranger
            if is_active and target not in way and len(way) <= RELAYS_MAX:
                yield way

    def newest(self, target: NodeId, known: dict[NodeId, Way], tried: Container[Way]) -> list[Way]:
        """Return the ways to a member that go like those to others that were found last.

        Args:
            target: The member.
            known: The ways that work to members without a direct link, the newest last.
            tried: Ways to leave out.
        """
        found: dict[Way, None] = {}
        for other in itertools.islice(reversed(known), NEWEST_MAX):
            for way in (known[other], (*known[other], other)):
                is_fit = target not in way and len(way) <= RELAYS_MAX and way not in tried
                if is_fit and all(self._members.is_active(relay) for relay in way):
                    if not self._is_doubtful(way, target):
                        found[way] = None
        return list(found)

    def one_in_turn(self, target: NodeId, turn: int) -> list[Way]:
        """Return the way over the relay whose turn it is, if that can be one."""
        relays = self._in_order()
        if not relays:
            return []
        _, relay = relays[turn % len(relays)]
        return [(relay,)] if relay != target and self._members.is_active(relay) else []

    def any_one(self, target: NodeId, rng: random.Random) -> Way:
        """Return a way over one relay, whichever; none where there is no relay.

        Each time another one: what is asked seldom is spread over all.
        """
        relays = self._in_order()
        if not relays:
            return ()
        _, relay = rng.choice(relays)
        return () if relay == target else (relay,)

    def _is_doubtful(self, way: Way, target: NodeId) -> bool:
        return any(
            pair in self._refused or self._is_reported(*pair)
            for pair in itertools.pairwise((*way, target))
        )

    def _is_reported(self, relay: NodeId, following: NodeId) -> bool:
        row = self._members.rows.get(relay)
        return row is not None and following in row.record.down
