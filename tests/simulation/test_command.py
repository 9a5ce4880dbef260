"""`clusternode simulate`: what it prints, and its exit statuses."""

from __future__ import annotations

import argparse
import html.parser
import json
import tomllib
from pathlib import Path

import pytest

from clusternode.cli.commands import replay
from clusternode.cli.commands.simulate import Job, bar_text, shrunk
from clusternode.cli.main import main
from clusternode.simulation.runner import run
from clusternode.simulation.scenario import load
from clusternode.simulation.shrinking import as_toml

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


def test_whole_agents_live_through_the_same_story_without_a_digest(story, capsys):
    status = main(["simulate", "--world", "agents", story(GOOD), "--json"])

    (run,) = json.loads(capsys.readouterr().out)
    assert status == 0
    assert run["ok"] and run["digest"] is None and run["messages"] > 0
    assert run["command"].endswith("--seed 1 --world agents")


def test_a_story_that_breaks_for_nodes_breaks_for_whole_agents(story, capsys):
    status = main(["simulate", "--world", "agents", story(HOPELESS)])

    assert status == 1
    assert "5.200 s  the-dead-are-removed: n1 lists n2" in capsys.readouterr().err


def test_a_story_that_makes_no_sense_in_a_world_is_left_out_with_the_reason(story, capsys):
    file = story(GOOD + 'worlds = ["model"]\nbecause = "it is long"\n')

    status = main(["simulate", "--world", "agents", file])

    printed = capsys.readouterr()
    assert status == 2
    assert "story: not with --world agents: it is long" in printed.err
    assert "nothing is left to run" in printed.err


def test_a_world_is_left_out_for_a_reason_only(story, capsys):
    assert main(["simulate", story(GOOD + 'worlds = ["model"]\n')]) == 2
    assert "because: is missing" in capsys.readouterr().err


def test_options_of_one_world_are_refused_in_the_other(story, capsys):
    file = story(GOOD)

    assert main(["simulate", file, "--routes", "routes.py"]) == 2
    assert "--routes belongs to --world agents" in capsys.readouterr().err
    options = ["--trace", "t", "--node", "n1"]
    assert main(["simulate", "--world", "agents", file, *options]) == 2
    assert "--trace belongs to --world model" in capsys.readouterr().err


def test_json_is_an_array_with_one_object_for_each_run(story, capsys):
    status = main(["simulate", story(HOPELESS), "--seeds", "3..4", "--json"])

    runs = json.loads(capsys.readouterr().out)
    assert status == 1
    assert [run["seed"] for run in runs] == [3, 4]
    assert runs[0].keys() >= {"name", "seed", "ok", "digest", "virtual_s", "messages"}
    assert runs[0]["counters"]["pings_opened"] > 0
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
        (["--swarm", "--node", "n1"], "--trace and --node belong together"),
        (["--swarm", "--seeds", "1..2", "--report", "x"], "--report is for one run; these are 2"),
        (["--swarm", "--trace", "/no/x", "--node", "n1"], "/no/x: No such file"),
        (["--swarm", "--trace", "x", "--node", "n99"], "the story has no such node"),
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


def replayed(*words):
    """Run `clusternode replay` as its module alone."""
    parser = argparse.ArgumentParser()
    replay.add_parser(parser.add_subparsers())
    return replay.run(parser.parse_args(["replay", *words]))


def test_what_a_node_was_told_can_be_written_and_replayed(story, tmp_path, capsys):
    trace = str(tmp_path / "n2.trace")

    assert main(["simulate", story(GOOD), "--trace", trace, "--node", "n2"]) == 0
    assert replayed(trace) == 0
    assert "all as recorded" in capsys.readouterr().out

    assert replayed(trace, "--json") == 0
    assert json.loads(capsys.readouterr().out)["segments"] == 1


def test_a_replay_that_differs_is_status_1_and_names_the_step(story, tmp_path, capsys):
    trace = tmp_path / "n2.trace"
    main(["simulate", story(GOOD), "--trace", str(trace), "--node", "n2"])
    trace.write_text(trace.read_text().replace('"fingerprint":"', '"fingerprint":"x', 1))

    assert replayed(str(trace)) == 1
    printed = capsys.readouterr()
    assert "not as recorded" in printed.out
    assert "line 2: Start" in printed.err
    assert "what they hold differs" in printed.err


def test_a_file_that_is_no_recording_is_status_2(tmp_path, capsys):
    assert replayed(str(tmp_path / "missing")) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_report_is_one_page_that_shows_nodes_faults_and_what_did_not_hold(story, tmp_path):
    report = tmp_path / "out.html"

    main(["simulate", story(HOPELESS), "--report", str(report)])

    text = report.read_text()
    parser = html.parser.HTMLParser()
    parser.feed(text)
    parser.close()
    assert "n1 lists n2" in text
    assert ">kill n2<" in text
    assert "says active" in text
    assert "http" not in text and "<script" not in text


def test_a_failing_story_is_shrunk_to_a_file_that_fails_in_the_same_way(story, capsys):
    values = tomllib.loads(HOPELESS) | {"nodes": 4}
    values["step"] += [{"at": 4.0, "reset": "*"}, {"at": 3.0, "kill": "n4"}]

    file = Path(story(as_toml(values)))

    text = shrunk(Job(file, 1, None), run(load(file), 1))

    smallest = tomllib.loads(text)
    assert (smallest["nodes"], len(smallest["step"])) == (2, 1)
    assert main(["simulate", story(text)]) == 1
    assert "the-dead-are-removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "done", "elapsed", "text"),
    [
        (0.5, 2, 60.0, "50%  2 of 4 runs  0.033 runs/s  1:00 left"),
        (0.0, 0, 0.0, "0%  0 of 4 runs"),
    ],
)
def test_progress_has_a_rate_and_the_time_left(share, done, elapsed, text):
    assert bar_text(share, done, 4, elapsed).endswith(text)


def test_the_swarm_needs_no_file(capsys):
    status = main(["simulate", "--swarm", "--seed", "1", "--json"])

    run = json.loads(capsys.readouterr().out)[0]
    assert status in (0, 1)
    assert run["command"] == "clusternode simulate --swarm --seed 1"
