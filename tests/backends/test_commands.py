"""`clusternode events …` against real back ends."""

from __future__ import annotations

import json

import pytest

from clusternode.control.calls import Calls, ControlCounters


class NoStream:
    async def send(self, item: object) -> None:
        raise AssertionError(item)


NO_STREAM = NoStream()
pytestmark = pytest.mark.slow


async def test_a_file_is_subscribed_written_shown_and_unsubscribed(command, tmp_path):
    uri = f"flatstore:{tmp_path}/events"
    await command("events", "raise", "E_SITE", "site=ham")

    subscribed = await command("events", "subscribe", "E_SITE", uri, "--expire", "60")
    raised = await command("events", "raise", "E_SITE", "site=fra", "calls=12")
    shown = await command("events", "subscribers")
    rows = json.loads((await command("events", "subscribers", "E_SITE", uri, "--json")).out)
    ended = await command("events", "unsubscribe", "E_SITE", uri)
    again = await command("events", "unsubscribe", "E_SITE", uri)

    assert subscribed.out == "E_SITE is delivered from now on\n"
    assert raised.out == f"E_SITE was raised\n{uri}: delivered\n"
    assert (tmp_path / "events").read_text() == "E_SITE,fra,12\n"
    assert uri in shown.out
    assert rows[0]["delivered"] == 1
    assert rows[0]["source"] == "control"
    assert 0 < rows[0]["expires_in_s"] <= 60
    assert (ended.status, again.status) == (0, 1)


async def test_values_without_names_are_positional(command, tmp_path):
    await command("events", "raise", "E_SITE")
    await command("events", "subscribe", "E_SITE", f"flatstore:{tmp_path}/events?format=json")

    await command("events", "raise", "E_SITE", "fra", "12")
    await command("events", "raise", "E_SITE", "a=b", "--positional")

    lines = (tmp_path / "events").read_text().splitlines()
    assert [json.loads(line)["params"] for line in lines] == [["fra", 12], ["a=b"]]


async def test_a_failed_delivery_is_told_and_is_the_exit_status(command, tmp_path):
    await command("events", "raise", "E_SITE")
    await command("events", "subscribe", "E_SITE", f"flatstore:{tmp_path}/none/events")

    raised = await command("events", "raise", "E_SITE", "1")
    shown = await command("events", "subscribers")

    assert raised.status == 1
    assert "failed" in raised.out
    assert "No such file or directory" in raised.out
    assert "failing" in shown.out
    assert "No such file or directory" in shown.out


@pytest.mark.parametrize(
    ("event", "uri", "said"),
    [
        ("E_NONE", "log:", "event = 'E_NONE'"),
        ("peer:upp", "log:", "peer:up"),
        ("peer:up", "tpc:127.0.0.1:80", "begins with tcp:"),
        ("peer:up", "tcp:127.0.0.1:80?timeuot=1", "timeout="),
        ("peer:up", "tcp:127.0.0.1:80?timeout=x", "a number of seconds"),
        ("peer:up", "tcp:127.0.0.1", "HOST:PORT"),
        ("peer:up", "virtual:SOMETIMES log:", "PARALLEL, FAILOVER, ROUND-ROBIN"),
        ("peer:up", "virtual:FAILOVER log: lgo:", "log:"),
        ("peer:up", "flatstore:relative", "flatstore:/PATH"),
        ("peer:up", "flatstore:/x?delimiter=n", "characters"),
        ("peer:up", "channel:voip@nowhere", "a cluster of this agent"),
    ],
)
async def test_what_is_not_understood_is_refused_with_what_was_expected(command, event, uri, said):
    ran = await command("events", "subscribe", event, uri)

    assert ran.status == 2
    assert said in ran.err


async def test_the_file_is_opened_again_after_logrotate_has_moved_it(command, tmp_path):
    path = tmp_path / "events"
    await command("events", "raise", "E_SITE")
    await command("events", "subscribe", "E_SITE", f"flatstore:{path}")
    await command("events", "raise", "E_SITE", "1")
    path.rename(tmp_path / "events.1")

    rotated = await command("events", "rotate", str(path))
    await command("events", "raise", "E_SITE", "2")
    unknown = await command("events", "rotate", "/nowhere/events")

    assert rotated.status == 0
    assert path.read_text() == "E_SITE,2\n"
    assert (tmp_path / "events.1").read_text() == "E_SITE,1\n"
    assert unknown.status == 2


async def test_expiry_zero_by_rpc_ends_a_subscription_as_in_opensips(command, controlled):
    calls = Calls(controlled, ControlCounters())
    values = {"event": "peer:up", "to": "log:", "expire": 3600.0}

    assert await calls.perform("event.subscribe", values, NO_STREAM) == {"subscribed": True}
    assert len(controlled.events.subscriptions.subscribers()) == 1
    ended = await calls.perform("event.subscribe", {**values, "expire": 0}, NO_STREAM)

    assert ended == {"subscribed": False}
    assert not controlled.events.subscriptions.subscribers()
