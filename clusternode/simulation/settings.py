"""Reads `[settings]` of a story: the keys, bounds and defaults of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from clusternode.config.keys import (
    CHANNEL_KEYS,
    DISCOVERY_KEYS,
    HEALTH_KEYS,
    MESSAGING_KEYS,
    Key,
    let_defaults_follow,
)
from clusternode.config.kinds import WrongValue
from clusternode.core.settings import (
    ChannelSettings,
    DiscoverySettings,
    HealthSettings,
    MessagingSettings,
)
from clusternode.core.types import ChannelName
from clusternode.simulation.tables import Table, suggest

ELSEWHERE: Final = "notification_addresses"
"""What a story says in a place of its own."""


@attrs.frozen
class StorySettings:
    """What all nodes of a story are set to."""

    health: HealthSettings
    discovery: DiscoverySettings
    messaging: MessagingSettings
    channels: dict[ChannelName, ChannelSettings]


def settings_of(table: Table) -> StorySettings:
    """Read `[settings]`: `health`, `discovery`, `messaging`, and what is special of `channels`.

    Raises:
        ScenarioError: The configuration would refuse it too; names the key, and what is expected.
    """
    health = _values(table.table("health"), HEALTH_KEYS)
    discovery = _values(
        table.table("discovery"), [key for key in DISCOVERY_KEYS if key.name != ELSEWHERE]
    )
    messaging = _values(table.table("messaging"), MESSAGING_KEYS)
    let_defaults_follow(health, messaging)
    channels = table.table("channels")
    overflow = [key for key in CHANNEL_KEYS if key.name == "overflow"]
    found = StorySettings(
        HealthSettings(**health),
        DiscoverySettings(**discovery),
        MessagingSettings(**messaging),
        {
            channels.name_of_channel(name): ChannelSettings(
                **_values(channels.table(name), overflow)
            )
            for name in channels.values
        },
    )
    _check_order(table.table("health"), found.health, "ping_timeout", "ping_interval")
    _check_order(table.table("messaging"), found.messaging, "delivery_timeout", "result_timeout")
    _check_order(table.table("discovery"), found.discovery, "redial_min", "redial_max")
    table.finish()
    return found


def _values(table: Table, keys: Sequence[Key]) -> dict[str, Any]:
    known = {key.name: key.kind for key in keys}
    values: dict[str, Any] = {}
    for name, value in table.values.items():
        if name not in known:
            raise table.error(name, f"unknown setting; {suggest(name, known)}")
        try:
            values[name] = known[name].read(value)
        except WrongValue as error:
            expected = str(error) or known[name].expected
            raise table.error(name, f"{value!r}: expected {expected}") from None
    return values


def _check_order(table: Table, settings: object, smaller: str, larger: str) -> None:
    low, high = getattr(settings, smaller), getattr(settings, larger)
    if low > high:
        raise table.error(smaller, f"{low:g}: expected at most {larger} ({high:g})")
