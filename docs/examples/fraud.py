"""Share the address of a brute-force attacker with every proxy."""

import trio

from clusternode import routes

FAILURES_MAX = 5
BLOCKED_FOR = 3600.0

failures: dict[str, int] = {}  # address → failed registrations seen here
blocked: dict[str, float] = {}  # address → until when


@routes.message("fraud.failure")
def count(message: routes.IncomingMessage) -> None:
    """Our own proxy tells us of a failed registration: `send fraud.failure THIS-NODE ADDRESS`."""
    address = message.text
    failures[address] = failures.get(address, 0) + 1
    if failures[address] == FAILURES_MAX:
        block(address)
        message.bus.broadcast("fraud", address)


@routes.message("fraud")
def heard(message: routes.IncomingMessage) -> None:
    """Another node has found an attacker."""
    block(message.text)


@routes.event("peer:up")
def tell(event: routes.IncomingEvent) -> None:
    """Who was away, or behind a broken link, has missed something: say it again."""
    for address, until in blocked.items():
        if until > trio.current_time():
            event.bus.send("fraud", event.node_id, address)


@routes.request("fraud.check")
def check(request: routes.IncomingRequest) -> str | None:
    """Tell our proxy whether an address is blocked. Without an entry there is nothing to say."""
    until = blocked.get(request.text, 0.0)
    return "blocked" if until > trio.current_time() else None


def block(address: str) -> None:
    blocked[address] = trio.current_time() + BLOCKED_FOR
