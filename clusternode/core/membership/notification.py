"""The notification addresses: names looked up, which of their addresses is dialled, what is told.

Specified in docs/protocol.md, section 7. A notification address stands for itself if it is
numeric, else for what its name resolves to: for one address at a time, the next one when that does
not answer, or for all of them with `multi_notify`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol

from clusternode.core.context import Context
from clusternode.core.effects import Resolve
from clusternode.core.events import (
    AddressReachable,
    AddressUnreachable,
    NameResolved,
    NameStale,
)
from clusternode.core.inputs import ResolvedAddress
from clusternode.core.membership.names import Name, in_order
from clusternode.core.membership.targets import Target, TargetState
from clusternode.core.snapshots import AddressSnapshot
from clusternode.core.types import Address, Instant, Seconds

# Names of their own: to look a member of an enumeration up costs as much as a call.
_WAITING, _CONNECTED, _SELF = TargetState.WAITING, TargetState.CONNECTED, TargetState.SELF


class Dialer(Protocol):
    """Who keeps the targets, and dials them when they are due."""

    targets: dict[Address, Target]

    def target(self, address: Address, heard_at: Instant) -> Target: ...
    def schedule(self, address: Address, at: Instant) -> None: ...
    def backoff(self, failures: int) -> Seconds: ...
    def drop(self, target: Target) -> None: ...


class NotificationAddresses:
    """Keeps a target for each that is to be dialled, and tells when one is unreachable."""

    def __init__(self, context: Context, dialer: Dialer) -> None:
        self._context = context
        self._settings = context.settings.discovery
        self._dialer = dialer
        self.names: dict[Address, Name] = {}
        self._unreachable: dict[Address, bool] = {}  # notification address → was it announced

    def start(self, now: Instant) -> None:
        """Take up the notification addresses of the settings."""
        for address in self._settings.notification_addresses:
            if is_numeric(address):
                self._adopt(address, address, now)
            else:
                self.look_up(address, now)

    def look_up(self, name: Address, now: Instant) -> None:
        """Look a name up from now on."""
        self.names[name] = Name(name)
        self.refresh(name, now)

    def is_candidate(self, address: Address) -> bool:
        """Tell whether any name resolved to an address."""
        return bool(self.names) and any(address in one.candidates for one in self.names.values())

    def refresh(self, name: Address, now: Instant) -> None:
        """Look a name up again; `resolved` follows."""
        entry = self.names[name]
        self._context.timers.set(("refresh", name), now + self._settings.refresh_interval)
        if not entry.is_resolving:
            entry.is_resolving = True
            self._context.effects.append(Resolve(name))

    def resolved(
        self, name: Address, found: Sequence[ResolvedAddress], error: str | None, now: Instant
    ) -> None:
        """Take the answer of the resolver; on an error the addresses known before are kept."""
        entry, cluster = self.names.get(name), self._context.settings.cluster
        if entry is None:
            return
        entry.is_resolving = False
        if error is not None or not found:
            entry.failures += 1
            entry.error = error or "the name has no addresses"
            self._context.count("resolutions_failed")
            wait = self._dialer.backoff(entry.failures) + self._settings.redial_min
            self._context.timers.set(("refresh", name), now + wait)
            if not entry.candidates:
                self._announce_name(name, entry.error)
            elif entry.becomes_stale(now):
                silent = now - entry.answered_at
                self._context.emit(NameStale(cluster, str(name), silent, entry.error))
            return
        if entry.is_fresh_again(now):
            self._context.emit(NameResolved(cluster, str(name)))
        self._context.timers.set(("refresh", name), now + self._settings.refresh_interval)
        previous = entry.candidates
        entry.candidates = in_order(found, self._context.rng)
        entry.index = 0
        for address in previous:
            if address not in entry.candidates:
                self._release(address, name)
        if previous and not self._settings.multi_notify:
            self._keep_current(entry, previous, now)
            return
        chosen = entry.candidates if self._settings.multi_notify else entry.candidates[:1]
        for address in chosen:
            self._adopt(address, name, now)

    def _keep_current(self, entry: Name, previous: list[Address], now: Instant) -> None:
        """Stay with the candidate in use if the name still has it, else take the best one."""
        for index, address in enumerate(entry.candidates):
            target = self._dialer.targets.get(address)
            if address in previous and target is not None and entry.name in target.names:
                entry.index = index
                if target.state is _SELF:
                    self.try_next(target, now)
                return
        self._adopt(entry.candidates[0], entry.name, now)

    def _adopt(self, address: Address, name: Address, now: Instant) -> None:
        target = self._dialer.target(address, now)
        if name not in target.names:
            target.names = (*target.names, name)
        if target.state is _WAITING:
            # One round through all candidates at once, then the back-off.
            wait = self._dialer.backoff(target.failures) if target.failures > 0 else 0.0
            self._dialer.schedule(address, now + wait)
        self.announce(target)

    def _release(self, address: Address, name: Address) -> None:
        """A name stands for an address no longer: dial it only if a node was heard of there."""
        target = self._dialer.targets.get(address)
        if target is None:
            return
        if name in target.names:
            target.names = tuple(one for one in target.names if one != name)
        if target.names or target.node_id is not None or target.is_added:
            return
        if not self.is_candidate(address):
            self._dialer.drop(target)

    def try_next(self, target: Target, now: Instant) -> None:
        """Where a name is tried one address at a time, go on to its next one but ourselves."""
        if self._settings.multi_notify:
            return
        for name in target.names:
            entry = self.names.get(name)
            if entry is None:
                continue
            count = len(entry.candidates)
            for step in range(1, count):
                index = (entry.index + step) % count
                following = self._dialer.targets.get(entry.candidates[index])
                if following is None or following.state is not _SELF:
                    entry.index = index
                    self._release(target.address, name)
                    self._adopt(entry.candidates[index], name, now)
                    break

    # --- for people -----------------------------------------------------------------------------

    def announce(self, target: Target) -> None:
        """Tell the observers when a notification address begins or ceases to be unreachable."""
        for name in target.names:
            is_up = target.state in (_CONNECTED, _SELF)
            if is_up and self._unreachable.pop(name, False):
                self._context.emit(AddressReachable(self._context.settings.cluster, str(name)))
            elif not is_up and target.error:
                self._announce_name(name, target.error)

    def _announce_name(self, name: Address, reason: str) -> None:
        if not self._unreachable.get(name, False):
            self._unreachable[name] = True
            self._context.emit(
                AddressUnreachable(self._context.settings.cluster, str(name), reason)
            )

    def snapshot(self, now: Instant) -> tuple[AddressSnapshot, ...]:
        """Return the notification addresses, names before what they resolved to."""
        rows: list[AddressSnapshot] = []
        for name, entry in self.names.items():
            state = "resolving" if entry.is_resolving else "resolved"
            if not entry.candidates and not entry.is_resolving:
                state = "unresolved"
            retry = self._context.timers.deadline_of(("refresh", name))
            wait = None if retry is None or entry.is_resolving else max(0.0, retry - now)
            rows.append(AddressSnapshot(name, state, None, entry.error, entry.failures, wait))
        for target in self._dialer.targets.values():
            if target.names:
                retry = self._context.timers.deadline_of(("dial", target.address))
                rows.append(
                    AddressSnapshot(
                        target.address,
                        target.state.value,
                        target.node_id,
                        target.error,
                        target.failures,
                        None if retry is None else max(0.0, retry - now),
                    )
                )
        return tuple(rows)


def is_numeric(address: Address) -> bool:
    """Tell whether an address can be dialled without a look-up."""
    if address.scheme == "srv":
        return False
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return False
    return True
