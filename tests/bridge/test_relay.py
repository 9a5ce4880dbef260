"""What a relay does with records that wait, and with what the far side cannot be told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio

from clusternode.bridge import kamailio, opensips
from clusternode.bridge.changes import ContactChange
from clusternode.bridge.engine import Counters, LinkEngine
from clusternode.bridge.kamailio import RecordIds
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
        self.buses: dict[str, Bus] = {
            name: FakeBus(name) for name in ("m1", "kamailio", "opensips")
        }
        self.events = Events()

    def incarnation_of(self, bus: Bus, node_id: str) -> object:
        return bus.name, node_id

    def is_of_an_agent(self, bus: Bus, node_id: str) -> bool:
        return (bus.name, node_id) == ("", "")


@attrs.frozen
class Heard:
    """A message that has arrived."""

    bus: Bus
    channel: str
    body: bytes
    message_id: int
    origin: str = "n2"
    source: str = "n2"
    content_type: str = "application/json"
    max_forwards: int = 1


class Chosen:
    is_chosen = True

    def __init__(self) -> None:
        self.record_ids = RecordIds()

    def done(self, fingerprint: str) -> None:
        """Nobody else is here to be told."""


def relays_of(host: FakeHost, **changes: Any) -> list[Relay]:
    (rule,) = rules_of({**RULE, **changes})
    bucket = TokenBucket(rule.limits.rate, rule.limits.burst)
    memory, owner = Memory(), Chosen()
    engines = [LinkEngine(rule, link, memory, bucket, Counters()) for link in rule.links]
    return [Relay(each, host, owner) for each in engines]  # type: ignore[arg-type]  # as far as asked


def relay_of(host: FakeHost, **changes: Any) -> Relay:
    (relay,) = relays_of(host, **changes)
    return relay


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


async def test_a_user_of_a_kamailio_who_leaves_in_the_other_world_is_found_there():
    host = FakeHost()
    there, back = relays_of(
        host,
        **{"from": "contacts:location@kamailio", "to": "contacts:location@opensips"},
        direction="both",
    )
    change = ContactChange(action="update", aor="carl", contact="sip:carl@192.0.2.7")
    (told,) = kamailio.write(change, 1.0, "uloc-6-abc-1")
    gone = opensips.write(attrs.evolve(change, action="remove"), 1.0)

    taken = [
        await relay.take_message(Heard(host.buses[bus], channel, body, number))  # type: ignore[arg-type]  # what is asked of it
        for number, (relay, bus, channel, body) in enumerate(
            [
                (there, "kamailio", kamailio.CHANNELS["contacts"], told),
                (back, "opensips", opensips.CHANNELS["contacts"], gone),
            ]
        )
    ]

    bus = host.buses["kamailio"]
    assert isinstance(bus, FakeBus)
    ((_, (_, written), _),) = bus.calls
    assert taken == [200, 200]
    assert json.loads(written)["ruid"] == "uloc-6-abc-1"
