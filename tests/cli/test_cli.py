"""The command line itself: finding agents, output, help, errors."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.cli.commands.run import listening_line, overrides_of
from clusternode.cli.main import COMMANDS, build_parser, main
from clusternode.cli.output import duration, printable, table_lines
from clusternode.cli.reference import commands, describe, reference_markdown
from clusternode.config import load_settings
from clusternode.control.client import ControlClient, find_socket
from clusternode.errors import AgentNotReachable

SNAPSHOTS = Path(__file__).parent / "help"
OWN_COMMANDS = (
    "run",
    "nodes",
    "topology",
    "broadcast",
    "send",
    "request",
    "watch",
    "events",
    "reload",
    "stop",
    "config",
    "completion",
)


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_the_help_of_a_command_is_what_was_read_over(name):
    """After a change: `python -m tests.cli.test_cli` writes the snapshots; read the diff."""
    assert (SNAPSHOTS / f"{name}.txt").read_text() == help_text(name)


def help_text(name: str) -> str:
    return "\n".join(describe(words, parser) for words, parser in commands() if words[0] == name)


def test_the_reference_page_has_every_command_and_option():
    page = reference_markdown()

    for words, parser in commands():
        assert f"`{' '.join(words)}`" in page
        assert parser.epilog, "a command without examples"
        for action in parser._actions:
            assert action.help or not action.option_strings


def test_every_command_is_declared_in_order():
    listed = [words[0] for words, _ in commands() if len(words) == 1]

    assert listed == [name for name in COMMANDS if name in listed]


def test_starting_a_command_imports_neither_trio_nor_the_agent():
    program = "import sys, clusternode.cli.main as m; m.build_parser('nodes'); print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert not {"trio", "clusternode.agent", "msgpack"} & set(ran.stdout.split())


@pytest.mark.parametrize("words", [[], ["nodes"], ["nonsense"], ["nodes", "list", "--what"]])
def test_a_wrong_command_line_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)

    assert caught.value.code == 2
    assert "usage: clusternode" in capsys.readouterr().err


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("clusternode ")


def test_config_init_check_and_show_agree(tmp_path, capsys):
    file = tmp_path / "node.toml"
    assert main(["config", "init"]) == 0
    file.write_text(capsys.readouterr().out)

    assert "[kafka.main]" in file.read_text()
    assert main(["config", "check", "-c", str(file)]) == 0
    assert "all well" in capsys.readouterr().out
    assert main(["config", "show", "-c", str(file)]) == 0
    assert tomllib.loads(capsys.readouterr().out)["log"] == {"level": "info"}
    assert main(["config", "show", "-c", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log"] == {"level": "info"}


def test_a_wrong_configuration_ends_with_2_and_names_the_key(tmp_path, capsys):
    file = tmp_path / "node.toml"
    file.write_text("[health]\nping_intervall = 1\n")

    for words in (["config", "check"], ["run"], ["nodes", "list"]):
        assert main([*words, "-c", str(file)]) == 2
        assert "perhaps health.ping_interval" in capsys.readouterr().err


def test_an_agent_that_others_could_reach_is_refused_by_the_check(tmp_path, capsys):
    file = tmp_path / "node.toml"
    file.write_text("[node]\naddress = 'tcp://192.0.2.1:5062'\n")

    assert main(["config", "check", "-c", str(file)]) == 2
    assert "insecure = true" in capsys.readouterr().err
    file.write_text("[node]\naddress = 'tcp://192.0.2.1:5062'\ninsecure = true\n")
    assert main(["config", "check", "-c", str(file), "--json"]) == 0


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("./answer.sh", "a file that exists"),
        ("./readable.sh", "a file that may be executed"),
        ("no-such-program-anywhere", "a program on the PATH"),
    ],
)
def test_a_route_whose_program_cannot_start_is_refused_by_the_check(
    program, expected, tmp_path, capsys
):
    file = tmp_path / "node.toml"
    (tmp_path / "readable.sh").write_text("#!/bin/sh\n")
    file.write_text(f"[[route]]\non = 'request:locate'\nexec = ['{program}']\n")

    assert main(["config", "check", "-c", str(file)]) == 2
    said = capsys.readouterr().err
    assert "route 1 (request:locate" in said and expected in said


def test_a_route_whose_program_can_start_passes_the_check(tmp_path):
    file = tmp_path / "node.toml"
    (tmp_path / "answer.sh").write_text("#!/bin/sh\n")
    (tmp_path / "answer.sh").chmod(0o755)
    file.write_text("[[route]]\non = 'request:locate'\nexec = ['./answer.sh']\n")

    assert main(["config", "check", "-c", str(file)]) == 0


def test_options_of_run_become_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "run --node-id n7 --address tcp://127.0.0.1:7 --listen tcp://127.0.0.1:8 --insecure"
    words += " --notification-address tcp://a:1 --notification-address tcp://b:2 --state-dir s"
    words += " --socket n7.sock --log-level debug --routes r.py --cluster voip"
    arguments = build_parser("run").parse_args(words.split())

    settings = load_settings(None, environ={}, overrides=overrides_of(arguments))

    assert settings.node_id == "n7"
    assert settings.insecure
    assert settings.state_dir == tmp_path / "s"
    assert settings.control_socket == tmp_path / "n7.sock"
    assert settings.routes.file == tmp_path / "r.py"
    assert settings.log_level == "debug"
    assert len(settings.clusters["voip"].discovery.notification_addresses) == 2
    assert "voip at tcp://127.0.0.1:7 (listening on tcp://127.0.0.1:8)" in listening_line(settings)


def listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_the_only_live_socket_is_found_and_several_are_listed(tmp_path):
    with pytest.raises(AgentNotReachable, match="clusternode run"):
        find_socket(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    with listen_at(tmp_path / "a.sock"):
        assert find_socket(tmp_path) == tmp_path / "a.sock"
        with listen_at(tmp_path / "b.sock"), pytest.raises(AgentNotReachable, match=r"a\.sock.*b"):
            find_socket(tmp_path)


def test_an_agent_that_goes_away_is_told(tmp_path):
    with listen_at(tmp_path / "a.sock") as listener, ControlClient(tmp_path / "a.sock") as client:
        connection, _ = listener.accept()
        connection.close()
        with pytest.raises(AgentNotReachable):
            client.call("agent.info")


def test_something_that_is_no_agent_is_told(tmp_path):
    with listen_at(tmp_path / "a.sock") as listener, ControlClient(tmp_path / "a.sock") as client:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 hello\n")
            with pytest.raises(AgentNotReachable, match="no agent"):
                client.call("agent.info")


def test_a_closed_pipe_is_quiet():
    program = "import sys; from clusternode.cli.main import main; sys.exit(main())"
    command = f"{sys.executable} -c '{program}' config init | true"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert ran.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell, capsys):
    assert main(["completion", shell]) == 0

    script = capsys.readouterr().out
    assert all(name in script for name in OWN_COMMANDS)
    assert "--notification-address" in script or "-l notification-address" in script


def test_completion_of_bash_completes():
    script = subprocess.run(
        [sys.executable, "-m", "clusternode", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    line = "COMP_WORDS=(clusternode nodes s); COMP_CWORD=2; _clusternode; echo ${COMPREPLY[@]}"
    ran = subprocess.run(["bash", "-c", script + line], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["show", "set-status"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kafka show ma", ["main"]),
        ("kafka send ''", ["main", "traces"]),
        ("kafka notify x --connection t", ["traces"]),
        ("kafka send main c", []),
    ],
)
def test_completion_of_bash_knows_the_names_of_connections(words, expected, capsys):
    assert main(["completion", "bash"]) == 0
    own = "clusternode() { [[ $* == 'kafka status --names' ]] && printf 'main\\ntraces\\n'; }\n"
    line = (
        f"COMP_WORDS=(clusternode {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _clusternode\n"
    )
    script = capsys.readouterr().out + own + line + "echo ${COMPREPLY[@]}"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    found = [word for word in ran.stdout.split() if not word.startswith("-")]
    assert found == expected


cells = st.text(max_size=30)


@given(st.lists(st.tuples(cells, cells, cells), max_size=5), st.integers(30, 120))
def test_a_table_fits_the_terminal(rows, width):
    lines = table_lines(("A", "B", "C"), rows, width)

    assert len(lines) == len(rows) + 1
    assert all(len(line) <= width and line.isprintable() for line in lines)


def test_durations_and_control_characters_are_readable():
    times = (None, 1.25, 90.0, 5400.0, 200_000.0)
    assert [duration(time) for time in times] == ["-", "1.2 s", "2 min", "1.5 h", "2.3 d"]
    assert printable("a\x1b[2J") == "a\\x1b[2J"


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for own in OWN_COMMANDS:
        (SNAPSHOTS / f"{own}.txt").write_text(help_text(own))
