import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.effects import Persist
from clusternode.core.inputs import KnownMember
from clusternode.core.types import Address, Incarnation, NodeId
from clusternode.errors import StateError
from clusternode.runtime.machine import begin_life
from clusternode.runtime.state import (
    Remembered,
    StateDirectory,
    StateKeeper,
    decode_state,
    encode_state,
    milliseconds_since_1970,
    new_incarnation,
)
from clusternode.testing.fakes import FakeResolver

MEMBERS = (
    KnownMember(NodeId("n1"), Address.parse("tcp://192.0.2.1:5062"), 3.0),
    KnownMember(NodeId("n2"), Address.parse("tcp://[2001:db8::1]:5062"), 0.0),
)
REMEMBERED = Remembered(Incarnation(7), MEMBERS)


@pytest.fixture
def directory(tmp_path):
    directory = StateDirectory(tmp_path / "state")
    yield directory
    directory.close()


def test_what_is_saved_is_loaded(directory):
    directory.save("voip", REMEMBERED)

    loaded = directory.load("voip")

    assert loaded.incarnation == 7
    assert [member.address for member in loaded.members] == [member.address for member in MEMBERS]
    assert directory.load("other") == Remembered()


def test_the_time_between_two_lives_counts_as_silence():
    data = encode_state(REMEMBERED, now_ms=1_000_000)

    loaded = decode_state(data, now_ms=1_060_000)

    assert [member.silent_for for member in loaded.members] == [63.0, 60.0]


def test_a_clock_that_was_set_back_does_not_shorten_the_silence():
    data = encode_state(REMEMBERED, now_ms=1_000_000)

    assert decode_state(data, now_ms=0).members == MEMBERS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"format": 2}',
        b'{"format": 1, "written_at_ms": 0, "incarnation": -1, "members": []}',
        b'{"format": 1, "written_at_ms": 0, "incarnation": 9223372036854775807, "members": []}',
        b'{"format": 1, "written_at_ms": 0, "incarnation": 1, "members": [{"node_id": "a b"}]}',
        b'{"format": 1, "written_at_ms": "x", "incarnation": 1, "members": []}',
    ],
)
def test_a_corrupt_file_is_set_aside_with_a_warning(directory, caplog, content):
    file = directory.path / "cluster-voip.json"
    file.write_bytes(content)

    assert directory.load("voip") == Remembered()

    assert not file.exists()
    [aside] = directory.path.glob("cluster-voip.json.corrupt-*")
    assert aside.read_bytes() == content
    assert aside.name in caplog.text


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format", "written_at_ms", "incarnation", "members", "node_id"]),
                inner,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_arbitrary_content_is_a_value_error_or_a_state(data):
    with contextlib.suppress(ValueError):
        decode_state(data, 0)


def test_a_second_process_is_refused_and_told_who_is_there(directory):
    with pytest.raises(StateError, match=f"process {os.getpid()}"):
        StateDirectory(directory.path)


def test_a_directory_is_free_again_when_its_process_has_ended(tmp_path):
    StateDirectory(tmp_path).close()

    StateDirectory(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_a_state_error(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(StateError, match="state directory"):
        StateDirectory(tmp_path / "file" / "state")


def test_an_incarnation_is_larger_than_the_stored_one_even_when_the_clock_is_wrong():
    ordinary = new_incarnation(Incarnation(0), milliseconds_since_1970(), 17)
    future = Incarnation(ordinary << 2)

    assert new_incarnation(ordinary, 0, 17) > ordinary
    assert new_incarnation(future, milliseconds_since_1970(), 17) == future + 1


async def test_the_newest_state_replaces_those_that_wait(directory):
    keeper = StateKeeper(directory, "voip")

    assert keeper.offer(Persist(Incarnation(1), ()))
    assert keeper.offer(Persist(Incarnation(2), MEMBERS))
    assert await keeper.write() is None

    assert directory.load("voip").incarnation == 2


async def test_a_state_that_cannot_be_written_is_reported(directory):
    keeper = StateKeeper(directory, "voip")
    (directory.path / "cluster-voip.json.tmp").mkdir()

    keeper.offer(Persist(Incarnation(1), ()))
    error = await keeper.write()

    assert error is not None
    assert str(directory.path) in error


class FullDisk:
    """A machine whose disk can be read, and not written."""

    resolver = FakeResolver()

    def wall_clock_ms(self):
        return 1_700_000_000_000

    def random_bits(self, count):
        return 17

    async def open_state(self, path):
        return self

    async def read(self, cluster):
        return Remembered(Incarnation(5))

    async def write(self, cluster, remembered):
        raise StateError("no space left on device")

    def close(self):
        pass


async def test_a_full_disk_keeps_nobody_from_starting(caplog):
    machine = FullDisk()

    remembered = await begin_life(machine, machine, "voip")

    assert remembered.incarnation == 1_700_000_000_000 << 20 | 17
    assert "no space left on device" in caplog.text
