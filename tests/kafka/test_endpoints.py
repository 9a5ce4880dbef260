"""Endpoints of notifications as routes: named by the watchdog, ended in time, counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import trio

from clusternode.config import RoutesSection
from clusternode.kafka.handlers import ListenerHandle
from clusternode.kafka.notifications import listen
from clusternode.kafka.notifications.envelope import encode, new_message
from clusternode.kafka.records import Record
from clusternode.routes.api import table_being_loaded
from clusternode.routes.dispatcher import Dispatcher
from clusternode.routes.table import Handler, Kind, RouteTable
from tests.routes.conftest import FakeBus

HOLD = 0.4


def record(number: int = 0) -> Record:
    value = encode(new_message({}, "host", "call.ended", number, "info"))
    return Record("notifications.info", 0, number, None, value, (), 0)


def always() -> bool:
    return True


@contextlib.asynccontextmanager
async def listening(
    endpoint: object, *, allow_requeue: bool = False, **settings: float
) -> AsyncIterator[tuple[Dispatcher, ListenerHandle, Handler]]:
    table = RouteTable()
    token = table_being_loaded.set(table)
    listen(["notifications"], [endpoint], allow_requeue=allow_requeue)
    table_being_loaded.reset(token)
    section = RoutesSection(**{"watchdog": 0.0, **settings})  # type: ignore[arg-type]  # by name
    dispatcher = Dispatcher(section, {}, table)
    bus = FakeBus()
    dispatcher.attach(bus)  # type: ignore[arg-type]  # what the routes use of a bus
    (handler,) = table.of_kind(Kind.KAFKA)
    async with trio.open_nursery() as nursery:
        await nursery.start(dispatcher.run)
        yield dispatcher, ListenerHandle(dispatcher, {"voip": bus}, handler), handler  # type: ignore[dict-item]  # as above
        nursery.cancel_scope.cancel()


async def test_an_endpoint_that_holds_the_loop_is_named(caplog):
    class Endpoint:
        def info(self, *arguments):
            end = time.perf_counter() + HOLD
            while time.perf_counter() < end:
                pass

    async with listening(Endpoint(), watchdog=0.1) as (dispatcher, handle, _):
        with dispatcher.events.subscribe("node:lagged") as lags:
            await handle([record()], always)
            view = await lags.get()

    assert view.parameters["route"].endswith("Endpoint.info")
    assert "Endpoint.info has held the event loop" in caplog.text


async def test_an_endpoint_is_ended_at_the_time_limit_of_routes(autojump_clock, caplog):
    class Endpoint:
        async def info(self, *arguments):
            await trio.sleep_forever()

    async with listening(Endpoint(), allow_requeue=True, time_limit=2.0) as (_, handle, handler):
        started = trio.current_time()
        done = await handle([record()], always)

        assert trio.current_time() - started == pytest.approx(2.0)
    assert (done.count, done.error) == (0, "RequestTimeout: stopped after 2 s")
    assert (handler.stats.calls, handler.stats.failures) == (1, 1)
    assert caplog.text.count("stopped after 2 s") == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), BaseExceptionGroup("both", [SystemExit(3)])],
    ids=["error", "exit", "group"],
)
async def test_whatever_an_endpoint_raises_hurts_nobody(error):
    class Endpoint:
        def __init__(self) -> None:
            self.payloads: list[object] = []

        async def info(self, ctxt, publisher_id, event_type, payload, metadata):
            await trio.lowlevel.checkpoint()
            self.payloads.append(payload)
            if payload == 1:
                raise error

    endpoint = Endpoint()
    async with listening(endpoint) as (_, handle, handler):
        done = await handle([record(0), record(1), record(2)], always)

    assert (done.count, endpoint.payloads) == (3, [0, 1, 2])
    assert (handler.stats.calls, handler.stats.failures) == (3, 1)
