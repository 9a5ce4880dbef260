"""What must always hold in a run, and what must hold in the end.

Written against the history of the world, never against the core: an invariant that asked the
code under test what is right would always be content. Each takes the facts and yields what is
wrong with them. Adding one: a function with a docstring, registered under the name that scenarios
use. Documented in docs/simulation.md.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator

from clusternode.core.effects import Outcome
from clusternode.core.types import Instant, NodeId, ResultCode
from clusternode.simulation import promptness  # noqa: F401  # registers its checks
from clusternode.simulation.checks import ALWAYS, EVENTUALLY, Finding, View, always, eventually
from clusternode.simulation.history import (
    DeliveryFact,
    HandlingFact,
    History,
    RequestFact,
    StatusFact,
    origin_of,
)
from clusternode.simulation.reachability import have_a_relay, have_two_relays, is_clear

__all__ = ["ALWAYS", "EVENTUALLY"]

STATUS_EDGES = frozenset(
    {
        ("new", "active"),
        ("active", "not_active"),
        ("active", "disabled"),
        ("active", "left"),
        ("not_active", "active"),
        ("not_active", "disabled"),
        ("not_active", "left"),
        ("disabled", "active"),
        ("disabled", "not_active"),
        ("disabled", "removed"),
        ("disabled", "left"),
        ("left", "active"),
        ("left", "removed"),
        ("removed", "active"),
    }
)
"""Which status may follow which, read from semantics section 4 and the DMQ README."""


# Messages.


@always("exactly-one-final-result")
def exactly_one_final_result(view: View) -> Iterator[Finding]:
    """Every destination of every accepted message gets one final result, and in time."""
    for fact in view.history.deliveries.values():
        yield from _results_of_one(fact, view)


def _results_of_one(fact: DeliveryFact, view: View) -> Iterator[Finding]:
    life = view.history.life_of(fact.origin, fact.life)
    if len(fact.fanouts) > 1 or (not fact.fanouts and life.ended is None):
        yield fact.at, f"{fact.key}: the destinations were fixed {len(fact.fanouts)} times"
        return
    destinations = fact.fanouts[0] if fact.fanouts else []
    counted = Counter(node_id for _, node_id, _ in fact.results)
    for at, node_id, code in fact.results:
        if node_id not in destinations:
            yield at, f"{fact.key}: a result {int(code)} from {node_id}, which was not asked"
    for node_id in destinations:
        if counted[node_id] > 1:
            codes = [int(code) for _, other, code in fact.results if other == node_id]
            yield fact.at, f"{fact.key}: {node_id} got the final results {codes}"
    if life.ended is None or life.ended - fact.at > view.history.settings.result:
        limit = fact.at + view.history.settings.result
        missing = [node_id for node_id in destinations if not counted[node_id]]
        was_paused = _was_paused(view.history, fact.origin, fact.at, limit)
        if missing and view.now > limit and not (was_paused and life.ended is not None):
            yield limit, f"{fact.key}: no result of {', '.join(missing)}"
        for at, node_id, code in fact.results:
            if at > limit and not was_paused:
                yield at, f"{fact.key}: the result {int(code)} of {node_id} came too late"


@always("true-results")
def true_results(view: View) -> Iterator[Finding]:
    """200 says that the handler ran to its end, once; a definite code, that it never ran."""
    for fact in view.history.deliveries.values():
        if fact.is_reply or fact.is_opaque:
            continue
        for at, node_id, code in fact.results:
            calls = view.history.handlings.get((fact.key, node_id), [])
            problem = _untruth(code, calls, at)
            if problem:
                yield at, f"{fact.key}: {int(code)} from {node_id}, but {problem}"


def _untruth(code: ResultCode, calls: list[HandlingFact], at: Instant) -> str:
    if code is ResultCode.OK:
        done = [call for call in calls if call.ended is not None and call.ended <= at]
        if len(calls) == 1 and len(done) == 1 and done[0].code is ResultCode.OK:
            return ""
        return f"the handler was called {len(calls)} times and had ended {len(done)} times"
    if code.definite and calls:
        return f"the handler was called {len(calls)} times"
    return ""


@always("the-reachable-are-reached")
def the_reachable_are_reached(view: View) -> Iterator[Finding]:
    """What is sent between two that run, with nothing between them, arrives and is answered.

    Without it a node that gives up with 408 or 503 at the last moment would be as good as one that
    delivers: those results are true.
    """
    history = view.history
    arrived = {(key, node_id) for key, node_id, _ in history.arrivals}
    for fact in history.deliveries.values():
        if fact.is_reply or fact.is_opaque:
            continue
        for at, node_id, code in fact.results:
            if code not in _GIVEN_UP or not _could_be_reached(fact, node_id, at, history):
                continue
            calls = history.handlings.get((fact.key, node_id), [])
            has_arrived = node_id in fact.queued or (fact.key, node_id) in arrived
            if not calls and not has_arrived:
                yield at, f"{fact.key}: {int(code)} from {node_id}, which could be reached"
            elif any(
                call.code is ResultCode.OK
                and call.ended is not None
                and call.ended < at - history.settings.grace
                for call in calls
            ):
                yield at, f"{fact.key}: {int(code)} from {node_id}, which had handled it long since"


_GIVEN_UP = frozenset(
    {ResultCode.BAD_REQUEST, ResultCode.TIMEOUT, ResultCode.UNAVAILABLE, ResultCode.LEAVING}
)


def _could_be_reached(fact: DeliveryFact, node_id: NodeId, to: Instant, history: History) -> bool:
    grace = history.settings.grace
    since = to - grace  # what held it back before has been mended for long enough
    return (
        history.is_well_throughout(fact.origin, fact.at - grace, to)
        and history.is_well_throughout(node_id, fact.at - grace, to)
        and (
            is_clear(history, fact.origin, node_id, since, to)
            or _is_only_cut(history, fact.origin, node_id, since, to)
        )
        and not any(
            since <= at <= to and {place, member} == {fact.origin, node_id}
            for at, place, member in history.removals
        )
    )


def _is_only_cut(history: History, one: NodeId, other: NodeId, since: Instant, to: Instant) -> bool:
    """Tell whether only the link between two is broken: slow ones are used as they are."""
    return have_a_relay(history, one, other, since, to) and all(
        disturbance.kind.startswith("block ")
        for disturbance in history.disturbances
        if disturbance.excuses(one, other, since, to)
    )


@always("no-duplicate-delivery")
def no_duplicate_delivery(view: View) -> Iterator[Finding]:
    """No message or request is handled twice, not even by two incarnations."""
    for (key, node_id), calls in view.history.handlings.items():
        if len(calls) > 1:
            lives = ", ".join(str(call.life) for call in calls)
            yield calls[1].started, f"{key}: handled {len(calls)} times by {node_id} (life {lives})"


@always("order-per-origin-and-channel")
def order_per_origin_and_channel(view: View) -> Iterator[Finding]:
    """A node hands on the messages of one origin and channel in the order of their sending."""
    last: dict[tuple[str, int, str, NodeId, int], int] = {}
    for key, node_id, life in view.history.arrivals:
        _, origin, origin_life, number = origin_of(key)
        fact = view.history.deliveries[key]
        lane = (origin, origin_life, fact.channel, node_id, life)
        if number <= last.get(lane, 0):
            yield fact.at, f"{key}: {node_id} got it after number {last[lane]}"
        last[lane] = number


@always("replies-accounted")
def replies_accounted(view: View) -> Iterator[Finding]:
    """Asked = replied, nothing to say, failed or unanswered; each once, and replies are real."""
    for fact in view.history.requests.values():
        life = view.history.life_of(fact.origin, fact.life)
        limit = _timeout_of(fact, view.history)
        is_due = view.now > limit and (life.ended is None or life.ended > limit)
        if is_due and not _was_paused(view.history, fact.origin, fact.at, limit):
            yield from _request_ended_well(fact, limit)
        yield from _replies_are_real(fact, view.history)
    yield from _no_reply_is_missed(view.history)


def _timeout_of(fact: RequestFact, history: History) -> Instant:
    """Return when the asker's own clock, fast or slow, has counted the timeout."""
    return fact.at + fact.timeout / history.life_of(fact.origin, fact.life).clock_rate


def _request_ended_well(fact: RequestFact, limit: Instant) -> Iterator[Finding]:
    if len(fact.asked) != 1 or len(fact.ended) != 1:
        yield limit, f"{fact.key}: asked {len(fact.asked)} times, ended {len(fact.ended)} times"
        return
    if fact.ended[0] > limit + 1e-6:  # rounding of one addition
        yield fact.ended[0], f"{fact.key}: ended {fact.ended[0] - limit:.3f} s after its timeout"
    finished = Counter(node_id for _, node_id, _, _ in fact.finished)
    if finished != Counter(fact.asked[0]):
        names = sorted(finished.elements())
        yield limit, f"{fact.key}: asked {sorted(fact.asked[0])}, finished {names}"
    replied = {node_id for _, node_id, _ in fact.replies}
    for at, node_id, outcome, _ in fact.finished:
        if outcome is Outcome.REPLIED and node_id not in replied:
            yield at, f"{fact.key}: {node_id} is said to have replied, but no reply was given"
        if outcome is Outcome.NOTHING and node_id in replied:
            yield at, f"{fact.key}: {node_id} is said to have had nothing, but replied"


def _no_reply_is_missed(history: History) -> Iterator[Finding]:
    """No reply arrives in time and finds that its node is said to have ended well before it."""
    for key, made in history.replies_made.items():
        request, reply = history.requests.get(made.request), history.deliveries.get(key)
        if request is None or reply is None:
            continue
        ended_well = any(
            node_id == made.replier and code is ResultCode.OK
            for _, node_id, _, code in request.finished
        )
        if not ended_well or any(other == key for _, _, other in request.replies):
            continue
        for at, _, code in reply.results:
            is_told = code in (ResultCode.OK, ResultCode.NOT_FOUND)
            if is_told and at <= _timeout_of(request, history):
                yield at, f"{made.request}: the reply {key} was missed"


def _replies_are_real(fact: RequestFact, history: History) -> Iterator[Finding]:
    seen = Counter(key for _, _, key in fact.replies)
    for at, node_id, key in fact.replies:
        made = history.replies_made.get(key)
        if made is None or made.request != fact.key or made.replier != node_id:
            yield at, f"{fact.key}: {node_id} never gave the reply {key}"
        if seen[key] > 1:
            yield at, f"{fact.key}: the reply {key} came {seen[key]} times"
        if fact.ended and at > fact.ended[0]:
            yield at, f"{fact.key}: the reply {key} came after the end"


@always("replies-as-wanted")
def replies_as_wanted(view: View) -> Iterator[Finding]:
    """Where a step says what all have to reply, every asked node replies that, and only that."""
    for fact in view.history.requests.values():
        if fact.wanted is None or not fact.ended:
            continue
        found: dict[NodeId, list[str]] = {node_id: [] for node_id in fact.asked[0]}
        for node_id, text in fact.texts or ():
            found[node_id].append(text)
        for node_id, texts in found.items():
            if texts != [fact.wanted]:
                said = ", ".join(map(repr, texts)) or "nothing"
                yield fact.ended[0], f"{node_id} replied {said}, not {fact.wanted!r}"


@always("no-route-fails")
def no_route_fails(view: View) -> Iterator[Finding]:
    """No event route of the user raises."""
    for life in itertools.chain.from_iterable(view.history.lives.values()):
        for at, what in life.routes_failed:
            yield at, f"{life.node_id}: {what}"


# Members.


@always("health-follows-table")
def health_follows_table(view: View) -> Iterator[Finding]:
    """Every change of a status is an edge of the table, and each goes on from the last one told."""
    last: dict[tuple[NodeId, int, NodeId], str] = {}
    for fact in view.history.statuses:
        if fact.status == "removed" and _was_removed_by_hand(view.history, fact):
            last[fact.observer, fact.life, fact.member] = fact.status
            continue
        pair = (fact.observer, fact.life, fact.member)
        before = last.get(pair)
        what = f"{fact.observer} says {fact.member} is {fact.status} after {fact.previous}"
        if (fact.previous, fact.status) not in STATUS_EDGES:
            yield fact.at, f"{what}: no edge of the table"
        elif not _may_follow(before, fact.previous):
            yield fact.at, f"{what}, but it had said {before}"
        last[pair] = fact.status


def _was_removed_by_hand(history: History, fact: StatusFact) -> bool:
    """Tell whether an operator did this (dmq.remove), which is done at once."""
    if (fact.at, fact.observer, fact.member) in history.removals:
        return True
    kind = f"pause {fact.observer}"  # what it is told meanwhile, it does when it goes on
    return any(
        pause.kind == kind and pause.at <= at < fact.at and pause.until == fact.at
        for at, observer, member in history.removals
        for pause in history.disturbances
        if (observer, member) == (fact.observer, fact.member)
    )


def _may_follow(before: str | None, previous: str) -> bool:
    """Tell whether an observer that said `before` may go on from `previous`."""
    if previous == "new":
        return before in (None, "removed", "left")  # whose records may be forgotten
    return before == previous


@always("no-flapping-without-fault")
def no_flapping_without_fault(view: View) -> Iterator[Finding]:
    """No member that runs and can be reached, or through another, is shown as not active.

    A reset of connections is no excuse: it changes nothing. Only one upon the other, faster than
    a ping can be answered, is. No excuses for calling others dead are that it stood still itself,
    and a narrow link, however full the queue before it is.
    """
    history = view.history
    for fact in history.statuses:
        if fact.status in ("active", "left") or _was_removed_by_hand(history, fact):
            continue
        since = fact.at - history.settings.grace
        pair = (fact.observer, fact.member)
        no_excuses = (f"pause {fact.observer} ", "narrow ", "uplink ")
        if (
            history.is_well_throughout(fact.member, since, fact.at)
            and history.is_well_throughout(fact.observer, fact.at, fact.at)
            and (
                is_clear(history, *pair, since, fact.at, no_excuses)
                or have_a_relay(history, *pair, since, fact.at, no_excuses)
                or have_two_relays(history, *pair, since, fact.at, no_excuses)
            )
        ):
            yield (
                fact.at,
                f"{fact.observer} says {fact.member} is {fact.status} ({fact.reason}); it runs",
            )


@always("no-ghost-returns")
def no_ghost_returns(view: View) -> Iterator[Finding]:
    """No dead node is ever shown as active, or comes back to the list of members."""
    history = view.history
    for fact in history.statuses:
        if fact.status == "active" and not history.was_alive_since(
            fact.member, fact.at - GHOST_MARGIN, fact.at
        ):
            yield fact.at, f"{fact.observer} says {fact.member} is active; it is dead"
    removed: dict[tuple[NodeId, int], dict[NodeId, Instant]] = defaultdict(dict)
    for fact in history.statuses:
        rows = removed[fact.observer, fact.life]
        rows.pop(fact.member, None)
        if fact.status == "removed":
            rows[fact.member] = fact.at
    for observer, snapshot in view.snapshots.items():
        rows = removed[observer, len(history.lives[observer])]
        for member in snapshot.members:
            at = rows.get(member.node_id)
            if at is not None and not history.was_alive_since(member.node_id, at, view.now):
                yield view.now, f"{observer} has {member.node_id} again; it was removed and is dead"


GHOST_MARGIN = 1.0
"""What a node said before its end may still be on the way for so long, in seconds."""


@always("left-means-left")
def left_means_left(view: View) -> Iterator[Finding]:
    """A member is shown as left only when it was stopped cleanly; and that ends in time."""
    history = view.history
    for fact in history.statuses:
        lives = history.lives.get(fact.member, [])
        if fact.status == "left" and not any(
            life.leaving_since is not None and life.leaving_since <= fact.at for life in lives
        ):
            yield fact.at, f"{fact.observer} says {fact.member} left; nobody stopped it"
    for life in itertools.chain.from_iterable(history.lives.values()):
        if life.leaving_since is None:
            continue
        limit = life.leaving_since + history.settings.leave
        was_paused = _was_paused(history, life.node_id, life.leaving_since, limit)
        if (life.ended or view.now) > limit and not was_paused:
            yield limit, f"{life.node_id} still runs {history.settings.leave} s after its stop"


def _was_paused(history: History, node_id: NodeId, since: Instant, to: Instant) -> bool:
    pauses = [one for one in history.disturbances if one.kind == f"pause {node_id}"]
    return any(pause.excuses(node_id, node_id, since, to) for pause in pauses)


@always("bounded-queues")
def bounded_queues(view: View) -> Iterator[Finding]:
    """No outbox holds more than its limit."""
    for sample in view.history.outboxes:
        if sample.size_bytes > sample.limit_bytes:
            yield (
                sample.at,
                f"{sample.node_id}: {sample.size_bytes} bytes wait for {sample.peer}, "
                f"at most {sample.limit_bytes}",
            )


@always("no-node-fails")
def no_node_fails(view: View) -> Iterator[Finding]:
    """No node raises, spins, withdraws without a twin, or speaks of what nobody asked."""
    for at, node_id, what in view.history.faults_of_core:
        yield at, f"{node_id}: {what}"
    for life in itertools.chain.from_iterable(view.history.lives.values()):
        if life.how == "withdrew" and not _has_twin(view.history, life.node_id):
            yield life.ended or view.now, f"{life.node_id} withdrew, but nobody has its id"


def _has_twin(history: History, node_id: NodeId) -> bool:
    for life in itertools.chain.from_iterable(history.lives.values()):
        if life.claims is not None and node_id in (life.node_id, life.claims):
            return True
    return False


# In the end.


@eventually("everyone-sees-everyone")
def everyone_sees_everyone(view: View) -> Iterator[Finding]:
    """Every running node shows every running one as active, and no other one."""
    for observer, snapshot in view.snapshots.items():
        rows = {member.node_id: member for member in snapshot.members}
        for node_id, other in view.snapshots.items():
            row = rows.get(node_id)
            status = "missing" if row is None else row.status
            if row is None or row.status != "active":
                yield view.now, f"{observer} sees {node_id} as {status}; it runs"
            elif row.incarnation != other.incarnation:
                yield view.now, f"{observer} knows an old incarnation of {node_id}"
        for node_id, row in rows.items():
            if node_id not in view.snapshots and row.status == "active":
                yield view.now, f"{observer} sees {node_id} as active; it does not run"


@eventually("the-dead-are-removed")
def the_dead_are_removed(view: View) -> Iterator[Finding]:
    """No running node lists one that was killed; one that left may still be listed as left."""
    for observer, snapshot in view.snapshots.items():
        for member in snapshot.members:
            if member.node_id not in view.snapshots and member.status != "left":
                yield view.now, f"{observer} lists {member.node_id} as {member.status}; it is dead"


@eventually("leavers-are-left")
def leavers_are_left(view: View) -> Iterator[Finding]:
    """Every running node shows who was stopped cleanly as left, or not at all."""
    for observer, snapshot in view.snapshots.items():
        for member in snapshot.members:
            lives = view.history.lives.get(member.node_id, [])
            if lives and lives[-1].how == "left" and member.status != "left":
                yield view.now, f"{observer} sees {member.node_id} as {member.status}; it left"


@eventually("converged-digests")
def converged_digests(view: View) -> Iterator[Finding]:
    """All running nodes have the same record table."""
    digests: dict[int, list[NodeId]] = defaultdict(list)
    for node_id, snapshot in view.snapshots.items():
        digests[snapshot.digest].append(node_id)
    if len(digests) > 1:
        groups = sorted(digests.values(), key=len)
        yield view.now, f"{len(groups)} different tables; the rarest at {', '.join(groups[0])}"


@eventually("nobody-waits")
def nobody_waits(view: View) -> Iterator[Finding]:
    """No running node waits for a result or a reply."""
    history = view.history
    for fact in history.deliveries.values():
        if history.life_of(fact.origin, fact.life).ended is None and fact.fanouts:
            known = {node_id for _, node_id, _ in fact.results}
            missing = [node_id for node_id in fact.fanouts[0] if node_id not in known]
            if missing:
                yield view.now, f"{fact.key}: {fact.origin} waits for {', '.join(missing)}"
    for request in history.requests.values():
        if history.life_of(request.origin, request.life).ended is None and not request.ended:
            yield view.now, f"{request.key}: {request.origin} waits for replies"
