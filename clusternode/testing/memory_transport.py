"""A network in memory: whole agents in one process, on a virtual clock.

Fails as TCP does: a dial to where nobody listens is refused, a host that is down answers nothing,
a connection can be cut, and what was written before the cut may never arrive.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Final

import attrs
import trio

from clusternode.core.inputs import DialFailure
from clusternode.core.types import Address, Seconds
from clusternode.errors import AddressInUse
from clusternode.runtime.transport import DialError, Wire

EPHEMERAL_PORT_FIRST: Final = 49152  # RFC 6335 section 6

BUFFER_SIZE: Final = 256 * 1024
"""Bytes on the way in one direction before the sender has to wait, like a kernel's buffer."""


class _Flow:
    """The bytes on the way in one direction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_finished = False
        self.is_broken = False
        self._changed = trio.Event()

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> None:
        await self._changed.wait()


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection; made in pairs by `MemoryNetwork`."""

    def __init__(self, incoming: _Flow, outgoing: _Flow) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._is_closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        rest = bytes(data)
        while True:
            self._check(self._outgoing)
            if self._outgoing.is_finished:
                raise trio.ClosedResourceError("this end has sent its last byte")
            room = BUFFER_SIZE - len(self._outgoing.data)
            self._outgoing.data += rest[:room]
            rest = rest[room:]
            self._outgoing.change()
            if not rest:
                return
            await self._outgoing.wait()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._outgoing.data) >= BUFFER_SIZE and not self._outgoing.is_broken:
            await self._outgoing.wait()
        self._check(self._outgoing)

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check(self._outgoing)
        self._outgoing.is_finished = True
        self._outgoing.change()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        flow = self._incoming
        while not flow.data:
            self._check(flow)
            if flow.is_finished:
                return b""
            await flow.wait()
        size = len(flow.data) if max_bytes is None else max_bytes
        data = bytes(flow.data[:size])
        del flow.data[:size]
        flow.change()
        return data

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._outgoing.is_finished = True  # what was written still arrives
            self._outgoing.change()
            self._incoming.is_broken = True  # nobody reads it any more
            self._incoming.change()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """Break the connection; what is on the way is lost."""
        for flow in (self._incoming, self._outgoing):
            flow.is_broken = True
            flow.data.clear()
            flow.change()

    def _check(self, flow: _Flow) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this end is closed")
        if flow.is_broken:
            raise trio.BrokenResourceError("connection reset")


def memory_stream_pair() -> tuple[MemoryStream, MemoryStream]:
    """Return the two ends of a connection."""
    there, back = _Flow(), _Flow()
    return MemoryStream(back, there), MemoryStream(there, back)


@attrs.define(eq=False)
class _Pipe:
    """One connection: the hosts of its ends, and one end."""

    hosts: frozenset[str]
    end: MemoryStream


class MemoryNetwork:
    """Listeners by address. `transport(host)` is what the agent on that host uses."""

    def __init__(self) -> None:
        self.dialed = 0
        self._listeners: dict[Address, MemoryListener] = {}
        self._pipes: list[_Pipe] = []
        self._silent: set[frozenset[str]] = set()  # pairs of hosts that do not reach each other
        self._ports = itertools.count(EPHEMERAL_PORT_FIRST)

    def transport(self, host: str) -> MemoryTransport:
        return MemoryTransport(self, host)

    def cut(self, one: str, other: str) -> None:
        """Break the connections between two hosts, and let dials between them time out."""
        self._silent.add(frozenset((one, other)))
        self.reset(one, other)

    def heal(self, one: str, other: str) -> None:
        self._silent.discard(frozenset((one, other)))

    def reset(self, one: str, other: str) -> None:
        """Break the connections between two hosts, which may dial again at once."""
        hosts = frozenset((one, other))
        for pipe in self._pipes:
            if pipe.hosts == hosts:
                pipe.end.cut()
        self._pipes = [pipe for pipe in self._pipes if pipe.hosts != hosts]

    def is_silent(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._silent

    def listener_at(self, address: Address) -> MemoryListener | None:
        return self._listeners.get(address)

    def bind(self, address: Address) -> MemoryListener:
        if address.port == 0:
            address = attrs.evolve(address, port=next(self._ports))
        if address in self._listeners:
            raise AddressInUse(f"cannot listen on {address}: another agent listens there already")
        listener = self._listeners[address] = MemoryListener(self, address)
        return listener

    def unbind(self, address: Address) -> None:
        self._listeners.pop(address, None)

    def connect(self, host: str, listener: MemoryListener) -> Wire:
        here, there = memory_stream_pair()
        self._pipes.append(_Pipe(frozenset((host, listener.address.host)), here))
        self.dialed += 1
        listener.deliver(Wire(there, f"{host}:{next(self._ports)}"))
        return Wire(here, f"{listener.address.host}:{listener.address.port}")


class MemoryTransport:
    """What one host sees of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    async def dial(self, address: Address, timeout: Seconds) -> Wire:
        if self._network.is_silent(self._host, address.host):
            await trio.sleep(timeout)
            raise DialError(DialFailure.TIMEOUT, f"{address}: does not answer")
        await trio.lowlevel.checkpoint()
        listener = self._network.listener_at(address)
        if listener is None:
            raise DialError(DialFailure.REFUSED, f"{address}: connection refused")
        return self._network.connect(self._host, listener)

    async def listen(self, address: Address) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        return self._network.bind(address)


class MemoryListener:
    """A bound address of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: Address) -> None:
        self.address = address
        self._network = network
        # As many as the kernel holds for a TCP listener; nobody in a test dials so often at once.
        self._send, self._receive = trio.open_memory_channel[Wire](256)

    def deliver(self, wire: Wire) -> None:
        self._send.send_nowait(wire)

    async def accept(self) -> Wire:
        return await self._receive.receive()

    async def aclose(self) -> None:
        """Unbind; whoever is not accepted yet sees the connection close."""
        self._network.unbind(self.address)
        with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError):
            while True:
                await trio.aclose_forcefully(self._receive.receive_nowait().stream)
        self._receive.close()
        self._send.close()
        await trio.lowlevel.checkpoint()
