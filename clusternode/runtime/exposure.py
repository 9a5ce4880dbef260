"""The rule that a cluster without a secret or TLS stays on loopback (docs/operations.md)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from clusternode.config import AgentSettings
from clusternode.core.types import Address
from clusternode.errors import ConfigError
from clusternode.runtime.keyring import read_secrets
from clusternode.runtime.tls import Credentials

WAYS_OUT = (
    "an address on loopback (127.0.0.1, [::1] or localhost), because whoever reaches any other can"
    " join. Three ways out: a secret that all nodes know (secret_file in [cluster]); TLS (tls:// in"
    " address and listen, and [tls]); or, on a network that you trust altogether, insecure = true"
    " in [node]"
)


def check_exposure(settings: AgentSettings) -> None:
    """Refuse addresses that strangers can reach and where nobody has to prove who he is.

    Raises:
        ConfigError: Names the setting and the ways out.
    """
    if settings.insecure:
        return
    for section in settings.clusters.values():
        if section.has_secret or (
            section.address.scheme == "tls" and settings.tls is not None and settings.tls.mutual
        ):
            continue
        table = "node" if len(settings.clusters) == 1 else f"cluster.{section.name}"
        for key, address in (("listen", section.listen), ("address", section.address)):
            if not is_loopback(address):
                raise ConfigError(
                    f"{table}.{key}", str(address), WAYS_OUT, str(settings.file or "")
                )


def check_files(settings: AgentSettings) -> None:
    """Read the files that an agent needs to prove who it is, as it would at its start.

    Raises:
        ConfigError: One cannot be read, is open to others, or holds the wrong thing.
    """
    for section in settings.clusters.values():
        read_secrets(section)
    if settings.tls is not None:
        Credentials(settings.tls, settings.node_id)


def advice(settings: AgentSettings) -> Sequence[str]:
    """Return what somebody should know who runs with these settings."""
    lines = []
    if settings.insecure:
        lines.append("insecure = true: whoever reaches the address of this node can join")
    for section in settings.clusters.values():
        exposed = not (is_loopback(section.address) and is_loopback(section.listen))
        if section.has_secret and section.address.scheme == "tcp" and exposed:
            lines.append(
                f"cluster {section.name}: the secret keeps strangers out; it does not hide what is"
                " sent from someone on the path, nor keep him from changing it: that takes tls://"
            )
    return lines


def is_loopback(address: Address) -> bool:
    """Tell whether an address certainly stays on this host; a name says nothing but localhost."""
    host = address.host
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
