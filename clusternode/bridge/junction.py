"""One channel of one bus, and the links that lead away from it: they share one handler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import trio

from clusternode.bridge.relay import Relay
from clusternode.bridge.verdicts import combine
from clusternode.bridge.worlds import world_of
from clusternode.core.types import ResultCode, Seconds
from clusternode.kafka.ends import TYPED
from clusternode.routes.contexts import IncomingMessage
from clusternode.routes.table import Kind, Refuse, RouteTable, make_handler

HANDLER_MARGIN: Seconds = 1.0
"""A handler may take so much longer than `timeout`, so that it is we who say 408."""


@attrs.define(eq=False)
class Junction:
    """Takes the messages of a channel; their sender is told what becomes of them on all links."""

    relays: list[Relay]
    is_alone: bool
    """Whether nobody listens to the channel beside it: no route, and no module of Kamailio."""

    async def take(self, message: IncomingMessage) -> None:
        """Relay a message on each link at a time.

        Raises:
            Refuse: Not all far sides have it; with the code for the sender.
        """
        codes: list[ResultCode] = []

        async def one(relay: Relay) -> None:
            codes.append(await relay.take_message(message))

        if len(self.relays) == 1:
            await one(self.relays[0])
        else:
            async with trio.open_nursery() as nursery:
                for relay in self.relays:
                    nursery.start_soon(one, relay)
        code = combine(codes)
        if code is ResultCode.NOT_FOUND and not self.is_alone:
            return  # what a route says of it counts
        if code is not ResultCode.OK:
            raise Refuse(code, ", ".join(f"bridge {one.rule.name}" for one in self.relays))


def add_junctions(table: RouteTable, relays: Iterable[Relay]) -> None:
    """Register the channels of all relays that take messages; the routes are there already."""
    found: dict[tuple[str, str], list[Relay]] = {}  # (bus, channel) → what leads away from it
    for relay in relays:
        channel = _channel(relay)
        if channel is not None:
            found.setdefault((relay.source.where, channel), []).append(relay)
    heard = {bus: table.heard_on(Kind.MESSAGE, bus) for bus, _ in found}
    for (bus, channel), leading in found.items():
        is_module = any(relay.source.kind in TYPED for relay in leading)
        junction = Junction(leading, is_alone=channel not in heard[bus] and not is_module)
        handler = make_handler(Kind.MESSAGE, channel, junction.take, via=bus)
        handler.name = _name(leading)
        handler.time_limit = max(one.rule.limits.timeout for one in leading) + HANDLER_MARGIN
        table.add(handler)


def _channel(relay: Relay) -> str | None:
    """Return the channel where a relay hears its messages; None where it hears others."""
    source = relay.source
    if source.kind in TYPED:
        return world_of(source.where).channel(source.kind)
    return source.name if source.kind == "channel" else None


def _name(relays: Sequence[Relay]) -> str:
    return "bridge " + ", ".join(dict.fromkeys(relay.rule.name for relay in relays))
