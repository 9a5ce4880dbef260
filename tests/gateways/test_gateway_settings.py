"""`[gateway.NAME]`: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusternode.config import load_settings
from clusternode.errors import ConfigError
from clusternode.gateways.kamailio.plugin import SECTION
from clusternode.gateways.kamailio.settings import KamailioSettings
from clusternode.gateways.kamailio.translate import PeerAddress
from clusternode.gateways.opensips.settings import BinUrl, OpenSipsSettings
from clusternode.gateways.registry import names, read_gateways, sections

OWN = 'server_address = "sip:127.0.0.9:5060"'


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> KamailioSettings:
    file = tmp_path / "node.toml"
    file.write_text(text)
    settings = load_settings(file, environ=environ or {}, overrides={})
    [configured] = read_gateways(settings.plugins)
    assert isinstance(configured.settings, KamailioSettings)
    return configured.settings


def test_without_its_table_a_gateway_does_not_run():
    settings = load_settings(None, environ={}, overrides={})

    assert read_gateways(settings.plugins) == []


def test_every_key_is_read(tmp_path):
    settings = read(
        tmp_path,
        f"""
        [gateway.kamailio]
        {OWN}
        server_socket = "sip:127.0.0.10:5070"
        notification_address = ["sip:kam1.example.org", "sip:127.0.0.1:5060"]
        notification_channel = "peers"
        multi_notify = true
        ping_interval = 2
        fr_timer = 10
        remove_inactive = false
        fail_count_enabled = false
        fail_count_threshold_not_active = 3
        fail_count_threshold_disabled = 5
        htables = {{ ht = 3600, other = 0 }}
        """,
        {"CLUSTERNODE__GATEWAY__KAMAILIO__FR_TIMER": "12"},
    )

    assert settings.server_address == PeerAddress("udp", "127.0.0.9", 5060)
    assert settings.socket == PeerAddress("udp", "127.0.0.10", 5070)
    assert [seed.host for seed in settings.notification_address] == [
        "kam1.example.org",
        "127.0.0.1",
    ]
    assert (settings.ping_interval, settings.ping_timeout) == (2.0, 2.0)
    assert settings.fr_timer == 12.0
    assert settings.htables == {"ht": 3600, "other": 0}
    assert settings.health.fail_count_threshold_disabled == 5


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "server_address"),
        ('server_address = "sip:127.0.0.9"', "port"),
        ('server_address = "sip:kam.example.org:5060"', "names"),
        ('server_address = "sip:[::1]:5060"', "IPv6"),
        ('server_address = "udp://127.0.0.9:5060"', "sip:IPv4"),
        ('server_address = "sip:10.1.2.3:5060"', "insecure = true"),
        (f'{OWN}\nserver_socket = "sip:0.0.0.0:5060"', "insecure = true"),
        (f'{OWN}\nserver_socket = "sip:127.0.0.9:5060;transport=tcp"', "transport"),
        (f'{OWN}\nnotification_address = ["sip:127.0.0.1:5060;transport=tcp"]', "transport"),
        (f"{OWN}\nping_interval = 0.5", "at least 1"),
        (f"{OWN}\nping_timeout = 9", "ping_interval"),
        (f"{OWN}\nping_intervall = 5", "ping_interval"),
        (f'{OWN}\nhtables = ["ht"]', "seconds"),
        (f"{OWN}\nhtables = {{ ht = -1 }}", "seconds"),
        ('server_address = "sip:127.0.0.9:5061;transport=tls"', "transport=tls"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, lines, words):
    with pytest.raises(ConfigError, match=r"gateway\.kamailio") as raised:
        read(tmp_path, f"[gateway.kamailio]\n{lines}\n")

    assert words in str(raised.value)


def test_an_unknown_gateway_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match="perhaps kamailio"):
        read(tmp_path, "[gateway.kamalio]\n")


def test_every_gateway_declares_its_keys():
    assert "kamailio" in names()
    assert SECTION in list(sections())
    assert all(key.help for key in SECTION.keys)


OPENSIPS = """
[gateway.opensips]
cluster_id = 1
my_node_id = 9
my_node_info = "cluster_id=1, url=bin:127.0.0.9:5555, sip_addr=127.0.0.9, flags=seed"
"""


def read_opensips(tmp_path: Path, text: str) -> OpenSipsSettings:
    file = tmp_path / "node.toml"
    file.write_text(text)
    settings = load_settings(file, environ={}, overrides={})
    [configured] = read_gateways(settings.plugins)
    assert isinstance(configured.settings, OpenSipsSettings)
    return configured.settings


def test_every_key_of_opensips_is_read(tmp_path):
    settings = read_opensips(
        tmp_path,
        OPENSIPS
        + """
        neighbor_node_info = ["node_id=1, url=bin:sip1.example.org", "node_id=2, url=bin:[::1]:7"]
        socket = "bin:127.0.0.10:5555"
        priority = 10
        retries = 1
        ping_interval = 2
        ping_timeout = 0.5
        node_timeout = 10
        enable_rerouting = false
        pace = 100
        capabilities = ["ours"]
        cache_collections = ["c1", "c2"]
        usrloc = true
        sharing_tags = ["vip", "db=active"]
        mi_allow = ["core:uptime"]
        sync_timeout = 5
        sync_packet_size = 4096
        seed_fallback_interval = 1
        """,
    )

    assert settings.my_node_info.url == BinUrl("bin", "127.0.0.9", 5555)
    assert settings.my_node_info.is_seed and settings.my_node_info.sip_addr == "127.0.0.9"
    assert [str(each.url) for each in settings.neighbor_node_info] == [
        "bin:sip1.example.org:5555",
        "bin:[::1]:7",
    ]
    assert settings.listen == BinUrl("bin", "127.0.0.10", 5555)
    assert settings.sharing_tags == (("vip", False), ("db", True))
    assert settings.description.priority == 10 and settings.description.retries == 1
    assert settings.cache_collections == ("c1", "c2") and settings.usrloc


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("my_node_id = 9", "", "my_node_id"),
        ("my_node_id = 9", "my_node_id = 0", "at least 1"),
        ("bin:127.0.0.9:5555", "tcp:127.0.0.9:5555", "bin:HOST:PORT"),
        ("bin:127.0.0.9:5555", "bin:127.0.0.9:99999", "bin:HOST:PORT"),
        ("bin:127.0.0.9:5555", "bin:sip.example.org:5555", "numeric"),
        ("bin:127.0.0.9:5555", "bin:10.1.2.3:5555", "insecure = true"),
        ("bin:127.0.0.9:5555", "bins:127.0.0.9:5556", "tls_certificate"),
        ("cluster_id=1, url", "cluster_id=2, url", "that of 1"),
        ("flags=seed", "flags=other", "seed"),
        ("sip_addr=127.0.0.9", "sip_addr", "sip_addr=TEXT"),
        ("sip_addr=127.0.0.9", "url=bin:127.0.0.9:1", "sip_addr=TEXT"),
        ("my_node_id = 9", 'my_node_id = 9\nsocket = "bin:0.0.0.0:5555"', "insecure = true"),
        ("my_node_id = 9", 'my_node_id = 9\nsocket = "bins:127.0.0.9:5555"', "as in my_node_info"),
        ("my_node_id = 9", 'my_node_id = 9\nsocket = "bin:name:5555"', "numeric"),
        ("my_node_id = 9", "my_node_id = 9\nping_timeout = 5", "ping_interval"),
        ("my_node_id = 9", 'my_node_id = 9\nneighbor_node_info = ["url=bin:a:1"]', "node_id=N"),
        (
            "my_node_id = 9",
            'my_node_id = 9\nneighbor_node_info = ["node_id=9, url=bin:a:1"]',
            "not ours",
        ),
        ("my_node_id = 9", 'my_node_id = 9\nsharing_tags = ["vip=maybe"]', "NAME=active"),
        ("my_node_id = 9", "my_node_id = 9\nmy_node_if = 1", "my_node_info"),
    ],
)
def test_what_is_wrong_for_opensips_is_said(tmp_path, old, new, words):
    with pytest.raises(ConfigError, match=words):
        read_opensips(tmp_path, OPENSIPS.replace(old, new))
