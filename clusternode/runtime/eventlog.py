"""What of a node's events is worth a line in the log: changes of state, and others' faults."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from clusternode.core import events
from clusternode.core.events import Event
from clusternode.runtime.logs import RateLimitedLog

logger = logging.getLogger("clusternode.events")


class EventLog:
    """Writes the lines of one node."""

    def __init__(self) -> None:
        self._limited = RateLimitedLog(logger)

    def note(self, event: Event) -> None:
        """Log an event, if it is one of those; the faults of one peer at a limited rate."""
        write = _WRITERS.get(event.__class__)
        if write is not None:
            write(event, self._limited)

    def warn_about(self, key: str, text: str, *arguments: object) -> None:
        """Log a warning that is no event, at the same limited rate."""
        self._limited.warn_about(key, text, *arguments)


def _state_changed(event: events.NodeStateChanged, _: RateLimitedLog) -> None:
    logger.info(
        "cluster %s: %s: %s -> %s (%s)",
        event.cluster_id,
        event.node_id,
        event.previous,
        event.status,
        event.reason,
    )


def _joined(event: events.Joined, _: RateLimitedLog) -> None:
    logger.info("cluster %s: joined, %s is there", event.cluster_id, event.node_id)


def _misbehaved(event: events.PeerMisbehaved, log: RateLimitedLog) -> None:
    who = event.node_id or "an unknown node"
    log.warn_about(
        f"misbehaved {event.address}",
        "cluster %s: %s at %s: %s",
        event.cluster_id,
        who,
        event.address,
        event.reason,
    )


def _unreachable(event: events.AddressUnreachable, log: RateLimitedLog) -> None:
    log.warn_about(
        f"unreachable {event.address}",
        "cluster %s: notification address %s: %s; trying on",
        event.cluster_id,
        event.address,
        event.reason,
    )


def _stale(event: events.NameStale, _: RateLimitedLog) -> None:
    logger.warning(
        "cluster %s: notification address %s: no answer from DNS for %.0f s: %s;"
        " going on with what it was",
        event.cluster_id,
        event.address,
        event.seconds,
        event.reason,
    )


def _resolved(event: events.NameResolved, _: RateLimitedLog) -> None:
    logger.info("cluster %s: DNS knows %s again", event.cluster_id, event.address)


def _reachable(event: events.AddressReachable, _: RateLimitedLog) -> None:
    logger.info("cluster %s: notification address %s answers", event.cluster_id, event.address)


def _link_changed(event: events.LinkChanged, log: RateLimitedLog) -> None:
    what = "cluster %s: member %s is reached %s"
    if event.link == "direct":
        logger.info(what, event.cluster_id, event.node_id, "directly again")
    else:
        log.warn_about(f"link {event.node_id}", what, event.cluster_id, event.node_id, event.link)


def _duplicate(event: events.DuplicateId, log: RateLimitedLog) -> None:
    log.warn_about(
        f"duplicate {event.address}",
        "cluster %s: two nodes are called %s; the other one is at %s",
        event.cluster_id,
        event.node_id,
        event.address,
    )


def _limit_reached(event: events.LimitReached, log: RateLimitedLog) -> None:
    log.warn_about(
        f"limit {event.limit} {event.node_id}",
        "cluster %s: limit %s reached for %s: %s",
        event.cluster_id,
        event.limit,
        event.node_id or "this node",
        event.detail,
    )


_WRITERS: Final[Mapping[type[Event], Callable[[Any, RateLimitedLog], None]]] = {
    events.NodeStateChanged: _state_changed,
    events.Joined: _joined,
    events.PeerMisbehaved: _misbehaved,
    events.AddressUnreachable: _unreachable,
    events.AddressReachable: _reachable,
    events.NameStale: _stale,
    events.NameResolved: _resolved,
    events.DuplicateId: _duplicate,
    events.LinkChanged: _link_changed,
    events.LimitReached: _limit_reached,
}
"""Lags and failed writes of the state are logged where they are noticed."""
