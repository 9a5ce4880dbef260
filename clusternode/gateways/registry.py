"""Which gateways there are: entry points of the group `clusternode.gateways`.

Our own are entry points too (pyproject.toml), and also listed here, so that a source tree that
was never installed has them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import attrs

from clusternode.config.keys import Section
from clusternode.config.raw import RawTable
from clusternode.errors import ConfigError
from clusternode.gateways.base import Gateway, Plugin
from clusternode.runtime.resolver import Resolver

GROUP = "clusternode.gateways"
SECTION = "gateway"
"""The table of the configuration above those of the gateways."""

IN_TREE: Mapping[str, str] = {
    "kamailio": "clusternode.gateways.kamailio.plugin:PLUGIN",
    "opensips": "clusternode.gateways.opensips.plugin:PLUGIN",
}
"""Name → module and object."""


@attrs.frozen
class Configured:
    """One gateway with its checked settings, ready to be made."""

    name: str
    plugin: Plugin
    settings: Any
    """What `plugin.read` returned."""

    def make(self, resolver: Resolver) -> Gateway:
        return self.plugin.make(self.name, self.settings, resolver)


def names() -> Mapping[str, str]:
    """Return name → module and object of every gateway that is installed."""
    found = dict(IN_TREE)
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point.value)
    return found


def load(name: str, place: str) -> Plugin:
    """Import a gateway that is installed.

    Raises:
        ConfigError: It needs something that is not there.
    """
    module, _, attribute = place.partition(":")
    try:
        plugin: Plugin = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        expected = f"the gateway {name} to be installed ({error})"
        raise ConfigError(f"{SECTION}.{name}", name, expected) from None
    return plugin


def read_gateways(plugins: RawTable) -> list[Configured]:
    """Read the settings of every gateway of the configuration, in its order.

    Raises:
        ConfigError: Names the key.
    """
    if not plugins.has(SECTION):
        return []
    tables = plugins.table(SECTION)
    known = names()
    tables.refuse_unknown(known)
    found = []
    for name in tables.names():
        plugin = load(name, known[name])
        found.append(Configured(name, plugin, plugin.read(tables.table(name))))
    return found


def sections() -> Iterator[Section]:
    """Yield the section of every gateway, for the reference."""
    for name, place in sorted(names().items()):
        yield load(name, place).section
