"""Whom to dial next, and when: every address that was given, looked up or heard of.

Specified in docs/protocol.md, section 7. Back-off is full jitter from `redial_min`, doubled up to
`redial_max`, at most `dials_per_second` for the whole node. Notification addresses are dialled for
ever, others until nobody has heard from them for `forget_after`.
"""

from __future__ import annotations

import functools

from clusternode.core.context import Context
from clusternode.core.effects import Dial
from clusternode.core.inputs import DialFailure
from clusternode.core.membership.dialing import DialLine
from clusternode.core.membership.notification import NotificationAddresses
from clusternode.core.membership.targets import Target, TargetState
from clusternode.core.types import Address, Instant, NodeId, Seconds
from clusternode.errors import ConfigError

BACKOFF_DOUBLINGS_MAX = 16
"""Beyond this the back-off is at `redial_max` with any sensible settings."""
ADDRESSES_OF_NODE_MAX = 8
"""So many addresses of one node are dialled: where it says it is, was, and was found."""
DEFERENCE: Seconds = 1.0
"""How long the larger of two node ids leaves it to the smaller one to dial."""
JOINING: Seconds = 5.0
"""For so long after its start a node dials everyone itself: nobody knows it yet."""
# Names of their own: to look a member of an enumeration up costs as much as a call.
_WAITING, _DIALING = TargetState.WAITING, TargetState.DIALING
_CONNECTED, _SELF = TargetState.CONNECTED, TargetState.SELF

_TURN = ("turn",)  # the key of a timer


class Discovery:
    """Keeps one target per address and dials those that are due."""

    def __init__(self, context: Context, now: Instant) -> None:
        self._context = context
        self._started_at = now
        self._settings = context.settings.discovery
        self.targets: dict[Address, Target] = {}
        self._of_node: dict[NodeId, tuple[Target, ...]] = {}  # node → where it may be, in order
        self._line = DialLine(self._settings.dials_per_second)
        self.notification = NotificationAddresses(context, self)

    def add(self, address: Address, now: Instant) -> None:
        """Dial an address because an operator said so; a name is looked up from now on."""
        if address.scheme != "srv":
            self.target(address, now).is_added = True
            self.dial_soon(address, now)
        elif address not in self.notification.names:
            self.notification.look_up(address, now)

    # --- what is known --------------------------------------------------------------------------

    def is_notification(self, node_id: NodeId, address: Address | None) -> bool:
        """Tell whether a node is reached by a notification address.

        It is not where another node, or we ourselves, were found there instead.
        """
        if address is not None:
            target = self.targets.get(address)
            if target is None:
                return address in self.notification.names or self.notification.is_candidate(address)
            is_taken = target.state is _CONNECTED and target.node_id != node_id
            if not is_taken and target.state is not _SELF:
                if target.names or self.notification.is_candidate(address):
                    return True
        for target in self._targets_of(node_id):
            if target.names or self.notification.is_candidate(target.address):
                return True
        return False

    def expected_at(self, address: Address) -> NodeId | None:
        """Return the node that was last found at an address, or says that it is there."""
        target = self.targets.get(address)
        return None if target is None else target.node_id

    @property
    def has_line(self) -> bool:
        """Tell whether any dial waits for our own rate limit."""
        return not self._line.is_empty

    def is_queued(self, node_id: NodeId) -> bool:
        """Tell whether the dial of a node waits for our own rate limit."""
        for target in self._targets_of(node_id):  # noqa: SIM110  # any() would cost twice as much
            if target.is_queued:
                return True
        return False

    def is_untried(self, node_id: NodeId) -> bool:
        """Tell whether no dial of a node has failed since there was news from it."""
        return all(target.failures == 0 for target in self._targets_of(node_id))

    def learn(self, address: Address, node_id: NodeId, heard_at: Instant) -> Target:
        """Take note of where a node says it is; who was found there stays there."""
        target = self.target(address, heard_at)
        if heard_at > target.heard_at:
            target.heard_at = heard_at
        if target.state is not _CONNECTED and target.node_id != node_id:
            self._bind(target, node_id)
        return target

    def heard_news(
        self, address: Address, node_id: NodeId, heard_at: Instant, now: Instant
    ) -> None:
        """Dial where others say that a node is, at once or after the smaller id had time.

        It may have come back there, so what failed before is forgotten.
        """
        self.learn(address, node_id, heard_at).failures = 0
        is_joining = now - self._started_at < JOINING
        is_smaller = self._context.settings.node_id < node_id
        self.dial_soon(address, now, 0.0 if is_smaller or is_joining else DEFERENCE)

    def _bind(self, target: Target, node_id: NodeId) -> None:
        if target.node_id == node_id:
            return
        if target.node_id is not None:
            self._unbind(target)
        target.node_id = node_id
        targets = self._of_node[node_id] = (*self._of_node.get(node_id, ()), target)
        if len(targets) > ADDRESSES_OF_NODE_MAX:
            for one in [one for one in targets if not one.names][:1]:
                self.drop(one)

    def _unbind(self, target: Target) -> None:
        if target.node_id is not None:
            targets = self._of_node.pop(target.node_id)
            if len(targets) > 1:
                kept = tuple(one for one in targets if one is not target)
                self._of_node[target.node_id] = kept
            target.node_id = None

    def _targets_of(self, node_id: NodeId) -> tuple[Target, ...]:
        return self._of_node.get(node_id, ())

    def target(self, address: Address, heard_at: Instant) -> Target:
        target = self.targets.get(address)
        if target is None:
            target = self.targets[address] = Target(address, heard_at)
        return target

    # --- dialling -------------------------------------------------------------------------------

    def dial_soon(self, address: Address, now: Instant, delay: Seconds = 0.0) -> None:
        """Dial an address when `delay` is over, whatever its back-off."""
        target = self.target(address, now)
        if target.state is _WAITING:
            self.schedule(address, now + delay)

    def dial_later(self, address: Address, now: Instant) -> None:
        """See to it that an address is dialled some time; an earlier appointment stands."""
        target = self.target(address, now)
        if target.state is _WAITING:
            if self._context.timers.deadline_of(("dial", address)) is None:
                self.schedule(address, now + self.backoff(target.failures))

    def due(self, address: Address, now: Instant) -> None:
        """Dial an address whose time has come, as the rate allows."""
        target = self.targets.get(address)
        if target is None or target.state not in (_WAITING, _SELF):
            return
        if not target.names and now - target.heard_at >= self._settings.forget_after:
            self.drop(target)
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
        if _TURN not in self._context.timers:
            turn = self._line.next_turn()
            if turn is not None:
                self._context.timers.set(_TURN, turn)

    def next_turn(self, now: Instant) -> None:
        """Dial those in line whose turn has come."""
        while (address := self._line.call(now)) is not None:
            target = self.targets.get(address)
            if target is not None and target.is_queued:
                self._dial(target, now)
        self._wait_for_turn()

    def connected(self, address: Address | None, node_id: NodeId, now: Instant) -> None:
        """Take note that a node is connected; `address` is what we dialled, if we did."""
        if address is not None:
            self._bind(self.target(address, now), node_id)
        for target in self._of_node.get(node_id, ()):
            target.heard_at = now
            target.is_proven = True
            target.failures = 0
            target.error = ""
            target.state = _CONNECTED
            self._stop_waiting(target)
            if target.names:
                self.notification.announce(target)

    def dial_ended(self, address: Address, now: Instant) -> None:
        """Take note that a dial led to a connection that is not open yet, or not kept."""
        target = self.targets.get(address)
        if target is not None and target.state is _DIALING:
            target.state = _WAITING
            self.schedule(address, now + self._settings.redial_max)

    def disconnected(self, node_id: NodeId, now: Instant, delay: Seconds) -> None:
        """A node has no connection any more: dial its addresses when `delay` is over."""
        for target in self._targets_of(node_id):
            if target.state is _CONNECTED:
                target.state = _WAITING
                self.schedule(target.address, now + delay)

    def failed(
        self, address: Address, failure: DialFailure, detail: str, now: Instant
    ) -> NodeId | None:
        """Take a failed dial, and return the node that was expected there."""
        self._context.count(f"dials_failed_{failure.value}")
        target = self.targets.get(address)
        if target is None:
            return None
        target.failures += 1
        target.error = describe_failure(failure, detail)
        if target.state is _DIALING:
            target.state = _WAITING
        if target.state is _WAITING:
            self.notification.try_next(target, now)
            if self._is_parked(target):
                self._context.timers.cancel(("dial", address))
            elif failure is DialFailure.CLOSED and target.failures == 1:
                # The last that a dying process accepted: the next dial tells whether it is gone.
                self.schedule(address, now)
            else:
                self.schedule(address, now + self.backoff(target.failures))
        self.notification.announce(target)
        return target.node_id

    def found_self(self, address: Address, now: Instant) -> None:
        """Take note that we have dialled ourselves, and go on to others behind that name."""
        target = self.targets.get(address)
        if target is not None:
            target.state = _SELF
            target.error = ""
            self._stop_waiting(target)
            if address != self._context.settings.address:  # a virtual address may move away
                self.schedule(address, now + self._settings.refresh_interval)
            self.notification.announce(target)
            self.notification.try_next(target, now)

    def forget_node(self, node_id: NodeId, now: Instant) -> None:
        """Dial the addresses of a node no longer, but for notification addresses."""
        self.disconnected(node_id, now, self._settings.redial_max)
        for target in self._targets_of(node_id):
            self._unbind(target)
            if not target.names:
                self.drop(target)

    def _is_parked(self, target: Target) -> bool:
        """Tell whether an address is kept only because its name may come back to it."""
        if target.names or target.node_id is not None or target.is_added:
            return False
        return self.notification.is_candidate(target.address)

    def _stop_waiting(self, target: Target) -> None:
        """Wait neither for the time of a dial nor for its turn."""
        self._context.timers.cancel(("dial", target.address))
        if target.is_queued:
            target.is_queued = False
            self._line.leave(target.address)

    def drop(self, target: Target) -> None:
        self._unbind(target)
        self._stop_waiting(target)
        del self.targets[target.address]

    def backoff(self, failures: int) -> Seconds:
        """Return how long to wait after so many failed dials in a row.

        Anything up to a ceiling, which doubles; once that is `redial_max`, at least half of it
        (docs/decisions/0023-dials-of-the-dead.md).
        """
        doublings = min(max(failures - 1, 0), BACKOFF_DOUBLINGS_MAX)
        longest: Seconds = self._settings.redial_max
        ceiling = min(longest, self._settings.redial_min * 2.0**doublings)
        return self._context.rng.uniform(longest / 2 if ceiling == longest else 0.0, ceiling)

    def schedule(self, address: Address, at: Instant) -> None:
        self._context.timers.set(("dial", address), at)


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
