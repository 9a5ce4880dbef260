"""`[gateway.kamailio]` declared: its keys, their checks, and what is made of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, cast

import attrs

from clusternode.config.keys import Key, Section, derive, field_help
from clusternode.config.kinds import (
    BOOLEAN,
    NAME,
    PATH,
    Kind,
    WrongValue,
    integer,
    list_of,
    number,
    text_kind,
)
from clusternode.config.raw import RawTable
from clusternode.gateways.base import Plugin
from clusternode.gateways.kamailio.service import KamailioGateway
from clusternode.gateways.kamailio.settings import PING_TIMEOUT, KamailioSettings
from clusternode.gateways.kamailio.translate import (
    NamedAddress,
    PeerAddress,
    is_numeric,
    parse_address,
)
from clusternode.runtime.resolver import Resolver

TABLES_MAX = 64
TABLE_NAME_LENGTH_MAX = 256
PING_INTERVAL_MIN = 1.0
"""A Kamailio answers in its workers: more pings would cost it for nothing."""
WAYS_OUT = (
    "an address on loopback, because DMQ cannot prove who a peer is; where the network keeps"
    " strangers out, set insecure = true here"
)
ADDRESS_EXPECTED = "sip:IPv4:PORT, with ;transport=tcp or ;transport=tls where it is not UDP"


def _own_address(text: str) -> object:
    named = _seed(text)
    if not named.has_port:
        raise WrongValue(f"{ADDRESS_EXPECTED}; without the port others write it wrongly")
    if named.numeric is None or not named.numeric.is_ipv4:
        raise WrongValue(f"{ADDRESS_EXPECTED}; lists with names or IPv6 stop old Kamailios")
    return named.numeric


def _socket(text: str) -> object:
    named = _seed(text)
    if not is_numeric(named.host):
        raise WrongValue
    return PeerAddress(named.transport, named.host, named.port)


def _seed(text: str) -> NamedAddress:
    try:
        return parse_address(text)
    except ValueError:
        raise WrongValue from None


OWN_ADDRESS = text_kind("SIP URI", ADDRESS_EXPECTED, _own_address)
SOCKET = text_kind("SIP URI", "sip:IP:PORT", _socket)
SEED = text_kind("SIP URI", "sip:HOST:PORT, with ;transport=tcp or tls where it is not UDP", _seed)


def _convert_tables(value: object) -> object:
    if not isinstance(value, Mapping) or len(value) > TABLES_MAX:
        raise WrongValue
    for name, seconds in value.items():
        if not isinstance(name, str) or not 0 < len(name) <= TABLE_NAME_LENGTH_MAX:
            raise WrongValue
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 <= seconds < 2**31:
            raise WrongValue(f"seconds, 0 for ever, for the table {name}")
    return dict(value)


TABLES = Kind(
    "table", f"a table of at most {TABLES_MAX} names with seconds, 0 for ever", _convert_tables
)

_KINDS: Mapping[str, Kind] = {
    "server_address": OWN_ADDRESS,
    "server_socket": SOCKET,
    "notification_address": list_of(SEED),
    "notification_channel": NAME,
    "multi_notify": BOOLEAN,
    "ping_interval": number(PING_INTERVAL_MIN),
    "ping_timeout": number(0.1),
    "fr_timer": number(1.0),
    "remove_inactive": BOOLEAN,
    "fail_count_enabled": BOOLEAN,
    "fail_count_threshold_not_active": integer(0),
    "fail_count_threshold_disabled": integer(0),
    "htables": TABLES,
    "tls_certificate": PATH,
    "tls_key": PATH,
    "tls_ca": PATH,
    "insecure": BOOLEAN,
}
_DEFAULT_TEXTS = {"server_address": "needed", "server_socket": "`server_address`"}
_EXAMPLES = {
    "server_address": 'server_address = "sip:10.0.0.20:5060"',
    "server_socket": 'server_socket = "sip:0.0.0.0:5060"',
    "notification_address": 'notification_address = ["sip:10.0.0.1:5060", "sip:10.0.0.2:5060"]',
    "htables": "htables = { ht = 3600 }",
}


def _key(key: Key) -> Key:
    return attrs.evolve(
        key,
        help=field_help(KamailioSettings)[key.name],
        default_text=_DEFAULT_TEXTS.get(key.name, ""),
        example=_EXAMPLES.get(key.name, ""),
    )


SECTION = Section(
    name="gateway.kamailio",
    help="Take part in a Kamailio DMQ bus; the names are those of its module dmq. "
    "See docs/gateway-kamailio.md.",
    keys=tuple(_key(key) for key in derive(KamailioSettings, _KINDS)),
)


def read(table: RawTable) -> KamailioSettings:
    """Read `[gateway.kamailio]`.

    Raises:
        ConfigError: Names the key.
    """
    table.refuse_unknown(_KINDS)
    values = {name: table.value(name, _KINDS[name]) for name in table.names()}
    if "server_address" not in values:
        raise table.fail("server_address", None, ADDRESS_EXPECTED)
    for name in ("tls_certificate", "tls_key", "tls_ca"):
        if name in values:
            values[name] = table.directory / cast("Any", values[name])
    if "ping_timeout" not in values and "ping_interval" in values:
        values["ping_timeout"] = min(PING_TIMEOUT, cast("float", values["ping_interval"]))
    settings = KamailioSettings(**cast("dict[str, Any]", values))
    _check(table, settings)
    return settings


def _check(table: RawTable, settings: KamailioSettings) -> None:
    if settings.ping_timeout > settings.ping_interval:
        expected = f"at most ping_interval ({settings.ping_interval:g})"
        raise table.fail("ping_timeout", settings.ping_timeout, expected)
    own, socket = settings.server_address, settings.socket
    if socket.transport != own.transport:
        raise table.fail("server_socket", socket.uri, f"the transport of {own.uri}")
    for seed in settings.notification_address:
        if seed.transport != own.transport:
            expected = f"the transport of server_address ({own.transport})"
            raise table.fail("notification_address", f"sip:{seed.host}:{seed.port}", expected)
    if not settings.insecure:
        for name, address in (("server_socket", socket), ("server_address", own)):
            if not ipaddress.ip_address(address.host).is_loopback:
                raise table.fail(name, address.uri, WAYS_OUT)
    if own.transport == "tls":
        for name in ("tls_certificate", "tls_key", "tls_ca"):
            if getattr(settings, name) is None:
                raise table.fail(name, None, "a file, because server_address says transport=tls")


def _make(name: str, settings: KamailioSettings, resolver: Resolver) -> KamailioGateway:
    return KamailioGateway(name, settings, resolver)


PLUGIN = Plugin(SECTION, read, _make)
