"""Tests of clusternode.core.membership.health."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clusternode.core.membership.health import (
    TRANSITIONS,
    Health,
    Signal,
    apply_left,
    apply_ping_answered,
    apply_ping_failed,
    apply_returned,
    diagram,
    next_health,
    table_markdown,
    transition_rows,
)
from clusternode.core.settings import HealthSettings
from clusternode.errors import LocalProtocolError

DEFAULTS = HealthSettings()
DMQ = HealthSettings(fail_count_enabled=False)


def fail(settings, times, *, state=Health.ACTIVE, is_protected=False):
    """The states after each of so many failed pings in a row."""
    states, count = [], 0
    for _ in range(times):
        state, count = apply_ping_failed(state, count, settings, is_protected=is_protected)
        states.append(state)
    return states


def test_by_default_one_failure_is_not_active_two_disabled_and_three_removed():
    assert fail(DEFAULTS, 4) == [
        Health.NOT_ACTIVE,
        Health.DISABLED,
        Health.REMOVED,
        Health.REMOVED,
    ]


def test_thresholds_are_strictly_greater_than():
    settings = HealthSettings(fail_count_threshold_not_active=1, fail_count_threshold_disabled=3)

    assert fail(settings, 5) == [
        Health.ACTIVE,
        Health.NOT_ACTIVE,
        Health.NOT_ACTIVE,
        Health.DISABLED,
        Health.REMOVED,
    ]


def test_one_failure_is_never_two_steps():
    settings = HealthSettings(fail_count_threshold_not_active=4, fail_count_threshold_disabled=0)

    assert fail(settings, 6)[4:] == [Health.NOT_ACTIVE, Health.DISABLED]


def test_without_fail_counts_one_failure_disables_and_the_next_removes():
    assert fail(DMQ, 2) == [Health.DISABLED, Health.REMOVED]
    assert fail(DMQ, 2, state=Health.NOT_ACTIVE) == [Health.DISABLED, Health.REMOVED]


def test_without_fail_counts_nothing_is_counted():
    assert apply_ping_failed(Health.ACTIVE, 0, DMQ, is_protected=False)[1] == 0


@pytest.mark.parametrize("settings", [DEFAULTS, DMQ])
def test_a_notification_address_stays_not_active(settings):
    assert fail(settings, 9, is_protected=True) == [Health.NOT_ACTIVE] * 9


@pytest.mark.parametrize("settings", [DEFAULTS, DMQ])
def test_nobody_is_removed_without_remove_inactive(settings):
    settings = attrs.evolve(settings, remove_inactive=False)

    assert fail(settings, 9) == [Health.NOT_ACTIVE] * 9


@pytest.mark.parametrize("settings", [DEFAULTS, DMQ])
def test_a_protected_member_that_an_operator_disabled_is_not_removed(settings):
    assert fail(settings, 2, state=Health.DISABLED, is_protected=True) == [Health.NOT_ACTIVE] * 2


@pytest.mark.parametrize("state", Health)
def test_whoever_answers_is_active(state):
    assert apply_ping_answered(state) is Health.ACTIVE


def test_failed_pings_of_a_member_that_left_change_nothing():
    assert apply_ping_failed(Health.LEFT, 7, DEFAULTS, is_protected=False) == (Health.LEFT, 7)


def test_a_member_that_leaves_has_left_unless_it_was_removed():
    assert [apply_left(state) for state in Health] == [Health.LEFT] * 4 + [Health.REMOVED]


def test_a_removed_or_left_member_that_returns_has_yet_to_answer():
    assert apply_returned(Health.REMOVED) is Health.NOT_ACTIVE
    assert apply_returned(Health.LEFT) is Health.NOT_ACTIVE


def test_every_state_has_a_row():
    assert list(TRANSITIONS) == list(Health)


@pytest.mark.parametrize(
    ("state", "signal"),
    [pair for pair in itertools.product(Health, Signal) if pair[1] not in TRANSITIONS[pair[0]]],
)
def test_absent_pairs_are_refused(state, signal):
    with pytest.raises(LocalProtocolError, match=f"{state.value} at {signal.name}"):
        next_health(state, signal)


def expected_after_failure(row):
    """What docs/node-health.md says of one failed ping, in the order in which it says it."""
    if row.state is Health.LEFT or row.state is Health.REMOVED:
        return row.state
    if row.is_protected:
        stays = row.state is Health.ACTIVE and row.fail_count_enabled
        return Health.ACTIVE if stays and not row.is_over_not_active else Health.NOT_ACTIVE
    if row.state is Health.DISABLED:
        return Health.REMOVED
    if not row.fail_count_enabled:
        return Health.DISABLED
    if row.state is Health.NOT_ACTIVE:
        return Health.DISABLED if row.is_over_disabled else Health.NOT_ACTIVE
    return Health.NOT_ACTIVE if row.is_over_not_active else Health.ACTIVE


def test_the_full_table_says_what_the_text_says():
    rows = list(transition_rows())

    assert len(rows) == len(Health) * 2**4
    assert [row.next_state for row in rows] == [expected_after_failure(row) for row in rows]


def test_the_diagram_has_an_arrow_for_every_change_of_state():
    drawn = diagram()

    for state, row in TRANSITIONS.items():
        for signal, after in row.items():
            arrow = f"    {state.value} --> {after.value}: {signal.value}"
            assert (arrow in drawn) == (state is not after)


def test_the_tables_have_a_line_for_every_state():
    lines = table_markdown().splitlines()

    for state in Health:
        assert sum(line.startswith(f"| `{state.value}` |") for line in lines) >= 5
    assert len({line.count("|") for line in lines[:7]}) == 1


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_unprotected_member_that_stays_silent_is_removed(not_active, disabled, enabled):
    settings = HealthSettings(
        fail_count_enabled=enabled,
        fail_count_threshold_not_active=not_active,
        fail_count_threshold_disabled=disabled,
    )

    states = fail(settings, not_active + disabled + 4)

    assert states[-1] is Health.REMOVED
    assert states == sorted(states, key=list(Health).index)


class HealthAgreesWithTheText(RuleBasedStateMachine):
    """The model: README 3.9 to 3.12 of DMQ and docs/node-health.md, in words and booleans."""

    @initialize(
        enabled=st.booleans(),
        remove=st.booleans(),
        seed=st.booleans(),
        not_active=st.integers(0, 3),
        disabled=st.integers(0, 4),
    )
    def begin(self, enabled, remove, seed, not_active, disabled):
        self.settings = HealthSettings(
            fail_count_enabled=enabled,
            remove_inactive=remove,
            fail_count_threshold_not_active=not_active,
            fail_count_threshold_disabled=disabled,
        )
        self.is_protected = seed
        self.state, self.count = Health.NOT_ACTIVE, 0
        self.word, self.failures = "not_active", 0

    @rule()
    def answer(self):
        self.state, self.count = apply_ping_answered(self.state), 0
        self.word, self.failures = "active", 0

    @rule()
    def fail(self):
        self.state, self.count = apply_ping_failed(
            self.state, self.count, self.settings, is_protected=self.is_protected
        )
        if self.word in ("left", "removed"):
            return
        if self.settings.fail_count_enabled:
            self.failures += 1
            self.word = self.word_after_counting()
        else:
            may_be_removed = self.settings.remove_inactive and not self.is_protected
            after = {"active": "disabled", "not_active": "disabled", "disabled": "removed"}
            self.word = after[self.word] if may_be_removed else "not_active"

    def word_after_counting(self):
        may_be_removed = self.settings.remove_inactive and not self.is_protected
        if self.word == "disabled":
            return "removed" if may_be_removed else "not_active"
        over_disabled = self.failures > self.settings.fail_count_threshold_disabled
        if self.word == "not_active" and over_disabled and may_be_removed:
            return "disabled"
        over_not_active = self.failures > self.settings.fail_count_threshold_not_active
        if self.word == "active" and over_not_active:
            return "not_active"
        return self.word

    @rule()
    def leave(self):
        self.state = apply_left(self.state)
        if self.word != "removed":
            self.word = "left"

    @rule()
    def an_operator_disables_it(self):
        if self.word in ("active", "not_active"):
            self.state, self.word = Health.DISABLED, "disabled"

    @rule()
    def it_returns(self):
        if self.word in ("left", "removed"):
            self.state = apply_returned(self.state)
            self.word = "not_active"
            self.failures = self.count = 0

    @invariant()
    def the_state_is_what_the_text_says(self):
        assert self.state.value == self.word
        assert self.count == self.failures

    @invariant()
    def a_protected_member_is_never_removed(self):
        if self.is_protected or not self.settings.remove_inactive:
            assert self.state is not Health.REMOVED


TestHealthAgreesWithTheText = HealthAgreesWithTheText.TestCase
