"""`clusternode tls`: an authority, certificates, and what is in them."""

from __future__ import annotations

import json
import stat

import pytest

from clusternode.cli.main import main


@pytest.fixture
def pki(tmp_path, capsys):
    assert main(["tls", "init-ca", "--dir", str(tmp_path / "pki")]) == 0
    assert main(["tls", "issue", "edge-1", "--dir", str(tmp_path / "pki")]) == 0
    capsys.readouterr()
    return tmp_path / "pki"


def test_three_commands_make_a_working_set_up(pki, tmp_path, capsys):
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nid = "edge-1"\naddress = "tls://10.0.0.20:5062"\n'
        '[tls]\ncertificate = "pki/edge-1.crt"\nkey = "pki/edge-1.key"\nca = "pki/ca.crt"\n'
    )
    files = [str(pki / "edge-1.crt"), "--ca", str(pki / "ca.crt")]

    assert main(["tls", "inspect", *files]) == 0
    assert main(["config", "check", "-c", str(config)]) == 0

    output = capsys.readouterr().out
    assert "node ids     edge-1" in output
    assert "all well" in output


def test_keys_are_for_their_owner(pki):
    for name in ("ca.key", "edge-1.key"):
        assert stat.S_IMODE((pki / name).stat().st_mode) == 0o600


def test_nothing_is_replaced_without_force(pki, capsys):
    before = (pki / "edge-1.crt").read_bytes()

    assert main(["tls", "issue", "edge-1", "--dir", str(pki)]) == 2
    assert "--force" in capsys.readouterr().err
    assert (pki / "edge-1.crt").read_bytes() == before

    assert main(["tls", "issue", "edge-1", "--dir", str(pki), "--force"]) == 0
    assert (pki / "edge-1.crt").read_bytes() != before


def test_inspect_tells_programs_and_fails_for_a_foreign_certificate(pki, tmp_path, capsys):
    assert main(["tls", "init-ca", "--dir", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    words = ["tls", "inspect", str(pki / "edge-1.crt"), "--json", "--ca"]

    assert main([*words, str(pki / "ca.crt")]) == 0
    (ours,) = json.loads(capsys.readouterr().out)
    assert main([*words, str(tmp_path / "other" / "ca.crt")]) == 1
    (theirs,) = json.loads(capsys.readouterr().out)

    assert ours["node_ids"] == ["edge-1"]
    assert (ours["issued_by_ca"], theirs["issued_by_ca"]) == (True, False)
    assert 395 <= ours["days_left"] <= 397
    assert ours["valid_now"] and not ours["is_ca"]


@pytest.mark.parametrize("node_id", ["a_b:c", "A.b-1", "x" * 64])
def test_every_node_id_can_be_certified(pki, capsys, node_id):
    assert main(["tls", "issue", node_id, "--dir", str(pki)]) == 0
    assert main(["tls", "inspect", str(pki / f"{node_id}.crt")]) == 0
    assert f"node ids     {node_id}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["issue", "no/name"],
        ["issue", "n1", "--days", "0"],
        ["issue", "n1", "--host", "no host"],
        ["inspect", "nowhere.crt"],
        ["inspect", "pyproject.toml"],
    ],
)
def test_what_is_wrong_is_said(pki, capsys, words):
    options = ["--dir", str(pki)] if words[0] == "issue" else []

    assert main(["tls", *words, *options]) == 2
    assert "expected" in capsys.readouterr().err


def test_an_authority_must_be_there(tmp_path, capsys):
    assert main(["tls", "issue", "n1", "--dir", str(tmp_path)]) == 2
    assert "init-ca" in capsys.readouterr().err
