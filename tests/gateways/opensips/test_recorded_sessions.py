"""The recorded sessions as conversations, with a node of ours in the place of each real one.

It gets what the real node got when that got it, and must send what the real node sent. Left out of
the comparison, because the protocol leaves it free:

* when a ping is sent (the timer's phase; the real timers drift), and so how many there are;
* wall clocks in messages of our own, and where the three counters begin and how far they are;
* the random part of a tag;
* the order of nodes, neighbours, capabilities and chunks (of a hash table) in their lists, and
  whether an author is named in the neighbour lists of others;
* which of several donors is asked for data, and when exactly;
* which of several copies of a flooded message is handled first (`replay.differences`);
* what is sent to a node that is dead, of which a recording has nothing.

What remains is listed below, one life at a time.
"""

from __future__ import annotations

from collections import Counter

import attrs
import pytest

from clusternode.gateways.opensips.messages import CACHE, CONTACTS, Sync
from tests.gateways.opensips.captures import SESSION_A, SESSION_B
from tests.gateways.opensips.gateway_subject import GatewaySubject
from tests.gateways.opensips.replay import Life, Seen, Subject, differences
from tests.gateways.opensips.simulated_subject import SimulatedSubject

END = 1e9
BY_HAND = (
    (47.353, "capability off", CACHE),
    (48.504, "capability on", CACHE),
    (49.616, "sync", CONTACTS),
)
LIVES = {
    "A1": Life(SESSION_A, 1, -6.0, END),
    "A2": Life(SESSION_A, 2, 0.0, END),
    # Two workers handled the first PONGs at the same time, each between the steps of the other.
    "A3": Life(SESSION_A, 3, 3.0, 78.5, BY_HAND, compared_from=4.5),
    "A3 again": Life(
        SESSION_A,
        3,
        87.0,
        232.0,
        by_hand=((213.9, "disable", ""), (219.9, "enable", "")),
        overtaken=((174.1366, 2),),
    ),
    "B1": Life(SESSION_B, 1, -1.36, END),
    "B2": Life(SESSION_B, 2, 0.0, END),
    "B3": Life(SESSION_B, 3, 0.0, END),
}


def first_sync(life: Life, capability: str) -> list[bytes]:
    """Return the chunks that a node gave first: what it had before the recording began."""
    for each in life.sent():
        if isinstance(each.packet, Sync) and each.packet.capability == capability:
            return list(each.packet.chunks)
    raise AssertionError(f"no sync of {capability}")


def data_before(name: str) -> dict[str, list[bytes]]:
    """Only the first node of session A had data when its recording began."""
    if name != "A1":
        return {}
    return {capability: first_sync(LIVES[name], capability) for capability in (CACHE, CONTACTS)}


def plain(seen: Seen) -> Seen:
    """Blank what each node counts for itself in data that it passes on.

    That are the ids that usrloc gives to contacts, and the seconds that a cache entry has left.
    """
    receiver, packet = seen
    if isinstance(packet, Sync):
        size = 20 if packet.capability == CONTACTS else -4
        packet = attrs.evolve(packet, chunks=tuple(chunk[:size] for chunk in packet.chunks))
    return receiver, packet


def compared(name: str, subject: Subject) -> tuple[Counter[str], Counter[str]]:
    """Return the types of what only the real node sent, and of what only the subject sent."""
    both = differences(LIVES[name], subject)
    only_theirs, only_ours = (Counter(map(plain, each.elements())) for each in both)
    return _types(only_theirs - only_ours), _types(only_ours - only_theirs)


def _types(seen: Counter[Seen]) -> Counter[str]:
    return Counter(type(packet).__name__ for _, packet in seen.elements())


@pytest.mark.parametrize("name", LIVES)
def test_the_simulated_node_sends_what_the_real_one_sent(name):
    subject = SimulatedSubject(LIVES[name], data_before(name))

    assert compared(name, subject) == (Counter(), Counter())


DOWN = "LinkUpdate"
BETTER: dict[str, tuple[Counter[str], Counter[str]]] = {
    # The tag is announced again to a node that returns, which a real node leaves out.
    "A2": (Counter(), Counter({"SharingTagActive": 2})),
    # Switched off and on again, the cache is synced again before it is announced as synced.
    "A3": (Counter(), Counter({"CapabilityUpdate": 2, "SyncRequest": 1})),
    # While it is disabled it tells that its links are down, and it believes no old lists after.
    "A3 again": (Counter({"TopologyUpdate": 2}), Counter({"TopologyUpdate": 2, DOWN: 2})),
    # After its first number it waits before the next one, and two messages become one.
    "B3": (Counter({"CapabilityUpdate": 1}), Counter()),
}
"""Where our node differs from the real one on purpose: what only the one, only the other sends."""


@pytest.mark.parametrize("name", LIVES)
def test_our_node_sends_what_the_real_one_sent(name):
    subject = GatewaySubject(LIVES[name], data_before(name))

    assert compared(name, subject) == BETTER.get(name, (Counter(), Counter()))
