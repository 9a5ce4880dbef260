"""The state directory: the members last known and the incarnation, across restarts.

One JSON file per cluster, written beside and renamed into place, so that a crash leaves the old
or the new one. A file that cannot be read is set aside with a warning; it is never fatal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from clusternode.core.effects import Persist
from clusternode.core.inputs import KnownMember
from clusternode.core.types import Address, Incarnation, NodeId, is_name
from clusternode.core.wire.limits import COUNT_MAX
from clusternode.errors import ConfigError, StateError

logger = logging.getLogger(__name__)

FORMAT: Final = 1
INCARNATION_RANDOM_BITS: Final = 20
FILE_SIZE_MAX: Final = 16 * 1024 * 1024
"""Far more than the members of the largest cluster take."""
LOCK_NAME: Final = "lock"
DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
NEVER_RUN: Final = Incarnation(0)


@attrs.frozen
class Remembered:
    """What a node knows of its earlier life."""

    incarnation: Incarnation = NEVER_RUN
    members: tuple[KnownMember, ...] = ()


class StateStore(Protocol):
    """Where an agent remembers what it must know after a restart, for each of its clusters."""

    async def read(self, cluster: str) -> Remembered:
        """Return what is remembered of a cluster; nothing where that cannot be read."""
        ...

    async def write(self, cluster: str, remembered: Remembered) -> None:
        """Replace what is remembered of a cluster.

        Raises:
            StateError: It could not be written; what was there before still is.
        """
        ...

    def close(self) -> None: ...


class StateDirectory:
    """A directory that this process alone uses; its plain methods block on the disk."""

    def __init__(self, path: Path) -> None:
        """Make and lock the directory.

        Raises:
            StateError: It cannot be used, or another process uses it: names the process.
        """
        self.path = path
        try:
            path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, FILE_MODE)
        except OSError as error:
            raise StateError(f"state directory {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise StateError(
                f"state directory {path} is used by process {holder or 'unknown'}:"
                " stop that one, or give this one its own state_dir"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._lock)

    def load(self, cluster: str) -> Remembered:
        """Return what is remembered of a cluster; a corrupt file is set aside."""
        path = self._file(cluster)
        try:
            with path.open("rb") as file:
                data = file.read(FILE_SIZE_MAX + 1)
            return decode_state(data, milliseconds_since_1970())
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError) as error:
            aside = path.with_name(f"{path.name}.corrupt-{milliseconds_since_1970()}")
            with contextlib.suppress(OSError):
                path.rename(aside)
            logger.warning(
                "state file %s cannot be read (%s): set aside as %s, starting without it",
                path,
                error,
                aside.name,
            )
            return Remembered()

    def save(self, cluster: str, remembered: Remembered) -> None:
        """Replace what is remembered of a cluster.

        Raises:
            OSError: It could not be written; the old file is still there.
        """
        path = self._file(cluster)
        temporary = path.with_name(f"{path.name}.tmp")
        data = encode_state(remembered, milliseconds_since_1970())
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)  # without it the rename may be undone by a power cut
        finally:
            os.close(directory)

    async def read(self, cluster: str) -> Remembered:
        """Load in a worker thread."""
        return await trio.to_thread.run_sync(self.load, cluster)

    async def write(self, cluster: str, remembered: Remembered) -> None:
        """Save in a worker thread.

        Raises:
            StateError: It could not be written.
        """
        try:
            await trio.to_thread.run_sync(self.save, cluster, remembered)
        except OSError as error:
            raise StateError(f"state directory {self.path}: {error.strerror or error}") from error

    def _file(self, cluster: str) -> Path:
        return self.path / f"cluster-{cluster}.json"


class StateKeeper:
    """Writes what one node asks to remember; the newest replaces what still waits."""

    def __init__(self, store: StateStore, cluster: str) -> None:
        self._store = store
        self._cluster = cluster
        self._next: Remembered | None = None
        self._is_writing = False
        self._turn = trio.Lock()

    def offer(self, effect: Persist) -> bool:
        """Take what should be written; True when the caller has to start `write`."""
        self._next = Remembered(effect.incarnation, tuple(effect.members))
        return not self._is_writing

    async def write(self) -> str | None:
        """Write until nothing newer waits; return why the last one failed, if it did.

        Called a second time, it returns when the first has written everything.
        """
        error: str | None = None
        async with self._turn:
            self._is_writing = True
            try:
                while self._next is not None:
                    remembered, self._next = self._next, None
                    try:
                        await self._store.write(self._cluster, remembered)
                        error = None
                    except StateError as failed:
                        error = str(failed)
            finally:
                self._is_writing = False
        return error


def new_incarnation(stored: Incarnation, now_ms: int, random_bits: int) -> Incarnation:
    """Return milliseconds since 1970 and 20 random bits; larger than `stored` in any case."""
    fresh = now_ms << INCARNATION_RANDOM_BITS | random_bits
    return Incarnation(max(fresh, stored + 1))


def milliseconds_since_1970() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def encode_state(remembered: Remembered, now_ms: int) -> bytes:
    return json.dumps(
        {
            "format": FORMAT,
            "written_at_ms": now_ms,
            "incarnation": remembered.incarnation,
            "members": [
                {
                    "node_id": member.node_id,
                    "address": str(member.address),
                    "silent_for": member.silent_for,
                }
                for member in remembered.members
            ],
        },
        indent=1,
    ).encode()


def decode_state(data: bytes, now_ms: int) -> Remembered:
    """Read a state file; the time since it was written counts as silence of every member.

    Raises:
        ValueError: It is not one.
    """
    if len(data) > FILE_SIZE_MAX:
        raise ValueError(f"larger than {FILE_SIZE_MAX} bytes")
    try:
        state: Any = json.loads(data)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']!r}, expected {FORMAT}")
        incarnation = state["incarnation"]
        if type(incarnation) is not int or not 0 <= incarnation < COUNT_MAX:
            raise ValueError(f"incarnation {incarnation!r}")
        elapsed = max(0.0, (now_ms - state["written_at_ms"]) / 1000)  # clocks are set back, too
        members = tuple(_known_member(entry, elapsed) for entry in state["members"])
    except (KeyError, TypeError, RecursionError, ConfigError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Remembered(Incarnation(incarnation), members)


def _known_member(entry: Any, elapsed: float) -> KnownMember:  # noqa: ANN401  # from JSON
    node_id, silent_for = entry["node_id"], entry["silent_for"]
    if not isinstance(node_id, str) or not is_name(node_id):
        raise ValueError(f"node_id {node_id!r}")
    if not isinstance(silent_for, int | float) or not 0 <= silent_for < float("inf"):
        raise ValueError(f"silent_for {silent_for!r}")
    address = Address.parse(entry["address"])
    return KnownMember(NodeId(node_id), address, silent_for + elapsed)
