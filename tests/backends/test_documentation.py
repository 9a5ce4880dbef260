"""docs/events.md says what is so: its URIs are understood, its script runs in a whole agent."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from clusternode.backends.flatstore_format import read_file
from clusternode.backends.registry import IN_TREE, make_backend
from clusternode.backends.subscriptions import BackendSubscriptions
from clusternode.routes.events import EventHub
from tests.agents import Cluster, eventually
from tests.fakes.bus import FakeBus

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs" / "examples" / "events.py"
BLOCK = re.compile(r"^```(?P<language>toml|python)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
TOML = [tomllib.loads(block["text"]) for block in BLOCK.finditer(PAGE) if block[1] == "toml"]
SUBSCRIPTIONS = [entry for table in TOML for entry in table.get("subscribe", [])]


@pytest.mark.parametrize("entry", SUBSCRIPTIONS, ids=lambda entry: entry["to"])
def test_every_example_of_a_uri_is_understood(entry):
    hub = EventHub()
    hub.declare(["E_SITE_DRAINED"])
    services = BackendSubscriptions(hub, {"default": FakeBus("default")}).services

    backend = make_backend(entry["to"], services)

    assert hub.resolve_known(entry["event"])
    assert "SECRET" not in backend.shown
    assert make_backend(backend.identity, services).identity == backend.identity


def test_every_back_end_has_a_section_and_an_example():
    schemes = {entry["to"].partition(":")[0] for entry in SUBSCRIPTIONS}

    for scheme in set(IN_TREE) - {"kafka", "https", "http"}:  # Kafka has a page of its own
        assert f"### {scheme}:" in PAGE
        assert scheme in schemes
    assert "https" in schemes


def test_the_script_of_the_page_is_the_example():
    example = EXAMPLE.read_text(encoding="utf-8")
    python = [block["text"] for block in BLOCK.finditer(PAGE) if block[1] == "python"]
    blocks = [text for text in python if text.startswith("@routes")]

    assert blocks
    for block in blocks:
        assert block in example


@pytest.mark.slow
async def test_the_example_runs_in_an_agent(nursery, tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTS_DIRECTORY", str(tmp_path))
    cluster = Cluster(nursery)
    node = await cluster.add("n1", routes=EXAMPLE)

    async def tell(channel, body):
        await node.bus.send(channel, "n1", body)

    await tell("site.drain", "fra")
    await tell("site.note", "gone")
    await tell("site.watch", f"flatstore:{tmp_path}/watched")
    await tell("site.drain", "ham")
    subscribers = node.agent.events.subscriptions.subscribers()
    function = node.agent.dispatcher._table.handlers[0].function
    notes = function.__globals__["notes"]
    await eventually(lambda: len(notes) == 4)
    await node.leave()

    assert [(each.event, each.source) for each in subscribers] == [
        ("E_SITE_*", "routes"),
        ("E_SITE_DRAINED", "script"),
    ]
    sites = [(record.name, record.values) for record in read_file(tmp_path / "sites")]
    assert sites == [
        ("E_SITE_DRAINED", ("fra", "12")),
        ("E_SITE_NOTE", ("gone", "1")),
        ("E_SITE_DRAINED", ("ham", "12")),
    ]
    assert [record.values for record in read_file(tmp_path / "watched")] == [("ham", "12")]
    assert f"E_SITE_* to flatstore:{tmp_path}/sites: True" in notes
