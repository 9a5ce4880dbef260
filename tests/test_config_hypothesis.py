"""No input makes anything but a ConfigError escape from the loader."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from clusternode.config import AgentSettings, load_settings
from clusternode.config.keys import sections
from clusternode.errors import ConfigError

KEYS = sorted({key.name for section in sections().values() for key in section.keys})
SECTIONS = ["node", "cluster", "discovery", "health", "messaging", "routes", "channel", "log"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["tcp://127.0.0.1:1", "tcp://[::1]:70000", "srv://x", "1.5", "[1]", "{a=1}"])
    | st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
words = st.sampled_from([*SECTIONS, *KEYS, "route", "a"]) | st.text(max_size=6)
paths = st.lists(words, min_size=1, max_size=5).map(".".join)
texts = st.text(max_size=30) | st.sampled_from(["1", "true", "{}", "[", "a,b", '"x"', "\ud800"])


def load_or_refuse(path=None, environ=None, overrides=None) -> AgentSettings | None:
    try:
        return load_settings(path, environ=environ or {}, overrides=overrides or {})
    except ConfigError as error:
        refusal = str(error)
    assert 0 < len(refusal) < 5000
    return None


@settings(deadline=None)
@given(st.dictionaries(paths, values, max_size=4))
def test_any_overrides_are_taken_or_refused(overrides):
    load_or_refuse(overrides=overrides)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.lists(words, max_size=4).map(lambda path: "CLUSTERNODE__" + "__".join(path).upper()),
        texts,
        max_size=4,
    )
)
def test_any_environment_is_taken_or_refused(environ):
    load_or_refuse(environ=environ)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(st.characters(codec="utf-8"), max_size=80).map(str.encode))
def test_any_file_is_taken_or_refused(data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "node.toml"
        path.write_bytes(data)
        load_or_refuse(path)


def test_hostile_nesting_is_refused(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text("a = " + "[" * 100_000)

    assert load_or_refuse(path) is None
    assert load_or_refuse(environ={"CLUSTERNODE__NODE__TAGS": "{a=" * 50_000}) is None
    assert load_or_refuse(environ={"CLUSTERNODE__NODE__PRIORITY": "9" * 10_000}) is None
