"""`udp:HOST:PORT` and `unix:PATH`: one notification per datagram.

Delivered means: the kernel has it. Specified in docs/events.md, "udp:".
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import trio

from clusternode.backends.base import BATCH_MAX, BackendServices, Publication, wrong_uri
from clusternode.backends.options import (
    encode,
    host_port,
    query_of,
    read_host_port,
    read_options,
    read_path,
)
from clusternode.backends.stream import TIMEOUT, TYPE
from clusternode.errors import PeerUnreachable

DATAGRAM_OPTIONS = (TIMEOUT,)
UNIX_OPTIONS = (TYPE, TIMEOUT)

Open = Callable[[], Awaitable[trio.socket.SocketType]]


class DatagramBackend:
    """Sends each event as one datagram, over a connected socket, so that refusals are seen."""

    scheme: ClassVar[str] = "udp"
    batch_max = BATCH_MAX

    def __init__(self, identity: str, open_socket: Open, values: dict[str, object]) -> None:
        self.identity = self.shown = identity
        timeout = values["timeout"]
        assert isinstance(timeout, float)
        self._timeout = timeout
        self.publish_timeout = timeout * 2 + 1.0
        self._open_socket = open_socket
        self._socket: trio.socket.SocketType | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hand each event to the kernel.

        Raises:
            PeerUnreachable: It refuses: nobody is there, or nobody reads.
        """
        try:
            with trio.fail_after(self._timeout):
                if self._socket is None:
                    self._socket = await self._open_socket()
                for publication in publications:
                    await self._send(self._socket, publication)
        except trio.TooSlowError:
            raise PeerUnreachable(f"the kernel took nothing for {self._timeout:g} s") from None
        except OSError as error:
            # Of UDP, an ICMP message about an earlier datagram; this one was not sent.
            self._drop()
            raise PeerUnreachable(error.strerror or str(error)) from None

    async def _send(self, to: trio.socket.SocketType, publication: Publication) -> None:
        data = publication.notification + b"\n"
        try:
            await to.send(data)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            publication.fail(f"{len(data)} bytes are too long for a datagram")
        else:
            publication.settle()


class UdpBackend(DatagramBackend):
    """`udp:HOST:PORT`."""

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        body, values = read_options("udp", rest, DATAGRAM_OPTIONS)
        host, port = read_host_port("udp", body)
        query = query_of(DATAGRAM_OPTIONS, values, None)

        async def open_socket() -> trio.socket.SocketType:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, address = found[0]
            return await _connected(trio.socket.socket(family, kind, protocol), address)

        super().__init__(f"udp:{host_port(host, port)}{query}", open_socket, values)


class UnixDatagramBackend(DatagramBackend):
    """`unix:PATH`."""

    scheme: ClassVar[str] = "unix"

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        body, values = read_options("unix", rest, UNIX_OPTIONS)
        if values["type"] != "datagram":
            raise wrong_uri(f"unix:{body}?type={values['type']}", "type=datagram or type=stream")
        path = read_path("unix", body)
        query = query_of(UNIX_OPTIONS, values, None)

        async def open_socket() -> trio.socket.SocketType:
            own = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM)
            return await _connected(own, path)

        super().__init__(f"unix:{encode(path)}{query}", open_socket, values)


async def _connected(own: trio.socket.SocketType, address: object) -> trio.socket.SocketType:
    try:
        await own.connect(address)
    except BaseException:
        own.close()
        raise
    return own
