"""The sockets of an OpenSIPS node: what is written, and how much of it at a time."""

from __future__ import annotations

import socket
from typing import Any

import attrs
import trio

from clusternode.gateways.opensips.network import IN_FLIGHT_MAX, WRITE_TIMEOUT, Network
from clusternode.gateways.opensips.settings import BinUrl, MyNodeInfo, OpenSipsSettings

PATIENCE = 20.0
URGENT = b"urgent"
DATA = b"d" * 100


@attrs.define(eq=False)
class Owner:
    """Counts what has been written."""

    written_frames: list[int] = attrs.Factory(lambda: [0, 0])
    is_closed: trio.Event = attrs.Factory(trio.Event)

    def accepted(self, *given: Any) -> None: ...
    def connected(self, *given: Any) -> None: ...
    def received(self, *given: Any) -> None: ...
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
