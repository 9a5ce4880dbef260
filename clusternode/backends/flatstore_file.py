"""The files of `flatstore:`: append, rotate, reopen. Blocking; runs in a thread.

One process writes a file at a time (flock). Specified in docs/events.md, "flatstore:".
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import attrs

from clusternode.backends.flatstore_format import TORN
from clusternode.errors import PeerUnreachable

logger = logging.getLogger(__name__)

READ_BYTES = 1024 * 1024
NAMES_MAX = 100_000
"""Rotations within one second of the suffix, before something must be wrong."""
DEFAULT_SUFFIX = ".%Y%m%d-%H%M%S"
"""What a full file is called where no suffix is given."""


@attrs.frozen(kw_only=True)
class FileSettings:
    """When a file ends and how it is written."""

    path: str
    permissions: int = 0o644
    suffix: str = ""
    """strftime, UTC; empty: the file keeps its name, and the full one gets another."""
    rotate_count: int = 0
    rotate_size: int = 0
    rotate_period: int = 0
    fsync: str = "never"
    """never, close (when a file ends) or always (before an event counts as delivered)."""


@attrs.frozen
class Rotation:
    """One file ended and another began."""

    timestamp: int
    reason: str
    filename: str
    old_filename: str


class FlatFile:
    """The file that is written now. Only one thread at a time uses it."""

    def __init__(self, settings: FileSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.rotations: list[Rotation] = []
        """Not yet told to anybody."""
        self._clock = clock
        self._fd = -1
        self._name = ""
        self._size = 0
        self._lines = 0
        self._period = 0
        self._must_reopen = False
        self._problem = ""

    def reopen(self) -> None:
        """Begin anew before the next line: somebody has moved the file away."""
        self._must_reopen = True

    def write(self, lines: Sequence[bytes]) -> int:
        """Append lines; return how many are in the file, synced where that is asked for.

        Raises:
            PeerUnreachable: The first line that is not in the file could not be written.
        """
        written = 0
        try:
            while written < len(lines):
                self._prepare()
                count = self._fitting(lines, written)
                self._append(b"".join(lines[written : written + count]))
                self._lines += count
                written += count
                self._rotate_if_full()
        except OSError as error:
            problem = f"{self._name or self.settings.path}: {error.strerror or error}"
            if not written:
                raise PeerUnreachable(problem) from None
            if problem != self._problem:  # the lines are safe, but a new file cannot be begun
                self._problem = problem
                logger.warning("flatstore: %s", problem)
        return written

    def close(self) -> None:
        if self._fd >= 0:
            try:
                if self.settings.fsync != "never":
                    os.fsync(self._fd)
            finally:
                os.close(self._fd)
                self._fd = -1

    def _prepare(self) -> None:
        """Have the right file open."""
        if self._must_reopen:
            self._must_reopen = False
            old = self._name
            self.close()
            self._open(self._name_now())
            self._note("mi", old or self._name)
        if self._fd < 0:
            self._open(self._name_now())
        self._rotate_if_over()

    def rotate_if_due(self) -> None:
        """End a file whose period is over, also when nothing is written.

        Raises:
            OSError: The next file cannot be begun; the next `write` tries again.
        """
        if self._fd >= 0:
            self._rotate_if_over()

    def _rotate_if_over(self) -> None:
        period = self.settings.rotate_period
        if period and self._size and int(self._clock()) // period != self._period:
            self._rotate("period")

    def _fitting(self, lines: Sequence[bytes], start: int) -> int:
        """Tell how many lines the file takes before it is full."""
        settings = self.settings
        count = len(lines) - start
        if settings.rotate_count:
            count = min(count, max(1, settings.rotate_count - self._lines))
        if settings.rotate_size:
            size = self._size
            for index in range(count):
                size += len(lines[start + index])
                if size >= settings.rotate_size:
                    return index + 1
        return count

    def _rotate_if_full(self) -> None:
        settings = self.settings
        if settings.rotate_count and self._lines >= settings.rotate_count:
            self._rotate("count")
        elif settings.rotate_size and self._size >= settings.rotate_size:
            self._rotate("size")

    def _append(self, data: bytes) -> None:
        """Write whole lines, or nothing of them."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            if self.settings.fsync == "always":
                os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)  # the lock says that nobody else has written
            self.close()
            raise
        self._size += len(data)

    def _open(self, name: str) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(name, flags, self.settings.permissions)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(None, "another back end or process writes this file") from None
            stat = os.fstat(fd)
            self._size = _end_torn_line(fd, stat.st_size)
            self._lines = _count_lines(fd) if self.settings.rotate_count else 0
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._name = fd, name
        # A file of a former run belongs to the period in which it was last written.
        begun = stat.st_mtime if stat.st_size else self._clock()
        self._period = (
            int(begun) // self.settings.rotate_period if self.settings.rotate_period else 0
        )

    def _rotate(self, reason: str) -> None:
        old = self._name
        self.close()
        if self.settings.suffix:
            name = self._name_now()
            if name == old or name.startswith(f"{old}.") or os.path.exists(name):
                name = _free_name(name)
        else:
            name, old = old, _free_name(old + self._stamp(DEFAULT_SUFFIX))
            os.rename(name, old)
        self._open(name)
        self._note(reason, old)

    def _note(self, reason: str, old: str) -> None:
        self.rotations.append(Rotation(int(self._clock()), reason, self._name, old))

    def _name_now(self) -> str:
        return self.settings.path + self._stamp(self.settings.suffix)

    def _stamp(self, suffix: str) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime(suffix) if suffix else ""


def _free_name(name: str) -> str:
    """Return a name that no file has: this one, or with a number after it."""
    if not os.path.lexists(name):
        return name
    for number in range(1, NAMES_MAX):
        if not os.path.lexists(f"{name}.{number}"):
            return f"{name}.{number}"
    raise OSError(None, f"{NAMES_MAX} files called {name}.N")


def _end_torn_line(fd: int, size: int) -> int:
    """Mark a last line that has no end, from a crash, as torn. Returns the size of the file."""
    if size and os.pread(fd, 1, size - 1) != b"\n":
        size += os.write(fd, TORN + b"\n")
    return size


def _count_lines(fd: int) -> int:
    count = offset = 0
    while chunk := os.pread(fd, READ_BYTES, offset):
        count += chunk.count(b"\n")
        offset += len(chunk)
    return count
