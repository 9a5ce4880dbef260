"""Keeps the memory of a process that grows to gigabytes in huge pages, where Linux has them.

The nodes of a large simulated world are looked at one after the other, all over its memory: with
pages of 4 KiB the processor waits for its page tables much of the time. See
docs/decisions/0022-huge-pages-for-large-worlds.md.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HUGE_PAGE: Final = 2 << 20
"""Bytes; on every processor with pages of 4 KiB."""
GROWTH_MIN: Final = 48 << 20
"""Bytes that the process must have grown by before its memory is gone through again."""
MADV_COLLAPSE: Final = 25  # madvise(2), Linux 6.1
POLICY: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OF_NO_FILE: Final = ("[heap]", "[anon:")
"""How names of such memory begin; allocators may give it some, and most give it none."""
MAPS: Final = Path("/proc/self/maps")


class HugePages:
    """Asks the kernel for huge pages each time that the process has grown by some.

    It changes nothing but speed. Where there is no such kernel, or its operator has said "never",
    nothing is asked.
    """

    def __init__(self) -> None:
        self._madvise = ctypes.CDLL(None).madvise if _are_allowed() else None
        self._seen = peak_memory()

    def keep_up(self) -> None:
        """Ask for the memory that there is by now, if that is much more than the last time."""
        if self._madvise is not None and (peak := peak_memory()) - self._seen >= GROWTH_MIN:
            self._seen = peak
            self.ask()

    def ask(self, maps: Path = MAPS) -> int:
        """Ask for all memory that there is; returns for how many bytes."""
        if self._madvise is None:
            return 0
        try:
            text = maps.read_text(encoding="ascii", errors="replace")
        except OSError:  # where /sys is mounted, and /proc is not
            return 0
        asked = 0
        for begin, end in list(anonymous_areas(text)):
            length = end - begin
            # It fails where memory is short: then that area stays as it is.
            self._madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), MADV_COLLAPSE)
            asked += length
        return asked


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of either
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _are_allowed() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return allows(POLICY.read_text(encoding="ascii"))
    except OSError:
        return False


def allows(policy: str) -> bool:
    """Read the policy of the kernel, such as "always [madvise] never": brackets are the choice."""
    return "[always]" in policy or "[madvise]" in policy


def anonymous_areas(maps: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the huge pages that fit into memory of no file; see proc(5)."""
    for line in maps.splitlines():
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        if access != "rw-p" or inode != "0" or (name and not name[0].startswith(OF_NO_FILE)):
            continue
        begin, end = (int(address, 16) for address in span.split("-"))
        begin = -(-begin // HUGE_PAGE) * HUGE_PAGE
        end = end // HUGE_PAGE * HUGE_PAGE
        if begin < end:
            yield begin, end
