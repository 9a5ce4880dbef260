"""What is shown of a node of an OpenSIPS cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from clusternode.bus.interface import Sight
from clusternode.core.snapshots import AddressSnapshot, MemberSnapshot, NodeSnapshot
from clusternode.core.types import ChannelName, Incarnation, Instant, NodeId
from clusternode.gateways.opensips.links import State
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.topology import Node

NO_INCARNATION = Incarnation(0)  # clusterer has none
LINK_NAMES: Mapping[State, str] = {State.UP: "Up", State.DOWN: "Down"}
"""As `clusterer:list` says; every other state is Probe."""


def link_name(state: State) -> str:
    return LINK_NAMES.get(state, "Probe")


def snapshot(node: OpenSipsNode, channels: tuple[str, ...], now: Instant) -> NodeSnapshot:
    """Return everything that `nodes list` and `nodes show` need."""
    topology = node.membership.topology
    others = sorted(topology, key=lambda each: each.node_id)
    return NodeSnapshot(
        node_id=NodeId(str(node.node_id)),
        cluster=node.cluster_name,
        incarnation=NO_INCARNATION,
        digest=0,
        members=(_own_row(node, channels), *(_row(node, each, now) for each in others)),
        addresses=tuple(_address_rows(node)),
        counters=counters(node),
    )


def _own_row(node: OpenSipsNode, channels: tuple[str, ...]) -> MemberSnapshot:
    settings = node.context.settings
    return MemberSnapshot(
        node_id=NodeId(str(node.node_id)),
        address=str(settings.my_node_info.url),
        status="active" if node.membership.is_enabled else "disabled",
        fail_count=0,
        incarnation=NO_INCARNATION,
        version=0,
        last_seen_s=0.0,
        tags={},
        channels=tuple(ChannelName(channel) for channel in channels),
        local=True,
        priority=settings.priority,
        link="self",
        round_trip_s=None,
        notification=False,
        remote="",
        outbox_bytes=0,
    )


def _row(node: OpenSipsNode, other: Node, now: Instant) -> MemberSnapshot:
    membership = node.membership
    link = membership.links.get(other.node_id)
    hop = membership.topology.hops.get(other.node_id)
    status = "active" if hop is not None else "not_active"
    seeds = [each.node_id for each in node.context.settings.neighbor_node_info]
    received = None if link is None or link.received_at < 0 else now - link.received_at
    return MemberSnapshot(
        node_id=NodeId(str(other.node_id)),
        address=str(other.url),
        status=status if other.is_enabled else "disabled",
        fail_count=0,
        incarnation=NO_INCARNATION,
        version=0,
        last_seen_s=received,
        tags={"link": "Down" if link is None else link_name(link.state)},
        channels=(),
        local=False,
        priority=other.description.priority,
        link="none" if hop is None else "direct" if hop == other.node_id else f"via {hop}",
        round_trip_s=None if link is None else link.round_trip,
        notification=other.node_id in seeds,
        remote=f"{other.addresses[0]}:{other.url.port}" if other.addresses else "",
        outbox_bytes=membership.outbox.waiting_bytes(other.node_id),
    )


def survey(node: OpenSipsNode) -> Mapping[NodeId, Mapping[NodeId, Sight]]:
    """Return which node sees which: ours by our own links, the others' by what they flooded."""
    topology, links = node.membership.topology, node.membership.links
    others = sorted(topology, key=lambda each: each.node_id)
    own: dict[NodeId, Sight] = {}
    for other in others:
        hop, link = topology.hops.get(other.node_id), links.get(other.node_id)
        way = "none" if hop is None else "direct" if hop == other.node_id else f"via {hop}"
        round_trip = None if link is None or way != "direct" else link.round_trip
        status = "not_active" if hop is None else "active"
        own[_name(other.node_id)] = Sight(status, way, round_trip)
    found = {_name(node.node_id): own}
    for other in others:
        if other.node_id in topology.hops:
            known = [node.node_id, *(each.node_id for each in others)]
            found[_name(other.node_id)] = {
                _name(each): Sight("active", "direct")
                if each in other.neighbours
                else Sight("not_active", "none")
                for each in known
                if each != other.node_id
            }
    return found


def _name(node_id: int) -> NodeId:
    return NodeId(str(node_id))


def _address_rows(node: OpenSipsNode) -> Iterator[AddressSnapshot]:
    membership = node.membership
    for seed in node.context.settings.neighbor_node_info:
        known = membership.topology.get(seed.node_id)
        if known is None:
            continue  # removed since
        is_up = membership.links.is_up(seed.node_id)
        state = "connected" if is_up else "waiting"
        if not known.addresses:
            state = "unresolved"
        yield AddressSnapshot(
            address=str(seed.url),
            state=state,
            node_id=NodeId(str(seed.node_id)) if is_up else None,
            error="",
            failures=None,
            retry_in_s=None,
        )


def counters(node: OpenSipsNode) -> Mapping[str, int]:
    """Return counter name → count since the start."""
    return {
        **node.context.counters,
        "sent": node.membership.outbox.sent,
        "floods_dropped": node.membership.voice.flooding.dropped,
    }
