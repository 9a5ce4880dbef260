"""`[[bridge]]` and `[[kafka_bridge]]`: what is read, what is refused, and circles of rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clusternode.bridge.circles import find_circle
from clusternode.bridge.service import read_bridges
from clusternode.config import load_settings
from clusternode.config.raw import RawTable
from clusternode.errors import ConfigError
from clusternode.gateways.registry import read_gateways

GATEWAYS: dict[str, Any] = {"gateway": {"kamailio": {}}}
FRAUD = {"name": "fraud", "from": "channel:fraud@kamailio", "to": "channel:fraud"}


def read(*bridges: dict[str, Any], old: bool = False, **more: Any):
    section = {"kafka_bridge" if old else "bridge": list(bridges)}
    tables = {"kafka": {"main": {}}, **GATEWAYS, **section, **more}
    return read_bridges(RawTable((), tables), ("voip", "other"))


@pytest.mark.parametrize(
    ("bridge", "expected"),
    [
        ({"from": "channel:a"}, "to = None"),
        ({"from": "channel:a", "to": "request:b"}, "one of channel, kafka, event"),
        ({"from": "event:E", "to": "contacts:b@kamailio"}, "one of channel, kafka, table"),
        ({"from": "kafka:none/t", "to": "channel:b"}, "a connection of [kafka.NAME]: main"),
        ({"from": "channel:a", "to": "kafka:main/t", "key": "{nobody}"}, "fields of origin"),
        ({"from": "channel:a", "to": "kafka:main/t", "kee": "x"}, "perhaps key"),
        ({"from": "channel:a b", "to": "kafka:main/t"}, "expected channel:NAME"),
    ],
)
def test_a_wrong_kafka_bridge_is_refused(bridge, expected):
    with pytest.raises(ConfigError) as caught:
        read(bridge, old=True)

    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "x" * 49}, "1 to 48 of"),
        ({"name": None}, "agents with this rule share it"),
        ({"to": "channel:fraud@kamailio"}, "another end than from"),
        ({"to": "channel:fraud@nowhere"}, "a cluster or gateway: voip, other, kamailio"),
        ({"to": "event:E_*"}, "no wildcard"),
        ({"to": "table:t"}, "the cluster too"),
        ({"to": "table:t@voip", "key": "{body}"}, "a gateway that has table"),
        ({"from": "event:E_X", "to": "table:t@kamailio"}, "such as {param.key}"),
        ({"from": "channel:a,b@kamailio", "names": {"c": "d"}}, "names of from"),
        ({"from": "channel:a,b@kamailio", "direction": "both"}, "{name} in it"),
        ({"filters": {"colour": "red"}}, "not colour"),
        ({"filters": {"origin": 1}}, "a list of them"),
        ({"template": "{body}"}, 'body = "text"'),
        ({"prefix": "x"}, "only in a rule to table"),
        ({"expires": 3600}, "only in a rule to table"),
        ({"key": "{body}"}, "only in a rule to kafka or table"),
        ({"headers": {"a": "b"}}, "only in a rule to kafka"),
        ({"dead_letter": "dead"}, "only in a rule from kafka"),
        ({"aor_domain": "x"}, "only in a rule to contacts"),
        ({"rate": -1}, "messages a second"),
        ({"direction": "back"}, "forward, both"),
    ],
)
def test_a_wrong_bridge_is_refused(changes, expected):
    bridge = {key: value for key, value in {**FRAUD, **changes}.items() if value is not None}

    with pytest.raises(ConfigError) as caught:
        read(bridge)

    assert expected in str(caught.value)


def test_two_bridges_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="a name that no other bridge has"):
        read(FRAUD, FRAUD)


def test_names_of_several_channels_are_mapped():
    (rule,) = read(
        {
            "name": "all",
            "from": "channel:fraud,calls@kamailio",
            "to": "channel:dmq-{name}",
            "names": {"calls": "cdr"},
            "direction": "both",
        }
    )

    assert [str(link) for link in rule.links] == [
        "channel:fraud@kamailio → channel:dmq-fraud@voip",
        "channel:dmq-fraud@voip → channel:fraud@kamailio",
        "channel:calls@kamailio → channel:dmq-cdr@voip",
        "channel:dmq-cdr@voip → channel:calls@kamailio",
    ]
    assert rule.is_ranked


def test_events_and_old_bridges_are_relayed_by_every_agent():
    (event,) = read({"name": "e", "from": "event:node:*", "to": "kafka:main/events"})
    (old,) = read({"from": "channel:cdr", "to": "kafka:main/cdrs", "key": "{origin}"}, old=True)

    assert not event.is_ranked
    assert not old.is_ranked
    assert (old.name, str(old.links[0])) == ("bridge-1", "channel:cdr@voip → kafka:main/cdrs")


def test_bridges_of_a_kafka_that_is_switched_off_are_left_out():
    tables = {
        "kafka": {"enabled": False, "main": {}},
        "bridge": [{"name": "a", "from": "channel:a", "to": "kafka:main/a"}],
    }

    assert read_bridges(RawTable((), tables), ("voip",)) == ()


def test_a_file_with_connections_and_bridges_is_read(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text(
        '[kafka.main]\nbrokers = "k:9092"\n'
        '[[kafka_bridge]]\nfrom = "channel:cdr"\nto = "kafka:main/cdrs"\nkey = "{origin}"\n'
        '[[bridge]]\nname = "back"\nfrom = "kafka:main/orders"\nto = "channel:orders"\n'
    )

    rules = read_bridges(load_settings(file, environ={}, overrides={}).plugins, ("voip",))

    assert [str(rule.links[0]) for rule in rules] == [
        "channel:cdr@voip → kafka:main/cdrs",
        "kafka:main/orders → channel:orders@voip",
    ]


# --- circles --------------------------------------------------------------------------------------

THERE = {"name": "there", "from": "channel:a@voip", "to": "channel:a@other"}
BACK = {"name": "back", "from": "channel:a@other", "to": "channel:a@voip"}


def test_a_circle_of_rules_is_refused_and_named():
    with pytest.raises(ConfigError) as caught:
        read(THERE, BACK)

    assert "there, back" in str(caught.value)
    assert "channel:a@voip → channel:a@other → channel:a@voip" in str(caught.value)


def test_a_circle_by_way_of_a_topic_and_without_a_cluster_is_refused():
    out = {"name": "out", "from": "channel:a", "to": "kafka:main/t"}
    back = {"name": "back", "from": "kafka:main/t", "to": "channel:a@voip"}

    with pytest.raises(ConfigError, match="no circle"):
        read(out, back)


def test_a_circle_within_one_rule_is_refused():
    crossed = {
        "name": "crossed",
        "from": "channel:a,b@voip",
        "to": "channel:{name}@voip",
        "names": {"a": "b", "b": "a"},
    }

    with pytest.raises(ConfigError, match="no circle"):
        read(crossed)


@pytest.mark.parametrize(
    "rules",
    [
        [THERE, {**BACK, "filters": {"origin": "edge-*"}}],
        [{**THERE, "direction": "both"}],
        [THERE, {**THERE, "name": "again"}],
    ],
)
def test_what_is_no_circle_is_read(rules):
    assert find_circle(read(*rules)) is None


def test_old_bridges_alone_may_make_one_as_before():
    out = {"from": "channel:a", "to": "kafka:main/t"}
    back = {"from": "kafka:main/t", "to": "channel:a"}

    assert len(read(out, back, old=True)) == 2


def test_raised_events_make_circles_too():
    out = {"name": "out", "from": "event:E_BAN*", "to": "channel:a"}
    back = {"name": "back", "from": "channel:a", "to": "event:E_BANNED"}

    with pytest.raises(ConfigError, match="no circle"):
        read(out, back)


def test_the_example_of_the_documentation_is_accepted():
    file = Path(__file__).parent.parent.parent / "docs" / "examples" / "bridge" / "node.toml"

    settings = load_settings(file, environ={}, overrides={})
    read_gateways(settings.plugins)
    rules = read_bridges(settings.plugins, tuple(settings.clusters))

    assert [rule.name for rule in rules] == ["ban", "fraud-log", "table", "users", "locate"]


def test_what_the_sip_worlds_have_is_refused_where_they_are_not():
    with pytest.raises(ConfigError, match="a cluster or gateway"):
        read_bridges(RawTable((), {"bridge": [FRAUD]}), ("voip",))
