"""Coverage-guided fuzzing: `python tests/fuzz/fuzz.py TARGET [options of libFuzzer]`.

Needs atheris (`pip install clusternode[fuzz]`). It begins with the seeds and the corpus of
`targets.py`. Put what has crashed into tests/fuzz/corpus/TARGET.hex, as one more line, and fix it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["clusternode"]):
    from tests.fuzz.targets import TARGETS, corpus, seeds


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"fuzz.py TARGET [options]; targets: {', '.join(TARGETS)}")
    start = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate([*seeds(name), *corpus(name)]):
        (start / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(start)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
