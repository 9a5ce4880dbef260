"""Where control sockets are when nobody says otherwise.

Root's agents: `/run/clusternode/NODE.sock`, whatever the environment says, because an agent that
the service manager started and a login shell of root differ in it. Everybody else's:
`$XDG_RUNTIME_DIR/clusternode/NODE.sock`, and `/run/user/UID` where that is not set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT_DIRECTORY = Path("/run/clusternode")
SOCKET_SUFFIX = ".sock"


def socket_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Return the directory of the default control sockets of a user."""
    if uid == 0:
        return ROOT_DIRECTORY
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    # Relative paths are to be ignored (XDG Base Directory Specification 0.8).
    base = Path(runtime) if runtime.startswith("/") else Path(f"/run/user/{uid}")
    return base / "clusternode"


def default_socket(node_id: str, environ: Mapping[str, str], uid: int) -> Path:
    return socket_directory(environ, uid) / f"{node_id}{SOCKET_SUFFIX}"
