"""Draws one run as a page: time from left to right, a lane for each node, faults above all.

One file of HTML without scripts or anything from elsewhere. Described in docs/simulation.md.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape

import attrs

from clusternode.core.types import Instant, NodeId, ResultCode, Seconds
from clusternode.simulation.history import Disturbance, History
from clusternode.simulation.runner import RunResult
from clusternode.simulation.scenario import Scenario
from clusternode.simulation.world import TIME_ZERO

WIDTH = 1200
MARGIN = 90
"""For the names at the left."""
LIFE_HEIGHT, LOAD_HEIGHT, LINKS_HEIGHT, GAP = 10, 24, 12, 22
FAULT_HEIGHT = 14
FAULTS_SHOWN_MAX = 60
NAME_LENGTH_MAX = 90
LETTER_WIDTH = 6.5
"""Of the text in the pictures, roughly."""
OBSERVERS_NAMED_MAX = 12
"""With so few nodes there is room for the name of who sees a node."""
NODES_SHOWN_MAX = 60
"""More lanes than this nobody reads; the first ones are drawn, and the page says so."""
BINS = 240
"""Columns of the histograms."""
VIOLATIONS_SHOWN_MAX = 100
TICKS = 10

STATUS_COLORS = {
    "active": "#3a9d5d",
    "not_active": "#e0a030",
    "disabled": "#d0523b",
    "removed": "#8b8b8b",
    "left": "#5b7fc7",
}
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 24px; color: #222; background: #fff; }
h1 { font-size: 20px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 24px 0 6px; }
svg { display: block; max-width: 100%; height: auto; } text { font: 11px system-ui, sans-serif; }
.key span { display: inline-block; margin-right: 16px; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 4px; }
.bad { color: #b3261e; } table { border-collapse: collapse; } td { padding: 1px 12px 1px 0; }
"""


@attrs.frozen
class Frame:
    """Where on the page a moment is."""

    duration: Seconds

    def x(self, at: Instant) -> float:
        share = (at - TIME_ZERO) / self.duration
        return round(MARGIN + min(max(share, 0.0), 1.0) * (WIDTH - MARGIN), 1)


def page(scenario: Scenario, result: RunResult, history: History) -> str:
    """Return the page for a run."""
    frame = Frame(max(result.virtual_s, 0.001))
    nodes = list(scenario.plan.node_ids)[:NODES_SHOWN_MAX]
    verdict = "everything held" if result.ok else f"{len(result.violations)} violations"
    css = "" if result.ok else ' class="bad"'
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(result.name)}</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(scenario.title)}</h1>",
            f"<p>{escape(result.name)}, seed {result.seed}, {result.virtual_s:g} s, "
            f"{result.messages} messages, digest {result.digest}: <b{css}>{verdict}</b></p>",
            *_key(),
            *_faults(scenario, history, frame),
            *_nodes(nodes, history, frame, result),
            *_more_nodes(len(scenario.plan.node_ids)),
            *_violations(result),
            "</body></html>",
            "",
        ]
    )


def _key() -> Iterator[str]:
    yield '<p class="key">'
    for status, color in STATUS_COLORS.items():
        yield f'<span><i style="background:{color}"></i>seen as {status}</span>'
    yield '<span><i style="background:#444"></i>runs</span>'
    yield '<span><i style="background:#7aa7d9"></i>messages that it handled</span>'
    yield '<span><i style="background:#c33"></i>its messages that did not end with 200</span>'
    yield '<span><i style="background:#b59ad0"></i>connections that are open</span>'
    yield '<span><i style="background:#b3261e;width:3px"></i>something did not hold</span></p>'


# Faults.


def _faults(scenario: Scenario, history: History, frame: Frame) -> Iterator[str]:
    """Draw what the story did: a line for each step, a bar for what lasted."""
    rows: list[tuple[list[Span], str]] = [
        ([(TIME_ZERO + step.at, None)], f"{step.kind} {step.detail}"[:NAME_LENGTH_MAX])
        for step in scenario.steps
    ]
    rows += _bars(history)
    shown = sorted(rows, key=lambda row: row[0][0][0])[:FAULTS_SHOWN_MAX]
    height = FAULT_HEIGHT * (len(shown) + 1) + 6
    yield "<h2>What happened</h2>"
    yield f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="faults and steps">'
    yield from _ticks(frame, height)
    for index, (spans, name) in enumerate(shown):
        y = FAULT_HEIGHT * (index + 1)
        last = 0.0
        for at, until in spans:
            x = frame.x(at)
            last = x + 2 if until is None else max(frame.x(until), x + 2)
            color = "#777" if until is None else "#d98a7f"
            yield f'<rect x="{x}" y="{y + 2}" width="{last - x:.1f}" height="9" fill="{color}"/>'
        first = frame.x(spans[0][0])
        is_right = last + LETTER_WIDTH * len(name) < WIDTH
        anchor, text_x = ("start", last + 4) if is_right else ("end", first - 4)
        if not is_right and first - MARGIN < LETTER_WIDTH * len(name):
            anchor, text_x = "start", first + 4  # neither side has room: upon the bar
        yield f'<text x="{text_x:.1f}" y="{y + 10}" text-anchor="{anchor}">{escape(name)}</text>'
    yield "</svg>"


Span = tuple[Instant, Instant | None]  # from, to; None for a moment


def _bars(history: History) -> list[tuple[list[Span], str]]:
    """Return what lasted, in a row each; resets of connections, which are many, share one."""
    bars: list[tuple[list[Span], str]] = []
    resets: list[Span] = []
    for one in history.disturbances:
        at, until, name = _bar_of(one)
        if one.kind == "resets":
            resets.append((at, until))
        else:
            bars.append(([(at, until)], name))
    if resets:
        bars.append((resets, f"connections reset twice within a ping: {len(resets)}"))
    return bars


def _bar_of(one: Disturbance) -> tuple[Instant, Instant, str]:
    sides = [",".join(sorted(side)) for side in (one.left, one.right) if side]
    name = one.kind if " " in one.kind else f"{one.kind} {' – '.join(sides)}"
    return one.at, float("inf") if one.until is None else one.until, name[:NAME_LENGTH_MAX]


def _ticks(frame: Frame, height: int) -> Iterator[str]:
    for tick in range(TICKS + 1):
        at = TIME_ZERO + frame.duration * tick / TICKS
        x = frame.x(at)
        yield f'<line x1="{x}" y1="0" x2="{x}" y2="{height}" stroke="#e4e4e4"/>'
        yield f'<text x="{x + 2}" y="10" fill="#888">{at - TIME_ZERO:g} s</text>'


# Nodes.


def _nodes(
    nodes: Sequence[NodeId], history: History, frame: Frame, result: RunResult
) -> Iterator[str]:
    handled, failed = _message_bins(history, frame)
    links = _link_bins(history, frame)
    views = _views(history)
    most = max((max(row) for row in handled.values()), default=1) or 1
    most_links = max((max(row) for row in links.values()), default=1) or 1
    view_height = 9 if len(nodes) <= OBSERVERS_NAMED_MAX else 5
    lane = LIFE_HEIGHT + LOAD_HEIGHT + LINKS_HEIGHT + view_height * len(nodes) + GAP
    height = lane * len(nodes) + FAULT_HEIGHT
    yield f"<h2>The nodes</h2><p>At most {most} messages a column, {most_links} connections.</p>"
    yield f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="a lane for each node">'
    yield from _ticks(frame, height)
    for index, node_id in enumerate(nodes):
        y = FAULT_HEIGHT + index * lane
        yield f'<text x="4" y="{y + 10}" font-weight="bold">{escape(node_id)}</text>'
        yield from _lives(node_id, history, frame, y)
        y += LIFE_HEIGHT
        yield from _columns(handled[node_id], most, y, LOAD_HEIGHT, "#7aa7d9")
        yield from _columns(failed[node_id], most, y, LOAD_HEIGHT, "#c33")
        y += LOAD_HEIGHT
        yield from _columns(links[node_id], most_links, y, LINKS_HEIGHT, "#b59ad0")
        y += LINKS_HEIGHT + 2
        if len(nodes) > OBSERVERS_NAMED_MAX:
            yield f'<text x="4" y="{y + 8}" fill="#888">as others see it</text>'
        for row, observer in enumerate(nodes):
            top = y + row * view_height
            if len(nodes) <= OBSERVERS_NAMED_MAX and observer != node_id:
                yield (
                    f'<text x="{MARGIN - 6}" y="{top + 8}" text-anchor="end" fill="#888" '
                    f'style="font-size:9px">seen by {escape(observer)}</text>'
                )
            yield from _view(views.get((observer, node_id), []), frame, top, view_height)
    for one in result.violations[:VIOLATIONS_SHOWN_MAX]:
        x = frame.x(one.at + TIME_ZERO)
        yield (
            f'<line x1="{x}" y1="0" x2="{x}" y2="{height}" stroke="#b3261e" stroke-dasharray="3 3">'
            f"<title>{escape(one.invariant)}: {escape(one.detail)}</title></line>"
        )
    yield "</svg>"


def _lives(node_id: NodeId, history: History, frame: Frame, y: int) -> Iterator[str]:
    for life in history.lives.get(node_id, ()):
        x = frame.x(life.started)
        end = frame.x(float("inf") if life.ended is None else life.ended)
        yield (
            f'<rect x="{x}" y="{y}" width="{max(end - x, 1):.1f}" height="{LIFE_HEIGHT - 2}" '
            f'fill="#444"><title>{escape(node_id)}, life {life.life} {life.how}</title></rect>'
        )


def _message_bins(
    history: History, frame: Frame
) -> tuple[dict[NodeId, list[int]], dict[NodeId, list[int]]]:
    """Count the calls of handlers, and the results other than 200, by node and column."""
    handled: dict[NodeId, list[int]] = defaultdict(lambda: [0] * BINS)
    failed: dict[NodeId, list[int]] = defaultdict(lambda: [0] * BINS)
    for (_, node_id), calls in history.handlings.items():
        for call in calls:
            handled[node_id][_bin(call.started, frame)] += 1
    for fact in history.deliveries.values():
        for at, _, code in fact.results:
            if code is not ResultCode.OK:
                failed[fact.origin][_bin(at, frame)] += 1
    return handled, failed


def _link_bins(history: History, frame: Frame) -> dict[NodeId, list[int]]:
    """Return the most connections that each node had open in each column."""
    links: dict[NodeId, list[int]] = defaultdict(lambda: [0] * BINS)
    for life in itertools.chain.from_iterable(history.lives.values()):
        row, now_open, last = links[life.node_id], 0, 0
        for fact in life.links:
            column = _bin(fact.at, frame)
            for between in range(last, column + 1):
                row[between] = max(row[between], now_open)
            now_open += 1 if fact.is_up else -1
            row[column] = max(row[column], now_open)
            last = column
        if now_open:  # those of a process that has ended are closed with it
            row[last + 1 :] = [now_open] * (BINS - last - 1)
    return links


def _bin(at: Instant, frame: Frame) -> int:
    return min(max(int((at - TIME_ZERO) / frame.duration * BINS), 0), BINS - 1)


def _columns(counts: Sequence[int], most: int, y: int, height: int, color: str) -> Iterator[str]:
    """Draw a histogram as one path."""
    width = (WIDTH - MARGIN) / BINS
    parts = []
    for column, count in enumerate(counts):
        if count:
            tall = max(1.0, (height - 2) * min(count, most) / most)
            x, top = MARGIN + column * width, y + height - tall
            parts.append(f"M{x:.1f} {top:.1f}h{width:.1f}v{tall:.1f}h-{width:.1f}z")
    if parts:
        yield f'<path d="{"".join(parts)}" fill="{color}"/>'


View = list[tuple[Instant, Instant, str, str]]  # from, to, status, observer


def _views(history: History) -> dict[tuple[NodeId, NodeId], View]:
    """Return as what each observer saw each member, while it ran."""
    views: dict[tuple[NodeId, NodeId], View] = defaultdict(list)
    for fact in history.statuses:
        view = views[fact.observer, fact.member]
        ended = history.life_of(fact.observer, fact.life).ended
        if view and view[-1][1] > fact.at:
            since, _, status, observer = view[-1]
            view[-1] = (since, fact.at, status, observer)
        view.append((fact.at, float("inf") if ended is None else ended, fact.status, fact.observer))
    return views


def _view(view: View, frame: Frame, y: int, height: int) -> Iterator[str]:
    for since, until, status, observer in view:
        x = frame.x(since)
        width = max(frame.x(until) - x, 1)
        yield (
            f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height - 1}" '
            f'fill="{STATUS_COLORS.get(status, "#000")}">'
            f"<title>{escape(observer)} says {escape(status)}</title></rect>"
        )


def _more_nodes(count: int) -> Iterator[str]:
    if count > NODES_SHOWN_MAX:
        yield f"<p>{count - NODES_SHOWN_MAX} more nodes are not drawn.</p>"


def _violations(result: RunResult) -> Iterator[str]:
    if result.violations:
        yield '<h2 class="bad">What did not hold</h2><table>'
        for one in result.violations[:VIOLATIONS_SHOWN_MAX]:
            yield (
                f"<tr><td>{one.at:.3f} s</td><td>{escape(one.invariant)}</td>"
                f"<td>{escape(one.detail)}</td></tr>"
            )
        yield "</table>"
