"""The queues that all idle peers share: whoever forgets to make an own one is told at once."""

from __future__ import annotations

import pytest

from clusternode.core.membership.links import NO_FRAMES
from clusternode.core.messaging.sending import NOBODY, NOTHING


def by_or(shared):
    shared |= {1: 2}


def by_plus(shared):
    shared += [1]


@pytest.mark.parametrize(
    ("shared", "put"),
    [
        (NOTHING, lambda shared: shared.append(1)),
        (NOTHING, lambda shared: shared.appendleft(1)),
        (NOTHING, lambda shared: shared.extend([1])),
        (NOTHING, lambda shared: shared.extendleft([1])),
        (NOTHING, lambda shared: shared.insert(0, 1)),
        (NOTHING, by_plus),
        (NO_FRAMES, lambda shared: shared.append(1)),
        (NO_FRAMES, lambda shared: shared.extend([1])),
        (NO_FRAMES, lambda shared: shared.insert(0, 1)),
        (NO_FRAMES, by_plus),
        (NOBODY, lambda shared: shared.__setitem__(1, 2)),
        (NOBODY, lambda shared: shared.setdefault(1, 2)),
        (NOBODY, lambda shared: shared.update({1: 2})),
        (NOBODY, lambda shared: shared.update(one=2)),
        (NOBODY, by_or),
    ],
)
def test_nothing_can_be_put_into_a_shared_queue(shared, put):
    with pytest.raises(AssertionError, match="nothing may be put here"):
        put(shared)

    assert not shared
