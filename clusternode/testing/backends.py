"""What every event back end must do: checks for ours and for those of third parties.

A check takes a `Peer`: the other end of a back end, played by the test. See
tests/conformance/test_backends.py for how they are used, and docs/events.md, "Your own back end".
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from clusternode.backends.registry import Registry
from clusternode.backends.subscriptions import BackendSubscriptions
from clusternode.bus.interface import Bus
from clusternode.core.types import Seconds
from clusternode.errors import ConfigError
from clusternode.routes.events import EventHub
from clusternode.routes.subscriptions import Raised, SubscriberSnapshot, SubscriberStatus
from clusternode.routes.views import as_text

LIMIT: Seconds = 30.0
"""Far beyond what any check takes; a back end that hangs fails the test."""
EVENT = "E_CONFORMANCE"
BURST = 300
TEXTS = (
    "",
    " ",
    "a,b;c|d",
    "line\nfeed\r\n",
    "tab\tnul\0",
    'quote " \\ \\n',
    "été 日本 🎉",
    "\ud800",
)

Received = tuple[str, list[str]]
"""The name of an event and its values as text; empty name where the peer cannot know it."""


class Peer(Protocol):
    """The other end of one back end."""

    @property
    def uri(self) -> str: ...
    @property
    def can_fail(self) -> bool:
        """Whether `stop` makes deliveries fail, and at once."""
        ...

    async def start(self) -> None:
        """Be reachable."""
        ...

    async def stop(self) -> None:
        """Be unreachable; drop what connections there are."""
        ...

    def received(self) -> Sequence[Received]:
        """Return what came since the first start, in the order of arrival."""
        ...


@attrs.frozen
class BackendWorld:
    """Events and subscriptions without an agent."""

    hub: EventHub
    subscriptions: BackendSubscriptions

    def subscribe(self, event: str, uri: str, **options: Any) -> None:  # noqa: ANN401  # see hub
        """As `hub.subscribe_event`, for an event that need not be known."""
        if "*" not in event:
            self.hub.declare([event])
        self.hub.subscribe_event(event, uri, **options)

    async def deliver(
        self, name: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> list[SubscriberStatus]:
        """Raise an event and wait for its statuses."""
        with trio.fail_after(LIMIT):
            return await self.hub.raise_event(name, parameters)

    @property
    def only(self) -> SubscriberSnapshot:
        """The one subscriber."""
        (subscriber,) = self.subscriptions.subscribers()
        return subscriber


@contextlib.asynccontextmanager
async def backend_world(
    buses: Mapping[str, Bus] | None = None, registry: Registry | None = None
) -> AsyncIterator[BackendWorld]:
    """Run subscriptions; at the end, everything must end within the limit."""
    hub = EventHub()
    subscriptions = BackendSubscriptions(hub, buses or {}, registry)
    hub.set_subscriptions(subscriptions)
    async with trio.open_nursery() as nursery:
        await nursery.start(subscriptions.run)
        try:
            yield BackendWorld(hub, subscriptions)
        finally:
            nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds, giving all other tasks their turns."""
    with trio.fail_after(LIMIT):
        while not holds():  # noqa: ASYNC110  # files and kernels set no trio.Event
            await trio.sleep(0.001)


def seen(name: str, values: Sequence[object]) -> Received:
    """Return what a peer should see of an event."""
    return name, ["" if value is None else as_text(value) for value in values]


def _same(got: Received, wanted: Received) -> bool:
    return got[1] == wanted[1] and got[0] in ("", wanted[0])


async def named_and_positional_parameters_arrive(world: BackendWorld, peer: Peer) -> None:
    await peer.start()
    world.subscribe(EVENT, peer.uri)

    (first,) = await world.deliver(EVENT, {"number": 7, "text": "seven", "nested": {"a": [1]}})
    (second,) = await world.deliver(EVENT, [8, "eight", None])
    (third,) = await world.deliver(EVENT)

    assert first.status.ok, first
    assert second.status.ok, second
    assert third.status.ok, third
    await until(lambda: len(peer.received()) == 3)
    wanted = [seen(EVENT, [7, "seven", {"a": [1]}]), seen(EVENT, [8, "eight", None]), (EVENT, [])]
    assert all(map(_same, peer.received(), wanted)), peer.received()


async def every_text_arrives_as_it_is(world: BackendWorld, peer: Peer) -> None:
    await peer.start()
    world.subscribe(EVENT, peer.uri)

    for text in TEXTS:
        (status,) = await world.deliver(EVENT, {"text": text})
        assert status.status.ok, status

    await until(lambda: len(peer.received()) == len(TEXTS))
    assert [values for _, values in peer.received()] == [[text] for text in TEXTS]


async def a_burst_arrives_complete_and_in_order(world: BackendWorld, peer: Peer) -> None:
    await peer.start()
    world.subscribe(EVENT, peer.uri)

    raised = [world.hub.raise_event(EVENT, {"number": number}) for number in range(BURST)]
    with trio.fail_after(LIMIT):
        for each in raised:
            await each

    assert all(each.is_ok for each in raised)
    await until(lambda: len(peer.received()) == BURST)
    assert [values for _, values in peer.received()] == [[str(n)] for n in range(BURST)]
    assert world.only.delivered == BURST
    assert world.only.queued == 0


async def a_peer_that_is_down_is_a_failure_until_it_is_back(
    world: BackendWorld, peer: Peer
) -> None:
    world.subscribe(EVENT, peer.uri)
    if not peer.can_fail:
        return

    before = await _until_failed(world)
    await peer.start()
    (while_up,) = await world.deliver(EVENT, {"number": 1})
    await peer.stop()
    await _until_failed(world)
    await peer.start()
    (again,) = await world.deliver(EVENT, {"number": 3})

    assert before.status.detail
    assert before.status.definite
    assert while_up.status.ok, while_up
    assert again.status.ok, again
    await until(lambda: seen(EVENT, [3])[1] in [values for _, values in peer.received()])
    assert world.only.last_error


async def _until_failed(world: BackendWorld) -> SubscriberStatus:
    """Raise events until one fails: a promise of `handed to the kernel` may hold once or twice."""
    for _ in range(3):
        (status,) = await world.deliver(EVENT, {"number": 2})
        if not status.status.ok:
            return status
    raise AssertionError("a peer that is down takes events")


async def a_queue_is_bounded_and_counts_what_it_refused(world: BackendWorld, peer: Peer) -> None:
    await peer.start()
    world.subscribe(EVENT, peer.uri, queue_size=10)

    raised: list[Raised] = [world.hub.raise_event(EVENT, [number]) for number in range(15)]
    with trio.fail_after(LIMIT):
        statuses = [(await each)[0].status for each in raised]

    assert [status.ok for status in statuses] == [True] * 10 + [False] * 5
    assert "queue is full" in statuses[-1].detail
    assert (world.only.delivered, world.only.failed, world.only.overflowed) == (10, 5, 5)


async def what_is_queued_is_delivered_after_unsubscribing(world: BackendWorld, peer: Peer) -> None:
    await peer.start()
    world.subscribe(EVENT, peer.uri)
    raised = [world.hub.raise_event(EVENT, [number]) for number in range(20)]

    assert world.hub.unsubscribe_event(EVENT, peer.uri)

    assert not world.hub.unsubscribe_event(EVENT, peer.uri)
    assert world.hub.raise_event(EVENT, [20]).subscribers == 0
    with trio.fail_after(LIMIT):
        for each in raised:
            await each
    assert all(each.is_ok for each in raised)
    await until(lambda: len(peer.received()) == 20)


async def the_same_uri_is_one_subscriber(world: BackendWorld, peer: Peer) -> None:
    await peer.start()
    world.subscribe(EVENT, peer.uri, expire=60.0)
    world.subscribe(EVENT, peer.uri)

    statuses = await world.deliver(EVENT, [1])

    assert len(statuses) == 1
    assert world.only.expires_in_s is None


async def what_is_not_understood_is_refused_when_it_is_given(
    world: BackendWorld, peer: Peer
) -> None:
    scheme = peer.uri.partition(":")[0]
    for uri in (f"{scheme}:%zz//", f"{scheme}:"):
        if scheme == "log" and uri == "log:":
            continue
        try:
            world.subscribe(EVENT, uri)
        except ConfigError:
            continue
        raise AssertionError(f"{uri} was taken")
    assert not world.subscriptions.subscribers()


BACKEND_CHECKS: tuple[Callable[[BackendWorld, Peer], Awaitable[None]], ...] = (
    named_and_positional_parameters_arrive,
    every_text_arrives_as_it_is,
    a_burst_arrives_complete_and_in_order,
    a_peer_that_is_down_is_a_failure_until_it_is_back,
    a_queue_is_bounded_and_counts_what_it_refused,
    what_is_queued_is_delivered_after_unsubscribing,
    the_same_uri_is_one_subscriber,
    what_is_not_understood_is_refused_when_it_is_given,
)
