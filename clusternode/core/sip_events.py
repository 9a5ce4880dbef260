"""Events of the SIP clusters that this agent is a member of; `events` has all of them.

What a Kamailio or an OpenSIPS says, with the names that it has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs


@attrs.frozen
class HtableReplicated:
    """A Kamailio changed a shared table, asked for the tables, or sent a part of them."""

    NAME: ClassVar[str] = "E_DMQ_HTABLE"
    ALIAS: ClassVar[str] = "dmq:htable"
    cluster_id: str
    node_id: str
    action: str
    """set, expire, delete, remove_regex, remove_prefix, sync_request or sync."""
    table: str
    key: str = ""
    """The key, expression or prefix; empty where there is none."""
    value: str | int | None = None
    """What was set, the seconds of `expire`, or the number of cells of `sync`."""


@attrs.frozen
class ContactReplicated:
    """A Kamailio replicated a contact of its location table (dmq_usrloc)."""

    NAME: ClassVar[str] = "E_DMQ_USRLOC"
    ALIAS: ClassVar[str] = "dmq:usrloc"
    cluster_id: str
    node_id: str
    action: str
    """update, remove or sync."""
    aor: str
    contact: Mapping[str, Any]
    """The fields as Kamailio names them: c, ruid, callid, expires, user_agent, …"""


@attrs.frozen
class SipReplicated:
    """A Kamailio replicated a SIP request to us (dmq_t_replicate)."""

    NAME: ClassVar[str] = "E_DMQ_SIP_REQUEST"
    ALIAS: ClassVar[str] = "dmq:sip"
    cluster_id: str
    source: str
    """The host that it came from."""
    method: str
    uri: str
    call_id: str
    headers: Mapping[str, Any]
    """Name → values, in the order in which they came."""
    body: bytes


@attrs.frozen
class CacheReplicated:
    """An OpenSIPS stored or removed an entry of a replicated cache (cachedb_local)."""

    NAME: ClassVar[str] = "E_OPENSIPS_CACHE"
    ALIAS: ClassVar[str] = "opensips:cache"
    cluster_id: str
    node_id: str
    action: str
    """insert or remove."""
    collection: str
    key: str
    value: bytes = b""
    ttl: int = 0
    """Seconds that the entry lives; 0 for ever."""


@attrs.frozen
class LocationReplicated:
    """An OpenSIPS replicated a change of its location table (usrloc)."""

    NAME: ClassVar[str] = "E_OPENSIPS_USRLOC"
    ALIAS: ClassVar[str] = "opensips:usrloc"
    cluster_id: str
    node_id: str
    action: str
    """aor_insert, aor_delete, insert, update, delete or sync."""
    aor: str
    contact: Mapping[str, Any]
    """The fields as OpenSIPS names them: contact, callid, expires, user_agent, …"""


@attrs.frozen
class PacketReceived:
    """A packet arrived of a capability that a script has registered, as it was sent."""

    NAME: ClassVar[str] = "E_OPENSIPS_PACKET"
    ALIAS: ClassVar[str] = "opensips:packet"
    cluster_id: str
    node_id: str
    capability: str
    type: int
    version: int
    body: bytes
    """The fields between header and trailer."""


@attrs.frozen
class CapabilitySync:
    """Our copy of the data of a capability has come in, or could not be had."""

    NAME: ClassVar[str] = "E_OPENSIPS_SYNC"
    ALIAS: ClassVar[str] = "opensips:sync"
    cluster_id: str
    node_id: str
    """The donor; empty when there was none."""
    capability: str
    state: str
    """synced, failed, or fallback for a seed that goes on with what it has."""
    chunks: int
    """How many pieces came."""


@attrs.frozen
class CommandReceived:
    """A node wants a management command run that the configuration allows (MI_CMD)."""

    NAME: ClassVar[str] = "E_OPENSIPS_MI_COMMAND"
    ALIAS: ClassVar[str] = "opensips:mi"
    cluster_id: str
    node_id: str
    command: str
    parameters: tuple[str, ...]
    """Positional. No result goes back: the protocol has none."""
