"""`[gateway.kamailio]`: the keys, with the names of Kamailio's module dmq where it has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from clusternode.core.settings import HealthSettings
from clusternode.core.types import Seconds
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress

PING_TIMEOUT: Final[Seconds] = 4.0
"""Room for four copies: a bus that loses every third datagram is still seen whole."""


@attrs.frozen(kw_only=True)
class KamailioSettings:
    """What one node of a DMQ bus needs to know."""

    server_address: PeerAddress
    """Who we are on the bus: `sip:IPv4:port`, with `;transport=tcp` or `;transport=tls`."""
    server_socket: PeerAddress | None = None
    """What is bound, where it differs: `sip:0.0.0.0:5060`."""
    notification_address: tuple[NamedAddress, ...] = ()
    """Kamailio nodes to join; asked for ever."""
    notification_channel: str = "notification_peer"
    """The channel of membership messages; the same on every node of the bus."""
    multi_notify: bool = False
    """Whether the first notification address stands for all addresses of its name, or SRV name."""
    ping_interval: Seconds = 5.0
    """Between two pings of one node; Kamailio itself pings every 60, and at least every 5."""
    ping_timeout: Seconds = PING_TIMEOUT
    """How long a ping may stay unanswered; at most `ping_interval` (Kamailio: fr_timer)."""
    fr_timer: Seconds = 30.0
    """How long a message or request waits for its final answer: 408 (Kamailio: tm's fr_timer)."""
    remove_inactive: bool = True
    """Whether a node that does not answer is disabled and then removed."""
    fail_count_enabled: bool = True
    """Whether failed pings are counted; `false` gives DMQ's behaviour without counters."""
    fail_count_threshold_not_active: int = 0
    """An active node whose fail count is greater than this becomes not_active."""
    fail_count_threshold_disabled: int = 1
    """A not_active node whose fail count is greater than this becomes disabled."""
    htables: Mapping[str, int] = attrs.field(factory=dict)
    """Shared tables to keep a live copy of: name = autoexpire of its cells in seconds, or 0."""
    tls_certificate: Path | None = None
    """Our certificate, for `;transport=tls`."""
    tls_key: Path | None = None
    """The key of our certificate."""
    tls_ca: Path | None = None
    """Whose certificates are believed, for `;transport=tls`."""
    insecure: bool = False
    """Allow to listen beyond loopback: DMQ proves nothing, so the network must keep others out."""

    @property
    def socket(self) -> PeerAddress:
        return self.server_socket or self.server_address

    @property
    def health(self) -> HealthSettings:
        """The parameters of the core's health machine."""
        return HealthSettings(
            ping_interval=self.ping_interval,
            ping_timeout=self.ping_timeout,
            remove_inactive=self.remove_inactive,
            fail_count_enabled=self.fail_count_enabled,
            fail_count_threshold_not_active=self.fail_count_threshold_not_active,
            fail_count_threshold_disabled=self.fail_count_threshold_disabled,
        )
