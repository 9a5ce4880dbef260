"""What happened in a run, as the world outside the core saw it: the evidence for the invariants.

Everything here was written when a node was told something, or asked for something; nothing is
read from inside a node. Every message that the world sends has a *key* as its body, which is
unique in a run, so that what was sent and what handlers saw can be matched without trusting ids
that the core made. Described in docs/simulation.md.
"""

from __future__ import annotations

from collections import defaultdict

import attrs

from clusternode.core.effects import Outcome
from clusternode.core.types import ChannelName, Instant, NodeId, ResultCode, Seconds

Key = str
"""`m/n1/2/17`: kind (message, request, reply), node, its life, number."""


@attrs.define
class LinkFact:
    """A connection of a process whose handshake was done, or which has ended."""

    at: Instant
    peer: NodeId
    is_up: bool


@attrs.define
class LifeFact:
    """One process of a node, from its start to its end."""

    node_id: NodeId
    life: int
    started: Instant
    ended: Instant | None = None
    how: str = ""
    """killed, powered off, left or withdrew; empty while it runs."""
    leaving_since: Instant | None = None
    claims: NodeId | None = None
    """The node id of another one, where it claims that."""
    routes_failed: list[tuple[Instant, str]] = attrs.Factory(list)
    """When a route of the user has raised, and what."""
    links: list[LinkFact] = attrs.Factory(list)
    clock_rate: float = 1.0
    """How many of its seconds pass in one of the world."""

    def covers(self, at: Instant) -> bool:
        return self.started <= at and (self.ended is None or at < self.ended)


@attrs.define
class DeliveryFact:
    """A message, or a reply, that a node accepted."""

    key: Key
    origin: NodeId
    life: int
    channel: ChannelName
    at: Instant
    is_reply: bool = False
    is_opaque: bool = False
    """Whether its body is the user's, so that nobody can see what became of it at a handler."""
    fanouts: list[list[NodeId]] = attrs.Factory(list)
    """Each time the node fixed the destinations: must be once."""
    results: list[tuple[Instant, NodeId, ResultCode]] = attrs.Factory(list)
    queued: dict[NodeId, None] = attrs.Factory(dict)
    """Where it has arrived, if that is long before it is handed on."""


@attrs.define
class HandlingFact:
    """One call of a simulated handler."""

    key: Key
    destination: NodeId
    life: int
    started: Instant
    ended: Instant | None = None
    code: ResultCode | None = None


@attrs.define
class RequestFact:
    """A request that a node accepted, and what it said about it."""

    key: Key
    origin: NodeId
    life: int
    at: Instant
    timeout: Seconds
    asked: list[list[NodeId]] = attrs.Factory(list)
    replies: list[tuple[Instant, NodeId, Key]] = attrs.Factory(list)
    finished: list[tuple[Instant, NodeId, Outcome, ResultCode]] = attrs.Factory(list)
    ended: list[Instant] = attrs.Factory(list)
    wanted: str | None = None
    """What every node has to reply, in words of the user."""
    texts: list[tuple[NodeId, str]] | None = None
    """What the routes of the user have replied, where it is they who do."""


@attrs.frozen
class ReplyMade:
    """A reply that a handler gave."""

    request: Key
    replier: NodeId
    life: int


@attrs.define
class StatusFact:
    """The event `NodeStateChanged`, as one observer raised it."""

    at: Instant
    observer: NodeId
    life: int
    member: NodeId
    status: str
    previous: str
    reason: str


@attrs.define
class Disturbance:
    """Something that excuses a node of `left` for not seeing one of `right`, and the reverse.

    An empty `right` stands for every node. One reset of a connection is none: it changes nothing.
    """

    kind: str
    at: Instant
    left: frozenset[NodeId]
    right: frozenset[NodeId] = frozenset()
    until: Instant | None = None

    def excuses(self, one: NodeId, other: NodeId, since: Instant, to: Instant) -> bool:
        """Tell whether it touched the pair at some time from `since` to `to`."""
        if self.at > to or (self.until is not None and self.until < since):
            return False
        if not self.right:
            return one in self.left or other in self.left
        return (one in self.left and other in self.right) or (
            other in self.left and one in self.right
        )


@attrs.frozen
class Break:
    """What ended the connections of two hosts in an instant: a reset, or an operator."""

    at: Instant
    one: NodeId
    other: NodeId
    is_removal: bool = False
    """Whether an operator took `other` off the list of `one`."""


@attrs.frozen
class OutboxSample:
    """How full the outbox of one peer was at one moment."""

    at: Instant
    node_id: NodeId
    peer: NodeId
    size_bytes: int
    limit_bytes: int


@attrs.frozen
class Limits:
    """The time limits that the invariants allow for, in seconds."""

    result: Seconds = 30.0
    """No final result may take longer, from the call."""
    patience: Seconds = 30.0
    """How long a message is tried at least."""
    grace: Seconds = 10.0
    """How long after a fault has ended a member may still be shown as it was in the fault."""
    notice: Seconds = 20.0
    """How long a member that has ended may still be shown as active."""
    leave: Seconds = 2.0
    """How long a clean stop may take."""
    ping_timeout: Seconds = 2.0
    """How long a ping waits for its answer."""
    is_rerouting: bool = True
    """Whether the nodes reach each other through others."""


@attrs.define
class History:
    """All facts of one run, in the order in which they happened."""

    lives: dict[NodeId, list[LifeFact]] = attrs.Factory(dict)
    deliveries: dict[Key, DeliveryFact] = attrs.Factory(dict)
    handlings: dict[tuple[Key, NodeId], list[HandlingFact]] = attrs.Factory(
        lambda: defaultdict(list)
    )
    arrivals: list[tuple[Key, NodeId, int]] = attrs.Factory(list)
    """(message, destination, its life) in the order in which each node handed messages on."""
    requests: dict[Key, RequestFact] = attrs.Factory(dict)
    replies_made: dict[Key, ReplyMade] = attrs.Factory(dict)
    statuses: list[StatusFact] = attrs.Factory(list)
    disturbances: list[Disturbance] = attrs.Factory(list)
    breaks: list[Break] = attrs.Factory(list)
    outboxes: list[OutboxSample] = attrs.Factory(list)
    faults_of_core: list[tuple[Instant, NodeId, str]] = attrs.Factory(list)
    """What a node did that no node may do, seen on the spot: (when, node, what)."""
    settings: Limits = attrs.Factory(Limits)

    @property
    def removals(self) -> list[tuple[Instant, NodeId, NodeId]]:
        """What operators took off a list: (when, at which node, which member)."""
        return [(found.at, found.one, found.other) for found in self.breaks if found.is_removal]

    def life_of(self, node_id: NodeId, life: int) -> LifeFact:
        return self.lives[node_id][life - 1]

    def is_well_throughout(self, node_id: NodeId, since: Instant, to: Instant) -> bool:
        """Tell whether one process of the node ran, and was not leaving, all that time."""
        return any(
            life.started <= since
            and (life.ended is None or life.ended > to)
            and (life.leaving_since is None or life.leaving_since > to)
            for life in self.lives.get(node_id, ())
        )

    def has_ended_since(self, node_id: NodeId, since: Instant, to: Instant) -> bool:
        """Tell whether a process of the node ended from `since` to `to`."""
        return any(
            life.ended is not None and since <= life.ended <= to
            for life in self.lives.get(node_id, ())
        )

    def is_member_throughout(
        self, observer: NodeId, life: int, member: NodeId, since: Instant, to: Instant
    ) -> bool:
        """Tell whether one life of a node told all that time that the other is on its list.

        It has told nothing of who has never answered, and is not asked about who was given up and
        has not answered since. An operator may have removed it, whether that was told or not.
        """
        is_on_list = False
        for fact in self.statuses:
            if (fact.observer, fact.life, fact.member) != (observer, life, member):
                continue
            if fact.at > to:
                break
            if fact.at > since and not is_on_list:
                return False
            is_on_list = fact.status in ("active", "not_active")
        return is_on_list and not any(
            since <= at <= to and (place, removed) == (observer, member)
            for at, place, removed in self.removals
        )

    def is_alive(self, node_id: NodeId, at: Instant) -> bool:
        return any(life.covers(at) for life in self.lives.get(node_id, ()))

    def was_alive_since(self, node_id: NodeId, since: Instant, to: Instant) -> bool:
        """Tell whether a process of the node ran at some time from `since` to `to`."""
        return any(
            life.started <= to and (life.ended is None or life.ended >= since)
            for life in self.lives.get(node_id, ())
        )


def origin_of(key: Key) -> tuple[str, NodeId, int, int]:
    """Take a key apart: kind, node, life, number."""
    kind, node_id, life, number = key.split("/")
    return kind, NodeId(node_id), int(life), int(number)


def make_key(kind: str, node_id: NodeId, life: int, number: int) -> Key:
    return f"{kind}/{node_id}/{life}/{number}"


def key_in(body: bytes) -> Key:
    """Read the key that a body begins with; the rest is padding."""
    return body.split(b" ", 1)[0].decode("utf-8", "replace")
