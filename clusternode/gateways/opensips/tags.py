"""Sharing tags: on which node a name is active, so that one node of several does a job; sans-IO.

As in OpenSIPS there is no election: who activates a tag says so to each node, and the others go to
backup. A node that comes up is told as well. Both sides of a partition may have taken a tag; after
it, delays see to it that one of them stays active, where two OpenSIPS that tell each other at the
same time both go to backup. Written down in docs/gateway-opensips.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from clusternode.core.events import SharingTagChanged
from clusternode.core.types import Instant, Seconds
from clusternode.errors import ConfigError
from clusternode.gateways.opensips.fields import NAME_LENGTH_MAX, printable
from clusternode.gateways.opensips.messages import SharingTagActive
from clusternode.gateways.opensips.parts import Surroundings

TAGS_MAX: Final = 128
"""Tags that are kept, with those that only others have; OpenSIPS has no bound."""
FIRST_DELAY: Final[Seconds] = 0.5
"""Before a node that comes up is told what it has not heard. An OpenSIPS tells us at once; if both
of us did, both would go to backup."""
AGAIN_DELAY: Final[Seconds] = 2.0
"""Before a node that returns is told what it has heard before: who has taken the tag while the two
were apart comes first."""
HIGHER_DELAY: Final[Seconds] = 0.5
"""How much longer the node with the higher id of the two waits, so that two of ours never cross."""
ROOM_PAUSE: Final[Seconds] = 0.5
"""Until an announcement is tried again for which there was no room."""

COUNTERS: Final[tuple[str, ...]] = ("sharing_tags_refused",)

ACTIVE, BACKUP = "active", "backup"


@attrs.define
class _Tag:
    is_active: bool = False
    holder: int | None = None
    """Who said last that it is active there; None when nobody did."""
    told: dict[int, None] = attrs.Factory(dict)
    """Nodes that our announcement was sent to."""
    due: dict[int, Instant] = attrs.Factory(dict)
    """Node → when it is to be told."""

    def back_up(self) -> None:
        self.is_active = False
        self.told.clear()
        self.due.clear()


@attrs.frozen
class SharingTag:
    """One tag as it is shown."""

    name: str
    is_active: bool
    """Here."""
    holder: int | None
    """The node that said last that it has it; None when nobody did."""


class SharingTags:
    """All tags that we know, and whom we still have to tell."""

    def __init__(self, around: Surroundings, tags: Mapping[str, bool]) -> None:
        self._around = around
        self._tags = {name: _Tag() for name in tags}
        self._active_at_start = [name for name, is_active in tags.items() if is_active]

    def start(self) -> None:
        """Take the tags that the configuration makes active here."""
        for name in self._active_at_start:
            self.activate(name, "startup")

    def all(self) -> tuple[SharingTag, ...]:
        """Return every tag by name."""
        return tuple(
            SharingTag(name, tag.is_active, tag.holder) for name, tag in sorted(self._tags.items())
        )

    def is_active(self, name: str) -> bool:
        tag = self._tags.get(name)
        return tag is not None and tag.is_active

    def activate(self, name: str, reason: str) -> None:
        """Take a tag, and say so to each node.

        Raises:
            ConfigError: The name is empty or too long, or there are too many.
        """
        tag = self._find(name)
        was_active, tag.is_active = tag.is_active, True
        tag.holder = self._around.node_id
        tag.told.clear()
        tag.due = dict.fromkeys(self._around.others(), self._around.now)
        if not was_active:
            self._raise(name, ACTIVE, reason)
        self.tick()

    def back_up(self, name: str, reason: str) -> None:
        """Give a tag up. Nobody is told: the protocol has only the word for taking one.

        Raises:
            ConfigError: The name is empty or too long, or there are too many.
        """
        tag = self._find(name)
        was_active = tag.is_active
        tag.back_up()
        if was_active:
            tag.holder = None
            self._raise(name, BACKUP, reason)

    def received(self, packet: SharingTagActive) -> None:
        """Take note that a tag is active at another node, and go to backup."""
        source = packet.trailer.source
        if source == self._around.node_id:
            self._around.count("sharing_tags_refused")
            return
        try:
            tag = self._find(packet.tag)
        except ConfigError:
            self._around.count("sharing_tags_refused")
            return
        was_active = tag.is_active
        tag.back_up()
        tag.holder = source
        if was_active:
            self._raise(packet.tag, BACKUP, f"cluster broadcast from {source}")

    def node_up(self, node_id: int) -> None:
        """Tell a node soon what it has not heard, and later what it has."""
        now = self._around.now
        if self._around.node_id > node_id:
            now += HIGHER_DELAY
        for tag in self._tags.values():
            if tag.is_active:
                tag.due[node_id] = now + (AGAIN_DELAY if node_id in tag.told else FIRST_DELAY)

    def node_down(self, node_id: int) -> None:
        """Wait until the node is back."""
        for tag in self._tags.values():
            tag.due.pop(node_id, None)

    def forget(self, node_id: int) -> None:
        """Forget a node that was removed."""
        for tag in self._tags.values():
            tag.due.pop(node_id, None)
            tag.told.pop(node_id, None)
            if tag.holder == node_id:
                tag.holder = None

    def tick(self) -> None:
        """Tell those whose time has come; those that cannot be reached when they come up."""
        now = self._around.now
        for name, tag in self._tags.items():
            for node_id, due in [*tag.due.items()]:
                if due > now:
                    continue
                if not self._around.is_reachable(node_id):
                    del tag.due[node_id]
                elif self._around.send(SharingTagActive(self._around.trailer(node_id), name)):
                    del tag.due[node_id]
                    tag.told[node_id] = None
                else:
                    tag.due[node_id] = now + ROOM_PAUSE

    def next_deadline(self) -> Instant | None:
        return min((due for tag in self._tags.values() for due in tag.due.values()), default=None)

    def _find(self, name: str) -> _Tag:
        tag = self._tags.get(name)
        if tag is not None:
            return tag
        if not 1 <= len(name.encode("utf-8", "surrogateescape")) <= NAME_LENGTH_MAX:
            raise ConfigError("tag", name[:64], f"1 to {NAME_LENGTH_MAX} bytes")
        if len(self._tags) >= TAGS_MAX:
            raise ConfigError("tag", name[:64], f"at most {TAGS_MAX} tags")
        return self._tags.setdefault(name, _Tag())

    def _raise(self, name: str, state: str, reason: str) -> None:
        cluster = self._around.cluster_name
        self._around.raise_event(SharingTagChanged(printable(name), cluster, state, reason))
