"""Sharing tags of one simulated OpenSIPS: active on at most one node by convention, no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs


@attrs.define
class Tag:
    """A tag of our cluster."""

    is_active: bool = False
    is_unsaid: bool = False
    """Whether somebody may not have been told that it is active here."""
    told: list[int] = attrs.Factory(list)


class Tags:
    """All tags. A restarted node that was told before it restarted is not told again."""

    def __init__(
        self, send: Callable[[str, int], bool], changed: Callable[[str, bool, str], None]
    ) -> None:
        self.said_by: dict[str, int] = {}
        """Tag → the node that last announced it."""
        self._tags: dict[str, Tag] = {}
        self._send = send
        self._changed = changed

    @property
    def active(self) -> list[str]:
        return [name for name, tag in self._tags.items() if tag.is_active]

    def configure(self, name: str, *, is_active: bool) -> None:
        """Do what modparam sharing_tag does: an active one is announced to whoever comes up."""
        self._tags[name] = Tag(is_active=is_active, is_unsaid=is_active)

    def activate(self, name: str, node_ids: Iterable[int], reason: str) -> None:
        tag = self._tags.setdefault(name, Tag())
        was_active, tag.is_active = tag.is_active, True
        had_to_tell = tag.is_unsaid
        for node_id in node_ids:
            if had_to_tell and node_id in tag.told:
                continue
            if self._send(name, node_id):
                tag.told.append(node_id)
            else:
                tag.is_unsaid = True
        if not was_active:
            self._changed(name, True, reason)

    def active_elsewhere(self, name: str, source: int) -> None:
        """Take SHTAG_ACTIVE: go to backup and forget whom we wanted to tell."""
        tag = self._tags.setdefault(name, Tag())
        was_active = tag.is_active
        self.said_by[name] = source
        self._tags[name] = Tag()
        if was_active:
            self._changed(name, False, f"cluster broadcast from {source}")

    def reached(self, node_id: int) -> None:
        for name, tag in self._tags.items():
            if tag.is_unsaid and node_id not in tag.told and self._send(name, node_id):
                tag.told.append(node_id)
