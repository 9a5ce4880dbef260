"""How bytes get from node to node: the interface `Transport` and its TCP implementation.

A transport gives streams and knows nothing of the protocol. `testing/memory_transport.py` has the
other implementation; `testing/conformance.py` says what both must do.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import logging
import socket
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from clusternode.core.inputs import DialFailure, ResolvedAddress
from clusternode.core.types import Address, Seconds
from clusternode.errors import AddressInUse, ConfigError, PeerUnreachable
from clusternode.runtime.listening import process_listening_on
from clusternode.runtime.logs import RateLimitedLog

logger = logging.getLogger(__name__)

BACKLOG: Final = 256
"""Connections that the kernel holds for us; a whole cluster may dial a restarted node at once."""
KEEPALIVE_IDLE: Final = 30
"""Seconds of silence before the kernel asks. Pings notice sooner; this ends what they forgot."""
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_PROBES: Final = 3
USER_TIMEOUT_MS: Final = 30_000
"""Unacknowledged bytes break the connection after this: `delivery_timeout` has passed by then."""
UNSENT_BYTES_MAX: Final = 128 * 1024
"""What the kernel takes beyond what is on its way: a ping waits behind it. Less would let a fast
link run dry while the event loop is busy for a few milliseconds."""
BUSY_PAUSE: Final[Seconds] = 0.1
"""How long not to accept when the process or host has run out of something; trio waits as long."""

TCP_INFO: Final = struct.Struct("=4xB3xI4xI8xI36xI48xQ96xI")
"""Of `struct tcp_info` (linux/tcp.h, Linux 5.4), which has only ever grown: tcpi_backoff, tcpi_rto
(microseconds), tcpi_snd_mss, tcpi_sacked (packets), tcpi_rtt (microseconds), tcpi_bytes_acked,
tcpi_rcv_ooopack (packets)."""
MICROSECOND: Final = 1e-6
UNORDERED_PACKET_BYTES: Final = 1024
"""What a packet that came before its turn counts for: most are a little larger."""
OUTPUT_QUEUE: Final = struct.Struct("=i")
"""Of SIOCOUTQ (tcp(7)), which is TIOCOUTQ: bytes not yet confirmed by the other host."""

SCHEME: Final = "tcp"
ONLY_TCP: Final = "this transport cannot encrypt"
"""Anything else must not be carried in clear text by mistake."""

OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

DIAL_FAILURES: Final[dict[int, DialFailure]] = {
    errno.ECONNREFUSED: DialFailure.REFUSED,
    errno.ECONNRESET: DialFailure.REFUSED,
    errno.ETIMEDOUT: DialFailure.TIMEOUT,
    errno.EHOSTUNREACH: DialFailure.UNREACHABLE,
    errno.ENETUNREACH: DialFailure.UNREACHABLE,
    errno.EHOSTDOWN: DialFailure.UNREACHABLE,
    errno.ENETDOWN: DialFailure.UNREACHABLE,
    errno.EADDRNOTAVAIL: DialFailure.UNREACHABLE,
}
"""What an error of `connect` means; everything else is UNREACHABLE."""


class DialError(PeerUnreachable):
    """A dial came to nothing; `failure` says why."""

    def __init__(self, failure: DialFailure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


@attrs.frozen
class Progress:
    """How far the bytes of a connection have come."""

    arrived_bytes: int
    """What the other host has confirmed."""
    waiting_bytes: int = 0
    """What it has not."""
    scattered_bytes: int = 0
    """The part of those that it has confirmed beyond a gap (RFC 2018)."""
    unordered_bytes: int = 0
    """What came in beyond a gap, about, since the connection began."""
    round_trip: Seconds = 0.0
    retransmission_timeout: Seconds = 0.0
    """Before it is doubled (RFC 6298 section 5.5)."""


@attrs.frozen
class Wire:
    """A stream and the numeric address of its other end, `host:port` (IPv6 in brackets)."""

    stream: trio.abc.Stream
    remote: str
    progress: Callable[[], Progress | None] = lambda: None
    """Asks how far the bytes have come, where somebody knows."""

    @property
    def remote_host(self) -> str:
        return self.remote.rpartition(":")[0]


class Listener(Protocol):
    """A bound address."""

    @property
    def address(self) -> Address:
        """What is bound, with the real port where 0 was asked for."""
        ...

    async def accept(self) -> Wire:
        """Wait for the next connection.

        Raises:
            trio.ClosedResourceError: The listener was closed.
        """
        ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """A way to dial and to listen."""

    async def dial(self, address: Address, timeout: Seconds) -> Wire:
        """Connect within `timeout`.

        Raises:
            DialError: It came to nothing.
        """
        ...

    async def listen(self, address: Address) -> Listener:
        """Bind an address.

        Raises:
            AddressInUse: Something else is there; names it where that can be found out.
            ConfigError: The address does not belong to this host, or has no number.
        """
        ...


class AddressResolver(Protocol):
    """What a transport needs of the resolver."""

    async def resolve(self, name: Address) -> Sequence[ResolvedAddress]: ...


class TcpTransport:
    """TCP over IPv4 and IPv6. Host names are looked up by `resolver`, never by the C library."""

    def __init__(self, resolver: AddressResolver) -> None:
        self._resolver = resolver

    async def dial(self, address: Address, timeout: Seconds) -> Wire:
        if address.scheme != SCHEME:
            raise DialError(DialFailure.UNREACHABLE, f"{address}: {ONLY_TCP}")
        detail = f"{address}: no connection within {timeout:g} s"
        with trio.move_on_after(timeout):
            return await self._dial_any(address, trio.current_time() + timeout)
        raise DialError(DialFailure.TIMEOUT, detail)

    async def _dial_any(self, address: Address, deadline: float) -> Wire:
        """Try one address after the other; each gets its share of the time that is left."""
        candidates = await self._numeric(address)
        error = DialError(DialFailure.UNRESOLVED, f"{address}: has no address")
        for index, candidate in enumerate(candidates):
            share = (deadline - trio.current_time()) / (len(candidates) - index)
            try:
                with trio.fail_after(max(share, 0.0)):
                    return await _connect(candidate)
            except trio.TooSlowError:
                error = DialError(DialFailure.TIMEOUT, f"{candidate}: does not answer")
            except OSError as failed:
                error = dial_error(candidate, failed)
        raise error

    async def _numeric(self, address: Address) -> Sequence[Address]:
        if is_numeric(address.host):
            return [address]
        try:
            answers = await self._resolver.resolve(address)
        except PeerUnreachable as error:
            raise DialError(DialFailure.UNRESOLVED, str(error)) from error
        return [answer.address for answer in answers]

    async def listen(self, address: Address) -> TcpListener:
        if address.scheme != SCHEME:
            raise ConfigError("listen", str(address), f"tcp://HOST:PORT; {ONLY_TCP}")
        try:
            bound = (await self._numeric(address))[0]
        except (DialError, IndexError) as error:
            raise ConfigError("listen", str(address), f"an address ({error})") from error
        sock = _new_socket(bound)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                # [::] takes IPv4 as well, whatever the host's default.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            await sock.bind((bound.host, bound.port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                culprit = await trio.to_thread.run_sync(process_listening_on, bound.port)
                raise AddressInUse(
                    f"cannot listen on {address}: {culprit} listens there already"
                ) from error
            raise ConfigError(
                "listen", str(address), f"an address of this host ({error.strerror})"
            ) from error
        return TcpListener(sock, bound)


class TcpListener:
    """A bound and listening TCP socket."""

    def __init__(self, sock: trio.socket.SocketType, bound: Address) -> None:
        self._socket = sock
        self._log = RateLimitedLog(logger)
        self.address = Address(bound.scheme, bound.host, sock.getsockname()[1])

    async def accept(self) -> Wire:
        while True:
            try:
                sock, _ = await self._socket.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError from error
                if error.errno in OUT_OF_RESOURCES:
                    self._log.warn_about("accept", "cannot take connections: %s", error.strerror)
                    await trio.sleep(BUSY_PAUSE)
                else:  # the connection was gone before it was ours, see accept(2)
                    await trio.lowlevel.checkpoint()
                continue
            try:
                return _wire(sock)
            except OSError:
                sock.close()  # it has ended already

    async def aclose(self) -> None:
        self._socket.close()
        await trio.lowlevel.checkpoint()


async def _connect(address: Address) -> Wire:
    sock = _new_socket(address)
    try:
        await sock.connect((address.host, address.port))
        if sock.getsockname() == sock.getpeername():
            # Dialling a free port of the ephemeral range can connect a socket to itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
        return _wire(sock)
    except BaseException:
        sock.close()
        raise


def _new_socket(address: Address) -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return trio.socket.socket(family, socket.SOCK_STREAM)


def _wire(sock: trio.socket.SocketType) -> Wire:
    remote = sock.getpeername()
    # Writes are coalesced by the writer task, so waiting for more (RFC 896) only costs time.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES_MAX),
    ):
        if hasattr(socket, name):  # not every system has each of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Wire(
        trio.SocketStream(sock), numeric_remote(remote[0], remote[1]), partial(_progress, sock)
    )


def _progress(sock: trio.socket.SocketType) -> Progress | None:
    """Ask the kernel how far our bytes have come; only Linux tells."""
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        held = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(OUTPUT_QUEUE.size))
    except OSError:  # it has been closed meanwhile
        return None
    if len(info) < TCP_INFO.size:  # an older Linux
        return None
    backoff, timeout, segment_size, scattered, rtt, arrived, unordered = TCP_INFO.unpack(info)
    return Progress(
        arrived,
        OUTPUT_QUEUE.unpack(held)[0],
        scattered * segment_size,
        unordered * UNORDERED_PACKET_BYTES,
        rtt * MICROSECOND,
        (timeout >> backoff) * MICROSECOND,
    )


def dial_error(address: Address, error: OSError) -> DialError:
    """Translate what `connect` said."""
    failure = DIAL_FAILURES.get(error.errno or 0, DialFailure.UNREACHABLE)
    return DialError(failure, f"{address}: {error.strerror or error}")


def numeric_remote(host: str, port: int) -> str:
    """Write `host:port`; an IPv4 address mapped into IPv6 (RFC 4291 2.5.5.2) as IPv4."""
    if ":" in host:
        mapped = ipaddress.IPv6Address(host.partition("%")[0]).ipv4_mapped
        return f"{mapped}:{port}" if mapped is not None else f"[{host}]:{port}"
    return f"{host}:{port}"


def is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
