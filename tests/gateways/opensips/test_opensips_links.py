"""The table of link states, row by row, and the clock of one link."""

from __future__ import annotations

import attrs
import pytest

from clusternode.gateways.opensips.links import (
    TRANSITIONS,
    Action,
    Links,
    Signal,
    State,
    Timing,
)

TIMING = Timing(ping_interval=4.0, ping_timeout=1.0, node_timeout=60.0)


@attrs.define
class Watched:
    """The links of a node to one other, number 2, and what they ask for."""

    retries: int = 3
    pings: list[bool] = attrs.Factory(list)
    changes: list[bool] = attrs.Factory(list)
    links: Links = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.links = Links(
            TIMING,
            lambda _, wants: self.pings.append(wants),
            lambda _, is_up: self.changes.append(is_up),
        )
        self.links.add(0.0, 2, self.retries)

    def state(self) -> State:
        link = self.links.get(2)
        assert link is not None
        return link.state

    def until(self, now: float) -> None:
        while (deadline := self.links.next_deadline()) is not None and deadline <= now:
            self.links.tick(deadline)


def test_every_state_has_a_row_and_every_row_ends_in_a_state():
    assert set(TRANSITIONS) == set(State)
    for row in TRANSITIONS.values():
        assert all(isinstance(action, Action) for action, _ in row.values())
        assert all(state in TRANSITIONS for _, state in row.values())


def test_a_probing_state_comes_up_with_a_pong_and_no_other_way():
    for state, row in TRANSITIONS.items():
        for signal, (_, after) in row.items():
            is_probing = state not in (State.UP, State.DOWN)
            assert (after is State.UP) == (
                (is_probing and signal is Signal.PONG)
                or (state is State.UP and signal in (Signal.DUE, Signal.CLOSED))
            )


def test_a_new_node_is_pinged_at_once_and_up_with_its_pong():
    watched = Watched()
    assert watched.pings == [True] and watched.state() is State.RESTARTED

    watched.links.ponged(0.2, 2)

    assert watched.state() is State.UP and watched.changes == [True]
    link = watched.links.get(2)
    assert link is not None and link.round_trip == pytest.approx(0.2)


def test_an_up_node_that_says_nothing_is_pinged_each_interval_without_asking_for_ids():
    watched = Watched()
    watched.links.ponged(0.2, 2)

    watched.until(4.1)
    watched.links.ponged(4.1, 2)
    watched.until(8.1)

    assert watched.pings == [True, False, False] and watched.changes == [True]


def test_the_first_missed_pong_ends_up_and_the_retries_end_in_down_and_a_pause():
    watched = Watched(retries=2)
    watched.links.ponged(0.2, 2)

    watched.until(4.5)
    assert watched.state() is State.UP
    watched.until(5.2)
    assert watched.state() is State.RETRYING and watched.changes == [True, False]
    watched.until(7.9)
    assert watched.state() is State.DOWN and watched.pings == [True, False, True, True]
    watched.until(60.0)
    assert len(watched.pings) == 4
    watched.until(66.2)  # node_timeout after the last ping
    assert watched.pings[4:] and watched.state() is State.RESTARTED


def test_without_retries_one_missed_pong_is_down():
    watched = Watched(retries=0)
    watched.until(1.0)
    assert watched.state() is State.DOWN and watched.pings == [True]


def test_traffic_both_ways_stands_for_pings_and_one_way_does_not():
    watched = Watched()
    watched.links.ponged(0.0, 2)
    for second in range(1, 40):
        watched.links.sent(float(second), 2)
        watched.links.heard(float(second), 2)
        watched.until(float(second))
    assert watched.pings == [True]

    for second in range(40, 50):
        watched.links.sent(float(second), 2)
        watched.until(float(second))

    assert watched.state() is not State.UP


def test_a_late_pong_counts_only_while_other_packets_come():
    watched = Watched()
    watched.until(4.0)  # all retries are used up
    assert watched.state() is State.DOWN

    alone, helped = Watched(), Watched()
    alone.links.ponged(1.5, 2)
    helped.links.heard(1.2, 2)
    helped.links.ponged(1.5, 2)

    assert alone.state() is State.RESTARTED and helped.state() is State.UP


def test_a_send_that_fails_probes_at_once_and_then_after_each_timeout():
    watched = Watched(retries=1)
    watched.links.ponged(0.1, 2)

    watched.links.failed(2.0, 2)
    assert watched.state() is State.RESTARTED and watched.changes == [True, False]
    watched.links.failed(2.0, 2)
    assert watched.state() is State.RETRY_SEND_FAIL
    watched.until(3.0)
    assert watched.state() is State.RETRYING
    watched.links.failed(3.0, 2)
    assert watched.state() is State.DOWN


def test_a_closed_connection_is_answered_with_one_ping_however_often_it_closes():
    watched = Watched()
    watched.links.ponged(0.1, 2)

    for hundredth in range(200, 290):
        watched.links.closed(hundredth / 100, 2)

    assert watched.pings == [True, False] and watched.state() is State.UP


@pytest.mark.parametrize("signal", [Signal.HEARD, Signal.SAYS_UP, Signal.PINGED])
def test_a_node_that_is_down_and_speaks_is_probed_at_once(signal):
    watched = Watched(retries=0)
    watched.until(1.0)

    watched.links.signal(5.0, 2, signal)

    assert watched.state() is State.RESTARTED and watched.pings == [True, True]


def test_an_up_node_that_says_our_link_is_down_is_probed():
    watched = Watched()
    watched.links.ponged(0.1, 2)
    watched.links.signal(2.0, 2, Signal.SAYS_DOWN)
    assert watched.state() is State.RESTARTED and watched.changes == [True, False]


def test_a_silenced_node_is_down_and_left_alone_until_it_may_speak_again():
    watched = Watched()
    watched.links.ponged(0.1, 2)

    watched.links.silence(1.0, 2)
    watched.links.heard(2.0, 2)
    watched.links.ponged(2.0, 2)

    assert watched.state() is State.DOWN and watched.changes == [True, False]
    assert watched.links.next_deadline() is None
    watched.links.restart(3.0, 2)
    assert watched.state() is State.RESTARTED
