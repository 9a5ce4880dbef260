"""Names among the notification addresses: what they resolved to, and since when they do not.

Specified in docs/protocol.md, section 7.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

from clusternode.core.inputs import ResolvedAddress
from clusternode.core.types import Address, Instant, Seconds

RESOLVED_ADDRESSES_MAX = 256
"""So many addresses of one name are used; the rest is counted and left out."""
STALE_AFTER: Seconds = 300.0
"""How long the look-ups of a name may fail before that is worth an event although its addresses
are known: a name server that is restarted, or moved, is back by then."""


@attrs.define(eq=False)
class Name:
    """A notification address that must be looked up, and what it resolved to, best first."""

    name: Address
    candidates: list[Address] = attrs.Factory(list)
    index: int = 0
    """Which candidate is dialled, where only one is."""
    failures: int = 0
    error: str = "not looked up yet"
    is_resolving: bool = False
    answered_at: Instant = 0.0
    """When it could be looked up last; means something once there are candidates."""
    is_stale: bool = False
    """Whether it was said that its look-ups have failed for a while."""

    def becomes_stale(self, now: Instant) -> bool:
        """Take a failed look-up; tell whether that is worth an event now, and only once."""
        if self.is_stale or not self.candidates or now - self.answered_at < STALE_AFTER:
            return False
        self.is_stale = True
        return True

    def is_fresh_again(self, now: Instant) -> bool:
        """Take an answer; tell whether it ends a while without."""
        was_stale, self.is_stale = self.is_stale, False
        self.failures, self.error, self.answered_at = 0, "", now
        return was_stale


def in_order(found: Sequence[ResolvedAddress], rng: random.Random) -> list[Address]:
    """Order by priority and, within one, by chance weighted as RFC 2782 says."""
    rest = sorted(found[:RESOLVED_ADDRESSES_MAX], key=lambda one: one.priority)
    ordered: list[Address] = []
    while rest:
        group = [one for one in rest if one.priority == rest[0].priority]
        weights = [one.weight for one in group]
        chosen = rng.choices(group, weights)[0] if any(weights) else group[0]
        rest.remove(chosen)
        if chosen.address not in ordered:
            ordered.append(chosen.address)
    return ordered
