"""`tcp:HOST:PORT[/METHOD]` and `unix:PATH?type=stream`: JSON-RPC 2.0 over a stream.

One object a line; the other end may answer with or without line ends. Meaning of `reliable_mode`
and `event_param`: OpenSIPS event_stream. Specified in docs/events.md, "tcp:".
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import attrs
import trio

from clusternode.backends.base import BackendServices, Publication, wrong_uri
from clusternode.backends.options import (
    Option,
    decode,
    encode,
    host_port,
    query_of,
    read_host_port,
    read_options,
    read_path,
)
from clusternode.config.kinds import STRING, integer, number
from clusternode.core.types import Seconds
from clusternode.errors import PeerGone, PeerUnreachable, RemoteProtocolError
from clusternode.routes.subscriptions import DELIVERED, DeliveryStatus

BATCH = 64
"""Requests that wait for their replies at a time: hides the round trip, bounds the duplicates."""
REPLY_LENGTH_MAX = 64 * 1024
"""Nobody needs more to say yes or no."""
READ_BYTES = 64 * 1024
TIMEOUT_DEFAULT: Seconds = 1.0
"""As OpenSIPS: reliable_mode waits 1000 ms."""

TIMEOUT = Option(
    name="timeout",
    kind=number(0.01, 60.0),
    default=TIMEOUT_DEFAULT,
    help="Seconds to connect, to write, and to wait for the next reply.",
)
STREAM_OPTIONS = (
    Option(
        name="reliable_mode",
        kind=integer(0, 1),
        default=0,
        help="1: requests with an id, delivered when the reply has come. 0: notifications.",
    ),
    TIMEOUT,
    Option(
        name="event_param",
        kind=STRING,
        default="",
        help="Put the event's name into the parameters under this name, or as the first one.",
    ),
)
METHOD = Option(
    name="method", kind=STRING, default="", help="The JSON-RPC method; empty: the event's name."
)
TYPE = Option(
    name="type",
    kind=STRING,
    default="datagram",
    help="datagram: one a datagram. stream: one a line, as tcp:.",
)
UNIX_STREAM_OPTIONS = (TYPE, METHOD, *STREAM_OPTIONS)

Connect = Callable[[], Awaitable[trio.SocketStream]]


class StreamBackend:
    """Writes events to one stream; connects when there is something to write."""

    scheme: ClassVar[str] = "tcp"
    batch_max = BATCH

    def __init__(
        self, identity: str, connect: Connect, method: str, values: dict[str, object]
    ) -> None:
        self.identity = self.shown = identity
        timeout = values["timeout"]
        assert isinstance(timeout, float)
        self._timeout = timeout
        # To connect, to write, and between one reply and the next.
        self.publish_timeout = timeout * (BATCH + 3)
        self._connect = connect
        self._method = method
        self._event_param = str(values["event_param"])
        self._is_reliable = bool(values["reliable_mode"])
        self._stream: trio.SocketStream | None = None
        self._last_id = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._drop()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Write a batch; in reliable mode, wait for its replies.

        Raises:
            PeerUnreachable: There is no connection; nothing was written.
            PeerGone: It broke, or nothing came in time; what is not settled may have arrived.
        """
        stream = await self._connected()
        lines = [self._line(publication) for publication in publications]
        is_done = False
        try:
            if self._is_reliable:
                ids = range(self._last_id + 1, self._last_id + 1 + len(lines))
                self._last_id += len(lines)
                waiting = dict(zip(ids, publications, strict=True))
                data = b"".join(
                    b'%b,"id":%d}\n' % (line[:-1], request_id)
                    for request_id, line in zip(ids, lines, strict=True)
                )
                await self._ask(stream, data, waiting)
            else:
                await self._write(stream, b"".join(line + b"\n" for line in lines))
                for publication in publications:
                    publication.settle()
            is_done = True
        finally:
            if not is_done:  # also when cancelled: half a line may have been written
                self._drop()

    def _line(self, publication: Publication) -> bytes:
        if not self._method and not self._event_param:
            return publication.notification
        notification = json.loads(publication.notification)
        name = notification["method"]
        if self._event_param:
            values = notification.get("params", {})
            if isinstance(values, list):
                notification["params"] = [name, *values]
            else:
                notification["params"] = {**values, self._event_param: name}
        notification["method"] = self._method or name
        return json.dumps(notification, separators=(",", ":")).encode()

    async def _connected(self) -> trio.SocketStream:
        """Return the connection; one that the peer has closed is made again."""
        if self._stream is not None and self._stream.socket.is_readable():
            try:
                # What comes when nobody waits for it is the end, or a reply that came too late.
                if not await self._stream.receive_some(READ_BYTES):
                    self._drop()
            except trio.BrokenResourceError:
                self._drop()
        if self._stream is None:
            try:
                with trio.fail_after(self._timeout):
                    self._stream = await self._connect()
            except trio.TooSlowError:
                raise PeerUnreachable(f"no connection within {self._timeout:g} s") from None
            except OSError as error:
                raise PeerUnreachable(_reason(error)) from None
        return self._stream

    async def _write(self, stream: trio.SocketStream, data: bytes) -> None:
        try:
            with trio.fail_after(self._timeout):
                await stream.send_all(data)
        except trio.TooSlowError:
            raise PeerStuck(f"it has not read for {self._timeout:g} s") from None
        except trio.BrokenResourceError as error:
            raise PeerStuck(f"the connection broke: {_reason(error.__cause__)}") from None

    async def _ask(
        self, stream: trio.SocketStream, data: bytes, waiting: dict[int, Publication]
    ) -> None:
        """Write requests and take their replies, in whatever order."""
        failures: list[PeerStuck] = []

        async def write(scope: trio.CancelScope) -> None:
            try:
                await self._write(stream, data)
            except PeerStuck as error:
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, nursery.cancel_scope)
            try:
                await self._take_replies(stream, waiting)
            except PeerStuck as error:
                failures.append(error)
            nursery.cancel_scope.cancel()
        if failures and waiting:
            raise failures[0]

    async def _take_replies(
        self, stream: trio.SocketStream, waiting: dict[int, Publication]
    ) -> None:
        replies = _Replies()
        while waiting:
            try:
                with trio.fail_after(self._timeout):
                    data = await stream.receive_some(READ_BYTES)
            except trio.TooSlowError:
                raise PeerStuck(f"no reply for {self._timeout:g} s") from None
            except trio.BrokenResourceError as error:
                raise PeerStuck(f"the connection broke: {_reason(error.__cause__)}") from None
            if not data:
                raise PeerStuck("it closed the connection without a reply")
            try:
                found = replies.receive_data_untrusted(data)
            except RemoteProtocolError as error:
                raise PeerStuck(str(error)) from None
            for request_id, status in found:
                publication = waiting.pop(request_id, None)
                if publication is not None:
                    publication.settle(status)


class PeerStuck(PeerGone):
    """The peer did not do its part; what was written may have arrived."""

    definite = False


@attrs.define
class _Replies:
    """Takes JSON-RPC replies out of a stream of bytes."""

    _text: str = ""
    _decoder: codecs.IncrementalDecoder = attrs.Factory(codecs.getincrementaldecoder("utf-8"))

    def receive_data_untrusted(self, data: bytes) -> list[tuple[int, DeliveryStatus]]:
        """Return (id, status) of the replies that `data` completes.

        Raises:
            RemoteProtocolError: It is not JSON, or too long.
        """
        found: list[tuple[int, DeliveryStatus]] = []
        try:
            self._text += self._decoder.decode(data)
        except UnicodeDecodeError:
            raise RemoteProtocolError("its reply is not UTF-8") from None
        while self._text:
            self._text = self._text.lstrip()
            if self._text and self._text[0] != "{":
                raise RemoteProtocolError("its reply is no JSON object")
            try:
                reply, end = json.JSONDecoder().raw_decode(self._text)
            except RecursionError:
                raise RemoteProtocolError("its reply is nested too deeply") from None
            except ValueError:  # not complete
                break
            self._text = self._text[end:]
            found += _status_of(reply)
        if len(self._text) > REPLY_LENGTH_MAX:
            raise RemoteProtocolError(f"a reply of more than {REPLY_LENGTH_MAX} characters")
        return found


def _status_of(reply: dict[str, Any]) -> list[tuple[int, DeliveryStatus]]:
    request_id = reply.get("id")
    if type(request_id) is not int:
        return []  # a notification, or nothing of ours
    error = reply.get("error")
    if error is None:
        return [(request_id, DELIVERED)]
    text = error.get("message") if isinstance(error, dict) else error
    return [(request_id, DeliveryStatus(False, f"it answered: {str(text)[:200]}"))]


def _reason(error: BaseException | None) -> str:
    if isinstance(error, OSError) and not error.strerror and error.__cause__ is not None:
        return _reason(error.__cause__)  # trio: all attempts failed, because of …
    if isinstance(error, BaseExceptionGroup):
        return _reason(error.exceptions[0])
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__


class TcpBackend(StreamBackend):
    """`tcp:HOST:PORT[/METHOD]`."""

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        body, values = read_options("tcp", rest, STREAM_OPTIONS)
        form = "tcp:HOST:PORT[/METHOD], an IPv6 address in brackets"
        where, slash, method = body.removeprefix("//").partition("/")
        host, port = read_host_port("tcp", where, form=form)
        try:
            method = decode(method)
        except ValueError:
            raise wrong_uri(f"tcp:{body}", form) from None
        if slash and not method:
            raise wrong_uri(f"tcp:{body}", form)
        tail = f"/{encode(method)}" if method else ""
        identity = f"tcp:{host_port(host, port)}{tail}{query_of(STREAM_OPTIONS, values, None)}"

        async def connect() -> trio.SocketStream:
            return await trio.open_tcp_stream(host, port)

        super().__init__(identity, connect, method, values)


class UnixStreamBackend(StreamBackend):
    """`unix:PATH?type=stream`."""

    scheme: ClassVar[str] = "unix"

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        body, values = read_options("unix", rest, UNIX_STREAM_OPTIONS)
        path = read_path("unix", body)
        identity = f"unix:{encode(path)}{query_of(UNIX_STREAM_OPTIONS, values, None)}"

        async def connect() -> trio.SocketStream:
            return await trio.open_unix_socket(path)

        super().__init__(identity, connect, str(values["method"]), values)
