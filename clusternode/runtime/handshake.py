"""The beginning and the end of a connection: HELLOs, and a goodbye. Spec: docs/protocol.md, 5."""

from __future__ import annotations

import contextlib
import ssl
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import trio

from clusternode.core.inputs import DialFailure
from clusternode.core.types import Seconds
from clusternode.core.wire.messages import Close, CloseReason, WireMessage
from clusternode.core.wire.session import Session
from clusternode.errors import PeerGone, RemoteProtocolError
from clusternode.runtime import tls
from clusternode.runtime.bounds import HANDSHAKE_READ_SIZE

FAREWELL_TIMEOUT: Final[Seconds] = 0.5
"""To get a CLOSE out, and the other side to close: less than the second that a stop may take."""


class HandshakeError(PeerGone):
    """A handshake came to nothing; `close` is what the other side said, if it did.

    `is_authentication`: secret or certificate were why, whichever side found that out.
    """

    def __init__(
        self,
        failure: DialFailure,
        detail: str,
        close: Close | None = None,
        *,
        is_authentication: bool = False,
    ) -> None:
        super().__init__(detail)
        self.failure = failure
        self.close = close
        told = close is not None and close.reason == CloseReason.AUTHENTICATION
        self.is_authentication = is_authentication or told


async def shake_hands(
    stream: trio.abc.Stream, session: Session, timeout: Seconds
) -> list[WireMessage]:
    """Exchange HELLOs and proofs; return the messages that came together with the peer's.

    Raises:
        HandshakeError: It came to nothing, and the stream is closed.
    """
    try:
        with trio.fail_after(timeout):
            certificate = await tls.begin(stream)
            if certificate is not None:
                session.peer_is_certified_as(certificate.names)
            return await _exchange(stream, session)
    except trio.TooSlowError as error:
        farewell = Session.close_bytes(CloseReason.HANDSHAKE_TIMEOUT)
        failed = HandshakeError(DialFailure.TIMEOUT, f"no HELLO within {timeout:g} s")
        failed.__cause__ = error
    except RemoteProtocolError as error:
        farewell = Session.close_bytes(error.reason, str(error), error.value)
        is_ours = error.reason == CloseReason.AUTHENTICATION
        failed = HandshakeError(DialFailure.REJECTED, str(error), is_authentication=is_ours)
        failed.__cause__ = error
    except trio.BrokenResourceError as error:
        farewell = b""
        failed = _broken(error)
        await close_politely(tls.below(stream), tls.alert_of(stream))
    except HandshakeError as error:
        farewell = b""
        failed = error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    await close_politely(stream, farewell)
    raise failed


def _broken(error: trio.BrokenResourceError) -> HandshakeError:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        failed = HandshakeError(
            DialFailure.REJECTED, f"TLS: {tls.describe_error(cause)}", is_authentication=True
        )
    else:
        failed = HandshakeError(DialFailure.CLOSED, "the connection broke before the HELLO")
    failed.__cause__ = error
    return failed


async def _exchange(stream: trio.abc.Stream, session: Session) -> list[WireMessage]:
    early: list[WireMessage] = []
    while True:
        outgoing = session.data_to_send()
        if outgoing:
            await stream.send_all(outgoing)
        if session.is_open:
            return early
        data = await stream.receive_some(HANDSHAKE_READ_SIZE)
        if not data:
            raise HandshakeError(DialFailure.CLOSED, "closed by the other side before the HELLO")
        early = session.receive_data_untrusted(bytes(data))
        close = session.peer_close
        if close is not None:
            reason = describe_close(close)
            raise HandshakeError(DialFailure.CLOSED, f"refused by the other side: {reason}", close)


async def close_politely(stream: trio.abc.Stream, farewell: bytes) -> None:
    """Say goodbye for at most `FAREWELL_TIMEOUT`, then close whatever the peer does.

    Waits for the peer to close: data that nobody reads would make the kernel reset the
    connection, and the goodbye could be lost with it (RFC 1122 section 4.2.2.13).
    """
    if farewell:
        with (
            trio.move_on_after(FAREWELL_TIMEOUT, shield=True),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await stream.send_all(farewell)
            if await half_close(stream):
                while await stream.receive_some(HANDSHAKE_READ_SIZE):
                    pass
    await trio.aclose_forcefully(stream)


async def half_close(stream: trio.abc.Stream) -> bool:
    """Say that nothing more comes, and tell whether the stream can do that."""
    carrier = tls.below(stream)
    if not isinstance(carrier, trio.abc.HalfCloseableStream):
        return False
    await carrier.send_eof()
    return True


def describe_close(close: Close) -> str:
    """Say in words why a peer closed."""
    try:
        reason = CloseReason(close.reason).name
    except ValueError:
        reason = f"reason {close.reason}"
    return f"{reason} ({close.detail})" if close.detail else reason


def agent_name() -> str:
    """Name and version of this program."""
    try:
        return f"clusternode/{version('clusternode')}"
    except PackageNotFoundError:  # run from a source tree
        return "clusternode"
