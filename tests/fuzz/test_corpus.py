"""What the fuzzer starts from and has found, without the fuzzer; and some chance beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, corpus, node_counters, seeds


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_was_found_is_survived(name):
    for data in [*seeds(name), *corpus(name)]:
        TARGETS[name](data)


def test_the_stories_of_routing_reach_ways_tunnels_and_relays():
    reached = {
        name for seed in seeds("node") for name, count in node_counters(seed).items() if count
    }

    assert reached >= {
        "pings_rerouted",
        "routed_frames_refused",
        "routed_frames_relayed",
        "tunnel_resends",
        "tunnels_opened",
        "tunnels_refused",
    }


@pytest.mark.parametrize("name", ["codec", "session", "node", "opensips", "control", "bridge"])
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_survived(name, data):
    TARGETS[name](data)


@pytest.mark.parametrize("name", ["codec", "session", "node", "opensips", "control", "bridge"])
@given(data=st.data())
def test_changed_seeds_are_survived(name, data):
    seed = bytearray(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(1, 4))):
        if seed:
            seed[data.draw(st.integers(0, len(seed) - 1))] = data.draw(st.integers(0, 255))

    TARGETS[name](bytes(seed))
