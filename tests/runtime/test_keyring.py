"""What may be a secret, and who may read the file that it is in."""

import os
from pathlib import Path

import attrs
import pytest

from clusternode.errors import ConfigError
from clusternode.runtime.keyring import (
    FILE_SIZE_MAX,
    SECRET_LENGTH_MAX,
    SECRET_LENGTH_MIN,
    SECRETS_MAX,
    Keyring,
    read_secrets,
)
from tests.agents import agent_settings

SHORTEST = "s" * SECRET_LENGTH_MIN


def section_with(**changes):
    (section,) = agent_settings("n1", "tcp://127.0.0.1:1").clusters.values()
    return attrs.evolve(section, **changes)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "secret"

    def write(content, mode=0o600):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return section_with(secret_file=path)

    return write


def test_without_a_secret_nothing_is_proved():
    assert read_secrets(section_with()) == ()
    assert Keyring().new_challenge() == b""


def test_challenges_are_new_each_time():
    keyring = Keyring([b"x" * 20])

    assert len({keyring.new_challenge() for _ in range(50)}) == 50
    assert len(keyring.new_challenge()) == 16


def test_each_line_of_the_file_is_a_secret_in_order(file):
    section = file(f"# new\n  {SHORTEST}2 \r\n\n# old\n{SHORTEST}1\n{SHORTEST}2\n")

    assert read_secrets(section) == (f"{SHORTEST}2".encode(), f"{SHORTEST}1".encode())


def test_those_of_the_environment_come_first(file):
    section = attrs.evolve(file("file " * 5), secret=("environment-" * 2,))

    assert read_secrets(section) == (b"environment-" * 2, b"file " * 4 + b"file")


@pytest.mark.parametrize(
    ("length", "is_refused"),
    [
        (SECRET_LENGTH_MIN - 1, True),
        (SECRET_LENGTH_MIN, False),
        (SECRET_LENGTH_MAX, False),
        (SECRET_LENGTH_MAX + 1, True),
    ],
)
def test_a_secret_has_a_length_in_bounds_and_is_never_shown(file, length, is_refused):
    for section in (file("z" * length), section_with(secret=("z" * length,))):
        if not is_refused:
            assert read_secrets(section) == (b"z" * length,)
            continue
        with pytest.raises(ConfigError, match="openssl rand") as raised:
            read_secrets(section)
        assert "zzz" not in str(raised.value)
        assert "zzz" not in repr(section)


@pytest.mark.parametrize(("count", "is_refused"), [(SECRETS_MAX, False), (SECRETS_MAX + 1, True)])
def test_there_are_few_secrets(file, count, is_refused):
    section = file("".join(f"{SHORTEST}{number}\n" for number in range(count)))
    if is_refused:
        with pytest.raises(ConfigError, match=f"at most {SECRETS_MAX}"):
            read_secrets(section)
    else:
        assert len(read_secrets(section)) == count


@pytest.mark.parametrize(
    ("mode", "is_refused"),
    [(0o600, False), (0o400, False), (0o640, False), (0o660, True), (0o644, True), (0o604, True)],
)
def test_a_file_that_others_can_read_is_refused(file, mode, is_refused):
    section = file(SHORTEST, mode)
    if is_refused:
        with pytest.raises(ConfigError, match=f"it is {mode:04o}: chmod 600"):
            read_secrets(section)
    else:
        assert read_secrets(section)


@pytest.mark.parametrize("content", ["", "\n\n", "# only a remark\n"])
def test_a_file_without_a_secret_is_refused(file, content):
    with pytest.raises(ConfigError, match="a line with a secret"):
        read_secrets(file(content))


def test_a_file_that_is_too_long_is_refused(file):
    with pytest.raises(ConfigError, match=f"at most {FILE_SIZE_MAX}"):
        read_secrets(file("#" + "x" * FILE_SIZE_MAX))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_secrets(section_with(secret_file=tmp_path / "nowhere"))


def test_only_a_file_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cluster\.secret_file"):
        read_secrets(section_with(secret_file=tmp_path))
    with pytest.raises(ConfigError, match="a regular file"):
        read_secrets(section_with(secret_file=Path(os.devnull)))
