"""`clusternode tls`: certificates for a cluster, in three commands."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from clusternode.cli.output import note, print_json, printable
from clusternode.cli.parsing import CLUSTER_SAID_NO, OK, Parsers, add_command, add_json_option
from clusternode.errors import ConfigError

if TYPE_CHECKING:
    from clusternode.cli.local.authority import Shown

CA_DAYS = 3650
NODE_DAYS = 397
"""A little over a year; the agent warns 30 days ahead."""
DAYS_MAX = 36500
WARN_DAYS = 30


def add_parser(parsers: Parsers) -> None:
    tls = add_command(
        parsers,
        "tls",
        run=None,
        summary="make certificates for the nodes of a cluster, and look into them",
        text="Needs the library cryptography: pip install 'clusternode[tls]'.",
        examples="clusternode tls init-ca --dir pki\nclusternode tls issue edge-1 --dir pki\n"
        "clusternode tls inspect pki/edge-1.crt --ca pki/ca.crt",
    )
    actions = tls.add_subparsers(metavar="ACTION", required=True, title="actions")
    init = add_command(
        actions,
        "init-ca",
        run=_init_ca,
        summary="make an authority: ca.crt for every node, and ca.key, which stays where it is",
        examples="clusternode tls init-ca --dir pki",
    )
    init.add_argument("--name", default="clusternode", help="its name; default: clusternode")
    _add_writing_options(init, CA_DAYS)
    issue = add_command(
        actions,
        "issue",
        run=_issue,
        summary="make a certificate and key for one node; again, with --force, to renew it",
        examples="clusternode tls issue edge-1 --dir pki",
    )
    issue.add_argument("node_id", metavar="NODE_ID", help="the node's [node] id")
    issue.add_argument(
        "--host",
        metavar="NAME",
        action="append",
        default=[],
        help="a further name or IP address in it; to agents a name is one more node id",
    )
    _add_writing_options(issue, NODE_DAYS)
    inspect = add_command(
        actions,
        "inspect",
        run=_inspect,
        summary="show what certificates say; status 1 when one has expired or is not of --ca",
        examples="clusternode tls inspect pki/edge-1.crt --ca pki/ca.crt",
    )
    inspect.add_argument("files", metavar="FILE", nargs="+", type=Path, help="files in PEM")
    inspect.add_argument("--ca", metavar="FILE", type=Path, help="the authority to check with")
    add_json_option(inspect, "print an array of objects")


def _add_writing_options(parser: argparse.ArgumentParser, days: int) -> None:
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, default=Path(), help="where the files are; default: ."
    )
    parser.add_argument(
        "--days", type=int, default=days, help=f"for how long it is valid; default: {days}"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def _check_days(days: int) -> None:
    if not 0 < days <= DAYS_MAX:
        raise ConfigError("--days", days, f"a whole number from 1 to {DAYS_MAX}")


def _require_cryptography() -> None:
    import importlib.util

    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError("clusternode tls", "", "`pip install 'clusternode[tls]'` first")


def _init_ca(arguments: argparse.Namespace) -> int:
    _require_cryptography()
    from clusternode.cli.local.authority import make_authority

    _check_days(arguments.days)
    path = make_authority(arguments.dir, arguments.name, arguments.days, force=arguments.force)
    print(printable(f"{path}: give this file to every node"))
    print(printable(f"{path.with_suffix('.key')}: keep this file here, and safe"))
    return OK


def _issue(arguments: argparse.Namespace) -> int:
    _require_cryptography()
    from clusternode.cli.local.authority import issue

    _check_days(arguments.days)
    path = issue(
        arguments.dir, arguments.node_id, arguments.host, arguments.days, force=arguments.force
    )
    key = path.with_name(f"{arguments.node_id}.key")
    print(printable(f"{path} and {key}: for node {arguments.node_id} alone"))
    print('its configuration, next to address = "tls://…":\n\n[tls]')
    for name, file in (("certificate", path.name), ("key", key.name), ("ca", "ca.crt")):
        print(printable(f'{name} = "{file}"'))
    return OK


def _inspect(arguments: argparse.Namespace) -> int:
    _require_cryptography()
    from clusternode.cli.local.authority import inspect, is_issued_by

    now = datetime.now(UTC)
    rows, is_well = [], True
    for file in arguments.files:
        is_ours = None if arguments.ca is None else is_issued_by(file, arguments.ca)
        for shown in inspect(file):
            days = shown.days_left(now)
            is_valid = shown.not_before <= now < shown.not_after
            is_well &= is_valid and is_ours is not False
            rows.append((shown, days, is_valid, is_ours))
    if arguments.json:
        print_json(
            [
                {
                    **attrs.asdict(shown),
                    "not_before": shown.not_before.isoformat(),
                    "not_after": shown.not_after.isoformat(),
                    "days_left": days,
                    "valid_now": is_valid,
                    "issued_by_ca": is_ours,
                }
                for shown, days, is_valid, is_ours in rows
            ]
        )
    else:
        for shown, days, is_valid, is_ours in rows:
            _print(shown, days, is_valid=is_valid, is_ours=is_ours)
    return OK if is_well else CLUSTER_SAID_NO


def _print(shown: Shown, days: int, *, is_valid: bool, is_ours: bool | None) -> None:
    lines = [
        shown.file,
        f"  subject      {shown.subject}" + ("  (an authority)" if shown.is_ca else ""),
        f"  issuer       {shown.issuer}",
        f"  node ids     {', '.join(shown.node_ids) or 'none'}",
        f"  valid        {shown.not_before:%Y-%m-%d %H:%M} to {shown.not_after:%Y-%m-%d %H:%M} UTC",
        f"  fingerprint  {shown.sha256}",
    ]
    for line in lines:
        print(printable(line))
    if not is_valid:
        note(f"{shown.file}: not valid now")
    elif days < WARN_DAYS:
        note(f"{shown.file}: expires in {days} days")
    if is_ours is False:
        note(f"{shown.file}: not issued by the authority of --ca")
