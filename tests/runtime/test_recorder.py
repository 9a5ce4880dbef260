"""Recording a whole agent, and stepping its node again."""

from __future__ import annotations

import json
import random

import pytest
import trio

from clusternode.core.events import RecordingNotWritten
from clusternode.core.inputs import TimePassed
from clusternode.core.settings import HealthSettings, NodeSettings
from clusternode.core.types import Address, Incarnation, NodeId, ResultCode
from clusternode.recording.trace import replay
from clusternode.runtime import recorder
from clusternode.runtime.recorder import (
    RETRY_INTERVAL,
    SEGMENTS,
    RecordedNode,
    Recording,
)
from clusternode.testing.fakes import NotingReceiver
from tests.agents import cluster_of, eventually

HEALTH = HealthSettings(ping_interval=1.0, ping_timeout=0.5)


def settings_of(secret: bytes = b"") -> NodeSettings:
    return NodeSettings(
        node_id=NodeId("n1"),
        cluster="voip/one",
        incarnation=Incarnation(1),
        address=Address.parse("tcp://10.0.0.1:5062"),
        nonce=secret,
    )


def recorded(directory, size_max=1 << 20):
    recording = Recording(directory, settings_of(), size_max)
    return RecordedNode(settings_of(), 1.0, random.Random(1), recording)


async def test_what_three_agents_were_told_under_load_gives_the_same_effects_again(
    autojump_clock, tmp_path
):
    async with cluster_of(3, health=HEALTH, record_dir=tmp_path) as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        for node in (n1, n2):
            node.bus.attach(NotingReceiver())
            node.bus.set_channels(["news"])
        for number in range(300):
            n1.bus.broadcast("news", b"%d" % number)
            n2.bus.broadcast("news", b"%d" % number)
            if number == 150:
                await cluster.nodes.pop("n3").kill()
            await trio.sleep(0.01)
        await eventually(lambda: "n3" not in n2.statuses())
        counters = n2.bus.snapshot().counters

    found = replay(tmp_path)

    assert found.difference is None
    assert found.segments == 3
    assert found.inputs > 1000
    assert not found.is_cut
    assert counters["recording_inputs"] > 300
    assert counters["recording_inputs_lost"] == 0


def test_the_ring_keeps_the_newest_segments_each_of_which_is_replayed_alone(tmp_path):
    node = recorded(tmp_path / "new", size_max=400_000)
    for number in range(5000):
        node.step(1.0 + number, TimePassed())
        node.recording.flush()

    files = sorted((tmp_path / "new").iterdir())
    assert len(files) == SEGMENTS
    assert files[0].name > "voip_one-n1-00000002"
    assert sum(file.stat().st_size for file in files) < 500_000
    assert [replay(file).segments for file in files] == [1] * SEGMENTS
    assert replay(tmp_path / "new").inputs > 100


async def test_a_disk_that_cannot_be_written_is_said_once_and_stops_nothing(
    autojump_clock, tmp_path
):
    place = tmp_path / "taken"
    place.write_text("no directory")
    node = recorded(place)
    events: list[object] = []
    for _ in range(2):
        await node.recording.write_waiting(events.append)
        node.step(trio.current_time(), TimePassed())  # not written: the disk has its respite
        await trio.sleep(RETRY_INTERVAL)
        node.step(trio.current_time(), TimePassed())
    place.unlink()

    await node.recording.write_waiting(events.append)

    assert [type(event) for event in events] == [RecordingNotWritten]
    assert node.recording.counters["recording_writes_failed"] == 2
    assert node.recording.counters["recording_inputs_lost"] == 2
    assert replay(place).inputs == 1


def test_lines_that_wait_for_a_slow_disk_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "WAITING_BYTES_MAX", 20_000)
    node = recorded(tmp_path)
    for number in range(500):
        node.step(2.0 + number, TimePassed())
    assert node.recording.counters["recording_inputs_lost"] > 100
    node.recording.flush()

    node.step(600.0, TimePassed())
    node.recording.flush()

    found = replay(tmp_path)
    assert (found.segments, found.difference) == (2, None)


def test_a_step_that_raises_is_on_disk_when_the_agent_ends(tmp_path):
    node = recorded(tmp_path)

    with pytest.raises(KeyError):
        node.step(2.0, "no input")  # as a bug in the core would

    (file,) = tmp_path.iterdir()
    last = json.loads(file.read_text().splitlines()[-1])
    assert (last["input"], last["effects"]) == ("no input", None)


def test_only_the_owner_may_read_a_recording(tmp_path):
    node = recorded(tmp_path)
    node.recording.flush()

    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_secret_is_not_in_a_recording(autojump_clock, tmp_path):
    secret = "correct horse battery staple"
    async with cluster_of(2, secret=[secret], record_dir=tmp_path) as cluster:
        result = await cluster.nodes["n1"].bus.send("news", "n2", b"x")
        assert result == {"n2": ResultCode.NOT_FOUND}

    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert not any(secret in file.read_text() for file in files)
