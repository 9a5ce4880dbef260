"""Pings of idle connections, many at a time: for whoever has thousands of nodes to serve.

What is done here is what `Node.step` and `Node.output` do for these messages one by one; whatever
leads to more is left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from clusternode.core.effects import Effect
from clusternode.core.leaving import Leaving
from clusternode.core.membership.links import Link, Links, Phase
from clusternode.core.membership.membership import Membership
from clusternode.core.types import ConnectionId, Instant
from clusternode.core.wire.messages import Ping, Pong

Step: TypeAlias = Callable[[Sequence[Link], Pong, Instant], list[Effect]]
"""Takes a pong on some connections, one after the other, as any other frame; ends the step."""

_OPEN = Phase.OPEN


class Echoes:
    """The pings of one node while nothing else happens on its connections."""

    def __init__(self, links: Links, membership: Membership, leaving: Leaving, step: Step) -> None:
        self._leaving = leaving
        self._links = links
        self.members = membership.members
        """Who pings with its digest, over a connection that is idle, gets a pong and no more."""
        self.keepalive = membership.keepalive
        """But where a ping is open, a ping of the other side is news to it."""
        self._rerouting = membership.rerouting
        self._step = step

    def answers(self, connection: ConnectionId, ping: Ping) -> bool:
        """Take a ping that came alone, if a pong with its number and digest is all it leads to.

        So it is where the connection is idle and the tables of both sides agree: the pong needs
        no turn of the writer. Else False, and nothing is done.
        """
        link = self._links.by_connection.get(connection)
        if link is None or link.phase is not _OPEN or self._leaving.is_under_way:
            return False
        if link.is_announced or link.is_writing or ping.digest != self.members.digest:
            return False
        if self.keepalive.opened:
            self.keepalive.heard(link.node_id)
        return True

    def answered(
        self, connections: Sequence[ConnectionId], pong: Pong, now: Instant
    ) -> list[Effect]:
        """Take the same pong on many connections, each of which brought nothing else.

        All that `step` does for `FramesReceived` on one after the other.
        """
        links = self._links.at(connections)
        if (
            pong.digest != self.members.digest
            or not self._links.are_all_open
            or self._leaving.is_under_way
        ):
            return self._step(links, pong, now)
        others = self.keepalive.answered_by(links, pong.number, now)
        if self._rerouting.has_paths:
            for link in links:
                if link not in others and not link.is_routed:
                    self._rerouting.forget(link.node_id)
        return self._step(others, pong, now)
