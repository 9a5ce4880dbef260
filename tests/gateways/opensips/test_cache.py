"""The replicated collections of cachedb_local, live in both directions."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clusternode.core.events import LimitReached
from clusternode.core.sip_events import CacheReplicated
from clusternode.errors import BodyTooLarge, ConfigError, Overloaded
from clusternode.gateways.opensips.cache import (
    ENTRY_SIZE_MAX,
    PURGE_PAUSE,
    PURGE_STEP,
    Cache,
    CacheView,
)
from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.codec import encode
from clusternode.gateways.opensips.messages import (
    CACHE,
    ModulePacket,
    Sync,
    SyncEnd,
    SyncRequest,
    Trailer,
)
from clusternode.gateways.opensips.replication import (
    CacheChange,
    CacheInsert,
    CacheRemove,
    cache_chunk,
    cache_packet,
    read_cache_untrusted,
)
from clusternode.gateways.opensips.sync import SyncSettings
from tests.gateways.opensips.around import Around

FROM_1 = Trailer(1, 1, 4)


class Stage:
    """A node that keeps the collections c1 and c2, synced from node 1 unless told otherwise."""

    def __init__(self, *, is_synced: bool = True, **limits: int) -> None:
        self.around = Around()
        self.capabilities = Capabilities(self.around, SyncSettings())
        self.around.states[1, CACHE] = True
        self.cache = Cache(self.around, self.capabilities, ["c1", "c2"], **limits)
        self.capabilities.start()
        self.around.taken()
        if is_synced:
            self.capabilities.received(SyncEnd(FROM_1, CACHE, 0))
            self.around.raised()

    def receive(self, change: CacheChange, source: int = 1) -> None:
        self.capabilities.received(cache_packet(Trailer(1, source, 4), change))

    def after(self, seconds: float) -> None:
        self.around.now += seconds
        self.cache.tick()


def test_what_others_store_and_remove_is_seen_and_is_an_event():
    stage = Stage()

    stage.receive(CacheInsert("c1", "k", b"v", 60))
    assert stage.cache.get("c1", "k") == b"v"
    stage.receive(CacheRemove("c1", "k"))

    assert stage.cache.get("c1", "k") is None
    assert stage.around.raised() == [
        CacheReplicated("sip", "1", "insert", "c1", "k", b"v", 60),
        CacheReplicated("sip", "1", "remove", "c1", "k"),
    ]


def test_what_we_store_goes_to_every_node_and_is_seen_at_once():
    stage = Stage()
    view = CacheView(stage.cache, "c1", lambda action: action())

    assert view.set("k", "v", ttl=60) == 3
    assert (view["k"], view.ttl("k"), len(view), [*view]) == (b"v", 60, 1, ["k"])
    assert view.delete("k") == 3

    assert "k" not in view
    sent = stage.around.taken()
    assert [packet.trailer.destination for packet in sent] == [1, 2, 3] * 2
    assert read_cache_untrusted(sent[0]) == CacheInsert("c1", "k", b"v", 60)
    assert read_cache_untrusted(sent[3]) == CacheRemove("c1", "k")
    assert stage.around.raised() == []


def test_entries_die_at_their_time():
    stage = Stage()
    stage.receive(CacheInsert("c1", "mortal", b"v", 60))
    stage.receive(CacheInsert("c1", "immortal", b"v"))
    stage.after(59.9)
    assert stage.cache.ttl("c1", "mortal") == 1
    assert stage.cache.ttl("c1", "immortal") == 0

    stage.after(0.1)

    assert stage.cache.keys("c1") == ["immortal"]
    assert stage.cache.ttl("c1", "mortal") is None
    stage.receive(CacheRemove("c1", "immortal"))
    for _ in range(3):
        stage.after(10.0)
    assert stage.cache.next_deadline() is None, "nothing is left"


def test_what_has_expired_makes_room_a_part_at_a_time():
    stage = Stage()
    for number in range(2 * PURGE_STEP):
        stage.receive(CacheInsert("c1", f"{number}", b"v", 5))
    stage.after(10.0)
    assert stage.cache.next_deadline() == stage.around.now + PURGE_PAUSE

    while (due := stage.cache.next_deadline()) is not None:
        stage.after(due - stage.around.now)

    assert stage.around.now < 100.0 + 10.0 + 1.0


def test_collections_that_are_not_kept_are_events_only_and_cannot_be_written():
    stage = Stage()

    stage.receive(CacheInsert("c9", "k", b"v"))

    assert len(stage.around.raised()) == 1
    for act in (
        lambda: stage.cache.insert("c9", "k", b"v"),
        lambda: CacheView(stage.cache, "c9", lambda action: action()),
    ):
        with pytest.raises(ConfigError, match="c1, c2"):
            act()


def test_a_packet_that_cannot_be_read_is_counted():
    stage = Stage()

    stage.capabilities.received(ModulePacket(FROM_1, CACHE, 1, 1, b"nonsense"))
    stage.capabilities.received(ModulePacket(FROM_1, CACHE, 2, 1, b""))
    stage.capabilities.received(ModulePacket(FROM_1, CACHE, 1, 3, b""))

    assert stage.around.counted["cache_packets_refused"] == 3


def test_entries_beyond_the_bound_are_refused_told_once_and_end_our_being_a_donor():
    stage = Stage(entries_max=2)

    for key in "abcd":
        stage.receive(CacheInsert("c1", key, b"v"))

    assert stage.cache.keys("c1") == ["a", "b"]
    assert stage.around.counted["cache_entries_refused"] == 2
    limits = [event for event in stage.around.raised() if isinstance(event, LimitReached)]
    assert [event.limit for event in limits] == ["cache"]
    assert stage.around.announced[-1] == (CACHE, False)
    stage.receive(CacheRemove("c1", "a"))
    stage.receive(CacheInsert("c1", "e", b"v"))
    assert stage.cache.keys("c1") == ["b", "e"]


def test_bytes_are_bounded_and_a_value_that_found_no_room_leaves_no_old_one():
    stage = Stage(bytes_max=100)
    stage.receive(CacheInsert("c1", "k", b"v" * 90))

    stage.receive(CacheInsert("c1", "k", b"w" * 200))

    assert stage.cache.get("c1", "k") is None
    stage.receive(CacheInsert("c1", "k", b"x" * 99))
    assert stage.cache.get("c1", "k") == b"x" * 99


def test_a_value_makes_room_for_the_one_that_takes_its_place():
    stage = Stage(bytes_max=100, entries_max=1)

    for number in range(10):
        stage.receive(CacheInsert("c1", "k", b"%d" % number * 80))

    assert stage.cache.get("c1", "k") == b"9" * 80
    assert stage.cache.is_complete


def test_what_we_cannot_keep_or_send_is_refused_to_the_caller():
    stage = Stage(entries_max=1)
    stage.cache.insert("c1", "a", b"v")
    with pytest.raises(Overloaded):
        stage.cache.insert("c1", "b", b"v")
    with pytest.raises(ConfigError):
        stage.cache.insert("c1", "a", b"v", -1)
    with pytest.raises(BodyTooLarge):
        stage.cache.insert("c1", "a", bytes(ENTRY_SIZE_MAX))
    with pytest.raises(BodyTooLarge):
        stage.cache.insert("c1", "a", bytes(70_000))

    assert stage.cache.get("c1", "a") == b"v"
    assert len(stage.around.taken()) == 3


def test_the_largest_entry_fits_into_a_packet_and_into_a_sync():
    stage = Stage()
    stage.cache.insert("c1", "k", bytes(ENTRY_SIZE_MAX - len("c1") - len("k") - 10))
    assert all(len(encode(packet)) < 65_515 for packet in stage.around.taken())

    stage.capabilities.received(SyncRequest(FROM_1, CACHE))

    [packet] = stage.around.taken()
    assert isinstance(packet, Sync) and encode(packet)


def test_a_sync_brings_what_was_there_and_gives_what_is_left_of_each_life():
    stage = Stage(is_synced=False)
    assert stage.around.announced == [(CACHE, False)]
    chunks = (
        cache_chunk(CacheInsert("c1", "a", b"1", 100)),
        cache_chunk(CacheInsert("c2", "b", b"2")),
    )
    stage.capabilities.received(Sync(FROM_1, CACHE, 1, chunks))
    stage.capabilities.received(SyncEnd(FROM_1, CACHE, 2))
    assert stage.cache.is_synced
    stage.after(40.5)

    stage.capabilities.received(SyncRequest(Trailer(1, 2, 4), CACHE))

    [packet] = stage.around.taken()
    assert packet.chunks == (
        cache_chunk(CacheInsert("c1", "a", b"1", 59)),
        cache_chunk(CacheInsert("c2", "b", b"2")),
    )
    assert stage.around.announced[-1] == (CACHE, True)


def test_what_we_store_during_a_sync_is_not_undone_by_it_and_is_no_event():
    stage = Stage(is_synced=False)
    stage.cache.insert("c1", "a", b"ours")
    stage.cache.insert("c1", "b", b"ours")
    stage.cache.remove("c1", "b")
    chunks = [cache_chunk(CacheInsert("c1", key, b"theirs")) for key in "abc"]

    stage.capabilities.received(Sync(FROM_1, CACHE, 1, tuple(chunks)))
    stage.capabilities.received(SyncEnd(FROM_1, CACHE, 3))

    assert {key: stage.cache.get("c1", key) for key in stage.cache.keys("c1")} == {
        "a": b"ours",
        "c": b"theirs",
    }
    assert not any(isinstance(event, CacheReplicated) for event in stage.around.raised())


def test_two_nodes_give_each_other_what_they_have():
    ours, theirs = Stage(), Stage(is_synced=False)
    for number in range(50):
        ours.cache.insert("c1", f"key {number}", b"%d" % number)
    ours.around.taken()
    ours.capabilities.received(SyncRequest(Trailer(1, 2, 4), CACHE))
    while (due := ours.capabilities.next_deadline()) is not None:
        ours.around.now = due
        ours.capabilities.tick()

    for packet in ours.around.taken():
        theirs.capabilities.received(attrs.evolve(packet, trailer=FROM_1))

    assert theirs.cache.keys("c1") == ours.cache.keys("c1")
    assert theirs.cache.is_synced


class CacheMachine(RuleBasedStateMachine):
    """A cache against a dictionary of (value, when it dies), while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.model: dict[tuple[str, str], tuple[bytes, float]] = {}

    keys = st.tuples(st.sampled_from(["c1", "c2"]), st.sampled_from("abc"))

    @rule(key=keys, value=st.binary(max_size=3), ttl=st.integers(0, 20), is_ours=st.booleans())
    def insert(self, key, value, ttl, is_ours):
        collection, name = key
        if is_ours:
            self.stage.cache.insert(collection, name, value, ttl)
        else:
            self.stage.receive(CacheInsert(collection, name, value, ttl))
        self.model[key] = (value, self.stage.around.now + (ttl or 1e9))

    @rule(key=keys, is_ours=st.booleans())
    def remove(self, key, is_ours):
        if is_ours:
            self.stage.cache.remove(*key)
        else:
            self.stage.receive(CacheRemove(*key))
        self.model.pop(key, None)

    @rule(seconds=st.sampled_from([0.25, 3.0, 12.0]))
    def wait(self, seconds):
        self.stage.after(seconds)

    @invariant()
    def it_holds_what_the_model_holds(self):
        now = self.stage.around.now
        alive = {key: value for key, (value, dies_at) in self.model.items() if dies_at > now}
        cache = self.stage.cache
        seen = {
            (name, key): cache.get(name, key)
            for name in cache.collections
            for key in cache.keys(name)
        }
        assert seen == alive
        assert len([*cache.chunks()]) == len(alive)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
