"""A ping on a slow connection: what moves excuses it, for as long as bytes may lie in its way."""

from __future__ import annotations

from clusternode.core.inputs import Measured
from clusternode.core.membership.passage import BEFORE_PONG_BYTES, RATE_MIN, Passage
from clusternode.core.types import ConnectionId

FRAME_MAX = 1_000_000
PING_TIMEOUT = 2.0


class Watch:
    """Looks once a second at a connection whose figures the test sets."""

    def __init__(self) -> None:
        self.passage = Passage()
        self.now = 100.0
        self.arrived = self.waiting = self.received = 0
        self.connection = ConnectionId(1)
        self.round_trip = self.retransmission_timeout = 0.0

    def look(self, *, is_written: bool = True) -> bool:
        self.now += 1.0
        seen = Measured(
            self.connection,
            self.arrived,
            self.waiting,
            self.received,
            0,
            self.round_trip,
            self.retransmission_timeout,
        )
        return self.passage.look(
            seen,
            self.now,
            is_written=is_written,
            frame_bytes_max=FRAME_MAX,
            ping_timeout=PING_TIMEOUT,
        )


def test_where_nothing_moves_nothing_is_excused():
    watch = Watch()
    watch.waiting = 50_000

    assert not watch.look()
    assert not watch.look()


def test_a_ping_behind_bytes_that_move_is_on_its_way_until_they_have_arrived():
    watch = Watch()
    watch.waiting = 3000
    watch.look()
    looks = []
    for _ in range(5):
        watch.arrived += 1000
        looks.append(watch.look())

    # What arrives after the ping has is no excuse any more.
    assert looks == [True, True, True, False, False]


def test_a_ping_that_is_not_written_yet_waits_for_the_frame_that_is():
    watch = Watch()
    watch.waiting = 100_000
    watch.look(is_written=False)
    for _ in range(3):
        watch.arrived += 10_000
        watch.waiting -= 10_000
        assert watch.look(is_written=False)

    assert not watch.look(is_written=False)


def test_what_comes_in_may_be_before_the_pong_up_to_a_frame_and_what_buffers_hold():
    watch = Watch()
    watch.look()
    seconds = 0
    while seconds < 1000:
        watch.received += 100_000
        if not watch.look():
            break
        seconds += 1

    assert seconds == (FRAME_MAX + BEFORE_PONG_BYTES) // 100_000 + 1


def test_the_pong_is_waited_for_from_when_the_ping_got_there():
    watch = Watch()
    watch.waiting = 2_000_000
    watch.look()
    for _ in range(20):
        watch.arrived += 100_000
        watch.received += 100_000
        assert watch.look()
    for _ in range(10):
        watch.received += 100_000
        assert watch.look()


def test_what_comes_in_drop_by_drop_stands_still():
    watch = Watch()
    watch.look()
    watch.received += RATE_MIN - 1

    assert not watch.look()


def test_another_connection_begins_anew():
    watch = Watch()
    watch.received = watch.arrived = 10_000
    watch.look()
    watch.connection = ConnectionId(2)
    watch.received = watch.arrived = 90_000

    assert not watch.look()
    watch.received += 5000
    assert watch.look()


def test_another_ping_on_the_same_connection_has_its_own_bytes_before_it():
    watch = Watch()
    watch.look()
    watch.passage.begin()
    watch.waiting = 2000
    watch.look()
    watch.arrived, watch.waiting = 1000, 1000

    assert watch.look()


def test_on_a_slow_connection_a_lost_packet_is_waited_for():
    watch = Watch()
    watch.waiting = 50_000
    watch.round_trip, watch.retransmission_timeout = 1.0, 3.0
    looks = [watch.look() for _ in range(8)]

    assert looks == [True] * 6 + [False] * 2
    watch.arrived += 1
    assert watch.look()


def test_on_a_quick_connection_a_lost_packet_is_not_waited_for():
    watch = Watch()
    watch.waiting = 50_000
    watch.round_trip, watch.retransmission_timeout = 0.5, 3.0

    assert not watch.look()
