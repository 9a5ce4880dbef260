"""How often a node dials, and who waits for its turn. Specified in docs/protocol.md, section 7."""

from __future__ import annotations

import math
from collections import OrderedDict, deque

from clusternode.core.types import Address, Instant

KEPT_BACK_DIVISOR = 10
"""This part of `dials_per_second` is only for addresses where a node was once, or must be."""


class DialLine:
    """At most so many dials in any period; the addresses beyond that wait in line.

    Two lines: *favoured* addresses, where a node was once or must be, and all others, which leave
    a part of the rate to the favoured. Who waits costs nothing until its turn comes, so a node
    that hears of a thousand others at once does no more than it does for ten.
    """

    def __init__(self, dials_per_second: float) -> None:
        self._dialed_at: deque[Instant] = deque(  # the last dials, as many as one period allows
            maxlen=max(1, int(dials_per_second))
        )
        self._period = (self._dialed_at.maxlen or 1) / dials_per_second
        self._favoured: OrderedDict[Address, None] = OrderedDict()
        self._others: OrderedDict[Address, None] = OrderedDict()

    def _free_at(self, *, is_favoured: bool) -> Instant:
        """Return when the rate allows the next dial; an instant that has passed: now."""
        count = self._dialed_at.maxlen or 1
        if not is_favoured:
            count -= count // KEPT_BACK_DIVISOR
        if len(self._dialed_at) < count:
            return -math.inf
        return self._dialed_at[-count] + self._period

    def may_dial(self, now: Instant, *, is_favoured: bool) -> bool:
        """Tell whether an address may be dialled now: the rate allows it and nobody was first."""
        has_line = self._favoured or (not is_favoured and self._others)
        return not has_line and now >= self._free_at(is_favoured=is_favoured)

    def dialed(self, now: Instant) -> None:
        """Take note of a dial."""
        self._dialed_at.append(now)

    @property
    def is_empty(self) -> bool:
        """Tell whether nobody waits."""
        return not (self._favoured or self._others)

    def join(self, address: Address, *, is_favoured: bool) -> None:
        """Wait for a turn; who waits already keeps its place."""
        line = self._favoured if is_favoured else self._others
        line.setdefault(address)

    def leave(self, address: Address) -> None:
        """Wait no longer; who does not wait is no error."""
        self._favoured.pop(address, None)
        self._others.pop(address, None)

    def next_turn(self) -> Instant | None:
        """Tell when `call` has somebody; None when nobody waits."""
        turns = [
            self._free_at(is_favoured=is_favoured)
            for line, is_favoured in ((self._favoured, True), (self._others, False))
            if line
        ]
        return min(turns, default=None)

    def call(self, now: Instant) -> Address | None:
        """Take out who may be dialled now, favoured ones first; None when nobody may."""
        for line, is_favoured in ((self._favoured, True), (self._others, False)):
            if line and now >= self._free_at(is_favoured=is_favoured):
                return line.popitem(last=False)[0]
        return None
