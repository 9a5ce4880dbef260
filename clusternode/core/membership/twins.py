"""Two processes with one node id that never meet: others who hear of both tell them.

Specified in docs/protocol.md, section 5. Nobody withdraws for it: what third parties say is a
reason to tell people, and no proof.
"""

from __future__ import annotations

import attrs

from clusternode.core.context import Context
from clusternode.core.events import DuplicateId
from clusternode.core.membership.links import Links
from clusternode.core.types import Incarnation, Instant, NodeId, Seconds
from clusternode.core.wire.messages import Record, Records

TWINS_MAX = 64
"""Node ids of which a second process may be heard at a time; the oldest are forgotten."""
PROOF_INTERVALS = 2
"""For so many ping intervals others must say that they have a connection to it: one to a process
that is gone, which has started anew elsewhere, lasts less."""


@attrs.define
class Sighting:
    """What is heard of the other process with the id of a node that we are connected with."""

    incarnation: Incarnation
    first_at: Instant
    last_at: Instant


class Twins:
    """Remembers of whom others say that they are connected with another one."""

    def __init__(self, context: Context, links: Links) -> None:
        self._context = context
        self._links = links
        self._seen: dict[NodeId, Sighting] = {}

    @property
    def _proof_time(self) -> Seconds:
        health = self._context.settings.health
        return PROOF_INTERVALS * (health.ping_interval + health.ping_timeout)

    def heard(self, record: Record, source: NodeId, now: Instant) -> None:
        """Take the record of a node that is another process than the one we are connected with."""
        node_id = record.node_id
        seen = self._seen.pop(node_id, None)
        is_same = seen is not None and seen.incarnation == record.incarnation
        if seen is None or not is_same or now - seen.last_at > self._proof_time:
            if len(self._seen) >= TWINS_MAX:
                del self._seen[next(iter(self._seen))]
            seen = Sighting(record.incarnation, now, now)
        seen.last_at = now
        self._seen[node_id] = seen
        if now - seen.first_at >= self._proof_time:
            del self._seen[node_id]  # said again when it was heard as long again
            self._tell(record, source)

    def _tell(self, record: Record, source: NodeId) -> None:
        link = self._links.open_to(record.node_id)
        assert link is not None, record.node_id
        twin = Record(record.node_id, record.incarnation, 0, record.address)
        self._links.send(link, Records([twin]))
        where = f"{record.address}, says {source}"
        self._context.count("duplicate_ids")
        self._context.emit(DuplicateId(self._context.settings.cluster, record.node_id, where))
