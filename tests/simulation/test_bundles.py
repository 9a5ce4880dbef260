"""Bundles: large worlds cost less, and tell the same."""

from __future__ import annotations

import random
import re
from pathlib import Path

import attrs
import pytest

from clusternode.core.effects import Write
from clusternode.core.settings import HealthSettings
from clusternode.core.types import ConnectionId, NodeId
from clusternode.core.wire.codec import frame_of
from clusternode.core.wire.messages import Ping
from clusternode.recording.trace import Recorder, replay
from clusternode.simulation.bundles import BundledConnections
from clusternode.simulation.fidelity import wire_of
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.process import Process
from clusternode.simulation.runner import run, run_in
from clusternode.simulation.scenario import Scenario, load
from clusternode.simulation.swarm import draw
from clusternode.simulation.world import WorldPlan, address_of

SCENARIOS = Path(__file__).resolve().parent.parent.parent / "scenarios"


def bundled(name: str) -> Scenario:
    scenario = load(SCENARIOS / f"{name}.toml")
    return attrs.evolve(scenario, plan=attrs.evolve(scenario.plan, fidelity="bundles"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a-reset-changes-nothing", marks=pytest.mark.long),
        "killed-and-restarted",
        "clean-stop-is-heard",
        pytest.param("narrow-link-is-not-death", marks=pytest.mark.slow),
        pytest.param("load-over-broken-connections", marks=pytest.mark.long),
        pytest.param("seed-in-one-half", marks=pytest.mark.slow),
        pytest.param("paused-node-blames-nobody", marks=pytest.mark.slow),
    ],
)
def test_what_holds_in_other_worlds_holds_in_bundles(name):
    scenario = bundled(name)

    first, second = run(scenario, 1), run(scenario, 1)

    assert first.violations == []
    assert first == second


def test_a_node_of_a_bundled_world_can_be_recorded(tmp_path):
    path = tmp_path / "n2.trace"
    scenario = bundled("killed-and-restarted")
    with path.open("w") as file:
        run_in(ModelWorld(scenario.plan, 1, recorder=Recorder(file, NodeId("n2"))), scenario)

    assert replay(path).difference is None


def test_every_ping_is_sent_and_answered_as_in_other_worlds():
    pings = {}
    for fidelity in ("messages", "bundles"):
        plan = WorldPlan(
            node_ids=[NodeId(f"n{index}") for index in range(1, 11)],
            notification=[address_of(0)],
            health=HealthSettings(ping_interval=10.0),
            fidelity=fidelity,
        )
        world = ModelWorld(plan, 1)
        for node_id in world.hosts:
            world.start(node_id)
        world.run_until(world.now + 300.0)
        counters = [snapshot.counters for snapshot in world.snapshots().values()]
        pings[fidelity] = sum(one["pings_opened"] for one in counters)
        assert sum(one.get("pings_failed", 0) for one in counters) == 0
        assert world.counts.messages > 2 * pings[fidelity]

    assert pings["bundles"] == pytest.approx(pings["messages"], rel=0.05)


def world_of_two() -> ModelWorld:
    """Return a world in which n2 dials n1 within the next milliseconds."""
    plan = WorldPlan(
        node_ids=[NodeId("n1"), NodeId("n2")], notification=[address_of(0)], fidelity="bundles"
    )
    world = ModelWorld(plan, 1, keep_trace=True)
    for node_id in world.hosts:
        world.start(node_id)
    world.run_until(world.now)
    return world


def counters_of(world: ModelWorld, node_id: str) -> dict[str, int]:
    return dict(world.snapshots()[NodeId(node_id)].counters)


def test_a_connection_opens_within_milliseconds_where_nothing_is_wrong():
    world = world_of_two()

    world.run_until(world.now + 0.05)

    assert counters_of(world, "n1")["links_opened"] == 1
    assert counters_of(world, "n2")["links_opened"] == 1


def test_who_is_killed_while_it_is_dialled_refuses():
    world = world_of_two()

    world.kill(NodeId("n1"))
    world.run_until(world.now + 0.05)

    assert counters_of(world, "n2")["dials_failed_refused"] >= 1


def test_who_is_paused_while_it_is_dialled_answers_later():
    world = world_of_two()

    world.pause(NodeId("n1"))
    world.run_until(world.now + 2.0)
    assert "links_opened" not in counters_of(world, "n2")
    world.resume(NodeId("n1"))
    world.run_until(world.now + 0.05)

    assert counters_of(world, "n2")["links_opened"] == 1


def test_a_handshake_over_a_link_that_is_cut_meanwhile_goes_on_once_it_is_mended():
    world = world_of_two()

    world.block([NodeId("n1")], [NodeId("n2")])
    world.run_until(world.now + 2.0)
    assert "links_opened" not in counters_of(world, "n2")
    world.heal()
    world.run_until(world.now + 2.0)

    assert counters_of(world, "n2")["links_opened"] == 1


def test_nothing_overtakes_what_was_sent_before_or_during_a_fault():
    world = world_of_two()
    world.run_until(world.now + 5.0)
    one, two = (host.ip for host in world.hosts.values())
    process = world.hosts[NodeId("n1")].process
    assert isinstance(process, Process)
    (end,) = process.ends.values()
    numbers = range(1001, 1301)

    def send(number: int) -> None:  # of another digest: it is not answered on its way
        frame = frame_of(Ping(number, 0))
        back = Write(end.other.connection, [frame_of(Ping(number, 0))], more=False)
        world.connections.written(end.other, back)
        if number % 10 > 1:
            world.connections.written(end, Write(end.connection, [frame], more=False))
        else:
            world.connections.write_each(process, [end.connection], frame)
        world.run_until(world.now)  # if it was to have a turn of the writer, this is it

    for number in numbers:
        if number % 3 == 2:
            world.network.block([one], [two])
        send(number)
        world.network.heal()
        if number % 10 == 0:
            world.run_until(world.now + (0.005 if number % 20 else 0.00037))
    world.run_until(world.now + 1.0)
    world.digest()

    said = " ".join(line for line in world.trace.kept if line.startswith("n2 "))
    pings = [int(number) for number in re.findall(rf"\b{Ping.TYPE}\.(1\d\d\d)\b", said)]
    assert pings == list(numbers)


def test_a_node_that_cannot_answer_at_once_takes_the_long_way():
    plan = WorldPlan(
        node_ids=[NodeId("n1"), NodeId("n2")], notification=[address_of(0)], fidelity="bundles"
    )
    world = ModelWorld(plan, 1)
    for node_id in world.hosts:
        world.start(node_id)
    world.run_until(world.now + 5.0)
    process = world.hosts[NodeId("n1")].process
    assert isinstance(process, Process)
    (connection,) = process.ends
    digest = process.snapshot().digest

    assert not process.answers(connection, Ping(77, digest ^ 1))
    assert not process.answers(ConnectionId(connection + 1), Ping(77, digest))
    assert process.answers(connection, Ping(77, digest))


class Wary(BundledConnections):
    """Looks at every connection again in every round."""

    def _is_answered(self, end, flight, *, is_there):
        is_answered = super()._is_answered(end, flight, is_there=is_there)
        end.is_quiet = False
        return is_answered


class WaryWorld(ModelWorld):
    def _new_connections(self):
        return Wary(self, wire_of(self.plan.fidelity, random.Random(f"{self.seed}/wire")))


@pytest.mark.parametrize(
    "seed", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 14, 21, 22))]
)
def test_not_to_look_again_at_a_quiet_connection_changes_nothing_but_the_bytes_counted(seed):
    scenario = draw(seed)
    scenario = attrs.evolve(scenario, plan=attrs.evolve(scenario.plan, fidelity="bundles"))
    traces = []
    for world_class in ModelWorld, WaryWorld:
        world = world_class(scenario.plan, seed, keep_trace=True)
        assert run_in(world, scenario).violations == []
        world.trace.digest()
        traces.append([re.sub(r"( Measured \d+) .*", r"\1", line) for line in world.trace.kept])

    assert traces[0] == traces[1]


def large_world() -> ModelWorld:
    """Return a world of more members than are pinged one by one, in which all is quiet."""
    node_ids = [NodeId(f"n{number}") for number in range(1, 71)]
    plan = WorldPlan(
        node_ids=node_ids,
        notification=[address_of(0)],
        health=HealthSettings(ping_interval=2.0, ping_timeout=1.0),
        fidelity="bundles",
    )
    world = ModelWorld(plan, 1)
    for node_id in node_ids:
        world.start(node_id)
    world.run_until(world.now + 20.0)
    return world


def test_who_is_stopped_while_all_is_quiet_answers_nobody_and_who_lost_a_link_neither():
    world = large_world()
    world.pause(NodeId("n50"))
    world.block([NodeId("n60")], [NodeId("n10")])
    world.block([NodeId("n10")], [NodeId("n60")])
    world.run_until(world.now + 8.0)

    seen = world.snapshots()[NodeId("n10")]
    found = {member.node_id: (member.status, member.link) for member in seen.members}
    assert found.get(NodeId("n50"), ("removed", ""))[0] != "active"
    assert found[NodeId("n60")][0] == "active"
    assert found[NodeId("n60")][1] != "direct"


def test_nothing_is_kept_of_processes_and_connections_that_have_ended():
    world = large_world()
    for _ in range(3):
        world.kill(NodeId("n50"))
        world.run_until(world.now + 1.0)
        world.start(NodeId("n50"))
        world.run_until(world.now + 6.0)
    world.reset([(NodeId("n10"), NodeId(f"n{number}")) for number in range(20, 60)])
    world.run_until(world.now + 1.0)

    connections = world.connections
    assert isinstance(connections, BundledConnections)
    assert connections._asked
    for process, asked in connections._asked.items():
        assert process.is_running
        assert all(end.is_open for _, ends in asked.values() for end in ends)
