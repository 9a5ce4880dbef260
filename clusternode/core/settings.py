"""What a node of the core can be told. `config.py` fills these from TOML and the environment."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from clusternode.core.types import (
    Address,
    ChannelName,
    Incarnation,
    NodeId,
    OverflowPolicy,
    Seconds,
)

BODY_SIZE_MAX = 1024 * 1024


@attrs.frozen(kw_only=True)
class HealthSettings:
    """The parameters of DMQ 6.1 (README 3.8 to 3.12), with our defaults."""

    ping_interval: Seconds = 5.0
    """Between two pings of one peer; at least 0.05 s."""
    ping_timeout: Seconds = 2.0
    """How long a ping may stay unanswered; at most `ping_interval`."""
    remove_inactive: bool = True
    """Whether a member that does not answer is disabled and then removed."""
    fail_count_enabled: bool = True
    """Whether failed pings are counted; `false` gives DMQ's behaviour without counters."""
    fail_count_threshold_not_active: int = 0
    """An active member whose fail count is greater than this becomes not_active."""
    fail_count_threshold_disabled: int = 1
    """A not_active member whose fail count is greater than this becomes disabled."""
    enable_rerouting: bool = True
    """Whether a member whose link is broken is reached through others, and others through us."""


@attrs.frozen(kw_only=True)
class DiscoverySettings:
    """How a node finds the others (DMQ README 3.3 and 3.5)."""

    notification_addresses: tuple[Address, ...] = ()
    """Addresses to ask for the cluster; dialled for ever."""
    multi_notify: bool = False
    """Whether every address that a name resolves to is dialled, not only the first."""
    refresh_interval: Seconds = 60.0
    """Between two look-ups of one name."""
    redial_min: Seconds = 0.2
    """The first wait after a failed dial; doubled for each further one."""
    redial_max: Seconds = 5.0
    """The longest wait between two dials of one address."""
    dials_per_second: float = 20.0
    """At most so many dials start per second."""
    handshake_timeout: Seconds = 5.0
    """From the connection to the end of the handshake."""
    forget_after: Seconds = 86400.0
    """An address that nobody has heard from for so long is not dialled or told any more."""


@attrs.frozen(kw_only=True)
class MessagingSettings:
    """Bounds and time limits of messages and requests."""

    body_size_max: int = BODY_SIZE_MAX
    """The largest body that this node takes, in bytes; told to the others in HELLO."""
    delivery_timeout: Seconds = 30.0
    """How long an unacknowledged message is sent again before it ends as 408."""
    result_timeout: Seconds = 30.0
    """How long the final result of a message is waited for, from the call."""
    window_bytes: int = 4 * 1024 * 1024
    """How many unacknowledged bytes a peer may have on the way to us."""
    outbox_bytes: int = 8 * 1024 * 1024
    """How many bytes may wait for one peer, written or not; beyond it the channel's policy."""
    wait_max: Seconds = 1.0
    """How long a message of a channel with the policy `wait` waits for room."""
    ack_delay: Seconds = 0.02
    """How long an acknowledgement may wait for other traffic to ride on."""
    open_requests_max: int = 1024
    """How many requests of our own may be open at a time."""


@attrs.frozen(kw_only=True)
class ChannelSettings:
    """How the messages of one channel are sent."""

    overflow: OverflowPolicy = OverflowPolicy.REJECT


@attrs.frozen(kw_only=True)
class NodeSettings:
    """Everything that one node of one cluster needs to know at its start."""

    node_id: NodeId
    cluster: str
    incarnation: Incarnation
    address: Address
    """What others dial."""
    nonce: bytes = b""
    """16 bytes from the operating system that name this process."""
    priority: int = 50
    """Lower is preferred as a relay."""
    tags: Mapping[str, str] = attrs.field(factory=dict)  # key → value, shown to everyone
    channels: tuple[ChannelName, ...] = ()
    """What the routes of this node listen to at the start."""
    channel_settings: Mapping[ChannelName, ChannelSettings] = attrs.field(factory=dict)
    health: HealthSettings = attrs.field(factory=HealthSettings)
    discovery: DiscoverySettings = attrs.field(factory=DiscoverySettings)
    messaging: MessagingSettings = attrs.field(factory=MessagingSettings)
