"""What is shown of a node of a DMQ bus, and the live view of a shared table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import attrs
import trio

from clusternode.bus.interface import Delivery
from clusternode.core.snapshots import AddressSnapshot, MemberSnapshot, NodeSnapshot
from clusternode.core.types import ChannelName, Incarnation, Instant
from clusternode.gateways.kamailio.members import Member
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.replication import (
    HTABLE_CHANNEL,
    JSON_CONTENT_TYPE,
    Delete,
    Htable,
    RemovePrefix,
    RemoveRegex,
    Set,
    SetExpire,
    Value,
    encode_htable,
    parse_htable_untrusted,
)
from clusternode.gateways.kamailio.translate import PeerAddress

NO_INCARNATION = Incarnation(0)  # DMQ has none


def snapshot(
    node: KamailioNode, name: str, channels: tuple[str, ...], now: Instant
) -> NodeSnapshot:
    """Return everything that `nodes list` and `nodes show` need."""
    members = sorted(node.membership.members.visible(), key=lambda member: member.node_id)
    rows = (_own_row(node, channels), *(_row(node, member, now) for member in members))
    return NodeSnapshot(
        node_id=node.node_id,
        cluster=name,
        incarnation=NO_INCARNATION,
        digest=0,
        members=rows,
        addresses=tuple(_address_rows(node)),
        counters=counters(node),
    )


def _own_row(node: KamailioNode, channels: tuple[str, ...]) -> MemberSnapshot:
    return MemberSnapshot(
        node_id=node.node_id,
        address=node.own.uri,
        status="active" if node.membership.is_announced else "not_active",
        fail_count=0,
        incarnation=NO_INCARNATION,
        version=0,
        last_seen_s=0.0,
        tags={},
        channels=tuple(ChannelName(channel) for channel in channels),
        local=True,
        priority=0,
        link="self",
        round_trip_s=None,
        notification=False,
        remote="",
        outbox_bytes=0,
    )


def _row(node: KamailioNode, member: Member, now: Instant) -> MemberSnapshot:
    return MemberSnapshot(
        node_id=member.node_id,
        address=member.address.uri,
        status=member.health.value,
        fail_count=member.fail_count,
        incarnation=NO_INCARNATION,
        version=0,
        last_seen_s=None if member.last_seen is None else max(now - member.last_seen, 0.0),
        tags={},
        channels=(),
        local=False,
        priority=0,
        link="direct" if member.is_active else "none",
        round_trip_s=member.round_trip,
        notification=member.is_seed,
        remote=f"{member.address.host}:{member.address.port}",
        outbox_bytes=node.outbox.waiting(member.address),
    )


def _address_rows(node: KamailioNode) -> Iterator[AddressSnapshot]:
    members = node.membership.members
    for seed in node.membership.names.seeds:
        addresses = node.membership.names.addresses_of(seed)
        found = [members.get(address) for address in addresses]
        up = next((each for each in found if each is not None and each.is_active), None)
        state = "connected" if up is not None else "waiting" if addresses else "unresolved"
        if node.own in addresses:
            state = "self"
        yield AddressSnapshot(
            address=PeerAddress(seed.transport, seed.host, seed.port).uri,
            state=state,
            node_id=None if up is None else up.node_id,
            error=node.membership.names.error_of(seed),
            failures=None,
            retry_in_s=None,
        )


def counters(node: KamailioNode) -> Mapping[str, int]:
    """Return counter name → count since the start."""
    outbox = node.outbox
    return {
        **attrs.asdict(node.counters),
        "sent": outbox.sent,
        "retransmissions": outbox.transactions.copies_sent,
        "send_errors": outbox.send_errors,
        "late_answers": outbox.transactions.late,
        "rumours_refused": node.membership.members.refused,
        "duplicates": node.duplicates,
    }


class Writer(Protocol):
    """What a table needs of its bus."""

    @property
    def node(self) -> KamailioNode: ...
    def broadcast(self, channel: str, body: bytes, *, content_type: str) -> Delivery: ...


class HtableView(Mapping[str, Value]):
    """A shared table, live: reading is local, writing goes to every node of the bus.

    A write is seen here at once; the `Delivery` that it returns says which Kamailio took it. Where
    two nodes write one key at the same time, they may end up with different values, as Kamailios
    do.
    """

    def __init__(self, bus: Writer, table: str) -> None:
        self._bus = bus
        self._table = table

    @property
    def is_synced(self) -> bool:
        """Whether a node has been asked for its tables since we were alone."""
        return self._bus.node.tables.is_synced

    def _unix_now(self) -> float:
        return trio.current_time() + self._bus.node.unix_offset

    def __getitem__(self, key: str) -> Value:
        value = self._bus.node.tables.tables.get(self._table, key, self._unix_now())
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        cells = self._bus.node.tables.tables.cells(self._unix_now(), self._table)
        return iter([cell.key for cell in cells])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def set(self, key: str, value: Value, *, expire: int | None = None) -> Delivery:
        """Set a cell; it lives for `expire` seconds, else for the autoexpire of the table."""
        delivery = self._write(Set(self._table, key, value))
        if expire is not None:
            return self._write(SetExpire(self._table, key, expire))
        return delivery

    def expire(self, key: str, seconds: int) -> Delivery:
        """Let a cell live for so many seconds from now on."""
        return self._write(SetExpire(self._table, key, seconds))

    def delete(self, key: str) -> Delivery:
        return self._write(Delete(self._table, key))

    def remove_prefix(self, prefix: str) -> Delivery:
        """Remove every cell whose key begins so."""
        return self._write(RemovePrefix(self._table, prefix))

    def remove_regex(self, pattern: str) -> Delivery:
        """Remove every cell whose key matches a POSIX extended regular expression."""
        return self._write(RemoveRegex(self._table, pattern))

    def _write(self, message: Htable) -> Delivery:
        """Carry a change out here and tell the others.

        Raises:
            RemoteProtocolError: Key or value are none that Kamailio takes.
            Refused: It would break a bound here.
        """
        body = encode_htable(message)
        checked = parse_htable_untrusted(body)
        self._bus.node.tables.tables.apply(checked, self._unix_now())
        return self._bus.broadcast(HTABLE_CHANNEL, body, content_type=JSON_CONTENT_TYPE)
