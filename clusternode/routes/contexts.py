"""What a handler gets as its argument: a message, a request, an event, or the agent itself."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import attrs
import trio

from clusternode.bus.interface import Arrivals, Bus, Delivery
from clusternode.core.types import Instant, ResultCode, Seconds
from clusternode.core.wire import messages as wire
from clusternode.errors import (
    BodyTooLarge,
    NoSuchNode,
    Overloaded,
    RequestError,
    RequestTimeout,
    RouteError,
)
from clusternode.routes.api import find_bus
from clusternode.routes.events import EventHub, EventView
from clusternode.routes.subscriptions import Raised, ReportCallback

JSON_CONTENT_TYPE = "application/json"

_REFUSALS: Mapping[ResultCode, type[RequestError]] = {
    ResultCode.TOO_LARGE: BodyTooLarge,
    ResultCode.UNAVAILABLE: NoSuchNode,
    ResultCode.BUSY: Overloaded,
    ResultCode.TIMEOUT: RequestTimeout,
}

BackgroundFunction = Callable[..., Awaitable[object]]


class Services(Protocol):
    """What the dispatcher offers to every context."""

    @property
    def buses(self) -> Mapping[str, Bus]: ...
    @property
    def events(self) -> EventHub: ...
    def start_soon(self, function: BackgroundFunction, *args: object) -> None: ...
    def hold_opened(self, request: IncomingRequest) -> None: ...
    def hold_released(self, request: IncomingRequest) -> None: ...


class AgentContext:
    """This agent: its clusters and its events. The argument of `on_start` and `on_stop`."""

    __slots__ = ("_services",)

    is_held: ClassVar[bool] = False

    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def buses(self) -> Mapping[str, Bus]:
        """Cluster name → its bus; the first is the default cluster."""
        return self._services.buses

    @property
    def bus(self) -> Bus:
        """The bus of the default cluster; in the other contexts: of where it came from."""
        for bus in self._services.buses.values():
            return bus
        raise RouteError("this agent is in no cluster yet")

    @property
    def events(self) -> EventHub:
        """Where events are waited for and raised."""
        return self._services.events

    def raise_event(
        self,
        name: str,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        report: ReportCallback | None = None,
    ) -> Raised:
        """Make an event of your own; `await` the result for what became of it at back ends.

        Raises:
            RouteError: The name or a parameter is wrong.
        """
        return self.events.raise_event(name, parameters, report)

    def subscribe_event(self, event: str, uri: str, expire: Seconds | None = None) -> None:
        """Deliver events to a back end; the same again refreshes the expiry (docs/events.md).

        Raises:
            ConfigError: Event, scheme, address or option is wrong; says what was expected.
        """
        self.events.subscribe_event(event, uri, expire)

    def unsubscribe_event(self, event: str, uri: str) -> bool:
        """End a subscription of a back end. False: there was none."""
        return self.events.unsubscribe_event(event, uri)

    def cluster(self, name: str) -> Bus:
        """Return the bus of a cluster.

        Raises:
            RouteError: This agent is in no such cluster.
        """
        return find_bus(self._services.buses, name)

    def start_soon(self, function: BackgroundFunction, *args: object) -> None:
        """Run `await function(*args)` in the background, outside of this handler's time limit.

        What it raises is logged and counted; it never reaches the agent.

        Raises:
            Overloaded: Too many of them run.
        """
        self._services.start_soon(function, *args)

    def take_result(self, result: object) -> None:
        """Take what the handler returned. Only requests make something of it."""

    def take_failure(self, error: BaseException) -> None:
        """Take why the handler failed. Only records of Kafka make something of it."""


@attrs.define(eq=False, repr=False, slots=True, init=True)
class IncomingMessage(AgentContext):
    """One message that arrived on a channel."""

    _services: Services
    _arrivals: Arrivals
    _wire: wire.Message

    @property
    def bus(self) -> Bus:
        return self._arrivals.bus

    @property
    def origin(self) -> str:
        """The node that sent it."""
        return self._arrivals.origin

    @property
    def channel(self) -> str:
        return self._wire.channel

    @property
    def body(self) -> bytes:
        return self._wire.body

    @property
    def text(self) -> str:
        """The body as UTF-8; what is not UTF-8 becomes U+FFFD."""
        return self._wire.body.decode("utf-8", "replace")

    def json(self) -> Any:  # noqa: ANN401  # whatever the body says
        """Read the body as JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self._wire.body)

    @property
    def content_type(self) -> str:
        return self._wire.content_type

    @property
    def message_id(self) -> int:
        """Unique within one life of the origin; the copies of one broadcast share it."""
        return self._wire.message_id

    @property
    def max_forwards(self) -> int:
        return self._wire.max_forwards

    @property
    def replicated(self) -> bool:
        """Whether it is a copy made by `replicate`."""
        return self._wire.replicated

    @property
    def source(self) -> str:
        """The node that first sent it; differs from `origin` for a copy only."""
        return self._wire.source or self._arrivals.origin

    def replicate(self, *, skip_loop_test: bool = False, to: Bus | None = None) -> Delivery | None:
        """Send a copy to the members of a cluster; None where that would make a loop.

        A copy is never copied again, nor is a message of a node that is a member there, unless
        `skip_loop_test` is set (Kamailio: dmq_t_replicate).

        Args:
            skip_loop_test: Copy whatever the source is; a copy is still never copied again.
            to: The cluster; None: where it came from.
        """
        if self._wire.max_forwards < 1:
            return None
        return (to or self.bus).replicate(
            self._wire.channel,
            self._wire.body,
            source=self.source,
            replicated=self._wire.replicated,
            skip_loop_test=skip_loop_test,
            content_type=self._wire.content_type,
        )

    def __repr__(self) -> str:
        return f"<message from {self.origin} on {self.channel}>"


class Hold:
    """Keeps a request open at its asker until it is released; a context manager."""

    __slots__ = ("_request",)

    def __init__(self, request: IncomingRequest) -> None:
        self._request: IncomingRequest | None = request

    def release(self) -> None:
        """Say that no more replies come from here. Twice does nothing."""
        request, self._request = self._request, None
        if request is not None:
            request.hold_ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


@attrs.define(eq=False, repr=False, slots=True)
class IncomingRequest(AgentContext):
    """One request; answered by `reply`, by what the handler returns, or not at all."""

    _services: Services
    _arrivals: Arrivals
    _wire: wire.Request
    deadline: Instant = attrs.field(init=False, default=0.0)
    """When the asker stops waiting, on trio's clock."""
    holds: int = attrs.field(init=False, default=0)
    """How many `hold()` are open."""

    def __attrs_post_init__(self) -> None:
        self.deadline = trio.current_time() + self._wire.timeout

    @property
    def bus(self) -> Bus:
        return self._arrivals.bus

    @property
    def arrivals(self) -> Arrivals:
        """The read that it came with. For the dispatcher."""
        return self._arrivals

    @property
    def origin(self) -> str:
        """The node that asks."""
        return self._arrivals.origin

    @property
    def channel(self) -> str:
        return self._wire.channel

    @property
    def body(self) -> bytes:
        return self._wire.body

    @property
    def text(self) -> str:
        """The body as UTF-8; what is not UTF-8 becomes U+FFFD."""
        return self._wire.body.decode("utf-8", "replace")

    def json(self) -> Any:  # noqa: ANN401  # whatever the body says
        """Read the body as JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self._wire.body)

    @property
    def content_type(self) -> str:
        return self._wire.content_type

    @property
    def tag(self) -> str:
        """What ties the replies to the request."""
        return self._wire.tag

    @property
    def timeout(self) -> Seconds:
        """How long the asker waits, from the moment it asked."""
        return self._wire.timeout

    @property
    def is_held(self) -> bool:  # type: ignore[override]  # a constant of the other contexts
        return self.holds > 0

    async def reply(
        self, body: bytes | str, *, code: int = 200, content_type: str | None = None
    ) -> Delivery:
        """Send one reply; as often as wanted.

        Returns when it is in the outbox. Await the returned delivery to know whether the asker
        has taken it (200) or no longer waits (404).

        Raises:
            RequestError: It was refused at once: too large, the asker is gone, the outbox full.
        """
        delivery = self._answer(body, code, content_type)
        await trio.lowlevel.checkpoint()
        return delivery

    def hold(self) -> Hold:
        """Keep the request open after the handler has ended, to reply later.

        Counts from this call, not from `with`. Ends by itself at `deadline`, as a failure.
        """
        if not self.holds:
            self._services.hold_opened(self)
        self.holds += 1
        return Hold(self)

    def hold_ended(self) -> None:
        """Close one hold. Called by `Hold`."""
        if self.holds:
            self.holds -= 1
            if not self.holds:
                self._services.hold_released(self)

    def take_result(self, result: object) -> None:
        """Reply with what the handler returned.

        Raises:
            RouteError: It is neither bytes, str, dict nor list.
            RequestError: As `reply`.
        """
        if isinstance(result, bytes | str):
            self._answer(result, ResultCode.OK, None)
        elif isinstance(result, dict | list):
            self._answer(json.dumps(result).encode(), ResultCode.OK, JSON_CONTENT_TYPE)
        else:
            kind = type(result).__name__
            raise RouteError(f"returned {kind}: expected bytes, str, dict, list or None")

    def _answer(self, body: bytes | str, code: int, content_type: str | None) -> Delivery:
        delivery = self._arrivals.bus.reply(
            self._arrivals.origin, self._wire.tag, body, content_type=content_type, code=code
        )
        if delivery.is_complete:
            for node_id, result in delivery.results.items():
                if result in _REFUSALS:
                    raise _REFUSALS[result](f"reply to {node_id}: {int(result)} {result.name}")
        return delivery

    def __repr__(self) -> str:
        return f"<request from {self.origin} on {self.channel}, tag {self.tag}>"


class IncomingEvent(AgentContext):
    """One event. Its parameters are also attributes: `event.node_id`."""

    __slots__ = ("_bus", "_view")

    def __init__(self, services: Services, bus: Bus | None, view: EventView) -> None:
        super().__init__(services)
        self._bus = bus
        self._view = view

    @property
    def bus(self) -> Bus:
        return self._bus if self._bus is not None else super().bus

    @property
    def name(self) -> str:
        return self._view.name

    @property
    def alias(self) -> str:
        return self._view.alias

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameter → JSON value."""
        return self._view.parameters

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # a JSON value
        try:
            return self._view.parameters[name]
        except KeyError:
            known = ", ".join(self._view.parameters)
            raise AttributeError(f"{self._view.name} has no {name}; it has: {known}") from None

    def __repr__(self) -> str:
        return f"<event {self.name} {dict(self.parameters)}>"
