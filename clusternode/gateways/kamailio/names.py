"""Names of the bus and the addresses behind them: identity here is the numeric address.

Kamailio tells nodes apart by text, so `sip:kam1:5060` and `sip:10.0.0.1:5060` are two of them; we
count both as the node at that address, and never say a name ourselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from clusternode.core.events import AddressReachable, AddressUnreachable
from clusternode.core.types import Instant, Seconds
from clusternode.gateways.kamailio.effects import Effect, Raise, Resolve
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import NamedAddress, PeerAddress

NAMES_MAX: Final = 64
"""Names that are known, and new ones that are looked up in a round of pings."""
REFRESH_INTERVAL: Final[Seconds] = 60.0
"""Between two look-ups of one name."""


@attrs.define
class _Name:
    is_seed: bool
    addresses: tuple[PeerAddress, ...] = ()
    asked_at: Instant | None = None
    is_failing: bool = False
    error: str = ""


class Names:
    """Names → addresses, and the notification addresses."""

    def __init__(
        self,
        cluster: str,
        settings: KamailioSettings,
        effects: list[Effect],
        on_seed: Callable[[Instant, PeerAddress], None],
    ) -> None:
        self._cluster = cluster
        self._effects = effects
        self._on_seed = on_seed
        self._is_multiple = settings.multi_notify
        # Kamailio looks at the first address only then (dmq README 3.5).
        listed = settings.notification_address
        self._seeds = listed[:1] if settings.multi_notify else listed
        self._names: dict[NamedAddress, _Name] = {}
        self._new_names = 0
        """Names asked for since the last round, so that strangers cannot make us flood the DNS."""

    @property
    def seeds(self) -> Sequence[NamedAddress]:
        return self._seeds

    @property
    def numeric_seeds(self) -> list[PeerAddress]:
        found = [seed.numeric for seed in self._seeds]
        return [address for address in found if address is not None]

    def error_of(self, seed: NamedAddress) -> str:
        known = self._names.get(seed)
        return "" if known is None else known.error

    def addresses_of(self, seed: NamedAddress) -> Sequence[PeerAddress]:
        if seed.numeric is not None:
            return (seed.numeric,)
        known = self._names.get(seed)
        return () if known is None else known.addresses

    def start(self, now: Instant) -> None:
        """Ask for the names among the notification addresses."""
        for seed in self._seeds:
            if seed.numeric is None:
                self._names[seed] = _Name(is_seed=True)
        self.tick(now)

    def tick(self, now: Instant) -> None:
        """Ask again for what is old. Called once per round of pings."""
        self._new_names = 0
        for name, known in self._names.items():
            if known.asked_at is None or now - known.asked_at >= REFRESH_INTERVAL:
                self._ask(now, name, known)

    def address_of(self, now: Instant, name: NamedAddress) -> PeerAddress | None:
        """Return the address of what somebody wrote; None while it is unknown."""
        if name.numeric is not None:
            return name.numeric
        known = self._names.get(name)
        if known is None and not name.host[0].isdigit() and self._has_room():
            known = self._names[name] = _Name(is_seed=False)
            self._ask(now, name, known)
        return known.addresses[0] if known is not None and known.addresses else None

    def _has_room(self) -> bool:
        """Make room for a name, at the cost of one that stands for nothing; not too often."""
        self._new_names += 1
        if self._new_names > NAMES_MAX:
            return False
        if len(self._names) < NAMES_MAX:
            return True
        for name, known in self._names.items():
            if not known.is_seed and not known.addresses:
                del self._names[name]
                return True
        return False

    def _ask(self, now: Instant, name: NamedAddress, known: _Name) -> None:
        known.asked_at = now
        is_service = known.is_seed and self._is_multiple and name.host.startswith("_")
        self._effects.append(Resolve(name, is_service))

    def resolved(self, now: Instant, name: NamedAddress, addresses: Sequence[PeerAddress]) -> None:
        """Take what a name stands for."""
        known = self._names.get(name)
        if known is None or not addresses:
            return
        if name.has_port and self._is_multiple:  # SRV records of other ports are skipped
            addresses = [each for each in addresses if each.port == name.port]
        is_all = known.is_seed and self._is_multiple
        known.addresses = tuple(addresses if is_all else addresses[:1])
        if known.is_failing:
            self._effects.append(Raise(AddressReachable(self._cluster, f"sip:{name.host}")))
        known.is_failing, known.error = False, ""
        if known.is_seed:
            for address in known.addresses:
                self._on_seed(now, address)

    def failed(self, now: Instant, name: NamedAddress, reason: str) -> None:
        """Take note that a name could not be looked up; what is known of it stays."""
        known = self._names.get(name)
        if known is None:
            return
        known.asked_at = now - REFRESH_INTERVAL + 5.0  # soon again
        known.error = reason
        if known.is_seed and not known.is_failing:
            known.is_failing = True
            event = AddressUnreachable(self._cluster, f"sip:{name.host}", reason)
            self._effects.append(Raise(event))
