"""The rule that a cluster without a secret or TLS stays on loopback (docs/operations.md)."""

from __future__ import annotations

import ipaddress

from clusternode.config import AgentSettings
from clusternode.core.types import Address
from clusternode.errors import ConfigError

WAYS_OUT = (
    "an address on loopback (127.0.0.1, [::1] or localhost), because this version can neither"
    " prove who a peer is nor encrypt; on a network that you trust altogether, set insecure = true"
    " in [node]"
)


def check_exposure(settings: AgentSettings) -> None:
    """Refuse addresses that others can reach, unless the settings say `insecure = true`.

    Raises:
        ConfigError: Names the setting and the ways out.
    """
    if settings.insecure:
        return
    for section in settings.clusters.values():
        table = "node" if len(settings.clusters) == 1 else f"cluster.{section.name}"
        for key, address in (("listen", section.listen), ("address", section.address)):
            if not is_loopback(address):
                raise ConfigError(
                    f"{table}.{key}", str(address), WAYS_OUT, str(settings.file or "")
                )


def is_loopback(address: Address) -> bool:
    """Tell whether an address certainly stays on this host; a name says nothing but localhost."""
    host = address.host
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
