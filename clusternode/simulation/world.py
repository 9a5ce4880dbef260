"""A world: hosts, links, a resolver and virtual time, driven from one seed.

A run is a function of (plan, seed) and nothing else: one event queue, one generator for the
world, one for each life of each node. Described in docs/simulation.md.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from clusternode.core.inputs import Leave, RemoveMember
from clusternode.core.settings import (
    ChannelSettings,
    DiscoverySettings,
    HealthSettings,
    MessagingSettings,
)
from clusternode.core.snapshots import NodeGlance, NodeSnapshot
from clusternode.core.types import Address, ChannelName, Instant, NodeId, Seconds
from clusternode.errors import ClusternodeError
from clusternode.recording.trace import Recorder
from clusternode.simulation.event_queue import EventQueue
from clusternode.simulation.history import (
    Break,
    Disturbance,
    History,
    LifeFact,
    Limits,
    OutboxSample,
)
from clusternode.simulation.hosts import Host, LiveProcess
from clusternode.simulation.network import LinkQuality, Network
from clusternode.simulation.resolver import ScriptedResolver
from clusternode.simulation.surroundings import Behaviour, Counts
from clusternode.simulation.tcp import Tcp
from clusternode.simulation.trace import Trace
from clusternode.simulation.traffic import Traffic

TIME_ZERO: Instant = 10_000.0
"""Where the clock starts: an `Instant` has no zero, and code that thinks so must fail here."""
WALL_CLOCK_ZERO_MS = 1_700_000_000_000
"""The wall clock at the start, for incarnations."""
PORT = 5062
CLUSTER = "simulated"


class CoreFailed(ClusternodeError):
    """A node did what no node may do, and the run cannot go on."""


@attrs.frozen(kw_only=True)
class WorldPlan:
    """What a world is made of."""

    node_ids: Sequence[NodeId]
    notification: Sequence[Address] = ()
    health: HealthSettings = attrs.field(factory=HealthSettings)
    discovery: DiscoverySettings = attrs.field(factory=DiscoverySettings)
    messaging: MessagingSettings = attrs.field(factory=MessagingSettings)
    channels: Mapping[ChannelName, ChannelSettings] = attrs.field(factory=dict)
    """Of those that are not as others."""
    quality: LinkQuality = attrs.field(factory=LinkQuality)
    behaviour: Behaviour = attrs.field(factory=Behaviour)
    notification_of: Mapping[NodeId, Sequence[Address]] = attrs.field(factory=dict)
    """Instead of `notification`, for some nodes."""
    fidelity: str = "messages"
    """One of `WIRES`."""
    id_of: Mapping[NodeId, NodeId] = attrs.field(factory=dict)
    """The node ids that some hosts claim, which are those of others."""


def address_of(index: int) -> Address:
    """Return the numeric address of the host with this index, from 10.0.0.1 on."""
    number = index + 1
    return Address("tcp", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", PORT)


class World(EventQueue):
    """All hosts and what connects them; what their processes are is up to a subclass."""

    def __init__(
        self,
        plan: WorldPlan,
        seed: int,
        *,
        keep_trace: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(TIME_ZERO)
        self.plan = plan
        self.seed = seed
        self.rng = random.Random(f"{seed}/world")
        self.network = Network(random.Random(f"{seed}/network"), plan.quality)
        self.resolver = ScriptedResolver()
        self.connections: Tcp[Any] = self._new_connections()
        self.traffic = Traffic(self)
        self.trace = Trace(keep=keep_trace, recorder=recorder)
        self.history = History(settings=limits_of(plan))
        self.counts = Counts()
        self.hosts = {
            node_id: Host(node_id, address_of(index)) for index, node_id in enumerate(plan.node_ids)
        }
        self._machines = Machines(self)

    def _new_connections(self) -> Tcp[Any]:
        raise AssertionError("a subclass knows")

    def host_at(self, ip: str) -> Host | None:
        return self._machines.by_ip.get(ip)

    def behaviour_of(self, node_id: NodeId) -> Behaviour:
        return self._machines.behaviours.get(node_id, self.plan.behaviour)

    def set_behaviour(self, node_id: NodeId, behaviour: Behaviour) -> None:
        self._machines.behaviours[node_id] = behaviour

    def processes(self) -> list[LiveProcess]:
        """All that run, paused ones included, in the order of the plan."""
        return [host.process for host in self.hosts.values() if host.process is not None]

    def core_failed(self, node_id: NodeId, what: str) -> None:
        """Note that a node did what no node may do, and end the run.

        Raises:
            CoreFailed: Always.
        """
        self.history.faults_of_core.append((self.now, node_id, what))
        raise CoreFailed(f"{node_id}: {what}")

    # Processes and hosts.

    def start(self, node_id: NodeId) -> None:
        """Start the process of a node, and its host where that is off. Nothing if it runs."""
        host = self.hosts[node_id]
        if host.process is not None:
            return
        host.is_up = True
        host.lives += 1
        claims = self.plan.id_of.get(node_id)
        fact = LifeFact(node_id, host.lives, self.now, claims=claims, clock_rate=host.clock_rate)
        self.history.lives.setdefault(node_id, []).append(fact)
        self.counts.stepping = node_id
        host.process = self._new_process(host, fact)
        self.trace.note(f"{self.now!r} start {node_id} {host.lives}")
        host.process.start()
        self.connections.release_passable()

    def _new_process(self, host: Host, fact: LifeFact) -> LiveProcess:
        raise AssertionError("a subclass knows")

    def wall_clock_ms(self, host: Host) -> int:
        """Return what the wall clock of a host shows, in milliseconds since 1970."""
        return WALL_CLOCK_ZERO_MS + int((self.now + host.clock_offset - TIME_ZERO) * 1000)

    def kill(self, node_id: NodeId) -> None:
        """End a process at once; its host closes its connections."""
        process = self._end(node_id, "killed")
        if process is not None:
            for end in list(process.ends.values()):
                self.connections.kill(end)

    def power_off(self, node_id: NodeId) -> None:
        """End a process with its host: nobody is told anything."""
        process = self._end(node_id, "powered off")
        host = self.hosts[node_id]
        host.is_up = False
        if process is not None:
            for end in list(process.ends.values()):
                self.connections.vanish(end)

    def stop(self, node_id: NodeId) -> None:
        """Let a node leave the cluster cleanly."""
        process = self.hosts[node_id].process
        if process is not None and process.fact.leaving_since is None:
            process.fact.leaving_since = self.now
            process.tell(Leave())

    def end_process(self, process: LiveProcess, how: str) -> None:
        """End a process that has nothing more to do."""
        if process.is_running:
            self._end(process.node_id, how)
            for end in list(process.ends.values()):
                self.connections.close(end)

    def _end(self, node_id: NodeId, how: str) -> LiveProcess | None:
        host = self.hosts[node_id]
        process = host.process
        if process is not None:
            process.end()
            process.fact.ended = self.now
            process.fact.how = how
            host.process = None
            self.trace.note(f"{self.now!r} {how} {node_id}")
            self._machines.end_disturbance(f"pause {node_id}")
        return process

    def pause(self, node_id: NodeId) -> None:
        """Stop a process without ending it (SIGSTOP); its host goes on."""
        process = self.hosts[node_id].process
        if process is not None and not process.is_paused:
            process.is_paused = True
            self.connections.stopped(process)
            self._machines.paused_at[node_id] = self.now
            self._machines.begin_disturbance(f"pause {node_id}", [node_id], [])

    def resume(self, node_id: NodeId) -> None:
        """Let a paused process go on."""
        process = self.hosts[node_id].process
        if process is None or not process.is_paused:
            return
        self._machines.end_disturbance(f"pause {node_id}")
        process.resume(self.now - self._machines.paused_at[node_id])

    def remove(self, node_id: NodeId, places: Sequence[NodeId]) -> None:
        """Take a node off the member list at some others (dmq.remove)."""
        for place in places:
            process = self.hosts[place].process
            if process is not None and place != node_id:
                self.history.breaks.append(Break(self.now, place, node_id, is_removal=True))
                process.tell(RemoveMember(node_id))

    # Links.

    def block(self, sources: Sequence[NodeId], targets: Sequence[NodeId]) -> None:
        """Let nothing through from `sources` to `targets`, one way."""
        self.network.block([self.hosts[n].ip for n in sources], [self.hosts[n].ip for n in targets])
        self.connections.links_changed(self.processes())
        name = f"block {','.join(sources)} {','.join(targets)}"
        self._machines.begin_disturbance(name, sources, targets)

    def heal(self, pairs: Iterable[tuple[NodeId, NodeId]] | None = None) -> None:
        """Mend every link, or these pairs both ways."""
        if pairs is None:
            self.network.heal()
        else:
            ips = [(self.hosts[one].ip, self.hosts[two].ip) for one, two in pairs]
            self.network.heal([*ips, *((two, one) for one, two in ips)])
        self.connections.links_changed(self.processes())
        self._machines.end_disturbances_of_mended_links()
        self.connections.release_passable()

    def set_quality(
        self, one: Sequence[NodeId], other: Sequence[NodeId], quality: LinkQuality
    ) -> None:
        """Change how good the links between two groups are, both ways."""
        pairs = [(self.hosts[a].ip, self.hosts[b].ip) for a in one for b in other]
        self.network.set_quality([*pairs, *((b, a) for a, b in pairs)], quality)
        self.connections.links_changed(self.processes())
        kind = "narrow" if quality.is_only_narrow else "link"
        name = f"{kind} {','.join(one)} {','.join(other)}"
        if quality.is_poor:
            self._machines.begin_disturbance(name, one, other)
        else:
            self._machines.end_disturbances_of_good_links()

    def stall(self, one: Sequence[NodeId], other: Sequence[NodeId], seconds: Seconds) -> None:
        """Let nothing through between two groups for so long; TCP goes on where it stopped."""
        self.block(one, other)
        self.block(other, one)
        self.after(seconds, self.heal, [(a, b) for a in one for b in other])

    def set_uplink(self, node_ids: Sequence[NodeId], bandwidth: float | None) -> None:
        """Let all connections of each of these hosts share one bandwidth."""
        for node_id in node_ids:
            self.network.set_uplink(self.hosts[node_id].ip, bandwidth)
            if bandwidth is None:
                self._machines.end_disturbance(f"uplink {node_id}")
            else:
                self._machines.begin_disturbance(f"uplink {node_id}", [node_id], [])
        self.connections.links_changed(self.processes())

    def reset(self, pairs: Iterable[tuple[NodeId, NodeId]]) -> None:
        """Break every connection between these pairs; what is on the way is lost."""
        for one, two in pairs:
            process = self.hosts[one].process
            ends = list(process.ends.values()) if process is not None else []
            found = [end for end in ends if end.other.process.node_id == two]
            if found:
                self._machines.note_reset(one, two)
            for end in found:
                self.connections.reset(end)

    # Looking at it.

    def digest(self) -> str:
        """Return what is the same for equal runs; nothing where runs cannot be equal."""
        return self.trace.digest()

    def close(self) -> None:
        """Let go of what the processes hold."""

    def snapshots(self) -> dict[NodeId, NodeSnapshot]:
        """What every running node shows of itself."""
        found = {process.node_id: process.snapshot() for process in self.processes()}
        return {node_id: shown for node_id, shown in found.items() if shown is not None}

    def glances(self) -> dict[NodeId, NodeGlance | NodeSnapshot]:
        """The part of it that checks look at."""
        found = {process.node_id: process.glance() for process in self.processes()}
        return {node_id: shown for node_id, shown in found.items() if shown is not None}

    def sample_outboxes(self) -> None:
        """Write down how full the outboxes are."""
        limit = self.plan.messaging.outbox_bytes
        for node_id, snapshot in self.snapshots().items():
            self.history.outboxes += [
                OutboxSample(self.now, node_id, member.node_id, member.outbox_bytes, limit)
                for member in snapshot.members
                if member.outbox_bytes
            ]


class Machines:
    """What a world remembers of its hosts and faults beside the hosts themselves."""

    def __init__(self, world: World) -> None:
        self.by_ip = {host.ip: host for host in world.hosts.values()}
        self.behaviours: dict[NodeId, Behaviour] = {}
        self.paused_at: dict[NodeId, Instant] = {}
        self._world = world
        self._open: dict[str, Disturbance] = {}  # name → still going on
        self._last_reset: dict[tuple[NodeId, NodeId], Instant] = {}

    def begin_disturbance(self, name: str, left: Sequence[NodeId], right: Sequence[NodeId]) -> None:
        if name not in self._open:
            disturbance = Disturbance(name, self._world.now, frozenset(left), frozenset(right))
            self._open[name] = disturbance
            self._world.history.disturbances.append(disturbance)
            self._world.trace.note(f"{self._world.now!r} {name}")

    def note_reset(self, one: NodeId, two: NodeId) -> None:
        """Excuse a pair that is reset again before a ping could be answered; once is no excuse."""
        now, pair = self._world.now, (min(one, two), max(one, two))
        self._world.history.breaks.append(Break(now, one, two))
        if now - self._last_reset.get(pair, 0.0) <= self._world.plan.health.ping_timeout:
            disturbance = Disturbance("resets", now, frozenset([one]), frozenset([two]), now)
            self._world.history.disturbances.append(disturbance)
        self._last_reset[pair] = now

    def end_disturbance(self, name: str) -> None:
        disturbance = self._open.pop(name, None)
        if disturbance is not None:
            disturbance.until = self._world.now

    def end_disturbances_of_mended_links(self) -> None:
        """End every block of which no link is blocked any more."""
        hosts, network = self._world.hosts, self._world.network
        for name, disturbance in list(self._open.items()):
            if name.startswith("block ") and not any(
                network.is_blocked(hosts[one].ip, hosts[two].ip)
                for one in disturbance.left
                for two in disturbance.right
            ):
                self.end_disturbance(name)

    def end_disturbances_of_good_links(self) -> None:
        """End every bad link of which all are good again."""
        hosts, network = self._world.hosts, self._world.network
        for name, disturbance in list(self._open.items()):
            if name.startswith(("link ", "narrow ")) and not any(
                network.quality_of(hosts[one].ip, hosts[two].ip).is_poor
                for one in disturbance.left
                for two in disturbance.right
            ):
                self.end_disturbance(name)


GRACE_MARGIN: Seconds = 2.0
"""For latency and jitter on top of the timers that a fault may set off."""


def limits_of(plan: WorldPlan) -> Limits:
    """Derive from the settings how long the nodes may take."""
    health, discovery = plan.health, plan.discovery
    grace = (
        health.ping_interval
        + (3 if health.enable_rerouting else 2) * health.ping_timeout
        + discovery.handshake_timeout
        + discovery.redial_max
        + GRACE_MARGIN
    )
    pings = (health.fail_count_threshold_not_active if health.fail_count_enabled else 0) + 1
    messaging = plan.messaging
    return Limits(
        notice=grace + (pings - 1) * (health.ping_interval + 3 * health.ping_timeout),
        patience=min(messaging.result_timeout, messaging.delivery_timeout),
        result=max(messaging.result_timeout, messaging.delivery_timeout) + GRACE_MARGIN,
        grace=grace,
        ping_timeout=health.ping_timeout,
        is_rerouting=health.enable_rerouting,
    )
