"""The real oslo.messaging in a process of its own: a notifier, a listener, or its URL parser.

`oslo_peer.py notify URL COUNT`, `listen URL POOL COUNT`, `urls` (lines of JSON on stdin).
"""

from __future__ import annotations

import json
import sys
import threading
import warnings

warnings.simplefilter("ignore")

import oslo_messaging  # noqa: E402  # after the warnings of its dependencies were switched off
from oslo_config import cfg  # noqa: E402

PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")


def settings() -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    conf([])
    return conf


class Context:
    """What a notification may know of a request; a plain dict is discarded by oslo."""

    def redacted_copy(self) -> dict[str, str]:
        return {"user": "alice"}


def notify(url: str, count: str) -> None:
    transport = oslo_messaging.get_notification_transport(settings(), url=url)
    notifier = oslo_messaging.Notifier(
        transport, publisher_id="oslo.host", driver="messagingv2", topics=["notifications"]
    )
    for number in range(int(count)):
        for priority in PRIORITIES:
            getattr(notifier, priority)(
                Context(), f"call.{priority}", {"number": number, "text": "héllo"}
            )
    transport.cleanup()


class Endpoint:
    """Prints everything that it gets as lines of JSON."""

    def __init__(self, done: threading.Event, count: int) -> None:
        self.done, self.count, self.seen = done, count, 0

    def __getattr__(self, name: str):
        if name not in PRIORITIES:
            raise AttributeError(name)

        def take(ctxt, publisher_id, event_type, payload, metadata) -> None:
            row = [name, ctxt, publisher_id, event_type, payload, sorted(metadata)]
            sys.stdout.write(json.dumps(row) + "\n")  # in one piece: there are several threads
            sys.stdout.flush()
            self.seen += 1
            if self.seen >= self.count:
                self.done.set()

        return take


def listen(url: str, pool: str, count: str) -> None:
    transport = oslo_messaging.get_notification_transport(settings(), url=url)
    done = threading.Event()
    listener = oslo_messaging.get_notification_listener(
        transport,
        [oslo_messaging.Target(topic="notifications")],
        [Endpoint(done, int(count))],
        executor="threading",
        pool=pool,
    )
    listener.start()
    print("started", flush=True)
    done.wait(12)
    listener.stop()
    listener.wait()


def urls() -> None:
    for line in sys.stdin:
        try:
            url = oslo_messaging.TransportURL.parse(settings(), json.loads(line))
        except (ValueError, oslo_messaging.InvalidTransportURL):
            print("null", flush=True)
            continue
        hosts = [[host.hostname, host.port, host.username, host.password] for host in url.hosts]
        print(json.dumps([url.transport, url.virtual_host, hosts, url.query]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "notify":
        notify(*sys.argv[2:])
    elif sys.argv[1] == "listen":
        listen(*sys.argv[2:])
    else:
        urls()
