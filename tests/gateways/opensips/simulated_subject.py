"""A simulated OpenSIPS in the place of a recorded one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import assert_never

from clusternode.gateways.opensips.codec import decode_untrusted
from clusternode.gateways.opensips.messages import (
    Command,
    Generic,
    ModulePacket,
    RemoveNode,
    SharingTagActive,
)
from clusternode.simulation.opensips.links import Timing
from clusternode.simulation.opensips.node import SimulatedOpenSips
from clusternode.simulation.opensips.peers import Description
from clusternode.simulation.opensips.topology import Config
from clusternode.simulation.opensips.wire import Reader
from tests.gateways.opensips.captures import BIN_PORT, address_of, node_of
from tests.gateways.opensips.replay import Act, Life, Sent

TIMING = Timing(ping_interval=2.0, ping_timeout=0.5, node_timeout=10.0, seed_fallback_interval=2.0)
"""Of the recorded nodes."""
FAR: float = 1e12


def description(node_id: int) -> Description:
    return Description(f"bin:{address_of(node_id)}:{BIN_PORT}", address_of(node_id))


def answer(node_id: int, text: bytes) -> bytes | None:
    """Do what the recorded nodes' script does with a request."""
    return b"A%d:" % node_id + text if text.startswith(b"Q:") else None


class SimulatedSubject:
    """The node, its clock and its TCP; its timer goes off when the recorded node's did."""

    def __init__(self, life: Life, before: Mapping[str, Sequence[bytes]]) -> None:
        self.sent: list[Sent] = []
        self.now = 0.0
        self._life = life
        self._ticks = life.ticks()
        self._remotes: dict[int, int] = {}  # connection → node
        self._dialled: list[int] = []
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
        raise AssertionError(f"closed the connection with {self._remotes[connection]}")

    def start(self, at: float) -> None:
        self.now, own = at, self._life.node_id
        config = Config(
            node_id=own,
            description=description(own),
            neighbours=((1, description(1)),) if own > 1 else (),
            timing=TIMING,
            is_seed=own == 1,
        )
        rng = Random(1)
        self.node = SimulatedOpenSips(config, self, rng, script=lambda _, text: answer(own, text))
        self.node.start(wants_sync=not self._before)
        self.node.tags.configure("vip", is_active=own == 1)
        for other in range(1, 5):
            if other != own:
                self._remotes[-other] = other
                self.node.accepted(-other, (address_of(other), 40000))
        self._connect()

    def next_deadline(self) -> float | None:
        fallback = self.node.capabilities.next_check
        return min([fallback, *self._ticks[:1]])

    def tick(self, at: float) -> None:
        self.now = at
        is_timer = bool(self._ticks) and at >= self._ticks[0]
        if is_timer:
            self._ticks.pop(0)
        self.node.topology.next_tick = at if is_timer else FAR
        self.node.tick()
        self._connect()

    def take(self, at: float, sender: int, data: bytes) -> None:
        self.now = at
        self.node.read(-sender, data)
        self._connect()

    def operate(self, at: float, act: Act) -> None:
        self.now = at
        match act.packet:
            case Generic(text=text):
                if len(act.targets) > 1:
                    self.node.broadcast_request(text)
                else:
                    self.node.send_request(act.targets[0], text)
            case ModulePacket(capability=name, version=version, type=kind, body=body):
                self.node.capabilities.module_packet(name, kind, body)
                self.node.replicate(name, version, kind, body)
            case SharingTagActive(tag=tag):
                if tag not in self.node.tags.active:
                    self.node.activate_tag(tag)
            case Command(name=name, parameters=parameters):
                target = act.targets[0] if len(act.targets) == 1 else None
                texts = [parameter.encode() for parameter in parameters]
                self.node.send_command(target, name, *texts)
            case RemoveNode(node_id=node_id):
                self.node.remove_node(node_id)
            case None:
                self._by_hand(act)
            case other:
                assert_never(other)  # type: ignore[arg-type]  # a recording has no other acts
        self._connect()

    def _by_hand(self, act: Act) -> None:
        match act.what:
            case "enable" | "disable":
                self.node.set_status(act.what == "enable")
            case "capability on" | "capability off":
                self.node.capabilities.set_enabled(act.name, act.what == "capability on")
            case "data":
                for name, chunks in self._before.items():
                    for chunk in chunks:
                        self.node.capabilities.own[name].module.chunk(Reader(chunk))
            case "sync":
                self.node.capabilities.request(act.name)

    def _connect(self) -> None:
        while self._dialled:
            self.node.connected(self._dialled.pop(0))
