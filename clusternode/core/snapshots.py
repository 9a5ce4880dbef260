"""What a node shows of itself to people and programs: values, made on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from clusternode.core.types import (
    Address,
    ChannelName,
    Incarnation,
    NodeId,
    Seconds,
)


@attrs.frozen
class MemberSnapshot:
    """One row of the member list."""

    node_id: NodeId
    address: str
    status: str
    """active, not_active, disabled or left."""
    fail_count: int
    incarnation: Incarnation
    version: int
    last_seen_s: Seconds | None
    """Seconds since it last proved to be there; None when it never did, 0 for the own row."""
    tags: Mapping[str, str]
    channels: tuple[ChannelName, ...]
    local: bool
    priority: int
    link: str
    """self, direct, `via` and the relays between us, or none."""
    round_trip_s: Seconds | None
    """Of the last pong on the open connection of an active member."""
    notification: bool
    """Whether one of its addresses is a notification address."""
    remote: str
    """The numeric address of the other end of the connection, empty without one."""
    outbox_bytes: int
    certificate_expires: str = ""
    """Until when the certificate of the node is valid, as in RFC 3339; empty without TLS."""


@attrs.frozen
class AddressSnapshot:
    """A notification address, or a name, and how it is doing."""

    address: Address | str
    """Of a gateway as its cluster writes it."""
    state: str
    """Of an address: connected, dialing, waiting or self. Of a name: resolving, resolved or
    unresolved."""
    node_id: NodeId | None
    error: str
    """Why the last attempt failed; empty after a success."""
    failures: int | None
    """Attempts in a row; None where nobody counts them."""
    retry_in_s: Seconds | None


@attrs.frozen
class NodeSnapshot:
    """Everything that `nodes list` and `nodes show` need."""

    node_id: NodeId
    cluster: str
    incarnation: Incarnation
    digest: int
    members: tuple[MemberSnapshot, ...]
    """The own row first, then sorted by node id."""
    addresses: tuple[AddressSnapshot, ...]
    counters: Mapping[str, int]
    """Counter name → count since the start; the names are in docs/operations.md."""


@attrs.define
class MemberGlance:
    """The part of a `MemberSnapshot` that says how it stands."""

    node_id: NodeId
    status: str
    incarnation: Incarnation
    link: str
    local: bool = False


@attrs.define
class NodeGlance:
    """The part of a `NodeSnapshot` that says how the members stand: a fraction of its cost."""

    node_id: NodeId
    incarnation: Incarnation
    digest: int
    members: Sequence[MemberGlance]
    """The own row first, then sorted by node id."""
    counters: Mapping[str, int]
