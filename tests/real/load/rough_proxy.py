"""A path that is worse than any cable: delays, stalls and cuts connections, at bytes from a seed.

    python rough_proxy.py SEED STATISTICS LISTEN=HOST:PORT …

Each LISTEN is a port of every address of this host, and what it leads to. At SIGTERM it writes what
it did to the file STATISTICS, and ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import socket
import struct
import sys
from collections import Counter
from pathlib import Path

import trio

DELAY_MAX = 0.004
STALL_MAX = 1.2
BYTES_BETWEEN_FAULTS = 3_000_000
"""On average, of one direction of a connection."""
CHUNK_MAX = 64 * 1024
STALL_SHARE = 0.6
"""Of all faults; the others are cuts."""
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: RST


class RoughProxy:
    """Carries connections, badly."""

    def __init__(self, seed: str) -> None:
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._numbers = itertools.count(1)

    async def serve(self, port: int, host: str, target: int) -> None:
        async def carry(near: trio.SocketStream) -> None:
            try:
                far = await trio.open_tcp_stream(host, target)
            except OSError:
                self.counts["refused"] += 1
                return
            await self._carry(near, far)

        await trio.serve_tcp(carry, port)

    async def _carry(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        number = next(self._numbers)
        self.counts["connections"] += 1
        async with near, far, trio.open_nursery() as nursery:
            for name, source, sink in (("there", near, far), ("back", far, near)):
                rng = random.Random(f"{self._seed} {number} {name}")
                nursery.start_soon(self._pump, rng, source, sink, nursery.cancel_scope)

    async def _pump(
        self,
        rng: random.Random,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        both: trio.CancelScope,
    ) -> None:
        """Bring bytes from one end to the other until one of them ends, or a cut is due."""
        left = int(rng.expovariate(1 / BYTES_BETWEEN_FAULTS))
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(rng.randint(1, CHUNK_MAX)):
                await trio.sleep(rng.uniform(0, DELAY_MAX))
                if len(data) < left:
                    left -= len(data)
                    await sink.send_all(data)
                    continue
                await sink.send_all(data[:left])
                if rng.random() >= STALL_SHARE:
                    self._cut(source, sink)
                    break
                self.counts["stalls"] += 1
                await trio.sleep(rng.uniform(0, STALL_MAX))
                await sink.send_all(data[left:])
                left = int(rng.expovariate(1 / BYTES_BETWEEN_FAULTS))
        both.cancel()

    def _cut(self, *ends: trio.SocketStream) -> None:
        self.counts["cuts"] += 1
        for end in ends:
            end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def main(seed: str, ports: list[str]) -> Counter[str]:
    proxy = RoughProxy(seed)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            for port in ports:
                listen, _, target = port.partition("=")
                host, _, number = target.rpartition(":")
                nursery.start_soon(proxy.serve, int(listen), host, int(number))
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    return proxy.counts


if __name__ == "__main__":
    counts = trio.run(main, sys.argv[1], sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(counts))
