"""Data is had from another node whatever donors do, and given to who asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clusternode.core.events import LimitReached
from clusternode.core.sip_events import CapabilitySync
from clusternode.errors import RemoteProtocolError
from clusternode.gateways.opensips import sync
from clusternode.gateways.opensips.codec import FRAME_SIZE_MAX, decode_untrusted, encode
from clusternode.gateways.opensips.messages import (
    ModulePacket,
    Sync,
    SyncEnd,
    SyncRequest,
    Trailer,
)
from clusternode.gateways.opensips.sync import (
    TRANSITIONS,
    Donor,
    Receiver,
    Signal,
    State,
    SyncSettings,
)
from tests.gateways.opensips.around import Around

NAME = "test-repl"


class Log:
    """Data that remembers what it was given, in order."""

    name = NAME
    version = 1

    def __init__(self, chunks: tuple[bytes, ...] = ()) -> None:
        self.log: list[bytes] = []
        self.is_complete = True
        self._chunks = chunks

    def restart(self) -> None:
        self.is_complete = True

    def apply(self, packet: ModulePacket) -> None:
        self.log.append(packet.body)

    def apply_chunk_untrusted(self, chunk: bytes, version: int, source: int) -> None:
        if chunk == b"bad":
            raise RemoteProtocolError("bad")
        self.log.append(chunk)

    def chunks(self) -> Iterator[bytes]:
        return iter(self._chunks)


class Stage:
    """A receiver in a cluster of 1, 2 and 3; 1 and 2 have the data."""

    def __init__(self, settings: SyncSettings | None = None) -> None:
        self.around = Around()
        self.around.states = {(1, NAME): True, (2, NAME): True, (3, NAME): False}
        self.data = Log()
        self.announced: list[bool] = []
        self.receiver = Receiver(
            self.around, self.data, settings or SyncSettings(), self.announced.append
        )

    def asked(self) -> list[int]:
        requests = self.around.taken()
        assert all(isinstance(request, SyncRequest) for request in requests)
        return [request.trailer.destination for request in requests]

    def chunks(self, source: int, *chunks: bytes) -> None:
        self.receiver.sync_received(Sync(Trailer(1, source, 4), NAME, 1, chunks))

    def end(self, source: int, count: int) -> None:
        self.receiver.sync_ended(SyncEnd(Trailer(1, source, 4), NAME, count))

    def change(self, body: bytes, source: int = 3) -> None:
        self.receiver.changed(change(body, source))

    def after(self, seconds: float) -> None:
        self.around.now += seconds
        self.receiver.tick()


def change(body: bytes, source: int = 3) -> ModulePacket:
    return ModulePacket(Trailer(1, source, 4), NAME, 1, 1, body)


# --- the receiver ---------------------------------------------------------------------------------


def test_a_sync_asks_collects_replays_and_announces():
    stage = Stage()

    stage.receiver.begin()
    assert (stage.announced, stage.asked()) == ([False], [1])
    stage.change(b"newer")
    stage.chunks(1, b"a", b"b")
    stage.chunks(1, b"c")
    assert stage.announced == [False]
    stage.end(1, 3)

    assert stage.data.log == [b"a", b"b", b"c", b"newer"]
    assert stage.announced == [False, True]
    assert stage.receiver.state is State.SYNCED
    assert stage.around.raised() == [CapabilitySync("sip", "1", NAME, "synced", 3)]


def test_an_end_that_overtakes_its_chunks_waits_for_them():
    stage = Stage()
    stage.receiver.begin()

    stage.end(1, 2)
    stage.chunks(1, b"a")
    assert stage.announced == [False]
    stage.chunks(1, b"b")

    assert stage.announced == [False, True]


def test_nothing_at_all_is_also_a_sync():
    stage = Stage()
    stage.receiver.begin()

    stage.end(1, 0)

    assert (stage.receiver.state, stage.announced) == (State.SYNCED, [False, True])


def test_another_donor_is_asked_when_one_is_silent_and_the_first_again_after_all():
    stage = Stage()
    stage.receiver.begin()
    assert stage.asked() == [1]

    stage.after(14.9)
    assert stage.asked() == []
    stage.after(0.1)
    assert stage.asked() == [2]
    stage.after(15.0)
    assert stage.asked() == [1]
    stage.around.states[3, NAME] = True
    stage.after(15.0)

    assert stage.asked() == [3], "who never failed comes before who did"
    assert stage.announced == [False]
    assert stage.around.counted["syncs_failed"] == 3


def test_each_packet_gives_the_donor_time_again():
    stage = Stage()
    stage.receiver.begin()
    for _ in range(4):
        stage.after(10.0)
        stage.chunks(1, b"x")

    stage.end(1, 4)

    assert stage.announced == [False, True]


def test_changes_that_were_kept_back_are_applied_when_the_donor_is_lost():
    stage = Stage()
    stage.receiver.begin()
    stage.change(b"one")
    stage.change(b"two")

    stage.after(15.0)

    assert stage.data.log == [b"one", b"two"]


def test_what_does_not_come_from_the_donor_is_no_part_of_the_sync():
    stage = Stage()
    stage.receiver.begin()

    stage.chunks(2, b"forged")
    stage.end(2, 0)
    stage.end(1, 0)
    stage.chunks(1, b"late")

    assert stage.data.log == []
    assert stage.around.counted["sync_packets_unexpected"] == 3


def test_a_donor_whose_count_is_too_small_is_given_up():
    stage = Stage()
    stage.receiver.begin()
    stage.chunks(1, b"a", b"b")

    stage.end(1, 1)

    assert stage.asked() == [1, 2]
    assert stage.announced == [False]


def test_a_donor_none_of_whose_chunks_can_be_read_is_given_up():
    stage = Stage()
    stage.receiver.begin()
    stage.chunks(1, b"bad")
    stage.end(1, 1)
    assert stage.asked() == [1, 2]

    stage.chunks(2, b"bad", b"good")
    stage.end(2, 2)

    assert stage.announced == [False, True]
    assert stage.around.counted["sync_chunks_refused"] == 2


@pytest.mark.parametrize("how", ["down", "not synced"])
def test_a_donor_that_goes_away_is_replaced_at_once(how):
    stage = Stage()
    stage.receiver.begin()
    if how == "down":
        stage.around.unreachable.add(1)
        stage.receiver.node_down(1)
    else:
        stage.around.states[1, NAME] = False
        stage.receiver.capability_changed(1, False)

    assert stage.asked() == [1, 2]


def test_without_a_donor_it_waits_for_one_and_changes_are_applied_at_once():
    stage = Stage()
    stage.around.states.clear()
    stage.receiver.begin()
    stage.change(b"now")
    assert stage.data.log == [b"now"]
    assert stage.receiver.next_deadline() is None

    stage.around.states[2, NAME] = True
    stage.receiver.capability_changed(2, True)

    assert stage.asked() == [2]


def test_a_node_that_comes_back_is_asked_though_it_has_failed_before():
    stage = Stage()
    stage.around.states = {(1, NAME): True}
    stage.receiver.begin()
    stage.around.unreachable.add(1)
    stage.receiver.node_down(1)
    stage.around.unreachable.clear()

    stage.receiver.node_up(1)

    assert stage.asked() == [1, 1]


def test_a_donor_without_room_for_the_request_is_passed_over():
    stage = Stage()
    stage.around.no_room.add(1)

    stage.receiver.begin()

    assert stage.asked() == [2]


def test_only_a_seed_goes_on_without_a_donor():
    for is_seed in (False, True):
        stage = Stage(SyncSettings(is_seed=is_seed))
        stage.around.states.clear()
        stage.receiver.begin()
        stage.after(4.9)
        assert stage.announced == [False]
        stage.after(1000.0)

        assert stage.announced == ([False, True] if is_seed else [False])
        states = [event.state for event in stage.around.raised()]
        assert states == (["fallback"] if is_seed else [])


def test_a_seed_with_a_silent_donor_falls_back_when_it_has_tried():
    stage = Stage(SyncSettings(is_seed=True))
    stage.around.states = {(1, NAME): True}
    stage.receiver.begin()
    stage.after(10.0)
    assert stage.announced == [False]

    stage.after(5.0)

    assert stage.announced == [False, True]


def test_a_copy_that_is_not_whole_is_not_announced_as_synced():
    stage = Stage()
    stage.receiver.begin()
    stage.data.is_complete = False

    stage.end(1, 0)

    assert stage.announced == [False, False]


def test_changes_beyond_the_bound_end_the_sync_and_none_is_lost():
    stage = Stage()
    stage.around.states = {(1, NAME): True}
    stage.receiver.begin()
    changes = [b"%d" % number for number in range(sync.BUFFERED_MAX + 1)]

    for each in changes:
        stage.change(each)

    assert stage.data.log == changes
    assert stage.receiver.state is State.WAITING
    assert [type(event) for event in stage.around.raised()] == [LimitReached, CapabilitySync]


def test_changes_of_many_bytes_end_the_sync_too():
    stage = Stage()
    stage.around.states = {(1, NAME): True}
    stage.receiver.begin()
    large = bytes(60_000)

    for _ in range(sync.BUFFERED_BYTES_MAX // len(large) + 1):
        stage.change(large)

    assert stage.receiver.state is State.WAITING


def test_a_change_of_our_own_is_not_undone_by_a_chunk():
    stage = Stage()
    stage.receiver.begin()

    stage.receiver.changed_here(change(b"ours", 4))
    stage.chunks(1, b"theirs")
    stage.end(1, 1)

    assert stage.data.log == [b"theirs", b"ours"]


def test_changes_of_our_own_beyond_the_bound_end_the_sync_too():
    stage = Stage()
    stage.receiver.begin()
    stage.around.taken()

    for number in range(sync.BUFFERED_MAX + 1):
        stage.receiver.changed_here(change(b"%d" % number, 4))

    assert stage.asked() == [2]


def test_a_seed_knows_when_to_go_on():
    stage = Stage(SyncSettings(is_seed=True))
    stage.around.states.clear()

    stage.receiver.begin()

    assert stage.receiver.next_deadline() == 105.0


def test_stopped_it_does_nothing_until_it_begins_again():
    stage = Stage()
    stage.receiver.begin()
    stage.receiver.stop()
    stage.end(1, 0)
    stage.after(100.0)
    assert (stage.receiver.state, stage.announced) == (State.OFF, [False])
    assert stage.receiver.next_deadline() is None

    stage.receiver.begin()

    assert stage.asked() == [1, 1]


def test_every_state_has_a_row_and_can_be_begun_again_and_stopped():
    assert set(TRANSITIONS) == set(State)
    for row in TRANSITIONS.values():
        assert row[Signal.BEGIN] is State.WAITING
        assert row[Signal.STOP] is State.OFF
    assert all(Signal.LOST in TRANSITIONS[state] for state in (State.ASKED, State.RECEIVING))
    assert Signal.COMPLETE not in TRANSITIONS[State.WAITING]


# --- the donor ------------------------------------------------------------------------------------


def donate(around: Around, data: Log) -> None:
    donor = Donor(around, data, SyncSettings())
    donor.requested(1)
    while (due := donor.next_deadline()) is not None:
        around.now = max(around.now, due)
        donor.tick()


def test_a_donor_sends_every_chunk_in_packets_of_the_size_and_then_their_number():
    around = Around()
    chunks = tuple(b"%05d" % number * 8 for number in range(2000))

    donate(around, Log(chunks))

    *packets, end = around.taken()
    assert tuple(itertools.chain(*(packet.chunks for packet in packets))) == chunks
    assert end == SyncEnd(Trailer(1, 4, 1), NAME, 2000)
    assert [len(encode(packet)) // 1000 for packet in packets] == [32, 32, 30]
    assert all(len(encode(packet)) <= 32_768 for packet in packets)
    assert around.counted["donations_completed"] == 1


def test_a_donor_with_nothing_says_so():
    around = Around()

    donate(around, Log())

    assert around.taken() == [SyncEnd(Trailer(1, 4, 1), NAME, 0)]


def test_packets_are_paced():
    around = Around()
    donor = Donor(around, Log((b"x" * 32_000,) * 10), SyncSettings())

    donor.requested(1)
    donor.tick()
    assert len(around.taken()) == 1
    around.now += sync.PACKET_PAUSE
    donor.tick()

    assert len(around.taken()) == 1


def test_a_chunk_larger_than_the_size_goes_alone_and_one_larger_than_a_packet_is_counted():
    around = Around()

    donate(around, Log((b"s", b"L" * 65_000, b"t", b"X" * 65_500)))

    packets = around.taken()
    assert [getattr(packet, "chunks", None) for packet in packets] == [
        (b"s",),
        (b"L" * 65_000,),
        (b"t",),
        None,
    ]
    assert packets[-1].chunk_count == 3
    assert all(len(encode(packet)) <= FRAME_SIZE_MAX for packet in packets)
    assert around.counted["sync_chunks_too_large"] == 1


def test_a_donor_waits_for_room_and_gives_up_after_the_timeout():
    around = Around()
    around.no_room.add(1)
    donor = Donor(around, Log((b"a",)), SyncSettings())
    donor.requested(1)
    around.now += 10.0
    around.no_room.clear()
    donor.tick()
    assert [packet.chunks for packet in around.taken()] == [(b"a",)]
    around.no_room.add(1)

    for _ in range(200):
        around.now += 0.1
        donor.tick()

    assert donor.next_deadline() is None
    assert around.counted["donations_abandoned"] == 1


def test_requests_begin_a_donation_again_once_a_second_however_many_there_are():
    class Counted(Log):
        looks = 0

        def chunks(self) -> Iterator[bytes]:
            self.looks += 1
            return super().chunks()

    around, data = Around(), Counted((b"x" * 32_000,) * 2)
    donor = Donor(around, data, SyncSettings())

    for _ in range(100):
        donor.requested(1)
    assert data.looks == 1
    while (due := donor.next_deadline()) is not None:
        around.now = due
        donor.tick()

    assert data.looks == 2
    assert around.now >= 101.0
    assert around.taken()[-1].chunk_count == 2


def test_so_many_nodes_are_given_data_at_a_time_and_no_more():
    around = Around(others=tuple(range(10, 40)))
    donor = Donor(around, Log((b"x" * 32_000,) * 2), SyncSettings())

    for node_id in range(10, 20):
        donor.requested(node_id)

    assert around.counted["sync_requests_refused"] == 10 - sync.DONATIONS_MAX
    donor.stop()
    assert donor.next_deadline() is None


def test_what_a_donor_sends_makes_a_receiver_whole():
    ours, stage = Around(node_id=1, others=(4,)), Stage()
    stage.receiver.begin()
    chunks = tuple(b"chunk %d" % number for number in range(3000))
    donor = Donor(ours, Log(chunks), SyncSettings())
    donor.requested(4)

    while (due := donor.next_deadline()) is not None:
        ours.now = due
        donor.tick()
    for packet in map(decode_untrusted, map(encode, ours.taken())):
        if isinstance(packet, Sync):
            stage.receiver.sync_received(packet)
        elif isinstance(packet, SyncEnd):
            stage.receiver.sync_ended(packet)

    assert stage.data.log == [*chunks]
    assert stage.announced == [False, True]


# --- on every path --------------------------------------------------------------------------------


class SyncMachine(RuleBasedStateMachine):
    """A receiver among donors that send, stop, lie, come and go; the model follows the text.

    Model: whom the receiver waits for, since when it has been silent, what the donor has sent and
    said, and which changes have to have arrived in the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.donor: int | None = None
        self.silent_since = 0.0
        self.sent = 0
        self.said: int | None = None
        self.changes: list[bytes] = []
        self.changes_before = 0
        self.is_synced = False
        self.numbers = itertools.count()
        self.failed_at: dict[int, float] = {}
        self.stage.receiver.begin()
        self.follow()

    def follow(self) -> None:
        """Take over whom the receiver has asked: it must be one that may be asked."""
        for donor in self.stage.asked():
            assert self.donor is None, "two requests are open"
            assert self.may_ask(donor)
            self.donor, self.silent_since = donor, self.stage.around.now
            self.sent, self.said = 0, None
            self.changes_before = len(self.changes)

    def may_ask(self, donor: int) -> bool:
        around = self.stage.around
        rested = around.now >= self.failed_at.get(donor, -1e9) + 15.0
        return rested and around.is_reachable(donor) and around.states.get((donor, NAME)) is True

    def lose(self) -> None:
        assert self.donor is not None
        self.failed_at[self.donor] = self.stage.around.now
        self.donor = None

    def complete(self) -> None:
        self.donor, self.is_synced = None, True
        self.failed_at.clear()

    def donor_spoke(self) -> None:
        self.silent_since = self.stage.around.now
        if self.said is not None and self.sent >= self.said:
            self.lose() if self.sent > self.said else self.complete()
        self.follow()

    nodes = st.integers(1, 3)

    @rule(node=nodes, is_synced=st.booleans())
    def announce(self, node, is_synced):
        self.stage.around.states[node, NAME] = is_synced
        if node == self.donor and not is_synced:
            self.lose()
        self.stage.receiver.capability_changed(node, is_synced)
        self.follow()

    @rule(node=nodes)
    def go_down(self, node):
        self.stage.around.unreachable.add(node)
        if node == self.donor:
            self.lose()
        self.stage.receiver.node_down(node)
        self.follow()

    @rule(node=nodes)
    def come_up(self, node):
        self.stage.around.unreachable.discard(node)
        self.failed_at.pop(node, None)
        self.stage.receiver.node_up(node)
        self.follow()

    @rule(seconds=st.sampled_from([0.5, 7.5, 15.0]))
    def wait(self, seconds):
        self.stage.around.now += seconds
        if self.donor is not None and self.stage.around.now >= self.silent_since + 15.0:
            self.lose()
        self.stage.receiver.tick()
        self.follow()

    @rule(node=nodes, count=st.integers(0, 3))
    def send_chunks(self, node, count):
        if node == self.donor:
            self.sent += count
        self.stage.chunks(node, *(b"chunk %d" % next(self.numbers) for _ in range(count)))
        if node == self.donor:
            self.donor_spoke()
        self.follow()

    @rule(node=nodes, error=st.sampled_from([0, 0, 0, -1, 2]))
    def send_end(self, node, error):
        count = max(self.sent + error, 0) if node == self.donor else 0
        if node == self.donor:
            self.said = count
        self.stage.end(node, count)
        if node == self.donor:
            self.donor_spoke()
        self.follow()

    @rule(node=nodes)
    def change(self, node):
        self.changes.append(b"change %d" % next(self.numbers))
        self.stage.change(self.changes[-1], node)

    @rule()
    @precondition(lambda self: self.is_synced)
    def begin_again(self):
        self.is_synced = False
        self.failed_at.clear()
        self.stage.receiver.begin()
        self.follow()

    @invariant()
    def it_says_that_it_is_synced_when_it_is_and_only_then(self):
        assert self.stage.announced[-1] is self.is_synced

    @invariant()
    def every_change_is_applied_once_and_in_order_or_is_kept_back(self):
        applied = [entry for entry in self.stage.data.log if entry.startswith(b"change")]
        assert applied == self.changes[: len(applied)]
        if self.donor is None:
            assert applied == self.changes
        else:
            assert len(applied) == self.changes_before

    @invariant()
    def nobody_waits_while_somebody_can_give(self):
        if self.donor is None and not self.is_synced:
            self.stage.receiver.tick()
            asked = self.stage.around.sent
            can_give = any(self.may_ask(node) for node in (1, 2, 3))
            assert bool(asked) == can_give
            self.follow()

    @invariant()
    def its_deadline_is_never_in_the_past(self):
        deadline = self.stage.receiver.next_deadline()
        assert deadline is None or deadline > self.stage.around.now


TestSync = SyncMachine.TestCase
TestSync.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
