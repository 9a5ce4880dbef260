"""Event routes: what a user's `routes.py` imports. Specified in docs/scripting.md.

`from clusternode import routes`, then `@routes.message("fraud")` and its sisters. The machinery
behind them is in the modules of this package: `table`, `loader`, `dispatcher`, `runner`, `events`.
"""

from __future__ import annotations

from clusternode.routes.api import (
    cluster,
    declare_event,
    event,
    kafka,
    message,
    on_joined,
    on_start,
    on_stop,
    request,
    subscribe_event,
)
from clusternode.routes.contexts import (
    AgentContext,
    Hold,
    IncomingEvent,
    IncomingMessage,
    IncomingRequest,
)
from clusternode.routes.table import Refuse

__all__ = [
    "AgentContext",
    "Hold",
    "IncomingEvent",
    "IncomingMessage",
    "IncomingRequest",
    "Refuse",
    "cluster",
    "declare_event",
    "event",
    "kafka",
    "message",
    "on_joined",
    "on_start",
    "on_stop",
    "request",
    "subscribe_event",
]
