"""The sockets of an OpenSIPS node: what is written, and how much of it at a time."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import attrs
import trio

from clusternode.gateways.opensips.codec import encode
from clusternode.gateways.opensips.messages import Ping
from clusternode.gateways.opensips.network import (
    CONNECTIONS_PER_HOST_MAX,
    IDLE_TIMEOUT,
    IN_FLIGHT_MAX,
    STRANGER_TIMEOUT,
    STRANGERS_MAX,
    WRITE_TIMEOUT,
    Network,
)
from clusternode.gateways.opensips.settings import BinUrl, MyNodeInfo, OpenSipsSettings

PATIENCE = 20.0
URGENT = b"urgent"
DATA = b"d" * 100


@attrs.define(eq=False)
class Owner:
    """Counts what has been written."""

    written_frames: list[int] = attrs.Factory(lambda: [0, 0])
    is_closed: trio.Event = attrs.Factory(trio.Event)
    members: list[str] = attrs.Factory(list)
    accepted_hosts: list[str] = attrs.Factory(list)
    refused_hosts: list[str] = attrs.Factory(list)

    def is_member(self, host: str) -> bool:
        return host in self.members

    def accepted(self, number: int, host: str, port: int) -> None:
        self.accepted_hosts.append(host)

    def refused(self, host: str, reason: str) -> None:
        self.refused_hosts.append(host)

    def connected(self, *given: Any) -> None: ...

    def received(self, number: int, frame: bytes) -> None:
        self.members.append(self.accepted_hosts[-1])  # as if it had introduced itself

    def misframed(self, *given: Any) -> None: ...

    def written(self, number: int, urgent: int, data: int) -> None:
        self.written_frames[0] += urgent
        self.written_frames[1] += data

    def closed(self, number: int) -> None:
        self.is_closed.set()


def make() -> Network:
    url = BinUrl("bin", "127.0.63.1", 0)
    return Network(OpenSipsSettings(cluster_id=1, my_node_id=1, my_node_info=MyNodeInfo(url)))


async def test_what_a_stalled_node_has_not_taken_in_is_bounded_and_urgent_frames_go_on(nursery):
    owner, network = Owner(), make()
    await nursery.start(network.run, owner)
    with socket.socket() as listener:
        # A small window that nobody reads stands for a link that has stalled.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.63.2", 0))
        listener.listen()
        host, port = listener.getsockname()
        network.dial(1, host, port, is_tls=False)
        for _ in range(600):
            network.send(1, DATA, is_urgent=False)
        with trio.fail_after(PATIENCE):
            while owner.written_frames[1] < IN_FLIGHT_MAX:  # noqa: ASYNC110  # real sockets
                await trio.sleep(0.002)
            network.send(1, URGENT, is_urgent=True)
            while not owner.written_frames[0]:  # noqa: ASYNC110
                await trio.sleep(0.002)
            stalled = owner.written_frames[1]

            stream = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
            async with stream:
                size = 0
                while size < 600 * len(DATA) + len(URGENT):
                    size += len(await stream.receive_some(65_536))

        assert IN_FLIGHT_MAX <= stalled < 2 * IN_FLIGHT_MAX
        assert owner.written_frames == [1, 600]


async def test_a_node_that_takes_nothing_for_too_long_is_left(nursery, autojump_clock):
    owner, network = Owner(), make()
    await nursery.start(network.run, owner)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.63.4", 0))
        listener.listen()
        network.dial(1, *listener.getsockname(), is_tls=False)
        for _ in range(600):
            network.send(1, DATA, is_urgent=False)
        with trio.fail_after(2 * WRITE_TIMEOUT):
            await owner.is_closed.wait()
    assert IN_FLIGHT_MAX <= owner.written_frames[1] < 600


async def test_a_refused_dial_is_told_at_once(nursery):
    owner, network = Owner(), make()
    await nursery.start(network.run, owner)
    with socket.socket() as free:
        free.bind(("127.0.63.3", 0))
        host, port = free.getsockname()
    network.dial(1, host, port, is_tls=False)
    with trio.fail_after(PATIENCE):
        await owner.is_closed.wait()


async def listening(nursery: trio.Nursery, owner: Owner) -> tuple[str, int]:
    with socket.socket() as free:
        free.bind(("127.0.63.1", 0))
        host, port = free.getsockname()
    url = BinUrl("bin", host, port)
    settings = OpenSipsSettings(cluster_id=1, my_node_id=1, my_node_info=MyNodeInfo(url))
    await nursery.start(Network(settings).run, owner)
    return host, port


async def test_strangers_leave_room_for_the_connections_of_members(nursery):
    owner = Owner(members=["127.0.63.200"])
    address = await listening(nursery, owner)
    hosts = [f"127.0.63.{100 + number // CONNECTIONS_PER_HOST_MAX}" for number in range(512)]
    with contextlib.ExitStack() as stack, trio.fail_after(PATIENCE):
        for host in [*hosts[: STRANGERS_MAX + 1], "127.0.63.200"]:
            stack.enter_context(socket.create_connection(address, source_address=(host, 0)))
        while "127.0.63.200" not in owner.accepted_hosts:  # noqa: ASYNC110  # real sockets
            await trio.sleep(0.002)
    assert len(owner.accepted_hosts) == STRANGERS_MAX + 1
    assert owner.refused_hosts == [hosts[STRANGERS_MAX]]


async def test_a_stranger_that_says_nothing_acceptable_is_closed_soon(nursery, autojump_clock):
    owner = Owner()
    began = trio.current_time()
    stream = await trio.open_tcp_stream(*await listening(nursery, owner))
    async with stream:
        assert await stream.receive_some() == b""
    await owner.is_closed.wait()
    assert STRANGER_TIMEOUT <= trio.current_time() - began < STRANGER_TIMEOUT + 1
    assert owner.refused_hosts == ["127.0.0.1"]


async def test_who_has_introduced_itself_may_be_silent_as_long_as_a_member(nursery, autojump_clock):
    owner = Owner()
    stream = await trio.open_tcp_stream(*await listening(nursery, owner))
    began = trio.current_time()
    async with stream:
        await stream.send_all(encode(Ping(1, 2, False)))
        assert await stream.receive_some() == b""
    assert IDLE_TIMEOUT <= trio.current_time() - began < IDLE_TIMEOUT + 1
    assert owner.refused_hosts == []
