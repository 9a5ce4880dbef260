"""The words of a DMQ bus ⇄ ours: addresses, member lists, codes, and requests of a script.

Nothing here trusts what it reads. What is written is limited to what every version of Kamailio
parses: see "Never harm" in docs/gateway-kamailio.md.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs
from sipmessage.uri import URI

from clusternode.core.types import NodeId, ResultCode, Seconds, Tag, is_name
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.codec import SIP_PORT, SIPS_PORT, SipRequest, read_address

TRANSPORTS: Final = ("udp", "tcp", "tls")
LIST_BODY_SIZE_MAX: Final = 1024
"""NBODY_LEN of Kamailio's notification_peer.c, in all versions: what a node can say of the bus."""
LIST_LINE_ROOM: Final = 32
"""So many bytes beside the URI must be free for each line, or the node falls silent (measured)."""
MEMBERS_LISTED_MAX: Final = 28
"""With the own line 29: the most that a 1024-byte list holds of `sip:10.0.0.21:5060`."""
LIST_LINES_READ_MAX: Final = 64
"""Lines of a foreign list that are looked at; no Kamailio can write more than 40."""
LIST_CONTENT_TYPE: Final = "text/plain"
ADDRESSES_REMEMBERED: Final = 512
"""Senders and addresses whose text was read already: every message names one of few nodes."""
STATUSES: Final = ("active", "not_active", "disabled", "pending", "timeout")

REQUEST_CONTENT_TYPE: Final = "text/x-clusternode-request"
REPLY_CONTENT_TYPE: Final = "text/x-clusternode-reply"
SCRIPT_REQUEST_TIMEOUT: Final[Seconds] = 30.0
"""How long a script's request may be answered; Kamailio's own fr_timer."""

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_FIRST_LINE = re.compile(rb"([!-~]{1,64}) ([A-Za-z0-9._:-]{1,64})\r?\n")


@attrs.frozen
class PeerAddress:
    """Where a node of the bus is: the identity that DMQ knows, with a numeric host."""

    transport: str
    host: str
    port: int

    @property
    def is_ipv4(self) -> bool:
        return is_ipv4(self.host)

    @property
    def target(self) -> str:
        """Host, port and transport as they stand in a SIP URI."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        parameter = "" if self.transport == "udp" else f";transport={self.transport}"
        return f"{host}:{self.port}{parameter}"

    @property
    def uri(self) -> str:
        return f"sip:{self.target}"

    @property
    def node_id(self) -> NodeId:
        """`10.0.0.1:5060` for UDP, else with the transport in front: `tcp:10.0.0.1:5060`."""
        name = f"{self.host}:{self.port}"
        return NodeId(name if self.transport == "udp" else f"{self.transport}:{name}")


def is_ipv4(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return False


def is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_sendable(host: str) -> bool:
    """Tell whether a numeric host can be one node: no multicast, broadcast or wildcard."""
    address = ipaddress.ip_address(host)
    return not (address.is_multicast or address.is_unspecified or host == "255.255.255.255")


@attrs.frozen
class NamedAddress:
    """An address as somebody wrote it; the host may be a name."""

    transport: str
    host: str
    port: int
    has_port: bool = True

    @property
    def numeric(self) -> PeerAddress | None:
        """The address, where its host needs no look-up and can be one node."""
        return _numeric(self.transport, self.host, self.port)


@functools.lru_cache(maxsize=ADDRESSES_REMEMBERED)
def _numeric(transport: str, host: str, port: int) -> PeerAddress | None:
    if not is_numeric(host) or not is_sendable(host):
        return None
    return PeerAddress(transport, str(ipaddress.ip_address(host)), port)


def address_of(uri: URI) -> NamedAddress:
    """Return whom a SIP URI names: what counts is host, port and transport.

    Raises:
        ValueError: It has none that DMQ knows.
    """
    if uri.scheme not in ("sip", "sips"):
        raise ValueError("scheme")
    default = "tls" if uri.scheme == "sips" else "udp"
    transport = (uri.parameters.get("transport") or default).lower()
    host = uri.host.strip("[]").rstrip(".").lower()
    if transport not in TRANSPORTS or not (is_numeric(host) or _HOST.fullmatch(host)):
        raise ValueError("host or transport")
    port = uri.port
    if port is None:
        port = SIPS_PORT if transport == "tls" else SIP_PORT
    if not 0 < port <= 65_535:
        raise ValueError("port")
    return NamedAddress(transport, host, port, uri.port is not None)


@functools.lru_cache(maxsize=ADDRESSES_REMEMBERED)
def _sender(address: str) -> NamedAddress | None:
    try:
        return address_of(read_address(address))
    except (ValueError, RemoteProtocolError):
        return None


def sender_of(request: SipRequest) -> NamedAddress:
    """Return whom a DMQ request says that it is from.

    Raises:
        RemoteProtocolError: From names nobody.
    """
    found = _sender(request.headers["From"].partition(";tag=")[0])
    if found is None:
        raise RemoteProtocolError("malformed: From")
    return found


def parse_address(text: str) -> NamedAddress:
    """Read `sip:host[:port][;transport=…]`.

    Raises:
        ValueError: It is none.
    """
    if len(text) > 512:
        raise ValueError("length")
    try:
        return address_of(URI.parse(text))
    except (KeyError, TypeError, IndexError) as error:  # the grammar, on odd parameters
        raise ValueError(str(error)) from None


# --- member lists -------------------------------------------------------------------------------


@attrs.frozen
class ListLine:
    """One line of a member list: a rumour until the node itself has answered."""

    address: NamedAddress
    status: str
    """Empty when the line has none, or one that no version knows."""


def parse_list_untrusted(body: bytes) -> list[ListLine]:
    """Return the lines of a member list that can be read; the rest is skipped."""
    lines: list[ListLine] = []
    for raw in body[: 4 * LIST_BODY_SIZE_MAX].split(b"\n")[:LIST_LINES_READ_MAX]:
        text = raw.strip(b"\r \t")
        if not text:
            continue
        try:
            uri = URI.parse(text[:512].decode("ascii"))
            status = uri.parameters.get("status") or ""
            address = address_of(uri)
        except (ValueError, KeyError, TypeError, IndexError):  # the grammar, on hostile text
            continue
        lines.append(ListLine(address, status if status in STATUSES else ""))
    return lines


def fits_into_list(addresses: Iterable[PeerAddress]) -> bool:
    """Tell whether a Kamailio that knows all of these can still write its list."""
    used = 0
    for address in addresses:
        uri = address.uri
        if used + len(uri) + LIST_LINE_ROOM > LIST_BODY_SIZE_MAX:
            return False
        used += len(uri) + len(";status=active\r\n")
    return True


def encode_list(own: PeerAddress, members: Sequence[PeerAddress]) -> bytes:
    """Write the list of active members that every version can parse and hold.

    Only IPv4: no Kamailio resolves the other lines, and old ones wedge on them. If somebody who
    knew all of them could no longer write a list of his own, only the own line is told.
    """
    listed = [address for address in members if address.is_ipv4 and address != own]
    if len(listed) > MEMBERS_LISTED_MAX or not fits_into_list([*listed, own]):
        listed = []
    return b"".join(f"{address.uri};status=active\r\n".encode() for address in (*listed, own))


def encode_leave(own: PeerAddress) -> bytes:
    """Write the one line that takes us off a list; it is to go to each node directly."""
    return f"{own.uri};status=disabled\r\n".encode()


# --- codes --------------------------------------------------------------------------------------

REASONS: Final[Mapping[ResultCode, str]] = {
    ResultCode.OK: "OK",
    ResultCode.QUEUED: "Accepted",
    ResultCode.BAD_REQUEST: "Bad Request",
    ResultCode.FORBIDDEN: "Forbidden",
    ResultCode.NOT_FOUND: "Not Found",
    ResultCode.TOO_LARGE: "Request Entity Too Large",
    ResultCode.UNAVAILABLE: "Temporarily Unavailable",
    ResultCode.BUSY: "Busy Here",
    ResultCode.FAILED: "Server Internal Error",
    ResultCode.LEAVING: "Service Unavailable",
}


def reply_of(code: ResultCode) -> tuple[int, str]:
    """Return what a handler's result is on the bus.

    Never 408: a sender would take it for a node that is gone, whatever the reason.
    """
    if code not in REASONS:
        code = ResultCode.FAILED
    return int(code), REASONS[code]


def result_of(code: int) -> ResultCode:
    """Return what a final SIP code means for us."""
    if 200 <= code < 300:
        return ResultCode.QUEUED if code == ResultCode.QUEUED else ResultCode.OK
    try:
        return ResultCode(code)
    except ValueError:
        return ResultCode.FAILED if code >= 500 else ResultCode.BAD_REQUEST


# --- requests of a script -----------------------------------------------------------------------


@attrs.frozen
class ScriptRequest:
    """A request of a kamailio.cfg: where its replies go, and by what they are known."""

    tag: Tag
    reply_channel: str
    body: bytes


def parse_script_request_untrusted(body: bytes) -> ScriptRequest | None:
    """Read `TAG REPLY_CHANNEL`, a line end and the body; None when it is no such thing."""
    found = _FIRST_LINE.match(body)
    if found is None:
        return None
    tag, channel = found[1].decode("ascii"), found[2].decode("ascii")
    return ScriptRequest(Tag(tag), channel, body[found.end() :])


def encode_script_reply(tag: Tag, code: int, body: bytes) -> bytes:
    """Write `TAG CODE`, a line end and the body."""
    return b"%b %d\n%b" % (tag.encode(), code, body)


def is_channel(text: str) -> bool:
    """Tell whether a channel of the bus can be one of ours."""
    return is_name(text)
