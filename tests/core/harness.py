"""One node of the core by itself: the test plays its peers, its network and its clock."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any, TypeVar

from clusternode.core.effects import (
    Dial,
    Disconnect,
    Effect,
    Emit,
    Measure,
    OutputReady,
    Resolve,
    Write,
    WriteEach,
)
from clusternode.core.inputs import (
    Connected,
    DialFailed,
    DialFailure,
    FramesReceived,
    Input,
    Measured,
    Start,
    TimePassed,
    WriteReady,
)
from clusternode.core.node import Node
from clusternode.core.settings import DiscoverySettings, HealthSettings, NodeSettings
from clusternode.core.types import Address, ConnectionId, Incarnation, NodeId
from clusternode.core.wire.messages import (
    Close,
    Hello,
    Ping,
    Pong,
    Record,
    Records,
    Resume,
    WireMessage,
)

T = TypeVar("T")

WAKE_UPS_MAX = 10_000
"""More wake-ups than that in one test are a deadline that is never honoured."""
START = 1000.0


def address_of(node_id: str) -> Address:
    """Tell where a node of that name lives in these tests."""
    return Address("tcp", f"10.0.0.{int(node_id.lstrip('n'))}", 5062)


def hello_of(node_id: str, incarnation: int = 1, **changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "cluster": "c",
        "node_id": NodeId(node_id),
        "incarnation": Incarnation(incarnation),
        "nonce": f"{node_id}/{incarnation}".encode().ljust(16),
        "protocol_min": 1,
        "protocol_max": 1,
        "address": str(address_of(node_id)),
        "body_size_max": 1000,
        "window_bytes": 100_000,
    }
    return Hello(**(fields | changes))


def record_of(node_id: str, incarnation: int = 1, version: int = 1, **changes: Any) -> Record:
    address = changes.pop("address", str(address_of(node_id)))
    return Record(NodeId(node_id), Incarnation(incarnation), version, address, **changes)


def ids(*names: str) -> list[NodeId]:
    return [NodeId(name) for name in names]


class Lone:
    """The node n5, whose peers are the test's: n1 is smaller and decides, n9 is larger."""

    def __init__(
        self,
        *,
        health: HealthSettings | None = None,
        discovery: DiscoverySettings | None = None,
        known: tuple[Any, ...] = (),
        **settings: Any,
    ) -> None:
        self.now = START
        self.settings = NodeSettings(
            node_id=NodeId("n5"),
            cluster="c",
            incarnation=Incarnation(100),
            address=address_of("n5"),
            nonce=b"n5".ljust(16),
            health=health or HealthSettings(),
            discovery=discovery or DiscoverySettings(),
            **settings,
        )
        self.node = Node(self.settings, self.now, random.Random(1))
        self.connections = itertools.count(1)
        self.sent: dict[ConnectionId, list[WireMessage]] = defaultdict(list)
        self.closed: dict[ConnectionId, Close | None] = {}
        self.dials: list[Address] = []
        self.effects: list[Effect] = []
        self.wake_ups = 0
        self.progress = (0, 0, 0)  # bytes that arrived, that wait, and that were received
        self.measures = True  # whether the test answers `Measure`
        self.feed(Start(known))

    # --- inputs ---------------------------------------------------------------------------------

    def feed(self, input_: Input) -> list[Effect]:
        effects = self.node.step(self.now, input_)
        self.effects += effects
        for effect in effects:
            if isinstance(effect, OutputReady):
                self._write(effect.connection)
            elif isinstance(effect, WriteEach):
                for connection in effect.connections:
                    self.sent[connection].append(effect.frame.message)
            elif isinstance(effect, Disconnect):
                self.closed[effect.connection] = effect.close
            elif isinstance(effect, Dial):
                self.dials.append(effect.address)
            elif isinstance(effect, Measure) and self.measures:
                self.feed(Measured(effect.connection, *self.progress))
        return effects

    def _write(self, connection: ConnectionId) -> None:
        """Take all that waits for a connection, as a fast network does."""
        while True:
            (write,) = [
                effect
                for effect in self.feed(WriteReady(connection, 65536))
                if isinstance(effect, Write)
            ]
            if not write.frames:
                return
            self.sent[connection] += [frame.message for frame in write.frames]

    def connect(
        self, node_id: str, incarnation: int = 1, *, dialed: Address | None = None, **hello: Any
    ) -> ConnectionId:
        """Exchange HELLOs with a node; `dialed` where n5 made the connection."""
        connection = ConnectionId(next(self.connections))
        self.feed(
            Connected(connection, hello_of(node_id, incarnation, **hello), dialed, "10.9.9.9:9")
        )
        return connection

    def receive(self, connection: ConnectionId, *messages: WireMessage) -> list[Effect]:
        return self.feed(FramesReceived(connection, list(messages)))

    def open(self, node_id: str, incarnation: int = 1, **hello: Any) -> ConnectionId:
        """Connect a node, open its connection, give its record and prove that it lives."""
        connection = self.connect(node_id, incarnation, **hello)
        self.receive(connection, Resume(0, 1))
        self.receive(connection, Records([record_of(node_id, incarnation)]))
        self.answer_ping(connection)
        return connection

    def refuse(self, address: Address) -> list[Effect]:
        """Let a dial fail because nobody listens there."""
        return self.feed(DialFailed(address, DialFailure.REFUSED, "nobody"))

    def answer_ping(self, connection: ConnectionId) -> None:
        """Answer the last ping; or ping, as the larger id of two does that have just met."""
        pings = self.of_type(Ping, connection)
        digest = self.node.snapshot(self.now).digest
        self.receive(connection, Pong(pings[-1].number, digest) if pings else Ping(1, digest))

    def pass_time(self, seconds: float, *, answers: tuple[ConnectionId, ...] = ()) -> None:
        """Let time pass; the peers behind `answers` answer every ping at once."""
        end = self.now + seconds
        while True:
            deadline = self.node.next_deadline()
            if deadline is None or deadline > end:
                break
            self.wake_ups += 1
            assert self.wake_ups < WAKE_UPS_MAX, "a deadline is never honoured"
            self.now = max(self.now, deadline)
            self.feed(TimePassed())
            for connection in answers:
                if connection not in self.closed and self.of_type(Ping, connection):
                    self.answer_ping(connection)
                    self.sent[connection].clear()
        self.now = end

    # --- what came of it ------------------------------------------------------------------------

    def of_type(self, kind: type[T], connection: ConnectionId) -> list[T]:
        return [message for message in self.sent[connection] if isinstance(message, kind)]

    def effects_of(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def events_of(self, kind: type[T]) -> list[T]:
        events = [effect.event for effect in self.effects if isinstance(effect, Emit)]
        return [event for event in events if isinstance(event, kind)]

    def surroundings_know_all_connections(self) -> bool:
        """Tell whether every connection that an effect names was given by us."""
        named = [
            effect.connection
            for effect in self.effects
            if isinstance(effect, OutputReady | Write | Disconnect)
        ]
        for effect in self.effects_of(WriteEach):
            named += effect.connections
        return all(connection > 0 for connection in named)

    def resolves(self) -> list[Address]:
        return [effect.name for effect in self.effects_of(Resolve)]

    def status(self, node_id: str) -> str | None:
        """Return the status of a member; None when it is none."""
        for member in self.node.snapshot(self.now).members:
            if member.node_id == node_id:
                return member.status
        return None

    def count(self, counter: str) -> int:
        return self.node.snapshot(self.now).counters.get(counter, 0)

    def is_open(self, node_id: str) -> bool:
        members = self.node.snapshot(self.now).members
        return any(one.node_id == node_id and one.link == "direct" for one in members)
