"""A node of our gateway in the place of a recorded OpenSIPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusternode.core.types import DeliveryId, NodeId, Tag
from clusternode.core.wire.messages import Request
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.codec import decode_untrusted
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.messages import (
    CACHE,
    Command,
    Generic,
    ModulePacket,
    RemoveNode,
    SharingTagActive,
)
from clusternode.gateways.opensips.replication import (
    read_cache_untrusted,
    read_location_untrusted,
)
from clusternode.gateways.opensips.settings import (
    BinUrl,
    MyNodeInfo,
    Neighbour,
    OpenSipsSettings,
)
from clusternode.simulation.opensips.gateway import GatewayHost
from tests.gateways.opensips.captures import BIN_PORT, address_of, node_of
from tests.gateways.opensips.replay import Act, Life, Sent
from tests.gateways.opensips.simulated_subject import answer


def url(node_id: int) -> BinUrl:
    return BinUrl("bin", address_of(node_id), BIN_PORT)


class GatewaySubject:
    """Our node, its clock and its TCP."""

    def __init__(self, life: Life, before: Mapping[str, Sequence[bytes]]) -> None:
        self.sent: list[Sent] = []
        self.now = 0.0
        self._life = life
        self._remotes: dict[int, int] = {}  # connection → node
        self._dialled: list[int] = []
        self._deliveries = 0
        self._before = before

    @property
    def unix_now(self) -> int:
        return int(self.now)

    def dial(self, connection: int, host: str, port: int) -> None:
        self._remotes[connection] = node_of((host, port))
        self._dialled.append(connection)

    def write(self, connection: int, data: bytes) -> None:
        self.sent.append(Sent(self.now, self._remotes[connection], decode_untrusted(data)))

    def close(self, connection: int) -> None:
        """Take note of nothing: our node closes what it has removed."""

    def start(self, at: float) -> None:
        self.now, own = at, self._life.node_id
        settings = OpenSipsSettings(
            cluster_id=1,
            my_node_id=own,
            my_node_info=MyNodeInfo(url(own), address_of(own), is_seed=own == 1),
            neighbor_node_info=(Neighbour(1, url(1)),) if own > 1 else (),
            priority=3,
            ping_interval=2.0,
            ping_timeout=0.55,  # answers wait for the recorded node's timer
            node_timeout=10.0,
            seed_fallback_interval=2.0,
            cache_collections=("c1",),
            usrloc=True,
            sharing_tags=(("vip", own == 1),),
        )
        self.host = GatewayHost(settings, self, self._take_effect)
        self.host.start()
        for other in range(1, 5):
            if other != own:
                self._remotes[-other] = other
                self.host.accepted(-other, (address_of(other), 40000))
        self._connect()

    def next_deadline(self) -> float | None:
        return self.host.next_deadline()

    def tick(self, at: float) -> None:
        self.now = max(self.now, at)
        self.host.tick()
        self._connect()

    def take(self, at: float, sender: int, data: bytes) -> None:
        self.now = at
        self.host.read(-sender, data)
        self._connect()

    def operate(self, at: float, act: Act) -> None:
        self.now = at
        self.host.act(lambda: self._operate(act))
        self._connect()

    def _operate(self, act: Act) -> None:
        node, targets = self.host.node, act.targets
        match act.packet:
            case Generic(text=text, tag=tag):
                to = [NodeId(str(target)) for target in targets]
                node.scripts.publish(self._delivery(), Tag(tag), text, to)
            case ModulePacket(capability=name) as packet if name == CACHE:
                assert node.cache is not None
                node.cache.write(read_cache_untrusted(packet))
            case ModulePacket() as packet:
                assert node.contacts is not None
                node.contacts.publish(read_location_untrusted(packet))
            case SharingTagActive(tag=tag):
                if not node.tags.is_active(tag):
                    node.tags.activate(tag, "MI command")
            case Command(name=name, parameters=parameters) if len(targets) == 1:
                node.commands.send(targets[0], name, parameters)
            case Command(name=name, parameters=parameters):
                node.commands.broadcast(name, parameters)
            case RemoveNode(node_id=node_id):
                node.remove(node_id)
            case None:
                self._by_hand(act)

    def _by_hand(self, act: Act) -> None:
        node = self.host.node
        match act.what:
            case "enable" | "disable":
                is_enabled = act.what == "enable"
                node.membership.set_enabled(self._life.node_id, is_enabled=is_enabled)
            case "capability on" | "capability off":
                node.capabilities.set_enabled(act.name, act.what == "capability on")
            case "data":
                for data in (self.host.node.cache, self.host.node.contacts):
                    assert data is not None
                    for chunk in self._before.get(data.name, ()):
                        data.apply_chunk_untrusted(chunk, data.version, self._life.node_id)
            case "sync":
                node.capabilities.resync(act.name)

    def _take_effect(self, effect: Effect) -> None:
        """Do what the recorded nodes' script does with a request."""
        if not isinstance(effect, effects.Arrived):
            return
        for message in effect.messages:
            if isinstance(message, Request):
                self._reply(effect.origin, message)

    def _reply(self, origin: NodeId, request: Request) -> None:
        text = answer(self._life.node_id, request.body)
        if text is not None:
            delivery, scripts = self._delivery(), self.host.node.scripts
            self.host.act(lambda: scripts.reply(delivery, origin, request.tag, text))

    def _delivery(self) -> DeliveryId:
        self._deliveries += 1
        return DeliveryId(self._deliveries)

    def _connect(self) -> None:
        while self._dialled:
            self.host.connected(self._dialled.pop(0))
