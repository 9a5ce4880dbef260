"""What an operator may ask of this node: OpenSIPS's MI commands of module clusterer, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from clusternode.bus.interface import Operation
from clusternode.errors import ConfigError
from clusternode.gateways.opensips.node import OpenSipsNode
from clusternode.gateways.opensips.tags import ACTIVE, BACKUP
from clusternode.gateways.opensips.views import link_name

Arguments = Sequence[str]


@attrs.frozen
class _Handler:
    operation: Operation
    counts: range
    """How many arguments it takes."""
    perform: Callable[[OpenSipsNode, Arguments], object]


def names() -> Sequence[Operation]:
    return [handler.operation for handler in _HANDLERS.values()]


def perform(node: OpenSipsNode, name: str, arguments: Arguments) -> object:
    """Carry an operation out and return what it says, as JSON values.

    Raises:
        ConfigError: There is no such operation, or an argument is wrong.
        BodyTooLarge, LocalProtocolError: A command cannot be written.
    """
    handler = _HANDLERS.get(name)
    if handler is None:
        raise ConfigError("command", name, "one of " + ", ".join(_HANDLERS))
    if len(arguments) not in handler.counts:
        expected = f"{name} {handler.operation.parameters}".rstrip()
        raise ConfigError("arguments", " ".join(arguments), expected)
    return handler.perform(node, arguments)


def _list(node: OpenSipsNode, arguments: Arguments) -> object:
    del arguments
    topology, links = node.membership.topology, node.membership.links
    rows = []
    for other in sorted(topology, key=lambda each: each.node_id):
        link = links.get(other.node_id)
        hop = topology.hops.get(other.node_id)
        rows.append(
            {
                "node_id": other.node_id,
                "url": str(other.url),
                "state": "Enabled" if other.is_enabled else "Disabled",
                "link_state": "Down" if link is None else link_name(link.state),
                "next_hop": "none" if hop is None else str(hop),
                "sip_addr": other.description.sip_addr,
                "priority": other.description.priority,
            }
        )
    return rows


def _list_topology(node: OpenSipsNode, arguments: Arguments) -> object:
    del arguments
    topology = node.membership.topology
    rows = {node.node_id: topology.neighbours}
    rows.update((other.node_id, other.neighbours) for other in topology)
    return [{"node_id": key, "neighbours": sorted(rows[key])} for key in sorted(rows)]


def _list_cap(node: OpenSipsNode, arguments: Arguments) -> object:
    del arguments
    return [
        {
            "node_id": row.node_id,
            "capabilities": [
                {"name": name, "state": "Ok" if is_synced else "not synced"}
                for name, is_synced in row.capabilities
            ],
        }
        for row in node.capabilities.all()
    ]


def _list_shtags(node: OpenSipsNode, arguments: Arguments) -> object:
    del arguments
    return [
        {
            "tag": tag.name,
            "state": ACTIVE if tag.is_active else BACKUP,
            "holder": "" if tag.holder is None else str(tag.holder),
        }
        for tag in node.tags.all()
    ]


def _set_active(node: OpenSipsNode, arguments: Arguments) -> object:
    name = _tag_name(node, arguments[0])
    node.tags.activate(name, "MI command")
    return {"tag": name, "state": ACTIVE}


def _set_backup(node: OpenSipsNode, arguments: Arguments) -> object:
    name = _tag_name(node, arguments[0])
    node.tags.back_up(name, "MI command")
    return {"tag": name, "state": BACKUP}


def _tag_name(node: OpenSipsNode, text: str) -> str:
    """Return a tag without `/CLUSTER`, which OpenSIPS wants and which can only be ours."""
    return text.removesuffix(f"/{node.context.cluster_id}")


def _set_cap_status(node: OpenSipsNode, arguments: Arguments) -> object:
    name, is_enabled = arguments[0], _flag(arguments[1])
    node.capabilities.set_enabled(name, is_enabled)
    return {"capability": name, "enabled": is_enabled}


def _cap_sync(node: OpenSipsNode, arguments: Arguments) -> object:
    node.capabilities.resync(arguments[0])
    return {"capability": arguments[0], "sync": "begun"}


def _remove_node(node: OpenSipsNode, arguments: Arguments) -> object:
    node_id = _node_id(arguments[0])
    if not node.remove(node_id):
        raise ConfigError("node", arguments[0], "the id of another node")
    return {"removed": node_id}


def _set_status(node: OpenSipsNode, arguments: Arguments) -> object:
    node_id = _node_id(arguments[0]) if len(arguments) > 1 else node.node_id
    is_enabled = _flag(arguments[-1])
    if not node.membership.set_enabled(node_id, is_enabled=is_enabled):
        raise ConfigError("node", arguments[0], "the id of a node")
    return {"node_id": node_id, "state": "Enabled" if is_enabled else "Disabled"}


def _send_mi(node: OpenSipsNode, arguments: Arguments) -> object:
    node_id = _node_id(arguments[0])
    is_queued = node.commands.send(node_id, arguments[1], arguments[2:])
    return {"node_id": node_id, "queued": is_queued}


def _broadcast_mi(node: OpenSipsNode, arguments: Arguments) -> object:
    return {"queued": node.commands.broadcast(arguments[0], arguments[1:])}


def _node_id(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 2**31:
        raise ConfigError("node", text, "a node id")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ConfigError("status", text, "0 or 1")
    return text == "1"


PARAMETERS_MAX: Final = 22
"""A node, a command, and the twenty parameters that OpenSIPS takes."""

_Row = tuple[str, str, str, range, Callable[[OpenSipsNode, Arguments], object]]
_TABLE: Final[tuple[_Row, ...]] = (
    ("list", "", "Show the other nodes with their links.", range(1), _list),
    ("list_topology", "", "Show every node's neighbours.", range(1), _list_topology),
    ("list_cap", "", "Show every node's capabilities.", range(1), _list_cap),
    ("list_shtags", "", "Show the sharing tags.", range(1), _list_shtags),
    ("shtag_set_active", "TAG", "Take a sharing tag.", range(1, 2), _set_active),
    ("shtag_set_backup", "TAG", "Give a sharing tag up here.", range(1, 2), _set_backup),
    ("set_cap_status", "CAPABILITY 0|1", "Switch ours off or on.", range(2, 3), _set_cap_status),
    ("cap_sync", "CAPABILITY", "Ask for all its data again.", range(1, 2), _cap_sync),
    ("remove_node", "NODE", "Take a node out, everywhere.", range(1, 2), _remove_node),
    ("set_status", "[NODE] 0|1", "Disable or enable a node here, or us.", range(1, 3), _set_status),
    (
        "send_mi",
        "NODE COMMAND [PARAMETER…]",
        "Have a node run a command.",
        range(2, PARAMETERS_MAX + 1),
        _send_mi,
    ),
    (
        "broadcast_mi",
        "COMMAND [PARAMETER…]",
        "Have all others run a command.",
        range(1, PARAMETERS_MAX),
        _broadcast_mi,
    ),
)
_HANDLERS: Final[Mapping[str, _Handler]] = {
    name: _Handler(Operation(name, parameters, help_), counts, handler)
    for name, parameters, help_, counts, handler in _TABLE
}
