"""A world of nodes on TCP whose bytes are late, held up and cut off, in virtual time.

For the nodes of gateways: each has a host of its own, dials and writes through a `StreamMachine`,
and is told what happens. A lost packet is a delay, a partition is a stall, and what was sent
together is read together, as on real TCP. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final, Protocol

import attrs

from clusternode.core.types import Instant, Seconds
from clusternode.simulation.network import LinkQuality, Network, next_retransmission

UNIX_TIME_ZERO: Final = 1_795_000_000
"""The wall clocks' time when a world begins."""
READ_MAX: Final = 65_536
"""One read returns at most so much."""
DIAL_TIMEOUT: Seconds = 5.0
"""A host that does not answer."""
EPHEMERAL_PORT_FIRST: Final = 32_768
WAKE_UPS_MAX: Final = 1000
"""Of one node at one instant: its deadline stays in the past."""
WRITES_MAX: Final = 2_000_000
"""Of a whole story, unless it says otherwise."""


class Drowned(Exception):
    """More was written in a world than its story allows: its nodes do not come to rest."""


class StreamNode(Protocol):
    """What the world calls; connections that somebody else made have negative numbers."""

    def next_deadline(self) -> Instant | None: ...
    def tick(self) -> None: ...
    def accepted(self, connection: int, remote: tuple[str, int]) -> None: ...
    def connected(self, connection: int) -> None: ...
    def closed(self, connection: int) -> None: ...
    def read(self, connection: int, data: bytes) -> None: ...


@attrs.define(eq=False)
class End:
    """One end of a connection: the host that it is on, in its present life."""

    host: str
    life: int
    number: int


@attrs.define(eq=False)
class Half:
    """One direction of a connection."""

    source: End
    target: End
    arriving: deque[tuple[Instant, bytes | None]] = attrs.Factory(deque)
    """What is on its way, and when it arrives; None is the end."""
    latest: Instant = 0.0
    stalled_since: Instant | None = None


class StreamMachine:
    """The host of a node, as the node sees it."""

    def __init__(self, world: StreamWorld, host: str) -> None:
        self.host = host
        self._world = world

    @property
    def now(self) -> Instant:
        return self._world.now

    @property
    def unix_now(self) -> int:
        return UNIX_TIME_ZERO + int(self._world.now)

    def dial(self, connection: int, host: str, port: int) -> None:
        self._world.dial(self.host, connection, (host, port))

    def write(self, connection: int, data: bytes) -> None:
        self._world.write(self.host, connection, data)

    def close(self, connection: int) -> None:
        self._world.close(self.host, connection)


class StreamWorld:
    """All hosts and connections."""

    def __init__(self, seed: int, quality: LinkQuality | None = None) -> None:
        self.now: Instant = 0.0
        self.nodes: dict[str, StreamNode] = {}
        self.writes: Counter[str] = Counter()
        """host → how often it wrote."""
        self.writes_left = WRITES_MAX
        self.network = Network(Random(f"{seed}/network"), quality or LinkQuality())
        self._lives: Counter[str] = Counter()
        self._paused: dict[str, list[Callable[[], None]]] = {}  # host → what waits for it
        self._halves: dict[tuple[str, int], Half] = {}  # (host, number) → what that end sends
        self._armed: dict[str, Instant] = {}
        self._heap: list[tuple[Instant, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._woken: tuple[Instant, int] = (0.0, 0)  # when last, and how often at that instant

    def machine(self, host: str) -> StreamMachine:
        return StreamMachine(self, host)

    # --- hosts

    def add(self, host: str, node: StreamNode) -> None:
        """Let a node live on a host; whoever starts it does so afterwards."""
        self._lives[host] += 1
        self.nodes[host] = node
        self.rearm(host)

    def kill(self, host: str, *, silently: bool = False) -> None:
        """End a node; its connections are reset, or, with its power, just no longer answer."""
        del self.nodes[host]
        self._armed.pop(host, None)
        self._paused.pop(host, None)
        for key, half in list(self._halves.items()):
            if half.source.host == host:
                if not silently:
                    self._send(half, None)
                del self._halves[key]

    def pause(self, host: str) -> None:
        """Let a node do nothing for a while; what happens to it waits."""
        self._paused.setdefault(host, [])

    def resume(self, host: str) -> None:
        for act in self._paused.pop(host, []):
            act()
        self.rearm(host)

    def heal(self) -> None:
        """Let through what partitions held up: TCP tries again by itself."""
        self.network.heal()
        for half in list(self._halves.values()):
            if half.stalled_since is not None:
                at = next_retransmission(half.stalled_since, self.now)
                half.stalled_since = None
                self._at(at, partial(self._arrive, half))

    # --- what machines ask for

    def dial(self, host: str, number: int, address: tuple[str, int]) -> None:
        source = End(host, self._lives[host], number)
        self._after_delay(host, address[0], lambda: self._syn(source, address, self.now))

    def _syn(self, source: End, address: tuple[str, int], began: Instant) -> None:
        target, back = address[0], self.network.delay(address[0], source.host)
        is_cut = self.network.is_blocked(source.host, target)
        if is_cut or self.network.is_blocked(target, source.host):
            if self.now - began < DIAL_TIMEOUT:
                self._at(self.now + 1.0, lambda: self._syn(source, address, began))
            else:
                self._tell(source, lambda node: node.closed(source.number))
            return
        if target not in self.nodes:
            self._at(self.now + back, lambda: self._refused(source))
            return
        accepted = End(target, self._lives[target], -next(self._order) - 1)
        there, here = Half(source, accepted), Half(accepted, source)
        remote = (source.host, EPHEMERAL_PORT_FIRST + source.number)
        self._halves[target, accepted.number] = here
        self._tell(accepted, lambda node: node.accepted(accepted.number, remote))
        self._at(self.now + back, lambda: self._established(there))

    def _refused(self, source: End) -> None:
        self._tell(source, lambda node: node.closed(source.number))

    def _established(self, there: Half) -> None:
        source = there.source
        if self._lives[source.host] == source.life and source.host in self.nodes:
            self._halves[source.host, source.number] = there
            self._tell(source, lambda node: node.connected(source.number))

    def write(self, host: str, number: int, data: bytes) -> None:
        self.writes[host] += 1
        self.writes_left -= 1
        if self.writes_left < 0:
            raise Drowned(f"at {self.now:.3f} s; writes of each host: {dict(self.writes)}")
        half = self._halves.get((host, number))
        if half is not None:
            self._send(half, data)

    def close(self, host: str, number: int) -> None:
        half = self._halves.pop((host, number), None)
        if half is not None:
            self._send(half, None)

    # --- bytes on their way

    def _send(self, half: Half, data: bytes | None) -> None:
        delay = self.network.delay(half.source.host, half.target.host)
        half.latest = max(half.latest, self.now + delay)
        half.arriving.append((half.latest, data))
        self._at(half.latest, lambda: self._arrive(half))

    def _arrive(self, half: Half) -> None:
        if half.stalled_since is not None or not half.arriving:
            return
        if self.network.is_blocked(half.source.host, half.target.host):
            half.stalled_since = self.now
            return
        if not self._is_alive(half.target):
            self._reset(half)
            return
        parts: list[bytes] = []
        while half.arriving and half.arriving[0][0] <= self.now:
            part = half.arriving.popleft()[1]
            if part is None:
                self._hand_over(half, b"".join(parts))
                self._halves.pop((half.target.host, half.target.number), None)
                self._tell(half.target, lambda node: node.closed(half.target.number))
                return
            parts.append(part)
        self._hand_over(half, b"".join(parts))

    def _hand_over(self, half: Half, data: bytes) -> None:
        target = half.target
        for at in range(0, len(data), READ_MAX):
            part = data[at : at + READ_MAX]
            self._tell(target, partial(_read, target.number, part))

    def _reset(self, half: Half) -> None:
        """Nobody is there: what was sent is answered with a reset, if somebody answers."""
        half.arriving.clear()
        source = half.source
        if half.target.host in self.nodes and (source.host, source.number) in self._halves:
            del self._halves[source.host, source.number]
            self._tell(source, lambda node: node.closed(source.number))

    # --- time

    def run(self, until: Instant) -> None:
        """Let time pass."""
        while self._heap and self._heap[0][0] <= until:
            at, _, act = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            act()
        self.now = until

    def rearm(self, host: str) -> None:
        """Wake a node at its next deadline; after whatever may have changed it."""
        deadline = self.nodes[host].next_deadline()
        if deadline is None or self._armed.get(host, float("inf")) <= deadline:
            return
        self._armed[host] = deadline
        life = self._lives[host]
        self._at(max(deadline, self.now), lambda: self._wake(host, life, deadline))

    def _wake(self, host: str, life: int, deadline: Instant) -> None:
        if self._armed.get(host) != deadline or self._lives[host] != life:
            return
        del self._armed[host]
        woken_at, times = self._woken
        self._woken = (self.now, times + 1 if woken_at == self.now else 0)
        if self._woken[1] > WAKE_UPS_MAX:
            raise Drowned(f"at {self.now:.3f} s; {host} is woken again and again")
        if host in self.nodes and host not in self._paused:
            self.nodes[host].tick()
            self.rearm(host)

    def _is_alive(self, end: End) -> bool:
        return end.host in self.nodes and self._lives[end.host] == end.life

    def _tell(self, end: End, act: Callable[[StreamNode], None]) -> None:
        if not self._is_alive(end):
            return
        if end.host in self._paused:
            self._paused[end.host].append(lambda: self._tell(end, act))
            return
        act(self.nodes[end.host])
        if end.host in self.nodes:
            self.rearm(end.host)

    def _after_delay(self, source: str, target: str, act: Callable[[], None]) -> None:
        self._at(self.now + self.network.delay(source, target), act)

    def _at(self, at: Instant, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (at, next(self._order), act))


def _read(number: int, data: bytes, node: StreamNode) -> None:
    node.read(number, data)
