"""Every packet of an OpenSIPS cluster, as values.

Layouts: OpenSIPS 3.3 to 4.0, modules clusterer, proto_bin, cachedb_local and usrloc; written down
in docs/gateway-opensips.md.

Texts that OpenSIPS treats as names are `str`: UTF-8, with surrogate escapes for other bytes, so
that they encode to the bytes that they came from. What belongs to users is `bytes`. Times are Unix
seconds of the sender's clock. All instances are values: nobody changes one after it was made.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final, TypeAlias

import attrs

INTERNAL: Final = "clusterer-internal"
"""The capability of topology messages, which end with a path and have no trailer."""
EXTRA: Final = "clusterer-extra"
"""The capability of scripts, remote commands, sync and sharing tags."""
CACHE: Final = "cachedb-local-repl"
CONTACTS: Final = "usrloc-contact-repl"

PACKET_VERSION: Final = 1
"""Version of topology and generic packets; the real nodes do not look at it."""
SYNC_VERSION: Final = 3
"""Version of SYNC_REQ, SYNC and SYNC_END; others are refused by the real nodes."""


class LinkState(enum.IntEnum):
    """The last field of LS_UPDATE."""

    UP = 0
    DOWN = 1


# --- topology: header, cluster id, sender, fields, path ------------------------------------------


@attrs.frozen
class Ping:
    """Heartbeat, or a probe of a link that is not up, which also wants the known ids."""

    TYPE: ClassVar[int] = 0
    cluster_id: int
    source: int
    wants_nodes: bool


@attrs.frozen
class Pong:
    """The answer to a ping: all ids known but the asker's, or none when not asked for."""

    TYPE: ClassVar[int] = 1
    cluster_id: int
    source: int
    node_ids: tuple[int, ...] = ()


@attrs.frozen
class LinkUpdate:
    """LS_UPDATE: the originator's link with a neighbour changed. Flooded."""

    TYPE: ClassVar[int] = 2
    cluster_id: int
    source: int
    sequence: int
    timestamp: int
    neighbour: int
    state: LinkState
    path: tuple[int, ...]


@attrs.frozen
class Description:
    """What a node says of itself in NODE_DESCRIPTION, and others of it in FULL_TOP_UPDATE."""

    url: str
    """`bin:HOST:PORT` or `bins:HOST:PORT`."""
    sip_addr: str
    priority: int
    retries: int
    """no_ping_retries."""


@attrs.frozen
class Adjacency:
    """One node of a FULL_TOP_UPDATE: its neighbours, and its description for who may lack it."""

    node_id: int
    description: Description | None
    link_sequence: int
    """-1 while it has never sent an LS_UPDATE."""
    link_timestamp: int
    neighbours: tuple[int, ...]


@attrs.frozen
class TopologyUpdate:
    """FULL_TOP_UPDATE: the neighbour lists of all nodes; the first entry is the originator."""

    TYPE: ClassVar[int] = 3
    cluster_id: int
    source: int
    sequence: int
    timestamp: int
    nodes: tuple[Adjacency, ...]
    path: tuple[int, ...]


@attrs.frozen
class UnknownId:
    """A PING came from an id that is not known; goes back on the same connection."""

    TYPE: ClassVar[int] = 4
    cluster_id: int
    source: int


@attrs.frozen
class NodeDescription:
    """A node introduces itself after UNKNOWN_ID. Flooded by those to whom it was new."""

    TYPE: ClassVar[int] = 5
    cluster_id: int
    source: int
    description: Description
    path: tuple[int, ...]


@attrs.frozen
class NodeCapabilities:
    """The capabilities of one node: (name, is it synced)."""

    node_id: int
    capabilities: tuple[tuple[str, bool], ...]


@attrs.frozen
class CapabilityUpdate:
    """CAP_UPDATE: a link came up, or a state changed. Flooded with `wants_reply` false."""

    TYPE: ClassVar[int] = 9
    cluster_id: int
    source: int
    sequence: int
    timestamp: int
    nodes: tuple[NodeCapabilities, ...]
    wants_reply: bool
    path: tuple[int, ...]


# --- everything else: header, fields, trailer ----------------------------------------------------


@attrs.frozen
class Trailer:
    """The last three integers of every packet that is no topology message."""

    cluster_id: int
    source: int
    destination: int


@attrs.frozen
class RemoveNode:
    """An operator removed a node; one copy to each node, and the removed one disables itself."""

    TYPE: ClassVar[int] = 6
    trailer: Trailer
    node_id: int


@attrs.frozen
class Generic:
    """GENERIC_MSG: a request or reply of a script (cluster_send_req, cluster_send_rpl …)."""

    TYPE: ClassVar[int] = 7
    trailer: Trailer
    is_request: bool
    tag: str
    text: bytes


@attrs.frozen
class Command:
    """MI_CMD: run a management command; its result is not sent back."""

    TYPE: ClassVar[int] = 8
    trailer: Trailer
    name: str
    parameters: tuple[str, ...] = ()
    """Positional; at most 20."""


@attrs.frozen
class SyncRequest:
    """SYNC_REQ: send me all data of a capability."""

    TYPE: ClassVar[int] = 10
    trailer: Trailer
    capability: str


@attrs.frozen
class Sync:
    """SYNC: some chunks of the data; what is in a chunk is the module's."""

    TYPE: ClassVar[int] = 11
    trailer: Trailer
    capability: str
    data_version: int
    chunks: tuple[bytes, ...]


@attrs.frozen
class SyncEnd:
    """SYNC_END: the donor has sent so many chunks."""

    TYPE: ClassVar[int] = 12
    trailer: Trailer
    capability: str
    chunk_count: int


@attrs.frozen
class SharingTagActive:
    """SHTAG_ACTIVE: the tag is active at the source; everybody else goes to backup."""

    TYPE: ClassVar[int] = 13
    trailer: Trailer
    tag: str


@attrs.frozen
class ModulePacket:
    """A packet of a module's capability; `replication` knows the bodies of two of them."""

    trailer: Trailer
    capability: str
    version: int
    type: int
    body: bytes
    """The fields between the header and the trailer."""


Topology: TypeAlias = (
    Ping | Pong | LinkUpdate | TopologyUpdate | UnknownId | NodeDescription | CapabilityUpdate
)
Extra: TypeAlias = RemoveNode | Generic | Command | SyncRequest | Sync | SyncEnd | SharingTagActive
Routed: TypeAlias = Extra | ModulePacket
"""Packets with a trailer: sent to a destination, if need be through others."""
Packet: TypeAlias = Topology | Routed
