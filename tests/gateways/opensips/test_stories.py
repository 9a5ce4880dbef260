"""Random stories of mixed clusters; CI lives through more and larger ones."""

from __future__ import annotations

import pytest

from tests.gateways.opensips.stories import problems_of

NODES_MAX = 5
FOUND = (17, 26, 42)
"""Stories that have shown a bug."""


@pytest.mark.parametrize("seed", [*range(8), *FOUND])
def test_what_breaks_is_whole_again_when_it_is_mended(seed):
    assert problems_of(seed, NODES_MAX) == []
