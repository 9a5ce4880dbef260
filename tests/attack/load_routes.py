"""The routes of honest agents under attack: load, and the result of every single message."""

from __future__ import annotations

import json
from collections import Counter

import trio

from clusternode import routes
from clusternode.core.types import NodeId, ResultCode

IN_FLIGHT = 256
PATIENCE = 25.0


@routes.message("load")
def take(message: routes.IncomingMessage) -> None:
    """Take a message; the result is all that counts."""


@routes.request("load:run")
async def run(request: routes.IncomingRequest) -> dict[str, object]:
    """Broadcast for `seconds` to everyone; tell the codes that the honest nodes gave."""
    order = json.loads(request.text)
    honest = frozenset(order["honest"])
    codes: Counter[int] = Counter()
    sent = 0
    changed = trio.Event()

    def note(node_id: NodeId, code: ResultCode) -> None:
        if node_id in honest:
            codes[int(code)] += 1
            changed.set()

    end = trio.current_time() + order["seconds"]
    while trio.current_time() < end:
        request.bus.broadcast("load", b"x" * 200, on_result=note)
        sent += len(honest)
        await trio.sleep(0.002)
        while sent - codes.total() > IN_FLIGHT and trio.current_time() < end:
            changed = trio.Event()
            with trio.move_on_after(0.5):
                await changed.wait()
    with trio.move_on_after(PATIENCE):
        while codes.total() < sent:
            changed = trio.Event()
            await changed.wait()
    return {"sent": sent, "codes": {str(code): count for code, count in codes.items()}}
