"""Everything of Kafka in one agent: connections, and what reads from them, started and reloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from clusternode.bus.interface import Bus
from clusternode.config.raw import RawTable
from clusternode.errors import NoSuchConnection, RouteError
from clusternode.kafka import library
from clusternode.kafka.connections import Connection, KafkaConnections
from clusternode.kafka.consumer import Consumer, ConsumerSettings, Handle
from clusternode.kafka.handlers import Host, ListenerHandle, RouteHandle, consumer_settings
from clusternode.kafka.notifications.configured import (
    NOTIFIER_KEYS,
    ListenerSettings,
    Relay,
    add_listener,
    read_listeners,
    read_notifier,
)
from clusternode.kafka.notifications.listener import listener_of
from clusternode.kafka.notifications.notifier import NotifierDefaults
from clusternode.kafka.notifications.transport_url import (
    OPTIONS,
    SETTING,
    connection_of,
    has_mixed_credentials,
    parse_url,
)
from clusternode.kafka.settings import ANY_TEXT, KafkaConnection, read_connections
from clusternode.routes.events import EventHub
from clusternode.routes.table import Handler, Kind, RouteTable

logger = logging.getLogger(__name__)


class RouteHost(Host, Protocol):
    """The dispatcher: where routes run and events are raised."""

    @property
    def events(self) -> EventHub: ...
    def handlers(self, kind: Kind) -> list[Handler]: ...


@attrs.frozen
class KafkaSettings:
    """What the configuration says of Kafka."""

    connections: Mapping[str, KafkaConnection] = attrs.field(factory=dict)
    notifier: NotifierDefaults = attrs.field(factory=NotifierDefaults)
    listeners: tuple[ListenerSettings, ...] = ()

    @classmethod
    def read(cls, plugins: RawTable) -> KafkaSettings:
        """Read the sections of Kafka.

        Raises:
            ConfigError: Names the key, and what was expected.
        """
        connections = read_connections(plugins.table("kafka")) if plugins.has("kafka") else {}
        notifier = NotifierDefaults()
        if plugins.has("notifications"):
            notifier = read_notifier(plugins.table("notifications"))
            connection = read_notifications(plugins.table("notifications"))
            connections.setdefault(connection.name, connection)
        is_disabled = plugins.has("kafka") and not connections
        if is_disabled:
            return cls()
        listeners = read_listeners(plugins.tables("notification_listener"), connections)
        return cls(connections, notifier, listeners)

    @property
    def is_empty(self) -> bool:
        return not self.connections


@attrs.frozen
class Wanted:
    """A consumer that should run."""

    connection: Connection
    settings: ConsumerSettings
    handle: Handle


@attrs.define(eq=False)
class _Running:
    """A consumer that runs."""

    consumer: Consumer
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    ended: trio.Event = attrs.Factory(trio.Event)


class KafkaService:
    """The Kafka side of an agent; made before its routes, run beside them."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = self._prepared = settings
        self.connections = KafkaConnections(settings.connections)
        self.connections.notifier_defaults = settings.notifier
        self._host: RouteHost | None = None
        self._buses: Mapping[str, Bus] = {}
        self._bridges: Callable[[], Iterable[Wanted]] = tuple
        self._bridges_status: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self._running: dict[str, _Running] = {}  # name of the consumer → what runs it
        self._starts: list[_Running] = []
        self._changed = trio.Event()
        self._stopping = trio.Event()

    def set_bridges(
        self,
        wanted: Callable[[], Iterable[Wanted]],
        status: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        """Say which topics bridges read, and what is shown of those from and to topics."""
        self._bridges, self._bridges_status = wanted, status

    def prepare(self, settings: KafkaSettings) -> None:
        """Say what `check` and the next `reload` are about.

        Raises:
            ConfigError: A property of a connection is wrong.
        """
        KafkaConnections(settings.connections).check()
        self._prepared = settings

    def check(self, table: RouteTable) -> None:
        """Add the listeners to a table, and see whether its routes for Kafka can be run.

        Raises:
            RouteError: A route names no connection, or an option of it is wrong.
        """
        for own in self._prepared.listeners:
            add_listener(table, own, Relay(own, lambda: self._buses, self._events))
        for handler in table.of_kind(Kind.KAFKA):
            settings = self._prepared.connections.get(handler.on)
            if settings is None:
                names = ", ".join(self._prepared.connections) or "none"
                raise RouteError(f"{handler.name}: no [kafka.{handler.on}]; there are: {names}")
            if not library.is_installed():
                raise RouteError(f"{handler.name}: {library.HOW_TO_INSTALL}")
            consumer_settings(handler, settings, handler.on)

    async def run(
        self,
        host: RouteHost,
        buses: Mapping[str, Bus],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run connections and consumers until cancelled.

        A broker that is down delays nothing here.
        """
        self._host, self._buses = host, buses
        async with trio.open_nursery() as outer:
            await outer.start(self.connections.run)
            async with trio.open_nursery() as nursery:
                self.update()
                task_status.started()
                while not self._stopping.is_set():
                    while self._starts:
                        nursery.start_soon(self._run_consumer, self._starts.pop(0))
                    await self._changed.wait()
                    self._changed = trio.Event()
            await trio.sleep_forever()

    async def stop(self) -> None:
        """End every consumer: running handlers end, offsets are committed, groups are left.

        Connections go on: what handlers of `on_stop` publish is still delivered.
        """
        self._stopping.set()
        self._changed.set()
        while self._starts:  # asked for, and not begun
            self._starts.pop().ended.set()
        for running in self._running.values():
            running.scope.cancel()
        for running in tuple(self._running.values()):
            await running.ended.wait()

    def reload(self) -> None:
        """Take what was prepared and checked; consumers of what has changed begin anew."""
        self.connections.notifier_defaults = self._prepared.notifier
        self.settings = self._prepared
        self.connections.reload(self.settings.connections)
        self.update()

    def update(self) -> None:
        """Start and end consumers so that those run that are wanted now."""
        if self._host is None or self._stopping.is_set():
            return
        wanted = self._wanted(self._host)
        for name, running in tuple(self._running.items()):
            new = wanted.get(name)
            old = running.consumer
            if (
                new is None
                or new.settings != old.settings
                or new.connection is not old.connection
                or running.ended.is_set()
            ):
                running.scope.cancel()
                del self._running[name]
            else:
                old.replace_handle(new.handle)
        for name, each in wanted.items():
            if name not in self._running:
                consumer = Consumer(each.connection, each.settings, each.handle, self._raise_event)
                running = self._running[name] = _Running(consumer)
                self._starts.append(running)
        self._changed.set()

    def _events(self) -> EventHub | None:
        return None if self._host is None else self._host.events

    def _raise_event(self, name: str, parameters: dict[str, Any]) -> None:
        if self._host is not None:
            self._host.events.raise_event(name, parameters)

    async def _run_consumer(self, running: _Running) -> None:
        try:
            with running.scope:
                await running.consumer.run()
        finally:
            running.ended.set()

    def _wanted(self, host: RouteHost) -> dict[str, Wanted]:
        """Return name → the consumers that the routes ask for; they were checked."""
        found: dict[str, Wanted] = {}
        for handler in host.handlers(Kind.KAFKA):
            connection = self.connections.get(handler.on)
            name = _free_name(connection.name, found)
            settings = consumer_settings(handler, connection.settings, name)
            handle: Handle = (
                RouteHandle(host, self._buses, connection, handler)
                if listener_of(handler) is None
                else ListenerHandle(host, self._buses, handler)
            )
            found[name] = Wanted(connection, settings, handle)
        for each in self._bridges():
            name = _free_name(each.settings.name, found)
            settings = attrs.evolve(each.settings, name=name)
            found[name] = Wanted(each.connection, settings, each.handle)
        return found

    # --- what operators see ---------------------------------------------------------------------

    def bridges_status(self) -> list[Mapping[str, Any]]:
        """Return the rows of the bridges from and to topics."""
        return [
            row
            for row in self._bridges_status()
            if any(row[end].startswith("kafka:") for end in ("source", "target"))
        ]

    def consumers(self) -> Sequence[Consumer]:
        return [running.consumer for running in self._running.values()]

    def consumers_named(self, name: str) -> list[Consumer]:
        """Return the consumer of that name, or all of the connection of that name.

        Raises:
            NoSuchConnection: There is none.
        """
        found = [
            each for each in self.consumers() if name in (each.settings.name, each.connection.name)
        ]
        if not found:
            known = ", ".join(each.settings.name for each in self.consumers()) or "none"
            raise NoSuchConnection(f"no active consumer named {name}; there are: {known}")
        return found


def read_notifications(table: RawTable) -> KafkaConnection:
    """Read `[notifications]`: transport_url, and options of oslo_messaging_kafka beside it.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    table.refuse_unknown([SETTING, *OPTIONS, *NOTIFIER_KEYS, "routing"])
    if not table.has(SETTING):
        raise table.fail(SETTING, None, "kafka://[USER:PASS@]HOST[:PORT][,…]/[VHOST][?OPTIONS]")
    url = parse_url(str(table.value(SETTING, ANY_TEXT)))
    options = {name: table.values[name] for name in table.names() if name in OPTIONS}
    if has_mixed_credentials(url):
        logger.warning("%s: hosts differ in their credentials; the first are used", url.shown)
    return connection_of(url, options)


def _free_name(base: str, taken: Mapping[str, object]) -> str:
    """Return the connection's name, as res_kafka calls its consumer, or with a number."""
    if base not in taken:
        return base
    numbered = (f"{base}.{number}" for number in range(2, len(taken) + 3))
    return next(name for name in numbered if name not in taken)
