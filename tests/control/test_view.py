"""Views of other nodes: written by one, read by another that trusts nothing."""

from __future__ import annotations

import json

import attrs
from hypothesis import given
from hypothesis import strategies as st

from clusternode.control.view import answer_view, read_view_untrusted, view_of
from tests.fakes.bus import FakeBus


@attrs.define
class FakeRequest:
    bus: FakeBus
    bodies: list = attrs.Factory(list)

    async def reply(self, body):
        self.bodies.append(body)


async def test_a_view_survives_the_way():
    request = FakeRequest(FakeBus())

    await answer_view(request)

    view = read_view_untrusted(request.bodies[0])
    assert view is not None
    digest, rows = view
    assert digest == "00000000000000ff"
    assert rows["n3"] == {
        "status": "not_active",
        "link": "direct",
        "round_trip_ms": 1.5,
        "fail_count": 2,
    }


def test_what_a_later_version_appends_is_passed_over():
    view = json.loads(view_of(FakeBus()))
    view["members"][0].append("later")

    assert read_view_untrusted(json.dumps(view).encode()) is not None


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
rows = st.lists(numbers | st.lists(numbers, max_size=6), max_size=4)
views = st.fixed_dictionaries({"digest": st.just("a"), "members": rows})


@given(st.binary(max_size=60) | (views | rows).map(lambda view: json.dumps(view).encode()))
def test_any_bytes_are_a_view_or_none(body):
    view = read_view_untrusted(body)

    assert view is None or isinstance(view[1], dict)


def test_hostile_nesting_is_no_view():
    assert read_view_untrusted(b"[" * 100_000) is None
    row = b'["n","active","direct",' + b"9" * 999 + b",0]"
    assert read_view_untrusted(b'{"digest":"a","members":[' + row + b"]}") is None
