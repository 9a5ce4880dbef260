"""The routes of an agent under load: it sends numbered messages, and writes down what became of
them, and every message that it handles. Read by `journals.py`.

A message on the channel `go` begins: `{"messages": …, "window": …}`. The journal is a file beside
this one, named after the node and the process. One line each:

- `H origin life channel number right` for a message handled (`right`: 1 if its checksum is);
  written before the handler ends, so that a process that is killed has not handled more;
- `R channel number node=code …` for a message with all its final results;
- `E sent` when all have theirs.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import trio

from clusternode import routes
from clusternode.bus.interface import Bus, Delivery

CHANNELS = ("load.a", "load.b", "load.c")
PADDING_MAX = 600
LARGE_SHARE, LARGE_SIZE = 0.001, 100_000
UNICAST_SHARE = 0.3
PAUSE = 0.05
"""After a message that did not arrive: who cannot be reached is not flooded with attempts."""

journal = -1
life = os.getpid()


def write(line: str) -> None:
    os.write(journal, line.encode())


@routes.on_start
def begin(context: routes.AgentContext) -> None:
    global journal
    path = Path(__file__).parent / f"{context.bus.node_id}-{life}.journal"
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def handle(message: routes.IncomingMessage) -> None:
    head, _, digest = message.body.rpartition(b" ")
    right = hashlib.sha256(head).hexdigest().encode() == digest
    sender, number = head.split(b" ", 2)[:2]
    write(f"H {message.origin} {sender.decode()} {message.channel} {number.decode()} {right:d}\n")


for channel in CHANNELS:
    routes.message(channel)(handle)


@routes.message("go")
def go(message: routes.IncomingMessage) -> None:
    order = message.json()
    message.start_soon(send_all, message.bus, order["messages"], order["window"])


async def send_all(bus: Bus, messages: int, window: int) -> None:
    """Send so many messages, at most `window` of them without their results."""
    rng = random.Random(f"{bus.node_id} {life}")
    others = [member.node_id for member in bus.members() if not member.local]
    room = trio.Semaphore(window)
    for number in range(1, messages + 1):
        await room.acquire()
        sent = Sent(CHANNELS[number % len(CHANNELS)], number, room)
        body = body_of(number, rng)
        if rng.random() < UNICAST_SHARE:
            sent.begin(bus.send(sent.channel, rng.choice(others), body, on_result=sent.settled))
        else:
            sent.begin(bus.broadcast(sent.channel, body, on_result=sent.settled))
        if not sent.is_good:
            await trio.sleep(PAUSE)
    for _ in range(window):
        await room.acquire()
    write(f"E {messages}\n")


def body_of(number: int, rng: random.Random) -> bytes:
    size = LARGE_SIZE if rng.random() < LARGE_SHARE else rng.randrange(PADDING_MAX)
    head = b"%d %d %s" % (life, number, rng.randbytes(size).hex().encode())
    return head + b" " + hashlib.sha256(head).hexdigest().encode()


class Sent:
    """One message on its way; writes its line when the last result is there."""

    def __init__(self, channel: str, number: int, room: trio.Semaphore) -> None:
        self.channel = channel
        self.number = number
        self.is_good = True
        self._room = room
        self._delivery: Delivery | None = None
        self._results: list[str] = []

    def begin(self, delivery: Delivery) -> None:
        """Take the delivery; some of its results, or all, may be there already."""
        self._delivery = delivery
        self._end_if_complete()

    def settled(self, node_id: str, code: int) -> None:
        self.is_good = self.is_good and code == 200
        self._results.append(f"{node_id}={int(code)}")
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self._delivery is not None and self._delivery.is_complete:
            write(f"R {self.channel} {self.number} {' '.join(self._results)}\n")
            self._room.release()
