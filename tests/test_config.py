"""The configuration: what is read, what is refused, and how the refusal is told."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusternode.config import AgentSettings, load_settings
from clusternode.config.keys import HELP_CLASSES, sections
from clusternode.config.loader import default_node_id
from clusternode.config.places import default_socket
from clusternode.config.text import (
    environment_name,
    reference_markdown,
    sample,
    settings_toml,
    toml_value,
)
from clusternode.core.settings import DiscoverySettings, HealthSettings, MessagingSettings
from clusternode.core.types import Address, ChannelName, OverflowPolicy
from clusternode.errors import ConfigError

FULL = """
[node]
id = "edge-1"
address = "tcp://10.0.0.20:5062"
listen = "tcp://0.0.0.0:5062"
priority = 10
tags = { role = "registrar", site = "fra" }
state_dir = "state"
control_socket = "/run/clusternode/edge-1.sock"
insecure = true

[cluster]
name = "voip"

[discovery]
notification_addresses = ["tcp://10.0.0.21:5062", "srv://_clusternode._tcp.example.net"]
nameservers = ["192.0.2.53:53", "[2001:db8::1]:5353"]

[health]
ping_interval = 1

[routes]
file = "routes.py"

[channel.fraud]
overflow = "wait"

[[route]]
on = "request:locate"
exec = ["./locate.sh", "-v"]
environment = { LANG = "C" }

[log]
level = "debug"
"""


@pytest.fixture
def load(tmp_path):
    """Load a text as a file, with an environment and overrides."""

    def load_text(text="", environ=None, overrides=None, **options) -> AgentSettings:
        path = tmp_path / "node.toml"
        path.write_text(text)
        return load_settings(path, environ=environ or {}, overrides=overrides or {}, **options)

    return load_text


def test_every_section_is_read(load, tmp_path):
    settings = load(FULL)

    assert settings.node_id == "edge-1"
    assert settings.priority == 10
    assert settings.state_dir == tmp_path / "state"
    assert settings.control_socket == Path("/run/clusternode/edge-1.sock")
    assert settings.insecure
    assert settings.log_level == "debug"
    assert settings.nameservers == ("192.0.2.53:53", "[2001:db8::1]:5353")
    assert settings.routes.file == tmp_path / "routes.py"
    assert settings.channels["fraud"].overflow is OverflowPolicy.WAIT
    (route,) = settings.exec_routes
    assert route.exec == (str(tmp_path / "./locate.sh"), "-v")
    assert route.environment == {"LANG": "C"}
    (cluster,) = settings.clusters.values()
    assert cluster.name == "voip"
    assert cluster.tags == {"role": "registrar", "site": "fra"}
    assert str(cluster.address) == "tcp://10.0.0.20:5062"
    assert str(cluster.listen) == "tcp://0.0.0.0:5062"
    assert len(cluster.discovery.notification_addresses) == 2


def test_an_empty_file_gives_the_defaults(load):
    settings = load("")

    (cluster,) = settings.clusters.values()
    assert cluster.health == HealthSettings()
    assert cluster.discovery == DiscoverySettings()
    assert cluster.messaging == MessagingSettings()
    assert cluster.address == cluster.listen == Address("tcp", "127.0.0.1", 5062)


def test_several_clusters_override_the_top_level(load):
    settings = load("""
[node]
address = "tcp://127.0.0.1:1"
tags = { a = "1" }
[health]
ping_interval = 3.0
[cluster.voip]
[cluster.billing]
address = "tcp://127.0.0.1:2"
tags = { b = "2" }
[cluster.billing.health]
ping_interval = 1.0
[cluster.billing.discovery]
notification_addresses = ["tcp://127.0.0.1:9"]
""")

    assert list(settings.clusters) == ["voip", "billing"]
    voip, billing = settings.clusters.values()
    assert (voip.health.ping_interval, billing.health.ping_interval) == (3.0, 1.0)
    assert (voip.tags, billing.tags) == ({"a": "1"}, {"b": "2"})
    assert billing.listen == billing.address == Address("tcp", "127.0.0.1", 2)
    assert voip.discovery.notification_addresses == ()


def test_a_shorter_ping_interval_takes_the_timeout_with_it(load):
    health = load("[health]\nping_interval = 0.5").clusters["default"].health

    assert health.ping_timeout == 0.5


def test_options_win_over_the_environment_and_that_over_the_file(load):
    settings = load(
        "[node]\nid = 'file'\npriority = 1\n[log]\nlevel = 'error'",
        {"CLUSTERNODE__NODE__ID": "environment", "CLUSTERNODE__NODE__PRIORITY": "2"},
        {"node.id": "option"},
    )

    assert (settings.node_id, settings.priority, settings.log_level) == ("option", 2, "error")


def test_the_environment_takes_toml_and_bare_strings(load):
    settings = load(
        "[channel.Fraud]\n",
        {
            "CLUSTERNODE__NODE__ID": "12",
            "CLUSTERNODE__NODE__TAGS": '{ role = "proxy" }',
            "CLUSTERNODE__DISCOVERY__NOTIFICATION_ADDRESSES": "tcp://a:1, tcp://b:2",
            "CLUSTERNODE__DISCOVERY__NAMESERVERS": '["192.0.2.1:53"]',
            "CLUSTERNODE__CHANNEL__FRAUD__OVERFLOW": "drop_oldest",
            "CLUSTERNODE__CHANNEL__OTHER__ORDERED": "false",
            "CLUSTERNODE__ROUTE": '[{ on = "event:peer:up", exec = ["/bin/true"] }]',
            "CLUSTERNODE__HEALTH": "{ ping_interval = 7.5 }",
            "OTHER": "x",
        },
    )

    cluster = settings.clusters["default"]
    assert settings.node_id == "12"
    assert cluster.tags == {"role": "proxy"}
    assert [str(each) for each in cluster.discovery.notification_addresses] == [
        "tcp://a:1",
        "tcp://b:2",
    ]
    assert settings.nameservers == ("192.0.2.1:53",)
    assert settings.channels["Fraud"].overflow is OverflowPolicy.DROP_OLDEST
    assert not settings.channels["other"].ordered
    assert settings.exec_routes[0].on == "event:peer:up"
    assert cluster.health.ping_interval == 7.5


@pytest.mark.parametrize(
    ("text", "setting", "expected"),
    [
        ("[health]\nping_intervall = 5", "health.ping_intervall", "perhaps health.ping_interval"),
        ("[node]\nping_interval = 5", "node.ping_interval", "perhaps health.ping_interval"),
        ("[helth]\n", "helth", "perhaps health"),
        ("[health]\nping_interval = 0.01", "health.ping_interval", "at least 0.05"),
        ("[health]\nping_interval = 'x'", "health.ping_interval", "a number of seconds"),
        ("[health]\nping_interval = true", "health.ping_interval", "a number of seconds"),
        ("[health]\nping_interval = inf", "health.ping_interval", "a number of seconds"),
        ("[health]\nping_timeout = 6", "health.ping_timeout", "at most ping_interval"),
        ("[health]\nfail_count_threshold_disabled = -1", "disabled", "at least 0"),
        ("[health]\nremove_inactive = 1", "health.remove_inactive", "true or false"),
        ("[messaging]\nresult_timeout = 5", "result_timeout", "at least delivery_timeout"),
        ("[messaging]\nbody_size_max = 99999999", "body_size_max", "at most 16777216"),
        ("[node]\nid = 'a b'", "node.id", "characters"),
        ("[node]\naddress = '10.0.0.1'", "node.address", "tcp://HOST:PORT"),
        ("[node]\naddress = 'tcp://0.0.0.0:1'", "node.address", "others can dial"),
        ("[node]\naddress = 'tcp://[::]:1'", "node.address", "others can dial"),
        ("[node]\naddress = 'tcp://10.0.0.1:0'", "node.address", "a port from 1"),
        ("[node]\naddress = 'srv://x'", "node.address", "tcp://HOST:PORT"),
        ("[node]\naddress = 'tls://a:1'", "tls.certificate", "because of tls://"),
        ("[tls]\nca = 'a'", "tls.certificate", "as for the other files"),
        (
            "[node]\naddress = 'tls://a:1'\nlisten = 'tcp://a:1'",
            "node.listen",
            "tls://, as in `address`",
        ),
        ("[node]\ntags = { 'a b' = '1' }", "node.tags", "tag keys"),
        ("[node]\ntags = { a = 1 }", "node.tags", "a string for the tag a"),
        ('[node]\ntags = { a = "1\\t2" }', "node.tags", "without control characters for the tag a"),
        ("[node]\ncontrol_socket = '/" + "x" * 120 + "'", "node.control_socket", "107 bytes"),
        ("[discovery]\nnameservers = ['dns.example']", "discovery.nameservers", "IP:PORT"),
        ("[discovery]\nnotification_addresses = 'tcp://a:1'", "notification_addresses", "a list"),
        ("[discovery]\nredial_min = 9", "discovery.redial_min", "at most redial_max"),
        ("[cluster]\nname = ''", "cluster.name", "printable"),
        ("[cluster]\nnmae = 'x'", "cluster.nmae", "perhaps cluster.name"),
        ("[cluster.a]\nping = 1", "cluster.a.ping", "a known key"),
        ("[cluster.a.health]\nping_timeout = 9", "cluster.a.health.ping_timeout", "at most"),
        ("[cluster.a.discovery]\nnameservers = []", "cluster.a.discovery.nameservers", "known"),
        ("[channel.'a b']\n", "channel.a b", "characters"),
        ("[channel.a]\noverflow = 'drop'", "channel.a.overflow", "one of reject, drop_oldest"),
        ("[[route]]\non = 'request:a'", "route.1.exec", "a list of string"),
        ("[[route]]\non = 'locate'\nexec = ['a']", "route.1.on", "request:CHANNEL"),
        ("[[route]]\non = 'request:a'\nexec = []", "route.1.exec", "1 to 1024"),
        ("[route]\n", "route", "[[route]]"),
        ("node = 1", "node", "a table"),
        ("[log]\nlevel = 'loud'", "log.level", "one of debug"),
        ("[node", "file", "TOML"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(load, text, setting, expected):
    with pytest.raises(ConfigError) as caught:
        load(text)

    assert setting in caught.value.setting
    assert expected in caught.value.expected
    assert "node.toml" in str(caught.value)


def test_a_wrong_variable_or_option_is_named(load):
    with pytest.raises(ConfigError, match=r"variable CLUSTERNODE__LOG__LEVEL: log\.level"):
        load("", {"CLUSTERNODE__LOG__LEVEL": "loud"})
    with pytest.raises(ConfigError, match="option --log-level"):
        load("", {}, {"log.level": "loud"})
    with pytest.raises(ConfigError, match=r"perhaps log\.level"):
        load("", {"CLUSTERNODE__LOG__LEVL": "info"})


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "missing.toml", environ={}, overrides={})
    with pytest.raises(ConfigError, match="directory"):
        load_settings(tmp_path, environ={}, overrides={})


def test_a_long_wrong_value_is_shown_shortened(load):
    with pytest.raises(ConfigError) as caught:
        load("[node]\nid = '" + "x" * 10_000 + "'")

    assert len(str(caught.value)) < 600


def test_port_zero_is_for_tests(load):
    settings = load("[node]\naddress = 'tcp://127.0.0.1:0'", port_zero=True)

    assert settings.clusters["default"].address.port == 0


def test_a_host_name_becomes_a_node_id():
    assert default_node_id("edge 1.example") == "edge-1.example"
    assert default_node_id("") == "node"
    assert len(default_node_id("x" * 100)) == 64


def test_the_default_socket_depends_on_the_user():
    assert default_socket("a", {"XDG_RUNTIME_DIR": "/x"}, 0) == Path("/run/clusternode/a.sock")
    assert default_socket("a", {"XDG_RUNTIME_DIR": "/x"}, 7) == Path("/x/clusternode/a.sock")
    fallback = Path("/run/user/7/clusternode/a.sock")
    assert default_socket("a", {"XDG_RUNTIME_DIR": "x"}, 7) == fallback


def without_file(settings: AgentSettings) -> AgentSettings:
    return attrs.evolve(settings, file=None)


def test_the_sample_file_is_the_defaults_whether_its_keys_are_on_or_off(load):
    switched_on = re.sub(r"(?m)^#(?=\w)", "", sample())

    assert len(tomllib.loads(switched_on)["health"]) == 7
    assert without_file(load(sample())) == without_file(load(""))
    assert without_file(load(switched_on)) == without_file(load(""))


def test_every_key_of_the_sample_and_the_reference_has_help():
    text, page = sample(), reference_markdown()
    for section in sections().values():
        for key in section.keys:
            assert f"`{key.name}`" in page
            if section.name not in ("route", "channel.NAME", "cluster.NAME"):
                assert re.search(rf"(?m)^#( Example: )?{key.name} = |^# Default", text)
    assert not re.search(r"\| *\|$", page, re.MULTILINE), "a key without help"


def test_every_field_of_a_settings_class_is_a_key():
    for name, cls in HELP_CLASSES.items():
        keys = {key.name for key in sections()[name].keys}
        assert set(attrs.fields_dict(cls)) <= keys


def test_a_key_has_a_variable():
    assert environment_name("health", "ping_interval") == "CLUSTERNODE__HEALTH__PING_INTERVAL"


def test_settings_written_out_read_back_the_same(load):
    settings = load(FULL)

    assert without_file(load(settings_toml(settings))) == without_file(settings)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_string_survives_being_written_as_toml(text):
    assert tomllib.loads(f"a = {toml_value(text)}") == {"a": text}


def test_a_secret_comes_from_a_file_or_the_environment_but_not_from_the_configuration(load):
    section = load('[cluster]\nname = "voip"\nsecret_file = "secret"').clusters["voip"]
    assert section.secret_file is not None and section.secret_file.is_absolute()
    assert section.has_secret

    section = load("", environ={"CLUSTERNODE__CLUSTER__SECRET": "new-one old-one"}).clusters[
        "default"
    ]
    assert section.secret == ("new-one", "old-one")
    assert section.has_secret

    with pytest.raises(ConfigError, match="an environment variable") as raised:
        load('[cluster]\nsecret = "hunter2-hunter2"')
    assert "hunter2" not in str(raised.value)


def test_a_secret_of_the_environment_is_never_shown(load):
    settings = load("", environ={"CLUSTERNODE__CLUSTER__SECRET": "hunter2-hunter2"})

    assert "hunter2" not in settings_toml(settings) + repr(settings)


def test_each_of_several_clusters_has_its_own_secret(load):
    settings = load(
        '[cluster.voip]\nsecret_file = "/a"\n[cluster.billing]\n',
        environ={"CLUSTERNODE__CLUSTER__BILLING__SECRET": "1234567890123456"},
    )

    assert str(settings.clusters["voip"].secret_file) == "/a"
    assert settings.clusters["billing"].secret == ("1234567890123456",)


def test_permissions_are_node_ids_tags_or_everyone(load):
    channel = load('[channel.fraud]\npublish = ["edge-1", "role=registrar", "site="]').channels[
        ChannelName("fraud")
    ]
    assert channel.publish == ("edge-1", "role=registrar", "site=")
    assert channel.ask == ("*",)
    for wrong in ("a b", "=x", "a b=c", ""):
        with pytest.raises(ConfigError, match="KEY=VALUE"):
            load(f'[channel.fraud]\nask = ["{wrong}"]')
