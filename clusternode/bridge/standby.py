"""What agents that share a rule tell each other, and what those hold that were not chosen. Pure.

The chosen agent says of each message that it has dealt with it; the others hold their copies
until then, and relay what is left when they are chosen, or when nobody has dealt with it in time.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs

from clusternode.core.types import Instant, Seconds, is_name
from clusternode.errors import RemoteProtocolError

HELD_MAX: Final = 10_000
"""Copies held for one rule, as many as a channel's default `queue_size`."""
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
DONE_MAX: Final = 2000
"""Fingerprints in one message: about 26 KB."""
EARLY_MAX: Final = 10_000
"""Fingerprints that came before their message."""
EARLY_EACH_MAX: Final = 1000
"""Times that one of them may have been told: messages of one sender that say the same."""
EARLY_WINDOW: Final[Seconds] = 10.0
"""So long they are kept: far longer than a message can be on its way to two agents."""
NODES_MAX: Final = 64
FINGERPRINT_LENGTH_MAX: Final = 32

Item = TypeVar("Item")


@attrs.define
class _Held(Generic[Item]):
    fingerprint: str
    since: Instant
    size: int
    item: Item


@attrs.define
class Held(Generic[Item]):
    """Copies that another agent is to relay, the oldest first."""

    dropped: int = 0
    """Copies that had to go, because there were too many."""
    _held: OrderedDict[int, _Held[Item]] = attrs.Factory(OrderedDict)
    _by_fingerprint: dict[str, deque[int]] = attrs.Factory(dict)
    _early: OrderedDict[str, deque[Instant]] = attrs.Factory(OrderedDict)
    """Fingerprint → when it was told before its message came."""
    _numbers: int = 0
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, now: Instant, fingerprint: str, item: Item, size: int) -> None:
        """Keep a copy, unless it was dealt with before it came."""
        early = self._early.pop(fingerprint, deque())
        while early:
            told = early.popleft()
            if early:
                self._early[fingerprint] = early
            if now - told <= EARLY_WINDOW:
                return
        self._numbers += 1
        self._held[self._numbers] = _Held(fingerprint, now, size, item)
        self._by_fingerprint.setdefault(fingerprint, deque()).append(self._numbers)
        self._bytes += size
        while len(self._held) > HELD_MAX or self._bytes > HELD_BYTES_MAX:
            self._take(next(iter(self._held)))
            self.dropped += 1

    def done(self, now: Instant, fingerprints: Iterable[str]) -> None:
        """Let copies go that the chosen agent has dealt with, one for each time it says so."""
        for fingerprint in fingerprints:
            numbers = self._by_fingerprint.get(fingerprint)
            if numbers:
                self._take(numbers[0])
                continue
            told = self._early.setdefault(fingerprint, deque(maxlen=EARLY_EACH_MAX))
            self._early.move_to_end(fingerprint)
            while told and now - told[0] > EARLY_WINDOW:
                told.popleft()
            told.append(now)
            if len(self._early) > EARLY_MAX:
                self._early.popitem(last=False)

    def overdue(self, now: Instant, patience: Seconds) -> list[Item]:
        """Take out what was held for longer than `patience`, the oldest first."""
        found = []
        while self._held:
            number, held = next(iter(self._held.items()))
            if now - held.since < patience:
                break
            self._take(number)
            found.append(held.item)
        return found

    def _take(self, number: int) -> None:
        held = self._held.pop(number)
        self._bytes -= held.size
        numbers = self._by_fingerprint[held.fingerprint]
        numbers.remove(number)
        if not numbers:
            del self._by_fingerprint[held.fingerprint]


@attrs.frozen
class Notice:
    """What an agent tells the others that have bridges."""

    nodes: Mapping[str, str] = attrs.field(factory=dict)
    """Name of a gateway's bus → the id of the agent's own node there."""
    done: Sequence[str] = ()
    """Fingerprints of messages that it has dealt with."""
    cut_off: Sequence[str] = ()
    """Names of buses on which it sees nobody."""

    def encode(self) -> bytes:
        return json.dumps(attrs.asdict(self)).encode()


def parse_notice_untrusted(body: bytes) -> Notice:
    """Read what another agent tells.

    Raises:
        RemoteProtocolError: It is no notice.
    """
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("no JSON") from None
    if not isinstance(found, dict):
        raise RemoteProtocolError("no JSON object")
    nodes, done = found.get("nodes", {}), found.get("done", [])
    if not isinstance(nodes, dict) or len(nodes) > NODES_MAX:
        raise RemoteProtocolError(f"nodes: at most {NODES_MAX} names")
    for bus, node_id in nodes.items():
        if not isinstance(node_id, str) or not is_name(bus) or not is_name(node_id):
            raise RemoteProtocolError("nodes: no name")
    if not isinstance(done, list) or len(done) > DONE_MAX:
        raise RemoteProtocolError(f"done: at most {DONE_MAX} fingerprints")
    if not all(isinstance(each, str) and len(each) <= FINGERPRINT_LENGTH_MAX for each in done):
        raise RemoteProtocolError("done: no fingerprint")
    cut_off = found.get("cut_off", [])
    if not isinstance(cut_off, list) or len(cut_off) > NODES_MAX:
        raise RemoteProtocolError(f"cut_off: at most {NODES_MAX} names")
    if not all(isinstance(each, str) and is_name(each) for each in cut_off):
        raise RemoteProtocolError("cut_off: no name")
    return Notice(nodes, tuple(done), tuple(cut_off))
