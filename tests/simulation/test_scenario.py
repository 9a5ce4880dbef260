"""Reading stories: what is wrong is named with its place, and with what was expected."""

from __future__ import annotations

import math

import pytest

from clusternode.errors import ScenarioError
from clusternode.simulation.scenario import from_mapping, load

GOOD = {"title": "A story", "nodes": 5, "duration": 10.0}


def story(**values):
    return from_mapping({**GOOD, **values}, name="story")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"durration": 3}, r"story: durration: unknown key; did you mean 'duration'\?"),
        ({"nodes": 0}, "nodes: 0: expected a whole number of at least 1"),
        ({"nodes": "five"}, "nodes: 'five': expected a whole number"),
        ({"step": [{"at": 1, "partitoin": [["n1"], ["n2"]]}]}, "did you mean 'partition'"),
        ({"step": [{"kill": "n1"}]}, "story: step 1: at: is missing"),
        ({"step": [{"at": 1, "kill": "n9"}]}, "step 1: kill: 'n9': no such node; there are 5"),
        ({"step": [{"at": 1, "kill": "n1..n9"}]}, "no such node"),
        ({"step": [{"at": 1, "kill": 3}]}, "step 1: kill: 3: expected nodes"),
        ({"step": [{"at": 1, "kill": "n1", "for": 3}]}, "step 1: for: unknown key"),
        ({"step": [{"at": 1, "kill": "n1", "stop": "n2"}]}, "has 2 kinds"),
        ({"step": [{"at": 1, "partition": [["n1"]]}]}, "expected two groups"),
        ({"step": [{"at": 1, "load": "brodcast", "rate": 1, "for": 1}]}, "did you mean 'broad"),
        ({"step": [{"at": 1, "load": "broadcast", "for": 1}]}, "rate: is missing"),
        ({"step": [{"at": -1, "heal": True}]}, "at: -1.0: expected a number of at least 0"),
        ({"step": [{"at": math.inf, "heal": True}]}, "at: inf: expected a number of at least 0"),
        ({"network": {"latency": [0, math.inf]}}, "expected a number, or two"),
        ({"expect": {"always": ["no-duplicate"]}}, "did you mean 'no-duplicate-delivery'"),
        ({"expect": {"eventually": {"by": 5, "holds": "nobody-wait"}}}, "'nobody-waits'"),
        ({"expect": {"eventually": {"holds": "nobody-waits"}}}, "by: is missing"),
        ({"settings": {"health": {"ping_intervall": 1}}}, "did you mean 'ping_interval'"),
        ({"settings": {"heath": {}}}, "settings: heath: unknown key; did you mean 'health'"),
        ({"settings": {"health": {"ping_interval": 0}}}, "ping_interval: 0: expected a number of"),
        (
            {"settings": {"health": {"ping_interval": 2, "ping_timeout": 3}}},
            "at most ping_interval",
        ),
        ({"settings": {"messaging": {"outbox_bytes": 0}}}, "outbox_bytes: 0: expected a whole"),
        (
            {"settings": {"messaging": {"delivery_timeout": 9, "result_timeout": 5}}},
            "at most result",
        ),
        ({"settings": {"discovery": {"dials_per_second": 0}}}, "dials_per_second: 0: expected"),
        ({"settings": {"discovery": {"redial_min": 99}}}, "redial_min: 99: expected at most"),
        ({"settings": {"discovery": {"notification_addresses": []}}}, "unknown setting"),
        (
            {"settings": {"channels": {"news": {"overflow": "drop"}}}},
            "expected one of .*drop_oldest",
        ),
        ({"settings": {"channels": {"news": {"ordered": True}}}}, "ordered: unknown setting"),
        ({"settings": {"channels": {"no news": {}}}}, "'no news': expected a name"),
        ({"step": [{"at": 1, "broadcast": "n1", "count": 10**9}]}, "count: 1000000000: expected"),
        (
            {"step": [{"at": 1, "load": "send", "rate": 1e9, "for": 1}]},
            "rate: 1e.09 a second for 1",
        ),
        ({"step": [{"at": 1, "load": "send", "rate": 1, "for": 1e9}]}, "at most 100000 times"),
        ({"step": [{"at": 1, "reset": "*", "rate": 1e9}]}, "at most 100000 times"),
        ({"network": {"loss": 2}}, "network: loss: 2.0: expected a share"),
        ({"network": {"latency": [2, 1]}}, "expected a number, or two"),
        ({"notification": ["nobody"]}, "notification: 'nobody': expected a node, or"),
        ({"dns": {"a.example": {"answers": [7]}}}, "answers: 7: expected a node or an address"),
        ({"duration": 1.0, "step": [{"at": 5, "heal": True}]}, "expected at least 5"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ScenarioError, match=message):
        story(**values)


def test_a_limit_that_a_story_does_not_set_follows_as_in_the_configuration():
    settings = {"health": {"ping_interval": 0.5}, "messaging": {"delivery_timeout": 99}}
    plan = story(settings=settings).plan

    assert plan.health.ping_timeout == 0.5
    assert plan.messaging.result_timeout == 99


def test_a_story_without_an_end_is_refused():
    with pytest.raises(ScenarioError, match="nothing else says how long it takes"):
        from_mapping({"title": "For ever", "nodes": 2}, name="story")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ScenarioError, match=r"missing\.toml: No such file"):
        load(tmp_path / "missing.toml")


def test_a_file_that_is_not_toml_is_named(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("title = ")

    with pytest.raises(ScenarioError, match=r"bad\.toml: not TOML"):
        load(file)


def test_the_number_of_nodes_can_be_changed_from_outside(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text('title = "Small"\nnodes = 2\nduration = 1.0\n')

    assert len(load(file, nodes=7).plan.node_ids) == 7


def test_steps_happen_in_the_order_of_their_times():
    steps = story(step=[{"at": 5, "heal": True}, {"at": 2, "kill": "n1"}]).steps

    assert [step.kind for step in steps] == ["kill", "heal"]


def test_without_a_list_everything_must_hold():
    assert "no-duplicate-delivery" in story().always
    assert story(expect={"always": ["true-results"]}).always == ["true-results"]
