"""The sockets of a node of an OpenSIPS cluster: TCP, or TLS for `bins:`. No decisions here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import logging
import math
import sys
import termios
from collections import deque
from typing import Final, Protocol

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import AddressInUse, ConfigError, RemoteProtocolError
from clusternode.gateways.opensips.codec import FrameReader
from clusternode.gateways.opensips.settings import OpenSipsSettings
from clusternode.gateways.tls import TlsContexts, make_contexts

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final[Seconds] = 5.0
"""For a connection and its TLS handshake."""
WRITE_TIMEOUT: Final[Seconds] = 5.0
"""How long the other end may take nothing before its connection is closed."""
IDLE_TIMEOUT: Final[Seconds] = 900.0
"""How long an accepted connection may say nothing: fifteen pauses of a node that is down."""
STRANGER_TIMEOUT: Final[Seconds] = 10.0
"""For an introduction, and the look-up of its name, on a connection from no node's address."""
CONNECTIONS_MAX: Final = 512
"""Accepted at a time: four for each node of a full cluster."""
CONNECTIONS_PER_HOST_MAX: Final = 64
"""Of those from one address, so that one host cannot keep all others out."""
STRANGERS_MAX: Final = CONNECTIONS_MAX // 2
"""Of those from addresses of no node: the rest is for members, two for each and ours to them."""
READ_SIZE: Final = 16_384
"""So that what one read brings does not keep the pings of others waiting."""
WRITE_SIZE: Final = 65_536
"""Frames are written together up to this; each goes in one call."""
IN_FLIGHT_MAX: Final = 150
"""Frames of data that the other end's kernel has not acknowledged: half of what 4.0 loses at.

The pace does not help where TCP itself has stalled, for what was written meanwhile arrives at once.
"""
IN_FLIGHT_PAUSE: Final[Seconds] = 0.005
"""Until the kernel is asked again."""
STREAM_ERRORS: Final = (
    OSError,  # and ssl.SSLError
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    RemoteProtocolError,
)
"""What ends one connection and nothing else."""


class Owner(Protocol):
    """Who is told what happens on the connections."""

    def is_member(self, host: str) -> bool: ...
    def accepted(self, number: int, host: str, port: int) -> None: ...
    def refused(self, host: str, reason: str) -> None: ...
    def connected(self, number: int) -> None: ...
    def received(self, number: int, frame: bytes) -> None: ...
    def misframed(self, number: int, reason: str) -> None: ...
    def written(self, number: int, urgent: int, data: int) -> None: ...
    def closed(self, number: int) -> None: ...


@attrs.define(eq=False)
class _Wire:
    """One connection, and the frames that wait to be written."""

    number: int
    host: str
    urgent: deque[bytes] = attrs.Factory(deque)
    data: deque[bytes] = attrs.Factory(deque)
    news: trio.Event = attrs.Factory(trio.Event)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    written_bytes: int = 0
    in_flight: int = 0
    """Frames of data that may not have arrived."""
    _flown: deque[tuple[int, int]] = attrs.Factory(deque)  # (where they end, how many)

    def batch(self, unacknowledged: int) -> tuple[bytes, int, int]:
        """Take what is written next, and how many frames of each kind that is.

        `unacknowledged` are the bytes that have not arrived; beyond `IN_FLIGHT_MAX` data waits.
        """
        while self._flown and self._flown[0][0] <= self.written_bytes - unacknowledged:
            self.in_flight -= self._flown.popleft()[1]
        frames: list[bytes] = []
        size = urgent = data = 0
        while self.urgent and size + len(self.urgent[0]) <= WRITE_SIZE:
            frames.append(self.urgent.popleft())
            size += len(frames[-1])
            urgent += 1
        room = IN_FLIGHT_MAX - self.in_flight
        while self.data and data < room and size + len(self.data[0]) <= WRITE_SIZE:
            frames.append(self.data.popleft())
            size += len(frames[-1])
            data += 1
        self.written_bytes += size
        if data:
            self.in_flight += data
            self._flown.append((self.written_bytes, data))
        return b"".join(frames), urgent, data


def _unacknowledged(stream: trio.SocketStream) -> int:
    """Return how many bytes of a connection have not arrived, where the system says so (Linux)."""
    with contextlib.suppress(OSError):
        answer = fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int.from_bytes(answer, sys.byteorder)
    return 0


class Network:
    """One listener, a connection of our own to each node, and those that nodes open to us."""

    def __init__(self, settings: OpenSipsSettings) -> None:
        self._listen = settings.listen
        url = settings.my_node_info.url
        # OpenSIPS drops what a node sends from another address than that of its url.
        self._local_address = url.host if url.is_numeric else None
        self._tls: TlsContexts | None = None
        if settings.tls_certificate and settings.tls_key and settings.tls_ca:
            self._tls = make_contexts(
                "opensips", settings.tls_certificate, settings.tls_key, settings.tls_ca
            )
        self._wires: dict[int, _Wire] = {}
        self._hosts: dict[str, int] = {}  # address → accepted connections
        self._accepted = 0
        self._nursery: trio.Nursery | None = None
        self._owner: Owner | None = None

    async def run(
        self, owner: Owner, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen and serve until cancelled.

        Raises:
            AddressInUse, ConfigError: The address cannot be bound.
        """
        self._owner = owner
        host = self._listen.host
        try:
            listeners = await trio.open_tcp_listeners(self._listen.port, host=host)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"{self._listen}: something else listens there") from None
            expected = f"an address of this host ({error.strerror})"
            raise ConfigError("gateway.opensips.socket", str(self._listen), expected) from None
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(trio.serve_listeners, self._serve, listeners)
            task_status.started()

    # --- what the owner wants -------------------------------------------------------------------

    def dial(self, number: int, host: str, port: int, *, is_tls: bool) -> None:
        assert self._nursery is not None, "the network runs"
        wire = self._wires[number] = _Wire(number, host)
        self._nursery.start_soon(self._dial, wire, host, port, is_tls)

    def send(self, number: int, frame: bytes, *, is_urgent: bool) -> None:
        wire = self._wires.get(number)
        if wire is not None:
            (wire.urgent if is_urgent else wire.data).append(frame)
            wire.news.set()

    def close(self, number: int) -> None:
        """End a connection; `closed` is not called for it."""
        wire = self._wires.pop(number, None)
        if wire is not None:
            wire.scope.cancel()

    async def flushed(self) -> None:
        """Wait until everything urgent has been written."""
        for wire in list(self._wires.values()):
            while wire.urgent and wire.number in self._wires:
                await trio.lowlevel.checkpoint()

    # --- connections ----------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # it has gone already
            await trio.aclose_forcefully(stream)
            return
        host = _canonical(host)
        assert self._owner is not None, "the network runs"
        if self._is_crowded(host):
            self._owner.refused(host, "too many connections")
            await trio.aclose_forcefully(stream)
            return
        self._accepted -= 1
        wire = self._wires[self._accepted] = _Wire(self._accepted, host)
        if not self._owner.is_member(host):
            wire.scope.deadline = trio.current_time() + STRANGER_TIMEOUT
        self._hosts[host] = self._hosts.get(host, 0) + 1
        self._owner.accepted(wire.number, host, port)
        try:
            with wire.scope:
                is_tls = self._listen.is_tls
                await self._talk(stream, wire, is_tls=is_tls, is_server=True)
            if wire.scope.cancelled_caught and wire.number in self._wires:
                self._owner.refused(host, "a connection of no node, which did not become one")
        except* STREAM_ERRORS as group:
            logger.debug("connection from %s: %s", host, group.exceptions)
        finally:
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
            self._ended(wire)
            await trio.aclose_forcefully(stream)

    def _is_crowded(self, host: str) -> bool:
        """Tell whether there is no room for one more connection from an address."""
        assert self._owner is not None, "the network runs"
        is_full = len(self._wires) >= CONNECTIONS_MAX
        if is_full or self._hosts.get(host, 0) >= CONNECTIONS_PER_HOST_MAX:
            return True
        is_member = self._owner.is_member
        if is_member(host):
            return False
        strangers = sum(count for each, count in self._hosts.items() if not is_member(each))
        return strangers >= STRANGERS_MAX

    async def _dial(self, wire: _Wire, host: str, port: int, is_tls: bool) -> None:
        stream: trio.SocketStream | None = None
        try:
            with wire.scope:
                with trio.fail_after(CONNECT_TIMEOUT):
                    stream = await trio.open_tcp_stream(
                        host, port, local_address=self._local_address
                    )
                await self._talk(stream, wire, is_tls=is_tls, is_server=False)
        except* STREAM_ERRORS as group:
            logger.debug("connection to %s port %d: %s", host, port, group.exceptions)
        finally:
            self._ended(wire)
            if stream is not None:
                await trio.aclose_forcefully(stream)

    def _ended(self, wire: _Wire) -> None:
        if self._wires.get(wire.number) is wire:
            del self._wires[wire.number]
            assert self._owner is not None, "the network runs"
            if trio.current_effective_deadline() > -math.inf:  # else all of us ends
                self._owner.closed(wire.number)

    async def _secured(
        self, stream: trio.SocketStream, *, is_tls: bool, is_server: bool
    ) -> trio.abc.Stream:
        if not is_tls:
            return stream
        if self._tls is None:
            raise trio.BrokenResourceError("a bins: url, and no certificate of ours")
        context = self._tls.server if is_server else self._tls.client
        secure = trio.SSLStream(stream, context, server_side=is_server, https_compatible=True)
        with trio.fail_after(CONNECT_TIMEOUT):
            await secure.do_handshake()
        return secure

    async def _talk(
        self, stream: trio.SocketStream, wire: _Wire, *, is_tls: bool, is_server: bool
    ) -> None:
        """Read and write until the other side closes, or breaks the framing."""
        assert self._owner is not None, "the network runs"
        secured = await self._secured(stream, is_tls=is_tls, is_server=is_server)
        if not is_server:
            self._owner.connected(wire.number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, secured, wire, stream)
            reader = FrameReader()
            idle = IDLE_TIMEOUT if is_server else math.inf
            while True:
                with trio.fail_after(idle):
                    data = await secured.receive_some(READ_SIZE)
                if not data:
                    break
                try:
                    for frame in reader.receive_data_untrusted(bytes(data)):
                        self._owner.received(wire.number, frame)
                    reader.receive_data_untrusted(b"")  # raises where a bad frame follows the good
                except RemoteProtocolError as error:
                    self._owner.misframed(wire.number, str(error))
                    raise
                if self._owner.is_member(wire.host):
                    wire.scope.deadline = math.inf  # it is a stranger no more
            nursery.cancel_scope.cancel()

    async def _write(self, stream: trio.abc.Stream, wire: _Wire, below: trio.SocketStream) -> None:
        assert self._owner is not None, "the network runs"
        in_flight, patience = 0, math.inf
        while True:
            data, urgent, others = wire.batch(_unacknowledged(below) if wire.in_flight else 0)
            if wire.in_flight != in_flight or not wire.data:
                in_flight, patience = wire.in_flight, trio.current_time() + WRITE_TIMEOUT
            if not data:
                if wire.data and trio.current_time() >= patience:
                    raise trio.TooSlowError
                wire.news = trio.Event()
                with trio.move_on_after(IN_FLIGHT_PAUSE if wire.data else math.inf):
                    await wire.news.wait()
                continue
            with trio.fail_after(WRITE_TIMEOUT):
                await stream.send_all(data)
            self._owner.written(wire.number, urgent, others)


def _canonical(host: str) -> str:
    """Return an address as urls have it: a socket for IPv6 may give mapped IPv4."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return host
