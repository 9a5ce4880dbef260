"""`[gateway.opensips]` declared: its keys, their checks, and what is made of them."""

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
from clusternode.gateways.opensips.service import OpenSipsGateway
from clusternode.gateways.opensips.settings import (
    BinUrl,
    MyNodeInfo,
    Neighbour,
    OpenSipsSettings,
)
from clusternode.runtime.resolver import Resolver

ID_MAX = 2**31 - 1
PING_INTERVAL_MIN = 0.1
PACE_MAX = 1_000_000
SYNC_PACKET_SIZE_MIN = 1024
SYNC_PACKET_SIZE_MAX = 65_000
"""A frame holds 65 515 bytes, header and trailer among them."""
WAYS_OUT = (
    "an address on loopback, because clusterer cannot prove who a node is; use bins: with"
    " certificates, or, where the network keeps strangers out, set insecure = true here"
)
URL_EXPECTED = "bin:HOST:PORT, or bins:HOST:PORT for TLS"
OWN_EXPECTED = "url=bin:IP:PORT, and if wanted cluster_id=N, sip_addr=TEXT, flags=seed"
NEIGHBOUR_EXPECTED = "node_id=N, url=bin:HOST:PORT, and if wanted cluster_id=N"
CAPABILITY_LENGTH_MAX = 64


def _properties(text: str, names: tuple[str, ...], expected: str) -> dict[str, str]:
    """Read `name=value, name=value`, as in opensips.cfg."""
    values: dict[str, str] = {}
    for part in text.split(","):
        name, separator, value = (each.strip() for each in part.partition("="))
        if not separator or name not in names or name in values or not value:
            raise WrongValue(expected)
        values[name] = value
    return values


def _number(values: Mapping[str, str], name: str) -> int:
    text = values.get(name, "0")
    if not text.isascii() or not text.isdecimal() or int(text) > ID_MAX:
        raise WrongValue(f"{name}: 1 to {ID_MAX}")
    return int(text)


def _url(text: str) -> BinUrl:
    try:
        return BinUrl.parse(text)
    except ValueError:
        raise WrongValue(URL_EXPECTED) from None


def _own(text: str) -> object:
    values = _properties(text, ("cluster_id", "url", "sip_addr", "flags"), OWN_EXPECTED)
    url = _url(values.get("url", ""))
    if not url.is_numeric:
        raise WrongValue("a numeric address in the url: by it the others know what comes from us")
    if values.get("flags", "seed") != "seed":
        raise WrongValue("no flag but seed")
    is_seed = "flags" in values
    return MyNodeInfo(url, values.get("sip_addr", ""), is_seed, _number(values, "cluster_id"))


def _neighbour(text: str) -> object:
    values = _properties(text, ("cluster_id", "node_id", "url"), NEIGHBOUR_EXPECTED)
    node_id = _number(values, "node_id")
    if not node_id:
        raise WrongValue(NEIGHBOUR_EXPECTED)
    return Neighbour(node_id, _url(values.get("url", "")), _number(values, "cluster_id"))


def _sharing_tag(text: str) -> object:
    name, separator, state = text.partition("=")
    if not name or (separator and state not in ("active", "backup")):
        raise WrongValue
    return name, state == "active"


def _word(text: str) -> object:
    if not 0 < len(text) <= CAPABILITY_LENGTH_MAX or not text.isprintable():
        raise WrongValue
    return text


OWN = text_kind("properties", OWN_EXPECTED, _own)
NEIGHBOUR = text_kind("properties", NEIGHBOUR_EXPECTED, _neighbour)
URL = text_kind("url", URL_EXPECTED, _url)
SHARING_TAG = text_kind("sharing tag", "a name, or NAME=active", _sharing_tag)
WORD = text_kind("name", f"1 to {CAPABILITY_LENGTH_MAX} printable characters", _word)
_ID = integer(1, ID_MAX)
_KINDS: Mapping[str, Kind] = {
    "cluster_id": _ID,
    "my_node_id": _ID,
    "my_node_info": OWN,
    "neighbor_node_info": list_of(NEIGHBOUR),
    "socket": URL,
    "priority": integer(0, ID_MAX),
    "retries": integer(0, 100),
    "ping_interval": number(PING_INTERVAL_MIN),
    "ping_timeout": number(0.01),
    "node_timeout": number(0.1),
    "enable_rerouting": BOOLEAN,
    "pace": integer(0, PACE_MAX),
    "capabilities": list_of(NAME),
    "cache_collections": list_of(WORD),
    "usrloc": BOOLEAN,
    "sharing_tags": list_of(SHARING_TAG),
    "mi_allow": list_of(WORD),
    "sync_timeout": number(0.1),
    "sync_packet_size": integer(SYNC_PACKET_SIZE_MIN, SYNC_PACKET_SIZE_MAX),
    "seed_fallback_interval": number(0.0),
    "tls_certificate": PATH,
    "tls_key": PATH,
    "tls_ca": PATH,
    "insecure": BOOLEAN,
}
_NEEDED = ("cluster_id", "my_node_id", "my_node_info")
_DEFAULT_TEXTS = {**dict.fromkeys(_NEEDED, "needed"), "socket": "the url of `my_node_info`"}
_EXAMPLES = {
    "my_node_info": 'my_node_info = "url=bin:10.0.0.20:5555, sip_addr=10.0.0.20"',
    "neighbor_node_info": 'neighbor_node_info = ["node_id=1, url=bin:10.0.0.1:5555"]',
    "socket": 'socket = "bin:0.0.0.0:5555"',
    "sharing_tags": 'sharing_tags = ["vip", "db=active"]',
    "cache_collections": 'cache_collections = ["blocked"]',
}


def _key(key: Key) -> Key:
    return attrs.evolve(
        key,
        help=field_help(OpenSipsSettings)[key.name],
        default_text=_DEFAULT_TEXTS.get(key.name, ""),
        example=_EXAMPLES.get(key.name, ""),
    )


SECTION = Section(
    name="gateway.opensips",
    help="Take part in an OpenSIPS cluster; the names are those of its module clusterer. "
    "See docs/gateway-opensips.md.",
    keys=tuple(_key(key) for key in derive(OpenSipsSettings, _KINDS)),
)


def read(table: RawTable) -> OpenSipsSettings:
    """Read `[gateway.opensips]`.

    Raises:
        ConfigError: Names the key.
    """
    table.refuse_unknown(_KINDS)
    values = {name: table.value(name, _KINDS[name]) for name in table.names()}
    for name in _NEEDED:
        if name not in values:
            raise table.fail(name, None, _KINDS[name].expected)
    for name in ("tls_certificate", "tls_key", "tls_ca"):
        if name in values:
            values[name] = table.directory / cast("Any", values[name])
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    settings = OpenSipsSettings(**cast("dict[str, Any]", values))
    _check(table, settings)
    _check_addresses(table, settings)
    return settings


def _check(table: RawTable, settings: OpenSipsSettings) -> None:
    if settings.ping_timeout > settings.ping_interval:
        expected = f"at most ping_interval ({settings.ping_interval:g})"
        raise table.fail("ping_timeout", settings.ping_timeout, expected)
    infos = [("my_node_info", settings.my_node_info.cluster_id)]
    infos += [("neighbor_node_info", each.cluster_id) for each in settings.neighbor_node_info]
    for name, cluster_id in infos:
        if cluster_id not in (0, settings.cluster_id):
            raise table.fail(name, f"cluster_id={cluster_id}", f"that of {settings.cluster_id}")
    seen = [settings.my_node_id]
    for each in settings.neighbor_node_info:
        if each.node_id in seen:
            raise table.fail("neighbor_node_info", each.node_id, "each node id once, and not ours")
        seen.append(each.node_id)


def _check_addresses(table: RawTable, settings: OpenSipsSettings) -> None:
    own, socket = settings.my_node_info.url, settings.listen
    if not socket.is_numeric:
        raise table.fail("socket", str(socket), "a numeric address")
    if socket.scheme != own.scheme:
        raise table.fail("socket", str(socket), f"{own.scheme}: as in my_node_info")
    if own.is_tls:
        for name in ("tls_certificate", "tls_key", "tls_ca"):
            if getattr(settings, name) is None:
                raise table.fail(name, None, "a file, because the url of my_node_info is bins:")
    elif not settings.insecure:
        for name, url in (("socket", socket), ("my_node_info", own)):
            if not ipaddress.ip_address(url.host).is_loopback:
                raise table.fail(name, str(url), WAYS_OUT)


def _make(name: str, settings: OpenSipsSettings, resolver: Resolver) -> OpenSipsGateway:
    return OpenSipsGateway(name, settings, resolver)


PLUGIN = Plugin(SECTION, read, _make)
