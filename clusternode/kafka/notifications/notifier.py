"""The notifier: publishes notifications, with a retry that works and a failure that is told."""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import trio

from clusternode.core.types import Seconds
from clusternode.errors import ConfigError, KafkaError
from clusternode.kafka import api
from clusternode.kafka.connections import Connection
from clusternode.kafka.notifications.envelope import encode, new_message, topics_of
from clusternode.kafka.notifications.transport_url import CONNECTION
from clusternode.kafka.records import Placed

logger = logging.getLogger(__name__)

DRIVERS = ("messagingv2", "messaging", "log", "test", "noop", "routing")
RETRY_PAUSE: Seconds = 0.5
RETRY_PAUSE_MAX: Seconds = 30.0
FOREVER = (None, -1)
KEEP = -2
"""A retry that was not given; so 0 can be, which oslo's `prepare` does not understand."""
SECRETS = ("password", "secret", "token", "auth")
KEPT_MAX = 10_000
"""Notifications that the driver `test` keeps."""


@attrs.frozen
class RoutingRule:
    """One driver of one group of a routing configuration (oslo: accepted_events, …)."""

    driver: str
    accepted_events: tuple[str, ...] = ()
    accepted_priorities: tuple[str, ...] = ()

    def accepts(self, event_type: str, priority: str) -> bool:
        """Tell whether both event and priority match what is asked for; nothing asked matches."""
        events = not self.accepted_events or any(
            fnmatch.fnmatch(event_type, pattern) for pattern in self.accepted_events
        )
        wanted = [each.lower() for each in self.accepted_priorities]
        return events and (not wanted or priority.lower() in wanted)


@attrs.frozen
class NotifierDefaults:
    """What `[notifications]` says for notifiers that say nothing themselves."""

    topics: tuple[str, ...] = ("notifications",)
    drivers: tuple[str, ...] = ("messagingv2",)
    retry: int = -1
    routing: tuple[RoutingRule, ...] = ()


@attrs.define(eq=False)
class Notifier:
    """Sends notifications by the drivers that it was given.

    Each method returns where the broker has put them, and raises what went wrong: oslo's only
    logs it. `prepare` gives a cheap copy with another publisher or retry.
    """

    publisher_id: str
    topics: tuple[str, ...] = ()
    """Empty, as `drivers`: what `[notifications]` says."""
    drivers: tuple[str, ...] = ()
    retry: int | None = KEEP
    """None or -1: for ever; 0: none; N: at most N; -2: what `[notifications]` says."""
    connection: Connection | None = None
    """None: the connection of `[notifications]`."""
    routing: tuple[RoutingRule, ...] = ()
    sent: list[tuple[Mapping[str, Any], dict[str, Any], str]] = attrs.Factory(list)
    """What the driver `test` was given: context, message, priority."""

    PRIORITY_OF: ClassVar[Mapping[str, str]] = {"warning": "warn"}

    def __attrs_post_init__(self) -> None:
        for driver in self.drivers:
            if driver not in DRIVERS:
                raise ConfigError("notifications.driver", driver, f"one of {', '.join(DRIVERS)}")

    def prepare(self, publisher_id: str | None = None, retry: int | None = KEEP) -> Notifier:
        """Return a copy; what is not given stays. 0 means no retry, unlike oslo's."""
        return attrs.evolve(
            self,
            publisher_id=self.publisher_id if publisher_id is None else publisher_id,
            retry=self.retry if retry == KEEP else retry,
        )

    @property
    def defaults(self) -> NotifierDefaults:
        """What the configuration of the running agent says."""
        connections = api.connections_of_agent()
        found = None if connections is None else connections.notifier_defaults
        return found if isinstance(found, NotifierDefaults) else NotifierDefaults()

    def is_enabled(self) -> bool:
        return any(driver != "noop" for driver in self.drivers or self.defaults.drivers)

    async def audit(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "audit")

    async def debug(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "debug")

    async def info(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "info")

    async def warn(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "warn")

    warning = warn

    async def error(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "error")

    async def critical(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "critical")

    async def sample(self, ctxt: object, event_type: str, payload: object) -> list[Placed]:
        return await self.notify(ctxt, event_type, payload, "sample")

    async def notify(
        self, ctxt: object, event_type: str, payload: object, priority: str
    ) -> list[Placed]:
        """Send one notification by every driver.

        Raises:
            KafkaError: It was not delivered within the retries.
            NoSuchConnection, KafkaNotInstalled: As they say.
            TypeError: The payload is no JSON.
        """
        context = safe_context(ctxt)
        message = new_message(context, self.publisher_id, event_type, payload, priority)
        placed: list[Placed] = []
        for driver in self._drivers_for(event_type, priority):
            if driver in ("messaging", "messagingv2"):
                placed += await self._publish(message, priority)
            elif driver == "log":
                _log(message, priority)
            elif driver == "test" and len(self.sent) < KEPT_MAX:
                self.sent.append((context, message, priority))
        return placed

    def _drivers_for(self, event_type: str, priority: str) -> Iterable[str]:
        defaults = self.defaults
        for driver in self.drivers or defaults.drivers:
            if driver != "routing":
                yield driver
                continue
            rules = self.routing or defaults.routing
            accepted = [rule.driver for rule in rules if rule.accepts(event_type, priority)]
            yield from dict.fromkeys(accepted)

    async def _publish(self, message: Mapping[str, Any], priority: str) -> list[Placed]:
        connection = self.connection or api.connection(CONNECTION)
        value = encode(message)
        vhost = connection.settings.vhost
        return [
            await self._with_retry(connection, topic, value)
            for topic in topics_of(self.topics or self.defaults.topics, [priority], vhost)
        ]

    async def _with_retry(self, connection: Connection, topic: str, value: bytes) -> Placed:
        pause, attempt = RETRY_PAUSE, 0
        retry = self.defaults.retry if self.retry == KEEP else self.retry
        while True:
            try:
                return await connection.publish(topic, value)
            except KafkaError as error:
                attempt += 1
                is_last = retry not in FOREVER and attempt > (retry or 0)
                if not error.retriable or is_last:
                    raise
            await trio.sleep(pause)
            pause = min(pause * 2, RETRY_PAUSE_MAX)


def notifier(
    publisher_id: str,
    *,
    topics: Sequence[str] = (),
    drivers: Sequence[str] = (),
    retry: int | None = KEEP,
) -> Notifier:
    """Return a notifier over the connection of `[notifications]`, for scripts.

    What is not given is what `[notifications]` says: topics, driver, retry.
    """
    return Notifier(publisher_id, tuple(topics), tuple(drivers), retry)


def safe_context(ctxt: object) -> dict[str, Any]:
    """Return what of a context may leave the machine: what its `redacted_copy()` gives.

    None and dictionaries become {}: they may hold anything (oslo does the same).
    """
    redact = getattr(ctxt, "redacted_copy", None)
    if not callable(redact):
        if ctxt is not None and not isinstance(ctxt, Mapping):
            logger.warning("a context without redacted_copy() was left out of a notification")
        return {}
    found = redact()
    to_dict = getattr(found, "to_dict", None)
    values = to_dict() if callable(to_dict) else found
    return dict(values) if isinstance(values, Mapping) else {}


def _log(message: Mapping[str, Any], priority: str) -> None:
    """Write a notification to the log, as oslo's driver `log`; audit and sample as info."""
    logger = logging.getLogger(f"oslo.messaging.notification.{message['event_type']}")
    level = {"warn": "WARNING", "audit": "INFO", "sample": "INFO"}.get(priority, priority.upper())
    shown = json.dumps(_masked(message), default=str)
    logger.log(logging.getLevelNamesMapping()[level], "%s", shown)


def _masked(value: Any, name: str = "") -> Any:  # noqa: ANN401  # a JSON value
    if isinstance(value, Mapping):
        return {key: _masked(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each, name) for each in value]
    return "***" if any(word in name.lower() for word in SECRETS) else value
