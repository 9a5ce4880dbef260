"""Links and names of a simulated world."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clusternode.core.types import Address
from clusternode.simulation.event_queue import EventQueue
from clusternode.simulation.network import (
    EXPONENTIAL_MAX,
    LinkQuality,
    Network,
    next_retransmission,
)
from clusternode.simulation.resolver import Answer, ScriptedResolver


def network(**quality: Any) -> Network:
    return Network(random.Random(1), LinkQuality(**quality))


def test_a_one_way_block_lets_the_other_way_through():
    links = network()
    links.block(["a"], ["b"])

    assert links.is_blocked("a", "b")
    assert not links.is_blocked("b", "a")


def test_healing_one_pair_leaves_the_others_blocked():
    links = network()
    links.block(["a"], ["b", "c"])

    assert links.heal([("a", "b")]) == [("a", "b")]
    assert links.is_blocked("a", "c")


def test_healing_everything_heals_everything():
    links = network()
    links.block(["a", "b"], ["a", "b", "c"])

    assert len(links.heal()) == 4
    assert not links.is_blocked("a", "b")


def test_loss_is_delay():
    good, bad = network(), network(loss=0.5)

    assert sum(bad.delay("a", "b") for _ in range(100)) > 10
    assert sum(good.delay("a", "b") for _ in range(100)) < 1


def test_a_link_can_differ_from_the_others():
    links = network()
    links.set_quality([("a", "b")], LinkQuality(1.0, 1.0))

    assert links.delay("a", "b") == 1.0
    assert links.delay("b", "a") < 0.01


@pytest.mark.parametrize(("now", "expected"), [(0.0, 0.0), (0.1, 0.2), (0.3, 0.6), (10, 12.6)])
def test_tcp_waits_twice_as_long_each_time(now, expected):
    assert next_retransmission(0.0, now) == pytest.approx(expected)


def test_what_is_due_soon_comes_after_everything_due_now():
    queue = EventQueue(0.0)
    happened: list[str] = []
    queue.at(1.0, queue.soon, happened.append, "soon")
    queue.at(1.0, happened.append, "now")
    queue.at(2.0, happened.append, "later")

    queue.run_until(1.5)

    assert happened == ["now", "soon"]
    assert queue.now == 1.5


def test_a_name_without_an_answer_does_not_exist():
    _, resolved = ScriptedResolver().resolve(Address("tcp", "nowhere.example", 1))

    assert resolved.error == "nowhere.example: no such name"


def test_addresses_take_the_port_of_the_name_and_targets_bring_their_own():
    resolver = ScriptedResolver()
    resolver.script("a.example", Answer([Address("tcp", "10.0.0.1", 5)]))

    _, plain = resolver.resolve(Address("tcp", "a.example", 7))
    _, service = resolver.resolve(Address("srv", "a.example", 0))

    assert [str(found.address) for found in plain.addresses] == ["tcp://10.0.0.1:7"]
    assert [str(found.address) for found in service.addresses] == ["tcp://10.0.0.1:5"]


def test_a_failure_of_the_resolver_is_told():
    resolver = ScriptedResolver()
    resolver.script("a.example", Answer(error="SERVFAIL", delay=3.0))

    delay, resolved = resolver.resolve(Address("tcp", "a.example", 7))

    assert (delay, resolved.error) == (3.0, "SERVFAIL")


def test_an_exponential_latency_has_a_mean_and_an_end():
    quality = LinkQuality(0.01, 0.02, distribution="exponential")
    links = Network(random.Random(1), quality)

    delays = [links.delay("a", "b") for _ in range(2000)]

    assert min(delays) >= 0.01
    assert 0.018 < sum(delays) / len(delays) < 0.022
    assert max(delays) <= 0.01 + 0.01 * EXPONENTIAL_MAX


def test_an_uplink_belongs_to_one_host_until_it_is_taken_away():
    links = Network(random.Random(1), LinkQuality())
    links.set_uplink("a", 1000.0)

    assert links.uplink_of("a") == 1000.0
    assert links.uplink_of("b") is None
    links.set_uplink("a", None)
    assert links.uplink_of("a") is None
