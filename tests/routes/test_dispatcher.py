"""Messages and requests: order, results, bounds, isolation."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from clusternode.bus.interface import Arrivals
from clusternode.config import ChannelSection
from clusternode.core.types import ChannelName, NodeId, ResultCode, Tag
from clusternode.core.wire import messages as wire
from clusternode.core.wire.limits import CHANNELS_MAX
from clusternode.errors import RouteError
from clusternode.routes.monitor import Deadlines, Monitor, Watchdog
from clusternode.routes.runner import SLICE
from clusternode.routes.table import Kind, RouteTable, make_handler


def scope_of(table):
    """Return the global names of the routes file that a table was loaded from."""
    function = table.handlers[0].function
    return getattr(function, "function", function).__globals__


async def test_messages_are_handled_in_order_and_finished_in_one_batch(bus, run, script):
    table = script("""
        @routes.message("fraud")
        def block(message):
            seen.append((message.origin, message.channel, message.text))
    """)
    async with run(table):
        tickets = bus.message("fraud", "a", "b", "c")
        codes = await bus.finished(tickets)

    assert codes == [200, 200, 200]
    assert bus.batches == [tickets]
    assert scope_of(table)["seen"] == [("n2", "fraud", each) for each in "abc"]


async def test_a_channel_without_handlers_is_404(bus, run, script):
    async with run(script("")):
        assert await bus.finished(bus.message("fraud", "a")) == [404]


async def test_the_bus_is_told_the_channels_that_are_listened_to(bus, run, script):
    table = script("""
        @routes.message("fraud")
        def block(message): ...

        @routes.request("locate", via="elsewhere")
        def locate(request): ...
    """)
    async with run(table):
        assert bus.channels == ["fraud"]


async def test_one_handler_that_raises_makes_500_and_the_others_still_run(bus, run, script, caplog):
    table = script("""
        @routes.message("fraud")
        def first(message):
            raise KeyError("no")

        @routes.message("fraud")
        async def second(message):
            seen.append(message.text)
    """)
    async with run(table) as dispatcher:
        assert await bus.finished(bus.message("fraud", "a", "b")) == [500, 500]
        assert [each.failures for each in dispatcher.routes()] == [2, 0]

    assert scope_of(table)["seen"] == ["a", "b"]
    lines = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert lines == ["route message:fraud first: KeyError: 'no'"]


@pytest.mark.parametrize("call", ["sys.exit(3)", "raise ExceptionGroup('x', [ValueError()])"])
async def test_nothing_that_a_handler_raises_reaches_the_agent(bus, run, script, call):
    table = script(f"""
        import sys

        @routes.message("fraud")
        def block(message):
            {call}
    """)
    async with run(table):
        assert await bus.finished(bus.message("fraud", "a")) == [500]


async def test_a_handler_may_refuse_with_a_code_of_its_own(bus, run, script):
    table = script("""
        @routes.message("fraud")
        def block(message):
            raise routes.Refuse(403, "not from you")
    """)
    async with run(table) as dispatcher:
        assert await bus.finished(bus.message("fraud", "a")) == [403]
        assert dispatcher.routes()[0].failures == 0


async def test_results_do_not_wait_behind_a_handler_that_waits(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            if message.text == "slow":
                await trio.sleep(3)
    """)
    async with run(table):
        first, slow, last = bus.message("fraud", "a", "slow", "b")
        start = trio.current_time()
        await bus.finished([first])
        assert trio.current_time() == start

        assert slow not in bus.results and last not in bus.results
        await bus.finished([slow, last])
        assert trio.current_time() == start + 3


async def test_one_origin_is_in_order_while_others_go_on(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            await trio.sleep(float(message.text))
            seen.append((message.origin, message.text))
    """)
    async with run(table):
        slow = bus.message("fraud", "5", "1", origin="n2")
        fast = bus.message("fraud", "2", origin="n3")
        await bus.finished(slow + fast)

    assert scope_of(table)["seen"] == [("n3", "2"), ("n2", "5"), ("n2", "1")]


async def test_an_unordered_channel_handles_messages_of_one_origin_at_a_time_each(
    bus, run, script, autojump_clock
):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            await trio.sleep(float(message.text))
            seen.append(message.text)
    """)
    async with run(table, channels={"fraud": ChannelSection(ordered=False, concurrency=2)}):
        start = trio.current_time()
        await bus.finished(bus.message("fraud", "3", "1", "1", "1"))

    assert scope_of(table)["seen"][:2] == ["1", "1"]
    assert trio.current_time() - start == 3


async def test_concurrency_bounds_the_origins_at_a_time(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            await trio.sleep(1)
    """)
    async with run(table, channels={"fraud": ChannelSection(concurrency=2)}):
        start = trio.current_time()
        tickets = [t for n in range(5) for t in bus.message("fraud", "x", origin=f"n{n}")]
        await bus.finished(tickets)

    assert trio.current_time() - start == 3


async def test_a_full_queue_refuses_with_486_and_says_so_once(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            await trio.sleep(1)
    """)
    async with run(table, channels={"fraud": ChannelSection(queue_size=2)}) as dispatcher:
        with dispatcher.events.subscribe("limit:reached") as limits:
            codes = await bus.finished(bus.message("fraud", *"abcd") + bus.message("fraud", "e"))
            assert codes == [200, 200, 486, 486, 486]
            assert (await limits.get()).parameters["limit"] == "queue_size"
        assert await bus.finished(bus.message("fraud", "f")) == [200]
        assert dispatcher.counters["refused"] == 3


async def test_a_channel_may_report_202_at_once(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            await trio.sleep(1)
            seen.append(message.text)
    """)
    async with run(table, channels={"fraud": ChannelSection(result="queued")}):
        (ticket,) = bus.message("fraud", "a")
        assert bus.results[ticket] == ResultCode.QUEUED
        await trio.sleep(2)

    assert scope_of(table)["seen"] == ["a"]


async def test_an_inline_handler_has_run_when_arrived_returns(bus, run, script):
    table = script("""
        @routes.message("fraud", handling="inline")
        def block(message):
            assert routes.cluster("voip") is message.bus
    """)
    async with run(table):
        tickets = bus.message("fraud", "a", "b")
        assert [bus.results[ticket] for ticket in tickets] == [200, 200]


async def test_a_handler_is_stopped_at_its_time_limit_and_the_rest_goes_on(
    bus, run, script, autojump_clock
):
    table = script("""
        @routes.message("fraud", time_limit=2)
        async def block(message):
            if message.text == "stuck":
                await trio.sleep_forever()

        @routes.message("fraud")
        def count(message):
            seen.append(message.text)
    """)
    async with run(table) as dispatcher:
        with dispatcher.events.subscribe("route:failed") as failures:
            start = trio.current_time()
            codes = await bus.finished(bus.message("fraud", "a", "stuck", "b"))
            assert trio.current_time() - start == 2
            assert "stopped after 2 s" in (await failures.get()).parameters["reason"]
        assert dispatcher.routes()[0].running == 0

    assert codes == [200, 500, 200]
    assert scope_of(table)["seen"] == ["a", "stuck", "b"]


async def test_a_message_is_replicated_with_its_source(bus, run, script):
    table = script("""
        @routes.message("fraud")
        def block(message):
            seen.append(message.replicate(skip_loop_test=True))
    """)
    async with run(table):
        await bus.finished(bus.message("fraud", "a"))

    assert bus.replicated == [("n2", False, True)]
    assert scope_of(table)["seen"][0].is_complete


async def test_thread_handlers_run_in_a_bounded_pool(bus, run, script):
    table = script("""
        import threading
        gate = threading.Event()

        @routes.message("cdr", thread=True)
        def store(message):
            gate.wait(5)
    """)
    async with run(table, threads=1):
        first = bus.message("cdr", "a", origin="n2")
        await trio.testing.wait_all_tasks_blocked()
        assert await bus.finished(bus.message("cdr", "b", origin="n3")) == [486]
        scope_of(table)["gate"].set()
        assert await bus.finished(first) == [200]


async def test_a_thread_that_takes_too_long_is_given_up(bus, run, script):
    table = script("""
        import threading
        gate = threading.Event()

        @routes.message("cdr", thread=True, time_limit=0.01)
        def store(message):
            gate.wait(5)
    """)
    async with run(table, threads=1):
        assert await bus.finished(bus.message("cdr", "a")) == [500]
        scope_of(table)["gate"].set()


async def test_what_a_request_handler_returns_is_one_reply(bus, run, script):
    table = script("""
        @routes.request("locate")
        def locate(request):
            return {"alice": "10.0.0.7", "bob": None, "raw": b"x"}[request.text]
    """)
    async with run(table):
        tickets = bus.request("locate", "alice", "bob", "raw", "carol")
        assert await bus.finished(tickets) == [200, 200, 200, 500]

    tags = [f"tag-{ticket}" for ticket in tickets]
    assert bus.replied == [("n2", tags[0], b"10.0.0.7", 200), ("n2", tags[2], b"x", 200)]


async def test_a_request_handler_may_reply_often_and_with_codes(bus, run, script):
    table = script("""
        @routes.request("locate")
        async def locate(request):
            await (await request.reply("one"))
            await request.reply(b"two", code=404)
            return {"three": 3}
    """)
    async with run(table):
        assert await bus.finished(bus.request("locate", "alice")) == [200]

    assert [each[2:] for each in bus.replied] == [
        (b"one", 200),
        (b"two", 404),
        (b'{"three": 3}', 200),
    ]


async def test_a_reply_that_is_refused_raises_in_the_handler(bus, run, script):
    table = script("""
        from clusternode.errors import Overloaded

        @routes.request("locate")
        async def locate(request):
            try:
                await request.reply("one")
            except Overloaded as error:
                seen.append(str(error))
    """)
    bus.reply_result = ResultCode.BUSY
    async with run(table):
        await bus.finished(bus.request("locate", "alice"))

    assert scope_of(table)["seen"] == ["reply to n2: 486 BUSY"]


async def test_requests_run_concurrently_up_to_a_bound(bus, run, script, autojump_clock):
    table = script("""
        @routes.request("locate")
        async def locate(request):
            await trio.sleep(1)
    """)
    async with run(table, requests_max=3):
        start = trio.current_time()
        codes = await bus.finished(bus.request("locate", *"abcde"))
        assert trio.current_time() - start == 1
        assert codes == [200, 200, 200, 486, 486]
        assert await bus.finished(bus.request("locate", "f")) == [200]


async def test_requests_that_do_not_wait_never_meet_the_bound(bus, run, script):
    table = script("""
        @routes.request("locate")
        async def locate(request):
            return "here"
    """)
    async with run(table, requests_max=1):
        codes = await bus.finished(bus.request("locate", *["x"] * 50))
        assert set(codes) == {200}


async def test_a_held_request_ends_when_the_hold_does(bus, run, script, autojump_clock):
    table = script("""
        async def answer_later(request, hold):
            with hold:
                await trio.sleep(2)
                await request.reply("late")

        @routes.request("locate")
        def locate(request):
            request.start_soon(answer_later, request, request.hold())
    """)
    async with run(table, requests_max=1):
        start = trio.current_time()
        assert await bus.finished(bus.request("locate", "alice")) == [200]
        assert trio.current_time() - start == 2
        assert await bus.finished(bus.request("locate", "bob")) == [200]

    assert [each[2] for each in bus.replied] == [b"late", b"late"]


async def test_a_hold_that_nobody_releases_ends_with_the_request(bus, run, script, autojump_clock):
    table = script("""
        @routes.request("locate")
        async def locate(request):
            request.hold()
    """)
    async with run(table):
        start = trio.current_time()
        assert await bus.finished(bus.request("locate", "alice", timeout=4)) == [500]
        assert trio.current_time() - start == 4


async def test_a_background_call_that_raises_is_reported_by_its_name(bus, run, script, caplog):
    table = script("""
        async def refresh():
            raise ValueError("no")

        @routes.message("fraud")
        def block(message):
            message.start_soon(refresh)
    """)
    async with run(table):
        await bus.finished(bus.message("fraud", "a"))
        await trio.testing.wait_all_tasks_blocked()

    assert "route background refresh: ValueError: no" in caplog.text


async def test_hooks_run_at_start_and_stop_and_cannot_stop_either(bus, run, script, autojump_clock):
    table = script("""
        @routes.on_start
        async def begin(agent):
            seen.append(("start", agent.bus.name))
            await trio.sleep_forever()

        @routes.on_stop
        def end(agent):
            assert routes.cluster("voip") is agent.bus
            seen.append("stop")
            raise ValueError
    """)
    async with run(table, time_limit=1) as dispatcher:
        await dispatcher.stop()

    assert scope_of(table)["seen"] == [("start", "voip"), "stop"]


async def test_via_takes_from_one_cluster_only(bus, run, script):
    table = script("""
        @routes.message("fraud", via="voip")
        def block(message):
            seen.append(message.cluster("lab").name)
    """)
    lab = type(bus)("lab")
    async with run(table, buses=[lab]):
        assert await bus.finished(bus.message("fraud", "a")) == [200]
        assert await lab.finished(lab.message("fraud", "a")) == [404]

    assert scope_of(table)["seen"] == ["lab"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('@routes.message("a b")\ndef f(m): ...', "expected a channel"),
        ('@routes.message("a", handling="inline")\nasync def f(m): ...', "only plain"),
        ('@routes.message("a", thread=True)\nasync def f(m): ...', "not for async def"),
        ('@routes.request("a")\nasync def f(m):\n    yield 1', "it does not yield"),
        ('@routes.message("a", time_limit=0)\ndef f(m): ...', "above 0"),
        ('@routes.message("a", handling="later")\ndef f(m): ...', "inline, queued"),
    ],
)
def test_a_wrong_option_is_refused_with_the_name_of_the_route(script, text, expected):
    with pytest.raises(RouteError, match=expected):
        script(text)


def test_an_inline_channel_refuses_async_handlers_at_install(script):
    from clusternode.config import RoutesSection
    from clusternode.routes.dispatcher import Dispatcher

    table = script('@routes.message("a")\nasync def f(m): ...')
    with pytest.raises(RouteError, match="plain functions only"):
        Dispatcher(RoutesSection(), {ChannelName("a"): ChannelSection(handling="inline")}, table)


async def test_a_route_that_holds_the_loop_is_named(bus, run, script, caplog):
    table = script("""
        import time

        @routes.message("fraud")
        def spin(message):
            end = time.perf_counter() + 0.4
            while time.perf_counter() < end:
                pass
    """)
    async with run(table, watchdog=0.1) as dispatcher:
        with dispatcher.events.subscribe("node:lagged") as lags:
            await bus.finished(bus.message("fraud", "a"))
            view = await lags.get()

    assert view.parameters["route"] == "message:fraud spin"
    assert "route message:fraud spin has held the event loop" in caplog.text


@pytest.mark.slow
def test_the_watchdog_sleeps_while_nothing_runs_and_wakes_when_something_does(caplog):
    table = RouteTable()
    table.add(make_handler(Kind.MESSAGE, "fraud", lambda message: None))
    (handler,) = table.of_kind(Kind.MESSAGE)
    monitor = Monitor()

    async def main():
        named = trio.Event()
        watchdog = Watchdog(monitor, 0.1, lambda handler, seconds: named.set())
        watchdog.start(trio.lowlevel.current_trio_token())
        with trio.fail_after(30):
            while monitor.watched.is_set():  # noqa: ASYNC110  # a thread tells nobody
                await trio.sleep(0.01)
            monitor.begin("batch")
            monitor.handler = handler
            assert monitor.watched.is_set()
            await named.wait()
        watchdog.stop()

    trio.run(main)
    assert "has held the event loop" in caplog.text


async def test_no_origin_starves_behind_a_busy_one(bus, run, script):
    table = script("""
        @routes.message("fraud")
        def block(message):
            seen.append(message.origin)
    """)
    async with run(table):
        busy = [t for _ in range(3) for t in bus.message("fraud", *"abc", origin="n2")]
        other = bus.message("fraud", "x", origin="n3")
        await bus.finished(busy + other)

    assert scope_of(table)["seen"][:4] == ["n2", "n2", "n2", "n3"]


async def test_a_plain_function_that_returns_a_coroutine_is_told_so(bus, run, script, caplog):
    table = script("""
        async def later(message): ...

        @routes.message("fraud")
        def block(message):
            return later(message)
    """)
    async with run(table):
        assert await bus.finished(bus.message("fraud", "a")) == [500]

    assert "declare it with async def" in caplog.text


async def test_many_messages_that_wait_all_end_once(bus, run, script, autojump_clock):
    table = script("""
        @routes.message("ordered")
        @routes.message("unordered")
        async def work(message):
            await trio.sleep(int(message.text) % 3)
    """)
    channels = {"unordered": ChannelSection(ordered=False, concurrency=7)}
    async with run(table, channels=channels) as dispatcher:
        tickets = []
        for number in range(300):
            channel = ("ordered", "unordered")[number % 2]
            tickets += bus.message(channel, str(number), origin=f"n{number % 29}")
        assert set(await bus.finished(tickets)) == {200}
        assert [each.running for each in dispatcher.routes()] == [0, 0]
        assert all(not group.size for group in dispatcher._plans["voip"].messages.values())


async def test_a_message_goes_from_one_cluster_into_another(bus, run, script):
    table = script("""
        @routes.message("bridge", via="voip")
        def bridge(message):
            message.replicate(to=message.cluster("lab"))
    """)
    lab = type(bus)("lab")
    async with run(table, buses=[lab]):
        assert await bus.finished(bus.message("bridge", "a")) == [200]

    assert lab.replicated == [("n2", False, False)] and bus.replicated == []


CHILD_THAT_FAILS_WHEN_CANCELLED = """
    async def child():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cannot clean up")

    async def wait_with_child():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(trio.sleep_forever)
"""


async def test_a_nursery_that_fails_at_the_time_limit_harms_only_its_message(
    bus, run, script, autojump_clock
):
    table = script(
        CHILD_THAT_FAILS_WHEN_CANCELLED
        + """
    @routes.message("fraud", time_limit=2)
    async def block(message):
        if message.text == "stuck":
            await wait_with_child()
    """
    )
    async with run(table) as dispatcher:
        codes = await bus.finished(bus.message("fraud", "a", "stuck", "b"))
        assert dispatcher.routes()[0].running == 0

    assert codes == [200, 500, 200]


async def test_a_nursery_that_exits_harms_only_its_message(bus, run, script):
    table = script("""
        @routes.message("fraud")
        async def block(message):
            async def child():
                raise SystemExit(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
    """)
    async with run(table):
        assert await bus.finished(bus.message("fraud", "a", "b")) == [500, 500]


async def test_a_hook_with_a_nursery_that_fails_at_the_time_limit_harms_nobody(
    run, script, autojump_clock
):
    table = script(
        CHILD_THAT_FAILS_WHEN_CANCELLED
        + """
    @routes.on_start
    async def prepare(agent):
        await wait_with_child()
    """
    )
    async with run(table, time_limit=2) as dispatcher:
        assert dispatcher.counters["failures"] == 2  # what it raised, and that it was stopped


async def test_messages_that_wait_during_a_reload_go_to_the_handlers_that_wait(bus, run, script):
    plain = script(f"""
        import time

        @routes.message("fraud")
        def block(message):
            until = time.perf_counter() + 2 * {SLICE}
            while time.perf_counter() < until:
                pass
    """)
    waiting = script("""
        @routes.message("fraud")
        async def block(message):
            await trio.lowlevel.checkpoint()
            seen.append(message.text)
    """)
    async with run(plain, load=lambda: waiting) as dispatcher:
        tickets = bus.message("fraud", *"abcdef")
        while not bus.results:
            await trio.lowlevel.checkpoint()
        dispatcher.reload()

        assert await bus.finished(tickets) == [200] * 6
    seen = scope_of(waiting)["seen"]
    assert seen == list("abcdef")[-len(seen) :] != []


async def test_one_deadline_may_clear_another_that_is_due_as_well(autojump_clock, nursery):
    deadlines = Deadlines()
    expired: list[str] = []

    def expire_and_clear() -> None:
        expired.append("a")
        deadlines.clear("b")

    at = trio.current_time() + 1
    deadlines.set("a", at, expire_and_clear)
    deadlines.set("b", at, lambda: expired.append("b"))
    nursery.start_soon(deadlines.run)

    await trio.sleep(2)

    assert expired == ["a"]


async def test_more_channels_than_others_can_be_told_change_nothing(bus, run, script):
    old = script('@routes.message("fraud")\ndef block(message): ...')
    new = script(f"""
        for number in range({CHANNELS_MAX + 1}):
            @routes.message(f"c{{number}}")
            def block(message): ...
    """)
    async with run(old, load=lambda: new) as dispatcher:
        with pytest.raises(RouteError, match="1025 channels"):
            dispatcher.reload()
        assert await bus.finished(bus.message("fraud", "a")) == [200]


@pytest.mark.parametrize(
    ("kinds", "heard", "unheard"),
    [
        (["message"], ["message"], 0),
        (["request"], ["request"], 0),
        (["message", "request"], ["message", "request"], 0),
        ([], [], 2),
    ],
)
async def test_what_may_be_a_message_or_a_request_is_missed_only_where_neither_is_heard(
    bus, run, script, kinds, heard, unheard
):
    table = script(
        "".join(
            f"""
        @routes.{kind}("generic")
        def {kind}(context):
            seen.append("{kind}")
    """
            for kind in kinds
        )
    )
    async with run(table) as dispatcher:
        items: list[tuple[int, wire.Answerable]] = [
            (1, wire.Message(ChannelName("generic"), "text/plain", b"x", 1)),
            (2, wire.Request(ChannelName("generic"), "text/plain", b"x", Tag("t"), 5.0)),
        ]
        both = Arrivals(bus, NodeId("n2"), items, lambda results: None, is_either=True)
        dispatcher.arrived(both)
        await trio.testing.wait_all_tasks_blocked()

        assert dispatcher.counters["unheard"] == unheard
    assert not kinds or sorted(scope_of(table)["seen"]) == heard
