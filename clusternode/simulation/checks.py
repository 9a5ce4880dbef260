"""What a check of a run is: facts in, findings out, registered under the name that stories use.

The checks themselves are in `invariants.py` and `reachability.py`. Documented in
docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs

from clusternode.core.snapshots import NodeGlance, NodeSnapshot
from clusternode.core.types import Instant, NodeId
from clusternode.simulation.history import History


@attrs.frozen
class Violation:
    """One thing that should not have been."""

    invariant: str
    at: Instant
    detail: str


@attrs.frozen
class View:
    """A moment of a run: what every running node shows, and all that happened before."""

    now: Instant
    snapshots: Mapping[NodeId, NodeGlance | NodeSnapshot]
    history: History


Finding = tuple[Instant, str]  # when, and what is wrong
Check = Callable[[View], Iterator[Finding]]

ALWAYS: dict[str, Check] = {}
EVENTUALLY: dict[str, Check] = {}


def always(name: str) -> Callable[[Check], Check]:
    """Register a check of the whole history, made at the end of a run."""
    return lambda check: ALWAYS.setdefault(name, check)


def eventually(name: str) -> Callable[[Check], Check]:
    """Register a check of one moment that a scenario names."""
    return lambda check: EVENTUALLY.setdefault(name, check)


def violations_of(name: str, check: Check, view: View) -> list[Violation]:
    return [Violation(name, at, detail) for at, detail in check(view)]
