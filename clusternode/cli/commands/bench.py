"""`clusternode bench`: what real agents carry, cost and notice on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from clusternode.cli.output import note, print_json, print_table
from clusternode.cli.parsing import OK, Parsers, add_command, add_json_option

if TYPE_CHECKING:
    from clusternode.cli.local.measure import Row

MEASUREMENTS = ("broadcast", "request", "idle", "kill")
KAFKA = "kafka"
"""Measured only when it is named: it needs the extra `clusternode[kafka]`."""
RECORDS = 200_000
RECORDS_QUICK = 20_000
DELIVERIES = 200_000
DELIVERIES_QUICK = 20_000
REQUESTS = 1000
REQUESTS_QUICK = 100
IDLE_SECONDS = 10.0
IDLE_SECONDS_QUICK = 1.0
KILLS = 5
KILLS_QUICK = 1
CLUSTER_SIZE = 3


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "bench",
        run=run,
        summary="measure real agents on this machine",
        text="Starts agents as processes on loopback and measures broadcasts whose results are\n"
        "all waited for, requests with all their replies, idle agents, and how soon a killed\n"
        "agent is known to be gone. CPU is that of all agents together. Figures of two machines,\n"
        "or of a busy one, cannot be compared.",
        examples="clusternode bench\n"
        "clusternode bench broadcast --others 2 --size 100 --json\n"
        "clusternode bench --quick",
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="*",
        help=f"of {', '.join((*MEASUREMENTS, KAFKA))}; default: all but {KAFKA}",
    )
    parser.add_argument(
        "--others", metavar="N,…", type=_numbers, default=None, help="how many receive or answer"
    )
    parser.add_argument(
        "--size", metavar="N,…", type=_numbers, default=[100, 1000], help="bytes of a body"
    )
    parser.add_argument(
        "--deliveries",
        metavar="N",
        type=int,
        default=None,
        help=f"how many deliveries each broadcast measurement makes; default {DELIVERIES}",
    )
    parser.add_argument(
        "--brokers", metavar="HOST:PORT", help="for kafka; default: a mock cluster on loopback"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    add_json_option(parser, "print an array of objects: what, conditions, figures")


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if not all(number > 0 for number in numbers):
        raise ValueError
    return numbers


_numbers.__name__ = "list of numbers"  # argparse: "invalid list of numbers value"


def run(arguments: argparse.Namespace) -> int:
    import trio

    unknown = [what for what in arguments.what if what not in (*MEASUREMENTS, KAFKA)]
    if unknown:
        from clusternode.errors import ConfigError

        raise ConfigError("WHAT", unknown[0], "one of " + ", ".join((*MEASUREMENTS, KAFKA)))
    rows = trio.run(partial(_measure, arguments))
    if arguments.json:
        print_json([{"what": r.what, "conditions": r.conditions, **r.figures} for r in rows])
    else:
        _print_rows(rows)
    return OK


async def _measure(arguments: argparse.Namespace) -> list[Row]:
    from clusternode.cli.local import measure

    wanted = arguments.what or MEASUREMENTS
    quick = arguments.quick
    deliveries = arguments.deliveries or (DELIVERIES_QUICK if quick else DELIVERIES)
    rows: list[Row] = []
    if "broadcast" in wanted:
        rows += [
            await measure.measure_broadcast(others, size, deliveries, note)
            for size in arguments.size
            for others in arguments.others or [2, 4, 8]
        ]
    if "request" in wanted:
        requests = REQUESTS_QUICK if quick else REQUESTS
        rows += [
            await measure.measure_requests(others, requests, note)
            for others in arguments.others or [2, 10]
        ]
    if "idle" in wanted:
        seconds = IDLE_SECONDS_QUICK if quick else IDLE_SECONDS
        rows.append(await measure.measure_idle(CLUSTER_SIZE, seconds, note))
    if "kill" in wanted:
        rounds = KILLS_QUICK if quick else KILLS
        rows.append(await measure.measure_kill(CLUSTER_SIZE, rounds, note))
    if KAFKA in wanted:
        from clusternode.cli.local.bench_kafka import measure_kafka

        records = RECORDS_QUICK if quick else RECORDS
        rows += [
            await measure_kafka(arguments.brokers, size, records, note) for size in arguments.size
        ]
    return rows


def _print_rows(rows: Sequence[Row]) -> None:
    print_table(
        ("WHAT", "CONDITIONS", "FIGURES"),
        [
            (
                row.what,
                row.conditions,
                ", ".join(f"{name} {_number(value)}" for name, value in row.figures.items()),
            )
            for row in rows
        ],
    )


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 1000 else f"{value:.3g}"
