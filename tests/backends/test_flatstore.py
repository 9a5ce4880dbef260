"""`flatstore:`: what is written comes back, files end when they should, nothing is torn."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.backends.flatstore_file import FileSettings, FlatFile
from clusternode.backends.flatstore_format import LineFormat, Record, read_file, read_lines
from clusternode.backends.options import encode
from clusternode.core.events import Custom
from clusternode.errors import PeerUnreachable
from clusternode.routes.events import EventView
from clusternode.routes.views import as_text
from clusternode.testing.backends import backend_world

TEXT = st.text(st.characters(exclude_categories=[]), max_size=20) | st.text(
    "\\,;|\n\r\0N-", max_size=8
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=4
)
NAMES = st.from_regex(r"\A[A-Za-z0-9._:-]{1,20}\Z")
DELIMITERS = st.sampled_from([",", ";", "|", "\t", ", ", "||", ",a", "é"])


def event_of(name: str, values: list[object] | dict[str, object]) -> EventView:
    if isinstance(values, dict):
        return EventView.of(Custom(name, values))
    named = {str(number): value for number, value in enumerate(values, 1)}
    return EventView.of(Custom(name, named, is_positional=True))


def notification_of(event: EventView) -> bytes:
    return json.dumps(event.notification()).encode()


@given(
    st.lists(st.tuples(NAMES, st.lists(VALUES, max_size=4)), max_size=5),
    DELIMITERS,
    st.booleans(),
)
def test_values_come_back_exactly(events, delimiter, suppressed):
    form = LineFormat(delimiter=delimiter, suppress_event_name=suppressed)
    views = [event_of(name, values) for name, values in events]

    data = b"".join(form.line(view, notification_of(view)) for view in views)
    records = list(read_lines(data.splitlines(keepends=True), form))

    assert records == [
        Record(
            "" if suppressed else name,
            tuple(None if value is None else as_text(value) for value in values),
        )
        for name, values in events
    ]


@given(st.lists(st.tuples(NAMES, st.dictionaries(TEXT, VALUES, max_size=4)), max_size=5))
def test_json_comes_back_with_names_and_types(events):
    form = LineFormat(is_json=True)
    views = [event_of(name, values) for name, values in events]

    data = b"".join(form.line(view, notification_of(view)) for view in views)
    records = list(read_lines(data.splitlines(keepends=True), form))

    assert records == [
        Record(name, tuple(values.values()), tuple(values)) for name, values in events
    ]


@given(st.binary(max_size=60), st.booleans(), DELIMITERS)
def test_any_line_is_read_or_refused(line, is_json, delimiter):
    form = LineFormat(is_json=is_json, delimiter=delimiter)

    try:
        record = form.read(line)
    except ValueError:
        return
    assert isinstance(record, Record)


def test_the_lines_are_those_of_opensips():
    view = event_of("E_PAR", {"num": 42, "body": "msg", "empty": "", "user": "a"})

    assert LineFormat().line(view, b"") == b"E_PAR,42,msg,,a\n"
    comma = event_of("E_PAR", {"body": "a,b"})
    assert LineFormat().line(comma, b"") == b"E_PAR,a\\,b\n"
    assert LineFormat(escape_delimiter=" ").line(comma, b"") == b"E_PAR,a b\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines(*numbers: int) -> list[bytes]:
    return [b"E,%d\n" % number for number in numbers]


def test_a_file_ends_after_so_many_lines(tmp_path, clock):
    path = tmp_path / "ev"
    file = FlatFile(FileSettings(path=str(path), rotate_count=3), clock)

    assert file.write(lines(*range(7))) == 7
    file.close()

    assert path.read_bytes() == b"E,6\n"
    assert (tmp_path / "ev.20010909-014640").read_bytes() == b"E,0\nE,1\nE,2\n"
    assert (tmp_path / "ev.20010909-014640.1").read_bytes() == b"E,3\nE,4\nE,5\n"
    assert [(each.reason, each.filename) for each in file.rotations] == [("count", str(path))] * 2


def test_lines_of_a_former_run_count(tmp_path, clock):
    path = tmp_path / "ev"
    path.write_bytes(b"E,0\nE,1\n")
    file = FlatFile(FileSettings(path=str(path), rotate_count=3), clock)

    file.write(lines(2, 3))
    file.close()

    assert path.read_bytes() == b"E,3\n"


def test_a_file_ends_when_it_has_its_size_and_no_line_is_split(tmp_path, clock):
    path = tmp_path / "ev"
    file = FlatFile(FileSettings(path=str(path), rotate_size=10, suffix=".%H%M"), clock)

    file.write(lines(*range(6)))
    file.close()

    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["ev.0146", "ev.0146.1", "ev.0146.2"]
    assert (tmp_path / "ev.0146").read_bytes() == b"E,0\nE,1\nE,2\n"
    assert [each.old_filename for each in file.rotations] == [
        str(tmp_path / "ev.0146"),
        str(tmp_path / "ev.0146.1"),
    ]


def test_a_file_ends_with_its_period(tmp_path, clock):
    path = tmp_path / "ev"
    file = FlatFile(FileSettings(path=str(path), rotate_period=3600, suffix=".%H"), clock)

    file.write(lines(0))
    clock.now += 600
    file.write(lines(1))
    clock.now += 600
    file.write(lines(2))
    file.close()

    assert (tmp_path / "ev.01").read_bytes() == b"E,0\nE,1\n"
    assert (tmp_path / "ev.02").read_bytes() == b"E,2\n"
    (rotation,) = file.rotations
    assert (rotation.reason, rotation.timestamp) == ("period", 1_000_001_200)


def test_a_period_ends_also_when_nothing_is_written(tmp_path, clock):
    file = FlatFile(FileSettings(path=str(tmp_path / "ev"), rotate_period=60), clock)
    file.rotate_if_due()
    file.write(lines(0))

    file.rotate_if_due()
    assert not file.rotations
    clock.now += 60
    file.rotate_if_due()
    file.rotate_if_due()
    file.close()

    assert [each.reason for each in file.rotations] == ["period"]
    assert (tmp_path / "ev").read_bytes() == b""


async def test_a_file_ends_with_its_second_while_nothing_is_raised(tmp_path):
    async with backend_world() as world:
        world.subscribe("E_TEST", f"flatstore:{tmp_path}/ev?rotate_period=1")
        async with world.hub.expect("flatstore:rotation") as waiter:
            await world.deliver("E_TEST", [1])
            rotation = await waiter.get(timeout=10.0)

    (old,) = [path for path in tmp_path.iterdir() if path.name != "ev"]
    assert rotation.parameters["old_filename"] == str(old)
    assert old.read_bytes() == b"E_TEST,1\n"


def test_a_line_that_a_crash_tore_off_is_passed_over(tmp_path, clock):
    path = tmp_path / "ev"
    path.write_bytes(b"E,0\nE,torn\\")
    file = FlatFile(FileSettings(path=str(path)), clock)

    file.write(lines(1))
    file.close()

    assert [record.values for record in read_file(path)] == [("0",), ("1",)]


def test_one_process_writes_a_file_at_a_time(tmp_path, clock):
    settings = FileSettings(path=str(tmp_path / "ev"))
    first, second = FlatFile(settings, clock), FlatFile(settings, clock)
    first.write(lines(0))

    with pytest.raises(PeerUnreachable, match="another back end or process"):
        second.write(lines(1))
    first.close()

    assert second.write(lines(1)) == 1
    second.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_is_a_failure(clock):
    file = FlatFile(FileSettings(path="/dev/full"), clock)

    with pytest.raises(PeerUnreachable, match="No space left"):
        file.write(lines(0))


def test_permissions_are_those_of_the_option(tmp_path, clock):
    before = os.umask(0o022)
    try:
        file = FlatFile(FileSettings(path=str(tmp_path / "ev"), permissions=0o640), clock)
        file.write(lines(0))
        file.close()
    finally:
        os.umask(before)

    assert (tmp_path / "ev").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("policy", ["never", "close", "always"])
async def test_every_policy_of_fsync_delivers(tmp_path, policy):
    async with backend_world() as world:
        world.subscribe("E_TEST", f"flatstore:{tmp_path}/ev?fsync={policy}")
        (status,) = await world.deliver("E_TEST", [1])

    assert status.status.ok
    assert (tmp_path / "ev").read_bytes() == b"E_TEST,1\n"


async def test_a_rotation_is_an_event_but_not_in_its_own_file(tmp_path):
    rotations = []
    async with backend_world() as world:
        world.hub.on_event("flatstore:rotation", lambda bus, view: rotations.append(view))
        world.subscribe("*", f"flatstore:{tmp_path}/ev?rotate_count=2")
        world.subscribe("E_FLATSTORE_ROTATION", f"flatstore:{tmp_path}/rotations")
        for number in range(4):
            world.hub.raise_event("E_TEST", [number])
        await world.subscriptions.drain()

    assert [view.parameters["reason"] for view in rotations] == ["count"] * 2
    assert rotations[0].parameters["filename"] == str(tmp_path / "ev")
    assert len(list(read_file(tmp_path / "rotations"))) == 2
    assert (tmp_path / "ev").read_bytes() == b""


async def test_events_of_several_subscriptions_share_a_file(tmp_path):
    uri = f"flatstore:{encode(str(tmp_path / 'two words?'))}?delimiter=%3B"
    async with backend_world() as world:
        world.subscribe("E_A", uri)
        world.subscribe("E_B", uri)
        await world.deliver("E_A", [1, 2])
        await world.deliver("E_B", [math.pi])

    assert (tmp_path / "two words?").read_text() == f"E_A;1;2\nE_B;{math.pi}\n"


async def test_a_file_can_be_subscribed_again_at_once(tmp_path):
    uri = f"flatstore:{tmp_path}/ev"
    async with backend_world() as world:
        for number in range(5):
            world.subscribe("E_TEST", uri)
            (status,) = await world.deliver("E_TEST", [number])
            assert status.status.ok, status
            world.hub.unsubscribe_event("E_TEST", uri)

    assert (tmp_path / "ev").read_text().count("\n") == 5


async def test_a_directory_that_is_made_later_is_found(tmp_path):
    async with backend_world() as world:
        world.subscribe("E_TEST", f"flatstore:{tmp_path}/later/ev")
        (before,) = await world.deliver("E_TEST", [1])
        (tmp_path / "later").mkdir()
        (after,) = await world.deliver("E_TEST", [2])

    assert "No such file or directory" in before.status.detail
    assert after.status.ok
