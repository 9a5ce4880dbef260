"""Bugs that are put into the gateway on purpose: a recorded session or a mixed cluster shows each.

Every mutant replaces one function and names the stories that must fail with it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.flooding import Flooding
from clusternode.gateways.opensips.membership import Membership
from clusternode.gateways.opensips.outbox import Outbox
from clusternode.gateways.opensips.pacing import Bucket
from clusternode.gateways.opensips.routing import Router
from clusternode.gateways.opensips.sync import Donor, Receiver
from clusternode.gateways.opensips.tags import SharingTags
from clusternode.gateways.opensips.topology import Progress, Topology
from clusternode.gateways.opensips.voice import Voice
from clusternode.simulation.opensips.transport import V36
from clusternode.simulation.streams import Drowned
from tests.gateways.opensips import test_mixed_clusters as clusters
from tests.gateways.opensips import test_recorded_sessions as sessions

Function = Callable[..., Any]
Story = Callable[[], None]


@attrs.frozen
class Mutant:
    owner: type
    function: str
    make: Callable[[Function], Function]
    stories: tuple[Story, ...]


MUTANTS: dict[str, Mutant] = {}


def mutant(
    owner: type, function: str, *stories: Story
) -> Callable[[Callable[[Function], Function]], Callable[[Function], Function]]:
    """Register what is decorated: it gets the right function and returns the wrong one."""

    def register(make: Callable[[Function], Function]) -> Callable[[Function], Function]:
        MUTANTS[make.__name__.replace("_", "-")] = Mutant(owner, function, make, stories)
        return make

    return register


def lived(name: str) -> Story:
    return lambda: sessions.test_our_node_sends_what_the_real_one_sent(name)


def restarted() -> None:
    clusters.test_a_killed_opensips_is_down_everywhere_and_up_when_it_returns(silently=False)


def formed() -> None:
    clusters.test_everybody_is_up_agrees_and_answers(3, 2, V36)


@mutant(Progress, "take", restarted)
def number_0_is_no_restart(_: Function) -> Function:
    """A restarted node is not heard until it has counted beyond its last number."""

    def take(self: Progress, number: int, timestamp: int, *, is_direct: bool) -> bool:
        del is_direct
        is_news = number > self.number
        if is_news:
            self.number, self.timestamp = number, timestamp
        return is_news

    return take


@mutant(Progress, "take", clusters.test_an_opensips_that_joins_many_of_ours_starts_no_storm)
def every_0_is_a_restart(_: Function) -> Function:
    """Late copies of number 0 are taken for a restart, and passed on for ever."""

    def take(self: Progress, number: int, timestamp: int, *, is_direct: bool) -> bool:
        del is_direct
        is_news = number == 0 or number > self.number
        if is_news:
            self.number, self.timestamp = number, timestamp
        return is_news

    return take


@mutant(Flooding, "passed_on", lived("A2"))
def path_not_appended(right: Function) -> Function:
    def passed_on(self: Flooding, now: float, packet: Any, up: Any) -> Any:
        _, targets = right(self, now, packet, up)
        return packet, targets

    return passed_on


@mutant(Flooding, "passed_on", lived("A2"))
def news_kept_to_ourselves(_: Function) -> Function:
    return lambda self, now, packet, up: (packet, [])


@mutant(Voice, "pong", clusters.test_a_burst_of_ours_delays_no_pong)
def pong_behind_data(_: Function) -> Function:
    """A PONG takes its turn among the messages of scripts."""

    def pong(self: Voice, node_id: int, *, wants_nodes: bool) -> None:
        del wants_nodes
        from clusternode.gateways.opensips.codec import encode
        from clusternode.gateways.opensips.messages import Pong

        node = self._topology.get(node_id)
        assert node is not None
        frame = encode(Pong(1, self._context.own_id))
        self._outbox.send_data(self._context.now, node, frame, None)

    return pong


@mutant(Voice, "pong", lived("B1"))
def pong_lists_nobody(right: Function) -> Function:
    return lambda self, node_id, *, wants_nodes: right(self, node_id, wants_nodes=False)


@mutant(Router, "forward", clusters.test_we_carry_what_two_others_cannot_tell_each_other)
def forwarded_in_our_name(right: Function) -> Function:
    """The trailer of a packet that passes through is changed."""

    def forward(self: Router, frame: bytes, trailer: Any, connection: Any) -> None:
        own = struct.pack("<i", self._context.own_id)
        right(self, frame[:-8] + own + frame[-4:], trailer, connection)

    return forward


@mutant(Router, "forward", clusters.test_we_carry_what_two_others_cannot_tell_each_other)
def nothing_forwarded(_: Function) -> Function:
    return lambda self, frame, trailer, connection: None


@mutant(Donor, "_make", clusters.test_we_give_our_data_to_an_opensips_that_has_lost_its_own)
def one_chunk_too_many_announced(right: Function) -> Function:
    def make(self: Donor, node_id: int, donation: Any) -> Any:
        packet = right(self, node_id, donation)
        if hasattr(packet, "chunk_count"):
            return attrs.evolve(packet, chunk_count=packet.chunk_count + 1)
        return packet

    return make


@mutant(Receiver, "tick", clusters.test_another_donor_is_asked_when_one_is_silent)
def silent_donor_waited_for(_: Function) -> Function:
    return lambda self: None


@mutant(Receiver, "changed", clusters.test_caches_agree_when_a_node_of_ours_joins_under_live_writes)
def changes_during_a_sync_lost(right: Function) -> Function:
    def changed(self: Receiver, packet: Any) -> None:
        if self._attempt is None:
            right(self, packet)

    return changed


@mutant(SharingTags, "received", clusters.test_the_tag_goes_to_whoever_took_it_last)
def tag_not_given_back(_: Function) -> Function:
    return lambda self, packet: None


@mutant(SharingTags, "node_up", clusters.test_the_tag_is_announced_again_to_a_node_that_returns)
def tag_not_announced_again(_: Function) -> Function:
    return lambda self, node_id: None


@mutant(Bucket, "take", clusters.test_our_bursts_do_not_cost_us_the_connection)
def bursts_not_paced(_: Function) -> Function:
    return lambda self, now: True


@mutant(Voice, "description", lived("A2"), formed)
def never_introduced(_: Function) -> Function:
    return lambda self, node_id: None


@mutant(Voice, "topology", lived("A1"), formed)
def topology_not_told(_: Function) -> Function:
    return lambda self, node_id, listed: None


@mutant(Voice, "link", lived("A2"))
def links_not_told(_: Function) -> Function:
    return lambda self, neighbour: None


@mutant(Membership, "_capability_update", lived("A2"))
def capabilities_never_answered(right: Function) -> Function:
    return lambda self, packet, node: right(self, attrs.evolve(packet, wants_reply=False), node)


@mutant(Capabilities, "set_enabled", lived("A3"))
def capability_cannot_be_switched_off(_: Function) -> Function:
    return lambda self, name, is_enabled: None


@mutant(Topology, "set_neighbours", lived("B3"), formed)
def neighbours_of_others_forgotten(_: Function) -> Function:
    return lambda self, node, neighbours: None


@mutant(Outbox, "answer", lived("A1"))
def strangers_not_told(right: Function) -> Function:
    """UNKNOWN_ID never goes back on a connection that somebody else has opened."""

    def answer(self: Outbox, connection: Any, frame: bytes) -> None:
        if connection.is_ours:
            right(self, connection, frame)

    return answer


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name, monkeypatch):
    found = MUTANTS[name]
    right = getattr(found.owner, found.function)
    monkeypatch.setattr(found.owner, found.function, found.make(right))

    for story in found.stories:
        with pytest.raises((AssertionError, Drowned)):
            story()
