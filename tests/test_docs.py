"""The documentation: links lead somewhere, and the quick start of the README works as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

import clusternode
from clusternode.config import load_settings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
FRAGMENTS = set((ROOT / "docs" / "changelog.d").glob("[0-9]*.md"))
"""Sentences for the change log, and no pages."""
PAGES = [README, *sorted(set((ROOT / "docs").rglob("*.md")) - FRAGMENTS)]
PROGRAM = Path(sys.executable).with_name("clusternode")

FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
PORT = re.compile(r"(?<=127\.0\.0\.1:)(?P<port>\d+)")

START_LIMIT = 20.0
"""Seconds for two agents to start and find each other on a busy machine."""
STOP_LIMIT = 10.0
COMMAND_LIMIT = 30.0


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    found = FENCE.finditer(path.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["language"] == language]


def anchors_of(path: Path) -> set[str]:
    """Return the anchors that forges make of headings."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", match["text"].lower()).replace(" ", "-")
        for match in HEADING.finditer(text)
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for match in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            broken.append(match["target"])

    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_have_one_title_at_the_top(page):
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line]

    first = next(line for line in lines if not line.startswith("<!--"))
    assert first.startswith("# ")


def test_every_page_can_be_reached_from_the_index():
    seen: dict[Path, None] = {}
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or not page.exists():
            continue
        seen[page] = None
        waiting += [
            (page.parent / match["target"].partition("#")[0]).resolve()
            for match in LINK.finditer(page.read_text(encoding="utf-8"))
            if match["target"].partition("#")[0].endswith(".md")
        ]

    assert [name_of(page) for page in PAGES if page not in seen and page != README] == []


def test_decisions_are_numbered_without_gaps_and_listed():
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")

    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert [page.name for page in pages if page.name not in listed] == []


def test_the_change_log_knows_the_version():
    changelog = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")

    assert f"## {clusternode.__version__}" in changelog


@pytest.mark.parametrize(
    ("page", "text"),
    [(page, text) for page in PAGES for text in blocks(page, "toml") if "[node]" in text],
    ids=lambda value: name_of(value) if isinstance(value, Path) else "",
)
def test_whole_configurations_in_the_documentation_are_valid(page, text, tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(text)

    load_settings(path, environ={}, overrides={})


# The quick start


class QuickStart:
    """The files and commands of the README in a directory, on free ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports: dict[str, str] = {}
        for language in ("python", "toml"):
            for text in blocks(README, language):
                name = text.partition("\n")[0].removeprefix("# ")
                (directory / name).write_text(PORT.sub(self._free_port, text))
        shell = next(text for text in blocks(README, "sh") if "clusternode run" in text)
        lines = [shlex.split(line, comments=True) for line in shell.splitlines()]
        self.commands = [line for line in lines if line[0] != "sleep"]  # for people

    def _free_port(self, match: re.Match[str]) -> str:
        if match["port"] not in self.ports:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self.ports[match["port"]] = str(server.getsockname()[1])
        return self.ports[match["port"]]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *command[1:-1]],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT,
            check=False,
            env=self._environment(),
        )

    @staticmethod
    def _environment() -> dict[str, str]:
        return {
            name: value for name, value in os.environ.items() if not name.startswith("CLUSTERNODE_")
        }


@pytest.fixture
def quick_start(tmp_path: Path) -> QuickStart:
    return QuickStart(tmp_path)


@pytest.fixture
def agents(quick_start: QuickStart) -> Iterator[list[subprocess.Popen[str]]]:
    """Run what the README puts into the background; kill what is left at the end."""
    with ExitStack() as stack:
        processes = []
        for command in quick_start.commands:
            if command[-1] == "&":
                process = stack.enter_context(quick_start.start(command))
                stack.callback(process.kill)
                processes.append(process)
        yield processes


async def eventually(holds: Callable[[], bool], limit: float) -> None:
    """Ask again and again until it holds; asking takes a process, so this is no busy loop."""
    with trio.fail_after(limit):
        while not await trio.to_thread.run_sync(holds):
            pass


@pytest.mark.slow
async def test_the_quick_start_of_the_readme_works(quick_start, agents):
    def both_are_active() -> bool:
        for agent in agents:
            assert agent.poll() is None, agent.communicate()[1]
        listed = quick_start.run("nodes", "list", "-c", "one.toml", "--json")
        rows = json.loads(listed.stdout) if listed.returncode == 0 else []
        # `two` has loaded its routes before it joined, so its channels are known with it.
        return [row["status"] for row in rows] == ["active", "active"] and all(
            row["local"] or row["channels"] for row in rows
        )

    await eventually(both_are_active, START_LIMIT)
    outputs = {}
    for command in quick_start.commands:
        if command[-1] != "&":
            ran = await trio.to_thread.run_sync(partial(quick_start.run, *command[1:]))
            assert ran.returncode == 0, f"{shlex.join(command)}\n{ran.stdout}{ran.stderr}"
            outputs[" ".join(command[1:3])] = ran.stdout

    assert outputs["nodes list"].count("active") >= len(agents)
    assert "sip:alice@192.0.2.10:5060" in outputs["request locate"]
    assert "200" in outputs["broadcast fraud"]
    assert [agent.wait(STOP_LIMIT) for agent in agents] == [0, 0]
