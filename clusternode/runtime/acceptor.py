"""Takes connections on one listening address and hands each to the cluster that it is for.

Everything that a stranger can do here is bounded: how many connections there are, in total and
from one address, how many have not said who they are, and for how long.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.core.wire.messages import CloseReason, Hello, WireMessage
from clusternode.core.wire.session import Session
from clusternode.runtime import bounds
from clusternode.runtime.connections import Connections
from clusternode.runtime.handshake import HandshakeError, close_politely, shake_hands
from clusternode.runtime.logs import RateLimitedLog
from clusternode.runtime.transport import Listener, Wire

logger = logging.getLogger(__name__)


@attrs.define(eq=False)
class _Stranger:
    """A connection that has not proved who it is."""

    host: str
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class Acceptor:
    """Serves one listener, which belongs to the caller.

    Those who have proved who they are keep their places. Among those who have not, the newest
    are preferred: an honest node proves itself within a round trip, an attacker never.
    """

    def __init__(
        self,
        listener: Listener,
        clusters: Mapping[str, Connections],
        *,
        connections_max: int = bounds.CONNECTIONS_MAX,
        connections_per_host_max: int = bounds.CONNECTIONS_PER_HOST_MAX,
        handshakes_max: int = bounds.HANDSHAKES_MAX,
        handshakes_per_host_max: int = bounds.HANDSHAKES_PER_HOST_MAX,
    ) -> None:
        self._listener = listener
        self._clusters = clusters  # cluster name → who is its node
        self._limits = (connections_max, connections_per_host_max)
        self._handshake_limits = (handshakes_max, handshakes_per_host_max)
        self._per_host: Counter[str] = Counter()  # host → connections that have proved themselves
        self._strangers: dict[str, dict[_Stranger, None]] = {}  # host → the others, oldest first
        self._timeout: Seconds = max(
            connections.settings.discovery.handshake_timeout for connections in clusters.values()
        )
        self._log = RateLimitedLog(logger)
        self.refused = 0
        self.handshakes_failed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until cancelled; a connection lives in a task of this."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                wire = await self._listener.accept()
                stranger = self._admit(wire.remote_host)
                nursery.start_soon(self._greet, wire, stranger)

    def _admit(self, host: str) -> _Stranger:
        """Give a newcomer a place, if need be that of the one who has said nothing for longest."""
        total_max, per_host_max = self._handshake_limits
        if len(self._strangers.get(host, ())) >= per_host_max:
            self._evict(host, f"{per_host_max} connections from {host} have not proved themselves")
        elif sum(map(len, self._strangers.values())) >= total_max:
            busiest = max(self._strangers, key=lambda one: len(self._strangers[one]))
            self._evict(busiest, f"{total_max} connections have not proved themselves")
        stranger = _Stranger(host)
        self._strangers.setdefault(host, {})[stranger] = None
        return stranger

    def _evict(self, host: str, problem: str) -> None:
        oldest = next(iter(self._strangers[host]))
        self._forget(oldest)
        oldest.scope.cancel()
        self._refused(host, problem)

    def _refused(self, host: str, problem: str) -> None:
        self.refused += 1
        self._count("strangers_refused")
        self._log.warn_about(problem, "refused a connection of %s: %s", host, problem)

    def _forget(self, stranger: _Stranger) -> None:
        of_host = self._strangers.get(stranger.host, {})
        of_host.pop(stranger, None)
        if not of_host:
            self._strangers.pop(stranger.host, None)

    async def _greet(self, wire: Wire, stranger: _Stranger) -> None:
        session = Session.listen(self._hello_for, self._secrets_for)
        early: list[WireMessage] | None = None
        with stranger.scope:
            try:
                early = await shake_hands(wire.stream, session, self._timeout)
            except HandshakeError as error:
                self._failed(wire, error)
        self._forget(stranger)
        if early is None:
            return
        assert session.peer is not None
        problem = self._full(stranger.host)
        if problem is not None:
            self._refused(stranger.host, problem)
            await close_politely(wire.stream, Session.close_bytes(CloseReason.LIMIT, problem))
            return
        self._per_host[stranger.host] += 1
        try:
            await self._clusters[session.peer.cluster].serve(wire, session, early)
        finally:
            self._per_host[stranger.host] -= 1
            if not self._per_host[stranger.host]:
                del self._per_host[stranger.host]

    def _failed(self, wire: Wire, error: HandshakeError) -> None:
        self.handshakes_failed += 1
        self._count("handshakes_failed")
        if error.is_authentication:
            self._count("authentications_failed")
        host = wire.remote_host
        self._log.warn_about(host, "handshake with %s failed: %s", wire.remote, error)

    def _full(self, host: str) -> str | None:
        """Say which bound of those who have proved themselves is reached."""
        connections_max, per_host_max = self._limits
        if self._per_host.total() >= connections_max:
            return f"{connections_max} connections are open"
        if self._per_host[host] >= per_host_max:
            return f"{per_host_max} connections from {host} are open"
        return None

    def _count(self, name: str) -> None:
        """Count in every cluster of this address: a stranger has not said which one it wants."""
        for connections in self._clusters.values():
            connections.count(name)

    def _hello_for(self, cluster: str) -> Hello | None:
        connections = self._clusters.get(cluster)
        return connections.hello() if connections is not None else None

    def _secrets_for(self, cluster: str) -> Sequence[bytes]:
        connections = self._clusters.get(cluster)
        return connections.keyring.secrets if connections is not None else ()
