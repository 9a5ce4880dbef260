"""What agents with bridges know of each other.

What the node of one says on a bus without marks was relayed by it already, or is its own business;
and one that sees nobody on a bus is no good bridge to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
"""How often an agent says again what it has told; else when it is news."""


@attrs.define(eq=False)
class Agents:
    """What each agent of our cluster with bridges has told of itself."""

    has_told: tuple[Instant, Notice] | None = None
    """When and what this agent has told last."""
    _notices: dict[str, Notice] = attrs.Factory(dict)  # agent → what it told last

    def take(self, message: IncomingMessage) -> None:
        """Take what another agent tells; nonsense changes nothing."""
        try:
            notice = parse_notice_untrusted(message.body)
        except RemoteProtocolError:
            return
        if message.origin != message.bus.node_id:
            self._notices[message.origin] = notice

    def keep(self, agents: Iterable[str]) -> None:
        """Forget all agents but these."""
        kept = set(agents)
        gone = [agent for agent in self._notices if agent not in kept]
        for agent in gone:
            del self._notices[agent]

    def is_theirs(self, bus: str, node_id: str) -> bool:
        return any(notice.nodes.get(bus) == node_id for notice in self._notices.values())

    @property
    def cut_off(self) -> Mapping[str, Sequence[str]]:
        """Agent → the buses on which it sees nobody."""
        return {agent: notice.cut_off for agent, notice in self._notices.items()}

    def tell(self, mesh: Bus, notice: Notice) -> None:
        """Tell the others of this agent, where that is news to somebody."""
        now = trio.current_time()
        if self.has_told is not None:
            at, told = self.has_told
            if told == notice and now - at < TELL_INTERVAL:
                return
        self.has_told = (now, notice)
        mesh.broadcast(AGENTS_CHANNEL, notice.encode())


def is_cut_off(bus: Bus) -> bool:
    """Tell whether no other node of a bus is active for us."""
    return not any(member.status == "active" for member in bus.members() if not member.local)
