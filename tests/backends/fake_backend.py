"""A back end by the name `fake:NAME` that does what the test says, and remembers what it got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import trio

from clusternode.backends.base import BackendServices, Publication
from clusternode.backends.registry import Registry
from clusternode.errors import PeerUnreachable
from clusternode.routes.subscriptions import DeliveryStatus


class FakeBackend:
    scheme: ClassVar[str] = "fake"
    batch_max = 4
    publish_timeout = 5.0

    def __init__(self, name: str) -> None:
        self.identity = self.shown = f"fake:{name}"
        self.mode = "ok"
        """ok, refuse, hang, crash, raise, late (kept in `held`), or partly (one, then refuse)."""
        self.got: list[int] = []
        self.tries = 0
        self.held: list[Publication] = []
        self.runs = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.runs += 1
        task_status.started()
        await trio.sleep_forever()

    async def publish(self, publications: Sequence[Publication]) -> None:
        self.tries += 1
        await trio.lowlevel.checkpoint()
        if self.mode == "refuse":
            raise PeerUnreachable("refused")
        if self.mode == "crash":
            raise ZeroDivisionError("a bug")
        if self.mode == "hang":
            await trio.sleep_forever()
        for publication in publications:
            if self.mode == "late":
                self.held.append(publication)
                continue
            self.got.append(next(iter(publication.event.parameters.values())))
            publication.settle(DeliveryStatus(True, "here"))
            if self.mode == "partly":
                raise PeerUnreachable("refused in the middle")


class Fakes(dict[str, FakeBackend]):
    """Name → the back end of that name; one for ever, so that a test can hold it."""

    def __missing__(self, name: str) -> FakeBackend:
        self[name] = FakeBackend(name)
        return self[name]

    def make(self, rest: str, services: BackendServices) -> FakeBackend:
        return self[rest]

    def registry(self) -> Registry:
        return Registry({"fake": self.make})
