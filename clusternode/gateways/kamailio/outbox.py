"""Our requests on their way: one bounded lane per node, and the transactions of those sent.

At most `WINDOW` requests of one node are unanswered at a time, so that a burst of ours neither
overruns its socket buffer nor fills its memory; the others wait in its lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from clusternode.core.types import Instant, ResultCode, Seconds
from clusternode.gateways.kamailio.codec import METHOD, Identity, SipResponse, encode_request
from clusternode.gateways.kamailio.effects import Effect, Send
from clusternode.gateways.kamailio.transactions import ClientTransactions
from clusternode.gateways.kamailio.translate import REASONS, PeerAddress

WINDOW: Final = 64
"""Requests of one node that wait for its answer; 64 of 1000 bytes fit into any socket buffer."""
LANE_MAX: Final = 10_000
"""Requests that wait for their turn; beyond it 486."""
BRANCH_COOKIE: Final = "z9hG4bK"  # RFC 3261 section 8.1.1.7


@attrs.frozen
class Ending:
    """How a request ended: the answer of the node, or our own verdict."""

    code: int
    reason: str
    content_type: str = ""
    body: bytes = b""
    is_answer: bool = True
    round_trip: Seconds = 0.0


OnEnd = Callable[[Instant, Ending], None]


@attrs.define(eq=False)
class Outgoing:
    """One request of ours."""

    address: PeerAddress
    channel: str
    body: bytes
    content_type: str
    max_forwards: int
    deadline: Instant
    on_end: OnEnd
    is_urgent: bool = False
    """Pings and goodbyes overtake whatever waits in the lane."""
    sent_at: Instant = 0.0
    failures: int = 0
    """Copies that the kernel did not take."""


@attrs.define
class _Lane:
    open: int = 0
    waiting: deque[Outgoing] = attrs.Factory(deque)


def verdict(code: ResultCode) -> Ending:
    """Return an ending that no node has said."""
    return Ending(int(code), REASONS.get(code, "Request Timeout"), is_answer=False)


class Outbox:
    """Sends requests and tells how each ended, exactly once."""

    def __init__(self, identity: Identity, prefix: str, effects: list[Effect]) -> None:
        self.identity = identity
        self.sent = 0
        self.send_errors = 0
        self.transactions: ClientTransactions[Outgoing] = ClientTransactions()
        self._prefix = prefix
        """Random; keeps our branches and Call-IDs apart from those of an earlier life."""
        self._number = 0
        self._effects = effects
        self._lanes: dict[PeerAddress, _Lane] = {}

    def send(self, now: Instant, outgoing: Outgoing) -> None:
        """Send a request now or when its lane has room; `on_end` is called once, maybe at once."""
        if outgoing.is_urgent:
            self._open(now, outgoing)
            return
        lane = self._lanes.setdefault(outgoing.address, _Lane())
        if lane.open < WINDOW:
            lane.open += 1
            self._open(now, outgoing)
        elif len(lane.waiting) < LANE_MAX:
            lane.waiting.append(outgoing)
        else:
            outgoing.on_end(now, verdict(ResultCode.BUSY))

    def _open(self, now: Instant, outgoing: Outgoing) -> None:
        self._number += 1
        number = f"{self._prefix}{self._number:x}"
        branch = BRANCH_COOKIE + number
        data = encode_request(
            self.identity,
            channel=outgoing.channel,
            to=outgoing.address.target,
            branch=branch,
            tag=number,
            call_id=f"{number}@{self.identity.host}",
            max_forwards=outgoing.max_forwards,
            content_type=outgoing.content_type,
            body=outgoing.body,
        )
        outgoing.sent_at = now
        self.transactions.open(
            now,
            branch,
            METHOD,
            data,
            outgoing,
            deadline=max(outgoing.deadline, now),
            is_reliable=outgoing.address.transport != "udp",
        )
        self.sent += 1
        self._effects.append(Send(outgoing.address, data, branch))

    def answer(self, now: Instant, response: SipResponse) -> None:
        """Take an answer."""
        ended = self.transactions.answer(response.branch, response.method, response.code)
        if ended is None:
            return
        outgoing = ended.context
        # Which copy was answered is unknown after the first, so no round trip then.
        round_trip = now - outgoing.sent_at if ended.copies == 1 else 0.0
        self._end(
            now,
            outgoing,
            Ending(
                response.code,
                response.reason,
                response.content_type,
                response.body,
                round_trip=round_trip,
            ),
        )

    def send_failed(self, now: Instant, branch: str) -> None:
        """Take note that the kernel or a connection did not take a copy.

        Over UDP the next copy may pass; over a stream there is none, so it has ended.
        """
        self.send_errors += 1
        transaction = self.transactions.get(branch)
        if transaction is None:
            return
        transaction.context.failures += 1
        if transaction.is_reliable:
            self.transactions.cancel(branch)
            self._end(now, transaction.context, verdict(ResultCode.UNAVAILABLE))

    def tick(self, now: Instant) -> None:
        """Send again and give up, as the clock says."""
        due = self.transactions.due(now)
        for transaction in due.again:
            address = transaction.context.address
            self._effects.append(Send(address, transaction.data, transaction.branch))
        for transaction in due.timed_out:
            outgoing = transaction.context
            # What never left this host has certainly not happened.
            is_unsent = outgoing.failures >= transaction.copies
            code = ResultCode.UNAVAILABLE if is_unsent else ResultCode.TIMEOUT
            self._end(now, outgoing, verdict(code))

    def _end(self, now: Instant, outgoing: Outgoing, ending: Ending) -> None:
        if not outgoing.is_urgent:
            self._advance(now, outgoing.address)
        outgoing.on_end(now, ending)

    def _advance(self, now: Instant, address: PeerAddress) -> None:
        lane = self._lanes[address]
        lane.open -= 1
        expired: list[Outgoing] = []
        while lane.waiting and lane.open < WINDOW:
            outgoing = lane.waiting.popleft()
            if outgoing.deadline <= now:
                expired.append(outgoing)
                continue
            lane.open += 1
            self._open(now, outgoing)
        if not lane.open and not lane.waiting:
            del self._lanes[address]
        for outgoing in expired:
            outgoing.on_end(now, verdict(ResultCode.UNAVAILABLE))

    def waiting(self, address: PeerAddress) -> int:
        """Return how many bytes wait for a node."""
        lane = self._lanes.get(address)
        return 0 if lane is None else sum(len(outgoing.body) for outgoing in lane.waiting)
