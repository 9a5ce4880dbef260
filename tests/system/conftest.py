"""Real agents as processes on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clusternode.cli.local.fleet import Fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet
