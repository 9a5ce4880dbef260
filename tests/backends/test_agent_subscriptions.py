"""`[[subscribe]]` in whole agents: from the start, over a reload, refused, and at the end."""

from __future__ import annotations

import attrs
import pytest

from clusternode.agent import Agent
from clusternode.backends.flatstore_format import LineFormat, read_file
from clusternode.cli.main import main
from clusternode.config import load_settings
from clusternode.errors import ConfigError, RouteError
from clusternode.testing.fakes import FakeResolver
from clusternode.testing.memory_transport import MemoryNetwork
from tests.agents import agent_settings, start

pytestmark = pytest.mark.slow
TEXT = """\
[node]
id = "n1"
[routes]
events = ["E_SITE"]
[[subscribe]]
event = "E_SITE"
to = "flatstore:{path}?format=json"
expire = 60
queue_size = 5
"""


def settings_of(tmp_path, text):
    file = tmp_path / "node.toml"
    file.write_text(text)
    read = load_settings(file, environ={}, overrides={})
    plain = agent_settings("n1", "tcp://10.0.0.1:5062")
    return attrs.evolve(plain, subscribe=read.subscribe, routes=read.routes)


def agent_of(settings, **options) -> Agent:
    network = MemoryNetwork()
    return Agent(
        settings,
        transport=network.transport("10.0.0.1"),
        resolver=FakeResolver(),
        has_control=False,
        **options,
    )


async def test_events_are_delivered_from_the_start_until_the_end(nursery, tmp_path):
    agent = agent_of(settings_of(tmp_path, TEXT.format(path=tmp_path / "ev")))
    running = await start(nursery, agent)
    raised = [agent.events.raise_event("E_SITE", [number]) for number in range(7)]

    await running.leave()

    assert [each.is_ok for each in raised] == [True] * 5 + [False] * 2
    records = list(read_file(tmp_path / "ev", LineFormat(is_json=True)))
    assert [record.values for record in records] == [(number,) for number in range(5)]


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ('to = "flatstore:ev"', "subscribe.2.to"),
        ('to = "log:"\nexpire = 1e9', "subscribe.2.expire"),
        ("", "subscribe.2.to"),
        ('to = "log:"\nqueue_size = 0', "subscribe.2.queue_size"),
    ],
)
async def test_a_wrong_subscription_is_named_and_the_agent_does_not_start(tmp_path, line, setting):
    text = TEXT.format(path=tmp_path / "ev") + f'[[subscribe]]\nevent = "E_SITE"\n{line}\n'

    with pytest.raises(ConfigError) as caught:
        await agent_of(settings_of(tmp_path, text)).run()

    assert caught.value.setting == setting


async def test_a_subscription_to_an_event_that_nobody_declared_is_refused(tmp_path):
    text = TEXT.format(path=tmp_path / "ev").replace('["E_SITE"]', '["E_SITES"]')

    with pytest.raises(ConfigError, match="E_SITES"):
        await agent_of(settings_of(tmp_path, text)).run()


def test_a_check_of_the_configuration_checks_the_uris(tmp_path, capsys):
    file = tmp_path / "node.toml"
    file.write_text(TEXT.format(path=tmp_path / "ev").replace("format=json", "format=xml"))

    assert main(["config", "check", "-c", str(file)]) == 2
    assert "subscribe.1.to" in capsys.readouterr().err


async def test_a_reload_swaps_what_the_configuration_subscribes(nursery, tmp_path):
    settings = [settings_of(tmp_path, TEXT.format(path=tmp_path / "ev"))]
    agent = agent_of(settings[0], reload_settings=lambda: settings[0])
    running = await start(nursery, agent)
    agent.events.subscribe_event("E_SITE", "log:debug")

    settings[0] = settings_of(tmp_path, TEXT.format(path=tmp_path / "other"))
    await agent.reload()
    shown = [each.to for each in agent.events.subscriptions.subscribers()]
    wrong = attrs.evolve(settings[0].subscribe[0], to="nix:")
    settings[0] = attrs.evolve(settings[0], subscribe=(wrong,))
    with pytest.raises(ConfigError, match=r"subscribe\.1\.to"):
        await agent.reload()
    after = [each.to for each in agent.events.subscriptions.subscribers()]
    await running.leave()

    assert shown == ["log:debug", f"flatstore:{tmp_path}/other?format=json"]
    assert after == shown


async def test_a_wrong_subscription_of_the_script_is_a_route_error_on_reload(nursery, tmp_path):
    routes = tmp_path / "routes.py"
    routes.write_text('from clusternode import routes\nroutes.subscribe_event("peer:up", "log:")\n')
    settings = agent_settings("n1", "tcp://10.0.0.1:5062", routes=routes)
    agent = agent_of(settings)
    running = await start(nursery, agent)

    routes.write_text('from clusternode import routes\nroutes.subscribe_event("peer:up", "lgo:")\n')
    with pytest.raises(RouteError, match="log:"):
        await agent.reload()
    shown = [each.to for each in agent.events.subscriptions.subscribers()]
    routes.write_text("")
    await agent.reload()
    after = agent.events.subscriptions.subscribers()
    await running.leave()

    assert shown == ["log:info"]
    assert not after
