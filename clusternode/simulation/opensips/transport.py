"""BIN over TCP, as proto_bin does it: whom a connection leads to, and what costs it.

What differs between 3.6 and 4.0 is here: since 4.0 several workers handle the messages of one
connection, out of order, and a burst of some hundred closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, Protocol

import attrs

from clusternode.core.types import Instant, Seconds
from clusternode.simulation.opensips.wire import Cutter, Refused

POSTPONED_MAX: Final = 1024
"""bin_async_max_postponed_chunks: messages that wait for a connection that is being made."""

HostPort = tuple[str, int]


class Machine(Protocol):
    """What the simulated node is run on: a clock and TCP. Nothing here blocks or raises."""

    @property
    def now(self) -> Instant: ...

    @property
    def unix_now(self) -> int:
        """The wall clock, in whole seconds."""
        ...

    def dial(self, connection: int, host: str, port: int) -> None:
        """Connect from our own host; `connected` or `closed` follows."""
        ...

    def write(self, connection: int, data: bytes) -> None:
        """Send one message with one call."""
        ...

    def close(self, connection: int) -> None: ...


@attrs.frozen
class Quirks:
    """How a version handles what it receives; the defaults are those of 3.6."""

    reordered: float = 0.0
    """The share of messages that another worker is slow with; 4.0 has about 0.01."""
    delay_max: Seconds = 0.002
    """How slow."""
    burst_max: float = float("inf")
    """So many messages fit between the reader and the workers; 4.0 has about 300."""
    handled_per_second: float = 8000.0
    """How fast the workers empty that."""
    takes_any_zero: bool = True
    """Whether number 0 of a flooded message counts as a restart of its author however old it is.

    All versions do that. A node that brings up many links at once sends 0, 1, 2 … to different
    neighbours, and then copies of 0 that are overtaken circulate along every path: the messages
    of a join grow tenfold with each node from eight on. Large worlds switch it off."""


V36: Final = Quirks()
V40: Final = Quirks(reordered=0.01, burst_max=300)


@attrs.define
class Connection:
    """One TCP connection."""

    remote: HostPort
    is_open: bool
    cutter: Cutter = attrs.Factory(Cutter)
    postponed: list[bytes] = attrs.Factory(list)


@attrs.frozen
class Held:
    """A message that a worker has not handled yet."""

    due: Instant
    connection: int
    host: str
    data: bytes


class Transport:
    """All connections of a node. Its owner calls the methods that are named after what happened."""

    def __init__(
        self,
        machine: Machine,
        quirks: Quirks,
        rng: Random,
        handle: Callable[[int, str, bytes], None],
    ) -> None:
        self.closed_for: list[tuple[str, str]] = []
        """Host and reason of connections that this end closed, oldest first: harm that was done."""
        self._machine = machine
        self._quirks = quirks
        self._rng = rng
        self._handle = handle
        self._connections: dict[int, Connection] = {}
        self._dialled = 0
        self._held: list[Held] = []
        self._filled = (0.0, machine.now)  # messages between reader and workers, and when

    @property
    def open_count(self) -> int:
        return len(self._connections)

    def next_deadline(self) -> Instant | None:
        return min((held.due for held in self._held), default=None)

    def tick(self) -> None:
        """Let the workers finish what is due."""
        due = [held for held in self._held if held.due <= self._machine.now]
        self._held = [held for held in self._held if held.due > self._machine.now]
        for held in due:
            self._handle(held.connection, held.host, held.data)

    def send(self, address: HostPort, data: bytes) -> bool:
        """Send over a connection that leads to this address, or make one; False if it was full."""
        for number, connection in self._connections.items():
            if connection.remote == address:
                return self._write(number, connection, data)
        self._dialled += 1
        self._connections[self._dialled] = Connection(address, is_open=False, postponed=[data])
        self._machine.dial(self._dialled, *address)
        return True

    def answer(self, number: int, data: bytes) -> bool:
        """Send back on the connection on which something came."""
        connection = self._connections.get(number)
        return connection is not None and self._write(number, connection, data)

    def _write(self, number: int, connection: Connection, data: bytes) -> bool:
        if connection.is_open:
            self._machine.write(number, data)
        elif len(connection.postponed) < POSTPONED_MAX:
            connection.postponed.append(data)
        else:
            self._drop(number, connection, f"{POSTPONED_MAX} messages wait")
            return False
        return True

    def accepted(self, number: int, remote: HostPort) -> None:
        """Take a connection that was made to us; its number must not be one of ours."""
        self._connections[number] = Connection(remote, is_open=True)

    def connected(self, number: int) -> None:
        connection = self._connections.get(number)
        if connection is None:
            return
        connection.is_open = True
        for data in connection.postponed:
            self._machine.write(number, data)
        connection.postponed.clear()

    def closed(self, number: int) -> None:
        self._connections.pop(number, None)

    def read(self, number: int, data: bytes) -> None:
        """Take what one read returned."""
        connection = self._connections.get(number)
        if connection is None:
            return
        try:
            messages = connection.cutter.feed(data)
        except Refused as refused:
            self._drop(number, connection, str(refused))
            return
        for position, message in enumerate(messages):
            if not self._has_room():
                rest = len(messages) - position
                self._drop(number, connection, f"burst, {rest} messages lost")
                return
            if self._quirks.reordered and self._rng.random() < self._quirks.reordered:
                due = self._machine.now + self._rng.uniform(0, self._quirks.delay_max)
                self._held.append(Held(due, number, connection.remote[0], message))
            else:
                self._handle(number, connection.remote[0], message)

    def _has_room(self) -> bool:
        level, at = self._filled
        now = self._machine.now
        level = max(0.0, level - (now - at) * self._quirks.handled_per_second) + 1
        self._filled = (level, now)
        return level <= self._quirks.burst_max

    def _drop(self, number: int, connection: Connection, why: str) -> None:
        self.closed_for.append((connection.remote[0], why))
        self._connections.pop(number, None)
        self._machine.close(number)
