"""Every attack of the kit, for a second each, against an honest cluster that carries load."""

from __future__ import annotations

import pytest

from tests.attack.kit import INSIDERS, OUTSIDERS, TLS_OUTSIDERS, Attack
from tests.attack.siege import besiege, honest_cluster

pytestmark = [pytest.mark.long]

SECONDS = 1.0
MEMORY_MAX = 64 * 1024 * 1024
"""What an agent may grow by; the largest thing allowed is a member list of 4096 strangers."""


async def withstands(attacks: dict[str, Attack], *, tls: bool) -> None:
    async with honest_cluster(tls=tls) as (fleet, target):
        for name, attack in attacks.items():
            outcome = await besiege(fleet, target, name, attack, SECONDS)

            assert outcome.sent > 0, name
            assert not outcome.lost, outcome
            assert not outcome.downs, outcome
            assert not outcome.errors, outcome
            assert outcome.memory_grown < MEMORY_MAX, outcome


async def test_whoever_does_not_know_the_secret_disturbs_nobody():
    await withstands(dict(OUTSIDERS), tls=False)


async def test_whoever_has_no_certificate_disturbs_nobody():
    await withstands(dict(TLS_OUTSIDERS), tls=True)


async def test_a_member_that_was_taken_over_disturbs_nobody_where_certificates_name_the_nodes():
    await withstands(dict(INSIDERS), tls=True)
