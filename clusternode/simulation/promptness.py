"""What must happen soon and not only in the end, and what must not happen too soon.

Deaths and clean stops are noticed, requests end, and nothing is given up before its time.

Written against the history alone, like the other invariants; see `invariants.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

from clusternode.core.types import Instant, NodeId, ResultCode, Seconds
from clusternode.simulation.checks import Finding, View, always
from clusternode.simulation.history import History, LifeFact, RequestFact
from clusternode.simulation.reachability import have_a_relay, is_clear

PROMPT: Seconds = 2.0
"""How long what nothing delays may take: an acknowledgement, an answer through a third."""

_Told = dict[tuple[NodeId, int], list[tuple[Instant, str]]]
"""(observer, its life) → when it said what of one member."""


@always("the-dead-are-noticed")
def the_dead_are_noticed(view: View) -> Iterator[Finding]:
    """Nobody shows a node as active that ended some time ago, and was not started again."""
    history = view.history
    ends = {
        node_id: found
        for node_id in history.lives
        if (found := list(_lasting_ends(node_id, view))) and not _has_a_twin(node_id, history)
    }
    told: dict[NodeId, _Told] = {node_id: defaultdict(list) for node_id in ends}
    for fact in history.statuses:
        if fact.member in told:
            told[fact.member][fact.observer, fact.life].append((fact.at, fact.status))
    for node_id, found in ends.items():
        for (observer, life), said in told[node_id].items():
            for end in found:
                limit = end + history.settings.notice
                if _watches(history.life_of(observer, life), history, end, limit):
                    index = bisect_right(said, limit, key=lambda one: one[0])
                    if index and said[index - 1][1] == "active":
                        yield limit, f"{observer} says {node_id} is active; it ended at {end:.3f}"


def _lasting_ends(node_id: NodeId, view: View) -> Iterator[Instant]:
    """Yield when a process of the node ended that had no successor until it had to be noticed."""
    lives = view.history.lives[node_id]
    for life, following in zip(lives, [*lives[1:], None], strict=True):
        if life.ended is not None:
            limit = life.ended + view.history.settings.notice
            if limit < (view.now if following is None else following.started):
                yield life.ended


def _has_a_twin(node_id: NodeId, history: History) -> bool:
    return any(
        life.claims is not None and node_id in (life.node_id, life.claims)
        for lives in history.lives.values()
        for life in lives
    )


def _watches(life: LifeFact, history: History, since: Instant, to: Instant) -> bool:
    """Tell whether a process ran, without standing still, all that time."""
    return (
        life.started <= since
        and (life.ended is None or life.ended > to)
        and (life.leaving_since is None or life.leaving_since > to)
        and not any(
            pause.kind == f"pause {life.node_id}"
            and pause.at <= to
            and (pause.until is None or pause.until >= since)
            for pause in history.disturbances
        )
    )


@always("nothing-is-given-up-early")
def nothing_is_given_up_early(view: View) -> Iterator[Finding]:
    """Between two that live on, a message is tried until its time is over, whatever is broken.

    But not with a member that is disabled, or that has left as far as its sender knows, nor with
    one that its sender has not told of.
    """
    history = view.history
    for fact in history.deliveries.values():
        for at, node_id, code in fact.results:
            if (
                code is ResultCode.TIMEOUT
                and at < fact.at + history.settings.patience * DRIFT
                and history.is_well_throughout(fact.origin, fact.at, at)
                and history.is_well_throughout(node_id, fact.at, at)
                and not history.has_ended_since(
                    node_id, _time_to_notice(history, fact.origin, fact.at), fact.at
                )
                and history.is_member_throughout(fact.origin, fact.life, node_id, fact.at, at)
            ):
                yield at, f"{fact.key}: {int(code)} from {node_id} after {at - fact.at:.3f} s"


def _time_to_notice(history: History, observer: NodeId, to: Instant) -> Instant:
    """Return since when others may have died without the observer's knowledge.

    It may have stood still meanwhile, and looks for them only when it goes on.
    """
    since = to - history.settings.grace
    for pause in reversed(history.disturbances):
        if pause.kind == f"pause {observer}" and pause.excuses(observer, observer, since, to):
            since -= (to if pause.until is None else min(pause.until, to)) - pause.at
    return since


DRIFT = 0.9
"""The share of a time limit that a fast clock of the sender's leaves of it, and less."""


@always("a-clean-stop-is-heard")
def a_clean_stop_is_heard(view: View) -> Iterator[Finding]:
    """Who is stopped is shown as left by everyone who can be reached, and never as failed."""
    history = view.history
    for fact in history.statuses:
        if fact.status != "not_active" or fact.previous != "active":
            continue
        for life in history.lives.get(fact.member, ()):
            if (
                life.leaving_since is not None
                and life.leaving_since <= fact.at
                and life.how == "left"
                and _could_hear(history, fact.observer, life, fact.at)
            ):
                yield fact.at, f"{fact.observer} says {fact.member} is not_active; it left"


def _could_hear(history: History, observer: NodeId, life: LifeFact, to: Instant) -> bool:
    assert life.leaving_since is not None
    since, settled = life.leaving_since - history.settings.grace, life.leaving_since - 2 * PROMPT
    return (
        life.started <= settled
        and not any(life.started < other.started <= to for other in history.lives[life.node_id])
        and history.is_well_throughout(observer, settled, to)
        and (
            is_clear(history, observer, life.node_id, since, to)
            or have_a_relay(history, observer, life.node_id, since, to)
        )
    )


@always("requests-end-early")
def requests_end_early(view: View) -> Iterator[Finding]:
    """A request ends as soon as nobody else can answer, not only at its timeout."""
    for fact in view.history.requests.values():
        if not fact.ended or not fact.asked or not fact.asked[0]:
            continue
        at = fact.ended[0]
        done = [_done_at(fact, node_id, at, view.history) for node_id in fact.asked[0]]
        last = max(done)
        if at > last + PROMPT:
            yield at, f"{fact.key}: ended {at - last:.3f} s after the last of all handlers"


def _done_at(fact: RequestFact, node_id: NodeId, to: Instant, history: History) -> Instant:
    """Tell when a node had handled a request; `to`, if that may be unknown to who asked."""
    calls = history.handlings.get((fact.key, node_id), ())
    since = fact.at - history.settings.grace
    if (
        len(calls) == 1
        and calls[0].ended is not None
        and calls[0].code is ResultCode.OK
        and history.is_well_throughout(fact.origin, since, to)
        and history.is_well_throughout(node_id, since, to)
        and is_clear(history, fact.origin, node_id, since, to)
    ):
        return calls[0].ended
    return to
