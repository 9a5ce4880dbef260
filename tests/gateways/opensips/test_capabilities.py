"""Which capabilities there are, who is synced, and where packets go."""

from __future__ import annotations

import pytest

from clusternode.core.sip_events import CapabilitySync, PacketReceived
from clusternode.errors import ConfigError
from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.codec import CAPABILITIES_MAX, NODES_MAX
from clusternode.gateways.opensips.messages import (
    EXTRA,
    CapabilityUpdate,
    ModulePacket,
    NodeCapabilities,
    Sync,
    SyncEnd,
    SyncRequest,
    Trailer,
)
from clusternode.gateways.opensips.sync import State, SyncSettings
from tests.gateways.opensips.around import Around
from tests.gateways.opensips.test_sync import NAME, Log, change

FROM_1 = Trailer(1, 1, 4)


class Stage:
    """A node with one capability that has data, and one of a script."""

    def __init__(self) -> None:
        self.around = Around()
        self.capabilities = Capabilities(self.around, SyncSettings())
        self.around.capability_state = self.capabilities.state  # type: ignore[method-assign]  # as the node does
        self.data = Log((b"mine",))
        self.capabilities.register(self.data)
        self.capabilities.register_script("script-repl")
        self.capabilities.start()

    def announce(self, node_id: int, *pairs: tuple[str, bool]) -> None:
        node = NodeCapabilities(node_id, pairs)
        update = CapabilityUpdate(1, node_id, 0, 0, (node,), False, (node_id,))
        self.capabilities.received(update)

    def sync(self) -> None:
        self.announce(1, (NAME, True))
        self.capabilities.received(SyncEnd(FROM_1, NAME, 0))
        self.around.taken()


def test_ours_are_announced_as_not_synced_and_then_as_synced():
    stage = Stage()
    assert stage.capabilities.ours == NodeCapabilities(4, ((NAME, False), ("script-repl", False)))

    stage.announce(1, (NAME, True))
    assert stage.around.taken() == [SyncRequest(Trailer(1, 4, 1), NAME)]
    stage.capabilities.received(Sync(FROM_1, NAME, 1, (b"a",)))
    stage.capabilities.received(SyncEnd(FROM_1, NAME, 1))

    assert stage.data.log == [b"a"]
    assert stage.around.announced[-1] == (NAME, True)
    assert stage.capabilities.state(4, NAME) is True
    assert stage.capabilities.sync_state(NAME) is State.SYNCED
    assert stage.around.raised() == [CapabilitySync("sip", "1", NAME, "synced", 1)]


def test_what_others_announce_is_kept_first_and_second_hand_and_ours_is_not_overwritten():
    stage = Stage()
    nodes = (
        NodeCapabilities(3, (("cachedb-local-repl", False),)),
        NodeCapabilities(2, (("cachedb-local-repl", True), ("tm-repl", True))),
        NodeCapabilities(4, ((NAME, True),)),
    )

    stage.capabilities.received(CapabilityUpdate(1, 3, 0, 0, nodes, False, (3,)))
    stage.announce(3, ("cachedb-local-repl", True))

    assert stage.capabilities.all() == (
        stage.capabilities.ours,
        NodeCapabilities(2, (("cachedb-local-repl", True), ("tm-repl", True))),
        NodeCapabilities(3, (("cachedb-local-repl", True),)),
    )
    assert stage.capabilities.state(2, "tm-repl") is True
    assert stage.capabilities.state(3, "tm-repl") is None
    assert stage.capabilities.state(4, NAME) is False
    stage.capabilities.forget(3)
    assert stage.capabilities.state(3, "cachedb-local-repl") is None


def test_what_a_node_says_itself_is_not_changed_by_others_and_second_hand_fills_gaps():
    stage = Stage()
    second_hand = (NodeCapabilities(2, (("a", False), ("b", True))),)
    stage.announce(2, ("a", True))

    stage.capabilities.received(CapabilityUpdate(1, 3, 0, 0, second_hand, False, (3,)))

    assert stage.capabilities.state(2, "a") is True
    assert stage.capabilities.state(2, "b") is True
    stage.announce(2, ("b", False))
    assert stage.capabilities.state(2, "b") is False


def test_nobody_can_make_us_keep_more_than_so_many_nodes_and_names():
    stage = Stage()

    for node_id in range(10, 10 + NODES_MAX + 20):
        stage.announce(node_id, ("x", True))
    for number in range(CAPABILITIES_MAX + 20):
        stage.announce(10, (f"capability {number}", True))

    nodes = stage.capabilities.all()
    assert len(nodes) == NODES_MAX + 1
    assert max(len(node.capabilities) for node in nodes) == CAPABILITIES_MAX


def test_packets_of_capabilities_that_nothing_is_registered_for_are_counted():
    stage = Stage()

    stage.capabilities.received(ModulePacket(FROM_1, "dialog-dlg-repl", 1, 1, b"x"))
    stage.capabilities.received(Sync(FROM_1, "dialog-dlg-repl", 1, (b"x",)))
    stage.capabilities.received(SyncEnd(FROM_1, "script-repl", 1))
    stage.capabilities.received(SyncRequest(FROM_1, "dialog-dlg-repl"))

    assert stage.around.counted == {
        "packets_unregistered": 1,
        "sync_packets_unexpected": 2,
        "sync_requests_refused": 1,
    }
    assert stage.around.raised() == []


def test_a_script_gets_the_raw_packets_of_its_capability():
    stage = Stage()

    stage.capabilities.received(ModulePacket(FROM_1, "script-repl", 2, 9, b"\0raw"))

    assert stage.around.raised() == [
        PacketReceived("sip", "1", "script-repl", type=9, version=2, body=b"\0raw")
    ]


def test_a_capability_of_a_script_is_never_offered_for_a_sync():
    stage = Stage()

    stage.capabilities.received(SyncRequest(FROM_1, "script-repl"))

    assert stage.around.taken() == []
    assert ("script-repl", True) not in stage.around.announced


def test_only_a_synced_node_is_a_donor():
    stage = Stage()
    stage.capabilities.received(SyncRequest(Trailer(1, 2, 4), NAME))
    assert stage.around.taken() == []

    stage.sync()
    stage.capabilities.received(SyncRequest(Trailer(1, 2, 4), NAME))
    stage.around.now = stage.capabilities.next_deadline() or 0.0
    stage.capabilities.tick()

    assert stage.around.taken() == [
        Sync(Trailer(1, 4, 2), NAME, 1, (b"mine",)),
        SyncEnd(Trailer(1, 4, 2), NAME, 1),
    ]
    assert stage.capabilities.next_deadline() is None


def test_a_copy_that_has_lost_something_is_offered_no_more():
    stage = Stage()
    stage.sync()

    stage.capabilities.incomplete(NAME)
    stage.capabilities.received(SyncRequest(Trailer(1, 2, 4), NAME))

    assert stage.around.announced[-1] == (NAME, False)
    assert stage.around.taken() == []


def test_switched_off_it_takes_nothing_and_on_again_it_is_synced_anew():
    stage = Stage()
    stage.sync()

    stage.capabilities.set_enabled(NAME, False)
    stage.capabilities.set_enabled(NAME, False)
    stage.capabilities.received(change(b"lost", 1))
    stage.capabilities.received(SyncRequest(FROM_1, NAME))
    assert stage.around.announced[-1] == (NAME, False)
    assert (stage.data.log, stage.around.taken()) == ([], [])
    assert stage.around.counted["packets_disabled"] == 1
    assert not stage.capabilities.is_enabled(NAME)

    stage.capabilities.set_enabled(NAME, True)

    assert stage.around.taken() == [SyncRequest(Trailer(1, 4, 1), NAME)]
    assert stage.around.announced[-1] == (NAME, False), "not before it has the data"
    stage.capabilities.received(SyncEnd(FROM_1, NAME, 0))
    assert stage.around.announced[-1] == (NAME, True)


def test_switched_off_during_a_sync_it_is_not_synced_by_what_still_comes():
    stage = Stage()
    stage.announce(1, (NAME, True))

    stage.capabilities.set_enabled(NAME, False)
    stage.capabilities.received(SyncEnd(FROM_1, NAME, 0))

    assert stage.around.announced[-1] == (NAME, False)
    assert stage.capabilities.sync_state(NAME) is State.OFF


def test_a_capability_of_a_script_can_be_switched_off():
    stage = Stage()
    stage.capabilities.set_enabled("script-repl", False)

    stage.capabilities.received(ModulePacket(FROM_1, "script-repl", 2, 9, b""))

    assert stage.around.raised() == []
    assert stage.around.counted["packets_disabled"] == 1


def test_the_data_can_be_asked_for_again():
    stage = Stage()
    stage.sync()

    stage.capabilities.resync(NAME)

    assert stage.around.taken() == [SyncRequest(Trailer(1, 4, 1), NAME)]
    for name in ("script-repl", "unknown"):
        with pytest.raises(ConfigError):
            stage.capabilities.resync(name)


def test_a_donor_that_goes_down_is_replaced_and_a_node_that_goes_down_is_given_nothing_more():
    stage = Stage()
    stage.announce(1, (NAME, True))
    stage.announce(2, (NAME, True))
    stage.around.unreachable.add(1)
    stage.capabilities.node_down(1)
    assert [packet.trailer.destination for packet in stage.around.taken()] == [1, 2]
    stage.capabilities.received(SyncEnd(Trailer(1, 2, 4), NAME, 0))

    stage.capabilities.received(SyncRequest(Trailer(1, 3, 4), NAME))
    stage.capabilities.node_down(3)

    assert stage.capabilities.next_deadline() is None
    stage.around.unreachable.clear()
    stage.capabilities.node_up(1)
    assert stage.around.counted["donations_abandoned"] == 1


def test_a_packet_goes_to_one_or_to_all():
    stage = Stage()
    stage.around.unreachable.add(2)

    assert stage.capabilities.send("script-repl", 7, 1, b"body") == 2
    assert stage.capabilities.send("script-repl", 7, 1, b"body", 3) == 1
    assert stage.capabilities.send("script-repl", 7, 1, b"body", 2) == 0

    assert stage.around.taken()[-1] == ModulePacket(Trailer(1, 4, 3), "script-repl", 1, 7, b"body")


def test_names_that_cannot_be_a_capability_are_refused():
    stage = Stage()
    stage.capabilities.register_script("script-repl")  # again is no error
    for name in (EXTRA, "", "x" * 2000, NAME):
        with pytest.raises(ConfigError):
            stage.capabilities.send(name if name != NAME else EXTRA, 1, 1, b"")
    with pytest.raises(ConfigError):
        stage.capabilities.register(stage.data)
    with pytest.raises(ConfigError):
        stage.capabilities.set_enabled("unknown", True)
    for number in range(CAPABILITIES_MAX - 2):
        stage.capabilities.register_script(f"script {number}")
    with pytest.raises(ConfigError, match="at most"):
        stage.capabilities.register_script("one more")
