"""An agent that bridges simulated Kamailios on loopback with one of our clusters."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clusternode.gateways.kamailio.replication import Contact
from clusternode.testing.kamailio import LocalKamailio
from tests.agents import eventually
from tests.bridge.world import World, world_of

pytestmark = pytest.mark.slow

PORT = 15060


def gateway(network: str) -> dict[str, Any]:
    return {
        "kamailio": {
            "server_address": f"sip:{network}.9:{PORT}",
            "notification_address": [f"sip:{network}.1:{PORT}"],
            "ping_interval": 1.0,
            "htables": {"ban": 60},
        }
    }


RULES: list[dict[str, Any]] = [
    {"name": "fraud", "from": "channel:fraud@kamailio", "to": "channel:fraud@a",
     "direction": "both"},
    {"name": "ban", "from": "channel:fraud@a", "to": "table:ban@kamailio", "key": "{body}",
     "filters": {"origin": "n2"}},
    {"name": "cells", "from": "table:ban@kamailio", "to": "event:E_CELL"},
    {"name": "users", "from": "contacts:location@kamailio", "to": "event:E_USER"},
    {"name": "ask", "from": "request:locate@kamailio", "to": "request:locate@a",
     "direction": "both"},
]  # fmt: skip
ROUTES = """
from clusternode import routes

@routes.message("fraud")
def heard(message):
    message.raise_event("E_HEARD", {"text": message.text})

@routes.request("locate")
def locate(request):
    return "sip:alice@n2" if request.text == "alice" else None
"""
BOB = Contact("update", {"aor": "bob", "ruid": "uloc-1", "c": "sip:bob@192.0.2.7"})


def answer(channel: str, body: bytes) -> tuple[int, str]:
    """The script of the Kamailios: takes fraud and replies, and knows where bob is."""
    if channel == "locate":
        return (202, "bob is here") if body == b"bob" else (404, "Not Here")
    return (200, "OK") if channel in ("fraud", "locate-reply") else (404, "User Not Found")


@contextlib.asynccontextmanager
async def running(tmp_path: Path, network: str) -> AsyncIterator[tuple[World, list[LocalKamailio]]]:
    """n1 bridges two Kamailios with the cluster a, in which n2 is too."""
    ours, first = f"{network}.9", f"{network}.1"
    async with world_of(tmp_path) as world:
        kamailios = [
            LocalKamailio(first, port=PORT, script=answer),
            LocalKamailio(f"{network}.2", first, port=PORT, script=answer),
        ]
        for each in kamailios:
            await world.nursery.start(each.run)
        await world.add("n1", ["a"], bridges=RULES, gateway=gateway(network))
        await world.add("n2", ["a"], routes=ROUTES)
        await eventually(lambda: all(each.statuses.get(ours) == "active" for each in kamailios))
        await eventually(lambda: world.agents["n2"].statuses().get("n1") == "active")
        yield world, kamailios


async def test_messages_cells_users_and_requests_cross(tmp_path):
    async with running(tmp_path, "127.0.60") as (world, (one, two)):
        cells: list[Any] = []
        users: list[Any] = []
        events = world.agents["n1"].agent.events
        events.on_event("E_CELL", lambda _, view: cells.append(view.parameters))
        events.on_event("E_USER", lambda _, view: users.append(view.parameters))

        one.broadcast("fraud", b"192.0.2.66")
        await eventually(lambda: world.texts("n2") == ["192.0.2.66"])
        sent = await world.agents["n2"].bus.broadcast("fraud", "192.0.2.77")
        one.set("ban", "192.0.2.88", 1)
        two.register(BOB)
        await eventually(lambda: bool(cells and users))
        found = await world.agents["n2"].bus.broadcast_request("locate", "bob").gather()
        one.broadcast("locate", b"t1 locate-reply\nalice", "text/x-clusternode-request")
        await eventually(
            lambda: any(channel == "locate-reply" for _, channel, _ in one.node.received)
        )
        codes = [*one.node.results]

    ours = f"127.0.60.9:{PORT}"
    assert sent == {"n1": 200}
    for each in (one, two):
        assert (ours, "fraud", b"192.0.2.77") in each.node.received
        assert each.table["192.0.2.77"] == "1"
    assert cells[0]["key"] == "192.0.2.88"
    assert (users[0]["aor"], users[0]["contact"]) == ("bob", "sip:bob@192.0.2.7")
    assert [(reply.node_id, reply.code) for reply in found] == [("n1", 202), ("n1", 202)]
    assert (ours, "locate-reply", b"t1 200\nsip:alice@n2") in one.node.received
    assert set(codes) <= {200, 404}  # the other Kamailio has no script requests


async def test_a_kamailio_is_told_that_the_far_side_has_not_got_it(tmp_path):
    async with running(tmp_path, "127.0.59") as (world, (one, _)):
        await world.agents.pop("n2").leave()
        before = len(one.node.results)

        one.broadcast("fraud", b"192.0.2.66")
        await eventually(lambda: len(one.node.results) >= before + 2)
        codes = sorted(one.node.results[before:])

    assert codes[0] == 200  # the other Kamailio
    assert codes[1] in (404, 480)
