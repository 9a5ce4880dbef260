"""Recorded inputs of one node, and their replay: JSON lines that a person can read.

A recording is a sequence of *segments*, one for each life of the node: a line with its settings,
the time and its generator's state, then a line for each input with a fingerprint of the effects.
The core is a function of these, so stepping them again must give the same fingerprints. Described
in docs/simulation.md.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs

from clusternode.core import inputs, settings, types
from clusternode.core.effects import Effect
from clusternode.core.inputs import Input
from clusternode.core.node import Node
from clusternode.core.settings import NodeSettings
from clusternode.core.types import Instant, NodeId
from clusternode.core.wire import messages
from clusternode.core.wire.messages import Frame
from clusternode.errors import ClusternodeError

FORMAT = 1
"""Raised when an older reader would misunderstand a recording."""
INPUTS_MAX = 1_000_000
"""Of one recording: some hundred megabytes. What comes later is not written, and that is said."""
FINGERPRINT_SIZE_BYTES = 8  # of one step; a mistake is as likely as two equal snowflakes
LINE_SIZE_MAX = 64 * 1024 * 1024
"""The largest frame as base64 three times over; a longer line is no recording."""

_CLASSES: dict[str, type[Any]] = {
    name: kind
    for module in (inputs, settings, types, messages)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and (attrs.has(kind) or issubclass(kind, enum.Enum))
}


class RecordingError(ClusternodeError):
    """A file is no recording, or one of another version: names the file and the line."""


def encode(value: Any) -> Any:  # noqa: ANN401  # what JSON holds
    """Turn a value of the core into what JSON holds, so that `decode` gives an equal one."""
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__name__, "name": value.name}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {"tuple": [encode(one) for one in value]}
    if isinstance(value, Frame):  # what it caches is no part of what it says
        return {"frame": encode(value.message)}
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        return {"is": type(value).__name__} | {
            field.name: encode(getattr(value, field.name)) for field in fields
        }
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(one)] for key, one in value.items()]}
    if isinstance(value, list):
        return [encode(one) for one in value]
    raise TypeError(f"{type(value).__name__}: not a value of the core")


def decode(value: Any) -> Any:  # noqa: ANN401  # as `encode`
    """Turn what JSON holds back into a value of the core.

    Raises:
        RecordingError: It names a class that the core does not have.
    """
    if isinstance(value, list):
        return [decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "base64" in value:
        return base64.b64decode(value["base64"])
    if "tuple" in value:
        return tuple(decode(one) for one in value["tuple"])
    if "dict" in value:
        return {decode(key): decode(one) for key, one in value["dict"]}
    name = value.get("enum", value.get("is"))
    kind = _CLASSES.get(str(name))
    if kind is None:
        raise RecordingError(f"{name}: the core has no such class")
    if "enum" in value:
        return kind[value["name"]]
    fields = {field.name: field.alias or field.name for field in attrs.fields(kind)}
    return kind(**{fields[key]: decode(one) for key, one in value.items() if key != "is"})


def fingerprint(effects: list[Effect]) -> str:
    """Return what is the same for equal effects, and for no others."""
    text = json.dumps(encode(effects), separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_SIZE_BYTES).hexdigest()


def _names(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


class Recorder:
    """Writes what one node was told, and a fingerprint of what it answered."""

    def __init__(self, file: IO[str], node_id: NodeId, *, inputs_max: int = INPUTS_MAX) -> None:
        self.node_id = node_id
        self.inputs_max = inputs_max
        self.inputs = 0
        self._file = file

    @property
    def is_full(self) -> bool:
        return self.inputs >= self.inputs_max

    def begin(self, node_settings: NodeSettings, now: Instant, rng: random.Random) -> None:
        """Open a segment: a node is about to be made of these."""
        version, state, gauss = rng.getstate()
        self._write(
            {
                "format": FORMAT,
                "now": now,
                "settings": encode(node_settings),
                "rng": [version, list(state), gauss],
            }
        )

    def step(self, node: Node, now: Instant, input_: Input) -> list[Effect]:
        """Step a node, and write what went in and what came out."""
        if self.is_full:
            return node.step(now, input_)
        encoded = encode(input_)  # before the step: what it holds may be the node's afterwards
        effects = node.step(now, input_)
        self.inputs += 1
        line = {"now": now, "input": encoded, "effects": _names(effects)}
        self._write(line | {"fingerprint": fingerprint(effects)})
        if self.inputs == self.inputs_max:
            self._write({"full": self.inputs_max})
        return effects

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


@attrs.frozen
class Difference:
    """The first step whose effects are others than recorded."""

    line: int
    now: Instant
    input: str
    recorded: list[str]
    replayed: list[str]
    """The effects' names; equal names mean that their contents differ."""


@attrs.define
class Replayed:
    """What a replay found."""

    lives: int = 0
    inputs: int = 0
    effects: int = 0
    is_cut: bool = False
    """Whether the recording was full before the node had ended."""
    difference: Difference | None = None


def replay(path: Path) -> Replayed:
    """Step a recording again, up to the first difference.

    Raises:
        RecordingError: The file cannot be read, or is no recording.
    """
    found = Replayed()
    node: Node | None = None
    for number, line in _lines(path):
        try:
            if "format" in line:
                node = _node_of(line)
                found.lives += 1
            elif "full" in line:
                found.is_cut = True
            else:
                assert node is not None
                found.difference = _step(node, number, line, found)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise RecordingError(f"{path}: line {number}: {error!r}") from error
        if found.difference is not None:
            break
    if not found.lives:
        raise RecordingError(f"{path}: no recording: it has no segment")
    return found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while text := file.readline(LINE_SIZE_MAX):
                number += 1
                line = json.loads(text)
                if not isinstance(line, dict) or not (number > 1 or "format" in line):
                    raise RecordingError(f"{path}: line {number}: not a recording")
                yield number, line
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise RecordingError(f"{path}: not a recording: {error}") from error


def _node_of(line: dict[str, Any]) -> Node:
    if line["format"] != FORMAT:
        raise RecordingError(f"a recording of format {line['format']}, expected {FORMAT}")
    version, state, gauss = line["rng"]
    rng = random.Random(0)
    rng.setstate((version, tuple(state), gauss))
    return Node(decode(line["settings"]), line["now"], rng)


def _step(node: Node, number: int, line: dict[str, Any], found: Replayed) -> Difference | None:
    input_ = decode(line["input"])
    effects = node.step(line["now"], input_)
    found.inputs += 1
    found.effects += len(effects)
    if fingerprint(effects) == line["fingerprint"]:
        return None
    kind = type(input_).__name__
    return Difference(number, line["now"], kind, line["effects"], _names(effects))
