"""Who gets which events, for how long, and what is told of it; on a virtual clock."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from clusternode.core.events import EVENT_TYPES, PeerUp
from clusternode.errors import ConfigError, RouteError
from clusternode.routes.events import EventHub
from clusternode.routes.subscriptions import SubscriberStatus, SubscriptionRequest
from clusternode.testing.backends import backend_world
from tests.backends.fake_backend import Fakes


@pytest.fixture
def fakes():
    return Fakes()


@pytest.fixture
async def world(fakes):
    async with backend_world(registry=fakes.registry()) as world:
        yield world


async def test_a_subscription_expires(world, fakes, autojump_clock):
    world.subscribe("E_TEST", "fake:a", expire=10.0)

    await trio.sleep(9.9)
    assert await world.deliver("E_TEST", [1])
    await trio.sleep(0.2)

    assert not await world.deliver("E_TEST", [2])
    assert not world.subscriptions.subscribers()
    assert fakes["a"].got == [1]


async def test_subscribing_again_refreshes_the_expiry(world, autojump_clock):
    world.subscribe("E_TEST", "fake:a", expire=10.0)
    await trio.sleep(9.0)
    world.subscribe("E_TEST", "fake:a", expire=10.0)
    await trio.sleep(9.0)

    assert world.only.expires_in_s == pytest.approx(1.0)


async def test_what_is_on_its_way_when_a_subscription_expires_gets_its_status(
    world, fakes, autojump_clock
):
    fakes["a"].mode = "late"
    world.subscribe("E_TEST", "fake:a", expire=10.0)
    raised = world.hub.raise_event("E_TEST", [1])
    await trio.sleep(11.0)

    assert not world.subscriptions.subscribers()
    fakes["a"].held[0].settle()

    assert (await raised)[0].status.ok


async def test_a_wildcard_matches_names_and_aliases(world, fakes, autojump_clock):
    world.subscribe("peer:*", "fake:alias")
    world.subscribe("E_*", "fake:name")

    world.hub.publish(None, PeerUp("voip", "n2", "tcp://10.0.0.2:5062"))
    await world.deliver("E_OWN", ["mine"])
    await trio.testing.wait_all_tasks_blocked()

    assert fakes["alias"].got == ["voip"]
    assert fakes["name"].got == ["voip", "mine"]


async def test_an_unknown_event_is_refused_and_a_close_one_is_named(world, autojump_clock):
    with pytest.raises(ConfigError, match="peer:up"):
        world.hub.subscribe_event("peer:pu", "fake:a")

    world.hub.raise_event("E_OWN")
    world.hub.subscribe_event("E_OWN", "fake:a")
    world.hub.declare(["E_LATER"])
    world.hub.subscribe_event("E_LATER", "fake:a")


async def test_without_subscribers_a_raised_event_is_complete_at_once(world, autojump_clock):
    raised = world.hub.raise_event("E_TEST", {"a": 1})

    assert raised.is_complete
    assert raised.is_ok
    assert await raised == []


async def test_the_report_callback_gets_the_status_of_each_subscriber(world, fakes, autojump_clock):
    fakes["b"].mode = "refuse"
    world.subscribe("E_TEST", "fake:a")
    world.subscribe("E_T*", "fake:b")
    reports: list[SubscriberStatus] = []

    await world.hub.raise_event("E_TEST", [1], report=reports.append)

    assert {(each.event, each.to, each.status.ok) for each in reports} == {
        ("E_TEST", "fake:a", True),
        ("E_T*", "fake:b", False),
    }


async def test_a_report_callback_that_fails_harms_nobody(world, fakes, caplog, autojump_clock):
    world.subscribe("E_TEST", "fake:a")

    (status,) = await world.hub.raise_event("E_TEST", [1], report=lambda status: 1 // 0)

    assert status.status.ok
    assert "report callback" in caplog.text


async def test_a_third_party_that_crashes_is_logged_and_goes_on(
    world, fakes, caplog, autojump_clock
):
    fakes["a"].mode = "crash"
    world.subscribe("E_TEST", "fake:a")

    (failed,) = await world.deliver("E_TEST", [1])
    fakes["a"].mode = "ok"
    (fine,) = await world.deliver("E_TEST", [2])

    assert failed.status.detail == "ZeroDivisionError: a bug"
    assert not failed.status.definite
    assert fine.status.ok
    assert "back end fake:a" in caplog.text


async def test_a_back_end_that_hangs_is_stopped_after_its_time(world, fakes, autojump_clock):
    fakes["a"].mode = "hang"
    world.subscribe("E_TEST", "fake:a")

    (failed,) = await world.deliver("E_TEST", [1])

    assert failed.status.detail == "no answer within 5 s"
    assert not failed.status.definite


async def test_failing_and_recovering_are_events_once_each(world, fakes, autojump_clock):
    seen = []
    world.hub.on_event("subscriber:*", lambda bus, view: seen.append(view))
    fakes["a"].mode = "refuse"
    world.subscribe("E_TEST", "fake:a")

    for number in range(5):
        await world.deliver("E_TEST", [number])
    fakes["a"].mode = "ok"
    await world.deliver("E_TEST", [5])
    await trio.sleep(2.0)
    await world.deliver("E_TEST", [6])

    assert [view.alias for view in seen] == ["subscriber:failed", "subscriber:recovered"]
    assert seen[0].parameters == {"event": "E_TEST", "to": "fake:a", "reason": "refused"}


async def test_a_subscriber_that_fails_and_hears_everything_makes_no_loop(
    world, fakes, autojump_clock
):
    fakes["a"].mode = "refuse"
    world.subscribe("*", "fake:a")

    await world.deliver("E_TEST", [1])
    await trio.sleep(10)

    assert world.only.failed == 2  # the event, and that it failed


async def test_replacing_is_all_or_nothing_and_keeps_what_others_subscribed(world, autojump_clock):
    for event in ("E_A", "E_B", "E_C"):
        world.hub.declare([event])
    replace = world.subscriptions.replace
    world.hub.subscribe_event("E_A", "fake:script")
    replace("configuration", [request("E_A", "fake:1"), request("E_B", "fake:2")])

    with pytest.raises(ConfigError, match=r"subscribe\.2\.to"):
        replace(
            "configuration", [request("E_C", "fake:3"), request("E_A", "nix:")], path="subscribe"
        )
    before = [each.to for each in world.subscriptions.subscribers()]
    replace("configuration", [request("E_B", "fake:2"), request("E_C", "fake:3")])

    assert before == ["fake:script", "fake:1", "fake:2"]
    after = [each.to for each in world.subscriptions.subscribers()]
    assert after == ["fake:script", "fake:2", "fake:3"]


def request(event, uri):
    return SubscriptionRequest(event, uri)


async def test_stopping_delivers_what_is_queued_and_lets_failover_end_well(fakes, autojump_clock):
    fakes["a"].mode = "hang"
    async with backend_world(registry=fakes.registry()) as world:
        world.subscribe("E_TEST", "virtual:FAILOVER fake:a fake:b")
        raised = [world.hub.raise_event("E_TEST", [number]) for number in range(10)]

        await world.subscriptions.drain()

        assert all(each.is_ok for each in raised)
    assert sorted(fakes["b"].got) == list(range(10))


async def test_whatever_happens_every_event_gets_a_status(fakes, autojump_clock):
    fakes["a"].mode = "late"
    async with backend_world(registry=fakes.registry()) as world:
        world.subscribe("E_TEST", "fake:a")
        raised = world.hub.raise_event("E_TEST", [1])
        await trio.testing.wait_all_tasks_blocked()

    (status,) = await raised
    assert status.status.detail == "the agent has stopped"
    assert not status.status.definite


async def test_a_raise_never_waits_for_a_back_end(world, fakes, autojump_clock):
    fakes["a"].mode = "hang"
    world.subscribe("E_TEST", "fake:a", queue_size=100)
    before = trio.current_time()

    for number in range(1000):
        world.hub.raise_event("E_TEST", [number])

    assert trio.current_time() == before
    assert world.only.queued == 100
    assert world.only.overflowed == 900


async def test_nested_events_end_at_a_limit():
    hub = EventHub()
    depth = []

    def again(bus, view):
        depth.append(view)
        hub.raise_event("E_AGAIN")

    hub.on_event("E_AGAIN", again)

    with pytest.raises(RouteError, match="100 events"):
        hub.raise_event("E_AGAIN")
    assert len(depth) == 100


def test_a_notification_has_an_object_an_array_or_no_params():
    hub = EventHub()
    seen = []
    hub.on_event("E_TEST", lambda bus, view: seen.append(json.dumps(view.notification())))

    hub.raise_event("E_TEST", {"k": 1, "k2": "v"})
    hub.raise_event("E_TEST", [1, "v", None])
    hub.raise_event("E_TEST")

    head = '{"jsonrpc": "2.0", "method": "E_TEST"'
    assert seen == [
        f'{head}, "params": {{"k": 1, "k2": "v"}}}}',
        f'{head}, "params": [1, "v", null]}}',
        head + "}",
    ]


@pytest.mark.parametrize("parameters", ["text", b"bytes", {"a": object()}, [float("nan")]])
def test_parameters_that_are_none_are_refused(parameters):
    with pytest.raises(RouteError):
        EventHub().raise_event("E_TEST", parameters)


def test_every_event_of_clusternode_can_be_named():
    hub = EventHub()

    for kind in EVENT_TYPES:
        assert hub.resolve_known(kind.NAME) == hub.resolve_known(kind.ALIAS) == kind.NAME
