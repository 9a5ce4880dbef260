"""docs/protocol.md names every message, field and limit as the code has them."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from clusternode.core.wire import limits, schema
from clusternode.core.wire.messages import ListEntry, Record, Run

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
PAGE = (ROOT / "docs" / "protocol.md").read_text("utf-8")


@pytest.mark.parametrize("cls", [*schema.SCHEMAS, Record, ListEntry, Run])
def test_a_row_of_the_page_has_all_fields_in_order(cls):
    start = f"| {cls.TYPE} | {cls.__name__} | " if hasattr(cls, "TYPE") else f"| {cls.__name__} | "
    (row,) = [line for line in PAGE.splitlines() if line.startswith(start)]
    fields = [field.name for field in attrs.fields(cls)]
    described = row.removeprefix(start)

    found = [word for word in re.findall(r"\w+", described) if word in fields]

    assert list(dict.fromkeys(found)) == fields


def test_the_page_states_the_limits():
    chapter = PAGE.split("## 10. Limits")[1].split("## 11.")[0]

    for limit in (
        limits.HANDSHAKE_BYTES_MAX,
        limits.MESSAGE_OVERHEAD_MAX,
        limits.FIELDS_MAX,
        limits.ENTRIES_MAX,
        limits.TAGS_MAX,
        limits.TAG_VALUE_LENGTH_MAX,
        limits.CHANNELS_MAX,
        limits.NAME_LENGTH_MAX,
        limits.CONTENT_TYPE_LENGTH_MAX,
        limits.TAG_LENGTH_MAX,
        limits.ADDRESS_LENGTH_MAX,
        limits.AGENT_LENGTH_MAX,
        limits.DETAIL_LENGTH_MAX,
    ):
        assert re.search(rf"\b{limit}\b", chapter), limit
    assert limits.RUN_LENGTH_MAX == 2**20 and "| 2^20 |" in chapter
    assert limits.CONTROL_PAYLOAD_MAX == 2**20 and "| 1 MiB |" in chapter
    assert limits.BODY_SIZE_LIMIT == 16 * 2**20 and "| 16 MiB |" in chapter
