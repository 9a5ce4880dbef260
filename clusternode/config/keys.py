"""Every key of the configuration, declared once: name, kind, default and help.

The loader, the sample file, the reference page and the names of environment variables all come
from here. Help and defaults of most keys are the docstrings and defaults of the fields of the
settings classes.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Mapping
from typing import Any

import attrs

from clusternode.config.kinds import (
    BOOLEAN,
    ENVIRONMENT,
    NAME,
    NAMESERVER,
    NODES,
    PATH,
    SECRETS,
    SOCKET_PATH,
    STRING,
    TAGS,
    Kind,
    WrongValue,
    address_kind,
    choice,
    integer,
    list_of,
    member_of,
    number,
    text_kind,
)
from clusternode.config.settings import (
    ChannelSection,
    ExecRoute,
    RoutesSection,
    SubscribeSection,
    TlsSection,
)
from clusternode.core.settings import DiscoverySettings, HealthSettings, MessagingSettings
from clusternode.core.types import Address, OverflowPolicy

ENVIRONMENT_PREFIX = "CLUSTERNODE__"
DEFAULT_ADDRESS = Address("tcp", "127.0.0.1", 5062)
DEFAULT_CLUSTER = "default"
BODY_SIZE_MAX_LIMIT = 16 * 1024 * 1024
"""The protocol limit of docs/protocol.md, section 3."""
PING_INTERVAL_MIN = 0.05
CLUSTER_NAME_LENGTH_MAX = 64
RECORD_SIZE_MIN = 1024 * 1024
"""Less than that is mostly what a node remembers, again and again."""


@attrs.frozen(kw_only=True)
class Key:
    """One key of one section."""

    name: str
    kind: Kind
    default: object = None
    """The converted value; None where `default_text` says what happens instead."""
    default_text: str = ""
    help: str = ""
    example: str = ""
    """As TOML; shown where the default cannot be written down."""


@attrs.frozen(kw_only=True)
class Section:
    """One table of the file: `name` as it stands in the file, NAME for the user's own names."""

    name: str
    help: str
    keys: tuple[Key, ...]

    def key(self, name: str) -> Key | None:
        return next((key for key in self.keys if key.name == name), None)


@functools.cache
def field_help(cls: type) -> Mapping[str, str]:
    """Return the docstring below each field of a settings class, read from its source."""
    module = importlib.import_module(cls.__module__)
    tree = ast.parse(inspect.getsource(module))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    found: dict[str, str] = {}
    for field, below in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def derive(cls: type[attrs.AttrsInstance], kinds: Mapping[str, Kind]) -> tuple[Key, ...]:
    """Return a key for each field of a settings class; every field needs a kind."""
    fields = attrs.fields_dict(cls)
    assert set(kinds) == set(fields), f"{cls.__name__}: {set(kinds) ^ set(fields)}"
    return tuple(
        Key(name=name, kind=kinds[name], default=_default_of(attribute))
        for name, attribute in fields.items()
    )


def _default_of(attribute: attrs.Attribute[Any]) -> object:
    if attribute.default is attrs.NOTHING:
        return None
    factory = getattr(attribute.default, "factory", None)
    return attribute.default if factory is None else factory()


def _check_cluster_name(text: str) -> object:
    if not 0 < len(text.encode("utf-8", "surrogatepass")) <= CLUSTER_NAME_LENGTH_MAX:
        raise WrongValue
    if not text.isprintable() or not text.isascii():
        raise WrongValue
    return text


CLUSTER_NAME = text_kind(
    "string", f"1 to {CLUSTER_NAME_LENGTH_MAX} printable ASCII characters", _check_cluster_name
)
LOG_LEVELS = ("debug", "info", "warning", "error")


RECORDING_KEYS = (
    Key(
        name="record_dir",
        kind=PATH,
        default_text="none: nothing is recorded",
        help="Where everything that the node is told is written, for `clusternode replay`; "
        "relative to this file.",
        example='record_dir = "/var/lib/clusternode/recording"',
    ),
    Key(
        name="record_size_max",
        kind=integer(RECORD_SIZE_MIN, 2**40),
        default=64 * 1024 * 1024,
        help="How many bytes the recording of each cluster takes; the oldest goes first.",
    ),
)


def _node_keys(*, port_zero: bool) -> tuple[Key, ...]:
    own = address_kind(srv=False, wildcard=False, port_zero=port_zero)
    bound = address_kind(srv=False, wildcard=True, port_zero=port_zero)
    return (
        Key(
            name="id",
            kind=NAME,
            default_text="the host name, other characters replaced by `-`",
            help="A short stable name, unique in its cluster.",
            example='id = "edge-1"',
        ),
        Key(
            name="address",
            kind=own,
            default=DEFAULT_ADDRESS,
            help="What others dial (Kamailio: server_address).",
        ),
        Key(
            name="listen",
            kind=bound,
            default_text="`address`",
            help="What is bound, where it differs (Kamailio: server_socket).",
            example='listen = "tcp://0.0.0.0:5062"',
        ),
        Key(
            name="priority",
            kind=integer(0, 65535),
            default=50,
            help="Lower is preferred as a relay.",
        ),
        Key(
            name="tags",
            kind=TAGS,
            default={},
            help='Shown to everyone, for instance { role = "registrar", site = "fra" }.',
        ),
        Key(
            name="state_dir",
            kind=PATH,
            default_text="none: nothing is remembered across a restart",
            help="Where the members and the incarnation are kept; relative to this file.",
            example='state_dir = "/var/lib/clusternode"',
        ),
        *RECORDING_KEYS,
        Key(
            name="control_socket",
            kind=SOCKET_PATH,
            default_text="`/run/clusternode/NODE.sock` for root, "
            "else `$XDG_RUNTIME_DIR/clusternode/NODE.sock`",
            help="The unix socket that the commands talk to; relative to this file.",
            example='control_socket = "/run/clusternode/edge-1.sock"',
        ),
        Key(
            name="insecure",
            kind=BOOLEAN,
            default=False,
            help="Allow to listen beyond loopback without a secret or TLS.",
        ),
    )


DISCOVERY_KEYS = derive(
    DiscoverySettings,
    {
        "notification_addresses": list_of(address_kind(srv=True, wildcard=False)),
        "multi_notify": BOOLEAN,
        "refresh_interval": number(1.0),
        "redial_min": number(0.01),
        "redial_max": number(0.01),
        "dials_per_second": number(0.1, 10_000.0, unit="dials"),
        "handshake_timeout": number(0.05),
        "forget_after": number(1.0),
    },
)
NAMESERVERS_KEY = Key(
    name="nameservers",
    kind=list_of(NAMESERVER),
    default=(),
    help="DNS servers as ip:port; empty: those of the system.",
    example='nameservers = ["192.0.2.53:53"]',
)
HEALTH_KEYS = derive(
    HealthSettings,
    {
        "ping_interval": number(PING_INTERVAL_MIN),
        "ping_timeout": number(0.01),
        "remove_inactive": BOOLEAN,
        "fail_count_enabled": BOOLEAN,
        "fail_count_threshold_not_active": integer(0),
        "fail_count_threshold_disabled": integer(0),
        "enable_rerouting": BOOLEAN,
    },
)
MESSAGING_KEYS = derive(
    MessagingSettings,
    {
        "body_size_max": integer(1, BODY_SIZE_MAX_LIMIT),
        "delivery_timeout": number(0.1),
        "result_timeout": number(0.1),
        "window_bytes": integer(64 * 1024, 2**31),
        "outbox_bytes": integer(64 * 1024, 2**31),
        "wait_max": number(0.0, 3600.0),
        "ack_delay": number(0.0, 1.0),
        "open_requests_max": integer(1, 1_000_000),
    },
)


def let_defaults_follow(health: dict[str, Any], messaging: dict[str, Any]) -> None:
    """Let limits that nobody wrote give way to those that somebody did."""
    interval = health.get("ping_interval", HealthSettings().ping_interval)
    health.setdefault("ping_timeout", min(HealthSettings().ping_timeout, interval))
    defaults = MessagingSettings()
    delivery = messaging.get("delivery_timeout", defaults.delivery_timeout)
    messaging.setdefault("result_timeout", max(defaults.result_timeout, delivery))


def _check_event_name(text: str) -> object:
    if EVENT_NAME_PATTERN.fullmatch(text) is None:
        raise WrongValue
    return text


EVENT_NAME_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
EVENT_NAME = text_kind("name", "names of 1 to 128 of A-Z a-z 0-9 . _ : -", _check_event_name)
ROUTES_KEYS = derive(
    RoutesSection,
    {
        "file": PATH,
        "time_limit": number(0.01),
        "watchdog": number(0.01),
        "threads": integer(1, 1024),
        "requests_max": integer(1, 1_000_000),
        "notification_channel": NAME,
        "events": list_of(EVENT_NAME),
    },
)
CHANNEL_KEYS = derive(
    ChannelSection,
    {
        "overflow": member_of(OverflowPolicy),
        "result": choice("handled", "queued"),
        "handling": choice("queued", "inline"),
        "ordered": BOOLEAN,
        "concurrency": integer(1, 100_000),
        "queue_size": integer(1, 10_000_000),
        "publish": list_of(NODES),
        "ask": list_of(NODES),
    },
)


def _check_trigger(text: str) -> object:
    kind, separator, name = text.partition(":")
    if not separator or kind not in ("request", "message", "event") or not name:
        raise WrongValue
    if kind != "event" and NAME.read(name) != name:
        raise WrongValue
    if not text.isascii() or not text.isprintable() or len(text) > len("request:") + 128:
        raise WrongValue
    return text


TRIGGER = text_kind("string", "request:CHANNEL, message:CHANNEL or event:NAME", _check_trigger)
ROUTE_KEYS = derive(
    ExecRoute,
    {
        "on": TRIGGER,
        "exec": list_of(STRING, length_min=1),
        "timeout": number(0.01),
        "concurrency": integer(1, 1024),
        "output_size_max": integer(0, BODY_SIZE_MAX_LIMIT),
        "environment": ENVIRONMENT,
    },
)
TLS_KEYS = tuple(
    attrs.evolve(key, default_text="needed for tls://" if key.default is None else "")
    for key in derive(TlsSection, {"certificate": PATH, "key": PATH, "ca": PATH, "mutual": BOOLEAN})
)
SUBSCRIBE_KEYS = derive(
    SubscribeSection,
    {
        "event": STRING,
        "to": STRING,
        "expire": number(0.0),
        "queue_size": integer(1, 10_000_000),
    },
)
LOG_KEYS = (
    Key(name="level", kind=choice(*LOG_LEVELS), default="info", help="The least that is logged."),
)
CLUSTER_OWN_KEYS = ("address", "listen", "tags")
"""Keys of `[node]` that a cluster may have for itself."""
SECRET_KEYS = (
    Key(
        name="secret_file",
        kind=PATH,
        default_text="none: only loopback may be used",
        help="A file with the cluster's secret, mode 0600. Several lines are several secrets: "
        "this node proves itself with the first and accepts all.",
        example='secret_file = "/etc/clusternode/secret"',
    ),
    Key(
        name="secret",
        kind=SECRETS,
        default_text="none",
        help="The secret itself, several separated by spaces; only as an environment variable "
        "(`CLUSTERNODE__CLUSTER__SECRET`), never in this file.",
    ),
)


def sections(*, port_zero: bool = False) -> Mapping[str, Section]:
    """Return every section by its name. `port_zero` allows port 0, for tests only."""
    node = _node_keys(port_zero=port_zero)
    cluster_name = Key(
        name="name",
        kind=CLUSTER_NAME,
        default=DEFAULT_CLUSTER,
        help="What keeps this cluster apart from others.",
    )
    own = tuple(key for key in node if key.name in CLUSTER_OWN_KEYS)
    listed = (
        Section(name="node", help="This node, in every cluster.", keys=node),
        Section(
            name="cluster",
            help="The cluster that this node is in.",
            keys=(cluster_name, *SECRET_KEYS),
        ),
        Section(
            name="discovery",
            help="How the others are found.",
            keys=(*DISCOVERY_KEYS, NAMESERVERS_KEY),
        ),
        Section(
            name="health",
            help="How it is found out who is alive; names and meaning are those of DMQ.",
            keys=HEALTH_KEYS,
        ),
        Section(
            name="tls",
            help="Encryption and proof of identity on tls:// addresses; `clusternode tls` makes "
            "the files.",
            keys=TLS_KEYS,
        ),
        Section(name="messaging", help="Bounds and time limits of messages.", keys=MESSAGING_KEYS),
        Section(name="routes", help="The script and its limits.", keys=ROUTES_KEYS),
        Section(
            name="channel.NAME",
            help="How messages of the channel NAME are sent and handled here.",
            keys=CHANNEL_KEYS,
        ),
        Section(
            name="route",
            help="An executable as a handler; `[[route]]` as often as needed.",
            keys=ROUTE_KEYS,
        ),
        Section(
            name="subscribe",
            help="Events that a back end gets; `[[subscribe]]` as often as needed "
            "([Events](../events.md)).",
            keys=SUBSCRIBE_KEYS,
        ),
        Section(name="log", help="What is written to standard error.", keys=LOG_KEYS),
        Section(
            name="cluster.NAME",
            help="One of several clusters; it may also hold the tables discovery, health and "
            "messaging, each key of which overrides the top-level one.",
            keys=(*own, *SECRET_KEYS),
        ),
    )
    return {section.name: section for section in listed}


CLUSTER_TABLES: Mapping[str, tuple[Key, ...]] = {
    "discovery": DISCOVERY_KEYS,
    "health": HEALTH_KEYS,
    "messaging": MESSAGING_KEYS,
}
"""The tables that a cluster may have for itself."""

HELP_CLASSES: Mapping[str, type] = {
    "discovery": DiscoverySettings,
    "health": HealthSettings,
    "messaging": MessagingSettings,
    "routes": RoutesSection,
    "tls": TlsSection,
    "channel.NAME": ChannelSection,
    "route": ExecRoute,
    "subscribe": SubscribeSection,
}


def help_of(section: Section, key: Key) -> str:
    """Return the help of a key: its own, or the docstring of the field it fills."""
    if key.help or section.name not in HELP_CLASSES:
        return key.help
    return field_help(HELP_CLASSES[section.name])[key.name]
