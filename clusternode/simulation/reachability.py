"""Who could reach whom in a run, directly or through others, and what nodes show of it.

Written against the history alone, like the invariants that use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from clusternode.core.types import Instant, NodeId
from clusternode.simulation.checks import Finding, View, eventually
from clusternode.simulation.history import History

TWO_RELAYS_NODES_MAX = 12
"""So many nodes have at most 25 pairs of relays for one ping: all of them are asked."""


def is_clear(
    history: History,
    one: NodeId,
    other: NodeId,
    since: Instant,
    to: Instant,
    ignoring: tuple[str, ...] = (),
) -> bool:
    """Tell whether nothing was between two hosts all that time, but kinds that are ignored."""
    return not any(
        disturbance.excuses(one, other, since, to)
        for disturbance in history.disturbances
        if not f"{disturbance.kind} ".startswith(ignoring)
    )


def have_a_relay(
    history: History,
    one: NodeId,
    other: NodeId,
    since: Instant,
    to: Instant,
    ignoring: tuple[str, ...] = (),
) -> bool:
    """Tell whether some third node could pass things on between two, all that time."""
    if not history.settings.is_rerouting:
        return False
    meanwhile = [
        disturbance
        for disturbance in history.disturbances
        if disturbance.at <= to and (disturbance.until is None or disturbance.until >= since)
        if not f"{disturbance.kind} ".startswith(ignoring)
    ]
    unfit = {one, other}
    for node_id in (one, other):
        for disturbance in meanwhile:
            if not disturbance.right and node_id in disturbance.left:
                return False
            if not disturbance.right or node_id in disturbance.right:
                unfit |= disturbance.left
            if node_id in disturbance.left:
                unfit |= disturbance.right
    return any(
        relay not in unfit
        and history.is_well_throughout(relay, since, to)
        and _is_steady(history, (one, relay, other), since, to)
        for relay in history.lives
    )


def _is_steady(history: History, way: Sequence[NodeId], since: Instant, to: Instant) -> bool:
    """Tell whether no part of a way was reset again before a ping could be answered over it.

    As with the one connection of a pair, one reset is no excuse. Nor did an operator take one end
    of a part off the list of the other.
    """
    parts = [{one, other} for one, other in itertools.pairwise(way)]
    breaks = [
        found
        for found in history.breaks
        if since <= found.at <= to and {found.one, found.other} in parts
    ]
    if any(found.is_removal for found in breaks):
        return False
    patience = history.settings.ping_timeout
    return all(later.at - earlier.at > patience for earlier, later in itertools.pairwise(breaks))


def have_two_relays(
    history: History,
    one: NodeId,
    other: NodeId,
    since: Instant,
    to: Instant,
    ignoring: tuple[str, ...] = (),
) -> bool:
    """Tell whether two others could pass things on between two in a row, all that time.

    In a larger world not all pairs of relays are asked, so none counts there.
    """
    if not history.settings.is_rerouting or len(history.lives) > TWO_RELAYS_NODES_MAX:
        return False
    relays = [
        relay
        for relay in history.lives
        if relay not in (one, other) and history.is_well_throughout(relay, since, to)
    ]
    first = [relay for relay in relays if is_clear(history, one, relay, since, to, ignoring)]
    second = [relay for relay in relays if is_clear(history, relay, other, since, to, ignoring)]
    return any(
        near != far
        and is_clear(history, near, far, since, to, ignoring)
        and _is_steady(history, (one, near, far, other), since, to)
        for near in first
        for far in second
    )


@eventually("links-are-true")
def links_are_true(view: View) -> Iterator[Finding]:
    """Active members are shown with a direct link, or with a way that is there.

    Links that were cut only lately are not looked at.
    """
    cut = [
        disturbance
        for disturbance in view.history.disturbances
        if disturbance.until is None
        and disturbance.kind.startswith("block ")
        and disturbance.at <= view.now - view.history.settings.grace
    ]
    for observer, snapshot in view.snapshots.items():
        for member in snapshot.members:
            if member.local or member.node_id not in view.snapshots or member.status != "active":
                continue
            way = [observer, *_relays_in(member.link), member.node_id]
            broken = [
                f"{one} and {other} are cut off"
                for one, other in itertools.pairwise(way)
                if any(disturbance.excuses(one, other, view.now, view.now) for disturbance in cut)
            ]
            broken += [f"{one} does not run" for one in way if one not in view.snapshots]
            if broken or member.link == "none":
                why = ", ".join(broken) or "it is active"
                yield view.now, f"{observer} shows {member.link} to {member.node_id}; {why}"


def _relays_in(link: str) -> list[NodeId]:
    if not link.startswith("via "):
        return []
    return [NodeId(relay) for relay in link.removeprefix("via ").split(",")]


@eventually("links-are-direct")
def links_are_direct(view: View) -> Iterator[Finding]:
    """All running nodes have direct links to each other."""
    for observer, snapshot in view.snapshots.items():
        for member in snapshot.members:
            if member.node_id in view.snapshots and member.link not in ("direct", "self"):
                yield view.now, f"{observer} shows {member.link} to {member.node_id}"


@eventually("twins-are-told")
def twins_are_told(view: View) -> Iterator[Finding]:
    """Of two running processes with one node id both have said so, directly or by others."""
    for host, lives in view.history.lives.items():
        claimed = lives[-1].claims
        if claimed is None or not {host, claimed} <= view.snapshots.keys():
            continue
        for one in (host, claimed):
            if not view.snapshots[one].counters.get("duplicate_ids"):
                yield view.now, f"{one} was not told of the other process with its id"
