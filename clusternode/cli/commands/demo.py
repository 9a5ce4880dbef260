"""`clusternode demo`: three agents on this machine, as a story that can be done again by hand."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from clusternode.cli.parsing import CLUSTER_SAID_NO, OK, Parsers, add_command

BY_HAND = """\
The same by hand:

  clusternode demo --write DIRECTORY     # the three configurations and the routes
  cd DIRECTORY
  clusternode run -c n1.toml &           # and n2.toml, n3.toml, in other terminals
  clusternode nodes list -c n1.toml
  clusternode watch -c n1.toml           # in a terminal of its own
  clusternode request locate "where is alice?" --include-self -c n1.toml
  clusternode broadcast fraud 192.0.2.66 -c n2.toml
  kill -9 PID                            # of n3; then: clusternode nodes list -c n1.toml
  clusternode run -c n3.toml &
  clusternode stop -c n1.toml            # and n2.toml, n3.toml"""


BRIDGE_BY_HAND = """\
The rules, and what each operator must know: docs/one-bus-from-three.md."""


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "demo",
        run=run,
        summary="show three agents that meet, talk, lose one, and part",
        text="Starts three agents on loopback in a temporary directory and ends by itself in less\n"
        "than 30 s. Status 1: something did not happen as it should.",
        examples="clusternode demo\nclusternode demo --bridge\nclusternode demo --write /tmp/demo",
    )
    parser.add_argument(
        "--bridge",
        action="store_true",
        help="show two agents that make one bus of three Kamailios, three OpenSIPS and Kafka; "
        "servers that are not installed are simulated",
    )
    parser.add_argument(
        "--write",
        metavar="DIRECTORY",
        type=Path,
        help="only write the configurations and the routes, to do the same by hand",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.write is not None:
        return _write(arguments.write)
    import trio

    from clusternode.cli.local.fleet import FleetError

    failed = False
    try:
        trio.run(_play_bridge if arguments.bridge else _play)
    except* KeyboardInterrupt:  # in one task of the story, so in a group
        raise KeyboardInterrupt from None
    except* BrokenPipeError:  # whoever read has enough
        raise BrokenPipeError from None
    except* FleetError as group:
        failed = True
        for error in group.exceptions:
            print(f"\nThe demo failed: {error}")
    if failed:
        return CLUSTER_SAID_NO
    print("\n" + (BRIDGE_BY_HAND if arguments.bridge else BY_HAND))
    return OK


async def _play() -> None:
    from clusternode.cli.local.fleet import Fleet
    from clusternode.cli.local.story import Story

    with Fleet() as fleet:
        await Story(fleet).tell()


async def _play_bridge() -> None:
    from clusternode.cli.local.bridge_story import BridgeStory
    from clusternode.cli.local.bridge_world import make_world
    from clusternode.cli.local.fleet import Fleet

    with Fleet() as fleet, make_world(fleet) as world:
        await BridgeStory(world).tell()


def _write(directory: Path) -> int:
    """Write the files of the demo, without overwriting any.

    Raises:
        ConfigError: The directory exists and is not empty, or cannot be written.
    """
    from clusternode.cli.local.fleet import Fleet
    from clusternode.cli.local.story import ROUTES, add_agents
    from clusternode.errors import ConfigError

    if directory.exists() and any(directory.iterdir()):
        raise ConfigError("--write", str(directory), "a directory that is empty or does not exist")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with Fleet() as fleet:
            add_agents(fleet)
            for agent in fleet.agents:
                text = agent.config.read_text().replace(str(ROUTES), "routes.py")
                (directory / agent.config.name).write_text(text)
        shutil.copy(ROUTES, directory / "routes.py")
    except OSError as error:
        raise ConfigError("--write", str(directory), f"writable ({error.strerror})") from None
    print(f"wrote n1.toml, n2.toml, n3.toml and routes.py to {directory}")
    print("\n".join(BY_HAND.splitlines()[3:]).replace("DIRECTORY", str(directory)))
    return OK
