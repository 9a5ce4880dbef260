"""What the machine of every gateway can ask of its owner, whatever wire it speaks."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from clusternode.core.events import Event
from clusternode.core.types import DeliveryId, NodeId, RequestId, ResultCode


@attrs.define
class Raise:
    """Tell the observers."""

    event: Event


@attrs.define
class Destined:
    """The number of destinations of a delivery, before any result of it."""

    delivery: DeliveryId
    count: int


@attrs.define
class Settled:
    """The final result of one destination."""

    delivery: DeliveryId
    node_id: NodeId
    code: ResultCode


@attrs.define
class Asked:
    """The asked set of a request."""

    request: RequestId
    node_ids: Sequence[NodeId]
