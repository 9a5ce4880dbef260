"""What all tests share: the parts that a `real` test needs, and what their absence means."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

IS_CI = os.environ.get("CLUSTERNODE_CI") == "1"
PROGRAM_DIRECTORIES = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]  # where Debian keeps daemons
)

NEVER_SKIPPED = ("real", "long")
"""Markers of the stages that CI runs for their own sake."""

# Machines that run tests are shared and slow: a deadline per example would be about them.
settings.register_profile(
    "clusternode", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=IS_CI
)
settings.load_profile("clusternode")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a `real` or `long` test into a failure where nothing may be missing."""
    report = yield
    if IS_CI and report.skipped and any(map(item.get_closest_marker, NEVER_SKIPPED)):
        report.outcome = "failed"
        report.longrepr = f"skipped, although CLUSTERNODE_CI=1: {report.longrepr}"
    return report


@pytest.fixture
def require_program() -> Callable[[str], Path]:
    """Return a function that finds an outside program, or skips the test."""

    def require(name: str) -> Path:
        found = shutil.which(name, path=PROGRAM_DIRECTORIES)
        if found is None:
            pytest.skip(f"the program {name} is not installed")
        return Path(found)

    return require


@pytest.fixture
def network_namespaces(require_program: Callable[[str], Path]) -> Path:
    """Return the path of `ip`, or skip where network namespaces cannot be made."""
    ip = require_program("ip")
    name = f"cn-probe-{os.getpid()}"
    made = subprocess.run(
        [ip, "netns", "add", name], capture_output=True, text=True, check=False, timeout=10
    )
    if made.returncode != 0:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    subprocess.run([ip, "netns", "delete", name], check=True, timeout=10)
    return ip
