"""`channel:NAME[@CLUSTER]`: events as messages on a channel of the mesh.

Specified in docs/events.md, "channel:".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import trio

from clusternode.backends.base import BATCH_MAX, BackendServices, Publication, wrong_uri
from clusternode.backends.options import Option, query_of, read_options
from clusternode.bus.interface import Bus, Delivery
from clusternode.config.kinds import STRING, choice
from clusternode.core.types import NodeId, ResultCode, is_name
from clusternode.errors import ClusternodeError, PeerUnreachable
from clusternode.routes.contexts import JSON_CONTENT_TYPE
from clusternode.routes.subscriptions import DeliveryStatus

OPTIONS = (
    Option(
        name="node",
        kind=STRING,
        default="",
        help="Send to this node only; empty: broadcast to every other member.",
    ),
    Option(
        name="need",
        kind=choice("any", "all"),
        default="any",
        help="any: delivered when one member has handled it. all: when every one has.",
    ),
)
TAKEN = (ResultCode.OK, ResultCode.QUEUED)


class ChannelBackend:
    """Sends events over the mesh; the status is what their results say."""

    scheme: ClassVar[str] = "channel"
    batch_max = BATCH_MAX
    publish_timeout = 5.0
    """It hands over and returns; results come within `result_timeout` of the cluster."""

    def __init__(self, rest: str, services: BackendServices) -> None:
        body, values = read_options("channel", rest, OPTIONS)
        name, at, cluster = body.partition("@")
        if not is_name(name) or (at and not cluster):
            expected = "channel:NAME[@CLUSTER], NAME 1 to 64 of the characters A-Z a-z 0-9 . _ : -"
            raise wrong_uri(f"channel:{body}", expected)
        if cluster and services.buses and cluster not in services.buses:
            known = ", ".join(services.buses)
            raise wrong_uri(f"channel:{body}", f"a cluster of this agent: {known}")
        self.identity = self.shown = f"channel:{body}{query_of(OPTIONS, values, None)}"
        self._channel = name
        self._cluster = cluster
        self._node = str(values["node"])
        self._needs_all = values["need"] == "all"
        self._buses = services.buses

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Send a batch; its results come later.

        Raises:
            PeerUnreachable: This agent is not in that cluster.
        """
        await trio.lowlevel.checkpoint()
        bus = self._bus()
        for publication in publications:
            try:
                delivery = self._send(bus, publication.notification)
            except ClusternodeError as error:
                publication.fail(str(error))
                continue
            if delivery.is_complete:
                self._settle(publication, delivery)
            else:
                delivery.on_result = functools.partial(self._result, publication, delivery)

    def _bus(self) -> Bus:
        name = self._cluster or next(iter(self._buses), "")
        if name not in self._buses:
            raise PeerUnreachable(f"this agent is in no cluster {name!r}")
        return self._buses[name]

    def _send(self, bus: Bus, body: bytes) -> Delivery:
        if self._node:
            return bus.send(self._channel, self._node, body, content_type=JSON_CONTENT_TYPE)
        return bus.broadcast(self._channel, body, content_type=JSON_CONTENT_TYPE)

    def _result(
        self, publication: Publication, delivery: Delivery, node_id: NodeId, code: ResultCode
    ) -> None:
        del node_id, code
        if delivery.is_complete:
            self._settle(publication, delivery)

    def _settle(self, publication: Publication, delivery: Delivery) -> None:
        results = delivery.results
        taken = [node_id for node_id, code in results.items() if code in TAKEN]
        refused = {node_id: code for node_id, code in results.items() if code not in TAKEN}
        if taken and not (self._needs_all and refused):
            publication.settle(DeliveryStatus(True, ", ".join(taken)))
            return
        reason = ", ".join(f"{node_id}: {int(code)}" for node_id, code in refused.items())
        may_have = taken or any(not code.definite for code in refused.values())
        publication.fail(reason or "there is no other member", definite=not may_have)
