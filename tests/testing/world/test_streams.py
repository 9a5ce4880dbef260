"""The streams of simulated agents: they do what those of TCP do, and fail as they do."""

from __future__ import annotations

import pytest
import trio

from clusternode.core.inputs import DialFailure
from clusternode.core.types import NodeId
from clusternode.runtime.transport import DialError
from clusternode.simulation.hosts import Host
from clusternode.simulation.network import LinkQuality
from clusternode.simulation.world import World, WorldPlan, address_of
from clusternode.testing.conformance import TRANSPORT_CHECKS
from clusternode.testing.world.streams import StreamConnections
from clusternode.testing.world.turns import LoopProcess

ONE, TWO = NodeId("n1"), NodeId("n2")
PLAN = WorldPlan(node_ids=[ONE, TWO], quality=LinkQuality(0.01, 0.01))


class Process(LoopProcess):
    """Runs a function of the test."""

    can_send = False

    def __init__(self, world, host, fact):
        super().__init__(world, host, fact)
        self.world = world

    async def main(self):
        await self.world.mains[self.node_id](self.transport)

    def over(self, failure):
        self.world.end_process(self, "left")
        self.world.failures.append(failure)

    def tell(self, wish):
        raise AssertionError(wish)

    def snapshot(self):
        return None


class Place(World):
    """A world of such processes."""

    connections: StreamConnections

    def __init__(self, **mains):
        super().__init__(PLAN, 1)
        self.mains = mains
        self.failures: list[BaseException | None] = []
        self.seen: list[object] = []

    def _new_connections(self):
        return StreamConnections(self)

    def _new_process(self, host: Host, fact):
        return Process(self, host, fact)

    def pass_time(self, seconds):
        self.run_until(self.now + seconds)
        assert [one for one in self.failures if one is not None] == []


@pytest.mark.parametrize("check", TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_the_transport_keeps_its_promises(check):
    place = Place(n1=lambda transport: check(transport, address_of(0)))
    place.start(ONE)

    place.pass_time(60.0)

    assert len(place.failures) == 1


@pytest.fixture
def place():
    """n2 listens and notes what it reads; n1 dials, writes every second, and notes its end."""
    made = Place(n1=None, n2=None)

    async def listen(transport):
        listener = await transport.listen(address_of(1))
        while True:
            wire = await listener.accept()
            try:
                while data := await wire.stream.receive_some():
                    made.seen.append((TWO, data))
                made.seen.append((TWO, "end"))
            except trio.BrokenResourceError as error:
                made.seen.append((TWO, str(error)))

    async def write(transport):
        try:
            wire = await transport.dial(address_of(1), 5.0)
        except DialError as error:
            made.seen.append((ONE, error.failure))
            return

        async def read():
            made.seen.append((ONE, await wire.stream.receive_some()))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                while True:
                    await wire.stream.send_all(b"x")
                    await trio.sleep(1.0)
        except* trio.BrokenResourceError as group:
            made.seen.append((ONE, str(group.exceptions[0])))

    made.mains = {"n1": write, "n2": listen}
    made.start(TWO)
    made.pass_time(0.1)
    yield made
    for process in made.processes():
        process.end()


def seen_by(place, node_id):
    return [what for who, what in place.seen if who == node_id]


def test_a_partition_holds_what_is_written_and_lets_it_go_on(place):
    place.start(ONE)
    place.pass_time(1.5)
    place.block([ONE], [TWO])
    place.pass_time(3.0)
    assert seen_by(place, TWO) == [b"x", b"x"]

    place.heal()
    place.pass_time(3.0)

    assert b"".join(seen_by(place, TWO)) == b"x" * 8


def test_a_reset_is_an_error_at_both_ends(place):
    place.start(ONE)
    place.pass_time(1.5)

    place.reset([(ONE, TWO)])
    place.pass_time(0.1)

    assert seen_by(place, ONE) == ["connection reset"]
    assert seen_by(place, TWO)[-1] == "connection reset"


def test_a_killed_process_is_known_by_its_kernel_and_one_without_power_is_not(place):
    place.start(ONE)
    place.pass_time(1.5)
    place.kill(ONE)
    place.pass_time(0.1)
    assert seen_by(place, TWO)[-1] == "connection reset by peer"

    place.start(ONE)
    place.pass_time(1.5)
    before = list(place.seen)
    place.power_off(ONE)
    place.pass_time(60.0)

    assert place.seen == before


def test_dials_are_refused_or_run_into_their_timeout(place):
    place.kill(TWO)
    place.start(ONE)
    place.pass_time(0.1)
    assert seen_by(place, ONE) == [DialFailure.REFUSED]

    place.power_off(TWO)
    place.start(ONE)
    place.pass_time(4.9)
    assert seen_by(place, ONE) == [DialFailure.REFUSED]
    place.pass_time(0.2)
    assert seen_by(place, ONE) == [DialFailure.REFUSED, DialFailure.TIMEOUT]


def test_a_paused_process_reads_later_what_its_kernel_took_meanwhile(place):
    place.start(ONE)
    place.pass_time(0.5)
    place.pause(TWO)
    place.pass_time(3.0)
    assert seen_by(place, TWO) == [b"x"]

    place.resume(TWO)
    place.pass_time(0.0)

    assert seen_by(place, TWO) == [b"x", b"xxx"]


def test_a_clock_that_runs_fast_wakes_its_process_early(place):
    place.hosts[ONE].clock_rate = 2.0
    place.start(ONE)

    place.pass_time(3.4)

    assert b"".join(seen_by(place, TWO)) == b"x" * 7
