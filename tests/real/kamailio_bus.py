"""Buses of real Kamailio nodes on loopback addresses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import trio

from clusternode.testing.real_kamailio import Kamailio as RealKamailio
from clusternode.testing.real_kamailio import UserAgent, program

__all__ = [
    "Bus",
    "Kamailio",
    "UserAgent",
    "is_up",
    "program",
    "stopped_at_the_end",
    "until",
    "user_agent",
]

TEMPLATE = Path(__file__).with_name("kamailio.cfg.in")


@attrs.define(eq=False)
class Kamailio(RealKamailio):
    """A node with the configuration of the tests, where it is given no other."""

    text: str = attrs.Factory(TEMPLATE.read_text)


@attrs.define(eq=False)
class Bus:
    """The nodes of one bus; the first is the seed of the others."""

    nodes: list[Kamailio]

    @property
    def seed(self) -> Kamailio:
        return self.nodes[0]

    async def start(self) -> None:
        for node in self.nodes:
            node.start()
            await until(lambda node=node: is_up(node), 15.0)
        hosts = [node.host for node in self.nodes]
        await until(
            lambda: all(
                node.nodes().get(host) == "active" for node in self.nodes for host in hosts
            ),
            15.0,
        )

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def is_up(node: Kamailio) -> bool:
    assert node.process is not None
    assert node.process.poll() is None, node.log[-2000:]
    try:
        node.rpc("core.version", timeout=0.5)
    except OSError:
        return False
    return True


async def until(holds: Any, seconds: float) -> float:
    """Wait until something holds; return how long that took."""
    begin = trio.current_time()
    with trio.move_on_after(seconds):
        while not holds():  # noqa: ASYNC110  # what another process does tells nobody
            await trio.sleep(0.05)
        return trio.current_time() - begin
    raise AssertionError(f"not within {seconds:g} s")


@contextlib.asynccontextmanager
async def user_agent(own: str = "127.0.0.1") -> AsyncIterator[UserAgent]:
    agent = UserAgent(own)
    await agent.socket.bind((own, 0))
    with agent.socket:
        yield agent


@contextlib.contextmanager
def stopped_at_the_end(bus: Bus) -> Iterator[Bus]:
    try:
        yield bus
    finally:
        bus.stop()
