"""Decides for one link what becomes of what arrives: relay it, and how, or not, and why. Pure.

A link is one way of a rule. `take` decides; whoever carries the parcel says by `ended` whether
the far side has it. Specified in docs/one-bus-from-three.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import attrs

from clusternode.bridge.bodies import (
    JSON_CONTENT_TYPE,
    TEXT_CONTENT_TYPE,
    Parcel,
    as_json,
    load_json_untrusted,
    notification,
)
from clusternode.bridge.changes import (
    CellChange,
    Change,
    ContactChange,
    encode,
    parse_untrusted,
    to_json,
)
from clusternode.bridge.marks import IDENTITY_LENGTH, Mark, digest, place_of
from clusternode.bridge.memory import Known, Memory, TokenBucket
from clusternode.bridge.settings import DEFAULT_CONTENT_TYPE, FORWARDS_MAX, Link, Rule
from clusternode.core.types import Instant
from clusternode.core.wire.codec import is_content_type
from clusternode.errors import RemoteProtocolError
from clusternode.kafka.ends import TYPED


class Refusal(enum.Enum):
    """Why something is not relayed. The value is the name of its counter."""

    FILTERED = "filtered"
    """The filters of the rule do not want it."""
    LOOPED = "looped"
    """It has been there, may not go further, or came from where this agent's likes put it."""
    REPEATED = "repeated"
    """It was relayed within `loop_window`."""
    BUSY = "busy"
    """A copy of it is being relayed, or too many wait for the far side."""
    LIMITED = "limited"
    """There is more than `rate` allows."""
    UNREADABLE = "unreadable"
    """It cannot be said at the other end: no JSON, no cell, a content type too long."""


@attrs.define
class Counters:
    """What became of everything that came to one rule."""

    relayed: int = 0
    """Taken by the far side."""
    failed: int = 0
    """Not taken, or not known to be."""
    filtered: int = 0
    looped: int = 0
    repeated: int = 0
    busy: int = 0
    limited: int = 0
    unreadable: int = 0
    stood_by: int = 0
    """Left to the agent that was chosen."""
    in_flight: int = 0
    """Waiting for the far side now."""


@attrs.frozen(kw_only=True)
class Arrival:
    """Something that arrived at the source of a link."""

    parcel: Parcel
    identity: str
    """Made of who sent it and its number there; not used where a mark came with it."""
    mark: Mark | None = None
    fingerprint: str = ""
    """What tells the copies of one message that several agents get; equal messages may share it."""
    max_forwards: int | None = None
    """None where the protocol has no such thing."""
    event: str = ""
    """The name of an event."""
    change: Change | None = None
    """What a typed source says."""
    is_of_an_agent: bool = False
    """Whether it comes without a mark from the node of another bridging agent."""


@attrs.frozen(kw_only=True)
class Outgoing:
    """What is to be put to the target of a link."""

    body: bytes
    content_type: str
    """Without the mark."""
    mark: Mark
    max_forwards: int
    key: str = ""
    """Of a record."""
    headers: tuple[tuple[str, str], ...] = ()
    change: Change | None = None
    """For a typed target."""
    parameters: Mapping[str, Any] = attrs.field(factory=dict)
    """For an event."""
    known: Known
    """By what it is remembered."""
    written: Known
    """By what it is known when it comes back without a mark."""


NO_FORWARDS: Final = 1
"""What a message may be passed on that comes from where nobody counts."""


class Unreadable(Exception):
    """Something cannot be said at the other end."""


class LinkEngine:
    """One way of a rule. Its memory, limit and counters belong to the rule."""

    def __init__(
        self, rule: Rule, link: Link, memory: Memory, bucket: TokenBucket, counters: Counters
    ) -> None:
        self.rule = rule
        self.link = link
        self.counters = counters
        self._memory = memory
        self._bucket = bucket
        self._places = (place_of(rule.place(link.source)), place_of(rule.place(link.target)))
        self._in_flight: set[Known] = set()

    def take(self, now: Instant, arrival: Arrival) -> Outgoing | Refusal:
        """Decide about an arrival; one to be relayed is in flight until `ended`."""
        decided = self._decide(now, arrival)
        if isinstance(decided, Outgoing):
            limits = self.rule.limits
            if decided.known in self._in_flight or self.counters.in_flight >= limits.in_flight_max:
                decided = Refusal.BUSY
            elif not self._bucket.take(now):
                decided = Refusal.LIMITED
        if isinstance(decided, Refusal):
            name = decided.value
            setattr(self.counters, name, getattr(self.counters, name) + 1)
            return decided
        self._in_flight.add(decided.known)
        self.counters.in_flight += 1
        self._note(now, decided)
        return decided

    def delay(self, now: Instant) -> float:
        """Return how long what can wait should wait for the limit of the rule."""
        return self._bucket.delay(now)

    def ended(self, now: Instant, outgoing: Outgoing, *, is_taken: bool) -> None:
        """Take note of how an `Outgoing` ended; one that nobody took may come again."""
        self._in_flight.discard(outgoing.known)
        self.counters.in_flight -= 1
        if is_taken:
            self.counters.relayed += 1
            self._memory.remember(now, outgoing.known)
        else:
            self.counters.failed += 1

    def cannot_say(self, outgoing: Outgoing) -> None:
        """Take note that the target has no word, or no room, for an `Outgoing`."""
        self._in_flight.discard(outgoing.known)
        self.counters.in_flight -= 1
        self.counters.unreadable += 1

    def stand_by(self, now: Instant, arrival: Arrival) -> Outgoing | None:
        """Remember what another agent relays; return it, if it is to be relayed at all."""
        decided = self._decide(now, arrival)
        if isinstance(decided, Refusal):
            return None
        self.counters.stood_by += 1
        self._note(now, decided)
        return decided

    def _note(self, now: Instant, outgoing: Outgoing) -> None:
        if self.rule.loops.identity == "content":
            self._memory.remember(now, outgoing.written)

    # --- the decision ---------------------------------------------------------------------------

    def _decide(self, now: Instant, arrival: Arrival) -> Outgoing | Refusal:
        parcel = arrival.parcel
        if not parcel.matches(self.rule.filters):
            return Refusal.FILTERED
        forwards = NO_FORWARDS if arrival.max_forwards is None else arrival.max_forwards
        mark = arrival.mark or Mark(arrival.identity)
        source, target = self._places
        if forwards < 1 or mark.is_full or mark.visited(target) or arrival.is_of_an_agent:
            return Refusal.LOOPED
        window = self.rule.loops.loop_window
        if self.rule.loops.identity == "content":
            if self._memory.knows(now, ("put", source, _content_of(arrival)), window):
                return Refusal.LOOPED
        known = ("id", self.rule.name, str(self.link), mark.identity)
        if window and self._memory.knows(now, known, window):
            return Refusal.REPEATED
        try:
            return self._map(arrival, mark.beside(source, target), forwards - 1, known)
        except (Unreadable, RemoteProtocolError):
            return Refusal.UNREADABLE

    def _map(self, arrival: Arrival, mark: Mark, forwards: int, known: Known) -> Outgoing:
        """Make of an arrival what the target gets.

        Raises:
            Unreadable, RemoteProtocolError: The target cannot be told this.
        """
        own, parcel, target = self.rule.bodies, arrival.parcel, self.link.target
        change: Change | None = None
        parameters: Mapping[str, Any] = {}
        if target.kind in TYPED:
            change = self._change(arrival)
            body, content_type = encode(change), JSON_CONTENT_TYPE
        else:
            body, content_type = self._body(arrival)
        if target.kind == "event":
            parameters = _parameters(arrival, body)
        if target.kind in ("channel", "request") and mark.on(content_type) is None:
            raise Unreadable("the content type leaves no room for the mark")
        return Outgoing(
            body=body,
            content_type=content_type,
            mark=mark,
            max_forwards=min(max(forwards, own.max_forwards), FORWARDS_MAX),
            key=parcel.fill(own.key),
            headers=tuple((name, parcel.fill(text)) for name, text in self.rule.headers.items()),
            change=change,
            parameters=parameters,
            known=known,
            written=("put", self._places[1], digest(body, IDENTITY_LENGTH)),
        )

    def _body(self, arrival: Arrival) -> tuple[bytes, str]:
        own, parcel = self.rule.bodies, arrival.parcel
        if own.body == "text":
            text = parcel.fill(own.template or "{body}")
            body, content_type = text.encode("utf-8", "replace"), TEXT_CONTENT_TYPE
        elif arrival.change is not None:
            body, content_type = encode(arrival.change), JSON_CONTENT_TYPE
        elif arrival.event:
            body = notification(arrival.event, parcel.parameters)
            content_type = JSON_CONTENT_TYPE
        elif own.body == "json":
            body, content_type = as_json(parcel), JSON_CONTENT_TYPE
        else:
            body, content_type = parcel.body, parcel.content_type or DEFAULT_CONTENT_TYPE
        content_type = own.content_type or content_type
        return body, content_type if is_content_type(content_type) else DEFAULT_CONTENT_TYPE

    def _change(self, arrival: Arrival) -> Change:
        """Return what a typed target is told.

        Raises:
            RemoteProtocolError: The body is no change.
        """
        own, target = self.rule.bodies, self.link.target
        change = arrival.change
        if change is None and target.kind == "table" and own.key:
            parcel = arrival.parcel
            key, value = parcel.fill(own.key), parcel.fill(own.value)
            change = CellChange("set", target.name, key, value, own.expires or None)
        if change is None:
            change = parse_untrusted(target.kind, arrival.parcel.body)
        if isinstance(change, ContactChange):
            return attrs.evolve(change, domain=target.name, aor=self._aor(change.aor))
        return self._cell(change)

    def _aor(self, aor: str) -> str:
        """Return an address of record as the target has it.

        Raises:
            Unreadable: It is of another domain than those that go this way.
        """
        domain = self.rule.bodies.aor_domain
        if not domain:
            return aor
        ending = f"@{domain}"
        if not self.link.is_back:
            return aor + ending
        if not aor.endswith(ending):
            raise Unreadable("a user of another domain")
        return aor.removesuffix(ending)

    def _cell(self, change: CellChange) -> CellChange:
        """Return a cell with its name at the target.

        Raises:
            Unreadable: It is none of those that go this way.
        """
        own = self.rule.bodies
        key = change.key
        if own.prefix and not self.link.is_back:
            if change.action == "delete_regex":
                raise Unreadable("an expression with a prefix before it")
            key = own.prefix + key
        elif own.prefix:
            if not key.startswith(own.prefix):
                raise Unreadable("a key without the prefix")
            key = key.removeprefix(own.prefix)
        if not key:
            raise Unreadable("no key")
        ttl = change.ttl
        if change.action == "set" and ttl is None and own.expires:
            ttl = own.expires
        return attrs.evolve(change, table=self.link.target.name, key=key, ttl=ttl)


def _content_of(arrival: Arrival) -> str:
    """Return what stands for the content of an arrival, as `Outgoing.written` has it."""
    body = arrival.parcel.body if arrival.change is None else encode(arrival.change)
    return digest(body, IDENTITY_LENGTH)


def _parameters(arrival: Arrival, body: bytes) -> Mapping[str, Any]:
    """Return the parameters of the event that is raised for an arrival.

    Of a JSON object its members, of anything else `body`; who sent it is added.
    """
    found: Any = None
    if arrival.change is not None:
        found = to_json(arrival.change)
    else:
        try:
            found = load_json_untrusted(body)
        except ValueError:
            found = None
    if not isinstance(found, dict):
        found = {"body": body.decode("utf-8", "replace")}
    return {"origin": arrival.parcel.fields.get("origin", ""), **found}
