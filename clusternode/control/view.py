"""A node's own view of the others: asked for on a reserved channel, for `cluster.topology`.

Every agent answers requests on `VIEW_CHANNEL` with a JSON object: `node_id`, `digest` (text) and
`members`, an array of [node_id, status, link, round_trip_ms or null, fail_count].
Described in docs/protocol.md.
"""

from __future__ import annotations

import json
import math
from typing import Any, Protocol

from clusternode.bus.interface import Bus
from clusternode.core.types import is_name

VIEW_CHANNEL = "clusternode:view"
VIEW_MEMBERS_MAX = 10_000
WORD_LENGTH_MAX = 96
"""A digest, a status, or `via` and a node id."""


class ViewRequest(Protocol):
    """What `answer_view` needs of a request that a route gets."""

    @property
    def bus(self) -> Bus: ...
    async def reply(self, body: bytes | str) -> object: ...


async def answer_view(request: ViewRequest) -> None:
    """Answer a request on `VIEW_CHANNEL`: the handler that every agent registers."""
    await request.reply(view_of(request.bus))


def view_of(bus: Bus) -> bytes:
    """Return what this node sees of the others."""
    snapshot = bus.snapshot()
    members = [
        [
            member.node_id,
            member.status,
            member.link,
            milliseconds(member.round_trip_s),
            member.fail_count,
        ]
        for member in snapshot.members
    ]
    view = {"node_id": bus.node_id, "digest": f"{snapshot.digest:016x}", "members": members}
    return json.dumps(view, separators=(",", ":")).encode()


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def read_view_untrusted(body: bytes) -> tuple[str, dict[str, dict[str, Any]]] | None:
    """Return (digest, node id → what is seen of it); None when it is no view."""
    try:
        view = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(view, dict):
        return None
    digest, members = view.get("digest"), view.get("members")
    if not _is_word(digest) or not isinstance(members, list) or len(members) > VIEW_MEMBERS_MAX:
        return None
    rows: dict[str, dict[str, Any]] = {}
    for member in members:
        row = _read_row(member)
        if row is None:
            return None
        rows[row.pop("node_id")] = row
    return str(digest), rows


ROW_LENGTH = 5


def _read_row(member: object) -> dict[str, Any] | None:
    """Read one member; entries that a later version appends are passed over."""
    if not isinstance(member, list) or len(member) < ROW_LENGTH:
        return None
    node_id, status, link, round_trip_ms, fail_count = member[:ROW_LENGTH]
    if not isinstance(node_id, str) or not is_name(node_id):
        return None
    if not _is_word(status) or not _is_word(link) or type(fail_count) is not int:
        return None
    if round_trip_ms is not None and (
        type(round_trip_ms) not in (int, float) or not math.isfinite(_as_float(round_trip_ms))
    ):
        return None
    return {
        "node_id": node_id,
        "status": status,
        "link": link,
        "round_trip_ms": round_trip_ms,
        "fail_count": fail_count,
    }


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_word(value: object) -> bool:
    return isinstance(value, str) and len(value) <= WORD_LENGTH_MAX and value.isascii()
