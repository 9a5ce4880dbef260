"""`clusternode simulate`: what it prints, and its exit statuses."""

from __future__ import annotations

import json

import pytest

from clusternode.cli.main import main

GOOD = 'title = "Two"\nnodes = 2\nduration = 10.0\n'
HOPELESS = (
    GOOD
    + """
[[step]]
at = 5.0
kill = "n2"
[expect]
always = []
eventually = { by = 5.2, holds = ["converged-digests", "the-dead-are-removed"] }
"""
)


@pytest.fixture
def story(tmp_path):
    def write(text):
        file = tmp_path / "story.toml"
        file.write_text(text)
        return str(file)

    return write


def test_a_good_run_is_a_row_and_status_0(story, capsys):
    status = main(["simulate", story(GOOD)])

    printed = capsys.readouterr()
    assert status == 0
    assert "story" in printed.out and "ok" in printed.out
    assert printed.err == ""


def test_a_bad_run_names_what_when_and_the_command_that_repeats_it(story, capsys):
    file = story(HOPELESS)

    status = main(["simulate", file, "--seed", "7"])

    printed = capsys.readouterr()
    assert status == 1
    assert "5.200 s  the-dead-are-removed: n1 lists n2" in printed.err
    assert f"repeat it: clusternode simulate {file} --seed 7" in printed.err


def test_json_is_an_array_with_one_object_for_each_run(story, capsys):
    status = main(["simulate", story(HOPELESS), "--seeds", "3..4", "--json"])

    runs = json.loads(capsys.readouterr().out)
    assert status == 1
    assert [run["seed"] for run in runs] == [3, 4]
    assert runs[0].keys() >= {"name", "seed", "ok", "digest", "virtual_s", "messages"}
    assert runs[0]["violations"][0]["invariant"] == "the-dead-are-removed"


@pytest.mark.slow
def test_runs_in_other_processes_are_the_same_runs(story, capsys):
    file = story(GOOD)
    main(["simulate", file, "--seeds", "1..3", "--json"])
    alone = json.loads(capsys.readouterr().out)

    status = main(["simulate", file, "--seeds", "1..3", "--json", "--jobs", "2"])

    assert status == 0
    assert json.loads(capsys.readouterr().out) == alone


def test_the_number_of_nodes_is_part_of_the_command_that_repeats_a_run(story, capsys):
    main(["simulate", story(GOOD), "--nodes", "3", "--json"])

    assert "--nodes 3" in json.loads(capsys.readouterr().out)[0]["command"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected either files with stories, or --swarm"),
        (["a.toml", "--swarm"], "expected either files with stories, or --swarm"),
        (["missing.toml"], "missing.toml: No such file"),
        (["--swarm", "--nodes", "3"], "the swarm draws its own"),
    ],
)
def test_a_wrong_command_line_is_status_2(words, message, capsys):
    assert main(["simulate", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--seed", "x"], ["--seeds", "5"], ["--seeds", "5..1"], ["--jobs", "0"]]
)
def test_a_wrong_number_is_status_2(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["simulate", "--swarm", *words])

    assert exit_.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_the_swarm_needs_no_file(capsys):
    status = main(["simulate", "--swarm", "--seed", "1", "--json"])

    run = json.loads(capsys.readouterr().out)[0]
    assert status in (0, 1)
    assert run["command"] == "clusternode simulate --swarm --seed 1"
