"""What the journals of agents under load must not say is found where they say it."""

from __future__ import annotations

import pytest

from tests.real.load import journals

SENT = "R load.a 1 n2=200\nR load.b 2 n2=480\nE 2\n"
HANDLED = "H n1 7 load.a 1 1\n"


def write(directory, name, text):
    (directory / f"{name}.journal").write_text(text)


def test_what_is_handled_once_and_said_so_is_no_problem(tmp_path):
    write(tmp_path, "n1-7", SENT)
    write(tmp_path, "n2-8", HANDLED + "H n1 7 lo")  # it was killed in the middle of a line

    assert list(journals.problems(journals.read(tmp_path))) == []


@pytest.mark.parametrize(
    ("sent", "handled", "problem"),
    [
        (SENT, "", "200 from n2, which handled it 0 times"),
        (SENT, HANDLED + HANDLED, "handled ('n1', '7', 'load.a', 1) 2 times"),
        (SENT, HANDLED + "H n1 7 load.b 2 1\n", "480 from n2, which handled it"),
        (SENT, HANDLED + "H n1 7 load.c 3 0\n", "the checksum of"),
        (SENT, "H n1 7 load.a 4 1\n" + HANDLED, "1 after 4"),
        (SENT.replace("E 2", "E 3"), HANDLED, "3 sent, and 2 have their results"),
        (SENT.replace("n2=200", "n2=200 n2=200"), HANDLED, "two results of one node"),
    ],
)
def test_every_broken_promise_is_found(tmp_path, sent, handled, problem):
    write(tmp_path, "n1-7", sent)
    write(tmp_path, "n2-8", handled)

    assert any(problem in one for one in journals.problems(journals.read(tmp_path)))


def test_progress_reads_each_byte_once(tmp_path):
    progress = journals.Progress(tmp_path)
    write(tmp_path, "n2-8", HANDLED)
    assert progress.handled() == 1

    with (tmp_path / "n2-8.journal").open("a") as file:
        file.write(HANDLED + SENT)
    assert (progress.handled(), progress.ended()) == (2, 1)
