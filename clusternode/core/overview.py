"""What a node shows of itself to people and programs, made on demand (`core/snapshots.py`)."""

from __future__ import annotations

from clusternode.core.context import Context
from clusternode.core.membership.health import Health
from clusternode.core.membership.links import Link
from clusternode.core.membership.membership import Membership
from clusternode.core.membership.ways import Way, shown
from clusternode.core.messaging.messaging import Messaging
from clusternode.core.snapshots import MemberGlance, MemberSnapshot, NodeGlance, NodeSnapshot
from clusternode.core.types import Instant, NodeId
from clusternode.core.wire.messages import Record


def overview(
    context: Context, membership: Membership, messaging: Messaging, now: Instant
) -> NodeSnapshot:
    """Return the member list, the notification addresses and the counters as they are now."""
    own = membership.members.own
    members = sorted(node_id for node_id, row in membership.members if row.is_member)
    others = [_member_row(node_id, membership, messaging, now) for node_id in members]
    return NodeSnapshot(
        node_id=own.node_id,
        cluster=context.settings.cluster,
        incarnation=own.incarnation,
        digest=membership.members.digest,
        members=(_own_row(own), *others),
        addresses=membership.discovery.notification.snapshot(now),
        counters=dict(sorted(context.counters.items())),
    )


def glance(context: Context, membership: Membership) -> NodeGlance:
    """Return how the members stand, as the overview shows it."""
    own = membership.members.own
    own_row = _own_row(own)
    members = [MemberGlance(own.node_id, own_row.status, own.incarnation, own_row.link, local=True)]
    rows, open_to = membership.members.rows, membership.links.open_to
    for node_id in sorted(node_id for node_id, row in rows.items() if row.is_member):
        row, link = rows[node_id], open_to(node_id)
        shown_link = _link_shown(link, membership.rerouting.way_to(node_id))
        incarnation = row.record.incarnation
        members.append(MemberGlance(node_id, row.health.value, incarnation, shown_link))
    return NodeGlance(
        own.node_id, own.incarnation, membership.members.digest, members, dict(context.counters)
    )


def _own_row(own: Record) -> MemberSnapshot:
    return MemberSnapshot(
        node_id=own.node_id,
        address=own.address,
        status=(Health.LEFT if own.left else Health.ACTIVE).value,
        fail_count=0,
        incarnation=own.incarnation,
        version=own.version,
        last_seen_s=0.0,
        tags=dict(own.tags),
        channels=own.channels,
        local=True,
        priority=own.priority,
        link="self",
        round_trip_s=None,
        notification=False,
        remote="",
        outbox_bytes=0,
    )


def _link_shown(link: Link | None, way: Way) -> str:
    if link is not None and not link.is_routed:
        return "direct"
    return shown(way) if way else "none"


def _member_row(
    node_id: NodeId, membership: Membership, messaging: Messaging, now: Instant
) -> MemberSnapshot:
    row = membership.members.rows[node_id]
    record = row.record
    link = membership.links.open_to(node_id)
    stream = messaging.deliveries.streams.get(node_id)
    round_trip = None if link is None else link.round_trip
    return MemberSnapshot(
        node_id=node_id,
        address=record.address,
        status=row.health.value,
        fail_count=row.fail_count,
        incarnation=record.incarnation,
        version=record.version,
        last_seen_s=None if row.heard_at is None else now - row.heard_at,
        tags=dict(record.tags),
        channels=record.channels,
        local=False,
        priority=record.priority,
        link=_link_shown(link, membership.rerouting.way_to(node_id)),
        round_trip_s=round_trip if row.health is Health.ACTIVE else None,
        notification=membership.is_notification(row),
        remote="" if link is None else link.remote,
        outbox_bytes=0 if stream is None else stream.held_bytes,
    )
