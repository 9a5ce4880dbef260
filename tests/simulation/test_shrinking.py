"""A failing story becomes smaller while it still fails, and is an ordinary scenario file."""

from __future__ import annotations

import tomllib

import pytest

from clusternode.simulation import swarm
from clusternode.simulation.runner import run
from clusternode.simulation.scenario import from_mapping
from clusternode.simulation.shrinking import as_toml, shrink, spelt_out


@pytest.mark.parametrize("seed", range(1, 20))
def test_a_drawn_story_written_as_toml_is_the_same_story(seed):
    assert tomllib.loads(as_toml(swarm.story(seed))) == swarm.story(seed)


def test_only_what_makes_it_fail_is_left():
    values = swarm.story(3)

    smallest = shrink(values, lambda story: any("load" in step for step in story["step"]))

    assert len(smallest["step"]) == 1
    assert smallest["nodes"] == 1
    assert smallest["step"][0]["rate"] <= 1
    assert "network" not in smallest


def test_a_node_that_is_left_out_takes_its_place_in_every_step_with_it():
    values = {
        "nodes": 4,
        "notification": ["n2", "n4"],
        "step": [
            {"at": 1.0, "kill": "n4"},
            {"at": 2.0, "partition": [["n1", "n2"], ["n3", "n4"]]},
            {"at": 3.0, "cut": [["n2"], ["n1"]]},
            {"at": 4.0, "kill": "n2"},
            {"at": 5.0, "load": ["broadcast", "send"], "from": "*", "rate": 1.0, "for": 2.0},
        ],
    }

    def fails(story):
        return {"at": 1.0, "kill": "n3"} in story["step"] and story["nodes"] >= 3

    smallest = shrink(values, lambda story: story == values or fails(story))

    assert smallest["nodes"] == 3
    assert smallest["notification"] == ["n2", "n3"]
    assert smallest["step"] == [{"at": 1.0, "kill": "n3"}]


def test_it_ends_when_the_runs_are_used_up():
    runs = []

    def fails(story):
        runs.append(story)
        return True

    shrink(swarm.story(1), fails, runs_max=7)

    assert len(runs) == 7


def test_a_story_that_fails_in_only_one_way_stays_so():
    values = {"title": "x", "nodes": 3}
    assert shrink(values, lambda story: story["nodes"] == 3) == values


@pytest.mark.slow
def test_a_real_failure_is_shrunk_to_its_cause():
    """A hope that a kill breaks: all the rest of the story is noise."""
    values = swarm.story(2)
    values["step"].append({"at": 80.0, "kill": "n2"})
    values["expect"] = {"always": [], "eventually": {"by": 80.5, "holds": "the-dead-are-removed"}}

    def fails(story):
        scenario = from_mapping(story, name="shrunk")
        found = run(scenario, 2).violations
        return any(violation.invariant == "the-dead-are-removed" for violation in found)

    smallest = shrink(values, fails, runs_max=60)

    assert smallest["nodes"] <= 3
    assert [step for step in smallest["step"] if "kill" in step]
    assert len(smallest["step"]) <= 2


def test_the_nodes_of_a_range_are_left_out_one_by_one():
    values = {
        "title": "x",
        "nodes": 9,
        "node": {"n1..n3": {"notification": ["n1", "n2"]}},
        "step": [{"at": 1.0, "partition": [["n1..n5"], ["n6..n9"]]}],
    }

    def fails(story):
        return any(step["partition"][0][0] == "n1" for step in story["step"])

    assert shrink(spelt_out(values), fails) == {
        "title": "x",
        "nodes": 2,
        "node": {"n1": {"notification": ["n1", "n2"]}},
        "step": [{"at": 1.0, "partition": [["n1"], ["n2"]]}],
    }


def test_what_mends_stays_as_long_as_something_is_broken():
    cut = {"at": 1.0, "cut": [["n1"], ["n2"]]}
    heal = {"at": 2.0, "heal": True}
    pause = {"at": 3.0, "pause": "n1", "for": 1.0}

    with_cut = shrink({"nodes": 2, "step": [cut, heal, pause]}, lambda story: cut in story["step"])
    without = shrink({"nodes": 2, "step": [cut, heal, pause]}, lambda story: pause in story["step"])

    assert with_cut["step"] == [cut, heal]
    assert without["step"] == [pause]
