"""Kafka and the bridges of one agent: loaded when its configuration or a route first uses them.

Most agents use neither, and save the memory and the time of importing them: this is the one place
that imports them, inside functions. What was loaded stays, also when a reload no longer uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from clusternode.bus.interface import Bus
from clusternode.config import AgentSettings
from clusternode.kafka.api import kafka_of_agent
from clusternode.routes.dispatcher import Dispatcher
from clusternode.routes.table import Kind, RouteTable

if TYPE_CHECKING:
    from clusternode.bridge.service import BridgeService
    from clusternode.kafka.connections import KafkaConnections
    from clusternode.kafka.service import KafkaService

BRIDGE_SECTIONS: Final = ("bridge", "kafka_bridge")
KAFKA_SECTIONS: Final = ("kafka", "notifications", "notification_listener", *BRIDGE_SECTIONS)
"""With those of bridges, whose ends may be topics."""


class Integrations:
    """What an agent has of Kafka and of bridges; made before its routes, run beside them.

    Args:
        settings: What the agent starts with.

    Raises:
        ConfigError: A section of Kafka or of bridges has an error; names the key.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._kafka: KafkaService | None = None
        self._bridges: BridgeService | None = None
        self._running: list[KafkaService | BridgeService] = []
        self._wanted = trio.Event()
        if _has(settings, KAFKA_SECTIONS):
            self._load_kafka()
        if _has(settings, BRIDGE_SECTIONS):
            self._load_bridges()

    @property
    def kafka(self) -> KafkaService:
        """The Kafka side; from now on, if there was none."""
        return self._kafka or self._load_kafka()

    @property
    def connections(self) -> KafkaConnections:
        return self.kafka.connections

    def _load_kafka(self) -> KafkaService:
        from clusternode.kafka.service import KafkaService, KafkaSettings  # as the module says

        self._kafka = KafkaService(KafkaSettings.read(self._settings.plugins))
        return self._kafka

    def _load_bridges(self) -> BridgeService:
        from clusternode.bridge.service import BridgeService, read_bridges  # as the module says

        rules = read_bridges(self._settings.plugins, tuple(self._settings.clusters))
        self._bridges = BridgeService(rules, self.kafka)
        return self._bridges

    def _services(self) -> Iterator[KafkaService | BridgeService]:
        """Yield what is loaded, in the order in which it starts."""
        if self._bridges is not None:
            yield self._bridges
        if self._kafka is not None:
            yield self._kafka

    def attach(self) -> None:
        """Let every task that starts below this one use the connections (`kafka.publish`)."""
        kafka_of_agent.set(self)

    def prepare(self, settings: AgentSettings) -> None:
        """Say what `check` and the next `reload` are about.

        Raises:
            ConfigError: A section has an error, or a property of a connection is wrong.
        """
        if self._kafka is not None or _has(settings, KAFKA_SECTIONS):
            from clusternode.kafka.service import KafkaSettings  # as the module says

            self.kafka.prepare(KafkaSettings.read(settings.plugins))
        if self._bridges is not None or _has(settings, BRIDGE_SECTIONS):
            from clusternode.bridge.service import read_bridges  # as the module says

            bridges = self._bridges or self._load_bridges()
            bridges.prepare(read_bridges(settings.plugins, tuple(settings.clusters)))

    def check(self, table: RouteTable, mesh: str | None) -> None:
        """Add what was prepared to a table of routes, and see whether its routes can be run.

        Args:
            table: The routes of the script and of the configuration.
            mesh: The cluster where agents are ranked.

        Raises:
            RouteError: A route for Kafka names no connection, or an option of it is wrong.
        """
        if self._kafka is not None or table.of_kind(Kind.KAFKA):
            self.kafka.check(table)
        if self._bridges is not None:
            self._bridges.check(table, mesh)

    def reload(self) -> None:
        """Take what was prepared and checked; what was loaded for it begins in the next moment."""
        if self._bridges in self._running:
            self._bridges.reload()
        if self._kafka is not None:
            self._kafka.reload()
        self._wanted.set()

    async def run(
        self,
        dispatcher: Dispatcher,
        buses: Mapping[str, Bus],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run what is loaded, and what a reload loads, until cancelled."""
        async with trio.open_nursery() as nursery:
            await self._start(nursery, dispatcher, buses)
            task_status.started()
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                await self._start(nursery, dispatcher, buses)

    async def _start(
        self, nursery: trio.Nursery, dispatcher: Dispatcher, buses: Mapping[str, Bus]
    ) -> None:
        for service in tuple(self._services()):
            if service not in self._running:
                await nursery.start(service.run, dispatcher, buses)
                self._running.append(service)

    async def stop(self) -> None:
        """End every consumer: running handlers end, offsets are committed, groups are left."""
        if self._kafka is not None:
            await self._kafka.stop()

    def bridge_status(self) -> Sequence[Mapping[str, Any]]:
        """One row of JSON values per bridge."""
        return () if self._bridges is None else self._bridges.status()


def _has(settings: AgentSettings, sections: Sequence[str]) -> bool:
    return any(settings.plugins.has(name) for name in sections)
