"""Whom to dial next, and when: notification addresses, names, and every address heard of.

Specified in docs/protocol.md, section 7. Back-off is full jitter from `redial_min`, doubled up to
`redial_max`, at most `dials_per_second` for the whole node. Notification addresses are dialled for
ever, others until nobody has heard from them for `forget_after`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence

import attrs

from clusternode.core.context import Context
from clusternode.core.effects import Dial, Resolve
from clusternode.core.events import AddressReachable, AddressUnreachable
from clusternode.core.inputs import DialFailure, ResolvedAddress
from clusternode.core.snapshots import AddressSnapshot
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.errors import ConfigError

RESOLVED_ADDRESSES_MAX = 256
"""So many addresses of one name are used; the rest is counted and left out."""
BACKOFF_DOUBLINGS_MAX = 16
"""Beyond this the back-off is at `redial_max` with any sensible settings."""


class TargetState(enum.Enum):
    """What is going on with one address."""

    WAITING = "waiting"
    DIALING = "dialing"
    CONNECTED = "connected"
    """The node behind it is connected, over this or another address."""
    SELF = "self"
    """We have found ourselves there."""


@attrs.define(eq=False)
class Target:
    """One address that may be dialled."""

    address: Address
    heard_at: Instant
    state: TargetState = TargetState.WAITING
    node_id: NodeId | None = None
    """Who was found there, or who says that it is there."""
    failures: int = 0
    error: str = ""
    names: list[Address] = attrs.Factory(list)
    """The notification addresses that it stands for; dialled for ever if there are any."""


@attrs.define(eq=False)
class Name:
    """A notification address that must be looked up, and what it resolved to, best first."""

    name: Address
    candidates: list[Address] = attrs.Factory(list)
    index: int = 0
    """Which candidate is dialled, where only one is."""
    failures: int = 0
    error: str = "not looked up yet"
    is_resolving: bool = False


class Discovery:
    """Keeps one target per address and dials those that are due."""

    def __init__(self, context: Context, now: Instant) -> None:
        self._context = context
        self._settings = context.settings.discovery
        self._targets: dict[Address, Target] = {}
        self._of_node: dict[NodeId, dict[Address, None]] = {}  # node → its addresses, in order
        self._names: dict[Address, Name] = {}
        self._unreachable: dict[Address, bool] = {}  # notification address → was it announced
        self._tokens = self._settings.dials_per_second
        self._tokens_at = now

    def start(self, now: Instant) -> None:
        """Take up the notification addresses of the settings."""
        for address in self._settings.notification_addresses:
            if is_numeric(address):
                self._target(address, now).names.append(address)
                self._schedule(address, now)
            else:
                self._names[address] = Name(address)
                self.refresh(address, now)

    # --- what is known --------------------------------------------------------------------------

    def is_notification(self, node_id: NodeId, address: Address | None) -> bool:
        """Tell whether a node is reached by a notification address."""
        if address is not None:
            target = self._targets.get(address)
            if address in self._names or (target is not None and target.names):
                return True
        return any(target.names for target in self._targets_of(node_id))

    def expected_at(self, address: Address) -> list[NodeId]:
        """Return the node that was last found at an address, or says that it is there."""
        target = self._targets.get(address)
        return [] if target is None or target.node_id is None else [target.node_id]

    def learn(self, address: Address, node_id: NodeId | None, heard_at: Instant) -> Target:
        """Take note of an address; what was heard later counts."""
        target = self._target(address, heard_at)
        target.heard_at = max(target.heard_at, heard_at)
        if node_id is not None and target.node_id != node_id:
            self._unbind(target)
            target.node_id = node_id
            self._of_node.setdefault(node_id, {})[address] = None
        return target

    def _unbind(self, target: Target) -> None:
        if target.node_id is not None:
            addresses = self._of_node[target.node_id]
            del addresses[target.address]
            if not addresses:
                del self._of_node[target.node_id]
            target.node_id = None

    def _targets_of(self, node_id: NodeId) -> list[Target]:
        return [self._targets[address] for address in self._of_node.get(node_id, ())]

    def _target(self, address: Address, heard_at: Instant) -> Target:
        target = self._targets.get(address)
        if target is None:
            target = self._targets[address] = Target(address, heard_at)
        return target

    # --- dialling -------------------------------------------------------------------------------

    def dial_soon(self, address: Address, now: Instant, delay: Seconds = 0.0) -> None:
        """Dial an address when `delay` is over, whatever its back-off."""
        target = self._target(address, now)
        if target.state is TargetState.WAITING:
            self._schedule(address, now + delay)

    def dial_later(self, address: Address, now: Instant) -> None:
        """See to it that an address is dialled some time; an earlier appointment stands."""
        target = self._target(address, now)
        if target.state is TargetState.WAITING:
            if self._context.timers.deadline_of(("dial", address)) is None:
                self._schedule(address, now + self._backoff(target.failures))

    def due(self, address: Address, now: Instant) -> None:
        """Dial an address whose time has come, as the rate allows."""
        target = self._targets.get(address)
        if target is None or target.state is not TargetState.WAITING:
            return
        if not target.names and now - target.heard_at >= self._settings.forget_after:
            self._drop(target)
            return
        wait = self._take_token(now)
        if wait > 0:
            self._schedule(address, now + wait)
            return
        target.state = TargetState.DIALING
        self._context.count("dials")
        self._context.effects.append(Dial(address))

    def _take_token(self, now: Instant) -> Seconds:
        """Take one of the dials of this second, or return how long to wait for it."""
        rate = self._settings.dials_per_second
        self._tokens = min(rate, self._tokens + (now - self._tokens_at) * rate)
        self._tokens_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        # Spread those that wait, so that they do not all come back at once.
        return (1.0 - self._tokens) / rate + self._context.rng.random()

    def connected(self, address: Address | None, node_id: NodeId, now: Instant) -> None:
        """Take note that a node is connected; `address` is what we dialled, if we did."""
        if address is not None:
            self.learn(address, node_id, now)
        for target in self._targets_of(node_id):
            target.heard_at = now
            target.failures = 0
            target.error = ""
            target.state = TargetState.CONNECTED
            self._context.timers.cancel(("dial", target.address))
            self._announce(target)

    def dial_ended(self, address: Address, now: Instant) -> None:
        """Take note that a dial led to a connection that is not open yet, or not kept."""
        target = self._targets.get(address)
        if target is not None and target.state is TargetState.DIALING:
            target.state = TargetState.WAITING
            self._schedule(address, now + self._settings.redial_max)

    def disconnected(self, node_id: NodeId, now: Instant, *, redial: bool) -> None:
        """A node has no connection any more: dial its addresses at once, or not at all."""
        for target in self._targets_of(node_id):
            if target.state is TargetState.CONNECTED:
                target.state = TargetState.WAITING
                if redial:
                    self._schedule(target.address, now)
                elif target.names:
                    self._schedule(target.address, now + self._settings.redial_max)

    def failed(
        self, address: Address, failure: DialFailure, detail: str, now: Instant
    ) -> NodeId | None:
        """Take a failed dial, and return the node that was expected there."""
        target = self._targets.get(address)
        if target is None:
            return None
        target.failures += 1
        target.error = describe_failure(failure, detail)
        if target.state is TargetState.DIALING:
            target.state = TargetState.WAITING
        if target.state is TargetState.WAITING:
            self._try_next_candidates(target, now)
            self._schedule(address, now + self._backoff(target.failures))
        self._announce(target)
        self._context.count(f"dials_failed_{failure.value}")
        return target.node_id

    def found_self(self, address: Address) -> None:
        target = self._targets.get(address)
        if target is not None:
            target.state = TargetState.SELF
            target.error = ""
            self._context.timers.cancel(("dial", address))
            self._announce(target)

    def forget_node(self, node_id: NodeId) -> None:
        """Dial the addresses of a node no longer, but for notification addresses."""
        for target in self._targets_of(node_id):
            self._unbind(target)
            if not target.names and target.state is not TargetState.DIALING:
                self._drop(target)

    def _drop(self, target: Target) -> None:
        self._unbind(target)
        self._context.timers.cancel(("dial", target.address))
        del self._targets[target.address]

    def _backoff(self, failures: int) -> Seconds:
        doublings = min(max(failures - 1, 0), BACKOFF_DOUBLINGS_MAX)
        ceiling = min(self._settings.redial_max, self._settings.redial_min * 2.0**doublings)
        return self._context.rng.uniform(0.0, ceiling)

    def _schedule(self, address: Address, at: Instant) -> None:
        self._context.timers.set(("dial", address), at)

    # --- names ----------------------------------------------------------------------------------

    def refresh(self, name: Address, now: Instant) -> None:
        """Look a name up again; `resolved` follows."""
        entry = self._names[name]
        self._context.timers.set(("refresh", name), now + self._settings.refresh_interval)
        if not entry.is_resolving:
            entry.is_resolving = True
            self._context.effects.append(Resolve(name))

    def resolved(
        self, name: Address, found: Sequence[ResolvedAddress], error: str | None, now: Instant
    ) -> None:
        """Take the answer of the resolver; on an error the addresses known before are kept."""
        entry = self._names.get(name)
        if entry is None:
            return
        entry.is_resolving = False
        if error is not None or not found:
            entry.failures += 1
            entry.error = error or "the name has no addresses"
            self._context.count("resolutions_failed")
            wait = self._backoff(entry.failures) + self._settings.redial_min
            self._context.timers.set(("refresh", name), now + wait)
            if not entry.candidates:
                self._announce_name(name, entry.error)
            return
        entry.failures = 0
        entry.error = ""
        self._context.timers.set(("refresh", name), now + self._settings.refresh_interval)
        previous = entry.candidates
        entry.candidates = self._ordered(found)
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
            target = self._targets.get(address)
            if address in previous and target is not None and entry.name in target.names:
                entry.index = index
                return
        self._adopt(entry.candidates[0], entry.name, now)

    def _ordered(self, found: Sequence[ResolvedAddress]) -> list[Address]:
        """Order by priority and, within one, by chance weighted as RFC 2782 says."""
        rest = sorted(found[:RESOLVED_ADDRESSES_MAX], key=lambda one: one.priority)
        ordered: list[Address] = []
        while rest:
            group = [one for one in rest if one.priority == rest[0].priority]
            chosen = group[0]
            total = sum(one.weight for one in group)
            if total > 0:
                mark = self._context.rng.uniform(0.0, total)
                for one in group:
                    mark -= one.weight
                    if mark <= 0:
                        chosen = one
                        break
            rest.remove(chosen)
            if chosen.address not in ordered:
                ordered.append(chosen.address)
        return ordered

    def _adopt(self, address: Address, name: Address, now: Instant) -> None:
        target = self._target(address, now)
        if name not in target.names:
            target.names.append(name)
        if target.state is TargetState.WAITING:
            self._schedule(address, now)
        self._announce(target)

    def _release(self, address: Address, name: Address) -> None:
        target = self._targets.get(address)
        if target is not None and name in target.names:
            target.names.remove(name)

    def _try_next_candidates(self, target: Target, now: Instant) -> None:
        """Where a name is tried one address at a time, go on to its next one."""
        if self._settings.multi_notify:
            return
        for name in list(target.names):
            entry = self._names.get(name)
            if entry is None or len(entry.candidates) < 2:
                continue
            entry.index = (entry.index + 1) % len(entry.candidates)
            following = entry.candidates[entry.index]
            if following != target.address:
                self._release(target.address, name)
                self._target(following, now)
                self._adopt(following, name, now)
                # One round through all candidates, then the back-off.
                failures = self._targets[following].failures
                if failures > 0:
                    self._schedule(following, now + self._backoff(failures))

    # --- for people -----------------------------------------------------------------------------

    def _announce(self, target: Target) -> None:
        """Tell the observers when a notification address begins or ceases to be unreachable."""
        for name in target.names:
            is_up = target.state in (TargetState.CONNECTED, TargetState.SELF)
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
        for name, entry in self._names.items():
            state = "resolving" if entry.is_resolving else "resolved"
            if not entry.candidates and not entry.is_resolving:
                state = "unresolved"
            retry = self._context.timers.deadline_of(("refresh", name))
            wait = None if retry is None else max(0.0, retry - now)
            rows.append(AddressSnapshot(name, state, None, entry.error, entry.failures, wait))
        for target in self._targets.values():
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


def describe_failure(failure: DialFailure, detail: str) -> str:
    return f"{failure.value}: {detail}" if detail else failure.value


def address_of_untrusted(text: str) -> Address | None:
    """Read the address that a node gives of itself; None when it cannot be dialled."""
    try:
        address = Address.parse(text)
    except ConfigError:
        return None
    return None if address.scheme == "srv" or address.port == 0 else address


def is_numeric(address: Address) -> bool:
    """Tell whether an address can be dialled without a look-up."""
    if address.scheme == "srv":
        return False
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return False
    return True
