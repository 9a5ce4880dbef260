"""`[notifications]` and `[[notification_listener]]`: notifier and listeners by configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs

from clusternode.bus.interface import Bus
from clusternode.config.kinds import NAME, STRING, Kind, WrongValue, choice, integer, list_of
from clusternode.config.raw import RawTable
from clusternode.kafka.ends import TARGET, End
from clusternode.kafka.notifications.envelope import PRIORITIES, topics_of
from clusternode.kafka.notifications.listener import NotificationFilter, NotificationListener
from clusternode.kafka.notifications.notifier import DRIVERS, NotifierDefaults, RoutingRule
from clusternode.kafka.notifications.transport_url import CONNECTION
from clusternode.kafka.settings import TOPIC_NAME
from clusternode.routes.events import EventHub
from clusternode.routes.table import HandlerFunction, RecordOptions, RouteTable, make_handler
from clusternode.routes.table import Kind as RouteKind

JSON = "application/json"
NOTIFIER_KEYS: Mapping[str, Kind] = {
    "driver": list_of(choice(*DRIVERS)),
    "topics": list_of(TOPIC_NAME, length_min=1),
    "retry": integer(-1, 1_000_000),
}
ROUTING_KEYS: Mapping[str, Kind] = {
    "driver": choice(*(driver for driver in DRIVERS if driver != "routing")),
    "accepted_events": list_of(STRING),
    "accepted_priorities": list_of(choice(*PRIORITIES)),
}
LISTENER_KEYS: Mapping[str, Kind] = {
    "topics": list_of(TOPIC_NAME, length_min=1),
    "priorities": list_of(choice(*PRIORITIES), length_min=1),
    "pool": STRING,
    "batch_size": integer(0, 100_000),
    "allow_requeue": Kind("boolean", "true or false", lambda value: _boolean(value)),
    "connection": NAME,
    "to": TARGET,
    "publisher_id": STRING,
    "event_type": STRING,
}


def _boolean(value: object) -> object:
    if not isinstance(value, bool):
        raise WrongValue
    return value


def read_notifier(table: RawTable) -> NotifierDefaults:
    """Read driver, topics, retry and `[[notifications.routing]]` of `[notifications]`.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    values = {key: table.value(key, kind) for key, kind in NOTIFIER_KEYS.items() if table.has(key)}
    rules = []
    for entry in table.tables("routing"):
        entry.refuse_unknown(ROUTING_KEYS)
        if not entry.has("driver"):
            raise entry.fail("driver", None, ROUTING_KEYS["driver"].expected)
        given = {k: entry.value(k, kind) for k, kind in ROUTING_KEYS.items() if entry.has(k)}
        rules.append(RoutingRule(**cast("dict[str, Any]", given)))
    renamed = {"drivers" if key == "driver" else key: value for key, value in values.items()}
    return NotifierDefaults(routing=tuple(rules), **cast("dict[str, Any]", renamed))


@attrs.frozen(kw_only=True)
class ListenerSettings:
    """`[[notification_listener]]`: notifications become an event of this node, or messages."""

    to: End
    topics: tuple[str, ...] = ("notifications",)
    priorities: tuple[str, ...] = PRIORITIES
    pool: str = ""
    batch_size: int = 0
    allow_requeue: bool = False
    connection: str = CONNECTION
    publisher_id: str | None = None
    event_type: str | None = None


def read_listeners(
    tables: list[RawTable], connections: Mapping[str, object]
) -> tuple[ListenerSettings, ...]:
    """Read `[[notification_listener]]` tables.

    Raises:
        ConfigError: Names the key, and what was expected.
    """
    found = []
    for table in tables:
        table.refuse_unknown(LISTENER_KEYS)
        values = {k: table.value(k, kind) for k, kind in LISTENER_KEYS.items() if table.has(k)}
        end = values.get("to")
        fits = isinstance(end, End) and end.kind in ("channel", "event")
        if not isinstance(end, End) or not fits or (end.kind == "event" and end.where):
            raise table.fail("to", str(end or ""), "channel:NAME[@CLUSTER] or event:NAME")
        settings = ListenerSettings(**cast("dict[str, Any]", values))
        if settings.connection not in connections:
            known = ", ".join(connections) or "none"
            raise table.fail("connection", settings.connection, f"[notifications], or of: {known}")
        found.append(settings)
    return tuple(found)


class Relay:
    """An endpoint that hands notifications on."""

    def __init__(
        self,
        settings: ListenerSettings,
        buses: Callable[[], Mapping[str, Bus]],
        events: Callable[[], EventHub | None],
    ) -> None:
        self.filter_rule = NotificationFilter(
            publisher_id=settings.publisher_id, event_type=settings.event_type
        )
        self._to = settings.to
        self._buses = buses
        self._events = events
        self._batch = settings.batch_size > 0
        for priority in settings.priorities:
            setattr(self, priority, self._take(priority))

    def _take(self, priority: str) -> Callable[..., None]:
        def one(
            ctxt: object, publisher_id: str, event_type: str, payload: object, metadata: object
        ) -> None:
            self._hand_on(
                {
                    "priority": priority,
                    "publisher_id": publisher_id,
                    "event_type": event_type,
                    "payload": payload,
                    "context": ctxt,
                    "metadata": metadata,
                }
            )

        def several(batch: list[dict[str, Any]]) -> None:
            for entry in batch:
                one(**entry)

        return several if self._batch else one

    def _hand_on(self, values: dict[str, Any]) -> None:
        events = self._events()
        if self._to.kind == "event":
            if events is not None:
                events.raise_event(self._to.name, values)
            return
        buses = self._buses()
        bus = buses[self._to.where] if self._to.where else next(iter(buses.values()))
        bus.broadcast(self._to.name, json.dumps(values), content_type=JSON)


def add_listener(table: RouteTable, settings: ListenerSettings, relay: Relay) -> None:
    """Register a configured listener like one of a script."""
    listener = NotificationListener(
        (relay,), settings.batch_size, allow_requeue=settings.allow_requeue
    )
    handler = make_handler(RouteKind.KAFKA, settings.connection, cast("HandlerFunction", listener))
    handler.name = f"notification_listener {settings.to}"
    handler.records = RecordOptions(
        topics=topics_of(settings.topics, listener.priorities),
        group=settings.pool or None,
        commit="after" if settings.allow_requeue else "before",
    )
    table.add(handler)
