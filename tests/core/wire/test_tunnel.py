"""A tunnel over a way that loses, repeats and reorders: the same bytes, in order and once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusternode.core.wire.limits import SEGMENT_BYTES_MAX
from clusternode.core.wire.messages import Segment
from clusternode.core.wire.tunnel import RESEND_DELAY_MAX, WINDOW_MAX, Tunnel


def pair() -> tuple[Tunnel, Tunnel]:
    return Tunnel(1, 1.0), Tunnel(1, 1.0)


def deliver(segments: list[Segment], to: Tunnel) -> bytes:
    taken = [to.receive_untrusted(segment) for segment in segments]
    return b"".join(one[0] for one in taken if one is not None)


def test_what_is_written_arrives_and_is_acknowledged():
    here, there = pair()
    here.write(b"hello")

    assert deliver(here.segments(), there) == b"hello"
    assert here.waiting_bytes == 5
    deliver(there.segments(), here)
    assert here.waiting_bytes == 0


def test_an_acknowledgement_rides_on_data_or_goes_alone():
    here, there = pair()
    here.write(b"question")
    deliver(here.segments(), there)
    there.write(b"answer")

    assert there.segments() == [Segment(1, 8, 0, b"answer")]
    assert there.segments() == []


def test_the_window_begins_with_one_segment_and_opens_with_each_acknowledgement():
    here, there = pair()
    here.write(bytes(10 * WINDOW_MAX))
    sizes = []
    for _ in range(6):
        segments = here.segments()
        sizes.append(sum(len(segment.data) for segment in segments))
        deliver(segments, there)
        deliver(there.segments(), here)

    assert sizes[0] == SEGMENT_BYTES_MAX
    assert sizes == sorted(sizes)
    assert sizes[-1] == WINDOW_MAX


def test_what_came_too_early_or_twice_is_not_taken():
    here, there = pair()
    here.write(bytes(SEGMENT_BYTES_MAX))
    deliver(here.segments(), there)
    deliver(there.segments(), here)
    here.write(b"a" * SEGMENT_BYTES_MAX + b"b")
    first, second = here.segments()

    assert deliver([second], there) == b""
    assert deliver([first, first, second, second], there) == first.data + second.data


def test_nothing_acknowledged_is_sent_again_and_waited_for_longer_each_time():
    here, _ = pair()
    here.write(b"lost")
    first = here.segments()
    waits = []
    for _ in range(8):
        here.timed_out()
        waits.append(here.resend_delay)
        assert here.segments() == first

    assert waits[:3] == [2.0, 4.0, 8.0]
    assert waits[-1] == RESEND_DELAY_MAX


def test_an_acknowledgement_of_what_was_never_written_is_refused():
    here, _ = pair()
    here.write(b"1234")
    here.segments()

    assert here.receive_untrusted(Segment(1, 5, 0)) is None


@given(st.data())
def test_both_directions_arrive_whole_whatever_happens_on_the_way(data):
    ends = pair()
    written = [bytearray(), bytearray()]
    arrived = [bytearray(), bytearray()]
    on_the_way: list[tuple[int, Segment]] = []  # (to which end, segment)
    for _ in range(data.draw(st.integers(0, 40))):
        end = data.draw(st.integers(0, 1))
        match data.draw(st.sampled_from(["write", "send", "arrive", "twice", "lose", "go back"])):
            case "write":
                block = bytes([data.draw(st.integers(0, 255))]) * data.draw(st.integers(1, 40_000))
                ends[end].write(block)
                written[end] += block
            case "send":
                on_the_way += [(1 - end, segment) for segment in ends[end].segments()]
            case "go back":
                ends[end].timed_out()
            case what if on_the_way:
                index = data.draw(st.integers(0, len(on_the_way) - 1))
                to, segment = on_the_way[index]
                if what != "twice":
                    del on_the_way[index]
                if what != "lose":
                    taken = ends[to].receive_untrusted(segment)
                    assert taken is not None
                    arrived[to] += taken[0]
    for _ in range(200):  # then the way is good again
        for end in (0, 1):
            ends[end].go_back()
            arrived[1 - end] += deliver(ends[end].segments(), ends[1 - end])

    assert arrived == [written[1], written[0]]
    assert ends[0].waiting_bytes == ends[1].waiting_bytes == 0
