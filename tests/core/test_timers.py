"""Tests of clusternode.core.timers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.timers import STALE_ENTRIES_MIN, Timers


def test_keys_are_due_in_the_order_of_their_deadlines():
    timers = Timers()
    timers.set(("late",), 3.0)
    timers.set(("early",), 1.0)

    assert timers.pop_due(3.0) == [("early",), ("late",)]


def test_equal_deadlines_are_due_in_the_order_of_setting():
    timers = Timers()
    timers.set(("a",), 1.0)
    timers.set(("b",), 1.0)
    timers.set(("a",), 1.0)

    assert timers.pop_due(1.0) == [("b",), ("a",)]


def test_setting_again_replaces_the_deadline():
    timers = Timers()
    timers.set(("ping", "n1"), 1.0)
    timers.set(("ping", "n1"), 5.0)

    assert timers.next_deadline() == 5.0
    assert timers.deadline_of(("ping", "n1")) == 5.0
    assert timers.pop_due(4.9) == []
    assert timers.pop_due(5.0) == [("ping", "n1")]


def test_a_cancelled_key_is_never_due():
    timers = Timers()
    timers.set(("a",), 1.0)
    timers.cancel(("a",))
    timers.cancel(("never set",))

    assert timers.next_deadline() is None
    assert timers.deadline_of(("a",)) is None
    assert timers.pop_due(9.0) == []


def test_a_due_key_is_taken_out():
    timers = Timers()
    timers.set(("a",), 1.0)

    assert ("a",) in timers
    assert timers.pop_due(1.0) == [("a",)]
    assert ("a",) not in timers
    assert timers.pop_due(1.0) == []


def test_stale_entries_do_not_pile_up():
    timers = Timers()
    for number in range(10_000):
        timers.set(("moving",), 1000.0 + number)
        timers.set(("gone", number), 500.0)
        timers.cancel(("gone", number))

    assert len(timers) == 1
    assert len(timers._heap) <= 2 * len(timers) + STALE_ENTRIES_MIN


keys = st.tuples(st.sampled_from("abcd"))
actions = st.one_of(
    st.tuples(st.just("set"), keys, st.integers(0, 20)),
    st.tuples(st.just("cancel"), keys, st.just(0)),
    st.tuples(st.just("pop"), st.none(), st.integers(0, 20)),
)


@given(st.lists(actions, max_size=200))
def test_timers_agree_with_a_sorted_list(history):
    timers = Timers()
    model: dict = {}  # key → (deadline, order)
    for order, (action, key, at) in enumerate(history):
        if action == "set":
            timers.set(key, float(at))
            model[key] = (float(at), order)
        elif action == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            due = sorted((entry, key) for key, entry in model.items() if entry[0] <= at)
            assert timers.pop_due(float(at)) == [key for _, key in due]
            for _, key in due:
                del model[key]
        assert len(timers) == len(model)
        assert timers.next_deadline() == min((at for at, _ in model.values()), default=None)
