"""Coverage-guided fuzzing: `python tests/fuzz/fuzz.py TARGET [options of libFuzzer]`.

Needs atheris (`pip install clusternode[fuzz]`). What it finds stays in the directory that is
given after the options; put what crashed into tests/fuzz/corpus/TARGET, and fix it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["clusternode"]):
    from tests.fuzz.targets import TARGETS, seeds


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"fuzz.py TARGET [options]; targets: {', '.join(TARGETS)}")
    start = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(seeds(name)):
        (start / f"seed-{number}").write_bytes(seed)
    corpus = Path(__file__).parent / "corpus" / name
    known = [str(corpus)] if corpus.exists() else []
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(start), *known], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
