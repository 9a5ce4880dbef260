"""Who gets which events at which back end: implements `routes.subscriptions.EventSubscriptions`.

Specified in docs/events.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import trio

from clusternode.backends.base import (
    BackendServices,
    EventBackend,
    HasFile,
    HasMembers,
    wrong_uri,
)
from clusternode.backends.lanes import Outlets, Queue
from clusternode.backends.registry import Registry, make_backend
from clusternode.bus.interface import Bus
from clusternode.config import AgentSettings
from clusternode.core.events import Event, SubscriberFailed, SubscriberRecovered
from clusternode.core.types import Instant, Seconds
from clusternode.errors import ConfigError, Overloaded
from clusternode.routes.events import EventHub, EventView, Subscription
from clusternode.routes.monitor import Deadlines
from clusternode.routes.subscriptions import (
    DeliveryStatus,
    Raised,
    SubscriberSnapshot,
    SubscriberStatus,
    SubscriptionRequest,
)
from clusternode.runtime.jobs import Jobs

logger = logging.getLogger(__name__)

SUBSCRIBERS_MAX = 1000
"""As many back ends as one process may well have connections and files open."""
QUEUE_SIZE_MAX = 10_000_000
EXPIRE_MAX: Seconds = 366 * 86400.0
CALM: Seconds = 1.0
"""A subscriber that failed is well again after that long without a failure: no flood of events."""
DRAIN_TIMEOUT: Seconds = 2.0
"""How long back ends may take for what is queued when the agent stops, twice."""

QUEUE_FULL = "the queue is full: {} events are on their way"


@attrs.define(eq=False)
class Subscriber:
    """One event, name or wildcard, and the back end that gets it."""

    pattern: str
    backend: EventBackend
    source: str
    expires_at: Instant
    queue: Queue
    subscription: Subscription | None = None
    delivered: int = 0
    failed: int = 0
    overflowed: int = 0
    failed_at: Instant = -math.inf
    last_error: str = ""
    is_failing: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.pattern, self.backend.identity

    def snapshot(self) -> SubscriberSnapshot:
        is_used = self.delivered or self.failed
        left = None
        if self.expires_at != math.inf:
            left = max(0.0, self.expires_at - trio.current_time())
        return SubscriberSnapshot(
            event=self.pattern,
            to=self.backend.shown,
            source=self.source,
            expires_in_s=left,
            state="failing" if self.is_failing else "ok" if is_used else "idle",
            queued=len(self.queue),
            delivered=self.delivered,
            failed=self.failed,
            overflowed=self.overflowed,
            last_error=self.last_error,
        )


class BackendSubscriptions:
    """The subscribers of one agent, and the back ends that they have open.

    Args:
        hub: Where events come from.
        buses: Cluster name → bus; may fill later.
        registry: Scheme → factory; None: those that are installed.
    """

    def __init__(
        self,
        hub: EventHub,
        buses: Mapping[str, Bus],
        registry: Registry | None = None,
    ) -> None:
        self._hub = hub
        self._jobs = Jobs()
        self._deadlines = Deadlines()
        self._outlets = Outlets(self._jobs)
        self._subscribers: dict[tuple[str, str], Subscriber] = {}  # (pattern, identity) → it
        self._leaving: dict[Queue, None] = {}  # of subscribers that have ended, not yet empty
        self._encoded: tuple[EventView | None, bytes] = (None, b"")  # the last event, as JSON
        self.services = BackendServices(
            raise_event=self._raise,
            buses=buses,
            registry=Registry() if registry is None else registry,
            open_lane=self._outlets.open_lane,
        )

    # What the agent calls

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled; then everything that is not settled has failed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deadlines.run)
                await nursery.start(self._jobs.run)
                task_status.started()
        finally:
            for queue in self._queues():
                queue.abandon("the agent has stopped")

    async def drain(self) -> None:
        """Deliver what is queued for `DRAIN_TIMEOUT`; then let `virtual:` use other members."""
        await self._until_empty()
        for backend in self._outlets.backends():
            if isinstance(backend, HasMembers):
                backend.hurry()
        await self._until_empty()

    async def _until_empty(self) -> None:
        with trio.move_on_after(DRAIN_TIMEOUT):
            while busy := [queue for queue in self._queues() if len(queue)]:
                await busy[0].wait_empty()

    def _queues(self) -> Sequence[Queue]:
        own = (subscriber.queue for subscriber in self._subscribers.values())
        return list({**dict.fromkeys(own), **self._leaving})

    # EventSubscriptions

    def subscribe(self, request: SubscriptionRequest, *, source: str) -> None:
        """Deliver events to a back end; the same again refreshes time and expiry.

        Raises:
            ConfigError: Event, scheme, address or option is wrong.
            Overloaded: There are too many.
        """
        pattern, backend = self._check(request)
        self._add(pattern, backend, request, source)

    def _check(self, request: SubscriptionRequest) -> tuple[str, EventBackend]:
        pattern = self._hub.resolve_known(request.event)
        if not (0 < request.expire <= EXPIRE_MAX or request.expire == math.inf):
            expected = f"seconds above 0, at most {EXPIRE_MAX:g}"
            raise ConfigError("expire", request.expire, expected)
        if not 1 <= request.queue_size <= QUEUE_SIZE_MAX:
            raise ConfigError("queue_size", request.queue_size, f"1 to {QUEUE_SIZE_MAX}")
        return pattern, make_backend(request.uri, self.services)

    def _add(
        self, pattern: str, backend: EventBackend, request: SubscriptionRequest, source: str
    ) -> None:
        now = trio.current_time()
        expires_at = math.inf if request.expire == math.inf else now + request.expire
        key = (pattern, backend.identity)
        known = self._subscribers.get(key)
        if known is not None:
            known.expires_at = expires_at
            known.queue.capacity = request.queue_size
            self._set_deadline(known)
            return
        if len(self._queues()) >= SUBSCRIBERS_MAX:  # those that are not empty yet count too
            raise Overloaded(f"{SUBSCRIBERS_MAX} subscribers, at most")
        queue = self._outlets.open_lane(backend, request.queue_size)
        subscriber = Subscriber(pattern, backend, source, expires_at, queue)
        deliver = functools.partial(self._deliver, subscriber)
        try:
            subscriber.subscription = self._hub.on_event(pattern, deliver)
        except Overloaded:
            queue.close()
            raise
        self._subscribers[key] = subscriber
        self._set_deadline(subscriber)

    def _set_deadline(self, subscriber: Subscriber) -> None:
        self._deadlines.clear(subscriber)
        if subscriber.expires_at != math.inf:
            expire = functools.partial(self._remove, subscriber)
            self._deadlines.set(subscriber, subscriber.expires_at, expire)

    def unsubscribe(self, event: str, uri: str) -> bool:
        """End a subscription; what is queued is still delivered. False: there was none.

        Raises:
            ConfigError: The event or URI can be none.
        """
        pattern = self._hub.resolve_known(event)
        identity = make_backend(uri, self.services).identity
        subscriber = self._subscribers.get((pattern, identity))
        if subscriber is None:
            return False
        self._remove(subscriber)
        return True

    def _remove(self, subscriber: Subscriber) -> None:
        if self._subscribers.pop(subscriber.key, None) is None:
            return
        self._deadlines.clear(subscriber)
        if subscriber.subscription is not None:
            subscriber.subscription.cancel()
        if len(subscriber.queue):
            self._leaving[subscriber.queue] = None
        subscriber.queue.close()

    def check(self, requests: Iterable[SubscriptionRequest], *, path: str = "") -> None:
        """Check URIs and options, but not whether the events exist.

        Raises:
            ConfigError: As `subscribe`.
        """
        for number, request in enumerate(requests, 1):
            with _located(path, number):
                make_backend(request.uri, self.services)

    def replace(
        self, source: str, requests: Iterable[SubscriptionRequest], *, path: str = ""
    ) -> None:
        """Make `requests` all that `source` subscribes to; all of it, or nothing.

        Raises:
            ConfigError: As `subscribe`; everything stays as it was.
        """
        checked: list[tuple[SubscriptionRequest, str, EventBackend]] = []
        for number, request in enumerate(requests, 1):
            with _located(path, number):
                checked.append((request, *self._check(request)))
        wanted = {(pattern, backend.identity) for _, pattern, backend in checked}
        for subscriber in list(self._subscribers.values()):
            if subscriber.source == source and subscriber.key not in wanted:
                self._remove(subscriber)
        for request, pattern, backend in checked:
            self._add(pattern, backend, request, source)

    def subscribers(
        self, event: str | None = None, uri: str | None = None
    ) -> Sequence[SubscriberSnapshot]:
        """Show the subscribers, of one event and URI if these are given.

        Raises:
            ConfigError: There is no such event or subscriber.
        """
        found = list(self._subscribers.values())
        if event is not None:
            pattern = self._hub.resolve_known(event)
            found = [subscriber for subscriber in found if subscriber.pattern == pattern]
        if uri is not None:
            backend = make_backend(uri, self.services)
            found = [each for each in found if each.backend.identity == backend.identity]
            if not found:
                raise wrong_uri(backend.shown, "a subscriber of `clusternode events subscribers`")
        return [subscriber.snapshot() for subscriber in found]

    def reopen(self, uri: str) -> int:
        """Let a back end open its file again. Returns how many did.

        Raises:
            ConfigError: No back end of that URI is open, or it has no file.
        """
        wanted = make_backend(f"flatstore:{uri}" if uri.startswith("/") else uri, self.services)
        found = [
            backend
            for backend in self._outlets.backends()
            if isinstance(backend, HasFile)
            and isinstance(wanted, HasFile)
            and backend.path == wanted.path
        ]
        if not found:
            raise wrong_uri(wanted.shown, "the flatstore: of a subscriber")
        for backend in found:
            backend.reopen()
        return len(found)

    # Events

    def _deliver(self, subscriber: Subscriber, bus: Bus | None, view: EventView) -> None:
        del bus
        raised = view.raised
        if raised is not None:
            raised.expect()
        settled = functools.partial(self._settled, subscriber, raised)
        if not subscriber.queue.offer(view, self._encode(view), settled):
            subscriber.overflowed += 1
            settled(DeliveryStatus(False, QUEUE_FULL.format(len(subscriber.queue))))

    def _encode(self, view: EventView) -> bytes:
        """Return an event as JSON, made once for all its subscribers."""
        if self._encoded[0] is not view:
            text = json.dumps(view.notification(), separators=(",", ":"), default=_refuse)
            self._encoded = (view, text.encode())
        return self._encoded[1]

    def _settled(
        self, subscriber: Subscriber, raised: Raised | None, status: DeliveryStatus
    ) -> None:
        now = trio.current_time()
        if status.ok:
            subscriber.delivered += 1
            if subscriber.is_failing and now - subscriber.failed_at >= CALM:
                subscriber.is_failing = False
                logger.info("%s gets %s again", subscriber.backend.shown, subscriber.pattern)
                self._raise(SubscriberRecovered(subscriber.pattern, subscriber.backend.shown))
        else:
            subscriber.failed += 1
            subscriber.failed_at = now
            subscriber.last_error = status.detail
            if not subscriber.is_failing:
                subscriber.is_failing = True
                shown, reason = subscriber.backend.shown, status.detail
                logger.warning("%s does not get %s: %s", shown, subscriber.pattern, reason)
                self._raise(SubscriberFailed(subscriber.pattern, shown, reason))
        if not len(subscriber.queue):
            self._leaving.pop(subscriber.queue, None)
        if raised is not None:
            told = SubscriberStatus(subscriber.pattern, subscriber.backend.shown, status)
            raised.settle(told)

    def _raise(self, event: Event) -> None:
        self._hub.publish(None, event)


def requests_of(settings: AgentSettings) -> Sequence[SubscriptionRequest]:
    """Return what the configuration subscribes."""
    return [
        SubscriptionRequest(each.event, each.to, each.expire or math.inf, each.queue_size)
        for each in settings.subscribe
    ]


def check_subscriptions(settings: AgentSettings) -> None:
    """Check the URIs of `[[subscribe]]`; whether the events exist, only the script can say.

    Raises:
        ConfigError: Scheme, address or option is wrong; names the entry.
    """
    BackendSubscriptions(EventHub(), {}).check(requests_of(settings), path="subscribe")


@contextlib.contextmanager
def _located(path: str, number: int) -> Iterator[None]:
    """Name the request that an error is about: `subscribe.2.to`."""
    try:
        yield
    except ConfigError as error:
        if not path:
            raise
        setting = f"{path}.{number}.{error.setting}"
        raise ConfigError(setting, error.value, error.expected, error.file) from None


def _refuse(value: Any) -> object:  # noqa: ANN401  # whatever an event holds
    return f"<{type(value).__name__}>"
