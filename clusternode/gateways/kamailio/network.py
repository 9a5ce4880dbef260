"""The sockets of a node of a DMQ bus: UDP, and streams (TCP, TLS). No decisions here."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import AddressInUse, ConfigError, RemoteProtocolError
from clusternode.gateways.kamailio.codec import StreamReader
from clusternode.gateways.kamailio.effects import Source
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import PeerAddress
from clusternode.gateways.tls import TlsContexts, make_contexts

logger = logging.getLogger(__name__)

DATAGRAM_SIZE_MAX: Final = 65_535
DATAGRAMS_PER_TURN: Final = 64
"""Read at once before others have their turn: some milliseconds of work."""
BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Asked of the kernel for arriving datagrams; it may give less (net.core.rmem_max)."""
CONNECT_TIMEOUT: Final[Seconds] = 5.0
CONNECTIONS_MAX: Final = 256
"""Accepted at a time: nine for each node of a full bus."""
WRITES_WAITING_MAX: Final = 1024
"""Messages that wait for one stream; beyond it they count as not sent."""
READ_SIZE: Final = 65_536
STREAM_ERRORS: Final = (
    OSError,  # and ssl.SSLError
    trio.BrokenResourceError,
    trio.TooSlowError,
    RemoteProtocolError,
)
"""What ends one connection and nothing else."""

Received = Callable[[bytes, Source], None]
SendFailed = Callable[[str], None]
"""Takes the branch of the request that could not be sent."""


class Network(Protocol):
    """What carries messages to and from the bus."""

    async def run(
        self,
        received: Received,
        send_failed: SendFailed,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None: ...
    def send(self, address: PeerAddress, data: bytes, branch: str) -> None: ...
    def answer(self, to: Source, data: bytes) -> None: ...


def make_network(settings: KamailioSettings) -> Network:
    """Return the network of the transport of `server_address`.

    Raises:
        ConfigError: A certificate or key cannot be used.
    """
    if settings.socket.transport == "udp":
        return UdpNetwork(settings.socket)
    if settings.socket.transport == "tcp":
        return StreamNetwork(settings.socket, None)
    return StreamNetwork(settings.socket, _tls_contexts(settings))


def _refused(address: PeerAddress, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{address.uri}: something else listens there")
    expected = f"an address of this host ({error.strerror})"
    return ConfigError("gateway.kamailio.server_socket", address.uri, expected)


class UdpNetwork:
    """One socket for everything: bus members know us by its address."""

    def __init__(self, own: PeerAddress) -> None:
        self._own = own
        family = socket.AF_INET6 if ":" in own.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._send_failed: SendFailed | None = None

    async def run(
        self,
        received: Received,
        send_failed: SendFailed,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Bind and read until cancelled."""
        self._send_failed = send_failed
        with self._socket:
            try:
                self._socket.bind((self._own.host, self._own.port))
            except OSError as error:
                raise _refused(self._own, error) from None
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                self._read(received)

    def _read(self, received: Received) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, address = self._socket.recvfrom(DATAGRAM_SIZE_MAX)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error of something sent before
                logger.debug("receiving: %s", error)
                continue
            received(data, Source(address[0], address[1]))

    def send(self, address: PeerAddress, data: bytes, branch: str) -> None:
        try:
            self._socket.sendto(data, (address.host, address.port))
        except OSError as error:
            logger.debug("sending to %s: %s", address.node_id, error)
            assert self._send_failed is not None, "the network runs"
            self._send_failed(branch)

    def answer(self, to: Source, data: bytes) -> None:
        # A lost answer is asked for again by the next copy of the request.
        with contextlib.suppress(OSError):
            self._socket.sendto(data, (to.host, to.port))


Item = tuple[str, bytes]
"""The branch of a request, or nothing, and what is to be written."""


@attrs.define(eq=False)
class _Connection:
    """One stream and what waits to be written."""

    sender: trio.MemorySendChannel[Item]
    receiver: trio.MemoryReceiveChannel[Item]


def _tls_contexts(settings: KamailioSettings) -> TlsContexts:
    assert settings.tls_certificate and settings.tls_key and settings.tls_ca, "checked by plugin"
    return make_contexts("kamailio", settings.tls_certificate, settings.tls_key, settings.tls_ca)


class StreamNetwork:
    """A connection of our own to each node, and those that the nodes open to us."""

    def __init__(self, own: PeerAddress, tls: TlsContexts | None) -> None:
        self._own = own
        self._tls = tls
        # Kamailio knows nodes by their source address (dmq_is_from_node).
        self._local_address = None if own.host in ("0.0.0.0", "::") else own.host  # noqa: S104
        self._dialed: dict[PeerAddress, _Connection] = {}
        self._accepted: dict[int, _Connection] = {}  # connection id → connection
        self._next_id = 0
        self._nursery: trio.Nursery | None = None
        self._received: Received | None = None
        self._send_failed: SendFailed | None = None

    async def run(
        self,
        received: Received,
        send_failed: SendFailed,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen and serve until cancelled."""
        self._received, self._send_failed = received, send_failed
        try:
            listeners = await trio.open_tcp_listeners(self._own.port, host=self._own.host)
        except OSError as error:
            raise _refused(self._own, error) from None
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(trio.serve_listeners, self._serve, listeners)
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if len(self._accepted) >= CONNECTIONS_MAX:
            await stream.aclose()
            return
        host, port = stream.socket.getpeername()[:2]
        self._next_id += 1
        number = self._next_id
        connection = _Connection(*trio.open_memory_channel[Item](WRITES_WAITING_MAX))
        self._accepted[number] = connection
        try:
            wrapped = await self._wrapped(stream, is_server=True)
            await self._talk(wrapped, connection, Source(host, port, number))
        except* STREAM_ERRORS as group:
            logger.debug("connection from %s: %s", host, group.exceptions)
        finally:
            del self._accepted[number]
            await trio.aclose_forcefully(stream)

    async def _wrapped(self, stream: trio.SocketStream, *, is_server: bool) -> trio.abc.Stream:
        if self._tls is None:
            return stream
        context = self._tls.server if is_server else self._tls.client
        secure = trio.SSLStream(stream, context, server_side=is_server, https_compatible=True)
        with trio.fail_after(CONNECT_TIMEOUT):
            await secure.do_handshake()
        return secure

    async def _talk(self, stream: trio.abc.Stream, connection: _Connection, source: Source) -> None:
        """Read and write until the other side closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, stream, connection)
            reader = StreamReader()
            assert self._received is not None, "the network runs"
            while data := await stream.receive_some(READ_SIZE):
                for message in reader.feed_untrusted(bytes(data)):
                    self._received(message, source)
            nursery.cancel_scope.cancel()

    async def _write(self, stream: trio.abc.Stream, connection: _Connection) -> None:
        async for branch, data in connection.receiver:
            try:
                await stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._fail(branch)
                return

    def _fail(self, branch: str) -> None:
        if branch and self._send_failed is not None:
            self._send_failed(branch)

    def send(self, address: PeerAddress, data: bytes, branch: str) -> None:
        connection = self._dialed.get(address)
        if connection is None:
            assert self._nursery is not None, "the network runs"
            connection = _Connection(*trio.open_memory_channel[Item](WRITES_WAITING_MAX))
            self._dialed[address] = connection
            self._nursery.start_soon(self._dial, address, connection)
        try:
            connection.sender.send_nowait((branch, data))
        except trio.WouldBlock:
            self._fail(branch)

    async def _dial(self, address: PeerAddress, connection: _Connection) -> None:
        stream: trio.SocketStream | None = None
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                stream = await trio.open_tcp_stream(
                    address.host, address.port, local_address=self._local_address
                )
            wrapped = await self._wrapped(stream, is_server=False)
            await self._talk(wrapped, connection, Source(address.host, address.port, 0))
        except* STREAM_ERRORS as group:
            logger.debug("connection to %s: %s", address.node_id, group.exceptions)
        finally:
            del self._dialed[address]
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    self._fail(connection.receiver.receive_nowait()[0])
            if stream is not None:
                await trio.aclose_forcefully(stream)

    def answer(self, to: Source, data: bytes) -> None:
        connection = self._accepted.get(to.connection or 0)
        if connection is not None:
            with contextlib.suppress(trio.WouldBlock):
                connection.sender.send_nowait(("", data))
