"""Every back end does what `clusternode.testing.backends` says, with real peers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from clusternode.backends.flatstore_format import LineFormat
from clusternode.testing.backends import BACKEND_CHECKS, Peer, backend_world
from tests.conformance import backend_peers as peers

KINDS: dict[str, Callable[[trio.Nursery, Path], Peer]] = {
    "tcp-notifications": lambda nursery, path: peers.StreamPeer(
        nursery, "tcp", reliable=False, directory=path
    ),
    "tcp-reliable": lambda nursery, path: peers.StreamPeer(
        nursery, "tcp", reliable=True, directory=path
    ),
    "unix-stream": lambda nursery, path: peers.StreamPeer(
        nursery, "unix", reliable=False, directory=path
    ),
    "unix-stream-reliable": lambda nursery, path: peers.StreamPeer(
        nursery, "unix", reliable=True, directory=path
    ),
    "unix-datagram": lambda nursery, path: peers.DatagramPeer("unix", path),
    "udp": lambda nursery, path: peers.DatagramPeer("udp", path),
    "http": lambda nursery, path: peers.HttpPeer(nursery),
    "flatstore-values": lambda nursery, path: peers.FilePeer(path, LineFormat()),
    "flatstore-json": lambda nursery, path: peers.FilePeer(
        path, LineFormat(is_json=True), "?format=json"
    ),
    "exec": lambda nursery, path: peers.ProgramPeer(path),
    "channel": lambda nursery, path: peers.ChannelPeer(),
    "log": lambda nursery, path: peers.LogPeer(),
}
NEEDS_DRAINING = {"unix-datagram"}
"""Whose peer must read meanwhile: the kernel queues few datagrams of a unix socket."""


@pytest.fixture(params=KINDS)
async def peer(request, nursery, tmp_path) -> AsyncIterator[Peer]:
    made = KINDS[request.param](nursery, tmp_path)
    if request.param in NEEDS_DRAINING:
        nursery.start_soon(read_on, made)
    yield made
    if not isinstance(made, peers.ProgramPeer):
        await made.stop()


async def read_on(peer: Peer) -> None:
    while True:
        peer.received()
        await trio.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
async def test_a_back_end_keeps_its_promises(peer, check):
    async with backend_world({"voip": peer}) as world:
        await check(world, peer)
