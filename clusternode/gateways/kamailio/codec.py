"""Bytes ⇄ SIP messages of a DMQ bus: what is needed of RFC 3261, laid out as Kamailio does.

Everything read is untrusted; everything written is what Kamailio 5.6 to 6.x parse. The grammar of
SIP is that of the library `sipmessage`. Specified in docs/gateway-kamailio.md.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import attrs
from sipmessage import Address, Headers, Message, Request, Response
from sipmessage.uri import URI

from clusternode.errors import RemoteProtocolError

METHOD: Final = "KDMQ"
MESSAGE_SIZE_MAX: Final = 65_535
"""Kamailio's BUF_SIZE; also the most that a UDP datagram can hold."""
HEAD_SIZE_MAX: Final = 16 * 1024
"""Request line and headers: a REGISTER with many Path and Via headers fits well."""
HEADER_LINES_MAX: Final = 128
VALUE_LENGTH_MAX: Final = 1024
"""A From, To or Call-ID that is longer is not one; it bounds the work of the grammar."""
BODY_SIZE_MAX: Final = 64_500
"""A body with Kamailio's headers around it still fits into one UDP datagram of 65 507 bytes."""
SIP_PORT: Final = 5060
SIPS_PORT: Final = 5061

# Kamailio's `sl_send` writes `SIP/2.0/ host` to a peer that it has not met (trap 11), which the
# grammar refuses; so the transport may be missing here.
_VIA = re.compile(
    r"SIP\s*/\s*2\.0\s*/\s*(?P<transport>[A-Za-z]*)\s+"
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?:\s*:\s*(?P<port>[0-9]{1,5}))?"
)
_BRANCH = re.compile(r";\s*branch\s*=\s*([^;,\s]{1,256})", re.IGNORECASE)
_RPORT = re.compile(r";\s*rport\s*(?:;|$)", re.IGNORECASE)
_CSEQ = re.compile(r"([0-9]{1,10})\s+([A-Z]{1,32})")
_CONTENT_LENGTH = re.compile(
    rb"^(?:content-length|l)[ \t]*:[ \t]*([0-9]{1,9})[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_MALFORMED = (ValueError, KeyError, TypeError, IndexError)  # what the grammar raises


@attrs.define
class Via:
    """The topmost Via: where the sender wants its answers, and the name of its transaction."""

    value: str
    host: str
    port: int | None
    branch: str
    wants_source_port: bool
    """Whether it says `rport` (RFC 3581)."""


@attrs.define
class SipRequest:
    """A request as it came: routing facts picked out, the rest as text in `headers`."""

    method: str
    uri: URI
    via: Via
    call_id: str
    cseq: str
    headers: Headers
    body: bytes

    @property
    def channel(self) -> str:
        """The user part of the R-URI: what Kamailio calls the peer (dmq README 4.1)."""
        return self.uri.user or ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What all copies of one request share: topmost Via, Call-ID and CSeq."""
        return (self.via.value, self.call_id, self.cseq)

    @property
    def content_type(self) -> str:
        return (self.headers.get("Content-Type") or "")[:VALUE_LENGTH_MAX]

    @property
    def max_forwards(self) -> int:
        """Max-Forwards; 0 where it is missing or odd, as Kamailio reads it."""
        value = self.headers.get("Max-Forwards") or ""
        return int(value) if value.isascii() and value.isdigit() and len(value) < 4 else 0


@attrs.define
class SipResponse:
    """An answer: `branch` and `method` say to what."""

    code: int
    reason: str
    branch: str
    method: str
    headers: Headers
    body: bytes

    @property
    def content_type(self) -> str:
        return (self.headers.get("Content-Type") or "")[:VALUE_LENGTH_MAX]


SipMessage: TypeAlias = SipRequest | SipResponse


def parse_untrusted(data: bytes) -> SipMessage | None:
    """Read one message; None is a keep-alive of line ends and zeros only.

    Raises:
        RemoteProtocolError: It is no SIP message, breaks a bound, or lacks what an answer needs.
    """
    if len(data) > MESSAGE_SIZE_MAX:
        raise RemoteProtocolError(f"message of {len(data)} bytes, at most {MESSAGE_SIZE_MAX}")
    data = data.lstrip(b"\r\n\0")
    if not data:
        return None
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise RemoteProtocolError("no end of the headers")
    _check_head(head)
    if b"\r\n " in head or b"\r\n\t" in head:  # folded lines (RFC 3261 section 7.3.1)
        head = re.sub(rb"\r\n[ \t]+", b" ", head)
    try:
        message = Message.parse(b"%b\r\n\r\n" % head)
        body = _cut_body(message, body)
        if isinstance(message, Response):
            return _response(message, body)
        return _request(message, body)
    except _MALFORMED as error:
        raise RemoteProtocolError(f"malformed: {str(error)[:80] or type(error).__name__}") from None


def _check_head(head: bytes) -> None:
    if len(head) > HEAD_SIZE_MAX:
        raise RemoteProtocolError(f"headers of {len(head)} bytes, at most {HEAD_SIZE_MAX}")
    lines = head.count(b"\r\n")
    if lines > HEADER_LINES_MAX:
        raise RemoteProtocolError(f"{lines} header lines, at most {HEADER_LINES_MAX}")
    # Header values are copied into answers: nothing in them may end a line for somebody else.
    if b"\0" in head or head.count(b"\n") != lines or head.count(b"\r") != lines:
        raise RemoteProtocolError("a control character in the headers")


def _cut_body(message: Request | Response, body: bytes) -> bytes:
    value = message.headers.get("Content-Length")
    if value is None:
        return body
    if not (value.isascii() and value.isdigit() and len(value) <= len("65535")):
        raise ValueError("Content-Length")
    length = int(value)
    if length > len(body):
        raise ValueError(f"body of {len(body)} bytes, Content-Length {length}")
    return body[:length]


def _request(message: Request, body: bytes) -> SipRequest:
    call_id, cseq = message.headers["Call-ID"], message.headers["CSeq"]
    found = _CSEQ.fullmatch(cseq)
    if found is None or not 0 < len(call_id) <= VALUE_LENGTH_MAX:
        raise ValueError("CSeq or Call-ID")
    for name in ("From", "To"):
        if not 0 < len(message.headers[name]) <= VALUE_LENGTH_MAX:
            raise ValueError(name)
    via = read_via(message.headers["Via"])
    return SipRequest(message.method, message.uri, via, call_id, cseq, message.headers, body)


def _response(message: Response, body: bytes) -> SipResponse:
    found = _CSEQ.fullmatch(message.headers["CSeq"])
    if found is None or not 100 <= message.code <= 699:
        raise ValueError("CSeq or code")
    via = read_via(message.headers["Via"])
    reason = message.phrase[:VALUE_LENGTH_MAX]
    return SipResponse(message.code, reason, via.branch, found[2], message.headers, body)


def read_via(value: str) -> Via:
    """Read the first entry of a Via header.

    Raises:
        ValueError: It is none.
    """
    top = value.partition(",")[0].strip()
    found = _VIA.match(top)
    if found is None or len(top) > VALUE_LENGTH_MAX:
        raise ValueError("Via")
    branch = _BRANCH.search(top)
    port = found["port"]
    return Via(
        value=top,
        host=found["host"].strip("[]"),
        port=int(port) if port and 0 < int(port) <= 65_535 else None,
        branch=branch[1] if branch else "",
        wants_source_port=_RPORT.search(top) is not None,
    )


def from_uri(request: SipRequest) -> URI:
    """Return the URI of From: whom a DMQ request says that it is from.

    Raises:
        RemoteProtocolError: It cannot be read.
    """
    return read_address(request.headers["From"])


def read_address(value: str) -> URI:
    """Return the URI of a From or To.

    Raises:
        RemoteProtocolError: It cannot be read.
    """
    try:
        return Address.parse(value).uri
    except _MALFORMED:
        raise RemoteProtocolError("malformed: address") from None


@attrs.frozen
class Identity:
    """How we sign our messages: the address as text, and the name of the program."""

    host: str
    port: int
    transport: str
    """udp, tcp or tls."""
    agent: str

    @property
    def via_host(self) -> str:
        """Host and port as Kamailio writes them: without a port that is the default."""
        default = SIPS_PORT if self.transport == "tls" else SIP_PORT
        return self.host if self.port == default else f"{self.host}:{self.port}"

    @property
    def parameter(self) -> str:
        return "" if self.transport == "udp" else f";transport={self.transport}"


def encode_request(
    identity: Identity,
    *,
    channel: str,
    to: str,
    branch: str,
    tag: str,
    call_id: str,
    max_forwards: int,
    content_type: str,
    body: bytes,
) -> bytes:
    """Write a KDMQ request. `to` is host:port and transport parameter of the receiver."""
    parameter = identity.parameter
    head = (
        f"{METHOD} sip:{channel}@{to} SIP/2.0\r\n"
        f"Via: SIP/2.0/{identity.transport.upper()} {identity.via_host};branch={branch}\r\n"
        f"To: <sip:{channel}@{to}>\r\n"
        f"From: <sip:{channel}@{identity.host}:{identity.port}{parameter}>;tag={tag}\r\n"
        f"CSeq: 10 {METHOD}\r\n"
        f"Call-ID: {call_id}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"User-Agent: {identity.agent}\r\n"
        f"Max-Forwards: {max_forwards}\r\n"
        f"Content-Type: {content_type}\r\n\r\n"
    )
    return head.encode() + body


def encode_reply(
    request: SipRequest,
    code: int,
    reason: str,
    *,
    tag: str,
    agent: str,
    content_type: str = "",
    body: bytes = b"",
) -> bytes:
    """Write the answer to a request: its headers copied, a To tag added."""
    headers = request.headers
    to = headers["To"]
    if ";tag=" not in to.lower():
        to = f"{to};tag={tag}"
    lines = [f"SIP/2.0 {code} {reason}"]
    lines += [f"Via: {value}" for value in headers.getlist("Via")]
    lines += [
        f"To: {to}",
        f"From: {headers['From']}",
        f"CSeq: {request.cseq}",
        f"Call-ID: {request.call_id}",
    ]
    if body:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"Server: {agent}", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


class StreamReader:
    """Cuts a TCP stream into messages, by Content-Length (RFC 3261 section 18.3)."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed_untrusted(self, data: bytes) -> list[bytes]:
        """Return the messages that `data` completes. Keeps at most one incomplete message.

        Raises:
            RemoteProtocolError: The stream cannot be followed any more; close it.
        """
        self._data += data
        messages: list[bytes] = []
        while True:
            start = len(self._data) - len(self._data.lstrip(b"\r\n\0"))
            del self._data[:start]
            end = self._data.find(b"\r\n\r\n", 0, HEAD_SIZE_MAX + 4)
            if end < 0:
                if len(self._data) > HEAD_SIZE_MAX:
                    raise RemoteProtocolError(f"headers of more than {HEAD_SIZE_MAX} bytes")
                return messages
            head = bytes(self._data[:end]).replace(b"\r\n", b"\n")
            found = _CONTENT_LENGTH.search(head)
            if found is None:
                raise RemoteProtocolError("no Content-Length on a stream")
            size = end + 4 + int(found[1])
            if size > MESSAGE_SIZE_MAX:
                raise RemoteProtocolError(f"message of {size} bytes, at most {MESSAGE_SIZE_MAX}")
            if len(self._data) < size:
                return messages
            messages.append(bytes(self._data[:size]))
            del self._data[:size]
