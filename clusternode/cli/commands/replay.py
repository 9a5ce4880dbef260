"""`clusternode replay`: step the recorded inputs of one node again."""

from __future__ import annotations

import argparse
from pathlib import Path

import attrs

from clusternode.cli.output import complain, note, print_json
from clusternode.cli.parsing import (
    CLUSTER_SAID_NO,
    OK,
    USAGE,
    Parsers,
    add_command,
    add_json_option,
)
from clusternode.recording.trace import Difference, replay
from clusternode.recording.values import RecordingError


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "replay",
        run=run,
        summary="step the recorded inputs of one node again",
        text="A recording is made by `clusternode run --record DIR`, or by\n"
        "`clusternode simulate FILE --trace FILE --node N`.\n"
        "Status 1: the node did something else than was recorded.",
        examples="clusternode replay /var/lib/clusternode/recording\nclusternode replay n3.trace",
    )
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="the recording, or a directory with some"
    )
    add_json_option(parser, "print an object")


def run(arguments: argparse.Namespace) -> int:
    try:
        found = replay(arguments.path)
    except RecordingError as error:
        complain(str(error))
        return USAGE
    difference = found.difference
    if arguments.json:
        print_json({"ok": difference is None} | attrs.asdict(found))
    else:
        what = f"{found.segments} segments, {found.inputs} inputs, {found.effects} effects"
        verdict = "all as recorded" if difference is None else "not as recorded"
        print(f"{what}: {verdict}{' (the recording was cut)' if found.is_cut else ''}")
        if difference is not None:
            _explain(difference)
    return OK if difference is None else CLUSTER_SAID_NO


def _explain(difference: Difference) -> None:
    note(f"{difference.file}, line {difference.line}: {difference.input} at {difference.now:.6f}")
    note(f"  recorded: {', '.join(difference.recorded) or 'nothing'}")
    note(f"  replayed: {', '.join(difference.replayed) or 'nothing'}")
    if difference.recorded == difference.replayed:
        note("  what they hold differs")
