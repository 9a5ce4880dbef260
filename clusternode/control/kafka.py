"""What each call about Kafka does to the agent."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import trio

from clusternode.config.kinds import WrongValue
from clusternode.control.requests import INVALID_PARAMS
from clusternode.errors import ControlError, KafkaError
from clusternode.kafka import library
from clusternode.kafka.connections import Connection
from clusternode.kafka.notifications.envelope import PRIORITIES
from clusternode.kafka.notifications.notifier import DRIVERS, Notifier, NotifierDefaults
from clusternode.kafka.records import Placed
from clusternode.kafka.service import KafkaService
from clusternode.kafka.settings import TOPIC_SPEC, TopicSpec

MILLISECONDS = 1000

Values = Mapping[str, Any]


def status(service: KafkaService, values: Values) -> object:
    del values
    return {
        "enabled": not service.settings.is_empty,
        "installed": library.is_installed(),
        "connections": [each.status() for each in service.connections],
        "bridges": service.bridges_status(),
    }


def show(service: KafkaService, values: Values) -> object:
    return service.connections.get(values["connection"]).settings.shown()


def consumers(service: KafkaService, values: Values) -> object:
    del values
    return [each.status() for each in service.consumers()]


def consumer(service: KafkaService, values: Values) -> object:
    return [each.status() for each in service.consumers_named(values["name"])]


async def send(service: KafkaService, values: Values) -> object:
    """Publish a record and wait for its delivery.

    Raises:
        NoSuchConnection, KafkaNotInstalled, KafkaError: It is not there.
        ControlError: The parameters do not fit together.
    """
    connection: Connection = service.connections.get(values["connection"])
    headers = values["headers"]
    if not all(isinstance(value, str) for value in headers.values()):
        raise ControlError(INVALID_PARAMS, "kafka.send: headers must be an object of strings")
    with trio.move_on_after(values["timeout"]):
        placed = await connection.publish(
            values["topic"], _value(values), key=values["key"], headers=headers or None
        )
        return _shown(placed)
    raise _timed_out(values["timeout"])


def _shown(placed: Placed) -> dict[str, object]:
    return {
        "topic": placed.topic,
        "partition": placed.partition,
        "offset": placed.offset,
        "latency_ms": round(placed.latency_s * MILLISECONDS, 3),
    }


def _timed_out(timeout: float) -> KafkaError:
    return KafkaError(
        "_TIMED_OUT",
        f"no answer within {timeout:g} s; the record may still be delivered",
        retriable=True,
        definite=False,
    )


def _value(values: Values) -> bytes:
    text, encoded = values["message"], values["message_base64"]
    if (text is None) == (encoded is None):
        raise ControlError(INVALID_PARAMS, "kafka.send: either message or message_base64")
    if text is not None:
        return cast("str", text).encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ControlError(INVALID_PARAMS, "kafka.send: message_base64 must be base64") from None


async def notify(service: KafkaService, values: Values) -> object:
    """Send a notification and wait for its delivery.

    Raises:
        NoSuchConnection, KafkaNotInstalled, KafkaError: It is not there.
        ControlError: A parameter is wrong.
    """
    priority = values["priority"].lower()
    if priority not in PRIORITIES:
        known = ", ".join(PRIORITIES)
        raise ControlError(INVALID_PARAMS, f"kafka.notify: priority must be one of {known}")
    notifier = _notifier(service, values)
    placed: list[Placed] = []
    with trio.move_on_after(values["timeout"]) as scope:
        placed = await notifier.notify(None, values["event_type"], _payload(values), priority)
    if scope.cancelled_caught:
        raise _timed_out(values["timeout"])
    return {"placed": [_shown(each) for each in placed]}


def _notifier(service: KafkaService, values: Values) -> Notifier:
    """Make a notifier of what is asked for, and of `[notifications]` for the rest."""
    defaults = service.connections.notifier_defaults
    assert isinstance(defaults, NotifierDefaults)
    drivers = tuple(values["drivers"]) or defaults.drivers
    unknown = [each for each in drivers if each not in DRIVERS]
    if unknown:
        known = ", ".join(DRIVERS)
        raise ControlError(INVALID_PARAMS, f"kafka.notify: drivers must be of {known}")
    return Notifier(
        values["publisher_id"],
        tuple(values["topics"]) or defaults.topics,
        drivers,
        defaults.retry,
        service.connections.get(values["connection"]),
        defaults.routing,
    )


def _payload(values: Values) -> object:
    """Return the payload: what it says as JSON, else the text itself; none is {}."""
    text = values["payload"]
    if text is None:
        return {}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


async def ensure_topic(service: KafkaService, values: Values) -> object:
    """Make a topic.

    Raises:
        NoSuchConnection, KafkaNotInstalled, KafkaError: It could not be.
        ControlError: The topic is no topic.
    """
    connection = service.connections.get(values["connection"])
    try:
        spec = cast("TopicSpec", TOPIC_SPEC.read(values["topic"]))
    except WrongValue:
        raise ControlError(INVALID_PARAMS, f"topic must be {TOPIC_SPEC.expected}") from None
    made = await connection.ensure_topic(spec.name, spec.partitions, spec.replicas)
    return {"topic": spec.name, "made": made}


IMMEDIATE: Mapping[str, Callable[[KafkaService, Values], object]] = {
    "kafka.status": status,
    "kafka.show": show,
    "kafka.consumers": consumers,
    "kafka.consumer": consumer,
}
WAITING: Mapping[str, Callable[[KafkaService, Values], Awaitable[object]]] = {
    "kafka.send": send,
    "kafka.notify": notify,
    "kafka.ensure_topic": ensure_topic,
}
