"""The policies of `virtual:`, on a virtual clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from clusternode.backends.virtual import split_members
from clusternode.errors import ConfigError
from clusternode.testing.backends import backend_world
from tests.backends.fake_backend import Fakes

EVENT = "E_TEST"


@pytest.fixture
def fakes():
    return Fakes()


@pytest.fixture
async def world(fakes):
    async with backend_world(registry=fakes.registry()) as world:
        yield world


async def statuses(world, numbers):
    raised = [world.hub.raise_event(EVENT, [number]) for number in numbers]
    return [(await each)[0].status for each in raised]


async def test_parallel_notifies_all_and_reports_the_worst(world, fakes, autojump_clock):
    fakes["a"].mode = "refuse"
    world.subscribe(EVENT, "virtual:PARALLEL fake:a fake:b fake:c")

    (status,) = await statuses(world, [1])

    assert not status.ok
    assert status.detail == "fake:a: refused"
    assert not status.definite
    assert fakes["b"].got == fakes["c"].got == [1]


async def test_parallel_is_delivered_when_everyone_has_it(world, fakes, autojump_clock):
    world.subscribe(EVENT, "virtual:PARALLEL fake:a fake:b")

    (status,) = await statuses(world, [1])

    assert status.ok


async def test_a_member_of_parallel_that_hangs_delays_nobody_else(world, fakes, autojump_clock):
    fakes["a"].mode = "hang"
    world.subscribe(EVENT, "virtual:PARALLEL fake:a fake:b")

    await statuses(world, range(20))

    assert fakes["b"].got == list(range(20))


async def test_failover_uses_the_first_that_can(world, fakes, autojump_clock):
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")

    (status,) = await statuses(world, [1])

    assert (status.ok, status.detail) == (True, "fake:a here")
    assert fakes["b"].got == []


@pytest.mark.parametrize("mode", ["refuse", "hang", "crash"])
async def test_failover_loses_nothing_when_the_first_fails(world, fakes, mode, autojump_clock):
    fakes["a"].mode = mode
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")

    found = await statuses(world, range(50))

    assert all(status.ok for status in found)
    assert fakes["b"].got == list(range(50))


async def test_failover_loses_nothing_when_the_first_fails_in_the_middle(
    world, fakes, autojump_clock
):
    fakes["a"].mode = "partly"
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")

    found = await statuses(world, range(50))

    assert all(status.ok for status in found)
    assert sorted(fakes["a"].got + fakes["b"].got) == list(range(50))
    assert fakes["a"].got == [0]


async def test_a_status_that_comes_late_is_failed_over_too(world, fakes, autojump_clock):
    fakes["a"].mode = "late"
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")
    raised = [world.hub.raise_event(EVENT, [number]) for number in range(3)]
    await trio.testing.wait_all_tasks_blocked()

    first, second, third = fakes["a"].held
    second.settle()
    first.fail("expired", definite=False)
    third.fail("expired")

    assert [(await each)[0].status.ok for each in raised] == [True] * 3
    assert fakes["b"].got == [0, 2]


async def test_a_failed_member_is_skipped_and_tried_again_by_one_event(
    world, fakes, autojump_clock
):
    fakes["a"].mode = "refuse"
    world.subscribe(EVENT, "virtual:FAILOVER?failover_timeout=30 fake:a fake:b")
    await statuses(world, [1])
    tries = fakes["a"].tries

    await statuses(world, [2, 3])
    assert fakes["a"].tries == tries
    await trio.sleep(31)
    await statuses(world, [4, 5, 6])
    assert fakes["a"].tries == tries + 1
    fakes["a"].mode = "ok"
    await trio.sleep(31)
    await statuses(world, [7])
    await statuses(world, [8, 9])

    assert fakes["b"].got == [1, 2, 3, 5, 6, 4]
    assert fakes["a"].got == [7, 8, 9]


async def test_when_all_have_failed_all_are_tried_all_the_same(world, fakes, autojump_clock):
    fakes["a"].mode = fakes["b"].mode = "refuse"
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")

    (lost,) = await statuses(world, [1])
    fakes["b"].mode = "ok"
    (saved,) = await statuses(world, [2])

    assert (lost.ok, lost.definite) == (False, True)
    assert lost.detail == "fake:a: refused; fake:b: refused"
    assert saved.ok
    assert fakes["b"].got == [2]


async def test_round_robin_takes_turns(world, fakes, autojump_clock):
    world.subscribe(EVENT, "virtual:ROUND-ROBIN fake:a fake:b fake:c")

    await statuses(world, range(6))

    assert (fakes["a"].got, fakes["b"].got, fakes["c"].got) == ([0, 3], [1, 4], [2, 5])


async def test_round_robin_goes_on_without_a_dead_member(world, fakes, autojump_clock):
    fakes["b"].mode = "refuse"
    world.subscribe(EVENT, "virtual:ROUND-ROBIN fake:a fake:b fake:c")

    found = await statuses(world, range(30))

    assert all(status.ok for status in found)
    assert sorted(fakes["a"].got + fakes["c"].got) == list(range(30))
    assert fakes["b"].tries == 1


async def test_a_full_queue_of_a_member_passes_on_to_the_next(world, fakes, autojump_clock):
    fakes["a"].mode = "late"
    world.subscribe(EVENT, "virtual:FAILOVER?queue_size=3 fake:a fake:b")

    raised = [world.hub.raise_event(EVENT, [number]) for number in range(3)]
    for number in range(3, 10):
        raised.append(world.hub.raise_event(EVENT, [number]))
        await raised[-1]
    for publication in fakes["a"].held:
        publication.settle()

    assert [(await each)[0].status.ok for each in raised] == [True] * 10
    assert fakes["b"].got == list(range(3, 10))


async def test_virtual_can_be_nested_and_the_status_goes_upwards(world, fakes, autojump_clock):
    fakes["a"].mode = fakes["b"].mode = "refuse"
    uri = "virtual:FAILOVER (virtual:PARALLEL fake:a fake:b) (virtual:ROUND-ROBIN fake:c fake:d)"
    world.subscribe(EVENT, uri)

    first, second = await statuses(world, [1, 2])

    assert first.ok
    assert second.ok
    assert (fakes["c"].got, fakes["d"].got) == ([1], [2])
    assert world.only.to == uri


async def test_the_order_of_members_is_part_of_what_it_is_but_for_parallel(world, autojump_clock):
    world.subscribe(EVENT, "virtual:PARALLEL fake:a fake:b")
    world.subscribe(EVENT, "virtual:PARALLEL fake:b fake:a")
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")
    world.subscribe(EVENT, "virtual:FAILOVER fake:b fake:a")

    shown = [subscriber.to for subscriber in world.subscriptions.subscribers()]
    assert shown == [
        "virtual:PARALLEL fake:a fake:b",
        "virtual:FAILOVER fake:a fake:b",
        "virtual:FAILOVER fake:b fake:a",
    ]


async def test_a_member_is_shared_with_those_who_mean_the_same(world, fakes, autojump_clock):
    world.subscribe(EVENT, "virtual:FAILOVER fake:a fake:b")
    world.subscribe("E_OTHER", "fake:a")

    await statuses(world, [1])
    await world.deliver("E_OTHER", [2])

    assert fakes["a"].got == [1, 2]
    assert fakes["a"].runs == 1


@pytest.mark.parametrize(
    "uri",
    [
        "virtual:",
        "virtual:FAILOVER",
        "virtual:failover fake:a",
        "virtual:FAILOVER fake:a fake:a",
        "virtual:FAILOVER (fake:a",
        "virtual:FAILOVER " + "(" * 9 + "fake:a" + ")" * 9,
        "virtual:FAILOVER none:a",
        "virtual:FAILOVER?failover_timeout=-1 fake:a",
        "virtual:FAILOVER " + " ".join(f"fake:{n}" for n in range(65)),
    ],
)
async def test_what_is_no_virtual_is_refused(world, uri, autojump_clock):
    with pytest.raises(ConfigError):
        world.subscribe(EVENT, uri)


def test_members_are_split_at_blanks_outside_of_parentheses():
    text = "FAILOVER  a\t(virtual:PARALLEL b (virtual:FAILOVER c d)) e(f)"

    assert split_members(text) == [
        "FAILOVER",
        "a",
        "virtual:PARALLEL b (virtual:FAILOVER c d)",
        "e(f)",
    ]
