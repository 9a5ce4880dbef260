"""Sharing tags: taken, given, told to who has not heard, and never active twice for long."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clusternode.core.events import SharingTagChanged
from clusternode.errors import ConfigError
from clusternode.gateways.opensips.messages import SharingTagActive, Trailer
from clusternode.gateways.opensips.tags import TAGS_MAX, SharingTag, SharingTags
from tests.gateways.opensips.around import Around


class Stage:
    """A node with the tag vip, in backup unless told otherwise."""

    def __init__(self, *, is_active: bool = False) -> None:
        self.around = Around()
        self.tags = SharingTags(self.around, {"vip": is_active})
        self.tags.start()

    def told(self) -> list[int]:
        packets = self.around.taken()
        assert all(packet.tag == "vip" for packet in packets)
        return [packet.trailer.destination for packet in packets]

    def taken_by(self, node_id: int, tag: str = "vip") -> None:
        self.tags.received(SharingTagActive(Trailer(1, node_id, 4), tag))

    def after(self, seconds: float) -> None:
        self.around.now += seconds
        self.tags.tick()


def test_a_tag_that_is_taken_is_told_to_each_node_and_is_an_event():
    stage = Stage()

    stage.tags.activate("vip", "MI command")

    assert stage.told() == [1, 2, 3]
    assert stage.tags.is_active("vip")
    assert stage.around.raised() == [SharingTagChanged("vip", "sip", "active", "MI command")]
    assert stage.tags.next_deadline() is None


def test_a_tag_that_another_takes_goes_to_backup_here():
    stage = Stage()
    stage.tags.activate("vip", "MI command")
    stage.around.raised()

    stage.taken_by(2)
    stage.taken_by(2)

    assert stage.tags.all() == (SharingTag("vip", is_active=False, holder=2),)
    assert stage.around.raised() == [
        SharingTagChanged("vip", "sip", "backup", "cluster broadcast from 2")
    ]


def test_a_tag_that_is_given_up_goes_to_backup_and_nobody_is_told():
    stage = Stage(is_active=True)
    assert stage.around.raised() == [SharingTagChanged("vip", "sip", "active", "startup")]
    stage.told()

    stage.tags.back_up("vip", "script")
    stage.tags.back_up("vip", "script")

    assert stage.told() == []
    assert stage.tags.all() == (SharingTag("vip", is_active=False, holder=None),)
    assert stage.around.raised() == [SharingTagChanged("vip", "sip", "backup", "script")]


def test_a_node_that_could_not_be_told_is_told_when_it_comes_up():
    stage = Stage()
    stage.around.unreachable.add(2)
    stage.tags.activate("vip", "x")
    assert stage.told() == [1, 3]

    stage.around.unreachable.clear()
    stage.tags.node_up(2)
    stage.after(0.9)
    assert stage.told() == [], "an OpenSIPS that took it while we were apart is first"
    stage.after(0.1)

    assert stage.told() == [2]


def test_a_node_for_which_there_was_no_room_is_told_a_little_later():
    stage = Stage()
    stage.around.no_room.add(2)
    stage.tags.activate("vip", "x")
    assert stage.told() == [1, 3]
    stage.around.no_room.clear()

    stage.after(0.5)

    assert stage.told() == [2]


def test_a_node_that_returns_is_told_again_unless_the_tag_was_taken_meanwhile():
    for is_taken in (False, True):
        stage = Stage(is_active=True)
        stage.told()
        stage.tags.node_down(2)
        stage.tags.node_up(2)
        assert stage.told() == []
        if is_taken:
            stage.taken_by(2)

        stage.after(2.5)

        assert stage.told() == ([] if is_taken else [2])
        assert stage.tags.is_active("vip") is not is_taken


def test_who_took_the_tag_last_keeps_it_when_the_sides_of_a_partition_meet():
    arounds = {me: Around(me, (other,)) for me, other in ((1, 4), (4, 1))}
    tags = {me: SharingTags(arounds[me], {"vip": False}) for me in arounds}

    def meet() -> None:
        for _ in range(8):
            for me, around in arounds.items():
                around.now += 0.5
                tags[me].tick()
                for packet in around.taken():
                    tags[packet.trailer.destination].received(packet)

    tags[1].activate("vip", "first")
    meet()
    for me, other in ((1, 4), (4, 1)):
        arounds[me].unreachable.add(other)
        tags[me].node_down(other)
    tags[4].activate("vip", "second")
    for me, other in ((1, 4), (4, 1)):
        arounds[me].unreachable.clear()
        tags[me].node_up(other)

    meet()

    assert (tags[1].is_active("vip"), tags[4].is_active("vip")) == (False, True)


def test_a_tag_that_is_taken_again_is_news_to_everybody():
    stage = Stage(is_active=True)
    stage.told()
    stage.around.unreachable.add(2)
    stage.tags.node_down(2)
    stage.tags.activate("vip", "again")
    assert stage.told() == [1, 3]

    stage.around.unreachable.clear()
    stage.tags.node_up(2)
    stage.after(1.0)

    assert stage.told() == [2]


def test_a_node_in_backup_tells_nobody():
    stage = Stage()

    stage.tags.node_up(2)
    stage.after(10.0)

    assert stage.told() == []


def test_a_node_that_goes_down_or_is_removed_is_waited_for_no_longer():
    stage = Stage(is_active=True)
    stage.told()
    for leave in (stage.tags.node_down, stage.tags.forget):
        stage.tags.node_up(2)
        assert stage.tags.next_deadline() is not None
        leave(2)
        assert stage.tags.next_deadline() is None
    stage.taken_by(3)
    stage.tags.forget(3)
    assert stage.tags.all() == (SharingTag("vip", is_active=False, holder=None),)


def test_tags_of_others_are_seen_and_bounded():
    stage = Stage()

    for number in range(TAGS_MAX + 5):
        stage.taken_by(1, f"tag {number}")
    stage.taken_by(1, "")
    stage.taken_by(4)

    assert len(stage.tags.all()) == TAGS_MAX
    assert stage.tags.all()[0] == SharingTag("tag 0", is_active=False, holder=1)
    assert stage.around.counted["sharing_tags_refused"] == 6 + 2
    assert stage.around.raised() == []
    for name in ("", "x" * 2000, "one more"):
        with pytest.raises(ConfigError):
            stage.tags.activate(name, "x")


class TagMachine(RuleBasedStateMachine):
    """Three nodes of ours, links that break and heal: once all is quiet, one of them is active."""

    IDS = (1, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.arounds = {
            me: Around(me, tuple(each for each in self.IDS if each != me)) for me in self.IDS
        }
        self.tags = {me: SharingTags(self.arounds[me], {"vip": False}) for me in self.IDS}
        self.has_been_taken = False

    nodes = st.sampled_from(IDS)

    def deliver(self) -> None:
        while packets := [packet for each in self.arounds.values() for packet in each.taken()]:
            for packet in packets:
                self.tags[packet.trailer.destination].received(packet)

    def pass_time(self, seconds: float) -> None:
        for me in self.IDS:
            self.arounds[me].now += seconds
            self.tags[me].tick()
            self.deliver()

    @rule(node=nodes)
    def take(self, node):
        self.tags[node].activate("vip", "test")
        self.has_been_taken = True
        self.deliver()

    @rule(a=nodes, b=nodes)
    def part(self, a, b):
        if a != b and b not in self.arounds[a].unreachable:
            for one, other in ((a, b), (b, a)):
                self.arounds[one].unreachable.add(other)
                self.tags[one].node_down(other)

    @rule(a=nodes, b=nodes)
    def meet(self, a, b):
        if b in self.arounds[a].unreachable:
            for one, other in ((a, b), (b, a)):
                self.arounds[one].unreachable.discard(other)
            for one, other in ((a, b), (b, a)):
                self.tags[one].node_up(other)
            self.deliver()

    @rule(seconds=st.sampled_from([0.5, 2.5]))
    def wait(self, seconds):
        self.pass_time(seconds)

    @rule()
    def heal_and_be_quiet(self):
        for a, b in ((1, 2), (1, 3), (2, 3)):
            self.meet(a, b)
        for _ in range(8):
            self.pass_time(0.5)

        active = [me for me in self.IDS if self.tags[me].is_active("vip")]
        assert len(active) == self.has_been_taken

    @invariant()
    def somebody_is_active_once_it_has_been_taken(self):
        active = [me for me in self.IDS if self.tags[me].is_active("vip")]
        assert bool(active) == self.has_been_taken


TestTags = TagMachine.TestCase
TestTags.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
