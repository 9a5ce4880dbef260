"""The secrets of one cluster: where they are read from, and who asks for them."""

from __future__ import annotations

import os
import secrets as os_secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clusternode.config import ClusterSection
from clusternode.core.wire.limits import NONCE_LENGTH
from clusternode.errors import ConfigError

SECRET_LENGTH_MIN: Final = 16
"""Bytes; whoever records a handshake may try secrets at home, so a password is not enough."""
SECRET_LENGTH_MAX: Final = 1024
SECRETS_MAX: Final = 16
"""A rotation needs two at a time; each is tried for each proof."""
FILE_SIZE_MAX: Final = 64 * 1024
FORBIDDEN_MODE: Final = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
"""Others may do nothing, the group may at most read."""

ONE_SECRET: Final = (
    f"a secret of {SECRET_LENGTH_MIN} to {SECRET_LENGTH_MAX} bytes; make one with"
    " `openssl rand -base64 32`"
)


class Keyring:
    """The secrets of one cluster as they are now; a reload replaces them.

    Connections that are open stay open: a secret is proved once, at their beginning.
    """

    def __init__(self, secrets: Sequence[bytes] = ()) -> None:
        self.secrets = secrets
        """We prove with the first and accept all; empty where the cluster has none."""

    def new_challenge(self) -> bytes:
        """Return what our next HELLO challenges the peer with; empty without a secret."""
        return os_secrets.token_bytes(NONCE_LENGTH) if self.secrets else b""


def read_secrets(section: ClusterSection) -> tuple[bytes, ...]:
    """Return the secrets of a cluster, those of the environment before those of the file.

    Raises:
        ConfigError: The file cannot be read, others may read it, or a secret is too short; the
            text never repeats a secret.
    """
    found = [text.encode("utf-8", "surrogateescape") for text in section.secret]
    for secret in found:
        _check(secret, f"cluster {section.name}: secret", "in the environment")
    if section.secret_file is not None:
        found += _read_file(section.secret_file)
    if len(found) > SECRETS_MAX:
        where = str(section.secret_file)
        raise ConfigError("cluster.secret_file", where, f"at most {SECRETS_MAX} secrets")
    return tuple(dict.fromkeys(found))


def _read_file(path: Path) -> list[bytes]:
    """Read one secret a line; empty lines and those that begin with `#` do not count."""
    setting, shown = "cluster.secret_file", str(path)
    try:
        with path.open("rb") as file:
            check_mode(os.fstat(file.fileno()), setting, shown)
            data = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError(
            setting, shown, f"a file that can be read ({error.strerror or error})"
        ) from error
    if len(data) > FILE_SIZE_MAX:
        raise ConfigError(setting, shown, f"a file of at most {FILE_SIZE_MAX} bytes")
    lines = (line.strip() for line in data.splitlines())
    secrets = [line for line in lines if line and not line.startswith(b"#")]
    if not secrets:
        raise ConfigError(setting, shown, f"in the file, a line with {ONE_SECRET}")
    for secret in secrets:
        _check(secret, setting, shown)
    return secrets


def check_mode(status: os.stat_result, setting: str, shown: str) -> None:
    """See to it that a file with a secret is nobody else's to read or change.

    Raises:
        ConfigError: Says what is wrong, and the command that corrects it.
    """
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(setting, shown, "a regular file")
    if status.st_mode & FORBIDDEN_MODE:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            setting, shown, f"mode 0600, or 0640 for a group; it is {mode:04o}: chmod 600 {shown}"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(setting, shown, "a file of root or of the user of the agent")


def _check(secret: bytes, setting: str, shown: str) -> None:
    if not SECRET_LENGTH_MIN <= len(secret) <= SECRET_LENGTH_MAX:
        raise ConfigError(setting, shown, f"{ONE_SECRET}; one has {len(secret)} bytes")
