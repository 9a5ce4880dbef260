"""The recorded sessions as conversations, with a node of ours in the place of each real one.

It gets what the real node got when that got it, and must send what the real node sent. Left out of
the comparison, because the protocol leaves it free:

* when a ping is sent (the timer's phase; the real timers drift), and so how many there are;
* wall clocks in messages of our own, and where the three counters begin and how far they are;
* the random part of a tag;
* the order of nodes, neighbours, capabilities and chunks (of a hash table) in their lists, and
  whether an author is named in the neighbour lists of others;
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
from tests.gateways.opensips.replay import Life, Seen, differences
from tests.gateways.opensips.simulated_subject import SimulatedSubject

END = 1e9
BY_HAND = (
    (47.353, "capability off", CACHE),
    (48.504, "capability on", CACHE),
    (49.616, "sync", CONTACTS),
)
LIVES = {
    "A1": Life(SESSION_A, 1, 0.0, END),
    "A2": Life(SESSION_A, 2, 0.0, END),
    # Two workers handled the first PONGs at the same time, each between the steps of the other.
    "A3": Life(SESSION_A, 3, 3.0, 78.5, BY_HAND, compared_from=3.7),
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


def without_labels(seen: Seen) -> Seen:
    """Blank what each usrloc counts for itself: the ids of contacts, and the next one."""
    receiver, packet = seen
    if isinstance(packet, Sync) and packet.capability == CONTACTS:
        chunks = tuple(chunk[:20] for chunk in packet.chunks)
        return receiver, attrs.evolve(packet, chunks=chunks)
    return seen


@pytest.mark.parametrize("name", LIVES)
def test_the_simulated_node_sends_what_the_real_one_sent(name):
    life = LIVES[name]
    before = data_before(name)

    only_theirs, only_ours = differences(life, SimulatedSubject(life, before))

    assert Counter(map(without_labels, only_theirs)) == Counter(map(without_labels, only_ours))
