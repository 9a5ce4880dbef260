"""`clusternode config`: write, check and show a configuration."""

from __future__ import annotations

import argparse
import os
import tomllib

from clusternode.cli.output import note, print_json
from clusternode.cli.parsing import OK, Parsers, add_command, add_config_option, add_json_option


def add_parser(parsers: Parsers) -> None:
    config = add_command(
        parsers,
        "config",
        run=None,
        summary="write, check and show a configuration",
        examples="clusternode config init > node.toml\nclusternode config check -c node.toml",
    )
    actions = config.add_subparsers(metavar="ACTION", required=True, title="actions")
    add_command(
        actions,
        "init",
        run=_init,
        summary="print a commented configuration with all defaults",
        examples="clusternode config init > node.toml",
    )
    check = add_command(
        actions,
        "check",
        run=_check,
        summary="check a configuration; names file, key, value and what was expected",
        examples="clusternode config check -c node.toml",
    )
    show = add_command(
        actions,
        "show",
        run=_show,
        summary="show what an agent would run with: file, environment and defaults",
        examples="clusternode config show -c node.toml\nclusternode config show --json",
    )
    for parser in (check, show):
        add_config_option(parser)
        add_json_option(parser, "print an object")


def _init(arguments: argparse.Namespace) -> int:
    from clusternode.config.text import sample  # start-up speed

    del arguments
    print(sample(), end="")
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from clusternode.backends.subscriptions import check_subscriptions  # start-up speed
    from clusternode.config import load_settings  # start-up speed
    from clusternode.gateways.registry import read_gateways  # start-up speed
    from clusternode.integrations import Integrations  # start-up speed
    from clusternode.routes.execute import check_executables  # start-up speed
    from clusternode.runtime.exposure import advice, check_exposure, check_files  # start-up speed

    settings = load_settings(arguments.config, environ=os.environ, overrides={})
    check_exposure(settings)
    check_files(settings)
    read_gateways(settings.plugins)
    integrations = Integrations(settings)
    integrations.prepare(settings)
    integrations.attach()  # so that kafka:@NAME is looked up
    check_subscriptions(settings)
    check_executables(settings)
    if arguments.json:
        print_json({"ok": True, "node_id": settings.node_id, "clusters": list(settings.clusters)})
    else:
        name = arguments.config or "the defaults"
        clusters = ", ".join(settings.clusters)
        print(f"{name}: all well; node {settings.node_id}, cluster {clusters}")
    for line in advice(settings):
        note(line)
    if settings.routes.file is not None and not settings.routes.file.exists():
        note(f"routes.file: {settings.routes.file} does not exist yet")
    return OK


def _show(arguments: argparse.Namespace) -> int:
    from clusternode.config import load_settings  # start-up speed
    from clusternode.config.text import settings_toml  # start-up speed

    settings = load_settings(arguments.config, environ=os.environ, overrides={})
    text = settings_toml(settings)
    if arguments.json:
        print_json(tomllib.loads(text))
    else:
        print(text, end="")
    return OK
