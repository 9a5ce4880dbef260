"""The composition root of the real world: settings → objects → one nursery."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from clusternode.backends.subscriptions import BackendSubscriptions, requests_of
from clusternode.bus.interface import Bus, Receiver
from clusternode.bus.mesh import MeshBus
from clusternode.config import AgentSettings, ClusterSection
from clusternode.config.changes import taken_up, waiting_for_restart
from clusternode.control.server import ControlServer
from clusternode.control.view import VIEW_CHANNEL, answer_view
from clusternode.core.events import CertificateExpires
from clusternode.core.inputs import KnownMember, Leave, RecordSettingsChanged
from clusternode.core.settings import ChannelSettings, NodeSettings
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.core.wire.limits import NONCE_LENGTH
from clusternode.core.wire.messages import Close, CloseReason
from clusternode.errors import ClusternodeError, ConfigError, DuplicateNodeId
from clusternode.gateways.base import Gateway
from clusternode.gateways.registry import Configured, read_gateways
from clusternode.integrations import Integrations
from clusternode.routes.dispatcher import Dispatcher
from clusternode.routes.events import EventHub
from clusternode.routes.loader import load_table
from clusternode.routes.permissions import Guard
from clusternode.routes.table import Kind, RouteTable, make_handler
from clusternode.runtime.acceptor import Acceptor
from clusternode.runtime.connections import Connections
from clusternode.runtime.driver import Driver, Surroundings
from clusternode.runtime.exposure import check_exposure
from clusternode.runtime.handshake import FAREWELL_TIMEOUT
from clusternode.runtime.jobs import Jobs
from clusternode.runtime.keyring import Keyring, read_secrets
from clusternode.runtime.machine import Machine, ThisMachine, begin_life, new_rng
from clusternode.runtime.recorder import recording_of
from clusternode.runtime.renewal import Renewal
from clusternode.runtime.resolver import DnsResolver, Resolver
from clusternode.runtime.state import Remembered, StateKeeper, StateStore
from clusternode.runtime.tls import Credentials, TlsTransport
from clusternode.runtime.transport import Listener, TcpTransport, Transport

if TYPE_CHECKING:
    from clusternode.kafka.service import KafkaService

logger = logging.getLogger(__name__)

LEAVE_TIMEOUT: Final[Seconds] = 1.0
"""How long the others are waited for when the agent stops."""
STOP_HOOKS_TIMEOUT: Final[Seconds] = 5.0
"""How long `on_stop` handlers may delay the stop; systemd kills after 90 s, Docker after 10 s."""


@attrs.frozen
class _Cluster:
    """One node and all that belongs to it."""

    section: ClusterSection
    driver: Driver
    jobs: Jobs
    connections: Connections
    bus: MeshBus
    keeper: StateKeeper | None
    known_members: Sequence[KnownMember]
    guards: list[Guard] = attrs.Factory(list)
    """Who checks permissions before the routes; one, once there are routes."""


class Agent:
    """One agent: a node in each of its clusters, its routes and its control socket.

    Everything is made in `run`; `buses` and `events` are there when it has started.

    Args:
        settings: What the configuration says.
        transport: In place of TCP.
        resolver: In place of DNS.
        machine: In place of this one, its resolver included.
        reload_settings: Reads the configuration again for `reload`; None: only the routes are.
        has_control: Whether to open the control socket.
        has_signals: Whether SIGTERM and SIGINT stop this agent and SIGHUP reloads it; only in
            the main thread.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        transport: Transport | None = None,
        resolver: Resolver | None = None,
        machine: Machine | None = None,
        reload_settings: Callable[[], AgentSettings] | None = None,
        has_control: bool = True,
        has_signals: bool = False,
    ) -> None:
        self.settings = settings
        self.started_at: Instant = 0.0
        self._machine = machine or ThisMachine(resolver or DnsResolver(settings.nameservers))
        self._transport = transport or TcpTransport(self._machine.resolver)
        self._credentials: Credentials | None = None
        self._integrations = Integrations(settings)
        self._has = (has_control, has_signals, reload_settings)
        self._stopping = trio.Event()
        self._clusters: dict[str, _Cluster] = {}  # cluster name → what belongs to it
        self._dispatcher: Dispatcher | None = None
        self._withdrawn: dict[str, DuplicateNodeId] = {}  # cluster → who else has our node id
        self._gateways: list[Gateway] = []

    # --- what the control socket and tests see --------------------------------------------------

    @property
    def kafka(self) -> KafkaService:
        return self._integrations.kafka

    @property
    def node_id(self) -> NodeId:
        return self.settings.node_id

    @property
    def version(self) -> str:
        try:
            return version("clusternode")
        except PackageNotFoundError:  # run from a source tree
            return "unknown"

    @property
    def buses(self) -> Mapping[str, Bus]:
        own = {name: cluster.bus for name, cluster in self._clusters.items()}
        return {**own, **{gateway.bus.name: gateway.bus for gateway in self._gateways}}

    @property
    def dispatcher(self) -> Dispatcher:
        assert self._dispatcher is not None, "the agent has not started"
        return self._dispatcher

    @property
    def events(self) -> EventHub:
        return self.dispatcher.events

    def route_stats(self) -> Sequence[Mapping[str, Any]]:
        """One row of JSON values per route."""
        return [attrs.asdict(route) for route in self.dispatcher.routes()]

    def bridge_status(self) -> Sequence[Mapping[str, Any]]:
        """One row of JSON values per bridge."""
        return self._integrations.bridge_status()

    def stop(self) -> None:
        """Begin to leave; `run` returns when that is done."""
        self._stopping.set()

    async def reload(self) -> str:
        """Load the routes again, secrets, permissions, tags and priority of the configuration.

        Connections stay open. Says how many routes there are, and what waits for a restart.

        Raises:
            RouteError: The routes have an error; everything stays as it was.
            ConfigError: The configuration has one; everything stays as it was.
        """
        await trio.lowlevel.checkpoint()
        _, _, reload_settings = self._has
        settings = reload_settings() if reload_settings is not None else self.settings
        check_exposure(settings)
        credentials = self._credentials
        prepared = None if credentials is None else credentials.prepare(settings.tls)
        found = {name: read_secrets(section) for name, section in settings.clusters.items()}
        self.events.subscriptions.check(requests_of(settings), path="subscribe")
        self._integrations.prepare(settings)
        self._reload_routes(settings)
        # The routes were the last that can be refused; from here on everything takes effect.
        if credentials is not None and prepared is not None:
            credentials.install(prepared)
        self._integrations.reload()
        self.events.declare(settings.routes.events)
        self.events.subscriptions.replace("configuration", requests_of(settings), path="subscribe")
        self.settings = taken_up(self.settings, settings)
        for name, section in settings.clusters.items():
            if name in self._clusters:
                tags = tuple(sorted(section.tags.items()))
                changed = RecordSettingsChanged(tags, settings.priority)
                self._clusters[name].driver.feed(changed)
                self._clusters[name].connections.keyring.secrets = found[name]
                for guard in self._clusters[name].guards:
                    guard.install(settings.channels)
        count = len(self.dispatcher.routes())
        said = f"{count} route" if count == 1 else f"{count} routes"
        waiting = waiting_for_restart(self.settings, settings)
        return f"{said}; a restart is needed for {', '.join(waiting)}" if waiting else said

    def _reload_routes(self, settings: AgentSettings) -> None:
        """Load the script and the executables that the configuration names now."""
        before = self.settings
        self.settings = attrs.evolve(
            before,
            routes=attrs.evolve(before.routes, file=settings.routes.file),
            exec_routes=settings.exec_routes,
        )
        try:
            self.dispatcher.reload()
        except ClusternodeError:
            self.settings = before
            raise

    # --- the life of an agent -------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join the clusters and take part until `stop`, then leave them.

        Raises:
            ConfigError: Others could reach this agent without proving who they are, or a file
                with a secret cannot be used.
            RouteError: The routes cannot be loaded.
            StateError: The state directory cannot be used.
            AddressInUse: Something else listens on an address or on the control socket.
            DuplicateNodeId: Another live process has the node id.
        """
        check_exposure(self.settings)
        if self.settings.tls is not None:
            self._credentials = Credentials(self.settings.tls, self.settings.node_id)
            self._transport = TlsTransport(self._transport, self._credentials)
        self._integrations.prepare(self.settings)
        self._integrations.attach()
        table = self.load_table()
        gateways = self._read_gateways()
        try:
            async with contextlib.AsyncExitStack() as stack:
                state = await self._open_state(stack)
                listeners = await self._listen(stack)
                for section in self.settings.clusters.values():
                    bound = listeners[section.listen].address
                    self._clusters[section.name] = await self._make_cluster(section, bound, state)
                self._gateways = [each.make(self._machine.resolver) for each in gateways]
                self._dispatcher = self._make_dispatcher(table)
                back_ends = self._make_back_ends(table)
                await self._run_all(listeners, back_ends, task_status)
        except BaseExceptionGroup as group:
            error = _the_only_error(group)
            if error is None:
                raise
            raise error from error.__cause__
        for failure in self._withdrawn.values():
            raise failure

    async def _run_all(
        self,
        listeners: Mapping[Address, Listener],
        back_ends: BackendSubscriptions,
        task_status: trio.TaskStatus[None],
    ) -> None:
        has_control, has_signals, _ = self._has
        self.started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            if has_signals:
                await nursery.start(self._listen_to_signals)
            for cluster in self._clusters.values():
                await nursery.start(cluster.jobs.run)
                await nursery.start(cluster.driver.run)
            await nursery.start(back_ends.run)
            await nursery.start(self.dispatcher.run)
            if self._credentials is not None:
                renewal = Renewal(self._credentials, self._certificate_expires)
                await nursery.start(renewal.run)
            if has_control:
                control = ControlServer(self, self.settings.control_socket)
                await nursery.start(control.run)
            for address, listener in listeners.items():
                await nursery.start(self._acceptor(address, listener).run)
            for cluster in self._clusters.values():
                cluster.driver.start(cluster.known_members)
                settings = cluster.driver.settings
                logger.info(
                    "node %s of cluster %s at %s",
                    settings.node_id,
                    settings.cluster,
                    settings.address,
                )
            for gateway in self._gateways:
                await nursery.start(gateway.run)
            await nursery.start(self._integrations.run, self.dispatcher, self.buses)
            task_status.started()
            await self._stopping.wait()
            await self._leave(back_ends)
            nursery.cancel_scope.cancel()

    async def _leave(self, back_ends: BackendSubscriptions) -> None:
        """Tell everyone that we leave; nobody can delay it beyond the time limits."""
        await self._integrations.stop()
        with trio.move_on_after(STOP_HOOKS_TIMEOUT):
            await self.dispatcher.stop()
        await back_ends.drain()
        staying = [
            cluster for name, cluster in self._clusters.items() if name not in self._withdrawn
        ]
        for cluster in staying:
            cluster.driver.feed(Leave())
        with trio.move_on_after(LEAVE_TIMEOUT) as scope:
            async with trio.open_nursery() as nursery:
                for gateway in self._gateways:
                    nursery.start_soon(gateway.leave)
                for cluster in staying:
                    nursery.start_soon(cluster.driver.left.wait)
        if scope.cancelled_caught:
            logger.warning("not everyone has taken note that we leave; stopping all the same")
        with trio.move_on_after(FAREWELL_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for cluster in self._clusters.values():
                    farewell = Close(CloseReason.BYE, "stopping")
                    nursery.start_soon(cluster.connections.close_all, farewell)
        for cluster in self._clusters.values():
            if cluster.keeper is not None:
                error = await cluster.keeper.write()
                if error is not None:
                    logger.warning("the state could not be written: %s", error)
        logger.info("stopped")

    async def _listen_to_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with trio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP:
                    await self._reload_on_signal()
                    continue
                logger.info("%s: leaving", signal.Signals(number).name)
                self.stop()

    async def _reload_on_signal(self) -> None:
        try:
            logger.info("SIGHUP: reloaded %s", await self.reload())
        except ClusternodeError as error:
            logger.error("SIGHUP: nothing was changed: %s", error)  # noqa: TRY400  # no bug of ours

    def _withdraw(self, cluster: str, detail: str) -> None:
        node_id = self.settings.node_id
        self._withdrawn[cluster] = failure = DuplicateNodeId(
            f"another live node of cluster {cluster} is called {node_id}: {detail};"
            " stop that one, or give this one another [node] id"
        )
        logger.error("%s", failure)
        self.stop()

    def _certificate_expires(self, days: int, not_after: datetime) -> None:
        logger.warning(
            "the certificate of node %s %s: valid until %s",
            self.node_id,
            "has expired" if days < 0 else f"expires in {days} days",
            not_after.isoformat(),
        )
        for name, cluster in self._clusters.items():
            cluster.bus.emit(CertificateExpires(name, self.node_id, days, not_after.isoformat()))

    def _certificates(self, connections: Connections) -> Mapping[NodeId, datetime]:
        """Return until when the certificates of this node and its peers are valid."""
        if self._credentials is None:
            return {}
        own = {self.node_id: self._credentials.own.not_after}
        return {**connections.certificates(), **own}

    # --- gateways -------------------------------------------------------------------------------

    def _read_gateways(self) -> list[Configured]:
        gateways = read_gateways(self.settings.plugins)
        for gateway in gateways:
            if gateway.name in self.settings.clusters:
                raise ConfigError("cluster.name", gateway.name, "a name that no gateway has")
        return gateways

    # --- making things --------------------------------------------------------------------------

    def load_table(self) -> RouteTable:
        """Load the routes that the settings name; a subclass may add its own."""
        file = self.settings.file
        table = load_table(
            self.settings.routes.file,
            self.settings.exec_routes,
            file.parent if file is not None else None,
        )
        table.add(make_handler(Kind.REQUEST, VIEW_CHANNEL, answer_view))
        self._integrations.check(table, next(iter(self.settings.clusters), None))
        return table

    def _make_dispatcher(self, table: RouteTable) -> Dispatcher:
        dispatcher = Dispatcher(
            self.settings.routes, self.settings.channels, table, self.load_table
        )
        for bus in self.buses.values():
            dispatcher.attach(bus)
        for cluster in self._clusters.values():
            count = cluster.driver.count_forbidden
            cluster.guards.append(Guard(dispatcher, self.settings.channels, count))
            cluster.bus.attach(self.witnessed(cluster.guards[-1]))
        return dispatcher

    def witnessed(self, receiver: Receiver) -> Receiver:
        """Return who takes what a cluster brings; a subclass may stand before it."""
        return receiver

    def _make_back_ends(self, table: RouteTable) -> BackendSubscriptions:
        """Let back ends be subscribed, and subscribe those of configuration and script."""
        events = self.dispatcher.events
        back_ends = BackendSubscriptions(events, self.dispatcher.buses)
        events.declare(self.settings.routes.events)
        back_ends.replace("routes", table.subscriptions)
        back_ends.replace("configuration", requests_of(self.settings), path="subscribe")
        events.set_subscriptions(back_ends)
        return back_ends

    async def _open_state(self, stack: contextlib.AsyncExitStack) -> StateStore | None:
        if self.settings.state_dir is None:
            return None
        state = await self._machine.open_state(self.settings.state_dir)
        stack.callback(state.close)
        return state

    async def _listen(self, stack: contextlib.AsyncExitStack) -> dict[Address, Listener]:
        """Bind each listening address once, however many clusters share it."""
        listeners: dict[Address, Listener] = {}
        for section in self.settings.clusters.values():
            if section.listen not in listeners:
                listener = await self._transport.listen(section.listen)
                listeners[section.listen] = listener
                stack.push_async_callback(listener.aclose)
        return listeners

    def _acceptor(self, address: Address, listener: Listener) -> Acceptor:
        clusters = self._clusters.items()
        served = {name: one.connections for name, one in clusters if one.section.listen == address}
        return Acceptor(listener, served)

    async def _make_cluster(
        self, section: ClusterSection, bound: Address, state: StateStore | None
    ) -> _Cluster:
        remembered = await begin_life(self._machine, state, section.name)
        keeper = None if state is None else StateKeeper(state, section.name)
        node = self._node_settings(section, bound, remembered)
        driver = Driver(node, new_rng(self._machine), recording_of(self.settings, node))
        driver.on_withdraw = partial(self._withdraw, section.name)
        jobs = Jobs()
        keyring = Keyring(read_secrets(section))
        connections = Connections(driver, self._transport, jobs, keyring)
        bus = MeshBus(driver)
        certificates = partial(self._certificates, connections)
        driver.attach(
            Surroundings(connections, bus, self._machine.resolver, jobs, keeper, certificates)
        )
        return _Cluster(section, driver, jobs, connections, bus, keeper, remembered.members)

    def _node_settings(
        self, section: ClusterSection, bound: Address, remembered: Remembered
    ) -> NodeSettings:
        address = section.address
        if address.port == 0:  # any free port, as tests want it
            address = attrs.evolve(address, port=bound.port)
        return NodeSettings(
            node_id=self.settings.node_id,
            cluster=section.name,
            incarnation=remembered.incarnation,
            address=address,
            nonce=self._machine.random_bits(8 * NONCE_LENGTH).to_bytes(NONCE_LENGTH),
            priority=self.settings.priority,
            tags=section.tags,
            channel_settings={
                name: ChannelSettings(overflow=channel.overflow)
                for name, channel in self.settings.channels.items()
            },
            health=section.health,
            discovery=section.discovery,
            messaging=section.messaging,
        )


def _the_only_error(group: BaseExceptionGroup[BaseException]) -> ClusternodeError | None:
    """Return our own error that a nursery has wrapped, if there is nothing else in the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error if isinstance(error, ClusternodeError) else None
