"""What a gateway is: a small node that speaks another wire, and a `Bus` for everybody here.

A gateway is found by an entry point of the group `clusternode.gateways`, which names a `Plugin`.
Its settings are the table `[gateway.NAME]`. See docs/architecture.md, "Plugging in".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
import trio

from clusternode.bus.interface import Bus
from clusternode.config.keys import Section
from clusternode.config.raw import RawTable
from clusternode.runtime.resolver import Resolver


class Gateway(Protocol):
    """A node of a foreign cluster while the agent runs."""

    @property
    def bus(self) -> Bus:
        """What routes, control and command line see; its name is the gateway's."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled; started when the sockets are bound.

        Raises:
            AddressInUse: Something else has the socket.
            ConfigError: The settings cannot be used on this host.
        """
        ...

    async def leave(self) -> None:
        """Tell the others that we go. The caller limits the time and then cancels `run`."""
        ...


@attrs.frozen
class Plugin:
    """What an entry point names."""

    section: Section
    """The keys of `[gateway.NAME]`, for the reference."""
    read: Callable[[RawTable], Any]
    """Makes the settings; raises `ConfigError`."""
    make: Callable[[str, Any, Resolver], Gateway]
    """Makes the gateway of a name and its settings, without I/O."""
