"""Writes what a node is told into a ring of files, from which `clusternode replay` steps it again.

Each file is one segment, which begins with all that the node remembers and so can be replayed
alone. The loop only puts lines together; a worker thread writes them. What cannot be written is
counted and said, and never stops the node. Described in docs/operations.md.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from clusternode.config import AgentSettings
from clusternode.core.effects import Effect
from clusternode.core.events import Event, RecordingNotWritten
from clusternode.core.inputs import Input
from clusternode.core.node import Node
from clusternode.core.settings import NodeSettings
from clusternode.core.snapshots import NodeSnapshot
from clusternode.core.types import Instant, Seconds
from clusternode.core.wire.messages import Hello
from clusternode.recording.trace import (
    SUFFIX,
    encode_input,
    line_of_failure,
    line_of_life,
    line_of_state,
    line_of_step,
)

logger = logging.getLogger(__name__)

SEGMENTS: Final = 8
"""Files of the ring: when one is full the oldest goes, so seven eighths of the past stay."""
WRITE_INTERVAL: Final[Seconds] = 0.5
"""What a killed process has not written yet is at most this old."""
RETRY_INTERVAL: Final[Seconds] = 10.0
"""After a failed write, until a new segment is begun."""
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
"""Lines that may wait for a slow disk; beyond it they are lost, and a new segment follows."""
FILE_MODE: Final = 0o600  # the bodies of messages are in it

COUNTERS: Final = ("recording_inputs", "recording_inputs_lost", "recording_writes_failed")
"""What is counted for each node; the meanings are in docs/reference/counters.md."""


@attrs.frozen
class Piece:
    """A line, and whether a segment begins with it."""

    text: str
    opens: bool


class Ring:
    """The files of one node. Everything here blocks."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._file: int | None = None

    def write(self, pieces: Sequence[Piece]) -> str | None:
        """Write lines; return why that failed, if it did. What is written then may be torn."""
        try:
            text: list[str] = []
            for piece in pieces:
                if piece.opens:
                    self._append(text)
                    self._begin()
                    text = []
                text.append(piece.text)
            self._append(text)
        except OSError as error:
            self.close()
            return f"{self._directory}: {error.strerror}"
        return None

    def _append(self, text: list[str]) -> None:
        data = memoryview("".join(text).encode())
        while self._file is not None and data:
            data = data[os.write(self._file, data) :]

    def _begin(self) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        found = self._found()
        for number in found[: max(0, len(found) - SEGMENTS + 1)]:
            self._path(number).unlink(missing_ok=True)
        path = self._path(found[-1] + 1 if found else 1)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._name}-{number:08d}{SUFFIX}"

    def _found(self) -> list[int]:
        """Return the numbers of the files there are, oldest first."""
        pattern = re.compile(re.escape(self._name) + r"-([0-9]{8,})" + re.escape(SUFFIX))
        names = (pattern.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match[1]) for match in names if match is not None)

    def close(self) -> None:
        """Close the file; the next line that opens a segment begins another one."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


class Recording:
    """What waits to be written of one node."""

    def __init__(self, directory: Path, settings: NodeSettings, size_max: int) -> None:
        """Write to a ring of files in `directory`, which hold `size_max` bytes together."""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._cluster = settings.cluster
        self._ring = Ring(directory, f"{settings.cluster}-{settings.node_id}".replace("/", "_"))
        self._segment_max = size_max // SEGMENTS
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0
        self._room = 0
        """Bytes that still go into this segment."""
        self._may_begin_at: Instant = -float("inf")
        self._is_failing = False

    def begin(self, line: str) -> None:
        """Open a segment."""
        # One that is nearly all state would be followed by the next at once.
        self._room = max(self._segment_max, 2 * len(line))
        self._put(line, opens=True)

    def _put(self, line: str, *, opens: bool = False) -> None:
        self._waiting.append(Piece(line, opens))
        self._waiting_bytes += len(line)
        self._room -= len(line)

    def step(self, node: Node, now: Instant, input_: Input, rng: random.Random) -> list[Effect]:
        """Step a node, and write what went in and what came out."""
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._room = 0
        if self._room <= 0:
            if now < self._may_begin_at or self._waiting_bytes > WAITING_BYTES_MAX:
                self.counters["recording_inputs_lost"] += 1
                return node.step(now, input_)
            self.begin(line_of_state(node, now, rng))
        encoded = encode_input(input_)
        effects: list[Effect] | None = None
        try:
            effects = node.step(now, input_)
        finally:
            if effects is None:  # the one step that is worth all others
                self._put(line_of_failure(now, encoded))
                self.flush()
        self._put(line_of_step(now, encoded, effects))
        self.counters["recording_inputs"] += 1
        return effects

    async def run(self, emit: Callable[[Event], None]) -> None:
        """Write what has gathered, again and again; it is said when that fails."""
        try:
            while True:
                await trio.sleep(WRITE_INTERVAL)
                await self.write_waiting(emit)
        finally:
            self.flush()
            self._ring.close()

    async def write_waiting(self, emit: Callable[[Event], None]) -> None:
        """Write what has gathered; when that fails it is said, but not again before it succeeds."""
        if not self._waiting:
            return
        problem = await trio.to_thread.run_sync(self._ring.write, self._take())
        if problem is not None:
            self._fail()
            if not self._is_failing:
                logger.warning("the recording could not be written: %s", problem)
                emit(RecordingNotWritten(self._cluster, problem))
        self._is_failing = problem is not None

    def _take(self) -> list[Piece]:
        pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return pieces

    def _fail(self) -> None:
        """Give the rest of a segment up that has a hole, and begin another one later."""
        self.counters["recording_writes_failed"] += 1
        self._take()
        self._room = 0
        self._may_begin_at = trio.current_time() + RETRY_INTERVAL

    def flush(self) -> None:
        """Write what waits, now, in this thread."""
        self._ring.write(self._take())


def recording_of(agent: AgentSettings, node: NodeSettings) -> Recording | None:
    """Make the recording of a node, where the configuration asks for it."""
    if agent.record_dir is None:
        return None
    return Recording(agent.record_dir, node, agent.record_size_max)


class RecordedNode:
    """A node whose every step is written down; stands where a `Node` would."""

    def __init__(
        self, settings: NodeSettings, now: Instant, rng: random.Random, recording: Recording
    ) -> None:
        recording.begin(line_of_life(settings, now, rng))
        self._node = Node(settings, now, rng)
        self._rng = rng
        self.recording = recording

    def step(self, now: Instant, input_: Input) -> list[Effect]:
        return self.recording.step(self._node, now, input_, self._rng)

    def next_deadline(self) -> Instant | None:
        return self._node.next_deadline()

    def hello(self, agent: str = "") -> Hello:
        return self._node.hello(agent)

    def snapshot(self, now: Instant) -> NodeSnapshot:
        snapshot = self._node.snapshot(now)
        counters: Mapping[str, int] = {**snapshot.counters, **self.recording.counters}
        return attrs.evolve(snapshot, counters=counters)
