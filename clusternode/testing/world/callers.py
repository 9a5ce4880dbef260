"""Who sends and asks in simulated agents, and what the routes of the story do with it.

Everything goes through what the script of a user has: a bus, and handlers of messages, requests
and events. What is noted here is the evidence for the invariants (simulation/invariants.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import trio

from clusternode.bus.interface import Arrivals, Bus, Receiver
from clusternode.core import effects
from clusternode.core.events import Event, NodeStateChanged, RouteFailed
from clusternode.core.inputs import Ask, Publish
from clusternode.core.types import ChannelName, DeliveryId, NodeId, ResultCode
from clusternode.core.wire.messages import Reply
from clusternode.errors import ClusternodeError, Overloaded
from clusternode.routes.contexts import AgentContext, IncomingMessage, IncomingRequest
from clusternode.routes.events import EventView
from clusternode.routes.table import Handler, Kind, RouteTable, make_handler
from clusternode.simulation.history import HandlingFact, History, Key, StatusFact, key_in
from clusternode.simulation.surroundings import Sender, WorldView
from clusternode.simulation.traffic import Traffic


class Town(WorldView, Protocol):
    """The world, as those who live in it see it."""

    @property
    def traffic(self) -> Traffic: ...


class HandlerFails(ClusternodeError):
    """A handler of the story raises, as the story wants it."""


class Witness:
    """Stands between a bus and the routes of its agent, and takes notes."""

    def __init__(self, world: Town, process: Sender, receiver: Receiver) -> None:
        self._history = world.history
        self._world = world
        self._process = process
        self._receiver = receiver

    def arrived(self, arrivals: Arrivals) -> None:
        if self._process.is_running:
            for _, message in arrivals.items:
                if not isinstance(message, Reply):
                    fact = self._history.deliveries.get(key_in(message.body))
                    if fact is not None:
                        fact.queued[self._process.node_id] = None
        self._receiver.arrived(arrivals)

    def observed(self, bus: Bus, event: Event) -> None:
        process = self._process
        if process.is_running and isinstance(event, NodeStateChanged):
            fact = StatusFact(
                self._world.now,
                process.node_id,
                process.fact.life,
                NodeId(event.node_id),
                event.status,
                event.previous,
                event.reason,
            )
            self._history.statuses.append(fact)
        self._receiver.observed(bus, event)


class Callers:
    """Those who use one agent."""

    def __init__(self, world: Town, process: Sender) -> None:
        self._world = world
        self._process = process
        self._own: set[str] = set()  # names of the story's handlers, which may fail
        self._answered: set[str] = set()  # channels on which routes of the user answer

    # What the story lets be sent.

    def publish(self, bus: Bus, wish: Publish) -> None:
        """Broadcast, or send to one node."""
        traffic, process = self._world.traffic, self._process
        if wish.destinations is None:
            known = [m.node_id for m in bus.members() if not m.local and m.status != "left"]
        else:
            known = list(wish.destinations)
        traffic.fanned_out(process, effects.Fanout(wish.delivery, known))
        settle = partial(self._settle, wish.delivery)
        if wish.destinations is None:
            bus.broadcast(wish.channel, wish.body, on_result=settle)
        else:
            (node_id,) = wish.destinations
            bus.send(wish.channel, node_id, wish.body, on_result=settle)

    def _settle(self, delivery: DeliveryId, node_id: NodeId, code: ResultCode) -> None:
        if self._process.is_running:
            self._world.traffic.settled(self._process, effects.Settle([(delivery, node_id, code)]))

    async def ask(self, bus: Bus, wish: Ask) -> None:
        """Ask everyone, or one node, and read the replies to the end."""
        traffic, process, request = self._world.traffic, self._process, wish.request
        options: dict[str, Any] = {"timeout": wish.timeout, "tag": wish.tag}
        try:
            if wish.destinations is None:
                options["include_self"] = wish.include_self
                replies = bus.broadcast_request(wish.channel, wish.body, **options)
            else:
                (node_id,) = wish.destinations
                replies = bus.request(wish.channel, node_id, wish.body, **options)
        except Overloaded:
            traffic.asked(process, effects.Asked(request, []))
            traffic.request_ended(process, effects.RequestEnded(request))
            return
        traffic.asked(process, effects.Asked(request, list(replies.asked)))
        fact = self._world.history.requests[wish.tag]
        if fact.texts is None and wish.channel in self._answered:
            fact.texts = []
        async for reply in replies:
            traffic.replied(
                process,
                effects.Replied(
                    request, reply.node_id, wish.tag, reply.body, reply.content_type, reply.code
                ),
            )
        for node_id, outcome in replies.outcomes.items():
            finished = effects.RequestFinished(request, node_id, outcome.outcome, outcome.code)
            traffic.request_finished(process, finished)
        traffic.request_ended(process, effects.RequestEnded(request))

    # What happens at this node.

    def witness(self, receiver: Receiver) -> Receiver:
        """Return what a bus is to tell instead of `receiver`, which is told all the same."""
        return Witness(self._world, self._process, receiver)

    def add_handlers(self, table: RouteTable, channels: Iterable[ChannelName]) -> None:
        """Add the handlers of the story, behind those of the user on the same channels."""
        messages = {handler.on for handler in table.of_kind(Kind.MESSAGE)}
        self._answered = {handler.on for handler in table.of_kind(Kind.REQUEST)}
        for channel in sorted({*channels, *messages}):
            message = self._noted_message if channel in messages else self._message
            self._add(table, make_handler(Kind.MESSAGE, channel, message))
        for channel in sorted({*channels, *self._answered}):
            request = self._noted_request if channel in self._answered else self._request
            self._add(table, make_handler(Kind.REQUEST, channel, request))
        table.add(make_handler(Kind.START, "", self._listen))

    def _add(self, table: RouteTable, handler: Handler) -> None:
        table.add(handler)
        self._own.add(handler.name)

    def _listen(self, context: AgentContext) -> None:
        context.events.on_event(RouteFailed.NAME, self._route_failed)

    def _route_failed(self, bus: Bus | None, view: EventView) -> None:
        route, reason = view.parameters["route"], view.parameters["reason"]
        if self._process.is_running and route not in self._own:
            self._process.fact.routes_failed.append((self._world.now, f"{route}: {reason}"))

    async def _message(self, message: IncomingMessage) -> None:
        fact = self._begin(message, is_request=False)
        await self._take_time()
        self._end(fact)

    async def _request(self, request: IncomingRequest) -> None:
        fact = self._begin(request, is_request=True)
        await self._take_time()
        behaviour = self._world.behaviour_of(self._process.node_id)
        if self._world.rng.random() < behaviour.reply_share:
            self._reply(request, fact.key)
        self._end(fact)

    def _noted_message(self, message: IncomingMessage) -> None:
        fact = self._begin(message, is_request=False)
        fact.ended, fact.code = self._world.now, ResultCode.OK

    def _noted_request(self, request: IncomingRequest) -> None:
        fact = self._begin(request, is_request=True)
        fact.ended, fact.code = self._world.now, ResultCode.OK

    def _begin(
        self, incoming: IncomingMessage | IncomingRequest, *, is_request: bool
    ) -> HandlingFact:
        process, history, key = self._process, self._world.history, key_in(incoming.body)
        fact = HandlingFact(key, process.node_id, process.fact.life, self._world.now)
        if is_of_story(key, history):
            history.handlings[key, process.node_id].append(fact)
            if not is_request:
                history.arrivals.append((key, process.node_id, process.fact.life))
        return fact

    async def _take_time(self) -> None:
        behaviour = self._world.behaviour_of(self._process.node_id)
        low, high = behaviour.handling_min, behaviour.handling_max
        seconds = low if low == high else self._world.rng.uniform(low, high)
        if seconds:
            await trio.sleep(seconds)

    def _end(self, fact: HandlingFact) -> None:
        """End a handler, well or not.

        Raises:
            HandlerFails: As often as the story wants it.
        """
        share = self._world.behaviour_of(self._process.node_id).failure_share
        fact.ended, fact.code = self._world.now, ResultCode.OK
        if share and self._world.rng.random() < share:
            fact.code = ResultCode.FAILED
            raise HandlerFails("the story lets it fail")

    def _reply(self, request: IncomingRequest, key: Key) -> None:
        """Reply, and note what becomes of the reply."""
        delivery, own_key = self._world.traffic.begin_reply(
            self._process, NodeId(request.origin), key
        )
        settle = partial(self._settle, delivery)
        reply = request.bus.reply(request.origin, request.tag, own_key.encode())
        for node_id, code in reply.results.items():
            settle(node_id, code)
        reply.on_result = settle


def is_of_story(key: Key, history: History) -> bool:
    """Tell whether a body is one that the story has sent, and not the user's script."""
    return key in history.deliveries or key in history.requests
