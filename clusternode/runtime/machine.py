"""What an agent takes from its machine: names, a wall clock, random bits and a disk."""

from __future__ import annotations

import logging
import random
import secrets
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from clusternode.errors import StateError
from clusternode.runtime.resolver import Resolver
from clusternode.runtime.state import (
    INCARNATION_RANDOM_BITS,
    Remembered,
    StateDirectory,
    StateStore,
    milliseconds_since_1970,
    new_incarnation,
)

logger = logging.getLogger(__name__)

RNG_SEED_BITS: Final = 256


class Machine(Protocol):
    """The machine of an agent; another one than this where agents are simulated."""

    @property
    def resolver(self) -> Resolver: ...
    def wall_clock_ms(self) -> int:
        """Return the milliseconds since 1970, as this machine counts them."""
        ...

    def random_bits(self, count: int) -> int:
        """Draw a number of so many bits: for incarnations, nonces and jitter."""
        ...

    async def open_state(self, path: Path) -> StateStore:
        """Open the state directory for this process alone.

        Raises:
            StateError: It cannot be used.
        """
        ...


@attrs.frozen
class ThisMachine:
    """The machine that runs this program."""

    resolver: Resolver

    def wall_clock_ms(self) -> int:
        return milliseconds_since_1970()

    def random_bits(self, count: int) -> int:
        return secrets.randbits(count)

    async def open_state(self, path: Path) -> StateDirectory:
        return await trio.to_thread.run_sync(StateDirectory, path)


def new_rng(machine: Machine) -> random.Random:
    """Return a generator for jitter, which must differ between the nodes."""
    return random.Random(machine.random_bits(RNG_SEED_BITS))


async def begin_life(machine: Machine, state: StateStore | None, cluster: str) -> Remembered:
    """Return what is remembered of a cluster, with an incarnation that nobody has used.

    It is written before anybody hears of it, so that the next one is larger. A disk that cannot
    be written is no reason to stay away from the cluster: clocks go forward, as a rule.
    """
    remembered = Remembered() if state is None else await state.read(cluster)
    bits = machine.random_bits(INCARNATION_RANDOM_BITS)
    incarnation = new_incarnation(remembered.incarnation, machine.wall_clock_ms(), bits)
    remembered = attrs.evolve(remembered, incarnation=incarnation)
    if state is not None:
        try:
            await state.write(cluster, remembered)
        except StateError as error:
            logger.warning("the state could not be written, starting all the same: %s", error)
    return remembered
