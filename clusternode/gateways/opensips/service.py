"""The gateway in trio: owns one machine, performs its effects, drives its one timer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, assert_never

import trio

from clusternode.core.types import Address, Seconds
from clusternode.errors import PeerUnreachable
from clusternode.gateways.clockwork import Clockwork, unix_time
from clusternode.gateways.opensips import effects
from clusternode.gateways.opensips.bus import OpenSipsBus
from clusternode.gateways.opensips.effects import Effect
from clusternode.gateways.opensips.network import Network
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.settings import OpenSipsSettings
from clusternode.runtime.eventlog import EventLog
from clusternode.runtime.resolver import Resolver

logger = logging.getLogger(__name__)

LOOKUPS_MAX: Final = 8
"""Names that are looked up at a time."""
FAREWELL_TIME: Final[Seconds] = 0.2
"""After the last word: a connection that ends at once may take it along unread."""


class OpenSipsGateway:
    """A full member of one OpenSIPS cluster (`gateways.base.Gateway`)."""

    def __init__(
        self,
        name: str,
        settings: OpenSipsSettings,
        resolver: Resolver,
        *,
        unix_time: Callable[[], float] = unix_time,
    ) -> None:
        self.node = OpenSipsNode(name, settings, trio.current_time())
        self._bus = OpenSipsBus(self.node, self.perform)
        self._network = Network(settings)
        self._resolver = resolver
        self._clockwork = Clockwork(
            self.node.next_deadline,
            lambda now: self.perform(self.node.tick(now)),
            self._set_offset,
            unix_time,
        )
        self._log = EventLog()
        self._lookups = trio.CapacityLimiter(LOOKUPS_MAX)
        self._names: list[str] = []  # that are being looked up
        self._nursery: trio.Nursery | None = None

    @property
    def bus(self) -> OpenSipsBus:
        return self._bus

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join the cluster and take part until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._network.run, self)
            self.perform(self.node.start(self._clockwork.take_clock()))
            logger.info("node %s of cluster %s", self.node.node_id, self._bus.name)
            task_status.started()
            await self._clockwork.run()

    async def leave(self) -> None:
        """Tell each neighbour that our links are down."""
        self.perform(self.node.leave(trio.current_time()))
        await self._network.flushed()
        await trio.sleep(FAREWELL_TIME)

    def _set_offset(self, offset: float) -> None:
        self.node.context.unix_offset = offset

    # --- what the network says (network.Owner) --------------------------------------------------

    def accepted(self, number: int, host: str, port: int) -> None:
        self.perform(self.node.accepted(trio.current_time(), number, host, port))

    def is_member(self, host: str) -> bool:
        return self.node.membership.topology.has_address(host)

    def refused(self, host: str, reason: str) -> None:
        self.perform(self.node.refused(trio.current_time(), host, reason))

    def connected(self, number: int) -> None:
        self.perform(self.node.connected(trio.current_time(), number))

    def received(self, number: int, frame: bytes) -> None:
        self.perform(self.node.received(trio.current_time(), number, frame))

    def misframed(self, number: int, reason: str) -> None:
        self.perform(self.node.misframed(trio.current_time(), number, reason))

    def written(self, number: int, urgent: int, data: int) -> None:
        self.perform(self.node.written(trio.current_time(), number, urgent, data))

    def closed(self, number: int) -> None:
        self.perform(self.node.closed(trio.current_time(), number))

    # --- what the machine wants -----------------------------------------------------------------

    def perform(self, wanted: list[Effect]) -> None:
        """Do what the machine asks for, in order, and see to its timer."""
        for effect in wanted:
            match effect:
                case effects.Send():
                    self._network.send(effect.connection, effect.frame, is_urgent=effect.is_urgent)
                case effects.Dial():
                    self._network.dial(
                        effect.connection, effect.host, effect.port, is_tls=effect.is_tls
                    )
                case effects.Close():
                    self._network.close(effect.connection)
                case effects.Resolve():
                    self._look_up(effect.host)
                case effects.Raise():
                    self._log.note(effect.event)
                    self._bus.observed(effect.event)
                case (
                    effects.Arrived()
                    | effects.Destined()
                    | effects.Settled()
                    | effects.Asked()
                    | effects.Replied()
                    | effects.Finished()
                ):
                    self._bus.told(effect)
                case _:
                    assert_never(effect)
        self._clockwork.rearm()

    def _look_up(self, host: str) -> None:
        if host not in self._names:
            assert self._nursery is not None, "the gateway runs"
            self._names.append(host)
            self._nursery.start_soon(self._resolve, host)

    async def _resolve(self, host: str) -> None:
        try:
            async with self._lookups:
                found = await self._resolver.resolve(Address("tcp", host, 0))
            addresses = [each.address.host for each in found]
        except PeerUnreachable as error:
            self._log.warn_about(host, "%s", error)
            addresses = []
        self._names.remove(host)
        self.perform(self.node.resolved(trio.current_time(), host, addresses))
