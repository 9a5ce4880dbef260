"""Which memory huge pages are asked for. A faster run is a matter of measurement, not of tests."""

from __future__ import annotations

from pathlib import Path

from clusternode.cli.local.huge_pages import HUGE_PAGE, HugePages, allows, anonymous_areas

MAPS = """\
00400000-00e00000 r-xp 00000000 08:01 131 /usr/bin/python3
01000000-01900000 rw-p 00000000 00:00 0 [heap]
7f0000100000-7f0000600000 rw-p 00000000 00:00 0
7f0001000000-7f0001100000 rw-p 00000000 00:00 0
7f0002000000-7f0002800000 r--p 00000000 00:00 0
7f0003000000-7f0003800000 rw-p 00000000 08:01 977 /usr/lib/with a space.so (deleted)
7f0004000000-7f0004800000 rw-s 00000000 00:01 12 /dev/zero (deleted)
7f0005000000-7f0005800000 rw-p 00000000 00:00 0 [anon:cpython:pymalloc]
7ffd00000000-7ffd00800000 rw-p 00000000 00:00 0 [stack]
"""


def test_whole_huge_pages_of_the_heap_and_of_memory_without_a_file_are_asked_for() -> None:
    assert list(anonymous_areas(MAPS)) == [
        (0x01000000, 0x01800000),
        (0x7F0000200000, 0x7F0000600000),
        (0x7F0005000000, 0x7F0005800000),
    ]


def test_an_operator_who_says_never_is_obeyed() -> None:
    assert not allows("always madvise [never]\n")
    assert allows("always [madvise] never\n")
    assert allows("[always] madvise never\n")


def test_asking_changes_nothing_that_is_in_memory() -> None:
    block = bytearray(b"0123456789abcdef" * (8 * HUGE_PAGE // 16))
    texts = [f"text {number}" for number in range(100_000)]
    asked = HugePages().ask()
    assert asked == 0 or asked >= 7 * HUGE_PAGE
    assert block == b"0123456789abcdef" * (8 * HUGE_PAGE // 16)
    assert texts[-1] == "text 99999"


def test_nothing_is_asked_for_where_nobody_says_which_memory_there_is(tmp_path: Path) -> None:
    assert HugePages().ask(tmp_path / "maps") == 0
