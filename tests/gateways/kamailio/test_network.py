"""Two gateways on real sockets of loopback: a bus without any Kamailio."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from clusternode.bus.interface import Arrivals
from clusternode.core.inputs import ResolvedAddress
from clusternode.core.types import Address, ResultCode
from clusternode.errors import AddressInUse, ConfigError, ResolveError
from clusternode.gateways.kamailio.service import KamailioGateway
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress


class Taker:
    """Says 200 to everything and remembers it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.events: list[Any] = []

    def arrived(self, arrivals: Arrivals) -> None:
        for ticket, message in arrivals.items:
            self.bodies.append(message.body)
            arrivals.finish([(ticket, ResultCode.OK)])

    def observed(self, bus: Any, event: Any) -> None:
        self.events.append(event)


class TableResolver:
    """Names as a table; what is not in it does not resolve."""

    def __init__(self, **hosts: list[str]) -> None:
        self.hosts = hosts

    async def resolve(self, name: Address) -> list[ResolvedAddress]:
        await trio.lowlevel.checkpoint()
        found = self.hosts.get(name.host.partition(".")[0], [])
        if not found:
            raise ResolveError(f"{name.host}: no such name")
        return [ResolvedAddress(Address("tcp", host, name.port)) for host in found]


def free_port(host: str) -> int:
    with socket.socket() as taken:
        taken.bind((host, 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def running(
    own: PeerAddress, seeds: list[NamedAddress], resolver: TableResolver
) -> AsyncIterator[tuple[KamailioGateway, Taker]]:
    settings = KamailioSettings(
        server_address=own, notification_address=tuple(seeds), ping_interval=1.0, ping_timeout=0.9
    )
    gateway = KamailioGateway("kamailio", settings, resolver)
    taker = Taker()
    gateway.bus.attach(taker)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        yield gateway, taker
        nursery.cancel_scope.cancel()


async def eventually(holds: Any) -> None:
    with trio.fail_after(10):
        while not holds():  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_two_gateways_find_each_other_talk_and_part(transport):
    first = PeerAddress(transport, "127.0.7.1", free_port("127.0.7.1"))
    second = PeerAddress(transport, "127.0.7.2", free_port("127.0.7.2"))
    resolver = TableResolver(first=["127.0.7.1"])
    seed = NamedAddress(transport, "first.example.org", first.port)

    async with running(first, [], resolver) as (one, heard):
        async with running(second, [seed], resolver) as (two, _):
            await eventually(
                lambda: (
                    len(one.node.membership.members.active()) == 1
                    and len(two.node.membership.members.active()) == 1
                )
            )
            sent = [two.bus.broadcast("chan", f"{n}") for n in range(300)]
            results = [await each for each in sent]
            big = await one.bus.send("chan", second.node_id, b"x" * 60_000)
            await two.leave()

            assert results == [{first.node_id: ResultCode.OK}] * 300
            assert sorted(heard.bodies) == sorted(b"%d" % n for n in range(300))
            assert big == {second.node_id: ResultCode.OK}
        assert [m.status for m in one.bus.members() if not m.local] == ["left"]
        await eventually(lambda: not one.node.membership.members.visible())


async def test_a_name_that_does_not_resolve_is_said_and_asked_for_again():
    own = PeerAddress("udp", "127.0.7.3", free_port("127.0.7.3"))
    seed = NamedAddress("udp", "nobody.example.org", 5060)

    async with running(own, [seed], TableResolver()) as (gateway, taker):
        await eventually(lambda: taker.events)
        [row] = gateway.bus.snapshot().addresses

        assert taker.events[0].NAME == "E_CLUSTERNODE_ADDRESS_UNREACHABLE"
        assert (row.state, row.error) == ("unresolved", "nobody.example.org: no such name")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_an_address_that_is_taken_or_not_ours_is_said(transport):
    port = free_port("127.0.7.4")
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.7.4", port))
        if transport == "tcp":
            taken.listen()
        for host, error in (("127.0.7.4", AddressInUse), ("192.0.2.1", ConfigError)):
            own = PeerAddress(transport, host, port)
            settings = KamailioSettings(server_address=own)
            gateway = KamailioGateway("kamailio", settings, TableResolver())
            with pytest.raises(BaseExceptionGroup) as raised:
                await gateway.run()
            assert raised.group_contains(error)
