"""Clusters of simulated OpenSIPS nodes and nodes of ours, through all kinds of trouble.

A simulated OpenSIPS is as fragile as the real one: it closes connections for what the real one
does, flaps when a PONG is late, and takes every number 0 for a restart.
"""

from __future__ import annotations

from random import Random

import pytest

from clusternode.core.sip_events import CapabilitySync
from clusternode.gateways.opensips import effects
from clusternode.simulation.network import LinkQuality
from clusternode.simulation.opensips.cluster import (
    COLLECTION,
    JOIN_TIME,
    TAG,
    TIMING,
    Cluster,
    Ours,
    host_of,
)
from clusternode.simulation.opensips.node import NODE_STATE_CHANGED
from clusternode.simulation.opensips.transport import V36, V40, Quirks

CALM = Quirks(takes_any_zero=False)
"""For worlds that would drown in the messages of a join: see `Quirks.takes_any_zero`."""
DETECTED = TIMING.ping_interval + 5 * TIMING.ping_timeout + 1.0
"""A dead node is down everywhere: a ping interval, its retries, and room."""
ENDS_OF_FOUR_LINKS = 8
MESSAGES_OF_A_FLAP = 5
"""Link down, link up, all lists, all capabilities, and the answer: each once to everybody."""
RECONNECTED = TIMING.node_timeout + JOIN_TIME
"""A node that is down is tried again, and joins."""


def formed(seed: int, theirs: int, ours: int, quirks: Quirks = V36) -> Cluster:
    cluster = Cluster(seed, quirks=quirks)
    cluster.form(range(1, theirs + 1), range(theirs + 1, theirs + ours + 1))
    cluster.run(JOIN_TIME)
    return cluster


@pytest.mark.parametrize("quirks", [V36, V40], ids=["3.6", "4.0"])
@pytest.mark.parametrize(("theirs", "ours"), [(2, 1), (3, 1), (1, 3), (3, 2)])
def test_everybody_is_up_agrees_and_answers(theirs, ours, quirks):
    assert formed(theirs, theirs, ours, quirks).problems() == []


@pytest.mark.slow
def test_ten_nodes_are_up_agree_and_answer():
    assert formed(1, 6, 4, CALM).problems() == []


def test_all_who_start_at_once_find_each_other():
    cluster = Cluster(5, quirks=CALM)
    for node_id in (1, 2, 3):
        cluster.start_theirs(node_id)
    for node_id in (4, 5):
        cluster.start_ours(node_id, seeds=(1, 2))
    cluster.run(2 * JOIN_TIME)

    assert cluster.problems() == []


@pytest.mark.parametrize("silently", [False, True])
def test_a_killed_opensips_is_down_everywhere_and_up_when_it_returns(silently):
    cluster = formed(1, 3, 2)
    ours = cluster.ours[4]
    cluster.kill(2, silently=silently)
    cluster.run(DETECTED)
    assert cluster.problems() == []
    assert 2 not in ours.up()

    cluster.start_theirs(2)
    cluster.run(RECONNECTED)
    assert cluster.problems() == []


@pytest.mark.parametrize("silently", [False, True])
def test_a_killed_node_of_ours_is_down_everywhere_and_up_when_it_returns(silently):
    cluster = formed(2, 3, 2)
    cluster.kill(5, silently=silently)
    cluster.run(DETECTED)
    assert cluster.problems() == []
    down = [event for event in cluster.theirs[1].events if event.name == NODE_STATE_CHANGED]
    assert (down[-1].source, down[-1].text) == (5, b"0")

    cluster.start_ours(5)
    cluster.run(RECONNECTED)
    assert cluster.problems() == []


def test_a_restart_that_nobody_has_noticed_is_no_trouble():
    cluster = formed(3, 3, 1)
    cluster.kill(4, silently=True)
    cluster.run(0.05)
    cluster.start_ours(4)
    cluster.run(RECONNECTED)

    assert cluster.problems() == []


@pytest.mark.parametrize("seed", range(3))
def test_a_split_cluster_heals(seed):
    cluster = formed(seed, 3, 2)
    cluster.split([1, 4], [2, 3, 5])
    cluster.run(DETECTED + 2)
    assert sorted(cluster.ours[4].up()) == [1]
    assert sorted(cluster.ours[5].up()) == [2, 3]

    cluster.heal()
    cluster.run(RECONNECTED + TIMING.node_timeout)
    assert [*cluster.harms(), *cluster.not_up(), *cluster.disagreements()] == []
    assert [*cluster.unanswered()] == []


def test_a_broken_link_of_ours_is_routed_around():
    cluster = formed(4, 3, 1)
    cluster.split([1], [4])
    cluster.run(DETECTED)

    assert 1 not in cluster.ours[4].up()
    assert [*cluster.unanswered(), *cluster.harms(), *cluster.disagreements()] == []


def test_we_carry_what_two_others_cannot_tell_each_other():
    cluster = formed(5, 2, 1)
    cluster.split([1], [2])
    cluster.run(DETECTED)

    assert cluster.theirs[1].next_hops() == {2: 3, 3: 3}
    assert [*cluster.unanswered(), *cluster.harms(), *cluster.disagreements()] == []
    assert cluster.ours[3].gateway.node.context.counters["forwarded"] >= 4


def test_a_slow_node_flaps_and_nobody_else_does():
    cluster = formed(6, 3, 2)
    before = cluster.writes()
    cluster.slow(3, TIMING.ping_timeout)
    cluster.run(8.0)
    flapping = cluster.writes() - before

    others = {1, 2, 4, 5}
    assert others - {4} <= set(cluster.ours[4].up())
    assert all(cluster.theirs[1].link_states()[other] == "Up" for other in others - {1})
    assert flapping < 8.0 * ENDS_OF_FOUR_LINKS * MESSAGES_OF_A_FLAP * 5**2
    assert [*cluster.harms()] == []

    cluster.slow(3, 0.0001)
    cluster.run(RECONNECTED)
    assert cluster.problems() == []


@pytest.mark.parametrize("seed", range(2))
def test_lost_packets_and_live_writes_harm_nobody(seed):
    cluster = formed(seed, 3, 2, V40)
    cluster.world.network.quality = LinkQuality(0.0001, 0.002, loss=0.02)
    rng = Random(seed)
    for number in range(200):
        writer = rng.choice(cluster.alive)
        if writer in cluster.theirs:
            cluster.theirs[writer].store(b"key %d" % number, b"value")
        else:
            cluster.ours[writer].store(f"key {number}", b"value")
        cluster.run(0.05)
    cluster.world.network.quality = LinkQuality(0.0001, 0.0005)
    cluster.run(RECONNECTED)

    assert [*cluster.harms(), *cluster.not_up(), *cluster.disagreements()] == []
    assert [*cluster.unanswered()] == []


def test_caches_agree_when_a_node_of_ours_joins_under_live_writes():
    cluster = formed(7, 3, 0, V40)
    for number in range(3000):
        cluster.theirs[1].store(b"old %d" % number, b"v" * 50)
        if number % 100 == 0:
            cluster.run(0.05)
    cluster.world.network.quality = LinkQuality(0.02, 0.02)  # a sync takes longer than a change
    capabilities = cluster.start_ours(4).gateway.node.capabilities
    for number in range(200):
        cluster.theirs[2 + number % 2].store(b"new %d" % number, b"w")
        if number == 150:
            cluster.ours[4].gateway.act(lambda: capabilities.resync("cachedb-local-repl"))
        cluster.run(0.01)
    cluster.run(JOIN_TIME)

    assert len(cluster.ours[4].cache()) == 3200
    assert cluster.problems() == []


def test_we_give_our_data_to_an_opensips_that_has_lost_its_own():
    cluster = formed(8, 1, 1)
    for number in range(2000):
        cluster.ours[2].store(f"key {number}", b"value")
    cluster.run(2.0)
    cluster.kill(1)
    cluster.run(DETECTED)
    cluster.start_theirs(3, seeds=(2,))
    cluster.run(JOIN_TIME)

    assert len(cluster.theirs[3].cache.contents(COLLECTION)) == 2000
    assert cluster.problems() == []


def syncs(ours: Ours) -> list[tuple[str, str]]:
    events = [each.event for each in ours.effects if isinstance(each, effects.Raise)]
    return [
        (event.node_id, event.state)
        for event in events
        if isinstance(event, CapabilitySync) and event.capability == "cachedb-local-repl"
    ]


def test_another_donor_is_asked_when_one_is_silent():
    cluster = formed(9, 3, 0)
    cluster.theirs[1].store(b"key", b"value")
    for donor in (1, 2):
        cluster.theirs[donor].capabilities.own["cachedb-local-repl"].falls_silent = True
    ours = cluster.start_ours(4)
    cluster.run(JOIN_TIME + 2 * 2.0)

    assert syncs(ours) == [("1", "failed"), ("2", "failed"), ("3", "synced")]
    assert ours.cache() == {b"key": b"value"}


def test_our_bursts_do_not_cost_us_the_connection():
    cluster = formed(10, 2, 1, V40)
    for number in range(1500):
        cluster.ours[3].store(f"key {number}", b"value")
    cluster.run(4.0)

    assert cluster.problems() == []
    assert len(cluster.theirs[1].cache.contents(COLLECTION)) == 1500


def test_a_burst_of_ours_delays_no_pong():
    cluster = formed(22, 2, 1, V40)
    for number in range(3000):
        cluster.ours[3].store(f"key {number}", b"value")
    events = len(cluster.theirs[1].events)
    cluster.run(5.0)

    assert [*cluster.not_up()] == []
    assert len(cluster.theirs[1].events) == events


@pytest.mark.parametrize("ours", [1, 3])
def test_the_cluster_is_quiet_when_all_is_said(ours):
    cluster = formed(23, 3, ours)
    before = cluster.writes()
    cluster.run(10.0)

    count = 3 + ours
    pings_and_pongs = 2 * count * (count - 1) * (10.0 / TIMING.ping_interval + 1)
    assert cluster.writes() - before <= pings_and_pongs


def test_we_survive_the_bursts_of_a_real_node():
    cluster = formed(11, 2, 1)
    for number in range(2000):
        cluster.theirs[1].store(b"key %d" % (number % 500), b"%d" % number)
    cluster.run(2.0)

    assert cluster.problems() == []


def test_the_tag_goes_to_whoever_took_it_last():
    cluster = formed(12, 3, 1)
    tags = cluster.ours[4].gateway.node.tags
    cluster.theirs[1].activate_tag(TAG)
    cluster.run(0.1)
    cluster.ours[4].gateway.act(lambda: tags.activate(TAG, "test"))
    cluster.run(0.1)
    assert tags.is_active(TAG)
    assert not any(TAG in node.tags.active for node in cluster.theirs.values())

    cluster.kill(2)
    cluster.run(DETECTED)
    cluster.start_theirs(2).tags.configure(TAG, is_active=False)
    cluster.run(RECONNECTED)
    cluster.theirs[2].activate_tag(TAG)
    cluster.run(0.1)
    assert not tags.is_active(TAG)
    assert cluster.theirs[2].tags.active == [TAG]


def test_the_tag_is_announced_again_to_a_node_that_returns():
    cluster = formed(13, 2, 1)
    tags = cluster.ours[3].gateway.node.tags
    cluster.ours[3].gateway.act(lambda: tags.activate(TAG, "test"))
    cluster.run(0.1)
    cluster.kill(2)
    cluster.run(DETECTED)
    cluster.start_theirs(2)
    cluster.run(RECONNECTED + TIMING.node_timeout)

    assert cluster.theirs[2].tags.said_by == {TAG: 3}
    assert tags.is_active(TAG)


def test_a_removed_node_is_gone_everywhere_and_disables_itself():
    cluster = formed(14, 3, 2)
    cluster.theirs[1].remove_node(5)
    cluster.run(1.0)

    assert not cluster.ours[5].gateway.node.membership.is_enabled
    assert all(5 not in node.link_states() for node in cluster.theirs.values())
    assert 5 not in cluster.ours[4].up()
    cluster.kill(5)
    cluster.run(DETECTED)
    assert cluster.problems() == []


def test_we_can_remove_an_opensips():
    cluster = formed(15, 3, 1)
    node = cluster.ours[4].gateway.node
    cluster.ours[4].gateway.act(lambda: node.remove(3))
    cluster.run(1.0)

    assert not cluster.theirs[3].topology.is_enabled
    cluster.kill(3)
    cluster.run(DETECTED)
    assert cluster.problems() == []


def test_a_disabled_opensips_is_down_until_it_is_enabled():
    cluster = formed(16, 3, 1)
    cluster.theirs[2].set_status(False)
    cluster.run(DETECTED)
    assert cluster.ours[4].up() == [1, 3]

    cluster.theirs[2].set_status(True)
    cluster.run(RECONNECTED)
    assert cluster.problems() == []


def test_commands_arrive_at_the_nodes_that_they_are_for():
    cluster = formed(17, 2, 1)
    commands = cluster.ours[3].gateway.node.commands
    cluster.ours[3].gateway.act(lambda: commands.send(1, "core:uptime", ()))
    cluster.ours[3].gateway.act(lambda: commands.broadcast("cache:store", ("local:repl", "k")))
    cluster.run(0.5)

    names = {
        node_id: [run.name for run in node.commands] for node_id, node in cluster.theirs.items()
    }
    assert names == {1: ["core:uptime", "cache:store"], 2: ["cache:store"]}


def test_the_contacts_of_a_registration_are_seen():
    cluster = formed(18, 2, 1)
    cluster.theirs[1].add_contact("bob@example.org", "sip:bob@10.1.1.1:5060", "call-1")
    cluster.run(0.5)
    contacts = cluster.ours[3].gateway.node.contacts
    assert contacts is not None
    assert [each.contact for each in contacts.contacts("bob@example.org")] == [
        "sip:bob@10.1.1.1:5060"
    ]

    cluster.theirs[2].delete_contact("bob@example.org", "sip:bob@10.1.1.1:5060", "call-1")
    cluster.run(0.5)
    assert not contacts.contacts("bob@example.org")


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (2, 3)])
def test_a_death_costs_a_bounded_number_of_messages(theirs, ours):
    cluster = formed(19, theirs, ours)
    count = theirs + ours
    before = cluster.writes()
    cluster.run(DETECTED)
    heartbeats = cluster.writes() - before
    before = cluster.writes()
    cluster.kill(1)
    cluster.run(DETECTED)

    assert cluster.writes() - before - heartbeats < 3 * count**3


def test_a_join_of_ours_costs_a_bounded_number_of_messages():
    cluster = formed(20, 5, 0)
    cluster.world.writes_left = 10 * 6**3
    cluster.start_ours(6)
    cluster.run(JOIN_TIME)

    assert [*cluster.not_up()] == []


def test_an_opensips_that_joins_many_of_ours_starts_no_storm():
    cluster = formed(24, 1, 5)
    cluster.world.writes_left = 10 * 7**3
    cluster.start_theirs(7)
    cluster.run(JOIN_TIME)

    assert [*cluster.not_up()] == []


def test_the_same_seed_gives_the_same_story():
    stories = []
    for _ in range(2):
        cluster = Cluster(21, quirks=V40, quality=LinkQuality(0.0001, 0.01, loss=0.05))
        cluster.form([1, 2, 3], [4, 5])
        cluster.kill(2)
        cluster.run(10.0)
        stories.append((cluster.world.writes, [str(e) for e in cluster.theirs[1].events]))

    assert stories[0] == stories[1]
    assert set(stories[0][0]) == {host_of(each) for each in range(1, 6)}
