"""The world whose processes are nodes of the core and nothing else: equal seeds, equal runs."""

from __future__ import annotations

import random

import attrs

from clusternode.core.settings import NodeSettings
from clusternode.core.types import Incarnation
from clusternode.simulation.bundles import BundledConnections
from clusternode.simulation.connections import Connections
from clusternode.simulation.fidelity import wire_of
from clusternode.simulation.history import LifeFact
from clusternode.simulation.hosts import Host, LiveProcess
from clusternode.simulation.process import Process
from clusternode.simulation.world import CLUSTER, World


class ModelWorld(World):
    """All hosts, with a node of the core on each."""

    connections: Connections

    def _new_connections(self) -> Connections:
        wire = wire_of(self.plan.fidelity, random.Random(f"{self.seed}/wire"))
        kind = BundledConnections if self.plan.fidelity == "bundles" else Connections
        return kind(self, wire)

    def _new_process(self, host: Host, fact: LifeFact) -> LiveProcess:
        settings = self._settings(host)
        if not host.disk_error:
            host.incarnation = settings.incarnation
        return Process(self, host, settings, fact)

    def _settings(self, host: Host) -> NodeSettings:
        plan = self.plan
        drawn = self.wall_clock_ms(host) << 20 | self.rng.getrandbits(20)
        notification = plan.notification_of.get(host.node_id, plan.notification)
        return NodeSettings(
            node_id=plan.id_of.get(host.node_id, host.node_id),
            cluster=CLUSTER,
            incarnation=Incarnation(max(drawn, host.incarnation + 1)),
            address=host.address,
            nonce=self.rng.randbytes(16),
            channels=self.behaviour_of(host.node_id).channels,
            channel_settings=plan.channels,
            health=plan.health,
            discovery=attrs.evolve(plan.discovery, notification_addresses=tuple(notification)),
            messaging=plan.messaging,
        )
