"""Every bridge of one agent: checked, started, ranked, reloaded and shown."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs
import trio

from clusternode.bridge.agents import AGENTS_CHANNEL, Agents, is_cut_off
from clusternode.bridge.circles import check_circles
from clusternode.bridge.junction import add_junctions
from clusternode.bridge.memory import Memory
from clusternode.bridge.running import Copy, RunningRule
from clusternode.bridge.settings import SECTION, Link, Rule, read_rules
from clusternode.bridge.standby import Notice
from clusternode.bridge.worlds import MESH, world_of
from clusternode.bus.interface import Bus
from clusternode.config.raw import RawTable
from clusternode.core.events import Joined, NodeStateChanged, RecordChanged
from clusternode.core.types import Instant, ResultCode, Seconds
from clusternode.errors import BodyTooLarge, ClusternodeError, ConfigError
from clusternode.kafka.connections import Connection
from clusternode.kafka.ends import TYPED, End
from clusternode.kafka.service import KafkaService, KafkaSettings, Wanted
from clusternode.routes.events import EventHub, EventView
from clusternode.routes.table import Kind, RouteTable, make_handler

logger = logging.getLogger(__name__)

CHOSEN: Final = "E_BRIDGE_CHOSEN"
"""This agent relays for a rule from now on."""
STANDBY: Final = "E_BRIDGE_STANDBY"
"""Another agent relays for a rule from now on."""
LOOK_INTERVAL: Final[Seconds] = 1.0
"""How often the ranks and what is held are looked at when nothing happens."""
GATHER: Final[Seconds] = 0.05
"""How long what was dealt with is gathered before the others are told."""
CHANGES: Final = (NodeStateChanged.NAME, RecordChanged.NAME, Joined.NAME)
INCARNATIONS_MAX: Final = 10_000
"""Lives of nodes that are kept at hand; more than that only strangers have names for."""
RELAYING_MAX: Final = 64
"""Held copies that are relayed at a time after a takeover."""


class EventHost(Protocol):
    """The dispatcher: where events are heard and raised."""

    @property
    def events(self) -> EventHub: ...


@attrs.frozen
class Place:
    """What the configuration says of the clusters that rules name."""

    clusters: Sequence[str]
    """Our own; the first is the default, and where agents are ranked."""
    gateways: Sequence[str]


def read_bridges(plugins: RawTable, clusters: Sequence[str]) -> tuple[Rule, ...]:
    """Read the rules of a configuration and see whether they fit each other.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    kafka = KafkaSettings.read(plugins)
    is_disabled = plugins.has("kafka") and kafka.is_empty
    rules = read_rules(plugins, None if is_disabled else kafka.connections)
    gateways = plugins.table("gateway").names() if plugins.has("gateway") else ()
    place = Place(clusters, gateways)
    resolved = tuple(_resolve(rule, place) for rule in rules)
    check_circles(resolved)
    return resolved


def _resolve(rule: Rule, place: Place) -> Rule:
    links = tuple(
        Link(_end(rule, link.source, place), _end(rule, link.target, place), link.is_back)
        for link in rule.links
    )
    return attrs.evolve(rule, links=links)


def _end(rule: Rule, end: End, place: Place) -> End:
    """Return an end with its cluster.

    Raises:
        ConfigError: There is none of that name, or it has no such thing.
    """
    if end.kind == "kafka" or (end.kind == "event" and not end.where):
        return end
    known = (*place.clusters, *place.gateways)
    where = end.where or place.clusters[0]
    if where not in known:
        names = ", ".join(known)
        raise ConfigError(f"{SECTION}.{rule.name}", str(end), f"a cluster or gateway: {names}")
    if end.kind in TYPED and world_of(where).channel(end.kind) is None:
        raise ConfigError(f"{SECTION}.{rule.name}", str(end), f"a gateway that has {end.kind}")
    return attrs.evolve(end, where=where)


class BridgeService:
    """The bridges of an agent; made before its routes, run beside them."""

    def __init__(self, rules: Sequence[Rule], kafka: KafkaService) -> None:
        self.memory = Memory()
        self.agents = Agents()
        self.kafka = kafka
        self._prepared = tuple(rules)
        self._running: list[RunningRule] = []
        self._next: list[RunningRule] = []
        self._host: EventHost | None = None
        self._buses: Mapping[str, Bus] = {}
        self._incarnations: dict[tuple[str, str], object] = {}  # (bus, node) → its life
        self._nonce = secrets.token_hex(8)
        self._wake = trio.Event()
        self._looked_at: Instant = -math.inf
        kafka.set_bridges(self.wanted, self.status)

    def prepare(self, rules: Sequence[Rule]) -> None:
        """Say what `check` and the next `reload` are about."""
        self._prepared = tuple(rules)

    def check(self, table: RouteTable, mesh: str | None) -> None:
        """Add the rules to a table of routes; `mesh` is the cluster where agents are ranked."""
        known = {each.rule.name: each for each in self._running}
        self._next = [
            known[rule.name]
            if rule.name in known and known[rule.name].rule == rule
            else RunningRule(rule, self.memory, self)
            for rule in self._prepared
        ]
        add_junctions(table, [relay for running in self._next for relay in running.relays])
        for running in self._next:
            running.add_to(table, mesh)
        if self._next and mesh is not None:
            table.add(make_handler(Kind.MESSAGE, AGENTS_CHANNEL, self.agents.take, via=mesh))

    def reload(self) -> None:
        """Take what was prepared and checked; what is under way ends as it began."""
        before = {each.rule.name: each for each in self._running}
        self._running = self._next
        for running in self._running:
            old = before.pop(running.rule.name, running)
            if old is not running and running.rule.is_ranked and old.rule.is_ranked:
                running.succeed(old)
        for gone in before.values():
            if len(gone.held):
                logger.warning("bridge %s is gone with %d held", gone.rule.name, len(gone.held))
        self._look()
        self._wake.set()

    # --- what relays need -----------------------------------------------------------------------

    @property
    def buses(self) -> Mapping[str, Bus]:
        return self._buses

    @property
    def events(self) -> EventHub:
        assert self._host is not None, "nothing is relayed before the agent runs"
        return self._host.events

    def connection(self, name: str) -> Connection:
        return self.kafka.connections.get(name)

    def incarnation_of(self, bus: Bus, node_id: str) -> object:
        """Return what tells two lives of a node apart.

        Foreign buses count messages themselves, so it is our own life that matters there.
        """
        if world_of(bus.name) is not MESH:
            return self._nonce
        key = (bus.name, node_id)
        if key not in self._incarnations:
            if len(self._incarnations) >= INCARNATIONS_MAX:
                self._incarnations.clear()
            for member in bus.members():
                self._incarnations[bus.name, member.node_id] = member.incarnation
            self._incarnations.setdefault(key, self._nonce)
        return self._incarnations[key]

    def is_of_an_agent(self, bus: Bus, node_id: str) -> bool:
        """Tell whether a node of a bus without marks is another bridging agent's."""
        if world_of(bus.name).carries_marks:
            return False
        return self.agents.is_theirs(bus.name, node_id)

    def wake(self) -> None:
        self._wake.set()

    # --- the life of the service ----------------------------------------------------------------

    async def run(
        self,
        host: EventHost,
        buses: Mapping[str, Bus],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Watch which rules are this agent's to relay, until cancelled."""
        self._host, self._buses = host, buses
        self._running = self._next
        subscriptions = [host.events.on_event(name, self._changed) for name in CHANGES]
        self._look()
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    with trio.move_on_after(LOOK_INTERVAL):
                        await self._wake.wait()
                        await trio.sleep(GATHER)
                    self._wake = trio.Event()
                    if trio.current_time() - self._looked_at >= LOOK_INTERVAL:
                        self._look()
                        self._tell_agents()
                        self._forget()
                    self._tell_done()
                    for running in self._running:
                        copies = running.overdue()
                        if copies:
                            nursery.start_soon(self._relay_held, running, copies)
        finally:
            for subscription in subscriptions:
                subscription.cancel()

    def _changed(self, bus: Bus | None, view: EventView) -> None:
        del bus, view
        self._incarnations.clear()
        self.agents.has_told = None  # whoever has come must hear it
        self._looked_at = -math.inf
        self._wake.set()

    @property
    def _mesh(self) -> Bus | None:
        first = next(iter(self._buses.values()), None)
        return first if first is not None and world_of(first.name) is MESH else None

    def _look(self) -> None:
        """See which rules this agent relays for now; tell of those that have changed."""
        self._looked_at = trio.current_time()
        mesh = self._mesh
        members = () if mesh is None else mesh.members()
        self.agents.keep(member.node_id for member in members if member.status == "active")
        cut_off = dict(self.agents.cut_off)
        if mesh is not None:
            cut_off[mesh.node_id] = self._cut_off()
        for running in self._running:
            before = running.state
            if mesh is not None:
                has_changed = running.rank(members, cut_off)
            else:
                has_changed, running.is_chosen = not running.is_chosen, True
            if has_changed:
                logger.info("bridge %s: %s, was %s", running.rule.name, running.state, before)
                name = CHOSEN if running.is_chosen else STANDBY
                self.events.raise_event(name, {"bridge": running.rule.name})

    def _tell_done(self) -> None:
        mesh = self._mesh
        if mesh is not None:
            for running in self._running:
                try:
                    running.tell(mesh)
                except BodyTooLarge as error:  # of a small body_size_max; they may repeat it
                    logger.warning("bridge %s: others are not told: %s", running.rule.name, error)

    def _tell_agents(self) -> None:
        mesh = self._mesh
        if mesh is not None and self._running:
            others = [bus for bus in self._buses.values() if bus is not mesh]
            unmarked = [bus for bus in others if not world_of(bus.name).carries_marks]
            nodes = {bus.name: str(bus.node_id) for bus in unmarked}
            if others:
                self.agents.tell(mesh, Notice(nodes, cut_off=self._cut_off()))

    def _cut_off(self) -> tuple[str, ...]:
        """Return the names of our buses on which we see nobody."""
        others = [bus for bus in self._buses.values() if bus is not self._mesh]
        return tuple(bus.name for bus in others if is_cut_off(bus))

    def _forget(self) -> None:
        windows = [running.rule.loops.loop_window for running in self._running]
        self.memory.purge(trio.current_time(), max(windows, default=0.0))

    async def _relay_held(self, running: RunningRule, copies: Sequence[Copy]) -> None:
        """Relay what another agent has not, some at a time, in order."""
        logger.info("bridge %s: relaying %d that were held", running.rule.name, len(copies))
        for start in range(0, len(copies), RELAYING_MAX):
            async with trio.open_nursery() as nursery:
                for copy in copies[start : start + RELAYING_MAX]:
                    nursery.start_soon(self._relay_copy, copy)

    async def _relay_copy(self, copy: Copy) -> None:
        code = await copy.relay.relay_here(copy.arrival)
        if code is not ResultCode.OK:
            name = copy.relay.rule.name
            logger.warning("bridge %s: a held message ended with %d", name, int(code))

    # --- for Kafka and operators ----------------------------------------------------------------

    def wanted(self) -> Iterator[Wanted]:
        """Yield the consumers that the rules need."""
        for running in self._running or self._next:
            try:
                yield from running.wanted()
            except ClusternodeError as error:  # a reload took its connection away
                logger.warning("bridge %s: %s", running.rule.name, error)

    def status(self) -> list[dict[str, Any]]:
        return [running.status() for running in self._running or self._next]
