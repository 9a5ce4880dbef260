"""What the parts of a world know of each other: the least that each of them needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

from clusternode.core.echoes import Echoes
from clusternode.core.effects import Write
from clusternode.core.inputs import Ask, Input, Leave, Publish, RemoveMember
from clusternode.core.settings import NodeSettings
from clusternode.core.types import (
    Address,
    ChannelName,
    ConnectionId,
    Incarnation,
    Instant,
    NodeId,
    Seconds,
)
from clusternode.core.wire.messages import Frame, Hello, Ping, Pong
from clusternode.simulation.history import History, LifeFact
from clusternode.simulation.network import Network
from clusternode.simulation.trace import Trace

DEFAULT_CHANNELS = (ChannelName("news"), ChannelName("locate"))


@attrs.define
class Counts:
    """How much happened."""

    messages: int = 0
    """Frames that nodes gave to the network."""
    inputs: int = 0
    stepping: str = ""
    """The node that was stepped last."""


@attrs.frozen(kw_only=True)
class Behaviour:
    """How the handlers of a node behave."""

    channels: tuple[ChannelName, ...] = DEFAULT_CHANNELS
    handling_min: Seconds = 0.0
    handling_max: Seconds = 0.001
    reply_share: float = 0.5
    """How many of the requests are answered with a reply; the others end with nothing to say."""
    failure_share: float = 0.0
    """How many of the handlers raise."""
    queue_size: int = 10_000
    """How many messages may wait for their handlers; beyond it 486."""
    requests_max: int = 100
    """How many request handlers run at a time; beyond it 486."""


Wish: TypeAlias = Publish | Ask | Leave | RemoveMember


class HostView(Protocol):
    """A machine, as the network sees it."""

    @property
    def ip(self) -> str: ...
    @property
    def address(self) -> Address: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def process(self) -> ProcessView | None: ...


class ProcessView(Protocol):
    """A process, as the network sees it."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def host(self) -> HostView: ...
    @property
    def fact(self) -> LifeFact: ...
    @property
    def is_running(self) -> bool: ...
    @property
    def is_paused(self) -> bool: ...
    @property
    def is_listening(self) -> bool:
        """Whether its kernel takes connections for it."""
        ...

    @property
    def ends(self) -> dict[ConnectionId, Any]: ...
    @property
    def connection_ids(self) -> Iterator[int]: ...
    def holds_back(self, act: Callable[..., None], *arguments: object) -> bool:
        """Take what is to be done once the process runs again; False: nothing hinders it now."""
        ...


class Sender(ProcessView, Protocol):
    """A process, as its callers and its operator see it."""

    @property
    def can_send(self) -> bool:
        """Whether its user can use it now."""
        ...

    def tell(self, wish: Wish) -> None:
        """Let its user, or its operator, ask something of it."""
        ...


class NodeView(Sender, Protocol):
    """A process that is a node of the core and nothing else, as its handlers see it."""

    @property
    def settings(self) -> NodeSettings: ...
    @property
    def incarnation(self) -> Incarnation: ...
    @property
    def hello(self) -> Hello: ...
    def feed(self, input_: Input) -> None: ...
    def take(self, connection: ConnectionId, bytes_max: int) -> Write | None:
        """Ask for what is to be written; None where that is performed already."""
        ...

    @property
    def echoes(self) -> Echoes:
        """What answers pings while nothing else happens."""
        ...

    def answers(self, connection: ConnectionId, ping: Ping) -> bool:
        """Let it answer a ping that came alone; False where that is no simple one."""
        ...

    def answered(self, connections: Sequence[ConnectionId], pong: Pong) -> None:
        """Take the pong of others who have answered like this, each on its connection."""
        ...

    def receive(self, connection: ConnectionId, frames: Sequence[Frame]) -> None:
        """Take what one read brought, as it is."""
        ...

    def later(self, delay: Seconds, act: Callable[..., None], *arguments: object) -> None: ...


class WorldView(Protocol):
    """A world, as every part of it sees it."""

    @property
    def now(self) -> Instant: ...
    @property
    def rng(self) -> random.Random: ...
    @property
    def network(self) -> Network: ...
    @property
    def trace(self) -> Trace: ...
    @property
    def history(self) -> History: ...
    @property
    def counts(self) -> Counts: ...
    def at(self, when: Instant, act: Callable[..., None], *arguments: object) -> None: ...
    def after(self, delay: Seconds, act: Callable[..., None], *arguments: object) -> None: ...
    def soon(self, act: Callable[..., None], *arguments: object) -> None: ...
    def host_at(self, ip: str) -> HostView | None: ...
    def behaviour_of(self, node_id: NodeId) -> Behaviour: ...
    def core_failed(self, node_id: NodeId, what: str) -> None: ...
