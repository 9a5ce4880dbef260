"""The routes of the agents that `clusternode bench` measures; a file like a user's."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from typing import Any

import trio

from clusternode import routes

IN_FLIGHT = 4096
"""Broadcasts without all results; about 0.5 MB of 100-byte bodies for each peer."""
CHECKPOINT_EVERY = 64

seen_not_active: dict[str, float] = {}  # node → when its status changed, CLOCK_MONOTONIC


@routes.message("bench:load")
def take(message: routes.IncomingMessage) -> None:
    """Take a broadcast; the result is all that is measured."""


@routes.request("bench:echo")
def echo(request: routes.IncomingRequest) -> bytes:
    return request.body


@routes.event("E_CLUSTERER_NODE_STATE_CHANGED")
def note_status(event: routes.IncomingEvent) -> None:
    if event.parameters["new_state"] == 0:
        now = time.monotonic()  # noqa: TID251  # the clock that all processes share
        seen_not_active.setdefault(event.parameters["node_id"], now)


@routes.request("bench:seen")
def tell_seen(request: routes.IncomingRequest) -> dict[str, Any]:
    """Tell when a node was first seen as not active, and forget it."""
    return {"at": seen_not_active.pop(request.text, None)}


@routes.request("bench:broadcast")
async def broadcast(request: routes.IncomingRequest) -> dict[str, Any]:
    """Broadcast `count` messages of `size` bytes and wait for every result."""
    order = json.loads(request.text)
    body = b"x" * order["size"]
    bus = request.bus
    codes: Counter[int] = Counter()
    flight: deque[Any] = deque()
    started = trio.current_time()
    for number in range(order["count"]):
        flight.append(bus.broadcast("bench:load", body))
        if number % CHECKPOINT_EVERY == 0:
            await trio.lowlevel.checkpoint()
            while flight and (len(flight) > IN_FLIGHT or flight[0].is_complete):
                delivery = flight.popleft()
                results = delivery.results if delivery.is_complete else await delivery
                codes.update(results.values())
    for delivery in flight:
        codes.update((await delivery).values())
    seconds = trio.current_time() - started
    return {"seconds": seconds, "codes": {str(int(code)): n for code, n in codes.items()}}


@routes.request("bench:requests")
async def ask(request: routes.IncomingRequest) -> dict[str, Any]:
    """Ask everybody `count` times, one request after the other."""
    order = json.loads(request.text)
    times: list[float] = []
    missing = 0
    for _ in range(order["count"]):
        started = trio.current_time()
        replies = await request.bus.broadcast_request("bench:echo", b"where is alice?").gather()
        times.append(trio.current_time() - started)
        missing += len(replies) != order["others"]
    return {"seconds": sorted(times), "missing": missing}
