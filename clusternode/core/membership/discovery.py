"""Whom to dial next, and when: notification addresses, names, and every address heard of.

Specified in docs/protocol.md, section 7. Back-off is full jitter from `redial_min`, doubled up to
`redial_max`, at most `dials_per_second` for the whole node. Notification addresses are dialled for
ever, others until nobody has heard from them for `forget_after`.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Sequence

import attrs

from clusternode.core.context import Context
from clusternode.core.effects import Dial, Resolve
from clusternode.core.events import (
    AddressReachable,
    AddressUnreachable,
    NameResolved,
    NameStale,
)
from clusternode.core.inputs import DialFailure, ResolvedAddress
from clusternode.core.membership.dialing import DialLine
from clusternode.core.membership.names import Name, in_order
from clusternode.core.snapshots import AddressSnapshot
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.errors import ConfigError

BACKOFF_DOUBLINGS_MAX = 16
"""Beyond this the back-off is at `redial_max` with any sensible settings."""
ADDRESSES_OF_NODE_MAX = 8
"""So many addresses of one node are dialled: where it says it is, was, and was found."""


class TargetState(enum.Enum):
    """What is going on with one address."""

    WAITING = "waiting"
    DIALING = "dialing"
    CONNECTED = "connected"
    """The node behind it is connected, over this or another address."""
    SELF = "self"
    """We have found ourselves there."""


# Names of their own: to look a member of an enumeration up costs as much as a call.
_WAITING, _DIALING = TargetState.WAITING, TargetState.DIALING
_CONNECTED, _SELF = TargetState.CONNECTED, TargetState.SELF


@attrs.define(eq=False)
class Target:
    """One address that may be dialled."""

    address: Address
    heard_at: Instant
    state: TargetState = _WAITING
    node_id: NodeId | None = None
    """Who was found there, or who says that it is there."""
    failures: int = 0
    error: str = ""
    is_added: bool = False
    """Whether an operator asked for it to be dialled."""
    is_proven: bool = False
    """Whether a node was ever connected there."""
    is_queued: bool = False
    """Whether it is due, but waits in line: `dials_per_second` are used up."""
    names: tuple[Address, ...] = ()
    """The notification addresses that it stands for; dialled for ever if there are any."""


class Discovery:
    """Keeps one target per address and dials those that are due."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings.discovery
        self._targets: dict[Address, Target] = {}
        self._of_node: dict[NodeId, tuple[Target, ...]] = {}  # node → where it may be, in order
        self._names: dict[Address, Name] = {}
        self._unreachable: dict[Address, bool] = {}  # notification address → was it announced
        self._line = DialLine(self._settings.dials_per_second)

    def start(self, now: Instant) -> None:
        """Take up the notification addresses of the settings."""
        for address in self._settings.notification_addresses:
            if is_numeric(address):
                self._adopt(address, address, now)
            else:
                self._names[address] = Name(address)
                self.refresh(address, now)

    def add(self, address: Address, now: Instant) -> None:
        """Dial an address because an operator said so; a name is looked up from now on."""
        if address.scheme != "srv":
            self._target(address, now).is_added = True
            self.dial_soon(address, now)
        elif address not in self._names:
            self._names[address] = Name(address)
            self.refresh(address, now)

    # --- what is known --------------------------------------------------------------------------

    def is_notification(self, node_id: NodeId, address: Address | None) -> bool:
        """Tell whether a node is reached by a notification address.

        It is not where another node, or we ourselves, were found there instead.
        """
        if address is not None:
            target = self._targets.get(address)
            if target is None:
                return address in self._names or self._is_candidate(address)
            is_taken = target.state is _CONNECTED and target.node_id != node_id
            if not is_taken and target.state is not _SELF:
                if target.names or self._is_candidate(address):
                    return True
        return any(
            target.names or self._is_candidate(target.address)
            for target in self._targets_of(node_id)
        )

    def _is_candidate(self, address: Address) -> bool:
        return any(address in entry.candidates for entry in self._names.values())

    def expected_at(self, address: Address) -> NodeId | None:
        """Return the node that was last found at an address, or says that it is there."""
        target = self._targets.get(address)
        return None if target is None else target.node_id

    @property
    def has_line(self) -> bool:
        """Tell whether any dial waits for our own rate limit."""
        return not self._line.is_empty

    def is_queued(self, node_id: NodeId) -> bool:
        """Tell whether the dial of a node waits for our own rate limit."""
        return any(target.is_queued for target in self._targets_of(node_id))

    def is_untried(self, node_id: NodeId) -> bool:
        """Tell whether no dial of a node has failed since there was news from it."""
        return all(target.failures == 0 for target in self._targets_of(node_id))

    def learn(self, address: Address, node_id: NodeId, heard_at: Instant) -> Target:
        """Take note of where a node says it is; who was found there stays there."""
        target = self._target(address, heard_at)
        if heard_at > target.heard_at:
            target.heard_at = heard_at
        if target.state is not _CONNECTED and target.node_id != node_id:
            self._bind(target, node_id)
        return target

    def heard_news(self, address: Address, node_id: NodeId, heard_at: Instant) -> None:
        """Take note of where a node says it is, and that it may have come back there."""
        self.learn(address, node_id, heard_at).failures = 0

    def _bind(self, target: Target, node_id: NodeId) -> None:
        if target.node_id == node_id:
            return
        if target.node_id is not None:
            self._unbind(target)
        target.node_id = node_id
        targets = self._of_node[node_id] = (*self._of_node.get(node_id, ()), target)
        if len(targets) > ADDRESSES_OF_NODE_MAX:
            for one in [one for one in targets if not one.names][:1]:
                self._drop(one)

    def _unbind(self, target: Target) -> None:
        if target.node_id is not None:
            targets = self._of_node.pop(target.node_id)
            if len(targets) > 1:
                kept = tuple(one for one in targets if one is not target)
                self._of_node[target.node_id] = kept
            target.node_id = None

    def _targets_of(self, node_id: NodeId) -> tuple[Target, ...]:
        return self._of_node.get(node_id, ())

    def _target(self, address: Address, heard_at: Instant) -> Target:
        target = self._targets.get(address)
        if target is None:
            target = self._targets[address] = Target(address, heard_at)
        return target

    # --- dialling -------------------------------------------------------------------------------

    def dial_soon(self, address: Address, now: Instant, delay: Seconds = 0.0) -> None:
        """Dial an address when `delay` is over, whatever its back-off."""
        target = self._target(address, now)
        if target.state is _WAITING:
            self._schedule(address, now + delay)

    def dial_later(self, address: Address, now: Instant) -> None:
        """See to it that an address is dialled some time; an earlier appointment stands."""
        target = self._target(address, now)
        if target.state is _WAITING:
            if self._context.timers.deadline_of(("dial", address)) is None:
                self._schedule(address, now + self._backoff(target.failures))

    def due(self, address: Address, now: Instant) -> None:
        """Dial an address whose time has come, as the rate allows."""
        target = self._targets.get(address)
        if target is None or target.state not in (_WAITING, _SELF):
            return
        if not target.names and now - target.heard_at >= self._settings.forget_after:
            self._drop(target)
            return
        is_favoured = target.is_proven or target.is_added or bool(target.names)
        if self._line.may_dial(now, is_favoured=is_favoured):
            self._dial(target, now)
            return
        target.is_queued = True
        self._line.join(address, is_favoured=is_favoured)
        self._wait_for_turn()

    def _dial(self, target: Target, now: Instant) -> None:
        target.is_queued = False
        self._line.dialed(now)
        target.state = _DIALING
        self._context.count("dials")
        self._context.effects.append(Dial(target.address))

    def _wait_for_turn(self) -> None:
        turn = self._line.next_turn()
        if turn is not None and ("turn",) not in self._context.timers:
            self._context.timers.set(("turn",), turn)

    def next_turn(self, now: Instant) -> None:
        """Dial those in line whose turn has come."""
        while (address := self._line.call(now)) is not None:
            target = self._targets.get(address)
            if target is not None and target.is_queued:
                self._dial(target, now)
        self._wait_for_turn()

    def connected(self, address: Address | None, node_id: NodeId, now: Instant) -> None:
        """Take note that a node is connected; `address` is what we dialled, if we did."""
        if address is not None:
            self._bind(self._target(address, now), node_id)
        for target in self._of_node.get(node_id, ()):
            target.heard_at = now
            target.is_proven = True
            target.failures = 0
            target.error = ""
            target.state = _CONNECTED
            self._stop_waiting(target)
            if target.names:
                self._announce(target)

    def dial_ended(self, address: Address, now: Instant) -> None:
        """Take note that a dial led to a connection that is not open yet, or not kept."""
        target = self._targets.get(address)
        if target is not None and target.state is _DIALING:
            target.state = _WAITING
            self._schedule(address, now + self._settings.redial_max)

    def disconnected(self, node_id: NodeId, now: Instant, delay: Seconds) -> None:
        """A node has no connection any more: dial its addresses when `delay` is over."""
        for target in self._targets_of(node_id):
            if target.state is _CONNECTED:
                target.state = _WAITING
                self._schedule(target.address, now + delay)

    def failed(
        self, address: Address, failure: DialFailure, detail: str, now: Instant
    ) -> NodeId | None:
        """Take a failed dial, and return the node that was expected there."""
        self._context.count(f"dials_failed_{failure.value}")
        target = self._targets.get(address)
        if target is None:
            return None
        target.failures += 1
        target.error = describe_failure(failure, detail)
        if target.state is _DIALING:
            target.state = _WAITING
        if target.state is _WAITING:
            self._try_next_candidates(target, now)
            if self._is_parked(target):
                self._context.timers.cancel(("dial", address))
            elif failure is DialFailure.CLOSED and target.failures == 1:
                # The last that a dying process accepted: the next dial tells whether it is gone.
                self._schedule(address, now)
            else:
                self._schedule(address, now + self._backoff(target.failures))
        self._announce(target)
        return target.node_id

    def found_self(self, address: Address, now: Instant) -> None:
        """Take note that we have dialled ourselves, and go on to others behind that name."""
        target = self._targets.get(address)
        if target is not None:
            target.state = _SELF
            target.error = ""
            self._stop_waiting(target)
            if address != self._context.settings.address:  # a virtual address may move away
                self._schedule(address, now + self._settings.refresh_interval)
            self._announce(target)
            self._try_next_candidates(target, now)

    def forget_node(self, node_id: NodeId, now: Instant) -> None:
        """Dial the addresses of a node no longer, but for notification addresses."""
        self.disconnected(node_id, now, self._settings.redial_max)
        for target in self._targets_of(node_id):
            self._unbind(target)
            if not target.names:
                self._drop(target)

    def _is_parked(self, target: Target) -> bool:
        """Tell whether an address is kept only because its name may come back to it."""
        if target.names or target.node_id is not None or target.is_added:
            return False
        return self._is_candidate(target.address)

    def _stop_waiting(self, target: Target) -> None:
        """Wait neither for the time of a dial nor for its turn."""
        self._context.timers.cancel(("dial", target.address))
        if target.is_queued:
            target.is_queued = False
            self._line.leave(target.address)

    def _drop(self, target: Target) -> None:
        self._unbind(target)
        self._stop_waiting(target)
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
        entry, cluster = self._names.get(name), self._context.settings.cluster
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
            target = self._targets.get(address)
            if address in previous and target is not None and entry.name in target.names:
                entry.index = index
                if target.state is _SELF:
                    self._try_next_candidates(target, now)
                return
        self._adopt(entry.candidates[0], entry.name, now)

    def _adopt(self, address: Address, name: Address, now: Instant) -> None:
        target = self._target(address, now)
        if name not in target.names:
            target.names = (*target.names, name)
        if target.state is _WAITING:
            # One round through all candidates at once, then the back-off.
            wait = self._backoff(target.failures) if target.failures > 0 else 0.0
            self._schedule(address, now + wait)
        self._announce(target)

    def _release(self, address: Address, name: Address) -> None:
        """A name stands for an address no longer: dial it only if a node was heard of there."""
        target = self._targets.get(address)
        if target is None:
            return
        if name in target.names:
            target.names = tuple(one for one in target.names if one != name)
        if target.names or target.node_id is not None or target.is_added:
            return
        if not self._is_candidate(address):
            self._drop(target)

    def _try_next_candidates(self, target: Target, now: Instant) -> None:
        """Where a name is tried one address at a time, go on to its next one but ourselves."""
        if self._settings.multi_notify:
            return
        for name in target.names:
            entry = self._names.get(name)
            if entry is None:
                continue
            count = len(entry.candidates)
            for step in range(1, count):
                index = (entry.index + step) % count
                following = self._targets.get(entry.candidates[index])
                if following is None or following.state is not _SELF:
                    entry.index = index
                    self._release(target.address, name)
                    self._adopt(entry.candidates[index], name, now)
                    break

    # --- for people -----------------------------------------------------------------------------

    def _announce(self, target: Target) -> None:
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
        for name, entry in self._names.items():
            state = "resolving" if entry.is_resolving else "resolved"
            if not entry.candidates and not entry.is_resolving:
                state = "unresolved"
            retry = self._context.timers.deadline_of(("refresh", name))
            wait = None if retry is None or entry.is_resolving else max(0.0, retry - now)
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


@functools.lru_cache(maxsize=4096)  # a ping looks at its member's, and most never change
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
