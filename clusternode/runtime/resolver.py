"""Names → addresses: the interface `Resolver` and its implementation.

`srv://NAME` is looked up as RFC 2782 says, `tcp://HOST:PORT` as A and AAAA. Numeric hosts,
`localhost` (RFC 6761 section 6.3) and the names in the hosts file need no server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from clusternode.core.inputs import ResolvedAddress
from clusternode.core.types import Address, Seconds
from clusternode.errors import ConfigError, ResolveError
from clusternode.runtime.transport import is_numeric

if TYPE_CHECKING:
    from clusternode.runtime import questions

LOOKUP_TIMEOUT: Final[Seconds] = 5.0
"""For one question with all its repetitions; glibc's resolver takes as long for the first."""
TARGETS_MAX: Final = 64
"""Targets of one SRV answer that are looked up, best first."""
ADDRESSES_MAX: Final = 16
"""Addresses of one host that are used."""
HOSTS_FILE: Final = Path("/etc/hosts")
HOSTS_FILE_SIZE_MAX: Final = 1024 * 1024
"""What is read of a hosts file; some block advertisements with very long ones."""
LOCALHOST: Final = ("127.0.0.1", "::1")
DNS_PORT: Final = 53


class Resolver(Protocol):
    """A way to look names up."""

    async def resolve(self, name: Address) -> Sequence[ResolvedAddress]:
        """Return the addresses of a name, best first; never none.

        Raises:
            ResolveError: There is none, or nobody could say.
        """
        ...


class DnsResolver:
    """Asks the name servers of the system, or those given as `ip` or `ip:port`.

    The system's configuration is read again for each look-up, so a change of it is noticed.
    """

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        *,
        hosts_file: Path = HOSTS_FILE,
        timeout: Seconds = LOOKUP_TIMEOUT,
    ) -> None:
        self._nameservers = [parse_nameserver(text) for text in nameservers]
        self._hosts_file = hosts_file
        self._timeout = timeout

    async def resolve(self, name: Address) -> Sequence[ResolvedAddress]:
        if name.scheme == "srv":
            return await self._resolve_service(name.host)
        hosts = await self._addresses(name.host)
        return [ResolvedAddress(Address(name.scheme, host, name.port)) for host in hosts]

    async def _resolve_service(self, name: str) -> Sequence[ResolvedAddress]:
        answer = await self._questions().ask_service(name)
        records = sorted(
            answer, key=lambda each: (each.priority, -each.weight, each.target, each.port)
        )[:TARGETS_MAX]
        if len(records) == 1 and records[0].target == ".":
            raise ResolveError(f"{name}: its SRV record says that there is no such service")
        found: list[list[ResolvedAddress]] = [[] for _ in records]
        errors: list[str] = []
        async with trio.open_nursery() as nursery:
            for record, addresses in zip(records, found, strict=True):
                nursery.start_soon(self._resolve_target, record, addresses, errors)
        result = [address for addresses in found for address in addresses]
        if not result:
            raise ResolveError(errors[0] if errors else f"{name}: has no SRV record")
        return result

    async def _resolve_target(
        self,
        record: questions.Service,
        addresses: list[ResolvedAddress],
        errors: list[str],
    ) -> None:
        target = record.target.lower()
        try:
            hosts = await self._addresses(target)
        except ResolveError as error:
            errors.append(str(error))
            return
        addresses.extend(
            ResolvedAddress(Address("tcp", host, record.port), record.priority, record.weight)
            for host in hosts
        )

    async def _addresses(self, host: str) -> Sequence[str]:
        """Return the numeric addresses of a host, IPv4 first."""
        if is_numeric(host):
            return [host]
        if known := read_hosts_file(self._hosts_file).get(host):
            return known[:ADDRESSES_MAX]
        if host == "localhost" or host.endswith(".localhost"):
            return LOCALHOST
        found: dict[str, list[str]] = {}
        errors: dict[str, ResolveError] = {}

        questions = self._questions()

        async def ask(kind: str) -> None:
            try:
                found[kind] = sorted(await questions.ask_addresses(host, kind))
            except ResolveError as error:
                errors[kind] = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "A")
            nursery.start_soon(ask, "AAAA")
        if not found:
            raise errors["A"]
        return (found.get("A", []) + found.get("AAAA", []))[:ADDRESSES_MAX]

    def _questions(self) -> questions.Questions:
        from clusternode.runtime.questions import Questions  # memory: few agents need dnspython

        return Questions(self._nameservers, self._timeout)


def parse_nameserver(text: str) -> tuple[str, int]:
    """Read `ip`, `ip:port`, `ipv6` or `[ipv6]:port`.

    Raises:
        ConfigError: It is none of these.
    """
    refuse = partial(ConfigError, "discovery.nameservers", text, "IP or IP:PORT, IPv6 in brackets")
    if is_numeric(text):
        return text, DNS_PORT
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not is_numeric(host) or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise refuse()
    return host, int(port)


def read_hosts_file(path: Path) -> dict[str, list[str]]:
    """Return name → addresses, IPv4 first, of a hosts(5) file; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(HOSTS_FILE_SIZE_MAX).decode("utf-8", "replace")
    except OSError:
        return {}
    hosts: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1 and is_numeric(words[0]):
            for name in words[1:]:
                addresses = hosts.setdefault(name.lower().rstrip("."), [])
                if words[0] not in addresses:
                    addresses.append(words[0])
    for addresses in hosts.values():
        addresses.sort(key=lambda address: ipaddress.ip_address(address).version)
    return hosts
