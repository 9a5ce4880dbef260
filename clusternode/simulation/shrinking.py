"""Makes a failing story smaller while it still fails: fewer steps, fewer nodes, plainer links.

Works on the values that TOML would give, so that what is left can be printed as a scenario file.
Delta debugging: leave parts out, large ones first, and keep what still fails. Described in
docs/simulation.md.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs

Values: TypeAlias = dict[str, Any]
Fails: TypeAlias = Callable[[Values], bool]
"""Whether a story, which may be none at all any more, still fails in the same way."""

RUNS_MAX = 150
"""Of one shrinking: a minute or two with a small cluster."""
_NODE = re.compile(r"n(\d+)")
_RANGE = re.compile(r"n(\d+)\.\.n(\d+)")
_PLAIN_KEYS = ("fidelity", "network", "handlers")
_GROUPS = ("partition", "block", "cut", "stall", "link")
"""Steps that mean nothing once one of their groups is empty."""


@attrs.define
class Budget:
    """How often a story may still be lived through."""

    fails: Fails
    runs: int = RUNS_MAX

    def still_fails(self, values: Values) -> bool:
        if self.runs <= 0:
            return False
        self.runs -= 1
        return self.fails(values)


def shrink(values: Values, fails: Fails, *, runs_max: int = RUNS_MAX) -> Values:
    """Return the smallest story found that still fails; the story itself if there is none."""
    budget = Budget(fails, runs_max)
    best = copy.deepcopy(values)
    while True:
        before = best
        best = _with_fewer_steps(best, budget)
        best = _with_fewer_nodes(best, budget)
        best = _plainer(best, budget)
        if best == before or budget.runs <= 0:
            return best


def _mends(step: Values, others: list[Values]) -> bool:
    """Tell whether a step mends what an earlier one broke.

    A story that fails because that is left out is another story.
    """
    return any(
        key in step
        and not any(one in step for one in unless)
        and any(name in other for other in others if other["at"] <= step["at"] for name in broken)
        for key, unless, broken in _REPAIRS
    )


_REPAIRS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("heal", (), ("partition", "block", "cut", "stall")),
    ("resume", (), ("pause",)),
    ("start", (), ("kill", "stop", "power_off")),
    ("link", ("latency", "loss", "bandwidth", "distribution"), ("link",)),
    ("uplink", ("bandwidth",), ("uplink",)),
    ("disk", ("error", "wiped"), ("disk",)),
)
"""Key of a step that mends, unless it has one of these too; and what it mends."""


def spelt_out(values: Values, nodes: int | None = None) -> Values:
    """Name every node of a range, so that each can be left out; `nodes` as in `scenario.load`."""
    spelt: Values = {key: _spelt(value) for key, value in values.items()}
    if nodes is not None:
        spelt["nodes"] = nodes
    if "node" in values:
        spelt["node"] = {
            name: value
            for names, value in values["node"].items()
            for name in (_spelt([names]) if isinstance(names, str) else names)
        }
    return spelt


def _spelt(value: Any) -> Any:  # noqa: ANN401  # what TOML holds
    if isinstance(value, dict):
        return {key: _spelt(one) for key, one in value.items()}
    if isinstance(value, list):
        found: list[Any] = []
        for one in value:
            names = _range(one)
            found += [_spelt(one)] if names is None else names
        return found
    names = _range(value)
    return value if names is None else names


def _range(value: Any) -> list[str] | None:  # noqa: ANN401  # what TOML holds
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    return [f"n{number}" for number in range(int(match[1]), int(match[2]) + 1)]


def _with_fewer_steps(values: Values, budget: Budget) -> Values:
    """Leave out halves, quarters and so on of the steps, down to single ones."""
    size = len(values.get("step", []))
    while size > 0:
        start = 0
        while start < len(values["step"]):
            left_out = values["step"][start : start + size]
            steps = values["step"][:start] + values["step"][start + size :]
            smaller = values | {"step": steps}
            is_fair = not any(_mends(step, steps) for step in left_out)
            if is_fair and budget.still_fails(smaller):
                values = smaller
            else:
                start += size
        size //= 2
    return values


def _with_fewer_nodes(values: Values, budget: Budget) -> Values:
    number = values["nodes"]
    while number > 1:
        smaller = _without_node(values, number)
        if smaller is not None and budget.still_fails(smaller):
            values = smaller
        number -= 1
    return values


def _without_node(values: Values, number: int) -> Values | None:
    """Leave a node out and count the later ones down; None when nothing would be left."""
    if values["nodes"] <= 1:
        return None
    smaller = values | {"nodes": values["nodes"] - 1, "step": []}
    for step in values.get("step", []):
        kept = _renamed_step(step, number)
        if kept is not None:
            smaller["step"].append(kept)
    for key in ("notification", "start"):
        if key in values:
            smaller[key] = _renamed(values[key], number) or ["n1"]
    if "node" in values:
        renamed = ((_renamed(name, number), one) for name, one in values["node"].items())
        smaller["node"] = {name: one for name, one in renamed if name is not None}
    return smaller


def _renamed_step(step: Values, number: int) -> Values | None:
    """Return a step without a node; None when it was about that one only."""
    renamed: Values = {}
    for key, value in step.items():
        renamed[key] = _renamed(value, number)
        was_some = isinstance(value, str | list) and bool(value)
        if was_some and (renamed[key] is None or renamed[key] == []):
            return None
        if key in _GROUPS and any(group == [] for group in renamed[key]):
            return None
    return renamed


def _renamed(value: Any, number: int) -> Any:  # noqa: ANN401  # what TOML holds
    """Take one node out of names and lists of names; those after it move up."""
    if isinstance(value, list):
        found = [_renamed(one, number) for one in value]
        return [one for one in found if one is not None]
    match = _NODE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    mine = int(match[1])
    if mine == number:
        return None
    return f"n{mine - 1}" if mine > number else value


def _plainer(values: Values, budget: Budget) -> Values:
    """Leave out what makes links and handlers special, and send less."""
    for key in _PLAIN_KEYS:
        if key in values:
            plainer = {name: value for name, value in values.items() if name != key}
            if budget.still_fails(plainer):
                values = plainer
    for index, step in enumerate(values.get("step", [])):
        for changed in _lighter(step):
            steps = [*values["step"][:index], changed, *values["step"][index + 1 :]]
            lighter = values | {"step": steps}
            if budget.still_fails(lighter):
                values = lighter
    return values


def _lighter(step: Values) -> Iterator[Values]:
    if "load" not in step:
        return
    if isinstance(step["load"], list) and len(step["load"]) > 1:
        for kind in step["load"]:
            yield step | {"load": kind}
    if step["rate"] > 1:
        yield step | {"rate": round(step["rate"] / 4, 1)}


def as_toml(values: Values) -> str:
    """Write a story as a scenario file."""
    lines: list[str] = []
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    for key, value in plain.items():
        if key != "step":
            lines.append(f"{key} = {_toml(value)}")
    for key, value in values.items():
        if isinstance(value, dict) and key != "expect":
            lines += _table_lines(key, value)
    for step in values.get("step", []):
        lines += ["", "[[step]]", *(f"{key} = {_toml(value)}" for key, value in step.items())]
    if "expect" in values:
        lines += _table_lines("expect", values["expect"])
    return "\n".join(lines) + "\n"


def _table_lines(name: str, table: Values) -> list[str]:
    """Write a table, and the tables in it, unless they are short enough for one line."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    if name == "expect":
        inner = {}
    lines = []
    own = [f"{key} = {_toml(value)}" for key, value in table.items() if key not in inner]
    if own:
        lines += ["", f"[{name}]", *own]
    for key, value in inner.items():
        quoted = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
        lines += _table_lines(f"{name}.{quoted}", value)
    return lines


def _toml(value: Any) -> str:  # noqa: ANN401  # what TOML holds
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
