"""The machines of a world, whatever runs on them: addresses, disks, clocks."""

from __future__ import annotations

from typing import Protocol

import attrs

from clusternode.core.inputs import KnownMember
from clusternode.core.snapshots import NodeGlance, NodeSnapshot
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.simulation.surroundings import Sender


class LiveProcess(Sender, Protocol):
    """A process, as its world sees it."""

    is_paused: bool

    def start(self) -> None: ...
    def snapshot(self) -> NodeSnapshot | None:
        """Return what it shows of itself; nothing while it is starting."""
        ...

    def glance(self) -> NodeGlance | NodeSnapshot | None:
        """Return the part of it that checks look at."""
        ...

    def end(self) -> None:
        """Take note that it is over: nothing that it still does has any effect."""
        ...

    def resume(self, lag: Seconds) -> None:
        """Go on after a pause."""
        ...


@attrs.define
class Host:
    """A machine: its address, its disk and at most one process."""

    node_id: NodeId
    address: Address
    is_up: bool = True
    process: LiveProcess | None = None
    lives: int = 0
    incarnation: int = 0
    """On its disk: the last incarnation."""
    known: tuple[Instant, tuple[KnownMember, ...]] = (0.0, ())
    """On its disk: when, and which members were known."""
    disk_error: str = ""
    """Why nothing can be written to its disk; empty while it can."""
    clock_offset: Seconds = 0.0
    """How wrong its wall clock is when a process starts."""
    clock_rate: float = 1.0
    """How many seconds its timers count in one second; taken when a process starts."""
    ip: str = attrs.field(init=False)

    @ip.default
    def _ip(self) -> str:
        return self.address.host
