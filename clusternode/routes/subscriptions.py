"""What became of an event at its subscribers, and the interface `EventSubscriptions`.

A subscriber is a back end that gets events by `subscribe_event(event, uri, expire)`. The back ends
themselves are in `clusternode.backends`, above this layer. Specified in docs/events.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Protocol

import attrs
import trio

from clusternode.core.types import Seconds

logger = logging.getLogger(__name__)

QUEUE_SIZE_DEFAULT = 10_000
"""Events that may be on their way to one subscriber: as many as a channel's queue holds."""


@attrs.frozen
class DeliveryStatus:
    """The final status of one event at one subscriber."""

    ok: bool
    """Whether it was delivered, as the back end promises it in docs/events.md."""
    detail: str = ""
    """Where to, for instance `partition 3, offset 17`; or why not."""
    definite: bool = True
    """Of a failure: whether it was certainly not delivered."""


DELIVERED = DeliveryStatus(True)


@attrs.frozen
class SubscriberStatus:
    """The final status of one event at one subscriber, and who that is."""

    event: str
    """What was subscribed to: a name or a wildcard."""
    to: str
    """The URI, without secrets."""
    status: DeliveryStatus


ReportCallback = Callable[[SubscriberStatus], object]
"""Called once per subscriber, in the agent's thread; a plain function that does not block."""


class Raised:
    """What became of a raised event: `statuses = await raised` waits for every subscriber.

    May be awaited any number of times, or not at all. Without subscribers it is complete at once.
    """

    __slots__ = ("_done", "_open", "_report", "statuses", "subscribers")

    def __init__(self, report: ReportCallback | None = None) -> None:
        self.subscribers = 0
        """How many back ends the event was for."""
        self.statuses: list[SubscriberStatus] = []
        """In the order in which they came."""
        self._open = 0
        self._report = report
        self._done: trio.Event | None = None

    @property
    def is_complete(self) -> bool:
        return self._open == 0

    @property
    def is_ok(self) -> bool:
        """Tell whether every subscriber has got it."""
        return self._open == 0 and all(each.status.ok for each in self.statuses)

    def expect(self) -> None:
        """Count one more subscriber. Called by the subscriptions, before `settle`."""
        self.subscribers += 1
        self._open += 1

    def settle(self, status: SubscriberStatus) -> None:
        """Take the status of one subscriber. Called by the subscriptions."""
        self.statuses.append(status)
        self._open -= 1
        if self._report is not None:
            try:
                self._report(status)
            except (Exception, SystemExit):  # user code
                logger.exception("the report callback of an event failed")
        if self._open == 0 and self._done is not None:
            self._done.set()

    def __await__(self) -> Generator[Any, None, list[SubscriberStatus]]:
        return self._wait().__await__()

    async def _wait(self) -> list[SubscriberStatus]:
        if self._open == 0:
            await trio.lowlevel.checkpoint()
        else:
            if self._done is None:
                self._done = trio.Event()
            await self._done.wait()
        return self.statuses


@attrs.frozen
class SubscriptionRequest:
    """One `subscribe_event(event, uri, expire)`, as the configuration or a script has it."""

    event: str
    """Name, alias or wildcard."""
    uri: str
    expire: Seconds = math.inf
    """How long it lasts; `math.inf` for ever."""
    queue_size: int = QUEUE_SIZE_DEFAULT
    """Events that may be on their way at a time; beyond it they are refused and counted."""


@attrs.frozen
class SubscriberSnapshot:
    """One subscriber and its counters."""

    event: str
    to: str
    """The URI, without secrets."""
    source: str
    """Who subscribed: `configuration`, `routes` (while loaded), `script` or `control`."""
    expires_in_s: Seconds | None
    """None: never."""
    state: str
    """`ok`; `failing`: its last event failed; `idle`: it had none yet."""
    queued: int
    """Not yet settled."""
    delivered: int
    failed: int
    overflowed: int
    """Of the failed ones: refused because the queue was full."""
    last_error: str


class EventSubscriptions(Protocol):
    """The subscribers of one agent. Nothing here blocks."""

    def subscribe(self, request: SubscriptionRequest, *, source: str) -> None:
        """Deliver events to a back end; the same event and URI again refreshes the expiry.

        Raises:
            ConfigError: Event, scheme, address or option is wrong; says what was expected.
            Overloaded: There are too many subscriptions.
        """
        ...

    def unsubscribe(self, event: str, uri: str) -> bool:
        """End a subscription; what is queued is still delivered. False: there was none.

        Raises:
            ConfigError: The event or URI can be none.
        """
        ...

    def check(self, requests: Iterable[SubscriptionRequest], *, path: str = "") -> None:
        """Check URIs and options, but not whether the events exist; arguments as `replace`.

        Raises:
            ConfigError: As `subscribe`.
        """
        ...

    def replace(
        self, source: str, requests: Iterable[SubscriptionRequest], *, path: str = ""
    ) -> None:
        """Make `requests` all that `source` subscribes to; all of it, or nothing.

        Args:
            source: `configuration` or `routes`.
            requests: In order.
            path: What an error puts before the number of the request.

        Raises:
            ConfigError: As `subscribe`; everything stays as it was.
        """
        ...

    def subscribers(
        self, event: str | None = None, uri: str | None = None
    ) -> Sequence[SubscriberSnapshot]:
        """Show the subscribers, of one event and URI if these are given.

        Raises:
            ConfigError: There is no such event or subscriber.
        """
        ...

    def reopen(self, uri: str) -> int:
        """Let a back end open its file again, after a rotation from outside. Returns how many.

        Raises:
            ConfigError: No back end of that URI is open, or it has no file.
        """
        ...
