"""`unix:PATH[?type=stream]`: which of the two kinds of sockets it is."""

from __future__ import annotations

from urllib.parse import parse_qs

from clusternode.backends.base import BackendServices, EventBackend
from clusternode.backends.datagram import UnixDatagramBackend
from clusternode.backends.stream import UnixStreamBackend


def make_unix_backend(rest: str, services: BackendServices) -> EventBackend:
    """Return the back end of a unix socket: datagrams, where nothing else is said.

    Raises:
        ConfigError: Path, type or option is wrong.
    """
    if parse_qs(rest.partition("?")[2]).get("type") == ["stream"]:
        return UnixStreamBackend(rest, services)
    return UnixDatagramBackend(rest, services)
