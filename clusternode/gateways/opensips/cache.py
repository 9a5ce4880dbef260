"""The replicated collections of OpenSIPS's cachedb_local: a live copy that can be written; pure.

Which collections are kept is said by the configuration, as each OpenSIPS has it in its own
(`cache_collections`). Changes of the others are events all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol, TypeVar

import attrs

from clusternode.core.events import LimitReached
from clusternode.core.sip_events import CacheReplicated
from clusternode.core.types import Instant, Seconds
from clusternode.errors import BodyTooLarge, ConfigError, Overloaded, RemoteProtocolError
from clusternode.gateways.opensips.capabilities import Capabilities
from clusternode.gateways.opensips.codec import FRAME_SIZE_MAX
from clusternode.gateways.opensips.fields import printable
from clusternode.gateways.opensips.messages import CACHE, ModulePacket
from clusternode.gateways.opensips.parts import Surroundings
from clusternode.gateways.opensips.replication import (
    CACHE_VERSION,
    CacheChange,
    CacheInsert,
    CacheRemove,
    cache_chunk,
    cache_packet,
    read_cache_chunk_untrusted,
    read_cache_untrusted,
)
from clusternode.gateways.opensips.sync import CHUNK_OVERHEAD, SYNC_OVERHEAD, State

T = TypeVar("T")

ENTRIES_MAX: Final = 100_000
"""Of all collections together."""
BYTES_MAX: Final = 64 * 2**20
"""Of all keys and values together."""
ENTRY_SIZE_MAX: Final = FRAME_SIZE_MAX - SYNC_OVERHEAD - len(CACHE) - CHUNK_OVERHEAD
"""Of an entry as it is sent, so that it also fits into a sync packet."""
PURGE_INTERVAL: Final[Seconds] = 10.0
"""How long what has expired may take room; nobody sees it."""
PURGE_STEP: Final = 1000
PURGE_PAUSE: Final[Seconds] = 0.02
"""So many entries are looked at together, and then everything else has a turn."""

COUNTERS: Final[tuple[str, ...]] = ("cache_packets_refused", "cache_entries_refused")


@attrs.define
class _Entry:
    value: bytes
    expires_at: Instant | None


class Cache:
    """Our copy; `Capabilities` brings what others change, and takes what we change."""

    def __init__(
        self,
        around: Surroundings,
        capabilities: Capabilities,
        collections: Iterable[str],
        *,
        entries_max: int = ENTRIES_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self.is_complete = True
        self._around = around
        self._capabilities = capabilities
        self._collections: dict[str, dict[str, _Entry]] = {name: {} for name in collections}
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._count = 0
        self._size = 0
        self._purge_at: Instant | None = None
        self._unseen: list[tuple[str, list[str]]] = []  # collection, and its keys to be looked at
        capabilities.register(self)

    # --- as data of a capability --------------------------------------------------------------

    @property
    def name(self) -> str:
        return CACHE

    @property
    def version(self) -> int:
        return CACHE_VERSION

    def restart(self) -> None:
        self.is_complete = True

    def apply(self, packet: ModulePacket) -> None:
        """Take one change, and raise its event if it is another node's."""
        try:
            change = read_cache_untrusted(packet)
        except RemoteProtocolError:
            self._around.count("cache_packets_refused")
            return
        self._take(change)
        if packet.trailer.source != self._around.node_id:
            self._around.raise_event(self._event(packet.trailer.source, change))

    def apply_chunk_untrusted(self, chunk: bytes, version: int, source: int) -> None:
        """Take one chunk; it is no event.

        Raises:
            RemoteProtocolError: It cannot be read.
        """
        self._take(read_cache_chunk_untrusted(chunk, version))

    def chunks(self) -> Iterator[bytes]:
        """Yield every entry that is alive, with the seconds that it has left."""
        for name, entries in self._collections.items():
            for key in [*entries]:
                entry = entries.get(key)
                if entry is not None and self._is_alive(entry):
                    yield cache_chunk(CacheInsert(name, key, entry.value, self._left(entry)))

    # --- as a map of maps ---------------------------------------------------------------------

    @property
    def collections(self) -> tuple[str, ...]:
        return tuple(self._collections)

    @property
    def is_synced(self) -> bool:
        return self._capabilities.sync_state(CACHE) is State.SYNCED

    def get(self, collection: str, key: str) -> bytes | None:
        entry = self._of(collection).get(key)
        return entry.value if entry is not None and self._is_alive(entry) else None

    def keys(self, collection: str) -> list[str]:
        return [key for key, entry in self._of(collection).items() if self._is_alive(entry)]

    def ttl(self, collection: str, key: str) -> int | None:
        """Return the seconds that an entry has left, 0 for ever; None when there is none."""
        entry = self._of(collection).get(key)
        return self._left(entry) if entry is not None and self._is_alive(entry) else None

    def insert(self, collection: str, key: str, value: bytes, ttl: int = 0) -> int:
        """Store an entry for `ttl` seconds, 0 for ever, here, and tell the others.

        Returns:
            To how many nodes it is on its way.

        Raises:
            ConfigError: The collection is not kept, or `ttl` is negative.
            BodyTooLarge: It does not fit into one packet.
            Overloaded: There is no room for it here.
            LocalProtocolError: A text or number cannot be written.
        """
        if ttl < 0:
            raise ConfigError("ttl", ttl, "0 or more seconds")
        return self.write(CacheInsert(collection, key, value, ttl))

    def remove(self, collection: str, key: str) -> int:
        """Remove an entry here and tell the others.

        Returns:
            To how many nodes it is on its way.

        Raises:
            ConfigError: The collection is not kept.
            BodyTooLarge: The key does not fit into one packet.
        """
        return self.write(CacheRemove(collection, key))

    def write(self, change: CacheChange) -> int:
        """Carry a change out here and tell the others; see `insert` and `remove`."""
        self._of(change.collection)
        packet = cache_packet(self._around.trailer(self._around.node_id), change)
        if len(packet.body) > ENTRY_SIZE_MAX:
            raise BodyTooLarge(f"entry of {len(packet.body)} bytes, at most {ENTRY_SIZE_MAX}")
        if not self._has_room(change):
            raise Overloaded(f"cache: {self._count} entries of {self._size} bytes are kept")
        self._take(change)
        self._capabilities.changed_here(packet)
        return self._capabilities.send(CACHE, packet.type, packet.version, packet.body)

    # --- time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Drop what has expired, a part at a time."""
        if self._purge_at is None or self._around.now < self._purge_at:
            return
        if not self._unseen:
            self._unseen = [(name, [*each]) for name, each in self._collections.items()]
        name, keys = self._unseen[-1]
        for key in keys[-PURGE_STEP:]:
            entry = self._collections[name].get(key)
            if entry is not None and not self._is_alive(entry):
                self._drop(name, key)
        del keys[-PURGE_STEP:]
        if not keys:
            self._unseen.pop()
        pause = PURGE_PAUSE if self._unseen else PURGE_INTERVAL
        self._purge_at = self._around.now + pause if self._count else None

    def next_deadline(self) -> Instant | None:
        return self._purge_at

    # --- inside -------------------------------------------------------------------------------

    def _of(self, collection: str) -> dict[str, _Entry]:
        entries = self._collections.get(collection)
        if entries is None:
            raise ConfigError("collection", collection, f"one of {', '.join(self._collections)}")
        return entries

    def _is_alive(self, entry: _Entry) -> bool:
        return entry.expires_at is None or entry.expires_at > self._around.now

    def _left(self, entry: _Entry) -> int:
        """Return whole seconds, at least 1, because 0 stands for ever."""
        return 0 if entry.expires_at is None else max(int(entry.expires_at - self._around.now), 1)

    def _has_room(self, change: CacheChange) -> bool:
        if isinstance(change, CacheRemove):
            return True
        old = self._collections[change.collection].get(change.key)
        count = self._count + (old is None)
        size = self._size + _size_of(change.key, change.value)
        if old is not None:
            size -= _size_of(change.key, old.value)
        return count <= self._entries_max and size <= self._bytes_max

    def _take(self, change: CacheChange) -> None:
        """Carry a change out; one of a collection that is not kept does nothing."""
        if change.collection not in self._collections:
            return
        if isinstance(change, CacheRemove):
            self._drop(change.collection, change.key)
            return
        if not self._has_room(change):
            self._refuse(change)
            return
        self._drop(change.collection, change.key)
        expires_at = self._around.now + change.ttl if change.ttl else None
        self._collections[change.collection][change.key] = _Entry(change.value, expires_at)
        self._count += 1
        self._size += _size_of(change.key, change.value)
        if self._purge_at is None:
            self._purge_at = self._around.now + PURGE_INTERVAL

    def _drop(self, collection: str, key: str) -> None:
        entry = self._collections[collection].pop(key, None)
        if entry is not None:
            self._count -= 1
            self._size -= _size_of(key, entry.value)

    def _refuse(self, change: CacheInsert) -> None:
        """Forget the old value too, which is wrong now, and stop being a donor."""
        self._drop(change.collection, change.key)
        self._around.count("cache_entries_refused")
        if self.is_complete:
            self.is_complete = False
            detail = f"{self._count} entries of {self._size} bytes"
            name = self._around.cluster_name
            self._around.raise_event(LimitReached(name, "cache", "", detail))
            self._capabilities.incomplete(CACHE)

    def _event(self, source: int, change: CacheChange) -> CacheReplicated:
        name, node_id = self._around.cluster_name, str(source)
        collection, key = printable(change.collection), printable(change.key)
        if isinstance(change, CacheRemove):
            return CacheReplicated(name, node_id, "remove", collection, key)
        return CacheReplicated(name, node_id, "insert", collection, key, change.value, change.ttl)


def _size_of(key: str, value: bytes) -> int:
    return len(key) + len(value)


class Step(Protocol):
    """Lets the node do something at the time that it is now, and see to what follows."""

    def __call__(self, action: Callable[[], T], /) -> T: ...


class CacheView(Mapping[str, bytes]):
    """One collection, live: reading is local, writing goes to every node of the cluster.

    A write is seen here at once. Nobody acknowledges it: OpenSIPS has no answers for it, and where
    two nodes write one key at the same time they may end up with different values.
    """

    def __init__(self, cache: Cache, collection: str, step: Step) -> None:
        """Look at a collection.

        Raises:
            ConfigError: It is not kept.
        """
        cache.keys(collection)
        self._cache = cache
        self._collection = collection
        self._step = step

    @property
    def is_synced(self) -> bool:
        """Whether a node has given us what was there before us."""
        return self._cache.is_synced

    def __getitem__(self, key: str) -> bytes:
        value = self._step(lambda: self._cache.get(self._collection, key))
        if value is None:
            raise KeyError(key)
        return value

    def _keys(self) -> list[str]:
        return self._step(lambda: self._cache.keys(self._collection))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def ttl(self, key: str) -> int | None:
        """Return the seconds that an entry has left, 0 for ever; None when there is none."""
        return self._step(lambda: self._cache.ttl(self._collection, key))

    def set(self, key: str, value: bytes | str, *, ttl: int = 0) -> int:
        """Store an entry for `ttl` seconds, 0 for ever; see `Cache.insert`."""
        data = value.encode() if isinstance(value, str) else value
        return self._step(lambda: self._cache.insert(self._collection, key, data, ttl))

    def delete(self, key: str) -> int:
        """Remove an entry; see `Cache.remove`."""
        return self._step(lambda: self._cache.remove(self._collection, key))
