"""The connections of one node: dialling, one reader and one writer task each, and their end.

Nothing here holds messages: the writer asks the core for as much as goes into one write, whenever
it is free; the reader gives the core all that one read has brought. Nothing is done per message.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Final

import attrs
import trio

from clusternode.core import effects
from clusternode.core.inputs import (
    Connected,
    DialFailed,
    Disconnected,
    FramesReceived,
    Measured,
    WriteReady,
)
from clusternode.core.settings import NodeSettings
from clusternode.core.types import Address, ConnectionId, NodeId
from clusternode.core.wire.codec import encode, encoded_of
from clusternode.core.wire.messages import Close, Frame, Hello, WireMessage
from clusternode.core.wire.session import Session
from clusternode.errors import RemoteProtocolError
from clusternode.runtime import tls
from clusternode.runtime.bounds import READ_SIZE, WRITE_SIZE
from clusternode.runtime.driver import Driver
from clusternode.runtime.handshake import (
    FAREWELL_TIMEOUT,
    HandshakeError,
    agent_name,
    half_close,
    shake_hands,
)
from clusternode.runtime.jobs import Jobs
from clusternode.runtime.keyring import Keyring
from clusternode.runtime.logs import RateLimitedLog
from clusternode.runtime.transport import DialError, Progress, Transport, Wire

logger = logging.getLogger(__name__)

COUNTERS: Final = (
    "connections_opened",
    "connections_lost",
    "dials_failed",
    "handshakes_failed",
    "authentications_failed",
    "strangers_refused",
    "bytes_read",
    "bytes_written",
    "reads",
    "writes",
)
"""What is counted for each node; the meanings are in docs/operations.md."""


@attrs.define(eq=False)
class Desk:
    """What the node has laid ready for the writer of a connection."""

    wake: trio.Event = attrs.Factory(trio.Event)
    """Set when the writer has something to do."""
    has_output: bool = False
    """Whether the node is to be asked for what to write."""
    granted: effects.Write | None = None
    """What the node answered to `WriteReady`."""
    ping: Frame | None = None
    """What the node wants written without being asked."""


@attrs.define(eq=False)
class Connection:
    """One open connection and what its two tasks tell each other."""

    id: ConnectionId
    wire: Wire
    session: Session
    certificate: tls.Certificate | None = None
    """The peer's, where it has shown one."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    """Ends both tasks."""
    desk: Desk = attrs.Factory(Desk)
    written_bytes: int = 0
    """What the stream has taken altogether."""
    writing_bytes: int = 0
    """What the stream is taking now."""
    read_bytes: int = 0
    is_ending: bool = False
    """The node knows of the end: it is told nothing more. Only `farewell` is to be written."""
    farewell: bytes = b""

    def end(self, close: Close | None) -> None:
        """Let the writer say goodbye after what it is writing now, and end soon."""
        self.is_ending = True
        self.farewell = encode(close) if close is not None else b""
        self.scope.deadline = trio.current_time() + FAREWELL_TIMEOUT
        self.desk.wake.set()


class Connections:
    """Performs what one node wants of its connections (`driver.Links`)."""

    def __init__(
        self,
        driver: Driver,
        transport: Transport,
        jobs: Jobs,
        keyring: Keyring | None = None,
    ) -> None:
        self.keyring = keyring or Keyring()
        self._driver = driver
        self._transport = transport
        self._jobs = jobs
        self._ids = itertools.count(1)
        self._open: dict[ConnectionId, Connection] = {}  # those that the node knows
        self._serving = 0
        self._is_closing = False
        self._all_closed = trio.Event()
        self._log = RateLimitedLog(logger)
        self._counters = dict.fromkeys(COUNTERS, 0)

    @property
    def counters(self) -> Mapping[str, int]:
        return self._counters

    def count(self, name: str) -> None:
        """Count what the acceptor did with a connection that never became one of ours."""
        self._counters[name] += 1

    @property
    def settings(self) -> NodeSettings:
        return self._driver.settings

    def hello(self) -> Hello:
        """Return what our node says first on a connection that begins now."""
        hello = self._driver.node.hello(agent_name())
        return attrs.evolve(hello, challenge=self.keyring.new_challenge())

    def certificates(self) -> Mapping[NodeId, datetime]:
        """Return until when the certificate of each connected node is valid."""
        found: dict[NodeId, datetime] = {}
        for connection in self._open.values():
            if connection.certificate is not None and connection.session.peer is not None:
                found[connection.session.peer.node_id] = connection.certificate.not_after
        return found

    # --- what the node wants --------------------------------------------------------------------

    def output_ready(self, effect: effects.OutputReady) -> None:
        connection = self._open.get(effect.connection)
        if connection is not None:
            connection.desk.has_output = True
            connection.desk.wake.set()

    def write_each(self, effect: effects.WriteEach) -> None:
        for number in effect.connections:
            connection = self._open.get(number)
            if connection is not None:
                connection.desk.ping = effect.frame
                connection.desk.wake.set()

    def write(self, effect: effects.Write) -> None:
        connection = self._open.get(effect.connection)
        if connection is not None:
            connection.desk.granted = effect

    def dial(self, address: Address) -> None:
        self._jobs.start_soon(partial(self._dial, address))

    def disconnect(self, effect: effects.Disconnect) -> None:
        connection = self._open.pop(effect.connection, None)
        if connection is not None and not connection.is_ending:
            connection.end(effect.close)

    def measure(self, effect: effects.Measure) -> None:
        connection = self._open.get(effect.connection)
        if connection is None:
            return  # it ends, and the node is told
        seen = connection.wire.progress() or Progress(connection.written_bytes)
        ping_bytes = 0 if connection.desk.ping is None else connection.desk.ping.size_bytes
        self._driver.feed(
            Measured(
                connection.id,
                seen.arrived_bytes,
                seen.waiting_bytes + connection.writing_bytes + ping_bytes,
                connection.read_bytes + seen.unordered_bytes,
                seen.scattered_bytes,
                seen.round_trip,
                seen.retransmission_timeout,
            )
        )

    # --- the beginning and the end --------------------------------------------------------------

    async def _dial(self, address: Address) -> None:
        """Dial, shake hands, and serve the connection to its end."""
        if self._is_closing:
            return
        timeout = self.settings.discovery.handshake_timeout
        deadline = trio.current_time() + timeout
        session = Session.dial(self.hello(), self.keyring.secrets)
        if self.settings.address.scheme == tls.SCHEME:  # whatever a record or DNS says
            goal = attrs.evolve(address, scheme=tls.SCHEME)
        else:
            goal = address
        try:
            wire = await self._transport.dial(goal, timeout)
            left = max(0.0, deadline - trio.current_time())
            early = await shake_hands(wire.stream, session, left)
        except DialError as error:
            failed = DialFailed(address, error.failure, str(error))
        except HandshakeError as error:
            close = error.close or Close(0)
            reason = error.close.reason if error.close is not None else None
            failed = DialFailed(address, error.failure, str(error), reason, close.value)
            if error.is_authentication:
                self.count("authentications_failed")
            self._log.warn_about(f"{address} {reason}", "dialled %s: %s", address, error)
        else:
            await self.serve(wire, session, early, dialed=address)
            return
        self._counters["dials_failed"] += 1
        logger.debug("dial failed: %s", failed.detail)
        self._driver.feed(failed)

    async def serve(
        self,
        wire: Wire,
        session: Session,
        early: list[WireMessage],
        *,
        dialed: Address | None = None,
    ) -> None:
        """Carry messages until the connection ends, which is never an error here."""
        assert session.peer is not None, "the handshake comes first"
        certificate = tls.peer_certificate(wire.stream)
        connection = Connection(ConnectionId(next(self._ids)), wire, session, certificate)
        self._serving += 1
        self._counters["connections_opened"] += 1
        try:
            if self._is_closing:
                return
            self._open[connection.id] = connection
            async with trio.open_nursery() as nursery:
                connection.scope = nursery.cancel_scope
                self._driver.feed(Connected(connection.id, session.peer, dialed, wire.remote))
                if early and not connection.is_ending:
                    self._driver.feed(FramesReceived(connection.id, early))
                nursery.start_soon(self._write, connection)
                await self._read(connection)
        finally:
            self._open.pop(connection.id, None)
            self._serving -= 1
            if not self._serving:
                self._all_closed.set()
            await trio.aclose_forcefully(wire.stream)

    async def close_all(self, close: Close) -> None:
        """Say goodbye to everyone, and wait for the end: `FAREWELL_TIMEOUT` at most."""
        self._is_closing = True
        self._all_closed = trio.Event()
        for connection in list(self._open.values()):
            connection.end(close)
        if self._serving:
            await self._all_closed.wait()

    def _lost(self, connection: Connection, detail: str) -> None:
        """Tell the node that a connection has ended, unless it knows; stop both tasks."""
        if not connection.is_ending:
            connection.is_ending = True
            self._counters["connections_lost"] += 1
            self._open.pop(connection.id, None)
            self._driver.feed(Disconnected(connection.id, detail))
        connection.scope.cancel()

    # --- the two tasks --------------------------------------------------------------------------

    async def _read(self, connection: Connection) -> None:
        receive_some = connection.wire.stream.receive_some
        try:
            while data := await receive_some(READ_SIZE):
                if not connection.is_ending:  # else read on, see `close_politely`
                    self._received(connection, data)
            detail = "closed by the other side"
        except trio.BrokenResourceError as error:
            detail = f"broken: {error.__cause__ or error}"
        self._lost(connection, detail)

    def _received(self, connection: Connection, data: bytes | bytearray) -> None:
        self._counters["reads"] += 1
        self._counters["bytes_read"] += len(data)
        connection.read_bytes += len(data)
        try:
            messages = connection.session.receive_data_untrusted(bytes(data))
        except RemoteProtocolError as error:
            if connection.session.salvaged:
                self._driver.feed(FramesReceived(connection.id, connection.session.salvaged))
            self._misbehaved(connection, error)
        else:
            if messages:
                self._driver.feed(FramesReceived(connection.id, messages))

    def _misbehaved(self, connection: Connection, error: RemoteProtocolError) -> None:
        if connection.is_ending:
            return  # the node disconnected it for one of the messages before
        peer, remote = connection.session.peer, connection.wire.remote
        assert peer is not None
        self._log.warn_about(
            connection.wire.remote_host,
            "peer %s at %s broke the protocol: %s",
            peer.node_id,
            remote,
            error,
        )
        self._open.pop(connection.id, None)
        connection.end(Close(error.reason, str(error), error.value))
        self._driver.feed(Disconnected(connection.id, str(error), misbehaved=True))

    async def _write(self, connection: Connection) -> None:
        stream = connection.wire.stream
        try:
            while not connection.is_ending:
                await connection.desk.wake.wait()
                connection.desk.wake = trio.Event()
                await self._write_waiting(connection)
            if connection.farewell:
                await stream.send_all(connection.farewell)
            await half_close(stream)
        except trio.BrokenResourceError as error:
            self._lost(connection, f"broken: {error.__cause__ or error}")

    async def _write_waiting(self, connection: Connection) -> None:
        """Write until the node has nothing more for this connection."""
        has_more = True
        while has_more and not connection.is_ending:
            frames, has_more = self._take(connection)
            if not frames:
                return
            data = b"".join([frame.encoded or encoded_of(frame) for frame in frames])
            self._counters["writes"] += 1
            self._counters["bytes_written"] += len(data)
            connection.writing_bytes = len(data)
            await connection.wire.stream.send_all(data)
            connection.writing_bytes = 0
            connection.written_bytes += len(data)

    def _take(self, connection: Connection) -> tuple[list[Frame], bool]:
        """Return the frames for one write, in order, and whether to ask again after it."""
        frames: list[Frame] = []
        desk = connection.desk
        if desk.ping is not None:
            frames.append(desk.ping)
            desk.ping = None
        if not desk.has_output:
            return frames, False
        desk.has_output = False
        self._driver.feed(WriteReady(connection.id, WRITE_SIZE))
        write, desk.granted = desk.granted, None
        if write is None:
            return frames, False
        desk.has_output |= write.more
        return frames + write.frames if frames else write.frames, write.more
