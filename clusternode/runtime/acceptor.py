"""Takes connections on one listening address and hands each to the cluster that it is for.

Everything that a stranger can do here is bounded: how many connections there are, in total and
from one address, how many have not said who they are, and for how long.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from clusternode.core.types import Seconds
from clusternode.core.wire.messages import Hello
from clusternode.core.wire.session import Session
from clusternode.runtime.connections import Connections
from clusternode.runtime.handshake import HandshakeError, shake_hands
from clusternode.runtime.logs import RateLimitedLog
from clusternode.runtime.transport import Listener, Wire

logger = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 4096
"""Accepted connections at a time: four times a cluster of a thousand."""
CONNECTIONS_PER_HOST_MAX: Final = 256
"""Accepted connections from one IP address: a whole cluster behind one address, or on loopback."""
HANDSHAKES_MAX: Final = 512
"""Connections that have not said who they are yet."""


class Acceptor:
    """Serves one listener, which belongs to the caller."""

    def __init__(
        self,
        listener: Listener,
        clusters: Mapping[str, Connections],
        *,
        connections_max: int = CONNECTIONS_MAX,
        connections_per_host_max: int = CONNECTIONS_PER_HOST_MAX,
        handshakes_max: int = HANDSHAKES_MAX,
    ) -> None:
        self._listener = listener
        self._clusters = clusters  # cluster name → who is its node
        self._limits = (connections_max, connections_per_host_max, handshakes_max)
        self._per_host: Counter[str] = Counter()
        self._total = 0
        self._handshakes = 0
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
                problem = self._full(wire.remote_host)
                if problem is None:
                    nursery.start_soon(self._greet, wire)
                    continue
                self.refused += 1
                self._count("strangers_refused")
                self._log.warn_about(problem, "refused %s: %s", wire.remote, problem)
                await trio.aclose_forcefully(wire.stream)

    def _full(self, host: str) -> str | None:
        """Take a place for a connection from a host, or say which bound is reached."""
        connections_max, per_host_max, handshakes_max = self._limits
        if self._total >= connections_max:
            return f"{connections_max} connections are open"
        if self._per_host[host] >= per_host_max:
            return f"{per_host_max} connections from {host} are open"
        if self._handshakes >= handshakes_max:
            return f"{handshakes_max} connections have not said who they are"
        self._total += 1
        self._per_host[host] += 1
        self._handshakes += 1
        return None

    async def _greet(self, wire: Wire) -> None:
        session = Session.listen(self._hello_for, self._secrets_for)
        try:
            try:
                early = await shake_hands(wire.stream, session, self._timeout)
            except HandshakeError as error:
                self.handshakes_failed += 1
                self._count("handshakes_failed")
                if error.is_authentication:
                    self._count("authentications_failed")
                host = wire.remote_host
                self._log.warn_about(host, "handshake with %s failed: %s", wire.remote, error)
                return
            finally:
                self._handshakes -= 1
            assert session.peer is not None
            await self._clusters[session.peer.cluster].serve(wire, session, early)
        finally:
            self._total -= 1
            self._per_host[wire.remote_host] -= 1
            if not self._per_host[wire.remote_host]:
                del self._per_host[wire.remote_host]

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
