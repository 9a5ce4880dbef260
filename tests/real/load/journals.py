"""Reads the journals of agents under load, and says what is wrong with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import attrs

from clusternode.core.types import ResultCode

Key = tuple[str, str, str, int]  # origin, its process, channel, number


@attrs.define
class Life:
    """What one process of a node has written down."""

    node_id: str
    process: str
    handled: list[Key] = attrs.Factory(list)
    """In the order in which it handled them."""
    damaged: list[Key] = attrs.Factory(list)
    results: dict[Key, list[tuple[str, int]]] = attrs.Factory(dict)  # message → (node, code)
    sent: int | None = None
    """How many it has sent; None where it did not come to the end."""


def read(directory: Path) -> list[Life]:
    """Read the journals of all processes; the last line of a killed one may be a part of one."""
    lives = []
    for path in sorted(directory.glob("*.journal")):
        node_id, _, process = path.stem.partition("-")
        life = Life(node_id, process)
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                _take(life, line.split())
        lives.append(life)
    return lives


def _take(life: Life, words: list[str]) -> None:
    if words[0] == "H":
        _, origin, process, channel, number, is_right = words
        key = (origin, process, channel, int(number))
        (life.handled if is_right == "1" else life.damaged).append(key)
    elif words[0] == "R":
        key = (life.node_id, life.process, words[1], int(words[2]))
        results = [(node_id, int(code)) for node_id, _, code in map(_partition, words[3:])]
        assert key not in life.results, f"{key} has ended twice"
        life.results[key] = results
    else:
        life.sent = int(words[1])


def _partition(word: str) -> tuple[str, str, str]:
    return word.partition("=")


def problems(lives: list[Life]) -> Iterator[str]:
    """Yield every promise that these journals show broken."""
    handled: dict[tuple[Key, str], int] = Counter()
    for life in lives:
        name = f"{life.node_id} ({life.process})"
        for key in life.damaged:
            yield f"{name}: the checksum of {key} is wrong"
        yield from _disorder(life, name)
        for key in life.handled:
            handled[key, life.node_id] += 1
        if life.sent is not None and len(life.results) != life.sent:
            yield f"{name}: {life.sent} sent, and {len(life.results)} have their results"
    for (key, node_id), times in handled.items():
        if times > 1:
            yield f"{node_id} handled {key} {times} times"
    for life in lives:
        for key, results in life.results.items():
            yield from _untrue(key, results, handled)


def _disorder(life: Life, name: str) -> Iterator[str]:
    last: dict[tuple[str, str, str], int] = defaultdict(int)
    for origin, process, channel, number in life.handled:
        lane = (origin, process, channel)
        if number <= last[lane]:
            yield f"{name}: {lane} {number} after {last[lane]}"
        last[lane] = number


def _untrue(
    key: Key, results: list[tuple[str, int]], handled: dict[tuple[Key, str], int]
) -> Iterator[str]:
    if len({node_id for node_id, _ in results}) != len(results):
        yield f"{key}: two results of one node: {results}"
    for node_id, code in results:
        times = handled.get((key, node_id), 0)
        if code == ResultCode.OK and times != 1:
            yield f"{key}: 200 from {node_id}, which handled it {times} times"
        elif code != ResultCode.OK and ResultCode(code).definite and times:
            yield f"{key}: {code} from {node_id}, which handled it"


class Progress:
    """Counts what is in the journals while agents still write; reads each byte once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = defaultdict(int)  # journal → how many bytes
        self._handled = self._ended = 0

    def handled(self) -> int:
        self._look()
        return self._handled

    def ended(self) -> int:
        """Tell how many processes have all their results."""
        self._look()
        return self._ended

    def _look(self) -> None:
        for path in self._directory.glob("*.journal"):
            with path.open("rb") as file:
                file.seek(self._read[path])
                data = file.read()
            data = data[: data.rfind(b"\n") + 1]
            self._read[path] += len(data)
            self._handled += data.count(b"H ")
            self._ended += data.count(b"E ")
