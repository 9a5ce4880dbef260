"""The transaction layer of a DMQ bus: non-INVITE transactions of RFC 3261, section 17, sans-IO.

Time comes in through the arguments. Our side of a request is `ClientTransactions`, the other side
`ServerTransactions`. Beyond the RFC, as DMQ needs it: over streams nothing is sent again, and a
request is known by topmost Via, Call-ID and CSeq whoever sent its copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

import attrs

from clusternode.core.timers import Timers
from clusternode.core.types import Instant, Seconds

T1: Final[Seconds] = 0.5
"""The first wait before a request is sent again; doubled each time (RFC 3261 section 17.1.2.2)."""
T2: Final[Seconds] = 4.0
"""The longest wait between two copies."""
MEMORY: Final[Seconds] = 64 * T1
"""How long a request is known, so that its copies are not handled again (timer J)."""
ANSWERS_MAX: Final = 100_000
"""Requests remembered at a time: three thousand a second for `MEMORY`."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""What all remembered answers may take together."""

Context = TypeVar("Context")


@attrs.define(eq=False)
class ClientTransaction(Generic[Context]):
    """A request of ours that waits for its final answer."""

    branch: str
    method: str
    data: bytes
    context: Context
    """What the owner needs when it ends."""
    deadline: Instant
    is_reliable: bool
    """Whether the transport sends again by itself."""
    interval: Seconds = T1
    copies: int = 1


@attrs.define
class Due(Generic[Context]):
    """What the clock asks for."""

    again: list[ClientTransaction[Context]] = attrs.Factory(list)
    """To be sent once more."""
    timed_out: list[ClientTransaction[Context]] = attrs.Factory(list)
    """Ended without an answer: 408."""


class ClientTransactions(Generic[Context]):
    """Every request of ours that is open. The owner bounds how many."""

    def __init__(self) -> None:
        self.late = 0
        """Answers to what has ended or never was."""
        self.copies_sent = 0
        self._open: dict[str, ClientTransaction[Context]] = {}  # branch → transaction
        self._timers = Timers()

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self,
        now: Instant,
        branch: str,
        method: str,
        data: bytes,
        context: Context,
        *,
        deadline: Instant,
        is_reliable: bool = False,
    ) -> ClientTransaction[Context]:
        """Begin a transaction; the caller sends the first copy."""
        assert branch not in self._open, "a branch is used once"
        transaction = ClientTransaction(branch, method, data, context, deadline, is_reliable)
        self._open[branch] = transaction
        first = deadline if is_reliable else min(now + T1, deadline)
        self._timers.set((branch,), first)
        return transaction

    def answer(self, branch: str, method: str, code: int) -> ClientTransaction[Context] | None:
        """Match an answer; return the transaction if this ended it.

        A provisional answer slows the copies down to one per `T2` and ends nothing.
        """
        transaction = self._open.get(branch)
        if transaction is None or transaction.method != method:
            self.late += 1
            return None
        if code < 200:
            transaction.interval = T2
            return None
        del self._open[branch]
        self._timers.cancel((branch,))
        return transaction

    def get(self, branch: str) -> ClientTransaction[Context] | None:
        return self._open.get(branch)

    def cancel(self, branch: str) -> None:
        """Forget a transaction; its answer will be late."""
        if self._open.pop(branch, None) is not None:
            self._timers.cancel((branch,))

    def next_deadline(self) -> Instant | None:
        return self._timers.next_deadline()

    def due(self, now: Instant) -> Due[Context]:
        """Return what is to be sent again and what has timed out; the latter is forgotten."""
        result: Due[Context] = Due()
        for (branch,) in self._timers.pop_due(now):
            transaction = self._open[branch]
            if now >= transaction.deadline:
                del self._open[branch]
                result.timed_out.append(transaction)
                continue
            transaction.copies += 1
            self.copies_sent += 1
            transaction.interval = min(transaction.interval * 2, T2)
            self._timers.set((branch,), min(now + transaction.interval, transaction.deadline))
            result.again.append(transaction)
        return result


@attrs.define
class _Seen:
    at: Instant
    answer: bytes | None = None


class ServerTransactions:
    """The requests of others of the last `MEMORY` seconds, and what was answered.

    The oldest are forgotten first where a bound is reached.
    """

    def __init__(
        self, count_max: int = ANSWERS_MAX, answer_bytes_max: int = ANSWER_BYTES_MAX
    ) -> None:
        self.duplicates = 0
        self.forgotten_early = 0
        self._count_max = count_max
        self._answer_bytes_max = answer_bytes_max
        self._answer_bytes = 0
        self._seen: OrderedDict[Hashable, _Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def is_new(self, now: Instant, key: Hashable) -> bool:
        """Tell whether a request is the first of its copies; it is remembered from now on."""
        self._forget_old(now)
        if key in self._seen:
            self.duplicates += 1
            return False
        while len(self._seen) >= self._count_max:
            self._forget_oldest()
            self.forgotten_early += 1
        self._seen[key] = _Seen(now)
        return True

    def answer_to(self, key: Hashable) -> bytes | None:
        """Return what a request was answered; None while it is being handled."""
        seen = self._seen.get(key)
        return None if seen is None else seen.answer

    def answered(self, key: Hashable, answer: bytes) -> None:
        """Remember the answer, for the copies that may still come."""
        seen = self._seen.get(key)
        if seen is None or seen.answer is not None:
            return
        seen.answer = answer
        self._answer_bytes += len(answer)
        while self._answer_bytes > self._answer_bytes_max and self._seen:
            self._forget_oldest()
            self.forgotten_early += 1

    def _forget_old(self, now: Instant) -> None:
        while self._seen:
            oldest = next(iter(self._seen.values()))
            if oldest.at + MEMORY > now:
                return
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, seen = self._seen.popitem(last=False)
        if seen.answer is not None:
            self._answer_bytes -= len(seen.answer)
