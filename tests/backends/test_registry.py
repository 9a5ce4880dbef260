"""Which schemes there are, and what is said of one that cannot be used."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from clusternode.backends.registry import GROUP, IN_TREE, Registry, make_backend
from clusternode.backends.subscriptions import BackendSubscriptions
from clusternode.errors import ConfigError
from clusternode.routes.events import EventHub
from tests.backends.fake_backend import FakeBackend

ROOT = Path(__file__).resolve().parents[2]


def services_of(registry: Registry):
    return BackendSubscriptions(EventHub(), {}, registry).services


def test_our_own_back_ends_are_entry_points_like_those_of_others():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["entry-points"][GROUP] == dict(IN_TREE)


def test_a_further_scheme_is_used_like_ours():
    registry = Registry({"mine": lambda rest, services: FakeBackend(rest)})

    assert make_backend("mine:x", services_of(registry)).shown == "fake:x"
    assert "mine" in registry
    assert len(registry) == len(list(registry)) >= len(IN_TREE) + 1


def test_without_httpx_the_extra_is_named_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)

    with pytest.raises(ConfigError, match=r"clusternode\[http\]"):
        make_backend("http://127.0.0.1/", services_of(Registry()))


@pytest.mark.parametrize("uri", ["", "tcp", "nonsense:", "x" * 5000, "tcp:" + "x" * 5000])
def test_what_is_no_uri_is_refused_with_the_schemes(uri):
    with pytest.raises(ConfigError) as caught:
        make_backend(uri, services_of(Registry()))

    assert "URI" in caught.value.expected
