"""The unit of docs/examples, rated by systemd itself."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
UNIT = ROOT / "docs" / "examples" / "clusternode.service"
EXPOSURE_MAX = 1.5
"""Of 10; docs/security.md says what it is."""


@pytest.mark.real
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_leaves_little_open():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for clusternode\.service: ([0-9.]+)", done.stdout)

    assert found is not None, done.stderr
    assert float(found[1]) <= EXPOSURE_MAX
    assert f"rates it {found[1]}," in (ROOT / "docs" / "security.md").read_text("utf-8")
