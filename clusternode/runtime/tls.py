"""TLS between nodes: contexts from files, a transport around another, and who a peer is.

A certificate names its node as a subject alternative name, the URI `clusternode:NODE_ID` or the
DNS name `NODE_ID`; host names play no part, because it is the node that is proved, wherever it
runs. Spec: docs/protocol.md, 5.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from clusternode.config import TlsSection
from clusternode.core.types import Address, NodeId, Seconds
from clusternode.errors import ConfigError
from clusternode.runtime.keyring import check_mode
from clusternode.runtime.transport import Listener, Transport, Wire

SCHEME: Final = "tls"
URI_PREFIX: Final = "clusternode:"
CIPHERS_TLS12: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Those of TLS 1.2 with forward secrecy and authenticated encryption; TLS 1.3 has no others."""
PROBE_STEPS_MAX: Final = 10
"""A handshake takes four flights; more means that it goes nowhere."""

PeerCertificate = Mapping[str, Any]
"""What `ssl.SSLObject.getpeercert` gives."""


@attrs.frozen
class Certificate:
    """What matters of a certificate."""

    names: Collection[str]
    """The node ids that it names."""
    not_after: datetime


@attrs.frozen
class Prepared:
    """Credentials that were read and tried, and may take effect."""

    section: TlsSection
    client: ssl.SSLContext
    server: ssl.SSLContext
    own: Certificate
    stamps: tuple[object, ...]


class Credentials:
    """The certificate, key and authority of this node as they are now; `reload` replaces them.

    Connections that are open stay open: certificates are checked once, at their beginning.
    """

    def __init__(self, section: TlsSection, node_id: NodeId) -> None:
        self.section = section
        self._node_id = node_id
        self._stamps: tuple[object, ...] = ()
        self.client: ssl.SSLContext
        self.server: ssl.SSLContext
        self.own: Certificate
        self.load()

    def load(self) -> None:
        """Read the files again.

        Raises:
            ConfigError: Names the file and what is wrong with it; everything stays as it was.
        """
        self.install(self.prepare())

    def prepare(self, section: TlsSection | None = None) -> Prepared:
        """Read the files, those of another section if given, and change nothing yet.

        Raises:
            ConfigError: Names the file and what is wrong with it.
        """
        section = section or self.section
        stamps = _look(section)
        client = _context(ssl.PROTOCOL_TLS_CLIENT, section)
        server = _context(ssl.PROTOCOL_TLS_SERVER, section)
        own = _probe(client, server, section)
        if self._node_id not in own.names:
            raise ConfigError(
                "tls.certificate",
                str(section.certificate),
                f"a certificate that names node {self._node_id} (URI:{URI_PREFIX}{self._node_id});"
                f" it names {', '.join(sorted(own.names)) or 'no node'}",
            )
        return Prepared(section, client, server, own, stamps)

    def install(self, prepared: Prepared) -> None:
        """Let connections that begin from now on use what was prepared."""
        self.section = prepared.section
        self.client, self.server = prepared.client, prepared.server
        self.own, self._stamps = prepared.own, prepared.stamps

    def have_files_changed(self) -> bool:
        return _look(self.section) != self._stamps


def _look(section: TlsSection) -> tuple[object, ...]:
    return tuple(_stamp(path) for path in (section.certificate, section.key, section.ca))


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _context(protocol: int, section: TlsSection) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS12)
    # A resumed session would not see that a certificate has expired since.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    else:
        context.check_hostname = False  # the node id is checked instead, when HELLO has said it
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER and not section.mutual:
        context.verify_mode = ssl.CERT_NONE
    try:
        context.load_verify_locations(section.ca)
    except (OSError, ssl.SSLError) as error:
        raise _wrong_file("ca", section.ca, "a file with the authority's certificate", error)  # noqa: B904  # has it as its cause
    try:
        with section.key.open("rb") as file:
            check_mode(os.fstat(file.fileno()), "tls.key", str(section.key))
        context.load_cert_chain(section.certificate, section.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        what = "a certificate and, in `key`, its private key without a password"
        raise _wrong_file("certificate", section.certificate, what, error)  # noqa: B904  # as above
    return context


def _no_password() -> str:
    """Keep OpenSSL from asking for one on the terminal."""
    return ""


def _wrong_file(key: str, path: Path, expected: str, error: OSError) -> ConfigError:
    reason = error.strerror if not isinstance(error, ssl.SSLError) else describe_error(error)
    raised = ConfigError(f"tls.{key}", str(path), f"{expected} ({reason})")
    raised.__cause__ = error
    return raised


def _probe(client: ssl.SSLContext, server: ssl.SSLContext, section: TlsSection) -> Certificate:
    """Let the two contexts shake hands: what fails here would fail with every peer."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialer = client.wrap_bio(to_client, to_server)
    listener = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(PROBE_STEPS_MAX):
            is_done = [_advance(dialer), _advance(listener)]
            if all(is_done):
                break
        certificate = certificate_of(dialer.getpeercert())
    except ssl.SSLError as error:
        reason = describe_error(error)
        raise ConfigError(
            "tls.certificate",
            str(section.certificate),
            f"a certificate that the authority in {section.ca} has issued and that is valid now,"
            f" for servers and clients ({reason})",
        ) from error
    assert certificate is not None
    return certificate


def _advance(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def certificate_of(peer: PeerCertificate | None) -> Certificate | None:
    """Return what matters of a peer's certificate; None where it has shown none."""
    if not peer:
        return None
    names = []
    for kind, value in peer.get("subjectAltName", ()):
        if kind == "DNS":
            names.append(value)
        elif kind == "URI" and value.startswith(URI_PREFIX):
            names.append(value.removeprefix(URI_PREFIX))
    seconds = ssl.cert_time_to_seconds(peer["notAfter"])
    return Certificate(frozenset(names), datetime.fromtimestamp(seconds, UTC))


def describe_error(error: ssl.SSLError) -> str:
    """Say in a few words why TLS failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    reason = error.reason or str(error)
    return REASONS.get(reason, reason.replace("_", " ").lower())


REASONS: Final[Mapping[str, str]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side wants a certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the other side does not know the authority of our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side says that our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other side refuses our certificate",
    "UNSUPPORTED_PROTOCOL": "a version of TLS that is too old",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side takes no such old version of TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it speaks HTTP, not TLS",
}
"""OpenSSL's reasons that an operator meets, in words."""


# --- the transport --------------------------------------------------------------------------------


class TlsTransport:
    """Another transport, and TLS over it where the address says `tls://`."""

    def __init__(self, inner: Transport, credentials: Credentials) -> None:
        self._inner = inner
        self.credentials = credentials

    async def dial(self, address: Address, timeout: Seconds) -> Wire:
        if address.scheme != SCHEME:
            return await self._inner.dial(address, timeout)
        wire = await self._inner.dial(attrs.evolve(address, scheme="tcp"), timeout)
        return _wrapped(wire, self.credentials.client, is_server=False)

    async def listen(self, address: Address) -> Listener:
        if address.scheme != SCHEME:
            return await self._inner.listen(address)
        inner = await self._inner.listen(attrs.evolve(address, scheme="tcp"))
        return TlsListener(inner, self.credentials)


class TlsListener:
    """A listener whose connections begin with TLS; the handshake is up to who accepts."""

    def __init__(self, inner: Listener, credentials: Credentials) -> None:
        self._inner = inner
        self._credentials = credentials

    @property
    def address(self) -> Address:
        return attrs.evolve(self._inner.address, scheme=SCHEME)

    async def accept(self) -> Wire:
        return _wrapped(await self._inner.accept(), self._credentials.server, is_server=True)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _wrapped(wire: Wire, context: ssl.SSLContext, *, is_server: bool) -> Wire:
    # Frames say where they end, so nothing is lost to who cuts a connection off without notice.
    stream: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(
        wire.stream, context, server_side=is_server, https_compatible=True
    )
    return attrs.evolve(wire, stream=stream)


async def begin(stream: trio.abc.Stream) -> Certificate | None:
    """Shake hands where the stream is TLS, and return the peer's certificate.

    Raises:
        trio.BrokenResourceError: It failed; the cause is OpenSSL's error.
    """
    if not isinstance(stream, trio.SSLStream):
        return None
    await stream.do_handshake()
    return certificate_of(stream.getpeercert())


def peer_certificate(stream: trio.abc.Stream) -> Certificate | None:
    """Return the peer's certificate of a stream that has begun."""
    return certificate_of(stream.getpeercert()) if isinstance(stream, trio.SSLStream) else None


def alert_of(stream: trio.abc.Stream) -> bytes:
    """Return what OpenSSL would tell the peer about a failed handshake, which trio does not send.

    Without it the peer sees the connection end and does not learn why.
    """
    outgoing = getattr(stream, "_outgoing", None)  # trio 0.26 to 0.35; else nothing is told
    return outgoing.read() if isinstance(outgoing, ssl.MemoryBIO) else b""


def below(stream: trio.abc.Stream) -> trio.abc.Stream:
    """Return what carries the bytes: what TLS runs over, or the stream itself."""
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
