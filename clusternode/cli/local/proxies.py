"""The Kamailios of `clusternode demo --bridge`: real ones where Kamailio is installed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import trio

from clusternode.core.types import Seconds
from clusternode.gateways.kamailio.replication import Contact
from clusternode.testing.kamailio import LocalKamailio
from clusternode.testing.real_kamailio import Kamailio, UserAgent, program

CONFIG = Path(__file__).with_name("bridge_kamailio.cfg")
FRAUD, LOCATE, LOCATE_REPLY = "fraud", "locate", "locate-reply"
TABLE = "ban"
REQUEST_TYPE = "text/x-clusternode-request"
START_TIMEOUT: Seconds = 15.0
ANSWER_TIMEOUT: Seconds = 8.0
LOOK_INTERVAL: Seconds = 0.05


class Proxy(Protocol):
    """A Kamailio that finds attackers, registers users, and asks where others are."""

    @property
    def host(self) -> str: ...
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run it until cancelled; started when it answers."""
        ...

    async def sees(self, hosts: Sequence[str]) -> bool:
        """Tell whether these nodes of the bus are active for it."""
        ...

    async def found_attacker(self, address: str) -> None: ...
    async def set_cell(self, key: str) -> None:
        """$sht(ban=>key) = 1."""
        ...

    async def has_cell(self, key: str) -> bool: ...
    async def register(self, user: str, contact: str) -> None: ...
    async def knows(self, user: str) -> bool:
        """Tell whether the user is in its location table."""
        ...

    async def ask(self, user: str) -> str:
        """Ask everyone where a user is; return the first answer, empty where none came."""
        ...


def make_proxies(hosts: Sequence[str], directory: Path) -> tuple[list[Proxy], str]:
    """Return a Kamailio for each host, the first of which is the way in, and what they are."""
    seeds = [None, *[hosts[0]] * (len(hosts) - 1)]
    pairs = list(zip(hosts, seeds, strict=True))
    if program() is None:
        return [SimulatedProxy(host, seed) for host, seed in pairs], "simulated Kamailios"
    return [RealProxy(host, seed, directory / host) for host, seed in pairs], "real Kamailios"


class SimulatedProxy:
    """A simulated Kamailio, whose script is `_answer`."""

    def __init__(self, host: str, seed: str | None) -> None:
        self.host = host
        self.kamailio = LocalKamailio(host, seed, script=self._answer)
        self._told: dict[str, str] = {}  # tag → answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.kamailio.run(task_status=task_status)

    async def sees(self, hosts: Sequence[str]) -> bool:
        await trio.lowlevel.checkpoint()
        statuses = self.kamailio.statuses
        return all(statuses.get(host) == "active" for host in hosts if host != self.host)

    async def found_attacker(self, address: str) -> None:
        await trio.lowlevel.checkpoint()
        self.kamailio.broadcast(FRAUD, address.encode())

    async def set_cell(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.kamailio.set(TABLE, key, 1)

    async def has_cell(self, key: str) -> bool:
        await trio.lowlevel.checkpoint()
        return key in self.kamailio.table

    async def register(self, user: str, contact: str) -> None:
        await trio.lowlevel.checkpoint()
        fields = {"aor": user, "ruid": f"uloc-{user}", "c": contact, "callid": f"{user}-1"}
        self.kamailio.register(Contact("update", {**fields, "expires": 0, "cseq": 1}))

    async def knows(self, user: str) -> bool:
        await trio.lowlevel.checkpoint()
        return user in self.kamailio.contacts

    async def ask(self, user: str) -> str:
        tag = secrets.token_hex(4)
        body = f"{tag} {LOCATE_REPLY}\n{user}".encode()
        self.kamailio.broadcast(LOCATE, body, REQUEST_TYPE)
        with trio.move_on_after(ANSWER_TIMEOUT):
            while tag not in self._told:  # noqa: ASYNC110  # a datagram tells nobody
                await trio.sleep(LOOK_INTERVAL)
        return self._told.get(tag, "")

    def _answer(self, channel: str, body: bytes) -> tuple[int, str]:
        text = body.decode("utf-8", "replace")
        if channel == FRAUD:
            return 200, "OK"
        if channel == LOCATE:
            found = self.kamailio.contacts.get(text)
            return (404, "Not Here") if found is None else (202, f"here: {text} is at {found}")
        if channel == LOCATE_REPLY:
            first, _, answer = text.partition("\n")
            self._told[first.partition(" ")[0]] = answer
            return 200, "OK"
        return 404, "User Not Found"


class RealProxy:
    """A real Kamailio with the configuration of the demo, driven by SIP requests."""

    def __init__(self, host: str, seed: str | None, directory: Path) -> None:
        self.host = host
        own_seed = "" if seed is None else f"sip:{seed}:5060"
        self.kamailio = Kamailio(host, directory, own_seed, text=CONFIG.read_text())
        self._agent = UserAgent()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.kamailio.start()
        try:
            with self._agent.socket:
                await self._agent.socket.bind((self._agent.own, 0))
                with trio.fail_after(START_TIMEOUT):
                    while not await trio.to_thread.run_sync(self._is_up):  # noqa: ASYNC110
                        await trio.sleep(LOOK_INTERVAL)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.kamailio.kill()

    def _is_up(self) -> bool:
        try:
            self.kamailio.rpc("core.version", timeout=0.5)
        except OSError:
            return False
        return True

    async def sees(self, hosts: Sequence[str]) -> bool:
        statuses = await trio.to_thread.run_sync(self.kamailio.nodes)
        return all(statuses.get(host) == "active" for host in hosts)

    async def found_attacker(self, address: str) -> None:
        await self._agent.send("MESSAGE", FRAUD, self.kamailio, address.encode())

    async def set_cell(self, key: str) -> None:
        await self._agent.send("MESSAGE", TABLE, self.kamailio, key.encode())

    async def has_cell(self, key: str) -> bool:
        return await trio.to_thread.run_sync(self.kamailio.cell, TABLE, key) is not None

    async def register(self, user: str, contact: str) -> None:
        headers = {"Contact": f"<{contact}>", "Expires": "600"}
        await self._agent.send("REGISTER", user, self.kamailio, from_user=user, headers=headers)

    async def knows(self, user: str) -> bool:
        def look() -> bool:
            return "Contacts" in str(self.kamailio.rpc("ul.lookup", "location", user))

        return await trio.to_thread.run_sync(look)

    async def ask(self, user: str) -> str:
        tag = secrets.token_hex(4)
        await self._agent.send(
            "MESSAGE", "ask", self.kamailio, user.encode(), headers={"X-Tag": tag}
        )
        with trio.move_on_after(ANSWER_TIMEOUT):
            while True:
                told = await trio.to_thread.run_sync(self.kamailio.cell, "told", tag)
                if told is not None:
                    return str(told)
                await trio.sleep(LOOK_INTERVAL)
        return ""
