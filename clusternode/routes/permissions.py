"""Which nodes may publish to a channel and ask it: `[channel.NAME] publish` and `ask`.

Checked where a message arrives, because the sender's own word is worth nothing. Who the sender
is has been proved by its certificate, or, with a secret alone, by its word among those who know
the secret; docs/security.md says what follows from that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from clusternode.bus.interface import Arrivals, Bus, Receiver
from clusternode.config import ChannelSection
from clusternode.core.events import (
    Event,
    NodeStateChanged,
    PeerDown,
    PeerLeft,
    PeerRemoved,
    PeerUp,
    RecordChanged,
)
from clusternode.core.types import ChannelName, NodeId, ResultCode
from clusternode.core.wire import messages as wire

logger = logging.getLogger(__name__)

EVERYONE: Final = "*"
WARNED_MAX: Final = 1024
"""Pairs of channel and node that have been logged; beyond it they are only counted."""
_CHANGES: Final = (NodeStateChanged, PeerDown, PeerLeft, PeerRemoved, PeerUp, RecordChanged)


@attrs.frozen
class Rule:
    """Who may: node ids, and tags as (key, value)."""

    node_ids: frozenset[str]
    tags: frozenset[tuple[str, str]]

    def allows(self, node_id: NodeId, tags: Callable[[], Mapping[str, str]]) -> bool:
        if node_id in self.node_ids:
            return True
        return bool(self.tags) and not self.tags.isdisjoint(tags().items())


def rule_of(entries: tuple[str, ...]) -> Rule | None:
    """Return the rule that the entries of a setting make; None for everyone."""
    if EVERYONE in entries:
        return None
    tags = [entry.partition("=")[::2] for entry in entries if "=" in entry]
    ids = frozenset(entry for entry in entries if "=" not in entry)
    return Rule(ids, frozenset((key, value) for key, value in tags))


class Guard:
    """Stands before a receiver, and answers 403 to what is not allowed.

    What a node sends to itself is always allowed.
    """

    def __init__(
        self, receiver: Receiver, channels: Mapping[ChannelName, ChannelSection], count: _Count
    ) -> None:
        self._receiver = receiver
        self._count = count
        self._rules: dict[tuple[type, str], Rule] = {}  # (kind, channel) → rule
        self._tags: dict[NodeId, Mapping[str, str]] = {}  # origin → tags, until something changes
        self._warned: dict[tuple[str, NodeId], None] = {}
        self.install(channels)

    def install(self, channels: Mapping[ChannelName, ChannelSection]) -> None:
        """Take the rules of a configuration in place of those before."""
        self._rules.clear()
        for name, section in channels.items():
            for kind, entries in ((wire.Message, section.publish), (wire.Request, section.ask)):
                rule = rule_of(entries)
                if rule is not None:
                    self._rules[kind, name] = rule

    def arrived(self, arrivals: Arrivals) -> None:
        if self._rules and arrivals.origin != arrivals.bus.node_id:
            refused = [item for item in arrivals.items if self._is_forbidden(arrivals, item[1])]
            if refused:
                self._count(len(refused))
                arrivals.finish([(ticket, ResultCode.FORBIDDEN) for ticket, _ in refused])
                tickets = frozenset(ticket for ticket, _ in refused)
                arrivals.items = [item for item in arrivals.items if item[0] not in tickets]
                if not arrivals.items:
                    return
        self._receiver.arrived(arrivals)

    def observed(self, bus: Bus, event: Event) -> None:
        if isinstance(event, _CHANGES):
            self._tags.pop(NodeId(event.node_id), None)
        self._receiver.observed(bus, event)

    def _is_forbidden(self, arrivals: Arrivals, message: wire.Answerable) -> bool:
        if isinstance(message, wire.Reply):
            return False
        rule = self._rules.get((type(message), message.channel))
        if rule is None or rule.allows(arrivals.origin, lambda: self._tags_of(arrivals)):
            return False
        pair = (message.channel, arrivals.origin)
        if pair not in self._warned and len(self._warned) < WARNED_MAX:
            self._warned[pair] = None
            what = "publish to" if isinstance(message, wire.Message) else "ask"
            logger.warning(
                "cluster %s: node %s may not %s channel %s: refused with 403, from now on silently",
                arrivals.bus.name,
                arrivals.origin,
                what,
                message.channel,
            )
        return True

    def _tags_of(self, arrivals: Arrivals) -> Mapping[str, str]:
        tags = self._tags.get(arrivals.origin)
        if tags is None:
            every = {member.node_id: member.tags for member in arrivals.bus.members()}
            tags = self._tags[arrivals.origin] = every.get(arrivals.origin, {})
        return tags


_Count = Callable[[int], None]
