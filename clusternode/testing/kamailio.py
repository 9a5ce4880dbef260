"""A simulated Kamailio on a UDP socket of this machine, with a shared table and a script.

For tests and for `clusternode demo --bridge` where no real one is installed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from random import Random
from typing import Final

import trio

from clusternode.core.types import Seconds
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.effects import Answer, Effect, Send, Source
from clusternode.gateways.kamailio.peer import SimulatedKamailio
from clusternode.gateways.kamailio.replication import (
    HTABLE_CHANNEL,
    USRLOC_CHANNEL,
    Contact,
    Delete,
    Htable,
    Set,
    Value,
    encode_contact,
    encode_htable,
    parse_htable_untrusted,
    parse_usrloc_untrusted,
)
from clusternode.gateways.kamailio.translate import LIST_CONTENT_TYPE, PeerAddress

DATAGRAM_SIZE_MAX: Final = 65_535
PING_INTERVAL: Final[Seconds] = 1.0
FR_TIMER: Final[Seconds] = 4.0

Script = Callable[[str, bytes], tuple[int, str]]


class LocalKamailio:
    """One node: keeps the table of its bus and the contacts, as the modules htable and usrloc do.

    Args:
        host: Its own IP address, such as 127.0.60.1.
        seed: The host of another node of the bus; None for the first.
        script: Answers messages on other channels, as a kamailio.cfg does.
    """

    def __init__(
        self, host: str, seed: str | None = None, *, port: int = 5060, script: Script | None = None
    ) -> None:
        self.address = PeerAddress("udp", host, port)
        self.table: dict[str, Value] = {}
        self.contacts: dict[str, str] = {}  # aor → contact
        seeds = () if seed is None else (PeerAddress("udp", seed, port),)
        self.node = SimulatedKamailio(
            self.address,
            seeds,
            trio.current_time(),
            Random(host),
            ping_interval=PING_INTERVAL,
            fr_timer=FR_TIMER,
            script=self._take,
        )
        self._script = script
        self._socket = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._outgoing, self._posts = trio.open_memory_channel[tuple[bytes, str, int]](10_000)

    @property
    def statuses(self) -> dict[str, str]:
        """Host → status of the nodes that it knows."""
        return {address.host: status for address, status in self.node.statuses.items()}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the bus until cancelled."""
        with self._socket:
            await self._socket.bind((self.address.host, self.address.port))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                nursery.start_soon(self._keep_time)
                self._carry(self.node.start(trio.current_time()))
                task_status.started()
                while True:
                    data, (host, port) = await self._socket.recvfrom(DATAGRAM_SIZE_MAX)
                    now = trio.current_time()
                    self._carry(self.node.receive(now, data, Source(host, port)))

    def broadcast(self, channel: str, body: bytes, content_type: str = LIST_CONTENT_TYPE) -> None:
        """dmq_bcast_message: what each node has answered comes into `node.results`."""
        self._carry(self.node.broadcast(trio.current_time(), channel, body, content_type))

    def set(self, table: str, key: str, value: Value) -> None:
        """$sht(table=>key) = value."""
        self.table[key] = value
        self.broadcast(HTABLE_CHANNEL, encode_htable(Set(table, key, value)))

    def register(self, contact: Contact) -> None:
        """save("location"), or its end, as dmq_usrloc replicates it."""
        self._keep(contact)
        self.broadcast(USRLOC_CHANNEL, encode_contact(contact))

    def _take(self, channel: str, body: bytes) -> tuple[int, str]:
        try:
            if channel == HTABLE_CHANNEL:
                self._change(parse_htable_untrusted(body))
            elif channel == USRLOC_CHANNEL:
                for contact in parse_usrloc_untrusted(body):
                    self._keep(contact)
            elif self._script is not None:
                return self._script(channel, body)
            else:
                return 404, "User Not Found"
        except RemoteProtocolError:
            return 400, "Invalid"
        return 200, "OK"

    def _change(self, message: Htable) -> None:
        match message:
            case Set(_, key, value):
                self.table[key] = value
            case Delete(_, key):
                self.table.pop(key, None)
            case _:  # lifetimes and dumps are not simulated
                return

    def _keep(self, contact: Contact) -> None:
        aor = str(contact.fields.get("aor", ""))
        if contact.action == "remove":
            self.contacts.pop(aor, None)
        elif contact.action == "update":
            self.contacts[aor] = str(contact.fields.get("c", ""))

    # --- the network ----------------------------------------------------------------------------

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outgoing.send_nowait((effect.data, effect.address.host, effect.address.port))
            elif isinstance(effect, Answer):
                self._outgoing.send_nowait((effect.data, effect.to.host, effect.to.port))

    async def _send(self) -> None:
        async for data, host, port in self._posts:
            try:
                await self._socket.sendto(data, (host, port))
            except OSError:
                continue  # nobody is there; the timers of the node notice

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep_until(max(self.node.next_deadline(), trio.current_time() + 0.02))
            self._carry(self.node.tick(trio.current_time()))
