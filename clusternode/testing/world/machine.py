"""The machine of a simulated process: scripted names, a wall clock that may be wrong, a disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs
import trio

from clusternode.core.inputs import ResolvedAddress
from clusternode.core.types import Address, Incarnation, Instant, Seconds
from clusternode.errors import ResolveError, StateError
from clusternode.runtime.state import Remembered
from clusternode.simulation.hosts import Host
from clusternode.simulation.process import DISK_DELAY
from clusternode.simulation.resolver import ScriptedResolver
from clusternode.simulation.surroundings import WorldView


class Outside(WorldView, Protocol):
    """The world, as the machines in it see it."""

    @property
    def resolver(self) -> ScriptedResolver: ...
    def wall_clock_ms(self, host: Host) -> int: ...


class Running(Protocol):
    """The process on a machine."""

    @property
    def is_running(self) -> bool: ...
    async def let_pass(self, seconds: Seconds) -> None:
        """Wait for the time of the world, however fast the own clock runs."""
        ...


@attrs.frozen
class SimulatedMachine:
    """What `runtime.machine.ThisMachine` is for a real agent."""

    world: Outside
    host: Host
    process: Running

    @property
    def resolver(self) -> WorldResolver:
        return WorldResolver(self.world.resolver, self.process)

    def wall_clock_ms(self) -> int:
        return self.world.wall_clock_ms(self.host)

    def random_bits(self, count: int) -> int:
        return self.world.rng.getrandbits(count)

    async def open_state(self, path: Path) -> MemoryDisk:
        await trio.lowlevel.checkpoint()
        return MemoryDisk(self.world, self.host, self.process)


@attrs.frozen
class WorldResolver:
    """Asks the scripted name servers of a world."""

    names: ScriptedResolver
    process: Running

    async def resolve(self, name: Address) -> Sequence[ResolvedAddress]:
        delay, answer = self.names.resolve(name)
        await self.process.let_pass(delay)
        if answer.error is not None:
            raise ResolveError(answer.error)
        return answer.addresses


@attrs.frozen
class MemoryDisk:
    """The state directory of a simulated host; a killed process writes nothing any more."""

    world: Outside
    host: Host
    process: Running

    async def read(self, cluster: str) -> Remembered:
        await self.process.let_pass(DISK_DELAY)
        written_at, members = self.host.known
        silent = self._now - written_at
        known = [attrs.evolve(each, silent_for=each.silent_for + silent) for each in members]
        return Remembered(Incarnation(self.host.incarnation), tuple(known))

    async def write(self, cluster: str, remembered: Remembered) -> None:
        asked_at = self._now
        await self.process.let_pass(DISK_DELAY)
        if self.host.disk_error:
            raise StateError(f"state directory: {self.host.disk_error}")
        if self.process.is_running:
            self.host.incarnation = max(self.host.incarnation, remembered.incarnation)
            self.host.known = (asked_at, remembered.members)

    @property
    def _now(self) -> Instant:
        return self.world.now

    def close(self) -> None:
        """Do nothing: a disk in memory holds no lock."""
