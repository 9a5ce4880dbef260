"""The protocol `EventBackend`: what brings events to where a URI says.

A back end is found by its scheme in the entry-point group `clusternode.event_backends`; the entry
point is a `BackendFactory`. Specified in docs/events.md, "Your own back end".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import attrs
import trio

from clusternode.bus.interface import Bus
from clusternode.core.events import Event
from clusternode.core.types import Seconds
from clusternode.errors import ConfigError
from clusternode.routes.events import EventView
from clusternode.routes.subscriptions import DELIVERED, DeliveryStatus

PUBLISH_TIMEOUT: Seconds = 10.0
"""How long one `publish` may take where a back end says nothing else."""
BATCH_MAX = 256
"""Events per `publish` where a back end says nothing else: one system call, one wake-up."""

StatusCallback = Callable[[DeliveryStatus], None]


class Publication:
    """One event on its way to one back end. Its status is told once: the first `settle` counts."""

    __slots__ = ("_settled", "event", "notification", "status")

    def __init__(self, event: EventView, notification: bytes, settled: SettledCallback) -> None:
        self.event = event
        """Name, alias, parameters."""
        self.notification = notification
        """The JSON-RPC 2.0 notification, one line of UTF-8 without its end."""
        self.status: DeliveryStatus | None = None
        self._settled = settled

    @property
    def is_settled(self) -> bool:
        return self.status is not None

    def settle(self, status: DeliveryStatus = DELIVERED) -> None:
        """Tell the final status; a second one is ignored. Only in the agent's thread."""
        if self.status is None:
            self.status = status
            self._settled(self, status)

    def fail(self, detail: str, *, definite: bool = True) -> None:
        """Tell that it was not delivered; `definite`: certainly not."""
        self.settle(DeliveryStatus(False, detail, definite))


SettledCallback = Callable[[Publication, DeliveryStatus], None]


class EventBackend(Protocol):
    """One place that events are brought to.

    Made, without I/O, when somebody subscribes; `run` is started before the first `publish` and
    cancelled when nobody needs it any more. All subscriptions of one `identity` share one.
    """

    scheme: ClassVar[str]
    """The word before the first colon."""

    @property
    def identity(self) -> str:
        """URIs of one identity mean the same: subscribing again is refreshing."""
        ...

    @property
    def shown(self) -> str:
        """The URI for people: logs, events, `events subscribers`. Without secrets."""
        ...

    @property
    def batch_max(self) -> int:
        """How many events one `publish` takes at most."""
        ...

    @property
    def publish_timeout(self) -> Seconds:
        """How long one `publish` may take; then it is cancelled and what is open has failed."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold connections and tasks until cancelled; clean up within a second.

        Call `task_status.started()` at once, reachable or not: a peer that is down is a matter of
        `publish`. Once cancelled, whatever is not settled is failed by the caller.
        """
        ...

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Take a batch, in order. Never called twice at a time.

        Every publication must be settled once: before this returns, or later, when the status is
        known (within a time that the back end's documentation states). What may be open at a time
        is bounded by the caller. Returns when it can take the next batch. Must neither block the
        thread nor raise for one bad event.

        Raises:
            ClusternodeError: What is not settled yet has failed, for this reason. An attribute
                `definite` that is false means that it may have been delivered all the same.
        """
        ...


@runtime_checkable
class HasFile(Protocol):
    """A back end that writes a file, which others may move away."""

    @property
    def path(self) -> str: ...
    def reopen(self) -> None:
        """Begin the file anew before the next event is written."""
        ...


@runtime_checkable
class HasMembers(Protocol):
    """A back end with others below it."""

    def hurry(self) -> None:
        """Give up what the first choices have not delivered: the agent stops soon."""
        ...


class Lane(Protocol):
    """A bounded queue in front of one back end, for a back end that has others below it."""

    def offer(self, event: EventView, notification: bytes, settled: StatusCallback) -> bool:
        """Queue an event; its status is told later. False: the queue is full, and it is not."""
        ...

    def flush(self, reason: str) -> None:
        """Fail, soon, what still waits; what was handed to the back end goes on."""
        ...

    def abandon(self, reason: str) -> None:
        """Fail everything that is not settled, now."""
        ...

    def close(self) -> None:
        """Let go of the back end when everything is settled. Nothing is offered after it."""
        ...


@attrs.frozen
class BackendServices:
    """What a back end may use of the agent. A mapping of buses that fills when clusters start."""

    raise_event: Callable[[Event], None]
    """Raises an event of clusternode's own."""
    buses: Mapping[str, Bus]
    """Cluster name → bus; the first is the default."""
    registry: Mapping[str, BackendFactory]
    """Scheme → its factory; for `virtual:`."""
    open_lane: Callable[[EventBackend, int], Lane]
    """Gives a queue of that many events to a back end; one of the same identity is shared."""


BackendFactory = Callable[[str, BackendServices], EventBackend]
"""Takes what follows `scheme:` in a URI. Does no I/O.

Raises `ConfigError` by `wrong_uri` when an address, option or value is not understood.
"""


def wrong_uri(uri: str, expected: str) -> ConfigError:
    """Return the error for a URI; `uri` must hold no secrets."""
    return ConfigError("to", uri, expected)
