"""`virtual:POLICY URI URI …`: several back ends as one. Specified in docs/events.md, "virtual:".

Meaning of the policies: OpenSIPS event_virtual, but that every member is tried, one that fails
is skipped and tried again later, and the status of an event goes upwards, also through nesting.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import attrs
import trio

from clusternode.backends.base import (
    PUBLISH_TIMEOUT,
    BackendServices,
    EventBackend,
    Lane,
    Publication,
    wrong_uri,
)
from clusternode.backends.options import Option, query_of, read_options
from clusternode.backends.registry import make_backend
from clusternode.config.kinds import integer, number
from clusternode.core.events import SubscriberFailed, SubscriberRecovered
from clusternode.core.types import Instant
from clusternode.routes.subscriptions import QUEUE_SIZE_DEFAULT, DeliveryStatus

MEMBERS_MAX = 64
NESTING_MAX = 8
BATCH = 1024
"""Handing on costs nothing, so large batches only save turns."""

OPTIONS = (
    Option(
        name="failover_timeout",
        kind=number(0.0, 86400.0),
        default=30.0,
        help="Seconds for which a member that failed is not tried, as long as there are others.",
    ),
    Option(
        name="queue_size",
        kind=integer(1, 10_000_000),
        default=QUEUE_SIZE_DEFAULT,
        help="Events that may be on their way to one member; beyond it the next one gets them.",
    ),
)


class Policy(enum.Enum):
    """Who of the members gets an event."""

    PARALLEL = "PARALLEL"
    """All of them; delivered is what every one of them has got."""
    FAILOVER = "FAILOVER"
    """The first that can; the next one where it fails."""
    ROUND_ROBIN = "ROUND-ROBIN"
    """One after the other; the next one where it fails."""


@attrs.define(eq=False)
class Member:
    """One of several, and how well it is."""

    backend: EventBackend
    lane: Lane | None = None
    """None: not open yet."""
    failed_at: Instant = -math.inf
    is_failed: bool = False
    is_probed: bool = False
    """Whether one event is on its way to find out if it is well again."""


@attrs.define(eq=False)
class Attempt:
    """One event that looks for a member."""

    publication: Publication
    candidates: Iterator[Member]
    reasons: list[str]
    is_definite: bool = True


class VirtualBackend:
    """Several back ends as one."""

    scheme: ClassVar[str] = "virtual"
    batch_max = BATCH
    publish_timeout = PUBLISH_TIMEOUT

    def __init__(self, rest: str, services: BackendServices) -> None:
        words = split_members(rest)
        expected = "virtual:POLICY URI URI …, POLICY one of " + ", ".join(
            policy.value for policy in Policy
        )
        if len(words) < 2 or len(words) > MEMBERS_MAX + 1:
            raise wrong_uri(f"virtual:{words[0] if words else ''}", expected)
        name, values = read_options("virtual", words[0], OPTIONS)
        if name not in [policy.value for policy in Policy]:
            raise wrong_uri(f"virtual:{name}", expected)
        self.policy = Policy(name)
        self._services = services
        self._values = values
        self._members = [Member(make_backend(word, services)) for word in words[1:]]
        self._next = 0
        identities = [member.backend.identity for member in self._members]
        if len(set(identities)) < len(identities):
            raise wrong_uri(f"virtual:{name}", "each back end once")

    @property
    def identity(self) -> str:
        members = [member.backend.identity for member in self._members]
        if self.policy is Policy.PARALLEL:
            members.sort()
        return self._text(members, query_of(OPTIONS, self._values, None))

    @property
    def shown(self) -> str:
        members = [member.backend.shown for member in self._members]
        return self._text(members, query_of(OPTIONS, self._values, "***"))

    def _text(self, members: Sequence[str], query: str) -> str:
        nested = (f"({member})" if " " in member else member for member in members)
        return f"virtual:{self.policy.value}{query} {' '.join(nested)}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the members open until cancelled."""
        size = self._values["queue_size"]
        assert isinstance(size, int)
        for member in self._members:
            member.lane = self._services.open_lane(member.backend, size)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            for member in self._members:
                if member.lane is not None:
                    member.lane.abandon("virtual: has ended")
                    member.lane.close()
                member.lane = None

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hand each event to whom the policy says; the status follows."""
        await trio.lowlevel.checkpoint()
        for publication in publications:
            if self.policy is Policy.PARALLEL:
                _Everyone(self._members, publication).offer()
            else:
                self._try_next(Attempt(publication, self._order(), []))

    def hurry(self) -> None:
        """Let the last member have what the others have not delivered yet."""
        if self.policy is not Policy.PARALLEL:
            for member in self._members[:-1]:
                if member.lane is not None:
                    self._mark_failed(member, "the agent stops")
                    member.lane.abandon("the agent stops")

    # FAILOVER and ROUND-ROBIN: one member after the other

    def _order(self) -> Iterator[Member]:
        """Yield whom to try: who is well or to be tried again, then all the others."""
        members = self._members
        if self.policy is Policy.ROUND_ROBIN:
            start, self._next = self._next, (self._next + 1) % len(members)
            members = [*members[start:], *members[:start]]
        skipped: list[Member] = []
        for member in members:
            if self._is_worth_trying(member):
                yield member
            else:
                skipped.append(member)
        yield from skipped

    def _is_worth_trying(self, member: Member) -> bool:
        if not member.is_failed:
            return True
        timeout = self._values["failover_timeout"]
        assert isinstance(timeout, float)
        if member.is_probed or trio.current_time() - member.failed_at < timeout:
            return False
        member.is_probed = True  # one event finds out; the others go to the next member
        return True

    def _try_next(self, attempt: Attempt) -> None:
        """Offer an event to the next member that takes it into its queue."""
        event, notification = attempt.publication.event, attempt.publication.notification
        for member in attempt.candidates:
            settled = functools.partial(self._settled, attempt, member)
            if member.lane is not None and member.lane.offer(event, notification, settled):
                return
            member.is_probed = False
            attempt.reasons.append(f"{member.backend.shown}: the queue is full")
        reason = "; ".join(attempt.reasons)
        attempt.publication.fail(reason, definite=attempt.is_definite)

    def _settled(self, attempt: Attempt, member: Member, status: DeliveryStatus) -> None:
        member.is_probed = False
        if status.ok:
            if member.is_failed:
                member.is_failed = False
                self._services.raise_event(SubscriberRecovered("", member.backend.shown))
            detail = f"{member.backend.shown} {status.detail}".rstrip()
            attempt.publication.settle(DeliveryStatus(True, detail))
            return
        attempt.reasons.append(f"{member.backend.shown}: {status.detail}")
        attempt.is_definite = attempt.is_definite and status.definite
        self._mark_failed(member, status.detail)
        self._try_next(attempt)

    def _mark_failed(self, member: Member, reason: str) -> None:
        """Skip a member for a while; what waits for it goes to the others."""
        member.failed_at = trio.current_time()
        if not member.is_failed:
            member.is_failed = True
            if member.lane is not None:
                member.lane.flush(reason)
            self._services.raise_event(SubscriberFailed("", member.backend.shown, reason))


class _Everyone:
    """One event for all members; its status is the worst of theirs."""

    __slots__ = ("_members", "_open", "_publication", "_reasons", "_some")

    def __init__(self, members: Sequence[Member], publication: Publication) -> None:
        self._members = members
        self._publication = publication
        self._open = len(members)
        self._reasons: list[str] = []
        self._some = False  # whether one member may have got it

    def offer(self) -> None:
        publication = self._publication
        for member in self._members:
            settled = functools.partial(self._settled, member)
            lane = member.lane
            if lane is None or not lane.offer(publication.event, publication.notification, settled):
                settled(DeliveryStatus(False, "the queue is full"))

    def _settled(self, member: Member, status: DeliveryStatus) -> None:
        self._open -= 1
        if not status.ok:
            self._reasons.append(f"{member.backend.shown}: {status.detail}")
        if status.ok or not status.definite:
            self._some = True
        if self._open:
            return
        if self._reasons:
            self._publication.fail("; ".join(self._reasons), definite=not self._some)
        else:
            self._publication.settle()


def split_members(text: str) -> list[str]:
    """Split at blanks and tabs outside of parentheses; `(…)` around a nested `virtual:` goes.

    Raises:
        ConfigError: Parentheses do not match, or are nested too deeply.
    """
    words: list[str] = []
    word, depth = "", 0
    for char in text:
        if char in " \t" and depth == 0:
            words.append(word)
            word = ""
            continue
        if char == "(" and (depth or not word):
            depth += 1
        elif char == ")" and depth:
            depth -= 1
        word += char
        if depth > NESTING_MAX:
            break
    words.append(word)
    if depth:
        raise wrong_uri("virtual:", f"each ( to have its ), at most {NESTING_MAX} deep")
    found = [word for word in words if word]
    return [
        word[1:-1].strip() if word.startswith("(") and word.endswith(")") else word
        for word in found
    ]
