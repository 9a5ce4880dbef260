"""Recorded inputs of one node, and their replay: JSON lines that a person can read.

A recording is a sequence of *segments*: a line with the node's settings, the time, its
generator's state and all that it remembers, then a line for each input with a fingerprint of the
effects. The core is a function of these, so stepping them again must give the same fingerprints.
A segment that begins with the life of a node has nothing to remember. Described in
docs/simulation.md.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import attrs

from clusternode.core.effects import Effect
from clusternode.core.inputs import Input
from clusternode.core.node import Node
from clusternode.core.settings import NodeSettings
from clusternode.core.types import Instant, NodeId
from clusternode.recording.state import capture, restore
from clusternode.recording.values import (
    Decoder,
    Encoder,
    RecordingError,
    encode_rng,
    set_rng,
)

FORMAT: Final = 2
"""Raised when an older reader would misunderstand a recording."""
SUFFIX: Final = ".trace"
INPUTS_MAX: Final = 1_000_000
"""Of one recording: some hundred megabytes. What comes later is not written, and that is said."""
FINGERPRINT_SIZE_BYTES: Final = 8  # of one step; a mistake is as likely as two equal snowflakes
LINE_SIZE_MAX: Final = 256 * 1024 * 1024
"""The largest frame as base64 three times over, or a node with four thousand members."""


def fingerprint(effects: list[Effect]) -> str:
    """Return what is the same for equal effects, and for no others."""
    text = json.dumps(Encoder().encode(effects), separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_SIZE_BYTES).hexdigest()


def line_of_life(settings: NodeSettings, now: Instant, rng: random.Random) -> str:
    """Return the line that opens the segment of a node which is about to be made of these."""
    head = {"format": FORMAT, "now": now, "settings": Encoder().encode(settings)}
    return _line(head | {"rng": encode_rng(rng)})


def line_of_state(node: Node, now: Instant, rng: random.Random) -> str:
    """Return the line that opens a segment in the middle of a node's life, between two steps."""
    head = {"format": FORMAT, "now": now, "settings": Encoder().encode(node.settings)}
    return _line(head | {"rng": encode_rng(rng), "state": capture(node)})


def encode_input(input_: Input) -> Any:  # noqa: ANN401  # what JSON holds
    """Write an input down, before the step: what it holds may be the node's afterwards."""
    return Encoder().encode(input_)


def line_of_step(now: Instant, encoded_input: object, effects: list[Effect]) -> str:
    """Return the line of one step."""
    line = {"now": now, "input": encoded_input, "effects": _names(effects)}
    return _line(line | {"fingerprint": fingerprint(effects)})


def line_of_failure(now: Instant, encoded_input: object) -> str:
    """Return the line of a step in which the node raised: there are no effects."""
    return _line({"now": now, "input": encoded_input, "effects": None, "fingerprint": None})


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _names(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


class Recorder:
    """Writes what one simulated node was told, and a fingerprint of what it answered."""

    def __init__(
        self,
        file: IO[str],
        node_id: NodeId,
        *,
        inputs_max: int = INPUTS_MAX,
        segment_inputs: int | None = None,
    ) -> None:
        """Write to `file`.

        Args:
            file: It stays open.
            node_id: Whose inputs.
            inputs_max: How many are written at most.
            segment_inputs: Begin a segment after so many; None: only with each life.
        """
        self.node_id = node_id
        self.inputs = 0
        self._file = file
        self._inputs_max = inputs_max
        self._segment_inputs = segment_inputs
        self._rng = random.Random(0)

    @property
    def is_full(self) -> bool:
        return self.inputs >= self._inputs_max

    def begin(self, settings: NodeSettings, now: Instant, rng: random.Random) -> None:
        """Open a segment: a node is about to be made of these."""
        self._rng = rng
        self._file.write(line_of_life(settings, now, rng))

    def step(self, node: Node, now: Instant, input_: Input) -> list[Effect]:
        """Step a node, and write what went in and what came out."""
        if self.is_full:
            return node.step(now, input_)
        if self._segment_inputs and self.inputs % self._segment_inputs == 0 and self.inputs:
            self._file.write(line_of_state(node, now, self._rng))
        encoded = encode_input(input_)
        effects = node.step(now, input_)
        self.inputs += 1
        self._file.write(line_of_step(now, encoded, effects))
        if self.inputs == self._inputs_max:
            self._file.write(_line({"full": self._inputs_max}))
        return effects


@attrs.frozen
class Difference:
    """The first step whose effects are others than recorded."""

    file: str
    line: int
    now: Instant
    input: str
    recorded: list[str]
    replayed: list[str]
    """The effects' names; equal names mean that their contents differ."""


@attrs.define
class Replayed:
    """What a replay found."""

    segments: int = 0
    inputs: int = 0
    effects: int = 0
    is_cut: bool = False
    """Whether the recording ends before the node did: it was full, or the last line is torn."""
    difference: Difference | None = None


def replay(path: Path) -> Replayed:
    """Step a recording again, or every one in a directory, up to the first difference.

    Raises:
        RecordingError: A file cannot be read, or is no recording.
    """
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise RecordingError(f"{path}: no recording: it has no file *{SUFFIX}")
    found = Replayed()
    for file in files:
        _replay_file(file, found)
        if found.difference is not None:
            break
    return found


def _replay_file(path: Path, found: Replayed) -> None:
    node: Node | None = None
    for number, line in _lines(path, found):
        try:
            if "format" in line:
                node = _node_of(line)
                found.segments += 1
            elif "full" in line:
                found.is_cut = True
            else:
                assert node is not None
                found.difference = _step(node, path, number, line, found)
        except (AttributeError, KeyError, TypeError, ValueError, AssertionError) as error:
            raise RecordingError(f"{path}: line {number}: {error!r}") from error
        if found.difference is not None:
            return
    if node is None:
        raise RecordingError(f"{path}: no recording: it has no segment")


def _lines(path: Path, found: Replayed) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines; the last one may be torn, when the agent was killed while it wrote."""
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while text := file.readline(LINE_SIZE_MAX):
                number += 1
                if number > 1 and not text.endswith("\n"):
                    found.is_cut = True
                    return
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
    rng = random.Random(0)
    set_rng(rng, line["rng"])
    node = Node(Decoder().decode(line["settings"]), line["now"], rng)
    if "state" in line:
        restore(node, line["state"])
        set_rng(rng, line["rng"])  # a node that is made has drawn from it
    return node


def _step(
    node: Node, path: Path, number: int, line: dict[str, Any], found: Replayed
) -> Difference | None:
    input_ = Decoder().decode(line["input"])
    effects = node.step(line["now"], input_)
    found.inputs += 1
    found.effects += len(effects)
    if fingerprint(effects) == line["fingerprint"]:
        return None
    kind = type(input_).__name__
    recorded = ["an exception"] if line["effects"] is None else line["effects"]
    return Difference(str(path), number, line["now"], kind, recorded, _names(effects))
