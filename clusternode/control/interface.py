"""What the control socket needs of the agent that it controls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from clusternode.bus.interface import Bus
from clusternode.core.events import Event
from clusternode.core.types import Instant, NodeId


class EventSource(Protocol):
    """Where events can be watched."""

    def subscribe(
        self, patterns: Sequence[str]
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Event]]]:
        """Give (cluster name, event) of what happens from now on.

        Args:
            patterns: Names or aliases of events with shell wildcards; none means all.
        """
        ...


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
    def events(self) -> EventSource: ...

    async def reload(self) -> str:
        """Load the routes again and say what was loaded.

        Raises:
            RouteError: They have an error; the old ones go on.
        """
        ...

    def stop(self) -> None:
        """Begin to leave; returns at once."""
        ...

    def raise_event(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Raise an event of the user's own.

        Raises:
            ConfigError: The name is none that a user may raise.
        """
        ...

    def route_stats(self) -> Sequence[Mapping[str, Any]]:
        """One row of JSON values per route."""
        ...
