"""A simulated OpenSIPS on TCP sockets of this machine.

For tests and for `clusternode demo --bridge`; what it decides is `clusternode.simulation.opensips`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Final

import attrs
import trio

from clusternode.core.types import Instant, Seconds
from clusternode.simulation.opensips.links import Timing
from clusternode.simulation.opensips.node import Script, SimulatedOpenSips, no_script
from clusternode.simulation.opensips.peers import Description
from clusternode.simulation.opensips.topology import Config

PORT: Final = 5566
READ_SIZE: Final = 65_536
CONNECT_TIMEOUT: Final[Seconds] = 1.0
UNWRITTEN_MAX: Final = 10_000
"""Messages that wait for one connection; a slow one is closed, as by proto_bin."""
TIMER_STEP: Final[Seconds] = 0.01


@attrs.define(eq=False)
class _Connection:
    outgoing: trio.MemorySendChannel[bytes]
    waiting: trio.MemoryReceiveChannel[bytes]
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class LocalOpenSips:
    """One node: `bin:HOST:5566`; its machine is this process.

    Args:
        node_id: Its id, from 1 on.
        host: Its own IP address, such as 127.0.61.1.
        neighbours: Id and host of the nodes that it begins with.
        script: What its event route for requests replies.
    """

    def __init__(
        self,
        node_id: int,
        host: str,
        neighbours: Sequence[tuple[int, str]] = (),
        *,
        script: Script = no_script,
        timing: Timing | None = None,
    ) -> None:
        config = Config(
            node_id=node_id,
            description=_description(host),
            neighbours=tuple((number, _description(each)) for number, each in neighbours),
            timing=timing or Timing(),
            is_seed=not neighbours,
        )
        self.host = host
        self._connections: dict[int, _Connection] = {}
        self._accepted = 0
        self._nursery: trio.Nursery | None = None
        self.node = SimulatedOpenSips(config, self, Random(host), script=script)

    # --- the machine that the node runs on ------------------------------------------------------

    @property
    def now(self) -> Instant:
        return trio.current_time()

    @property
    def unix_now(self) -> int:
        return int(datetime.now(UTC).timestamp())

    def dial(self, connection: int, host: str, port: int) -> None:
        """Connect from our own host, in a task of its own."""
        assert self._nursery is not None, "it runs"
        self._connections[connection] = _Connection(*trio.open_memory_channel[bytes](UNWRITTEN_MAX))
        self._nursery.start_soon(self._dial, connection, host, port)

    def write(self, connection: int, data: bytes) -> None:
        known = self._connections.get(connection)
        if known is not None:
            try:
                known.outgoing.send_nowait(data)
            except trio.WouldBlock:
                known.scope.cancel()

    def close(self, connection: int) -> None:
        known = self._connections.pop(connection, None)
        if known is not None:
            known.scope.cancel()

    # --- its life -------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the cluster until cancelled; started when it listens."""
        listener = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listener.bind((self.host, PORT))
            listener.listen()
            async with trio.open_nursery() as self._nursery:
                self.node.start()
                self._nursery.start_soon(self._keep_time)
                task_status.started()
                while True:
                    stream, remote = await listener.accept()
                    self._accepted += 1
                    number = -self._accepted
                    channels = trio.open_memory_channel[bytes](UNWRITTEN_MAX)
                    self._connections[number] = _Connection(*channels)
                    self.node.accepted(number, (remote[0], remote[1]))
                    self._nursery.start_soon(self._serve, number, trio.SocketStream(stream))

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep_until(max(self.node.next_deadline(), self.now + TIMER_STEP))
            self.node.tick()

    async def _dial(self, number: int, host: str, port: int) -> None:
        raw = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                await raw.bind((self.host, 0))
                await raw.connect((host, port))
        except (OSError, trio.TooSlowError):
            raw.close()
            self._ended(number)
            return
        if number not in self._connections:  # closed meanwhile
            raw.close()
            return
        self.node.connected(number)
        await self._serve(number, trio.SocketStream(raw))

    async def _serve(self, number: int, stream: trio.SocketStream) -> None:
        known = self._connections.get(number)
        if known is None:
            await trio.aclose_forcefully(stream)
            return
        try:
            with known.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_all, known, stream)
                    while data := await stream.receive_some(READ_SIZE):
                        self.node.read(number, data)
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other end has gone
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            self._ended(number)

    async def _write_all(self, known: _Connection, stream: trio.SocketStream) -> None:
        async for data in known.waiting:
            await stream.send_all(data)

    def _ended(self, number: int) -> None:
        if self._connections.pop(number, None) is not None:
            self.node.closed(number)


def _description(host: str) -> Description:
    return Description(f"bin:{host}:{PORT}")
