"""The one edge to dnspython: asks name servers, turns answers and errors into ours.

Only `resolver.py` imports it, when the first name must be asked for: an agent whose addresses are
numeric, or in the hosts file, never has dnspython in its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.rdtypes.IN.SRV
import dns.resolver

from clusternode.core.types import Seconds
from clusternode.errors import ResolveError


@attrs.frozen
class Service:
    """One SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str
    """Without a dot at its end; "." alone says that there is no such service."""


@attrs.frozen
class Questions:
    """Asks the name servers of the system, read anew each time, or those that are given."""

    nameservers: Sequence[tuple[str, int]]
    """Numeric host and port of each; none: those of the system."""
    timeout: Seconds
    """For one question with all its repetitions."""

    async def ask_addresses(self, name: str, kind: str) -> list[str]:
        """Return the addresses of a host as text; `kind`: A or AAAA.

        Raises:
            ResolveError: There is none, or nobody could say.
        """
        return [record.to_text() for record in await self._ask(name, kind)]

    async def ask_service(self, name: str) -> list[Service]:
        """Return the SRV records of a name, in no order.

        Raises:
            ResolveError: There is none, or nobody could say.
        """
        return [
            Service(
                record.priority,
                record.weight,
                record.port,
                record.target.to_text(omit_final_dot=True),
            )
            for record in await self._ask(name, "SRV")
            if isinstance(record, dns.rdtypes.IN.SRV.SRV)
        ]

    async def _ask(self, name: str, kind: str) -> dns.resolver.Answer:
        question = f"{name} ({kind})"
        try:
            resolver = self._configured()
            return await resolver.resolve(
                name,
                dns.rdatatype.from_text(kind),
                search=True,
                backend=dns.asyncbackend.get_backend("trio"),
            )
        except dns.resolver.NXDOMAIN as error:
            raise ResolveError(f"{question}: no such name") from error
        except dns.resolver.NoAnswer as error:
            raise ResolveError(f"{question}: the name has no such record") from error
        except dns.resolver.LifetimeTimeout as error:
            raise ResolveError(f"{question}: no answer within {self.timeout:g} s") from error
        except dns.resolver.NoNameservers as error:
            detail = _short(error)
            raise ResolveError(f"{question}: no name server answers it ({detail})") from error
        except dns.resolver.NoResolverConfiguration as error:
            raise ResolveError(f"{question}: this host has no name server configured") from error
        except (dns.exception.DNSException, OSError) as error:
            raise ResolveError(f"{question}: {_short(error)}") from error

    def _configured(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=not self.nameservers)
        if self.nameservers:
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(host, port) for host, port in self.nameservers
            ]
        resolver.lifetime = self.timeout
        return resolver


def _short(error: BaseException) -> str:
    """The first 200 characters: dnspython's texts name every server that was tried."""
    return str(error)[:200] or type(error).__name__
