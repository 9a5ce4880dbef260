"""What the control socket needs of the agent that it controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clusternode.bus.interface import Bus
from clusternode.core.types import Instant, NodeId
from clusternode.routes.events import EventHub

if TYPE_CHECKING:
    from clusternode.kafka.service import KafkaService


class Controlled(Protocol):
    """An agent, as the control socket sees it."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def version(self) -> str: ...
    @property
    def started_at(self) -> Instant:
        """On the clock of `trio.current_time()`."""
        ...

    @property
    def buses(self) -> Mapping[str, Bus]:
        """Cluster name → bus; the first is the default."""
        ...

    @property
    def events(self) -> EventHub: ...
    @property
    def kafka(self) -> KafkaService:
        """Loaded with the first call that is about it."""
        ...

    def bridge_status(self) -> Sequence[Mapping[str, Any]]:
        """One row of JSON values per bridge."""
        ...

    async def reload(self) -> str:
        """Load the routes again and say what was loaded.

        Raises:
            RouteError: They have an error; the old ones go on.
        """
        ...

    def stop(self) -> None:
        """Begin to leave; returns at once."""
        ...

    def route_stats(self) -> Sequence[Mapping[str, Any]]:
        """One row of JSON values per route."""
        ...
