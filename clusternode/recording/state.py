"""Everything that a node remembers, as what JSON holds; and a node that remembers it.

A node is a tree of parts (`core/node.py`), each of which holds values and other parts. A new node
has the same tree, so only the values need be written: what is a part, or can be called, is wiring.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from clusternode.core import settings
from clusternode.core.context import Context
from clusternode.core.node import Node
from clusternode.core.timers import Timers
from clusternode.recording.values import Decoder, Encoder

State = dict[str, Any]  # path of a part → name of a field → what JSON holds


def capture(node: Node) -> State:
    """Write down what a node remembers, between two steps."""
    _assert_nothing_is_shared(node)
    encoder = Encoder(keeps_identity=True)
    return {
        path: {name: encoder.encode(value) for name, value in _values(part)}
        for path, part in _parts(node)
    }


def restore(node: Node, state: Mapping[str, Any]) -> None:
    """Let a node that has just been made remember what another one did.

    Raises:
        RecordingError: It remembers something that this version does not know.
        KeyError: It has parts that this version has not.
    """
    decoder = Decoder()
    parts = dict(_parts(node))
    for path, fields in state.items():
        part = parts[path]
        for name, value in fields.items():
            decoded = decoder.decode(value)
            if isinstance(part, Timers):
                part.restore(decoded)
            else:
                setattr(part, name, decoded)


def _assert_nothing_is_shared(node: Node) -> None:
    """See to it that no container is in two parts: the parts of a restored node had two of it."""
    seen: dict[int, tuple[str, Any]] = {}  # id() → where, and what, so that no id() is given twice
    for path, part in _parts(node):
        for name, value in _values(part):
            if isinstance(value, dict | list | deque):
                where, _ = seen.setdefault(id(value), (f"{path}.{name}", value))
                assert where == f"{path}.{name}", f"{path}.{name} is {where}: look it up there"


def _parts(node: Node) -> Iterator[tuple[str, object]]:
    """Yield every part and the way to it, each once, in the same order for every node."""
    waiting: list[tuple[str, object]] = [("node", node)]
    seen: dict[int, None] = {}
    while waiting:
        path, part = waiting.pop()
        if id(part) not in seen:
            seen[id(part)] = None
            yield path, part
            waiting += [
                (f"{path}.{name}", value) for name, value in _fields(part) if _is_part(value)
            ]


def _fields(part: object) -> list[tuple[str, Any]]:
    if isinstance(part, Context):
        return [(field.name, getattr(part, field.name)) for field in attrs.fields(Context)]
    return [] if isinstance(part, Timers) else list(vars(part).items())


def _is_part(value: object) -> bool:
    kind = type(value)
    if not kind.__module__.startswith("clusternode.core."):
        return False
    return kind is Context or not (attrs.has(kind) or isinstance(value, _VALUES))


_VALUES = (str, int, dict, list, tuple, deque, enum.Enum)  # subclasses of these are values


def _values(part: object) -> Iterator[tuple[str, Any]]:
    """Yield what a part remembers: no wiring, and nothing that its settings say."""
    if isinstance(part, Timers):
        yield "deadlines", part.deadlines()
    for name, value in _fields(part):
        is_setting = type(value).__module__ == settings.__name__
        is_wiring = callable(value) or _is_part(value) or _is_table_of_calls(value)
        if not (is_setting or is_wiring or isinstance(value, random.Random)):
            yield name, value


def _is_table_of_calls(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(callable, value.values()))
