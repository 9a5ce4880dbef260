"""A world does to its nodes what hosts and networks do."""

from __future__ import annotations

import attrs
import pytest

from clusternode.core.settings import HealthSettings
from clusternode.core.types import ChannelName, NodeId, ResultCode
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.process import Process
from clusternode.simulation.world import TIME_ZERO, World, WorldPlan, address_of

ONE, TWO = NodeId("n1"), NodeId("n2")
PLAN = WorldPlan(
    node_ids=[ONE, TWO],
    notification=[address_of(0)],
    health=HealthSettings(ping_interval=5.0, ping_timeout=2.0),
)


@pytest.fixture
def world() -> World:
    """Return two nodes that have seen each other for ten seconds."""
    made = ModelWorld(PLAN, 1, keep_trace=True)
    made.start(ONE)
    made.start(TWO)
    pass_time(made, 10.0)
    assert status_of_two(made) == "active"
    return made


def pass_time(world: World, seconds: float) -> None:
    world.run_until(world.now + seconds)


def status_of_two(world: World) -> str:
    process = world.hosts[ONE].process
    assert process is not None
    shown = process.snapshot()
    assert shown is not None
    rows = {row.node_id: row.status for row in shown.members}
    return rows.get(TWO, "missing")


def send(world: World) -> list[ResultCode]:
    process = world.hosts[ONE].process
    assert process is not None
    world.traffic.publish(process, ChannelName("news"), [TWO])
    fact = list(world.history.deliveries.values())[-1]
    pass_time(world, 1.0)
    return [code for _, _, code in fact.results]


def test_the_clock_does_not_start_at_zero():
    assert ModelWorld(PLAN, 1).now == TIME_ZERO > 0


def test_a_message_arrives_and_its_result_returns(world):
    assert send(world) == [ResultCode.OK]


def test_a_killed_process_is_known_at_once(world):
    world.kill(TWO)
    pass_time(world, 0.1)

    assert status_of_two(world) == "not_active"


def test_a_host_without_power_is_known_only_when_a_ping_fails(world):
    world.power_off(TWO)
    pass_time(world, 0.1)
    assert status_of_two(world) == "active"

    pass_time(world, 8.0)
    assert status_of_two(world) in ("not_active", "disabled")


def test_a_paused_process_keeps_its_connections(world):
    world.pause(TWO)
    pass_time(world, 1.0)

    assert status_of_two(world) == "active"
    assert world.hosts[ONE].process.ends


def test_a_paused_process_handles_what_came_when_it_goes_on(world):
    world.pause(TWO)
    assert send(world) == []

    world.resume(TWO)
    pass_time(world, 1.0)

    assert [code for _, _, code in list(world.history.deliveries.values())[-1].results] == [
        ResultCode.OK
    ]


def test_a_reset_loses_nothing_and_nobody(world):
    world.traffic.publish(world.hosts[ONE].process, ChannelName("news"), [TWO])
    world.run_until(world.now)  # written, but not yet there
    world.reset([(ONE, TWO)])
    pass_time(world, 5.0)

    fact = list(world.history.deliveries.values())[-1]
    assert [code for _, _, code in fact.results] == [ResultCode.OK]
    assert [fact.status for fact in world.history.statuses if fact.status != "active"] == []


def test_what_was_written_into_a_partition_arrives_after_it(world):
    world.block([ONE], [TWO])
    assert send(world) == []

    world.heal()
    pass_time(world, 5.0)

    fact = list(world.history.deliveries.values())[-1]
    assert [code for _, _, code in fact.results] == [ResultCode.OK]


def test_a_clean_stop_is_shown_as_left(world):
    world.stop(TWO)
    pass_time(world, 1.0)

    assert status_of_two(world) == "left"
    assert world.hosts[TWO].process is None


def test_the_next_life_has_a_larger_incarnation(world):
    before = world.hosts[TWO].process.settings.incarnation
    world.kill(TWO)
    world.start(TWO)

    assert world.hosts[TWO].process.settings.incarnation > before
    assert len(world.history.lives[TWO]) == 2


def test_nobody_listens_on_an_unknown_channel(world):
    world.traffic.publish(world.hosts[ONE].process, ChannelName("nothing"), [TWO])
    pass_time(world, 1.0)

    fact = list(world.history.deliveries.values())[-1]
    assert [code for _, _, code in fact.results] == [ResultCode.NOT_FOUND]


def test_a_handler_that_raises_is_500(world):
    world.set_behaviour(TWO, attrs.evolve(PLAN.behaviour, failure_share=1.0))

    assert send(world) == [ResultCode.FAILED]


def test_a_narrow_link_takes_its_time(world):
    narrow = attrs.evolve(PLAN.quality, bandwidth=1000.0)
    world.set_quality([ONE], [TWO], narrow)
    world.traffic.publish(world.hosts[ONE].process, ChannelName("news"), [TWO], 3000)
    fact = list(world.history.deliveries.values())[-1]

    pass_time(world, 2.5)
    assert not fact.results
    pass_time(world, 2.5)
    assert [code for _, _, code in fact.results] == [ResultCode.OK]


def test_what_is_on_a_failing_disk_stays_as_it_was(world):
    host = world.hosts[TWO]
    known = host.known
    host.disk_error = "no space left on device"
    world.kill(ONE)
    pass_time(world, 5.0)
    world.start(ONE)
    pass_time(world, 60.0)

    assert host.known == known
    assert host.process.node.snapshot(world.now).counters["state_writes_failed"] >= 1


def test_the_clock_of_a_process_may_run_fast():
    world = ModelWorld(PLAN, 1)
    world.hosts[ONE].clock_rate = 1.1
    world.start(ONE)
    pass_time(world, 100.0)

    process = world.hosts[ONE].process
    assert isinstance(process, Process)
    assert process.clock.now == pytest.approx(TIME_ZERO + 110.0)


def test_a_twin_says_the_id_of_the_other_and_withdraws():
    plan = attrs.evolve(PLAN, node_ids=[ONE, TWO, NodeId("n3")], id_of={NodeId("n3"): TWO})
    world = ModelWorld(plan, 1)
    world.start(ONE)
    world.start(TWO)
    pass_time(world, 10.0)
    world.start(NodeId("n3"))
    pass_time(world, 20.0)

    assert world.history.lives[NodeId("n3")][0].how == "withdrew"
    assert status_of_two(world) == "active"


def test_a_stall_ends_by_itself(world):
    world.stall([ONE], [TWO], 1.0)
    pass_time(world, 0.5)
    assert send(world) == [ResultCode.OK]
