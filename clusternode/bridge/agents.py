"""Which nodes of buses without marks are those of other bridging agents.

What such a node says was relayed by its agent already, or is that agent's own business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs
import trio

from clusternode.bridge.standby import Notice, parse_notice_untrusted
from clusternode.bus.interface import Bus
from clusternode.core.types import Instant, Seconds
from clusternode.errors import RemoteProtocolError
from clusternode.routes.contexts import IncomingMessage
from clusternode.routes.table import RESERVED_PREFIX

AGENTS_CHANNEL: Final = f"{RESERVED_PREFIX}bridge"
TELL_INTERVAL: Final[Seconds] = 10.0
"""How often an agent says again which nodes are its own; else when somebody comes."""


@attrs.define(eq=False)
class Agents:
    """Agent of our cluster → bus → the id of its node there."""

    has_told: tuple[Instant, Mapping[str, str]] | None = None
    """When and what this agent has told last."""
    _nodes: dict[str, Mapping[str, str]] = attrs.Factory(dict)

    def take(self, message: IncomingMessage) -> None:
        """Take what another agent tells; nonsense changes nothing."""
        try:
            notice = parse_notice_untrusted(message.body)
        except RemoteProtocolError:
            return
        if message.origin != message.bus.node_id:
            self._nodes[message.origin] = notice.nodes

    def keep(self, agents: Iterable[str]) -> None:
        """Forget all agents but these."""
        kept = set(agents)
        self._nodes = {agent: nodes for agent, nodes in self._nodes.items() if agent in kept}

    def is_theirs(self, bus: str, node_id: str) -> bool:
        return any(nodes.get(bus) == node_id for nodes in self._nodes.values())

    def tell(self, mesh: Bus, nodes: Mapping[str, str]) -> None:
        """Tell the others which nodes are ours, where that is news to somebody."""
        now = trio.current_time()
        if not nodes:
            return
        if self.has_told is not None:
            at, told = self.has_told
            if told == nodes and now - at < TELL_INTERVAL:
                return
        self.has_told = (now, nodes)
        mesh.broadcast(AGENTS_CHANNEL, Notice(nodes).encode())
