"""`[gateway.opensips]`: the keys, named as in OpenSIPS's module clusterer where it has them."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final

import attrs

from clusternode.core.types import PORT_MAX, Seconds
from clusternode.gateways.opensips.messages import Description

PORT_DEFAULT: Final = 5555
"""OpenSIPS's bin_port; of `bins:` 5556."""
PORT_DEFAULT_TLS: Final = 5556
PRIORITY_DEFAULT: Final = 50
PRIORITY_OF_NEIGHBOURS: Final = 3
"""Of a configured node: what every OpenSIPS that is not in a database says of itself."""
RETRIES_DEFAULT: Final = 3
PACE_DEFAULT: Final = 2000
"""Four senders at this pace are as much as an OpenSIPS 4.0 with two TCP workers took without loss.

Measured: up to 6800 messages a second nothing was lost, at 8000 in one of two runs, at 10 000 in
each. 3.6 takes what comes.
"""

_URL = re.compile(
    r"(bins?):(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?"
)


@attrs.frozen
class BinUrl:
    """Where a node listens: `bin:HOST:PORT`, or `bins:HOST:PORT` for TLS."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> BinUrl:
        """Read a url.

        Raises:
            ValueError: It is none.
        """
        found = _URL.fullmatch(text)
        if found is None:
            raise ValueError(text)
        scheme, ipv6, name, digits = found.groups()
        port = int(digits) if digits else PORT_DEFAULT if scheme == "bin" else PORT_DEFAULT_TLS
        if not 0 < port <= PORT_MAX:
            raise ValueError(text)
        host = name or str(ipaddress.IPv6Address(ipv6))
        return cls(scheme, host.lower(), port)

    @property
    def is_tls(self) -> bool:
        return self.scheme == "bins"

    @property
    def is_numeric(self) -> bool:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}:{host}:{self.port}"


@attrs.frozen
class MyNodeInfo:
    """What the others are told of us."""

    url: BinUrl
    """Who we are, and from where we connect: nodes are known by this IP address."""
    sip_addr: str = ""
    """Opaque; modules of OpenSIPS compare it."""
    is_seed: bool = False
    """`flags=seed`: whose data counts as complete when nobody can be asked for it."""
    cluster_id: int = 0
    """Where it is said here too; else 0."""


@attrs.frozen
class Neighbour:
    """A node to begin with."""

    node_id: int
    url: BinUrl
    cluster_id: int = 0
    """Where it is said here too; else 0."""


@attrs.frozen(kw_only=True)
class OpenSipsSettings:
    """What one node of an OpenSIPS cluster needs to know."""

    cluster_id: int
    """The cluster, from 1 on; OpenSIPS has room for two digits in its tags."""
    my_node_id: int
    """Our id, from 1 on: one that no other node of the cluster has."""
    my_node_info: MyNodeInfo
    """What the others are told of us, as in opensips.cfg: `url`, and if wanted `sip_addr` and
    `flags=seed`."""
    neighbor_node_info: tuple[Neighbour, ...] = ()
    """`node_id=N, url=bin:IP:PORT` of each node to begin with; one that lives is enough."""
    socket: BinUrl | None = None
    """What is bound, where it is not our url: `bin:0.0.0.0:5555`."""
    priority: int = PRIORITY_DEFAULT
    """How the others prefer us as a way to third nodes: lower first."""
    retries: int = RETRIES_DEFAULT
    """How many pings in a row may fail before the others pause (OpenSIPS: no_ping_retries)."""
    ping_interval: Seconds = 4.0
    """Between two pings of a node that says nothing."""
    ping_timeout: Seconds = 1.0
    """How long a ping may stay unanswered (OpenSIPS: in milliseconds)."""
    node_timeout: Seconds = 60.0
    """Between two attempts at a node that is down."""
    enable_rerouting: bool = True
    """Whether nodes to which our link is down are reached through others."""
    pace: int = PACE_DEFAULT
    """Messages a second that one node gets of us, 0 for no limit: OpenSIPS 4.0 closes the
    connection and drops what it has read when a burst of some 300 fills its queue to a worker."""
    capabilities: tuple[str, ...] = ()
    """Capabilities that routes replicate themselves; each is announced, and is a channel."""
    cache_collections: tuple[str, ...] = ()
    """Replicated collections of cachedb_local to keep a live copy of."""
    usrloc: bool = False
    """Whether to keep a copy of the contacts of usrloc, synced from a node; changes are events."""
    sharing_tags: tuple[tuple[str, bool], ...] = ()
    """Sharing tags of which we are a node: `vip`, or `vip=active` to take it at the start."""
    mi_allow: tuple[str, ...] = ()
    """MI commands that the other nodes may run here: names of routes; none by default."""
    sync_timeout: Seconds = 15.0
    """How long a donor may be silent before another one is asked."""
    sync_packet_size: int = 32_768
    """A packet of a sync is closed when it would become larger, in bytes."""
    seed_fallback_interval: Seconds = 5.0
    """How long a seed looks for a donor before its own data counts as complete."""
    tls_certificate: Path | None = None
    """Our certificate, for `bins:`."""
    tls_key: Path | None = None
    """The key of our certificate."""
    tls_ca: Path | None = None
    """Whose certificates are believed, for `bins:`."""
    insecure: bool = False
    """Allow to listen beyond loopback: without TLS, whoever reaches the port can join, and the
    network must keep others out."""

    @property
    def listen(self) -> BinUrl:
        return self.socket or self.my_node_info.url

    @property
    def description(self) -> Description:
        """What we say of ourselves in NODE_DESCRIPTION."""
        info = self.my_node_info
        return Description(str(info.url), info.sip_addr, self.priority, self.retries)
