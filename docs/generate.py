"""Write the pages and sections of the documentation that are made from the code.

`python docs/generate.py` writes docs/reference/*.md, draws docs/scale.svg, and fills every section
between `<!-- generated: NAME -->` and `<!-- /generated -->` in README.md and docs/; with `--check`
it writes nothing and fails where the files differ from what it would write.
"""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from clusternode.backends import channel, datagram, flatstore, http, program, stream, virtual
from clusternode.backends.options import Option
from clusternode.bridge.settings import KINDS as BRIDGE_KINDS
from clusternode.cli import reference as cli_reference
from clusternode.config.keys import derive, field_help
from clusternode.config.text import reference_markdown, toml_value
from clusternode.control import requests as control_requests
from clusternode.core import events
from clusternode.core.membership import health
from clusternode.core.types import ResultCode
from clusternode.core.wire import messages
from clusternode.core.wire.messages import CloseReason
from clusternode.gateways import reference as gateways_reference
from clusternode.gateways.opensips import links, operations
from clusternode.kafka.settings import KEYS as KAFKA_KEYS
from clusternode.kafka.settings import KafkaConnection

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COUNTER_MEANINGS = DOCS / "counters.toml"
NOTE = "<!-- Made by docs/generate.py; do not edit. -->"
SECTION = re.compile(
    r"^<!-- generated: (?P<name>[a-z-]+) -->\n.*?^<!-- /generated -->$", re.DOTALL | re.MULTILINE
)


class GenerateError(Exception):
    """The code says something that the documentation has no words for, or the other way round."""


def main(arguments: list[str] | None = None) -> int:
    """Write or check all generated text; the exit status is 1 where a check finds a difference."""
    parser = argparse.ArgumentParser(description="Write the generated documentation.")
    parser.add_argument("--check", action="store_true", help="fail on a difference, write nothing")
    options = parser.parse_args(arguments)
    try:
        stale = [path for path, text in generated_files() if not _is_current(path, text)]
    except GenerateError as error:
        print(f"docs/generate.py: {error}", file=sys.stderr)
        return 1
    if options.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not up to date; run: make docs", file=sys.stderr)
        return 1 if stale else 0
    texts = dict(generated_files())
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def generated_files() -> Iterator[tuple[Path, str]]:
    """Yield every file that holds generated text, with the text that it should have."""
    for name, make in PAGES.items():
        text = make().strip()
        head = "" if text.startswith("<!--") else f"{NOTE}\n\n"
        yield DOCS / "reference" / name, f"{head}{text}\n"
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if path.parent.name == "reference":
            continue
        text = path.read_text(encoding="utf-8")
        if SECTION.search(text):
            yield path, SECTION.sub(_filled, text)
    yield DOCS / "scale.svg", scale_figure((DOCS / "scale.md").read_text(encoding="utf-8"))


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def _filled(match: re.Match[str]) -> str:
    name = match["name"]
    if name not in SECTIONS:
        raise GenerateError(f"no generated section is called {name}; there are {sorted(SECTIONS)}")
    return f"<!-- generated: {name} -->\n\n{SECTIONS[name]().strip()}\n\n<!-- /generated -->"


# Figures


PANEL_WIDTH, PANEL_HEIGHT, PANEL_MARGIN = 220, 200, 50
"""Of one graph, in units of the picture; the margin is for its numbers."""
PANELS = (
    ("bytes of a ping", "A ping", 2),
    ("inputs for each ping", "A ping", 4),
    ("pings a second of a node, at 60 s", "A node", 3),
)
"""Title, section of scale.md, and column of its first table."""


def scale_figure(page: str) -> str:
    """Draw the tables of scale.md: what one ping costs stays, what a node sends grows."""
    width = len(PANELS) * (PANEL_WIDTH + PANEL_MARGIN)
    height = PANEL_HEIGHT + 2 * PANEL_MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, (title, section, column) in enumerate(PANELS):
        points = _numbers_in(page, section, column)
        lines += _panel(PANEL_MARGIN + number * (PANEL_WIDTH + PANEL_MARGIN), title, points)
    return "\n".join([*lines, "</svg>", ""])


def _numbers_in(page: str, section: str, column: int) -> list[tuple[float, float]]:
    """Return (nodes, largest number of a column) of the first table of a section."""
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| \d", line)]
    if not rows:
        raise GenerateError(f"scale.md: no table of numbers in {section!r}")
    return [
        (float(row[0]), max(map(float, re.findall(r"\d+(?:\.\d+)?", row[column])))) for row in rows
    ]


def _panel(left: int, title: str, points: list[tuple[float, float]]) -> Iterator[str]:
    """Draw one graph: nodes to the right, each ten times the last; upwards from zero."""
    bottom, right = PANEL_MARGIN + PANEL_HEIGHT, left + PANEL_WIDTH
    decades, most = math.log10(points[-1][0]) - 1, max(value for _, value in points)
    places = [
        (
            left + round((PANEL_WIDTH - 40) * (math.log10(nodes) - 1) / decades) + 20,
            bottom - round((PANEL_HEIGHT - 20) * value / most),
        )
        for nodes, value in points
    ]
    yield f'<text x="{left}" y="{PANEL_MARGIN - 20}" font-size="13">{title}</text>'
    yield f'<path d="M{left} {PANEL_MARGIN}V{bottom}H{right}" fill="none" stroke="#888"/>'
    path = " ".join(f"{x},{y}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="#3a6ea5" stroke-width="2"/>'
    for (x, y), (nodes, value) in zip(places, points, strict=True):
        yield f'<circle cx="{x}" cy="{y}" r="3" fill="#3a6ea5"/>'
        yield f'<text x="{x}" y="{y - 7}" text-anchor="middle">{value:g}</text>'
        yield f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{nodes:g}</text>'
    yield f'<text x="{right}" y="{bottom + 32}" text-anchor="end">nodes</text>'


# Pages


def messages_page() -> str:
    """Describe every message type with its fields in the order of the wire."""
    numbered: dict[int, type] = {
        cls.TYPE: cls for cls in _classes_of(messages) if getattr(cls, "TYPE", -1) > 0
    }
    parts = [cls for cls in _classes_of(messages) if cls.__name__ in {"Record", "ListEntry", "Run"}]
    lines = [
        "# Messages",
        "",
        "Every message of the protocol, in the order of its number.",
        "A message is a msgpack array of its fields in the order given here.",
        f"Numbers from {messages.POSITIONED_TYPE_MIN} on are positioned: counted, acknowledged "
        "and sent again.",
        "How they are used is told in [the protocol](../protocol.md).",
        "",
        "| number | message | positioned |",
        "|---:|---|---|",
    ]
    for number, cls in sorted(numbered.items()):
        positioned = "yes" if number >= messages.POSITIONED_TYPE_MIN else "no"
        lines.append(f"| {number} | [{cls.__name__}](#{cls.__name__.lower()}) | {positioned} |")
    for number, cls in sorted(numbered.items()):
        lines += ["", f"## {cls.__name__}", "", f"Number {number}.", "", *_described(cls)]
    lines += ["", "# Parts of messages", "", "Arrays inside the arrays above."]
    for cls in parts:
        lines += ["", f"## {cls.__name__}", "", *_described(cls)]
    lines += ["", "# Close reasons", "", close_reasons()]
    lines += ["", "# Result codes", "", result_codes()]
    return "\n".join(lines)


def events_page() -> str:
    """Describe every event with its two names and its parameters."""
    lines = [
        "# Events",
        "",
        "What event routes, `clusternode watch` and back ends can observe.",
        "The name and the alias mean the same everywhere.",
        "Node ids are strings; the parameter `msg` is text where the body is valid UTF-8, "
        "else the event has `msg_base64` instead.",
        "",
        events_table(),
    ]
    for cls in events.EVENT_TYPES:
        lines += ["", f"## {cls.NAME}", "", f"Alias `{cls.ALIAS}`.", "", *_described(cls)]
    lines += ["", "## Events of your own", "", *_described(events.Custom)]
    return "\n".join(lines)


def counters_page() -> str:
    """List the counters of a node with their meaning."""
    return "\n".join(
        [
            "# Counters",
            "",
            "What a node counts since its start; `clusternode nodes show --json` prints them.",
            "A counter that is missing there has not counted anything yet.",
            "",
            counters_table(),
        ]
    )


# Sections


def events_table() -> str:
    """Give one line for each event."""
    lines = ["| event | alias | meaning |", "|---|---|---|"]
    lines += [
        f"| `{cls.NAME}` | `{cls.ALIAS}` | {_cell(_first_line(cls))} |"
        for cls in events.EVENT_TYPES
    ]
    return "\n".join(lines)


def close_reasons() -> str:
    """Give one line for each close reason."""
    return _enum_table(CloseReason)


def result_codes() -> str:
    """Give one line for each result code, and whether it is definite."""
    help_texts = _documented_names(ResultCode)
    lines = ["| code | name | certainly not handled | meaning |", "|---:|---|---|---|"]
    for code in ResultCode:
        definite = "yes" if code.definite else "no"
        meaning = _cell(help_texts.get(code.name, ""))
        lines.append(f"| {code.value} | `{code.name}` | {definite} | {meaning} |")
    return "\n".join(lines)


def counters_table() -> str:
    """Give one line for each counter that the code counts.

    Raises:
        GenerateError: A counter has no meaning in docs/counters.toml, or a meaning no counter.
    """
    meanings: Mapping[str, str] = tomllib.loads(COUNTER_MEANINGS.read_text(encoding="utf-8"))
    names = sorted(set(_counter_names()))
    if missing := [name for name in names if name not in meanings]:
        raise GenerateError(f"docs/counters.toml says nothing about {', '.join(missing)}")
    if stale := [name for name in meanings if name not in names]:
        raise GenerateError(f"docs/counters.toml names what nothing counts: {', '.join(stale)}")
    lines = ["| counter | counts |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(meanings[name])} |" for name in names]
    return "\n".join(lines)


def opensips_operations() -> str:
    """List what an operator may ask of a node of an OpenSIPS cluster."""
    lines = ["| command | does |", "|---|---|"]
    for each in operations.names():
        usage = f"{each.name} {_cell(each.parameters)}".strip()
        lines.append(f"| `{usage}` | {each.help} |")
    return "\n".join(lines)


def opensips_link_diagram() -> str:
    """Draw the state machine of a link to an OpenSIPS node."""
    return f"```mermaid\n{links.diagram()}\n```"


def health_diagram() -> str:
    """Draw the state machine of member health."""
    return f"```mermaid\n{health.diagram()}\n```"


# Reading the code


def _described(cls: type) -> list[str]:
    """Return the docstring of a class and a table of its fields."""
    lines = [inspect.cleandoc(cls.__doc__ or "")]
    fields = attrs.fields(cls)
    if not fields:
        return lines
    help_texts = _documented_names(cls)
    lines += ["", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        default = "" if field.default is attrs.NOTHING else f"`{field.default!r}`"
        kind = _cell(str(field.type))
        lines.append(
            f"| `{field.name}` | `{kind}` | {default} | {_cell(help_texts.get(field.name, ''))} |"
        )
    return lines


def _documented_names(cls: type) -> Mapping[str, str]:
    """Map the names assigned in a class body to the docstrings below them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    name = ""
    for statement in body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                found[name] = " ".join(inspect.cleandoc(text).split())
                name = ""
            case _:
                name = ""
    return found


def _classes_of(module: object) -> list[Any]:
    """Return the attrs classes that a module defines, in the order of the file."""
    name = getattr(module, "__name__", "")
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == name and attrs.has(value)
    ]


def _enum_table(cls: type[enum.IntEnum]) -> str:
    help_texts = _documented_names(cls)
    lines = ["| number | name | meaning |", "|---:|---|---|"]
    for member in cls:
        meaning = _cell(help_texts.get(member.name, ""))
        lines.append(f"| {member.value} | `{member.name}` | {meaning} |")
    return "\n".join(lines)


def _counter_names() -> Iterator[str]:
    """Yield what the code counts.

    That is the first argument of every call of `count` in the core, and every name in a tuple
    called `COUNTERS`. An f-string stands for a family: `f"closed_{reason}"` is `closed_…`.
    """
    for path in sorted((ROOT / "clusternode").rglob("*.py")):
        is_core = "core" in path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="count"), args=[text, *_]) if is_core:
                    yield _counter_name(text)
                case ast.AnnAssign(target=ast.Name(id="COUNTERS"), value=ast.Tuple(elts=names)):
                    yield from map(_counter_name, names)


def _counter_name(text: ast.expr) -> str:
    match text:
        case ast.Constant(value=str(name)):
            return name
        case ast.JoinedStr(values=parts):
            return "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in parts)
    raise GenerateError(f"line {text.lineno}: the name of a counter must be a literal")


def _first_line(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES: Mapping[str, Callable[[], str]] = {
    "messages.md": messages_page,
    "events.md": events_page,
    "configuration.md": reference_markdown,
    "cli.md": cli_reference.reference_markdown,
    "gateways.md": gateways_reference.reference_markdown,
    "control.md": control_requests.reference_markdown,
    "counters.md": counters_page,
}


def options_table(options: tuple[Option, ...]) -> str:
    """List the options of one event back end."""
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for option in options:
        default = "none" if option.default == "" else f"`{toml_value(option.default)}`"
        cells = (f"`{option.name}`", option.kind.expected, default, option.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


BACKEND_OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "channel": channel.OPTIONS,
    "exec": program.OPTIONS,
    "flatstore": flatstore.OPTIONS,
    "http": http.OPTIONS,
    "tcp": stream.STREAM_OPTIONS,
    "udp": datagram.DATAGRAM_OPTIONS,
    "unix": stream.UNIX_STREAM_OPTIONS,
    "virtual": virtual.OPTIONS,
}


def kafka_keys() -> str:
    """List the keys of `[kafka.NAME]`."""
    meanings = field_help(KafkaConnection)
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in KAFKA_KEYS:
        cells = (f"`{key.name}`", key.kind.expected, f"`{toml_value(key.default)}`")
        lines.append("| " + " | ".join((*cells, meanings[key.name])) + " |")
    return "\n".join(lines)


def bridge_keys() -> str:
    """List the keys of `[[bridge]]` that are one value."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for cls, kinds in BRIDGE_KINDS.items():
        meanings = field_help(cls)
        for key in derive(cls, kinds):
            cells = (f"`{key.name}`", key.kind.expected, f"`{toml_value(key.default)}`")
            lines.append("| " + " | ".join((*cells, meanings[key.name])) + " |")
    return "\n".join(lines)


SECTIONS: Mapping[str, Callable[[], str]] = {
    **{
        f"options-{scheme}": partial(options_table, options)
        for scheme, options in BACKEND_OPTIONS.items()
    },
    "bridge-keys": bridge_keys,
    "close-reasons": close_reasons,
    "counters": counters_table,
    "events": events_table,
    "kafka-keys": kafka_keys,
    "health-diagram": health_diagram,
    "opensips-link-diagram": opensips_link_diagram,
    "opensips-link-table": links.table_markdown,
    "opensips-operations": opensips_operations,
    "health-table": health.table_markdown,
    "result-codes": result_codes,
}

if __name__ == "__main__":
    sys.exit(main())
