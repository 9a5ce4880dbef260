"""Addresses that may be dialled: what is known of each, and what is going on with it."""

from __future__ import annotations

import enum

import attrs

from clusternode.core.types import Address, Instant, NodeId


class TargetState(enum.Enum):
    """What is going on with one address."""

    WAITING = "waiting"
    DIALING = "dialing"
    CONNECTED = "connected"
    """The node behind it is connected, over this or another address."""
    SELF = "self"
    """We have found ourselves there."""


@attrs.define(eq=False)
class Target:
    """One address that may be dialled."""

    address: Address
    heard_at: Instant
    state: TargetState = TargetState.WAITING
    node_id: NodeId | None = None
    """Who was found there, or who says that it is there."""
    failures: int = 0
    error: str = ""
    is_added: bool = False
    """Whether an operator asked for it to be dialled."""
    is_proven: bool = False
    """Whether a node was ever connected there."""
    is_queued: bool = False
    """Whether it is due, but waits in line: `dials_per_second` are used up."""
    names: tuple[Address, ...] = ()
    """The notification addresses that it stands for; dialled for ever if there are any."""
