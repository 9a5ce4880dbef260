"""`kafka://user:pass@host:port,host2/vhost?options`: oslo.messaging's grammar of transport URLs.

Meaning: oslo.messaging, `TransportURL.parse`, and the group oslo_messaging_kafka for the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib import parse

import attrs

from clusternode.config.kinds import Kind, WrongValue, choice, integer, number, text_kind
from clusternode.errors import ConfigError
from clusternode.kafka.settings import YES_NO, KafkaConnection
from clusternode.kafka.uri import DEFAULT_PORT, MASK, PORT_MAX

CONNECTION = "notifications"
"""The name of the connection that `[notifications] transport_url` makes."""
SETTING = "transport_url"
DEFAULT_GROUP = "oslo_messaging_consumer"


@attrs.frozen
class TransportHost:
    """One host of a URL."""

    hostname: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class TransportUrl:
    """A transport URL, read."""

    transport: str
    virtual_host: str | None = None
    hosts: tuple[TransportHost, ...] = ()
    query: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def shown(self) -> str:
        """The URL for people: passwords as ***."""
        hosts = []
        for host in self.hosts:
            name = _bracketed(host.hostname or "")
            user = f"{host.username}:{MASK}@" if host.password else ""
            user = user or (f"{host.username}@" if host.username else "")
            hosts.append(user + name + (f":{host.port}" if host.port is not None else ""))
        return f"{self.transport}://{','.join(hosts)}/{self.virtual_host or ''}"

    @property
    def brokers(self) -> str:
        """All hosts as librdkafka wants them; a missing port is 9092."""
        return ",".join(
            f"{_bracketed(host.hostname or 'localhost')}:{host.port or DEFAULT_PORT}"
            for host in self.hosts
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_url(text: str) -> TransportUrl:
    """Read a transport URL.

    Raises:
        ConfigError: It has no scheme, or a port is none; shows no passwords.
    """
    try:
        parts = parse.urlparse(text)
        # `?` in a netloc, brackets without an end: urlparse refuses some of them by itself.
        hosts = tuple(_host(each) for each in parts.netloc.split(",") if each)
    except ValueError as error:
        raise ConfigError(
            SETTING, MASK, f"kafka://[USER:PASS@]HOST[:PORT],…/VHOST ({error})"
        ) from None
    if not parts.scheme:
        raise ConfigError(SETTING, MASK, "a scheme in front: kafka://HOST:PORT/")
    virtual_host = parse.unquote(parts.path[1:]) if parts.path.startswith("/") else None
    query = {key: ",".join(values) for key, values in parse.parse_qs(parts.query).items()}
    return TransportUrl(parts.scheme, virtual_host, hosts, query)


def _host(text: str) -> TransportHost:
    username = password = None
    hostname: str | None = text
    port = ""
    if "@" in text:
        username, _, hostname = text.rpartition("@")
        if ":" in username:
            username, _, password = username.partition(":")
            password = parse.unquote(password)
        username = parse.unquote(username)
    if not hostname:
        hostname = None
    elif hostname.startswith("["):
        inner, bracket, rest = hostname[1:].partition("]")
        if not bracket:
            raise ValueError("an IPv6 address without its closing bracket")
        hostname = inner
        port = rest.partition(":")[2]
        if rest.endswith(":"):
            raise ValueError("a colon without a port behind it")
    elif ":" in hostname:
        hostname, _, port = hostname.partition(":")
        if not port:
            raise ValueError("a colon without a port behind it")
    if not port:
        return TransportHost(hostname, None, username, password)
    if not (port.isascii() and port.isdigit() and int(port) <= PORT_MAX):
        raise ValueError(f"a port is {port!r}")
    return TransportHost(hostname, int(port), username, password)


# Option of oslo_messaging_kafka → how it is read, and what it is here.
_TEXT = text_kind("string", "a string", lambda text: text)
OPTIONS: Mapping[str, Kind] = {
    "kafka_max_fetch_bytes": integer(1, 1_000_000_000),
    "kafka_consumer_timeout": number(0.0),
    "consumer_group": _TEXT,
    "enable_auto_commit": YES_NO,
    "max_poll_records": integer(1, 1_000_000),
    "producer_batch_timeout": number(0.0, 900.0),
    "producer_batch_size": integer(1, 1_000_000),
    "compression_codec": choice("none", "gzip", "snappy", "lz4", "zstd"),
    "security_protocol": choice("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"),
    "sasl_mechanism": _TEXT,
    "ssl_cafile": _TEXT,
    "ssl_client_cert_file": _TEXT,
    "ssl_client_key_file": _TEXT,
    "ssl_client_key_password": _TEXT,
}
_NUMBERS = frozenset(
    {
        "kafka_max_fetch_bytes",
        "kafka_consumer_timeout",
        "max_poll_records",
        "producer_batch_timeout",
        "producer_batch_size",
    }
)


def read_options(given: Mapping[str, object]) -> dict[str, Any]:
    """Read options of oslo_messaging_kafka, as text of a query or as TOML values.

    Raises:
        ConfigError: One is unknown, or its value is wrong.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in OPTIONS:
            raise ConfigError(f"{SETTING}: {name}", MASK, "one of " + ", ".join(OPTIONS))
        if name in _NUMBERS and isinstance(value, str):
            try:
                value = float(value) if "." in value else int(value)
            except ValueError:
                raise ConfigError(f"{SETTING}: {name}", value, OPTIONS[name].expected) from None
        try:
            found[name] = OPTIONS[name].read(value)
        except WrongValue as error:
            raise ConfigError(
                f"{SETTING}: {name}", MASK, str(error) or OPTIONS[name].expected
            ) from None
    return found


def connection_of(
    url: TransportUrl, options: Mapping[str, object] | None = None, name: str = CONNECTION
) -> KafkaConnection:
    """Return the connection that a URL and options mean; the query of the URL wins.

    Raises:
        ConfigError: It is no URL for Kafka, or an option is wrong.
    """
    if url.transport != "kafka":
        raise ConfigError(SETTING, url.shown, "a URL that begins with kafka://")
    if not url.hosts:
        raise ConfigError(SETTING, url.shown, "at least one host")
    chosen = {**read_options(options or {}), **read_options(url.query)}
    first = url.hosts[0]  # oslo takes the credentials of the first host too
    properties: dict[str, str] = {}
    if "kafka_max_fetch_bytes" in chosen:
        properties["max.partition.fetch.bytes"] = str(chosen["kafka_max_fetch_bytes"])
    if chosen.get("ssl_client_key_password"):
        properties["ssl.key.password"] = chosen["ssl_client_key_password"]
    protocol = chosen.get("security_protocol", "PLAINTEXT").lower()
    uses_sasl = protocol.startswith("sasl_")
    return KafkaConnection(
        name=name,
        brokers=url.brokers,
        vhost=url.virtual_host or "",
        linger_ms=round(chosen.get("producer_batch_timeout", 0.0) * 1000),
        batch_num_messages=chosen.get("producer_batch_size", 16384),
        compression_codec=chosen.get("compression_codec", "none"),
        security_protocol=protocol,
        sasl_mechanisms=chosen.get("sasl_mechanism", "PLAIN") if uses_sasl else "",
        sasl_username=(first.username or "") if uses_sasl else "",
        sasl_password=(first.password or "") if uses_sasl else "",
        ssl_ca_location=chosen.get("ssl_cafile", ""),
        ssl_certificate_location=chosen.get("ssl_client_cert_file", ""),
        ssl_key_location=chosen.get("ssl_client_key_file", ""),
        group_id=chosen.get("consumer_group", DEFAULT_GROUP),
        enable_auto_commit=chosen.get("enable_auto_commit", False),
        properties=properties,
    )


def has_mixed_credentials(url: TransportUrl) -> bool:
    """Tell whether hosts differ in their credentials, of which only the first are used."""
    return len({(host.username, host.password) for host in url.hosts}) > 1
