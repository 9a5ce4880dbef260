"""What a reload of the configuration takes up, and which changed keys wait for a restart."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import attrs

from clusternode.config.settings import AgentSettings, ChannelSection
from clusternode.config.text import settings_toml

PLUGINS_AT_START = ("gateway",)
"""Sections of plug-ins that are read when the agent starts; the others also at a reload."""


def taken_up(running: AgentSettings, new: AgentSettings) -> AgentSettings:
    """Return the settings of an agent after a reload: of the new ones, what a reload takes."""
    plugins = {
        name: table for name, table in new.plugins.values.items() if name not in PLUGINS_AT_START
    } | {name: table for name, table in running.plugins.values.items() if name in PLUGINS_AT_START}
    clusters = {
        name: section
        if name not in new.clusters
        else attrs.evolve(
            section,
            tags=new.clusters[name].tags,
            secret=new.clusters[name].secret,
            secret_file=new.clusters[name].secret_file,
        )
        for name, section in running.clusters.items()
    }
    permissions = ChannelSection()
    channels = {
        name: attrs.evolve(
            running.channels.get(name, ChannelSection()),
            publish=new.channels.get(name, permissions).publish,
            ask=new.channels.get(name, permissions).ask,
        )
        for name in dict.fromkeys([*running.channels, *new.channels])
    }
    return attrs.evolve(
        running,
        priority=new.priority,
        clusters=clusters,
        channels=channels,
        routes=attrs.evolve(running.routes, file=new.routes.file, events=new.routes.events),
        exec_routes=new.exec_routes,
        subscribe=new.subscribe,
        tls=(running.tls and new.tls) or running.tls,
        plugins=attrs.evolve(new.plugins, values=plugins),
    )


def waiting_for_restart(running: AgentSettings, new: AgentSettings) -> list[str]:
    """Return the keys that differ, as `config show` names them, in the order of the file."""
    one, other = (_flat(tomllib.loads(settings_toml(each))) for each in (running, new))
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found
