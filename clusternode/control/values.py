"""Snapshots and events as JSON values."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import attrs

from clusternode.bus.interface import Reply, Sight
from clusternode.control.requests import body_fields
from clusternode.control.view import milliseconds
from clusternode.core.events import EVENT_TYPES
from clusternode.core.snapshots import AddressSnapshot, MemberSnapshot, NodeSnapshot
from clusternode.core.types import Address, NodeId, ResultCode
from clusternode.errors import ConfigError
from clusternode.routes.events import EventView

DEPTH_MAX = 32
"""Deeper values of a user's own event are cut off."""
INTEGER_BITS_MAX = 1024
"""Python does not write integers of more than 4300 digits."""


def member_json(member: MemberSnapshot) -> dict[str, Any]:
    return {
        "node_id": member.node_id,
        "address": member.address,
        "status": member.status,
        "fail_count": member.fail_count,
        "incarnation": member.incarnation,
        "version": member.version,
        "last_seen_s": None if member.last_seen_s is None else round(member.last_seen_s, 3),
        "tags": dict(member.tags),
        "channels": list(member.channels),
        "local": member.local,
        "link": member.link,
        "round_trip_ms": milliseconds(member.round_trip_s),
        "priority": member.priority,
        "notification": member.notification,
        "remote": member.remote,
        "outbox_bytes": member.outbox_bytes,
        "certificate_expires": member.certificate_expires or None,
    }


def dmq_json(member: MemberSnapshot) -> dict[str, Any]:
    """Return a member with the fields of Kamailio's `dmq.list_nodes`, and ours."""
    host, port, proto = _host_port_proto(member.address)
    ip = member.remote.rpartition(":")[0].strip("[]")
    fields = {
        "host": host,
        "port": port,
        "proto": proto,
        "resolved_ip": ip,
        "status": member.status,
        "last_notification": 0,  # as Kamailio, which never writes it
        "local": int(member.local),
        "fail_count": member.fail_count,
    }
    return {**member_json(member), **fields}


def _host_port_proto(text: str) -> tuple[str, int, str]:
    """Take an address apart, a SIP URI of a gateway too; `*` where no transport is said."""
    if text.startswith("sip:"):
        target, _, transport = text.removeprefix("sip:").partition(";transport=")
        host, _, port = target.rpartition(":")
        return host, int(port) if port.isdigit() else 0, transport or "*"
    try:
        address = Address.parse(text)
    except ConfigError:
        return text, 0, "*"
    return address.host, address.port, address.scheme


def address_json(address: AddressSnapshot) -> dict[str, Any]:
    retry = address.retry_in_s
    return {
        "address": str(address.address),
        "state": address.state,
        "node_id": address.node_id,
        "error": address.error,
        "failures": address.failures,
        "retry_in_s": None if retry is None else round(retry, 3),
    }


def snapshot_json(snapshot: NodeSnapshot) -> dict[str, Any]:
    return {
        "node_id": snapshot.node_id,
        "cluster": snapshot.cluster,
        "incarnation": snapshot.incarnation,
        "digest": f"{snapshot.digest:016x}",
        "members": [member_json(member) for member in snapshot.members],
        "addresses": [address_json(address) for address in snapshot.addresses],
        "counters": dict(snapshot.counters),
    }


def result_json(code: ResultCode) -> dict[str, Any]:
    """Return a result; the text is the name of the code, in words."""
    text = code.name.lower().replace("_", " ")
    return {"code": int(code), "definite": code.definite, "text": text}


def reply_json(reply: Reply) -> dict[str, Any]:
    return {
        "node_id": reply.node_id,
        "code": reply.code,
        **({"reason": reply.reason} if reply.reason else {}),
        **body_fields(reply.body),
        "content_type": reply.content_type,
        "round_trip_ms": milliseconds(reply.round_trip_s),
    }


def event_json(cluster: str, view: EventView) -> dict[str, Any]:
    return {
        "cluster": cluster,
        "event": view.name,
        "alias": view.alias,
        "parameters": jsonable(view.parameters),
    }


def event_types_json() -> list[dict[str, Any]]:
    return [
        {
            "event": event.NAME,
            "alias": event.ALIAS,
            "help": (event.__doc__ or "").strip().partition("\n")[0],
            "parameters": [field.name for field in attrs.fields(event)],
        }
        for event in EVENT_TYPES
    ]


def jsonable(value: object, depth: int = 0) -> object:
    """Return something that JSON can say, whatever a user put into an event."""
    if depth > DEPTH_MAX:
        return "…"
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= INTEGER_BITS_MAX else "<int>"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry, depth + 1) for entry in value]
    return f"<{type(value).__name__}>"


def survey_json(views: Mapping[NodeId, Mapping[NodeId, Sight]]) -> dict[str, Any]:
    """Return the result of `cluster.topology` where the cluster itself tells who sees whom."""
    nodes = list(dict.fromkeys([*views, *(other for view in views.values() for other in view)]))
    return {
        "nodes": nodes,
        "views": {
            node: {
                other: {
                    "status": sight.status,
                    "link": sight.link,
                    "round_trip_ms": milliseconds(sight.round_trip_s),
                    "fail_count": 0,
                }
                for other, sight in view.items()
            }
            for node, view in views.items()
        },
        "digests": {},
        "unanswered": {node: "no way leads there" for node in nodes if node not in views},
    }
