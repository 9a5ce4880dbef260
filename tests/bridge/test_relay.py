"""What a relay does with records that wait, and with what the far side cannot be told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from clusternode.bridge.engine import Counters, LinkEngine
from clusternode.bridge.memory import Memory, TokenBucket
from clusternode.bridge.relay import Relay
from clusternode.bus.interface import Bus
from clusternode.kafka.records import Record
from tests.bridge.test_engine import rules_of
from tests.fakes.bus import BODY_MAX, FakeBus

RULE = {"name": "r", "from": "kafka:k/bans", "to": "channel:bans@m1"}


class Events:
    """Takes what bridges raise."""

    def __init__(self) -> None:
        self.raised: list[str] = []

    def raise_event(self, name: str, parameters: Mapping[str, Any]) -> None:
        del parameters
        self.raised.append(name)


class FakeHost:
    """An agent with one bus of each kind."""

    def __init__(self) -> None:
        self.buses: dict[str, Bus] = {name: FakeBus(name) for name in ("m1", "opensips")}
        self.events = Events()


class Chosen:
    is_chosen = True


def relay_of(host: FakeHost, **changes: Any) -> Relay:
    (rule,) = rules_of({**RULE, **changes})
    bucket = TokenBucket(rule.limits.rate, rule.limits.burst)
    engine = LinkEngine(rule, rule.links[0], Memory(), bucket, Counters())
    return Relay(engine, host, Chosen())  # type: ignore[arg-type]  # what is asked of them here


def records(*bodies: bytes) -> list[Record]:
    return [Record("bans", 0, number, None, body, (), 0) for number, body in enumerate(bodies)]


@pytest.mark.parametrize(
    ("to", "body"),
    [
        ("channel:bans@m1", b"x" * (BODY_MAX + 1)),
        ("table:c1@opensips", json.dumps({"action": "delete_prefix", "key": "x"}).encode()),
        ("table:c1@opensips", json.dumps({"action": "set", "key": "\ud800", "value": 1}).encode()),
    ],
)
async def test_a_record_that_cannot_be_said_over_there_is_left_behind(to, body):
    host = FakeHost()
    relay = relay_of(host, to=to)

    handled = await relay.take_records(records(body), lambda: True)

    counters = relay.engine.counters
    assert (handled.count, handled.error) == (1, "")
    assert (counters.unreadable, counters.failed, counters.in_flight) == (1, 0, 0)
    assert host.events.raised == []  # the far side is well


@pytest.mark.parametrize("rate", [3.0, 0.7, 1000 / 3])
async def test_records_wait_for_the_rate_and_none_fails(rate, autojump_clock):
    host = FakeHost()
    relay = relay_of(host, rate=rate, burst=1)
    found = []

    async def take(first: int) -> None:
        some = [Record("bans", first, number, None, b"x", (), 0) for number in range(30)]
        found.append(await relay.take_records(some, lambda: True))

    async with trio.open_nursery() as nursery:
        for partition in range(2):
            nursery.start_soon(take, partition)

    assert [(each.count, each.error) for each in found] == [(30, "")] * 2
    assert trio.current_time() >= 59 / rate - 1
