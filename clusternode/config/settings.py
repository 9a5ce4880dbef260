"""The frozen settings objects that one configuration file becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from clusternode.config.raw import RawTable
from clusternode.core.settings import (
    DiscoverySettings,
    HealthSettings,
    MessagingSettings,
)
from clusternode.core.types import (
    Address,
    ChannelName,
    NodeId,
    OverflowPolicy,
    Seconds,
)


@attrs.frozen(kw_only=True)
class ChannelSection:
    """`[channel.NAME]`: how messages of one channel are sent and handled here."""

    overflow: OverflowPolicy = OverflowPolicy.REJECT
    """A full outbox: `reject` the new, `drop_oldest`, or `wait` for at most `wait_max`."""
    result: str = "handled"
    """`handled`: 200 after every handler ended; `queued`: 202 when taken into the queue."""
    handling: str = "queued"
    """`queued`: by a worker, in its own task; `inline`: at once, where it was read."""
    ordered: bool = True
    """Whether messages of one origin are handled one after the other."""
    concurrency: int = 16
    """How many origins (or, unordered, messages) are handled at a time."""
    queue_size: int = 10_000
    """How many messages may wait for their handlers; beyond it 486."""
    publish: tuple[str, ...] = ("*",)
    """Who may send messages: node ids, tags as `role=registrar`, `*` for every member."""
    ask: tuple[str, ...] = ("*",)
    """Who may send requests; written as in `publish`."""


@attrs.frozen(kw_only=True)
class ClusterSection:
    """One cluster that the agent is a node of, with the top-level sections as defaults."""

    name: str
    address: Address
    listen: Address
    tags: Mapping[str, str]
    discovery: DiscoverySettings
    health: HealthSettings
    messaging: MessagingSettings
    secret_file: Path | None = None
    """A file with the cluster's secret; several lines: prove with the first, accept all."""
    secret: tuple[str, ...] = attrs.field(default=(), repr=False)
    """Secrets from the environment; they come before those of the file."""

    @property
    def has_secret(self) -> bool:
        return self.secret_file is not None or bool(self.secret)


@attrs.frozen(kw_only=True)
class ExecRoute:
    """`[[route]]`: an executable as a handler."""

    on: str
    """`request:CHANNEL`, `message:CHANNEL` or `event:NAME`."""
    exec: tuple[str, ...]
    """The program and its arguments; no shell. With a slash it is relative to the file."""
    timeout: Seconds = 10.0
    """After so many seconds the whole process group is killed: 500."""
    concurrency: int = 8
    """How many of them run at a time."""
    output_size_max: int = 1024 * 1024
    """How many bytes it may write before it is killed: 500."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    """Added to the clean environment."""


@attrs.frozen(kw_only=True)
class TlsSection:
    """`[tls]`: what this node proves with, on `tls://` addresses, that it is itself."""

    certificate: Path
    """This node's certificate, in PEM; it names the node id."""
    key: Path
    """Its private key, mode 0600, without a password."""
    ca: Path
    """The certificates of the authorities whose nodes are let in; several in one file."""
    mutual: bool = True
    """Whether those who dial this node need a certificate; where not, there must be a secret."""


@attrs.frozen(kw_only=True)
class SubscribeSection:
    """`[[subscribe]]`: events that a back end gets."""

    event: str
    """Name or alias of an event, or a shell wildcard over them."""
    to: str
    """The URI of the back end, for instance `flatstore:/var/log/events` (docs/events.md)."""
    expire: Seconds = 0.0
    """Seconds after which it ends; 0: never."""
    queue_size: int = 10_000
    """How many events may be on their way; beyond it they are refused and counted."""


@attrs.frozen(kw_only=True)
class RoutesSection:
    """`[routes]`: the script and its limits."""

    file: Path | None = None
    """A Python file with event routes; relative to the directory of this file."""
    time_limit: Seconds = 30.0
    """How many seconds one handler may run."""
    watchdog: Seconds = 0.5
    """A handler that holds the loop for longer is named in the log."""
    threads: int = 8
    """How many handlers with `thread=True` run at a time."""
    requests_max: int = 100
    """How many request handlers run at a time; beyond it 486."""
    notification_channel: str = "notification_peer"
    """The channel on which membership events can be listened to (DMQ README 3.4)."""
    events: tuple[str, ...] = ()
    """Events of your own that can be subscribed to before they are raised."""


@attrs.frozen(kw_only=True)
class AgentSettings:
    """One configuration file, read and checked."""

    node_id: NodeId
    priority: int
    state_dir: Path | None
    """None: nothing is remembered across a restart."""
    control_socket: Path
    insecure: bool
    """Listen beyond loopback without a secret or TLS."""
    log_level: str
    clusters: Mapping[str, ClusterSection]  # cluster name → settings; the first is the default
    routes: RoutesSection
    exec_routes: tuple[ExecRoute, ...]
    channels: Mapping[ChannelName, ChannelSection]
    file: Path | None
    subscribe: tuple[SubscribeSection, ...] = ()
    tls: TlsSection | None = None
    """None: `tls://` addresses cannot be used."""
    record_dir: Path | None = None
    """None: nothing is recorded."""
    record_size_max: int = 64 * 1024 * 1024
    """Bytes of the recording of each cluster."""
    nameservers: tuple[str, ...] = ()
    """DNS servers as `ip:port`; empty: those of the system."""
    plugins: RawTable = attrs.field(factory=lambda: RawTable(()))
    """Sections that others declare, as they were read: `[kafka.NAME]` and its like."""
