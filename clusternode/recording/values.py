"""Values of the core as what JSON holds, and back."""

from __future__ import annotations

import base64
import enum
import importlib
import pkgutil
import random
from collections import OrderedDict, deque
from functools import cache
from types import ModuleType
from typing import Any

import attrs

from clusternode import core
from clusternode.core.messaging.sending import NOTHING
from clusternode.core.wire.messages import Frame
from clusternode.errors import ClusternodeError

NO_VALUES = ("clusternode.core.effects", "clusternode.core.events", "clusternode.core.sip_events")
"""What a node says: it is neither told it nor does it remember it, and names come twice there."""


class RecordingError(ClusternodeError):
    """A file is no recording, or one of another version: names the file and the line."""


class Encoder:
    """Turns values of the core into what JSON holds, so that a `Decoder` gives equal ones.

    What is one object twice is one object again if `keeps_identity`.
    """

    def __init__(self, *, keeps_identity: bool = False) -> None:
        self._keeps_identity = keeps_identity
        self._seen: dict[int, int] = {}  # id() of an object → its number
        self._held: list[object] = []  # so that no id() is given twice

    def encode(self, value: Any) -> Any:  # noqa: ANN401  # what JSON holds; one kind each
        """Return what JSON holds.

        Raises:
            TypeError: It is, or has in it, no value of the core.
        """
        if isinstance(value, enum.Enum):
            return {"enum": type(value).__name__, "name": value.name}
        if value is None or isinstance(value, str | int | float | bool):
            return value
        if isinstance(value, bytes):
            return {"base64": base64.b64encode(value).decode()}
        if isinstance(value, tuple):
            return {"tuple": [self.encode(one) for one in value]}
        if isinstance(value, Frame) and not self._keeps_identity:
            return {"frame": self.encode(value.message)}
        if attrs.has(type(value)):
            return self._object(value)
        if isinstance(value, dict):
            name = "ordered" if isinstance(value, OrderedDict) else "dict"
            return {name: [[self.encode(key), self.encode(one)] for key, one in value.items()]}
        if isinstance(value, list):
            return [self.encode(one) for one in value]
        if value is NOTHING:
            return {"nothing": True}
        if isinstance(value, deque):
            return {"deque": [self.encode(one) for one in value], "size_max": value.maxlen}
        raise TypeError(f"{type(value).__name__}: not a value of the core")

    def _object(self, value: Any) -> dict[str, Any]:  # noqa: ANN401  # of any class with fields
        number = self._seen.get(id(value))
        if number is not None:
            return {"same": number}
        encoded: dict[str, Any] = {"is": type(value).__name__}
        for field in attrs.fields(type(value)):
            if field.name != "encoded":  # what a frame caches is no part of what it says
                encoded[field.name] = self.encode(getattr(value, field.name))
        if self._keeps_identity:  # numbered when complete, as the decoder does
            self._seen[id(value)] = encoded["#"] = len(self._seen)
            self._held.append(value)
        return encoded


class Decoder:
    """Turns what an `Encoder` made back into values of the core."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}  # number → object

    def decode(self, value: Any) -> Any:  # noqa: ANN401  # as `encode`
        """Return the value.

        Raises:
            RecordingError: It names a class that the core does not have.
        """
        if isinstance(value, list):
            return [self.decode(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "base64" in value:
            return base64.b64decode(value["base64"])
        if "tuple" in value:
            return tuple(self.decode(one) for one in value["tuple"])
        if "dict" in value:
            return {self.decode(key): self.decode(one) for key, one in value["dict"]}
        if "ordered" in value:
            pairs = value["ordered"]
            return OrderedDict((self.decode(key), self.decode(one)) for key, one in pairs)
        if "nothing" in value:
            return NOTHING
        if "deque" in value:
            return deque((self.decode(one) for one in value["deque"]), value["size_max"])
        if "same" in value:
            return self._made[value["same"]]
        return self._object(value)

    def _object(self, value: dict[str, Any]) -> Any:  # noqa: ANN401  # of any class with fields
        name = value.get("enum", value.get("is"))
        kind = classes().get(str(name))
        if kind is None:
            raise RecordingError(f"{name}: the core has no such class")
        if "enum" in value:
            return kind[value["name"]]
        fields = {field.name: field.alias or field.name for field in attrs.fields(kind)}
        left_out = ("is", "#")
        arguments = {
            fields[key]: self.decode(one) for key, one in value.items() if key not in left_out
        }
        made = kind(**arguments)
        if "#" in value:
            self._made[value["#"]] = made
        return made


@cache
def classes() -> dict[str, type[Any]]:
    """Return every class of the core that a node may be told or remember, by its name."""
    found: dict[str, type[Any]] = {}
    for module in _modules(core):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                if attrs.has(kind) or issubclass(kind, enum.Enum):
                    assert name not in found, f"two classes are called {name}"
                    found[name] = kind
    return found


def _modules(package: ModuleType) -> list[ModuleType]:
    names = [one.name for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [importlib.import_module(name) for name in names if name not in NO_VALUES]


def encode_rng(rng: random.Random) -> list[Any]:
    """Return the state of a generator."""
    version, state, gauss = rng.getstate()
    return [version, list(state), gauss]


def set_rng(rng: random.Random, encoded: list[Any]) -> None:
    """Let a generator go on from a state."""
    version, state, gauss = encoded
    rng.setstate((version, tuple(state), gauss))
