"""How observers see an event: names, aliases, JSON parameters, notifications.

Names, aliases and parameters come from `clusternode.core.events`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from clusternode.core.events import EVENT_TYPES, Custom, Event
from clusternode.errors import RouteError
from clusternode.routes.subscriptions import Raised

ALIASES: Mapping[str, str] = {
    **{kind.NAME: kind.NAME for kind in EVENT_TYPES},
    **{kind.ALIAS: kind.NAME for kind in EVENT_TYPES},
    "dmq:peer-up": "E_CLUSTERNODE_PEER_UP",
    "dmq:peer-down": "E_CLUSTERNODE_PEER_DOWN",
    "dmq:peer-disabled": "E_CLUSTERNODE_PEER_DISABLED",
}
"""Every accepted word for an event → its name. Kamailio's event routes are among them."""


def is_wildcard(word: str) -> bool:
    """Tell whether a word for events is a shell wildcard (fnmatch)."""
    return any(char in word for char in "*?[")


def name_of(event: Event) -> str:
    return event.name if isinstance(event, Custom) else event.NAME


def to_json(event: Event) -> dict[str, Any]:
    """Return the parameters of an event as JSON values.

    Bytes go as text under their own name where they are valid UTF-8, else as base64 under the
    name with `_base64`.
    """
    if isinstance(event, Custom):
        return dict(event.parameters)
    parameters: dict[str, Any] = {}
    for field in attrs.fields(type(event)):
        value = getattr(event, field.name)
        if not isinstance(value, bytes):
            parameters[field.name] = value
            continue
        try:
            parameters[field.name] = value.decode("utf-8")
        except UnicodeDecodeError:
            parameters[f"{field.name}_base64"] = base64.b64encode(value).decode("ascii")
    return parameters


def to_notification(event: Event) -> dict[str, Any]:
    """Return the JSON-RPC 2.0 notification of an event; without `params` when it has none."""
    return EventView.of(event).notification()


@attrs.frozen
class EventView:
    """One event as its observers see it: name, alias and JSON parameters, made once for all."""

    name: str
    alias: str
    parameters: Mapping[str, Any]
    is_positional: bool = False
    """Whether they have no names; they are called 1, 2, … here."""
    raised: Raised | None = attrs.field(default=None, eq=False, repr=False)
    """Who waits for what becomes of it; None: nobody."""

    @classmethod
    def of(cls, event: Event, raised: Raised | None = None) -> EventView:
        is_positional = isinstance(event, Custom) and event.is_positional
        return cls(name_of(event), event.ALIAS, to_json(event), is_positional, raised)

    def notification(self) -> dict[str, Any]:
        """Return it as a JSON-RPC 2.0 notification; without `params` when it has none."""
        notification: dict[str, Any] = {"jsonrpc": "2.0", "method": self.name}
        if self.parameters:
            values = dict(self.parameters)
            notification["params"] = list(values.values()) if self.is_positional else values
        return notification


def named(event: str, parameters: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Return parameters by name; those without names are called 1, 2 and so on."""
    if isinstance(parameters, Mapping):
        return dict(parameters)
    if isinstance(parameters, str | bytes):
        raise RouteError(f"event {event}: parameters: expected a mapping or a list of values")
    return {str(number): value for number, value in enumerate(parameters, 1)}


def as_text(value: object) -> str:
    """Return a parameter as filters and back ends without types see it: text, or JSON."""
    return value if isinstance(value, str) else json.dumps(value)
