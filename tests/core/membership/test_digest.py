"""Tests of clusternode.core.membership.digest."""

from __future__ import annotations

import hashlib

from hypothesis import given

from clusternode.core.membership.digest import digest_of_record
from clusternode.core.types import Incarnation, NodeId
from clusternode.core.wire.limits import COUNT_MAX, DIGEST_MAX
from tests.strategies import counts, names


@given(names, counts, counts)
def test_a_digest_is_the_blake2b_of_incarnation_version_and_name(name, incarnation, version):
    encoded = incarnation.to_bytes(8, "big") + version.to_bytes(8, "big") + name.encode()
    expected = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")

    assert digest_of_record(name, incarnation, version) == expected <= DIGEST_MAX


def test_one_more_than_the_largest_version_of_a_peer_can_be_digested():
    assert digest_of_record(NodeId("n1"), Incarnation(COUNT_MAX + 1), COUNT_MAX + 1)
