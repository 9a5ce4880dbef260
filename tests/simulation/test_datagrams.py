"""Buses of simulated Kamailios and our node, on a network that loses."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from clusternode.core.events import LimitReached
from clusternode.core.types import DeliveryId, ResultCode
from clusternode.gateways.kamailio.effects import Arrived, Raise, Settled
from clusternode.gateways.kamailio.node import KamailioNode
from clusternode.gateways.kamailio.peer import SimulatedKamailio
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress
from clusternode.simulation.datagrams import DatagramWorld, Weather


def address(number: int) -> PeerAddress:
    return PeerAddress("udp", f"10.0.0.{number}", 5060)


OURS = address(200)


def make_world(kamailios: int, seed: int, weather: Weather) -> DatagramWorld:
    world = DatagramWorld(Random(seed), weather)
    for number in range(1, kamailios + 1):
        seeds = () if number == 1 else (address(1),)
        rng = Random(f"{seed}/{number}")
        kamailio = SimulatedKamailio(address(number), seeds, world.now, rng, channels=("chan",))
        world.add(address(number).host, kamailio)
        world.run(world.now + 0.1)
    world.run(world.now + 15)
    return world


def add_ours(world: DatagramWorld, seed: int = 0) -> KamailioNode:
    first = NamedAddress("udp", address(1).host, 5060)
    settings = KamailioSettings(
        server_address=OURS, notification_address=(first,), ping_interval=5.0
    )
    node = KamailioNode("kamailio", settings, world.now, Random(f"{seed}/ours"))
    world.add(OURS.host, node)
    return node


def kamailios(world: DatagramWorld) -> list[SimulatedKamailio]:
    return [node for node in world.nodes.values() if isinstance(node, SimulatedKamailio)]


def assert_unharmed(world: DatagramWorld) -> None:
    assert not any(each.is_wedged or each.is_silent for each in kamailios(world))


def is_whole(world: DatagramWorld, node: KamailioNode) -> bool:
    everybody = kamailios(world)
    return len(node.membership.members.active()) == len(everybody) and all(
        each.statuses.get(OURS) == "active" for each in everybody
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_bus_of_28_with_loss_is_seen_whole_and_hears_each_message_once(seed):
    weather = Weather(loss=0.05, doubled=0.05)
    world = make_world(27, seed, weather)
    node = add_ours(world)
    world.run(world.now + 12)
    assert is_whole(world, node)

    results = []
    for number in range(20):
        wanted = node.publish(
            world.now, DeliveryId(number), "chan", f"m{number}".encode(), "text/plain",
            destinations=None,
        )  # fmt: skip
        results += world.carry(OURS.host, wanted)
    results += [effect for _, effect in world.run(world.now + 31)]

    codes = Counter(each.code for each in results if isinstance(each, Settled))
    assert sum(codes.values()) == 20 * 27
    assert codes[ResultCode.OK] + codes[ResultCode.TIMEOUT] == 20 * 27
    for kamailio in kamailios(world):  # it has no memory of copies, so at least once
        heard = {body for origin, _, body in kamailio.received if origin == OURS.node_id}
        assert len(heard) >= codes[ResultCode.OK] // 27
    assert_unharmed(world)


@pytest.mark.slow
def test_what_kamailios_send_arrives_once_whatever_the_network_doubles():
    world = make_world(9, 5, Weather(loss=0.1, doubled=0.3))
    node = add_ours(world)
    world.run(world.now + 12)
    arrived = []
    for number in range(10):
        for kamailio in kamailios(world):
            wanted = kamailio.broadcast(world.now, "chan", f"{number}".encode())
            world.carry(kamailio.own.host, wanted)
        for host, effect in world.run(world.now + 0.5):
            if isinstance(effect, Arrived) and host == OURS.host:
                arrived.append((effect.origin, effect.message.body))
                finished = node.finish(world.now, [(effect.ticket, ResultCode.OK)])
                world.carry(OURS.host, finished)
    for host, effect in world.run(world.now + 10):
        if isinstance(effect, Arrived) and host == OURS.host:
            arrived.append((effect.origin, effect.message.body))

    assert set(Counter(arrived).values()) == {1}
    assert len(arrived) >= 85
    assert node.duplicates > 0
    assert_unharmed(world)


def is_announced(node):
    return node.membership.is_announced


@pytest.mark.long
def test_a_full_bus_is_watched_but_not_joined():
    world = make_world(29, 1, Weather())
    node = add_ours(world)
    found = world.run(world.now + 20)

    assert not is_announced(node)
    assert len(node.membership.members.active()) == 29
    limits = [
        effect.event
        for _, effect in found
        if isinstance(effect, Raise) and isinstance(effect.event, LimitReached)
    ]
    assert [limit.limit for limit in limits] == ["bus is full"]
    assert all(OURS not in each.statuses for each in kamailios(world))
    assert_unharmed(world)

    world.kill(address(29).host)
    world.run(world.now + 60)
    assert is_announced(node)
    assert is_whole(world, node)
    assert_unharmed(world)


def test_a_killed_kamailio_is_forgotten_and_its_ghost_does_not_come_back():
    world = make_world(5, 2, Weather())
    add_ours(world)
    world.run(world.now + 6)
    world.kill(address(3).host)
    found = world.run(world.now + 60)

    gone = [
        effect.event.status
        for _, effect in found
        if isinstance(effect, Raise)
        and getattr(effect.event, "node_id", "") == address(3).node_id
        and hasattr(effect.event, "status")
    ]
    assert gone == ["not_active", "disabled", "removed"]


def test_we_leave_and_all_know_at_once():
    world = make_world(5, 3, Weather())
    node = add_ours(world)
    world.run(world.now + 6)
    told = []
    world.carry(OURS.host, node.leave(world.now, lambda: told.append(True)))
    world.run(world.now + 0.5)

    assert told == [True]
    assert {each.statuses[OURS] for each in kamailios(world)} == {"disabled"}
    assert_unharmed(world)


def test_the_same_seed_gives_the_same_run():
    runs = []
    for _ in range(2):
        world = make_world(6, 9, Weather(loss=0.2, doubled=0.2))
        add_ours(world)
        world.run(world.now + 20)
        runs.append((world.lost, world.delivered))

    assert runs[0] == runs[1]
