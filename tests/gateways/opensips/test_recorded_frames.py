"""Every message of the two recorded sessions, read and written again."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from clusternode.gateways.opensips.codec import FrameReader, decode_untrusted, encode
from clusternode.simulation.opensips.wire import Cutter, message_of
from tests.gateways.opensips.captures import SESSION_A, SESSION_B, VECTORS, frames

SESSIONS = [SESSION_A, SESSION_B]


@pytest.mark.parametrize("session", SESSIONS)
def test_all_recorded_messages_are_decoded_and_encoded_to_the_same_bytes(session):
    recorded = frames(session)

    wrong = [each for each in recorded if encode(decode_untrusted(each.data)) != each.data]

    assert len(recorded) == {SESSION_A: 1543, SESSION_B: 1986}[session]
    assert not wrong


@pytest.mark.parametrize("session", SESSIONS)
def test_the_simulated_node_keeps_all_recorded_messages_as_they_are(session):
    assert all(message_of(each.data).encoded() == each.data for each in frames(session))


def test_the_sessions_hold_every_kind_of_message():
    kinds = Counter(
        type(decode_untrusted(each.data)).__name__ for name in SESSIONS for each in frames(name)
    )

    assert set(kinds) == {
        "Ping", "Pong", "LinkUpdate", "TopologyUpdate", "UnknownId", "NodeDescription",
        "CapabilityUpdate", "RemoveNode", "Generic", "Command", "SyncRequest", "Sync", "SyncEnd",
        "SharingTagActive", "ModulePacket",
    }  # fmt: skip


@pytest.mark.parametrize("session", SESSIONS)
def test_recorded_messages_survive_any_chopping_of_their_streams(session):
    rng = Random(session)
    for way in {(each.source, each.target) for each in frames(session)}:
        sent = [each.data for each in frames(session) if (each.source, each.target) == way]
        stream = b"".join(sent)
        reader, cutter = FrameReader(), Cutter()
        ours, theirs = [], []
        while stream:
            size = rng.randint(1, 2000)
            ours += reader.receive_data_untrusted(stream[:size])
            theirs += cutter.feed(stream[:size])
            stream = stream[size:]

        assert ours == theirs == sent


def test_only_unknown_id_goes_back_on_the_connection_that_the_other_side_opened():
    kinds = {
        type(decode_untrusted(each.data)).__name__
        for name in SESSIONS
        for each in frames(name)
        if each.is_backwards
    }

    assert kinds == {"UnknownId"}
    assert (VECTORS / SESSION_A).stat().st_size + (VECTORS / SESSION_B).stat().st_size < 1_000_000
