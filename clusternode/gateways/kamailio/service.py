"""The gateway in trio: owns one machine, performs its effects, drives its one timer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Final, assert_never

import trio

from clusternode.core.types import Address
from clusternode.errors import PeerUnreachable
from clusternode.gateways.clockwork import Clockwork, unix_time
from clusternode.gateways.kamailio import effects
from clusternode.gateways.kamailio.bus import KamailioBus
from clusternode.gateways.kamailio.effects import Effect, Source
from clusternode.gateways.kamailio.network import Network, make_network
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress
from clusternode.runtime.eventlog import EventLog
from clusternode.runtime.resolver import Resolver

logger = logging.getLogger(__name__)

LOOKUPS_MAX: Final = 8
"""Names that are looked up at a time."""


class KamailioGateway:
    """A full member of one DMQ bus (`gateways.base.Gateway`)."""

    def __init__(
        self,
        name: str,
        settings: KamailioSettings,
        resolver: Resolver,
        *,
        network: Network | None = None,
        unix_time: Callable[[], float] = unix_time,
    ) -> None:
        now = trio.current_time()
        rng = Random(SystemRandom().getrandbits(64))
        self.node = KamailioNode(name, settings, now, rng)
        self._bus = KamailioBus(name, self.node, self.perform)
        self._network = network or make_network(settings)
        self._resolver = resolver
        self._clockwork = Clockwork(
            self.node.next_deadline,
            lambda now: self.perform(self.node.tick(now)),
            self._set_offset,
            unix_time,
        )
        self._log = EventLog()
        self._lookups = trio.CapacityLimiter(LOOKUPS_MAX)
        self._nursery: trio.Nursery | None = None

    @property
    def bus(self) -> KamailioBus:
        return self._bus

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join the bus and take part until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._network.run, self._received, self._send_failed)
            self.perform(self.node.start(self._clockwork.take_clock()))
            logger.info("node %s of bus %s", self.node.own.uri, self._bus.name)
            task_status.started()
            await self._clockwork.run()

    async def leave(self) -> None:
        """Tell each node that we go, and wait until each has answered or not."""
        left = trio.Event()
        self.perform(self.node.leave(trio.current_time(), left.set))
        await left.wait()

    def _set_offset(self, offset: float) -> None:
        self.node.unix_offset = offset

    def _received(self, data: bytes, source: Source) -> None:
        self.perform(self.node.receive(trio.current_time(), data, source))

    def _send_failed(self, branch: str) -> None:
        self.perform(self.node.send_failed(trio.current_time(), branch))

    def perform(self, wanted: list[Effect]) -> None:
        """Do what the machine asks for, in order, and see to its timer."""
        for effect in wanted:
            match effect:
                case effects.Send():
                    self._network.send(effect.address, effect.data, effect.branch)
                case effects.Answer():
                    self._network.answer(effect.to, effect.data)
                case effects.Arrived():
                    self._bus.arrived(effect)
                case effects.Settled():
                    self._bus.settled(effect)
                case effects.Destined():
                    self._bus.destined(effect)
                case effects.Raise():
                    self._log.note(effect.event)
                    self._bus.observed(effect.event)
                case effects.Asked():
                    self._bus.asked(effect)
                case effects.Replied():
                    self._bus.replied(effect)
                case effects.Resolve():
                    assert self._nursery is not None, "the gateway runs"
                    self._nursery.start_soon(self._resolve, effect)
                case _:
                    assert_never(effect)
        self._clockwork.rearm()

    async def _resolve(self, wanted: effects.Resolve) -> None:
        name = wanted.name
        scheme = "srv" if wanted.is_service else "tcp"
        question = Address(scheme, name.host, 0 if wanted.is_service else name.port)
        try:
            async with self._lookups:
                found = await self._resolver.resolve(question)
        except PeerUnreachable as error:
            self._log.warn_about(name.host, "%s", error)
            self.perform(self.node.resolve_failed(trio.current_time(), name, str(error)))
            return
        addresses = [_as_peer(name, each.address) for each in found]
        usable = [address for address in addresses if address.is_ipv4]
        self.perform(self.node.resolved(trio.current_time(), name, usable))


def _as_peer(name: NamedAddress, found: Address) -> PeerAddress:
    return PeerAddress(name.transport, found.host, found.port)
