"""Finds circles of rules: what would be carried round and round, were it not stopped. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from clusternode.bridge.settings import SECTION, Link, Rule
from clusternode.errors import ConfigError
from clusternode.kafka.ends import End


def check_circles(rules: Sequence[Rule]) -> None:
    """See whether some rules lead from an end back to it, and none of them has a filter.

    A rule with direction = "both" is no circle: it never carries back what it brought. Nor are
    rules of `[[kafka_bridge]]` alone: they were allowed before, and a record knows where it was.

    Raises:
        ConfigError: Names the rules, in the order of the circle.
    """
    circle = find_circle(rules)
    if circle is not None:
        names = list(dict.fromkeys(rule.name for rule, _ in circle))
        way = " → ".join([str(link.source) for _, link in circle] + [str(circle[-1][1].target)])
        raise ConfigError(
            SECTION,
            ", ".join(names),
            f"no circle ({way}): give one of them filters, or make two of them one with"
            ' direction = "both"',
        )


Step = tuple[Rule, Link]


def find_circle(rules: Sequence[Rule]) -> list[Step] | None:
    """Return the steps of a circle of at least two rules without filters; None if none is.

    Walks the links of the rules; what brought somewhere is not walked back by the same rule.
    """
    steps = [(rule, link) for rule in rules if not rule.filters for link in rule.links]
    for first in steps:
        for circle in _walk(first, steps):
            if not all(rule.is_old for rule, _ in circle):
                return circle
    return None


def _leads_to(target: End, source: End) -> bool:
    """Tell whether what is put to one end is heard at another."""
    if target.kind == "event":  # raised here, whatever the cluster
        return source.kind == "event" and fnmatchcase(target.name, source.name)
    return (target.kind, target.name, target.where) == (
        source.kind,
        source.name,
        source.where,
    )


def _is_back(link: Link, other: Link) -> bool:
    reversed_ = (other.target, other.source)
    return link.is_back != other.is_back and (link.source, link.target) == reversed_


def _walk(first: Step, steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield ways that end where they began, and never walk back what they have just walked.

    Each step is taken once: from it, what comes after does not depend on what was before.
    """
    taken: list[Step] = []
    waiting = [[first]]
    while waiting:
        way = waiting.pop()
        rule, link = way[-1]
        if len(way) > 1 and _leads_to(link.target, first[1].source):
            yield way
            continue
        for step in steps:
            if step in taken or (step[0] is rule and _is_back(step[1], link)):
                continue
            if _leads_to(link.target, step[1].source):
                taken.append(step)
                waiting.append([*way, step])
