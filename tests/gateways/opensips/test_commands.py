"""Management commands of other nodes do nothing unless the configuration lists them."""

from __future__ import annotations

import pytest

from clusternode.core.sip_events import CommandReceived
from clusternode.errors import BodyTooLarge, ConfigError, LocalProtocolError
from clusternode.gateways.opensips.commands import Commands
from clusternode.gateways.opensips.messages import Command, Trailer
from tests.gateways.opensips.around import Around

FROM_1 = Trailer(1, 1, 4)


def test_a_command_that_is_not_listed_is_counted_and_nothing_else():
    around = Around()

    Commands(around, ["core:uptime"]).received(Command(FROM_1, "core:kill"))

    assert (around.events, around.sent) == ([], [])
    assert around.counted == {"commands_refused": 1}


def test_a_listed_command_is_an_event():
    around = Around()

    Commands(around, ["cache:fetch"]).received(
        Command(FROM_1, "cache:fetch", ("local:repl", "k\udcff"))
    )

    assert around.events == [
        CommandReceived("sip", "1", "cache:fetch", ("local:repl", "k\N{REPLACEMENT CHARACTER}"))
    ]


def test_a_command_goes_to_one_node_or_to_all():
    around = Around()
    around.unreachable.add(2)
    commands = Commands(around, [])

    assert commands.send(1, "core:uptime") is True
    assert commands.send(2, "core:uptime") is False
    assert commands.broadcast("cache:fetch", ["local:repl", "k1"]) == 2

    assert around.sent == [
        Command(Trailer(1, 4, 1), "core:uptime"),
        Command(Trailer(1, 4, 1), "cache:fetch", ("local:repl", "k1")),
        Command(Trailer(1, 4, 3), "cache:fetch", ("local:repl", "k1")),
    ]


def test_what_no_packet_can_hold_is_refused_to_the_caller():
    around = Around()
    commands = Commands(around, [])
    with pytest.raises(ConfigError):
        commands.send(1, "")
    with pytest.raises(ConfigError):
        commands.send(1, "x", ["parameter"] * 21)
    with pytest.raises(BodyTooLarge):
        commands.send(1, "x", ["y" * 60_000, "z" * 60_000])
    with pytest.raises(BodyTooLarge):
        commands.broadcast("x", ["é" * 40_000])
    with pytest.raises(LocalProtocolError):
        commands.broadcast("x", ["\ud800"])

    assert around.sent == []
