"""The shared tables on the bus: what comes in, what is asked for, what we say; sans-IO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from clusternode.core.events import Event
from clusternode.core.sip_events import ContactReplicated, HtableReplicated
from clusternode.core.types import Instant, NodeId, Seconds
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.kamailio.bus_membership import Membership
from clusternode.gateways.kamailio.effects import Effect, Raise
from clusternode.gateways.kamailio.htable import Refused, Tables
from clusternode.gateways.kamailio.outbox import Ending, Outgoing
from clusternode.gateways.kamailio.replication import (
    HTABLE_CHANNEL,
    JSON_CONTENT_TYPE,
    Cells,
    Delete,
    Htable,
    RemovePrefix,
    RemoveRegex,
    Set,
    SetExpire,
    SyncRequest,
    encode_dump,
    encode_htable,
    parse_htable_untrusted,
    parse_usrloc_untrusted,
)
from clusternode.gateways.kamailio.translate import PeerAddress

DUMP_PAUSE: Final[Seconds] = 2.0
"""Between two dumps for one node: a sync request of 12 bytes asks for a whole table."""
SEND_TIMEOUT: Final[Seconds] = 30.0

Send = Callable[[Instant, Outgoing], None]


class SharedTables:
    """Keeps the tables of the configuration in step with the bus."""

    def __init__(
        self,
        cluster: str,
        autoexpire: Mapping[str, int],
        membership: Membership,
        effects: list[Effect],
    ) -> None:
        self.tables = Tables(dict(autoexpire))
        self.is_synced = False
        """Whether a node has taken our sync request since we were alone."""
        self.listened: frozenset[str] = frozenset()
        """The channels that routes listen to: what a module says there goes to them, too."""
        self._cluster = cluster
        self._membership = membership
        self._effects = effects
        self._asked: set[PeerAddress] = set()
        """Whom we have asked since we were alone."""
        self._is_asking = False
        self._dumped_at: dict[PeerAddress, Instant] = {}  # at most one entry per member

    @property
    def is_kept(self) -> bool:
        return bool(self.tables.autoexpire)

    def tick(self, now: Instant, unix_now: float) -> None:
        """Once per round of pings: ask for a dump if none was given, drop what has expired."""
        if not self.is_kept:
            return
        self.tables.purge(unix_now)
        active = self._membership.members.active()
        if not active:  # alone: whatever the others do meanwhile is to be asked for again
            self.is_synced = False
            self._asked.clear()
            return
        self.ask(now)

    def ask(self, now: Instant) -> None:
        """Ask one active node after the other for its tables, until one has taken it."""
        if self.is_synced or self._is_asking or not self.is_kept:
            return
        active = [member.address for member in self._membership.members.active()]
        fresh = [address for address in active if address not in self._asked]
        if not fresh:
            self._asked.clear()
            fresh = active
        if not fresh:
            return
        self._is_asking = True
        self._asked.add(fresh[0])
        self._send(now, fresh[0], encode_htable(SyncRequest()), self._sync_ended)

    def _sync_ended(self, now: Instant, ending: Ending) -> None:
        del now
        self._is_asking = False
        self.is_synced = ending.is_answer and 200 <= ending.code < 300

    def receive(self, now: Instant, unix_now: float, body: bytes, origin: PeerAddress) -> None:
        """Take a body of the channel htable.

        Raises:
            RemoteProtocolError: It is none, or breaks a bound.
        """
        message = parse_htable_untrusted(body)
        if isinstance(message, SyncRequest):
            self._dump(now, unix_now, origin, message.table)
        else:
            try:
                self.tables.apply(message, unix_now)
            except Refused as error:
                raise RemoteProtocolError(str(error)) from None
        self._raise(origin.node_id, message)

    def observe(self, origin: NodeId, body: bytes) -> None:
        """Raise the event of a body, where no table is kept.

        Raises:
            RemoteProtocolError: It is none.
        """
        self._raise(origin, parse_htable_untrusted(body))

    def _raise(self, origin: NodeId, message: Htable) -> None:
        self._effects += [Raise(event) for event in htable_events(self._cluster, origin, message)]

    def _dump(self, now: Instant, unix_now: float, to: PeerAddress, table: str) -> None:
        last = self._dumped_at.get(to)
        if last is not None and now - last < DUMP_PAUSE:
            return
        if len(self._dumped_at) > 256:
            self._dumped_at.clear()
        self._dumped_at[to] = now
        for body in encode_dump(self.tables.cells(unix_now, table)):
            self._send(now, to, body, lambda now, ending: None)

    def _send(
        self, now: Instant, to: PeerAddress, body: bytes, on_end: Callable[[Instant, Ending], None]
    ) -> None:
        outgoing = Outgoing(
            to, HTABLE_CHANNEL, body, JSON_CONTENT_TYPE, 1, now + SEND_TIMEOUT, on_end
        )
        self._membership.send(now, outgoing)


def htable_events(cluster: str, origin: NodeId, message: Htable) -> list[Event]:
    """Return the events of one body; a dump is one event with the number of its cells."""
    make = partial(HtableReplicated, cluster, origin)
    match message:
        case Set(table, key, value):
            return [make("set", table, key, value)]
        case SetExpire(table, key, seconds):
            return [make("expire", table, key, seconds)]
        case Delete(table, key):
            return [make("delete", table, key)]
        case RemoveRegex(table, pattern):
            return [make("remove_regex", table, pattern)]
        case RemovePrefix(table, prefix):
            return [make("remove_prefix", table, prefix)]
        case SyncRequest(table):
            return [make("sync_request", table)]
        case Cells(cells):
            return [make("sync", "", "", len(cells))]


def usrloc_events(cluster: str, origin: NodeId, body: bytes) -> list[Event]:
    """Return one event per contact of a body of the channel usrloc.

    Raises:
        RemoteProtocolError: It is none.
    """
    return [
        ContactReplicated(
            cluster, origin, contact.action, str(contact.fields.get("aor", "")), contact.fields
        )
        for contact in parse_usrloc_untrusted(body)
    ]
