"""Mutants of the shell: of what only whole agents have, and the model's world cannot see."""

from __future__ import annotations

from functools import partial
from typing import Any

from clusternode.bus.mesh import MeshBus
from clusternode.bus.replies import MeshReplies
from clusternode.core.types import ResultCode
from clusternode.routes.dispatcher import Dispatcher
from clusternode.routes.runner import Runner
from clusternode.runtime.connections import Connections
from clusternode.runtime.driver import Driver
from tests.simulation.mutants.catalogue import (
    DEAD,
    EVERYONE,
    FLAPPING,
    MUTANTS,
    ONE_RESULT,
    ORDER,
    REACHED,
    REPLIES,
    TRUE,
    WAITS,
    Function,
    Mutant,
    mutant,
)

shell = partial(mutant, world="agents")


@shell(Driver, "_report_lag", ["paused-node-blames-nobody"], [FLAPPING])
def nobody_notices_that_the_loop_stood_still(right: Function) -> Function:
    """The driver goes on as if no time had passed."""

    def report_lag(self: Any, now: float) -> None:
        self._armed = self._excused = now

    return report_lag


@shell(Connections, "_lost", ["killed-and-restarted", "swarm:2"], [DEAD, REACHED, EVERYONE])
def a_lost_connection_is_kept_secret(right: Function) -> Function:
    """The node is not told that a connection has ended."""

    def lost(self: Any, connection: Any, detail: str) -> None:
        connection.is_ending = True
        right(self, connection, detail)

    return lost


@shell(Dispatcher, "_failed", ["raising-handlers"], [TRUE])
def who_raises_has_handled(right: Function) -> Function:
    """The result of a handler that raised is 200."""

    def failed(self: Any, *arguments: Any) -> ResultCode:
        right(self, *arguments)
        return ResultCode.OK

    return failed


@shell(Runner, "submit", ["burst-without-silent-loss"], [ORDER])
def every_batch_has_a_lane_of_its_own(right: Function) -> Function:
    """What one origin sends on one channel is handled side by side."""
    return lambda self, group, key, batch, count: right(
        self, group, f"{key}{id(batch)}", batch, count
    )


@shell(MeshReplies, "add", ["one-way-link"], [REPLIES])
def one_reply_of_many_is_dropped(right: Function) -> Function:
    """Each fifth reply never reaches who has asked."""
    count = iter(range(10**9))

    def add(self: Any, effect: Any, now: float) -> None:
        if next(count) % 5:
            right(self, effect, now)

    return add


@shell(MeshBus, "settle", ["burst-without-silent-loss"], [ONE_RESULT, WAITS])
def the_last_result_of_a_read_is_forgotten(right: Function) -> Function:
    """Of several results that come at once the last one is lost."""

    def settle(self: Any, effect: Any) -> None:
        if len(effect.results) > 1:
            effect.results = effect.results[:-1]
        right(self, effect)

    return settle


ALL: dict[str, Mutant] = MUTANTS
"""Those of the core, and those above."""
