"""`clusternode run`: the agent itself, in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clusternode.cli.output import printable
from clusternode.cli.parsing import OK, Parsers, add_command, add_config_option

if TYPE_CHECKING:
    from clusternode.config import AgentSettings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "run",
        run=run,
        summary="run an agent in the foreground",
        text="Options win over the environment, the environment wins over the file. SIGTERM and\n"
        "Ctrl-C leave the clusters and end the agent. Log lines go to standard error.",
        examples="clusternode run -c node.toml\n"
        "clusternode run --node-id n1 --address tcp://127.0.0.1:5062\n"
        "clusternode run --node-id n2 --address tcp://127.0.0.1:5063 "
        "--notification-address tcp://127.0.0.1:5062",
    )
    add_config_option(parser)
    parser.add_argument("--node-id", metavar="NAME", help="name of this node; default: host name")
    parser.add_argument("--cluster", metavar="NAME", help="name of the cluster")
    parser.add_argument("--address", metavar="ADDRESS", help="what others dial: tcp://HOST:PORT")
    parser.add_argument("--listen", metavar="ADDRESS", help="what is bound; default: the address")
    parser.add_argument(
        "--notification-address",
        metavar="ADDRESS",
        action="append",
        help="address to ask for the cluster; may be given again",
    )
    parser.add_argument("--routes", metavar="FILE", type=Path, help="Python file with event routes")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="where members are kept")
    parser.add_argument(
        "--record", metavar="DIR", type=Path, help="write what the node is told, for `replay`"
    )
    parser.add_argument("--socket", metavar="PATH", type=Path, help="control socket")
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="allow to listen beyond loopback"
    )
    parser.add_argument(
        "--log-level", metavar="LEVEL", help="debug, info, warning or error; default info"
    )


def overrides_of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the settings that options give; their paths are relative to where one stands."""
    given = {
        "node.id": arguments.node_id,
        "cluster.name": arguments.cluster,
        "node.address": arguments.address,
        "node.listen": arguments.listen,
        "discovery.notification_addresses": arguments.notification_address,
        "routes.file": arguments.routes,
        "node.state_dir": arguments.state_dir,
        "node.record_dir": arguments.record,
        "node.control_socket": arguments.socket,
        "node.insecure": arguments.insecure,
        "log.level": arguments.log_level,
    }
    return {
        key: str(value.absolute()) if isinstance(value, Path) else value
        for key, value in given.items()
        if value is not None
    }


def run(arguments: argparse.Namespace) -> int:
    import trio  # start-up speed of the other commands

    from clusternode.agent import Agent  # as trio
    from clusternode.config import load_settings  # as trio
    from clusternode.runtime.exposure import advice  # as trio

    load = partial(
        load_settings,
        arguments.config,
        environ=dict(os.environ),
        overrides=overrides_of(arguments),
    )
    settings = load()
    logging.basicConfig(format=LOG_FORMAT, level=settings.log_level.upper())
    for line in (*root_advice(os.geteuid()), *advice(settings)):
        logging.getLogger(__name__).warning("%s", line)
    agent = Agent(settings, reload_settings=load, has_signals=True)
    announcement = Announcement(listening_line(settings))
    trio.run(partial(agent.run, task_status=announcement))
    return OK


def root_advice(user_id: int) -> tuple[str, ...]:
    """Return what to log about the user that the agent runs as."""
    if user_id != 0:
        return ()
    return (
        "running as root: whoever takes this agent over has the host; give it a user of its own"
        " (docs/security.md)",
    )


class Announcement:
    """Prints a line when the agent has started; stands where trio's `TaskStatus` would."""

    def __init__(self, line: str) -> None:
        self.line = line

    def started(self, value: object = None) -> None:
        del value
        print(printable(self.line), flush=True)


def listening_line(settings: AgentSettings) -> str:
    """Say who runs where, in one line."""
    clusters = ", ".join(
        f"{section.name} at {section.address}"
        + ("" if section.listen == section.address else f" (listening on {section.listen})")
        for section in settings.clusters.values()
    )
    return f"node {settings.node_id} runs: cluster {clusters}; control {settings.control_socket}"
