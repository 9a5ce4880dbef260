"""What a node was told can be written down and stepped again, with the same effects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusternode.core.types import NodeId
from clusternode.recording.state import capture
from clusternode.recording.trace import Recorder, replay
from clusternode.recording.values import Decoder, Encoder, RecordingError
from clusternode.simulation.model import ModelWorld
from clusternode.simulation.runner import run_in
from clusternode.simulation.scenario import load
from tests.core.harness import Lone

STORY = Path(__file__).resolve().parent.parent.parent / "scenarios" / "killed-and-restarted.toml"


@pytest.fixture
def recording(tmp_path):
    """Return the recording of a node that lived twice."""
    scenario, path = load(STORY), tmp_path / "n3.trace"
    with path.open("w") as file:
        world = ModelWorld(scenario.plan, 1, recorder=Recorder(file, NodeId("n3")))
        assert run_in(world, scenario).ok
    return path


def test_a_replay_gives_the_same_effects_in_every_life(recording):
    found = replay(recording)

    assert found.difference is None
    assert found.segments == 2
    assert found.inputs > 100
    assert found.effects > 100


def test_recording_changes_nothing(recording, tmp_path):
    scenario = load(STORY)
    with (tmp_path / "again").open("w") as file:
        recorder = Recorder(file, NodeId("n3"))
        recorded = run_in(ModelWorld(scenario.plan, 1, recorder=recorder), scenario)

    assert recorded == run_in(ModelWorld(scenario.plan, 1), scenario)
    assert (tmp_path / "again").read_text() == recording.read_text()


def test_the_first_step_that_differs_is_named(recording):
    lines = recording.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"is":"WriteReady"' in line)
    line = json.loads(lines[at])
    lines[at] = json.dumps(line | {"fingerprint": "0", "effects": ["Nothing"]})
    recording.write_text("\n".join(lines))

    difference = replay(recording).difference

    assert difference is not None
    assert difference.line == at + 1
    assert difference.input == "WriteReady"
    assert difference.recorded == ["Nothing"]


def test_a_full_recording_says_so(tmp_path):
    scenario, path = load(STORY), tmp_path / "n1.trace"
    with path.open("w") as file:
        recorder = Recorder(file, NodeId("n1"), inputs_max=10)
        run_in(ModelWorld(scenario.plan, 1, recorder=recorder), scenario)

    found = replay(path)

    assert (found.inputs, found.is_cut, found.difference) == (10, True, None)


@pytest.mark.parametrize("text", ["", "no\n", "{}\n", '{"format":9,"now":1}\n', '{"format":1}\n'])
def test_what_is_no_recording_is_refused(text, tmp_path):
    path = tmp_path / "x"
    path.write_text(text)

    with pytest.raises(RecordingError):
        replay(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordingError, match="No such file"):
        replay(tmp_path / "missing")


def test_a_container_in_two_parts_is_found_out_before_a_restored_node_has_two_of_it():
    node = Lone().node
    assert capture(node)

    vars(node)["_again"] = node._membership.members.rows
    with pytest.raises(AssertionError, match=r"rows is node\._again"):
        capture(node)


def test_values_keep_their_kinds():
    value = {"a": [1, 2.5, None, True], "b": (b"\x00\xff", "text", (1,))}

    assert Decoder().decode(json.loads(json.dumps(Encoder().encode(value)))) == value


@pytest.mark.parametrize(
    "name",
    [
        "killed-and-restarted",
        pytest.param("load-over-broken-connections", marks=pytest.mark.long),
        pytest.param("two-nodes-with-one-id", marks=pytest.mark.slow),
        pytest.param("slow-handlers", marks=pytest.mark.slow),
        pytest.param("rolling-restart", marks=pytest.mark.slow),
    ],
)
def test_a_segment_is_replayed_from_all_that_the_node_remembers(name, tmp_path):
    scenario, path = load(STORY.with_name(f"{name}.toml")), tmp_path / "n2.trace"
    with path.open("w") as file:
        recorder = Recorder(file, NodeId("n2"), inputs_max=1500, segment_inputs=37)
        run_in(ModelWorld(scenario.plan, 1, recorder=recorder), scenario)

    found = replay(path)

    assert found.difference is None
    assert found.segments > 20
