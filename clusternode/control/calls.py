"""What each call of the control socket does to the agent."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import attrs
import trio

from clusternode.bus.interface import Bus, Delivery, NodeOutcome, Operable, Surveyed
from clusternode.control.interface import Controlled
from clusternode.control.requests import (
    BY_NAME,
    INVALID_PARAMS,
    NO_SUCH_CLUSTER,
    NO_SUCH_NODE,
    OVERLOADED,
    REFUSED,
    ROUTES_NOT_LOADED,
    STATUSES,
    TOO_LARGE,
    TOO_SLOW,
    body_of,
)
from clusternode.control.values import (
    dmq_json,
    event_json,
    event_types_json,
    jsonable,
    member_json,
    reply_json,
    result_json,
    snapshot_json,
    survey_json,
)
from clusternode.control.view import VIEW_CHANNEL, read_view_untrusted, view_of
from clusternode.core.effects import Outcome
from clusternode.core.types import Address, NodeId
from clusternode.errors import (
    BodyTooLarge,
    ClusternodeError,
    ConfigError,
    ControlError,
    NoSuchNode,
    Overloaded,
    RouteError,
)
from clusternode.routes.events import EventCallback, EventView, Subscription
from clusternode.routes.subscriptions import SubscriptionRequest

WATCH_BACKLOG = 4096
"""How many events may wait for one watcher: room for a burst, not for one that stands still."""

Values = Mapping[str, Any]  # parameter → checked value

OWN_EVENT: Mapping[str, Any] = {"alias": "", "help": "An event of your own.", "parameters": []}
ERROR_CODES: tuple[tuple[type[ClusternodeError], int], ...] = (
    (ConfigError, INVALID_PARAMS),
    (BodyTooLarge, TOO_LARGE),
    (NoSuchNode, NO_SUCH_NODE),
    (Overloaded, OVERLOADED),
    (RouteError, ROUTES_NOT_LOADED),
    (ClusternodeError, REFUSED),
)


def as_control_error(error: ClusternodeError) -> ControlError:
    """Return what the client is told of an error."""
    if isinstance(error, ControlError):
        return error
    code = next(code for kind, code in ERROR_CODES if isinstance(error, kind))
    return ControlError(code, str(error) or type(error).__name__)


class Stream(Protocol):
    """Where a call puts the items before its result."""

    async def send(self, item: object) -> None: ...


@attrs.define
class ControlCounters:
    """What happened on a control socket since its start."""

    clients: int = 0
    """Connected now."""
    calls: int = 0
    slow_watchers: int = 0
    refused_clients: int = 0
    broken_lines: int = 0


@attrs.define
class Calls:
    """Performs checked calls: `await calls.perform(name, values, stream)` gives the result."""

    controlled: Controlled
    counters: ControlCounters

    async def perform(self, name: str, values: Values, stream: Stream) -> object:
        """Perform the call `name` with parameters that were checked.

        Raises:
            ClusternodeError: It did not succeed; `as_control_error` says what to answer.
        """
        self.counters.calls += 1
        if name == "agent.watch":
            return await self._watch(values, stream)
        if name == "cluster.request":
            return await self._request(values, stream)
        if name.startswith("kafka."):
            return await self._kafka(name, values)
        if name in _WAITING:
            return await _WAITING[name](self, values)
        await trio.lowlevel.checkpoint()
        return _IMMEDIATE[name](self, values)

    async def _kafka(self, name: str, values: Values) -> object:
        from clusternode.control import kafka  # memory: most agents are never asked

        if name in kafka.WAITING:
            return await kafka.WAITING[name](self.controlled.kafka, values)
        await trio.lowlevel.checkpoint()
        return kafka.IMMEDIATE[name](self.controlled.kafka, values)

    def _bus(self, values: Values) -> Bus:
        buses, name = self.controlled.buses, values["cluster"]
        if name is None:
            name = next(iter(buses), None)
        if name is None or name not in buses:
            known = ", ".join(buses) or "none"
            raise ControlError(
                NO_SUCH_CLUSTER, f"this agent is no node of the cluster {name!r}; its are: {known}"
            )
        return buses[name]

    def _node(self, bus: Bus, values: Values) -> NodeId:
        """Return the id of the member that a node id or an address means."""
        wanted = values["node"]
        members = bus.members()
        for member in members:
            if wanted == member.node_id:
                return member.node_id
        for member in members:
            if wanted in (member.address, member.address.partition("://")[2]):
                return member.node_id
        known = ", ".join(member.node_id for member in members[:16])
        more = ", …" if len(members) > len(members[:16]) else ""
        raise ControlError(
            NO_SUCH_NODE, f"no member {wanted!r} in the cluster {bus.name}; members: {known}{more}"
        )

    def _info(self, values: Values) -> object:
        del values
        return {
            "version": self.controlled.version,
            "pid": os.getpid(),
            "node_id": self.controlled.node_id,
            "clusters": list(self.controlled.buses),
            "uptime_s": round(trio.current_time() - self.controlled.started_at, 3),
            "control": attrs.asdict(self.counters),
        }

    async def _reload(self, values: Values) -> object:
        del values
        return {"detail": await self.controlled.reload()}

    def _stop(self, values: Values) -> object:
        """Say yes; the server tells the agent when the answer is on its way."""
        del values
        return {"stopping": True}

    def _list(self, values: Values) -> object:
        return [member_json(member) for member in self._bus(values).members()]

    def _list_dmq(self, values: Values) -> object:
        return [dmq_json(member) for member in self._bus(values).members()]

    def _show(self, values: Values) -> object:
        shown = snapshot_json(self._bus(values).snapshot())
        return {**shown, "routes": jsonable(list(self.controlled.route_stats()))}

    def _add(self, values: Values) -> object:
        address = Address.parse(values["address"])
        self._bus(values).add(str(address))
        return {"added": str(address)}

    def _remove(self, values: Values) -> object:
        bus = self._bus(values)
        node_id = self._node(bus, values)
        bus.remove(node_id)
        return {"removed": node_id}

    def _change_status(self, values: Values) -> object:
        bus = self._bus(values)
        if values["status"] not in STATUSES:
            raise ControlError(INVALID_PARAMS, f"status must be one of {', '.join(STATUSES)}")
        node_id = self._node(bus, values)
        bus.change_status(node_id, values["status"])
        return {"node_id": node_id, "status": values["status"]}

    def _list_events(self, values: Values) -> object:
        del values
        known = event_types_json()
        names = {event["event"] for event in known}
        raised = [name for name in self.controlled.events.names if name not in names]
        return [*known, *({"event": name, **OWN_EVENT} for name in raised)]

    async def _raise_event(self, values: Values) -> object:
        try:
            raised = self.controlled.events.raise_event(values["name"], values["parameters"])
        except RouteError as error:
            raise ControlError(INVALID_PARAMS, str(error)) from None
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(values["timeout"] or 0):
            await raised
        return {
            "raised": values["name"],
            "subscribers": raised.subscribers,
            "statuses": [
                {"event": each.event, "to": each.to, **attrs.asdict(each.status)}
                for each in raised.statuses
            ],
        }

    def _subscribe(self, values: Values) -> object:
        subscriptions = self.controlled.events.subscriptions
        if not values["expire"]:  # as OpenSIPS: it lapses
            subscriptions.unsubscribe(values["event"], values["to"])
            return {"subscribed": False}
        request = SubscriptionRequest(values["event"], values["to"], float(values["expire"]))
        subscriptions.subscribe(request, source="control")
        return {"subscribed": True}

    def _unsubscribe(self, values: Values) -> object:
        subscriptions = self.controlled.events.subscriptions
        return {"unsubscribed": subscriptions.unsubscribe(values["event"], values["to"])}

    def _subscribers(self, values: Values) -> object:
        subscriptions = self.controlled.events.subscriptions
        found = subscriptions.subscribers(values["event"], values["to"])
        return [attrs.asdict(subscriber) for subscriber in found]

    def _rotate(self, values: Values) -> object:
        return {"reopened": self.controlled.events.subscriptions.reopen(values["to"])}

    async def _broadcast(self, values: Values) -> object:
        body = body_of(BY_NAME["cluster.broadcast"], values)
        delivery = self._bus(values).broadcast(
            values["channel"],
            body,
            except_=cast("Iterable[str]", values["except"]),
            content_type=values["content_type"],
        )
        return await _results(delivery)

    async def _send(self, values: Values) -> object:
        body = body_of(BY_NAME["cluster.send"], values)
        bus = self._bus(values)
        delivery = bus.send(
            values["channel"],
            self._node(bus, values),
            body,
            content_type=values["content_type"],
        )
        return await _results(delivery)

    async def _request(self, values: Values, stream: Stream) -> object:
        body = body_of(BY_NAME["cluster.request"], values)
        bus = self._bus(values)
        options = {
            "timeout": values["timeout"],
            "tag": values["tag"],
            "content_type": values["content_type"],
        }
        if values["node"] is None:
            replies = bus.broadcast_request(
                values["channel"], body, include_self=values["include_self"], **options
            )
        else:
            node_id = self._node(bus, values)
            replies = bus.request(values["channel"], node_id, body, **options)
        async with replies:
            async for reply in replies:
                await stream.send(reply_json(reply))
        outcomes = replies.outcomes
        by_outcome = functools.partial(_named, outcomes)
        return {
            "summary": True,
            "tag": replies.tag,
            "asked": list(replies.asked),
            "replied": by_outcome(Outcome.REPLIED),
            "nothing": by_outcome(Outcome.NOTHING),
            "failed": {
                node_id: result_json(outcome.code)
                for node_id, outcome in outcomes.items()
                if outcome.outcome is Outcome.FAILED
            },
            "unanswered": by_outcome(Outcome.UNANSWERED),
        }

    def _operable(self, values: Values) -> Operable:
        bus = self._bus(values)
        if not isinstance(bus, Operable):
            raise ControlError(INVALID_PARAMS, f"the cluster {bus.name} has no such commands")
        return bus

    def _operations(self, values: Values) -> object:
        return [attrs.asdict(each) for each in self._operable(values).operations()]

    def _operate(self, values: Values) -> object:
        return self._operable(values).operate(values["command"], list(values["arguments"]))

    async def _topology(self, values: Values) -> object:
        bus = self._bus(values)
        if isinstance(bus, Surveyed):
            await trio.lowlevel.checkpoint()
            return survey_json(bus.survey())
        nodes = [member.node_id for member in bus.members() if member.status != "left"]
        views: dict[str, object] = {}
        digests: dict[str, str] = {}
        unanswered: dict[str, str] = {}

        def take(node_id: NodeId, body: bytes) -> None:
            view = read_view_untrusted(body)
            if view is None:
                unanswered[node_id] = "its answer is no view"
            else:
                digests[node_id], views[node_id] = view

        take(bus.node_id, view_of(bus))
        replies = bus.broadcast_request(VIEW_CHANNEL, b"", timeout=values["timeout"])
        async with replies:
            async for reply in replies:
                take(reply.node_id, reply.body)
        for node_id in [*nodes, *replies.asked]:
            if node_id not in views and node_id not in unanswered:
                unanswered[node_id] = _why(replies.outcomes.get(node_id))
        return {
            "nodes": list(dict.fromkeys([*nodes, *replies.asked])),
            "views": views,
            "digests": digests,
            "unanswered": unanswered,
        }

    async def _watch(self, values: Values, stream: Stream) -> object:
        sender, receiver = trio.open_memory_channel[dict[str, Any]](WATCH_BACKLOG)
        overflowed = trio.Event()
        sent = 0
        last: EventView | None = None

        def take(bus: Bus | None, view: EventView) -> None:
            nonlocal last
            if view is last:  # two patterns match one event
                return
            last = view
            try:
                sender.send_nowait(event_json("" if bus is None else bus.name, view))
            except trio.WouldBlock:
                overflowed.set()

        async def forward() -> None:
            nonlocal sent
            async for item in receiver:
                await stream.send(item)
                sent += 1

        # The channel outlives the subscriptions: `take` must never meet a closed one.
        async with sender, receiver:
            with contextlib.ExitStack() as stack:
                for pattern in dict.fromkeys(values["patterns"] or ("*",)):
                    stack.callback(self._subscribed(pattern, take).cancel)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(forward)
                    await overflowed.wait()
                    nursery.cancel_scope.cancel()
        self.counters.slow_watchers += 1
        raise ControlError(
            TOO_SLOW,
            f"this watcher was ended after {sent} events, with {WATCH_BACKLOG} more waiting: "
            "read faster, or watch fewer events with patterns",
        )

    def _subscribed(self, pattern: str, callback: EventCallback) -> Subscription:
        try:
            return self.controlled.events.on_event(pattern, callback)
        except RouteError as error:
            raise ControlError(INVALID_PARAMS, str(error)) from None


def _named(outcomes: Mapping[NodeId, NodeOutcome], outcome: Outcome) -> list[str]:
    return [node_id for node_id, own in outcomes.items() if own.outcome is outcome]


def _why(outcome: NodeOutcome | None) -> str:
    if outcome is None:
        return "not asked"
    if outcome.outcome is Outcome.FAILED:
        return f"{int(outcome.code)} {result_json(outcome.code)['text']}"
    if outcome.outcome is Outcome.NOTHING:
        return "it has no answer to give"
    return "no answer in time"


async def _results(delivery: Delivery) -> dict[str, object]:
    return {node_id: result_json(code) for node_id, code in (await delivery).items()}


_IMMEDIATE: Mapping[str, Callable[[Calls, Values], object]] = {
    "agent.info": Calls._info,
    "agent.stop": Calls._stop,
    "cluster.list": Calls._list,
    "cluster.show": Calls._show,
    "gateway.operations": Calls._operations,
    "gateway.call": Calls._operate,
    "dmq.list_nodes": Calls._list_dmq,
    "dmq.add": Calls._add,
    "dmq.remove": Calls._remove,
    "dmq.change_status": Calls._change_status,
    "event.list": Calls._list_events,
    "event.subscribe": Calls._subscribe,
    "event.unsubscribe": Calls._unsubscribe,
    "event.subscribers": Calls._subscribers,
    "event.rotate": Calls._rotate,
    "bridge.status": lambda calls, _: calls.controlled.bridge_status(),
}
_WAITING: Mapping[str, Callable[[Calls, Values], Awaitable[object]]] = {
    "agent.reload": Calls._reload,
    "event.raise": Calls._raise_event,
    "cluster.topology": Calls._topology,
    "cluster.broadcast": Calls._broadcast,
    "cluster.send": Calls._send,
}
