"""Who has taken our port: a look into Linux's /proc, for error messages."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LISTEN_STATE = "0A"  # include/net/tcp_states.h: TCP_LISTEN
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def process_listening_on(port: int) -> str:
    """Name the process that listens on a TCP port, as well as this user can know."""
    inodes = _listening_inodes(port)
    if not inodes:
        return "another process"
    links = {f"socket:[{inode}]" for inode in inodes}
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # not ours to look at, or gone
            for descriptor in os.listdir(entry / "fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "fd" / descriptor) in links:
                        return f"process {entry.name} ({_command(entry)})"
    return "a process of another user"


def _listening_inodes(port: int) -> list[str]:
    """Read proc(5), /proc/net/tcp: local address, remote address, state … inode."""
    wanted = f"{port:04X}"
    inodes = []
    for table in TABLES:
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN_STATE and fields[1].rpartition(":")[2] == wanted:
                    inodes.append(fields[9])
    return inodes


def _command(entry: Path) -> str:
    words = (entry / "cmdline").read_bytes().split(b"\0")
    text = " ".join(word.decode("utf-8", "replace") for word in words if word)
    return text[:120] or (entry / "comm").read_text().strip()
