"""The event hub: names, filters, waiting, and event routes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from clusternode.core.events import (
    Custom,
    PeerDown,
    PeerUp,
    ReplyReceived,
    RequestReceived,
    RouteFailed,
)
from clusternode.core.types import NodeId, Tag
from clusternode.core.wire import messages as wire
from clusternode.errors import RequestTimeout, RouteError
from clusternode.routes.events import EventHub, to_json, to_notification

UP = PeerUp("voip", "edge-1", "tcp://10.0.0.1:5062")


def scope_of(table):
    return table.handlers[0].function.__globals__


def collect(hub, name, filters=None):
    got = []
    hub.on_event(name, lambda bus, view: got.append(view.name), filters)
    return got


@pytest.mark.parametrize(
    "name", ["E_CLUSTERNODE_PEER_UP", "peer:up", "dmq:peer-up", "peer:*", "E_*_UP", "*"]
)
def test_an_event_is_heard_by_name_alias_and_wildcard(name):
    hub = EventHub()
    got = collect(hub, name)

    hub.publish(None, UP)
    assert got == [UP.NAME]


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({"node_id": "edge-*"}, True),
        ({"node_id": "edge-*", "cluster_id": "voip"}, True),
        ({"node_id": "core-*"}, False),
        ({"nodeid": "*"}, False),  # OpenSIPS ignores a key that the event lacks
    ],
)
def test_every_filter_must_match(filters, matches):
    hub = EventHub()
    got = collect(hub, "peer:up", filters)

    hub.publish(None, UP)
    assert bool(got) is matches


def test_a_cancelled_subscription_hears_nothing():
    hub = EventHub()
    got = []
    subscription = hub.on_event("peer:up", lambda bus, view: got.append(view))
    subscription.cancel()
    subscription.cancel()

    hub.publish(None, UP)
    assert got == []
    assert not hub.listens(UP.NAME, UP.ALIAS)


def test_bodies_are_text_where_they_are_utf8_else_base64():
    assert to_json(RequestReceived("voip", "n2", b"hi", "t", "c"))["msg"] == "hi"
    parameters = to_json(RequestReceived("voip", "n2", b"\xff", "t", "c"))
    assert parameters["msg_base64"] == "/w==" and "msg" not in parameters


def test_a_notification_is_json_rpc():
    assert to_notification(Custom("E_MINE", {})) == {"jsonrpc": "2.0", "method": "E_MINE"}
    assert to_notification(UP)["params"]["node_id"] == "edge-1"


def test_events_of_ones_own_are_raised_by_name():
    hub = EventHub()
    got = collect(hub, "E_MINE", {"n": "3"})
    hub.raise_event("E_MINE", {"n": 3})

    assert got == ["E_MINE"] and "E_MINE" in hub.names
    for name, parameters in (("peer:up", {}), ("a b", {}), ("E_X", {"x": object()})):
        with pytest.raises(RouteError):
            hub.raise_event(name, parameters)


async def test_expect_hears_what_happens_inside_its_body():
    hub = EventHub()
    async with hub.expect("peer:up") as waiter:
        hub.publish(None, UP)
        assert (await waiter.get(1)).parameters["node_id"] == "edge-1"


async def test_expect_times_out(autojump_clock):
    async with EventHub().expect("peer:up") as waiter:
        with pytest.raises(RequestTimeout, match="no peer:up within 2 s"):
            await waiter.get(2)


async def test_wait_for_event_is_registered_when_called_not_when_awaited():
    hub = EventHub()
    waiting = hub.wait_for_event("peer:up")
    hub.publish(None, UP)

    assert (await waiting).name == UP.NAME


async def test_wait_for_event_counts_its_time_from_the_call(autojump_clock):
    waiting = EventHub().wait_for_event("peer:up", timeout=3)
    await trio.sleep(2)
    start = trio.current_time()
    with pytest.raises(RequestTimeout):
        await waiting
    assert trio.current_time() - start == pytest.approx(1)


async def test_a_stream_is_bounded_and_counts_what_it_lost():
    hub = EventHub()
    with hub.subscribe("*", capacity=2) as stream:
        for _ in range(5):
            hub.publish(None, UP)
        assert stream.overflowed == 3
        assert (await stream.get()).alias == "peer:up"
    assert not hub.listens(UP.NAME)


async def test_event_routes_get_parameters_as_attributes(bus, run, script):
    table = script("""
        @routes.event("peer:*", {"node_id": "edge-*"})
        async def changed(event):
            seen.append((event.alias, event.node_id, event.bus.name))

        @routes.on_joined
        def joined(event): ...
    """)
    async with run(table) as dispatcher:
        dispatcher.observed(bus, UP)
        dispatcher.observed(bus, PeerDown("voip", "core-1", ""))
        await trio.testing.wait_all_tasks_blocked()

    assert scope_of(table)["seen"] == [("peer:up", "edge-1", "voip")]


async def test_an_event_route_that_fails_on_failures_makes_no_loop(bus, run, script):
    table = script("""
        @routes.event("route:failed")
        def complain(event):
            seen.append(event.route)
            raise ValueError(event.no_such_parameter)
    """)
    async with run(table) as dispatcher:
        dispatcher.observed(bus, RouteFailed("voip", "x", "y"))
        await trio.testing.wait_all_tasks_blocked()

    assert scope_of(table)["seen"] == ["x"]


async def test_notify_on_event_runs_its_callback_until_it_expires(bus, run, script, autojump_clock):
    table = script("""
        async def note(event):
            seen.append(event.node_id)

        @routes.on_start
        def begin(agent):
            agent.events.notify_on_event("peer:up", None, note, expire=10)
    """)
    async with run(table) as dispatcher:
        dispatcher.observed(bus, UP)
        await trio.sleep(11)
        dispatcher.observed(bus, UP)
        await trio.sleep(1)

    assert scope_of(table)["seen"] == ["edge-1"]


async def test_requests_and_replies_are_events_for_those_who_listen(bus, run, script):
    async with run(script("")) as dispatcher:
        with dispatcher.events.subscribe("E_CLUSTERER_*") as stream:
            bus.request("locate", "alice")
            reply = wire.Reply(Tag("t"), "text/plain", b"here")
            bus.bring([(9, reply)], NodeId("n3"))
            asked, replied = await stream.get(), await stream.get()

    assert asked.name == RequestReceived.NAME and asked.parameters["msg"] == "alice"
    assert replied.name == ReplyReceived.NAME and replied.parameters["src_id"] == "n3"


async def test_requests_of_the_agents_among_themselves_are_no_events(bus, run, script):
    async with run(script("")) as dispatcher:
        with dispatcher.events.subscribe("E_CLUSTERER_*") as stream:
            bus.request("clusternode:view", "")
            bus.request("locate", "alice")
            asked = await stream.get()

    assert asked.parameters["channel"] == "locate"


async def test_membership_events_are_messages_on_the_notification_channel(bus, run, script):
    table = script("""
        @routes.message("notification_peer")
        def changed(message):
            seen.append((message.origin, message.json()))
    """)
    async with run(table) as dispatcher:
        dispatcher.observed(bus, UP)
        await trio.testing.wait_all_tasks_blocked()

    assert scope_of(table)["seen"] == [("n1", to_notification(UP))]
