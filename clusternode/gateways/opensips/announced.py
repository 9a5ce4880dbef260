"""Which node has announced which capability, in which state."""

from __future__ import annotations

from clusternode.gateways.opensips.messages import CapabilityUpdate, NodeCapabilities


class AnnouncedTable:
    """Capabilities by node: ours, and what the others say."""

    def __init__(self, own_id: int) -> None:
        self.ours: dict[str, bool] = {}
        self._own_id = own_id
        self._theirs: dict[int, dict[str, bool]] = {}

    def state(self, node_id: int, name: str) -> bool | None:
        known = self.ours if node_id == self._own_id else self._theirs.get(node_id, {})
        return known.get(name)

    def all(self) -> tuple[NodeCapabilities, ...]:
        rows = [(self._own_id, self.ours), *self._theirs.items()]
        return tuple(NodeCapabilities(node, tuple(known.items())) for node, known in rows if known)

    def received(self, packet: CapabilityUpdate) -> None:
        for row in packet.nodes:
            if row.node_id != self._own_id:
                self._theirs.setdefault(row.node_id, {}).update(row.capabilities)

    def forget(self, node_id: int) -> None:
        self._theirs.pop(node_id, None)
