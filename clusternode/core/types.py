"""The small words that everything else is made of. Specified in docs/protocol.md, section 2."""

from __future__ import annotations

import enum
import re
from typing import NewType, TypeAlias

import attrs

from clusternode.errors import ConfigError

NodeId = NewType("NodeId", str)
ChannelName = NewType("ChannelName", str)
Tag = NewType("Tag", str)
Incarnation = NewType("Incarnation", int)
ConnectionId = NewType("ConnectionId", int)
"""Given by whoever owns the connection (shell or simulator); never used twice by one node."""
DeliveryId = NewType("DeliveryId", int)
RequestId = NewType("RequestId", int)

Instant: TypeAlias = float
"""A point in time in seconds on a clock without a known zero."""
Seconds: TypeAlias = float

NAME_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""Node ids, channels and tag keys (protocol limit)."""

SCHEMES = ("tcp", "tls", "srv")


def is_name(text: str) -> bool:
    return NAME_PATTERN.fullmatch(text) is not None


class ResultCode(enum.IntEnum):
    """The final result of a message at one destination; the numbers are DMQ's SIP codes."""

    OK = 200
    """Every handler ran to its end, once."""
    QUEUED = 202
    """Taken into the receiver's queue; final only where the channel says `result = "queued"`."""
    BAD_REQUEST = 400
    """The frame closed the connection twice and was skipped, or its type is unknown there."""
    FORBIDDEN = 403
    """The receiver's configuration does not let us send there, or a handler refused."""
    NOT_FOUND = 404
    """Nobody listens on that channel there; for a reply: no request with that tag is open."""
    TIMEOUT = 408
    """No answer within `result_timeout`. It may have happened."""
    TOO_LARGE = 413
    """The body is larger than the receiver's `body_size_max`; it was not sent."""
    UNAVAILABLE = 480
    """The node is not active, unknown, or has gone before the frame was written."""
    BUSY = 486
    """The receiver's queue or our outbox is full."""
    FAILED = 500
    """A handler raised or was stopped. It may have happened in part."""
    LEAVING = 503
    """The receiver is leaving the cluster."""

    @property
    def definite(self) -> bool:
        """Tell whether the message was certainly not handled."""
        return self not in _MAY_HAVE_HAPPENED


_MAY_HAVE_HAPPENED = frozenset(
    {ResultCode.OK, ResultCode.QUEUED, ResultCode.TIMEOUT, ResultCode.FAILED}
)


class OverflowPolicy(enum.Enum):
    """What happens to a message for a peer whose outbox is full."""

    REJECT = "reject"
    """The new message ends with 486."""
    DROP_OLDEST = "drop_oldest"
    """The oldest message of that channel that was not yet written ends with 486."""
    WAIT = "wait"
    """The message waits for room for at most `wait_max`, then ends with 486."""


@attrs.frozen(cache_hash=True)  # the key of nearly everything about dials
class Address:
    """Where a node can be dialled: `tcp://host:port`, `tls://host:port`, IPv6 in brackets.

    `srv://name` (port 0) stands for whatever the SRV records of that name say (RFC 2782).
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, setting: str = "address") -> Address:
        """Read an address.

        Raises:
            ConfigError: `text` is not an address; names `setting` and what was expected.
        """
        expected = "tcp://HOST:PORT or srv://NAME, an IPv6 address in brackets"
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ConfigError(setting, text, expected)
        if scheme == "srv":
            if not rest or ":" in rest or len(rest) > HOST_LENGTH_MAX:
                raise ConfigError(setting, text, "srv://NAME, without a port")
            return cls(scheme, rest.rstrip(".").lower(), 0)
        host, separator, port = rest.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ConfigError(setting, text, expected)
        if not separator or not _HOST.fullmatch(host) or not _PORT.fullmatch(port):
            raise ConfigError(setting, text, expected)
        if not 0 <= int(port) <= PORT_MAX:
            raise ConfigError(setting, text, f"a port of at most {PORT_MAX}")
        return cls(scheme, host.lower(), int(port))

    def __str__(self) -> str:
        if self.scheme == "srv":
            return f"srv://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


HOST_LENGTH_MAX = 253  # RFC 1035 section 2.3.4, without the final dot
PORT_MAX = 65535
_HOST = re.compile(rf"[A-Za-z0-9._:%-]{{1,{HOST_LENGTH_MAX}}}")
_PORT = re.compile(r"[0-9]{1,5}")
