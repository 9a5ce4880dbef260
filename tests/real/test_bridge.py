"""One bus from three: real Kamailios, simulated OpenSIPS, two agents and a real Kafka."""

from __future__ import annotations

import io
import os

import pytest
import trio

from clusternode.cli.local.bridge_story import BridgeStory
from clusternode.cli.local.bridge_world import make_world
from clusternode.cli.local.fleet import Fleet
from tests.real.kafka_broker import GIVEN, Broker, Missing

pytestmark = pytest.mark.real

STORY_TIMEOUT = 240.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A broker that runs, or the address of the one that the user has given."""
    if os.environ.get(GIVEN):
        yield None
        return
    try:
        broker = Broker.prepare(tmp_path_factory.mktemp("broker"))
    except Missing as missing:
        pytest.skip(f"no Kafka here: {missing}")
    broker.start()
    yield broker
    broker.kill()


async def test_an_attacker_is_banned_users_are_found_and_a_killed_bridge_loses_nothing(
    broker, require_program, fleet: Fleet
):
    require_program("kamailio")
    output = io.StringIO()
    address = os.environ.get(GIVEN) or broker.address()
    if broker is not None:
        await broker.ready()

    with trio.fail_after(STORY_TIMEOUT), make_world(fleet, address) as world:
        assert world.kinds == "three real Kamailios, three simulated OpenSIPS, a real Kafka"
        await BridgeStory(world, output).tell()

    told = output.getvalue()
    for line in (
        "OpenSIPS 3 has banned 192.0.2.66",
        "the topic fraud has 192.0.2.66",
        "$sht(ban=>192.0.2.77) of the first Kamailio is in all caches",
        "192.0.2.88 of the second OpenSIPS is in $sht(ban) of all Kamailios",
        'asks everyone for alice: "alice is at sip:alice@198.51.100.1"',
        'asks everyone for bob: "here: bob is at sip:bob@198.51.100.2"',
        "OpenSIPS 3: 201 of 201 bans",
        "topic fraud: 201 of 201",
    ):
        assert line in told
