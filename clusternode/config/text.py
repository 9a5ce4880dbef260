"""The configuration as text: the sample file and the reference page, from the declared keys."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from clusternode.config.keys import ENVIRONMENT_PREFIX, Key, Section, help_of, sections
from clusternode.config.kinds import Text, parse_text
from clusternode.config.raw import RawTable
from clusternode.config.settings import AgentSettings
from clusternode.core.types import Address

SAMPLE_HEAD = """\
# Configuration of a clusternode agent: `clusternode run -c FILE`.
#
# Every key stands here with its default, switched off by a `#`. `clusternode config check -c FILE`
# checks a file, `clusternode config show -c FILE` shows what an agent would run with.
# Every key can also be set in the environment: [health] ping_interval is
# CLUSTERNODE__HEALTH__PING_INTERVAL.
"""
SAMPLE_TAIL = """\
# Executables as handlers, as often as needed:
#
#     [[route]]
#     on = "request:locate"
#     exec = ["./locate.sh"]
#
# Events to back ends, as often as needed:
#
#     [[subscribe]]
#     event = "node:state"
#     to = "flatstore:/var/log/clusternode/events"
#
# Kafka: named connections and notifications; every key of theirs is in docs/kafka.md and
# docs/coming-from-oslo-messaging.md:
#
#     [kafka.main]
#     brokers = "kafka1:9092,kafka2:9092"
#
# Bridges between clusters, gateways and Kafka; every key is in docs/one-bus-from-three.md:
#
#     [[bridge]]
#     name = "cdr"
#     from = "channel:cdr"
#     to = "kafka:main/cdrs"
#
# Settings of one channel, here of the channel fraud:
#
#     [channel.fraud]
#     overflow = "wait"
#
# A node of several clusters has a table for each, instead of [cluster]. Each may hold an address,
# listen and tags, and tables discovery, health and messaging; what it leaves out comes from above:
#
#     [cluster.voip]
#     tags = { role = "proxy" }
#
#     [cluster.voip.discovery]
#     notification_addresses = ["tcp://10.0.0.21:5062"]
#
#     [cluster.billing]
#     address = "tcp://10.0.1.20:5062"
"""
SECRET_NAME = re.compile(r"password|secret|token|\.pem$")
"""Keys whose values are never shown."""
SECRET_IN_URI = re.compile(
    r"(://[^/:@\s]*:|,[^/:@\s]*:)[^@/\s,]+(?=@)|([&?][gt]\.[a-z.]*(?:password|secret)=)[^&]+"
)
"""Passwords inside of URLs and of event URIs."""
LISTED = ("route", "subscribe")
"""Sections of which there may be several: `[[name]]`."""
IN_SAMPLE_TAIL = ("route", "subscribe", "channel.NAME", "cluster.NAME")


def toml_value(value: object) -> str:
    """Write a value of a settings object as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return toml_value(value.value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path | Address):
        # A JSON string is a TOML basic string, but that TOML wants DEL escaped (TOML 1.0, String).
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    assert isinstance(value, Mapping), f"no TOML for {type(value).__name__}"
    inner = ", ".join(f"{toml_key(key)} = {toml_value(entry)}" for key, entry in value.items())
    return f"{{ {inner} }}" if inner else "{}"


def toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else toml_value(key)


def sample() -> str:
    """Return a commented configuration file; all its keys are switched off."""
    parts = [SAMPLE_HEAD]
    for section in sections().values():
        if section.name in IN_SAMPLE_TAIL:
            continue
        lines = [f"# {section.help}", f"[{section.name}]"]
        for key in section.keys:
            lines += ["", *_comment(section, key)]
        parts.append("\n".join(lines) + "\n")
    parts.append(SAMPLE_TAIL)
    return "\n".join(parts)


def _comment(section: Section, key: Key) -> list[str]:
    lines = [f"# {help_of(section, key)}"]
    if key.default is None:
        lines.append(f"# Default: {key.default_text or 'none'}.")
    else:
        lines.append(f"#{key.name} = {toml_value(key.default)}")
    if key.example:
        lines.append(f"# Example: {key.example}")
    return lines


REFERENCE_HEAD = """\
# Configuration

One TOML file, given as `clusternode run -c FILE`.
`clusternode config init` prints a commented one, `config check` checks one, `config show` shows what an agent would run with.
Unknown keys are errors.
Paths are relative to the directory of the file.

Options of `run` win over the environment, the environment wins over the file.
A key of the environment is `CLUSTERNODE__`, the section, `__` and the key, in capitals: `CLUSTERNODE__HEALTH__PING_INTERVAL=1.5`.
Its value is written as in TOML; strings may go without quotes, and lists as `a,b`:

```sh
CLUSTERNODE__NODE__ID=edge-1
CLUSTERNODE__DISCOVERY__NOTIFICATION_ADDRESSES='tcp://10.0.0.21:5062,tcp://10.0.0.22:5062'
CLUSTERNODE__NODE__TAGS='{ role = "registrar" }'
CLUSTERNODE__CHANNEL__FRAUD__OVERFLOW=wait
CLUSTERNODE__ROUTE='[{ on = "request:locate", exec = ["./locate.sh"] }]'
```

The name of a channel or cluster in a variable means the one that the file has in any spelling, else the one in small letters.

The control socket of an agent, where nothing else is said, is `/run/clusternode/NODE.sock` for root, and `$XDG_RUNTIME_DIR/clusternode/NODE.sock` (`/run/user/UID/clusternode/NODE.sock` where that variable is not set) for everybody else.
Commands without `-c` and `--socket` use the one socket of that directory on which an agent answers, and list them if there are several.

Where only `ping_interval` is written and is shorter than the default of `ping_timeout`, that follows it; so does `result_timeout` a longer `delivery_timeout`.
Checked beyond each key: `ping_timeout` is at most `ping_interval`, `result_timeout` at least `delivery_timeout`, `redial_min` at most `redial_max`.
"""  # noqa: E501  # one sentence per line


REFERENCE_TAIL = """\
## Sections described elsewhere

| section | where |
|---|---|
| `[kafka]`, `[kafka.NAME]` | [Kafka](../kafka.md) |
| `[[bridge]]`, `[[kafka_bridge]]` | [One bus from three](../one-bus-from-three.md) |
| `[notifications]`, `[[notifications.routing]]`, `[[notification_listener]]` | [Coming from oslo.messaging](../coming-from-oslo-messaging.md) |
| `[gateway.NAME]` | [Gateways](gateways.md) |
"""  # noqa: E501  # a row of a table


def reference_markdown() -> str:
    """Return docs/reference/configuration.md."""
    parts = ["<!-- Generated by docs/generate.py; do not edit. -->\n", REFERENCE_HEAD]
    for section in sections().values():
        title = f"[[{section.name}]]" if section.name in LISTED else f"[{section.name}]"
        lines = [f"## `{title}`", "", section.help, ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(section, key) for key in section.keys]
        parts.append("\n".join(lines) + "\n")
    parts.append(REFERENCE_TAIL)
    return "\n".join(parts)


def _row(section: Section, key: Key) -> str:
    if key.default is not None:
        default = f"`{toml_value(key.default)}`"
    else:
        default = key.default_text or ("needed" if section.name in LISTED else "none")
    meaning = help_of(section, key)
    if key.example:
        meaning += f" Example: `{key.example}`."
    cells = (f"`{key.name}`", key.kind.expected, default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def environment_name(section: str, key: str) -> str:
    """Return the name of the environment variable of a key."""
    return ENVIRONMENT_PREFIX + "__".join((*section.split("."), key)).upper()


def settings_toml(settings: AgentSettings) -> str:
    """Write settings as a file that gives the same settings again, all keys spelt out."""
    lines = ["[node]", f"id = {toml_value(settings.node_id)}"]
    first = next(iter(settings.clusters.values()))
    node = {
        "address": first.address,
        "listen": first.listen,
        "priority": settings.priority,
        "state_dir": settings.state_dir,
        "record_dir": settings.record_dir,
        "record_size_max": settings.record_size_max,
        "control_socket": settings.control_socket,
        "insecure": settings.insecure,
    }
    lines += _lines(node)
    if settings.nameservers:
        lines += ["", "[discovery]", f"nameservers = {toml_value(settings.nameservers)}"]
    for cluster in settings.clusters.values():
        name = toml_key(cluster.name)
        lines += ["", f"[cluster.{name}]"]
        own = {
            "address": cluster.address,
            "listen": cluster.listen,
            "tags": cluster.tags,
            "secret_file": cluster.secret_file,
        }
        lines += _lines(own)
        for table in ("discovery", "health", "messaging"):
            lines += ["", f"[cluster.{name}.{table}]", *_lines(_fields(getattr(cluster, table)))]
    if settings.tls is not None:
        lines += ["", "[tls]", *_lines(_fields(settings.tls))]
    lines += ["", "[routes]", *_lines(_fields(settings.routes))]
    for channel, section in settings.channels.items():
        lines += ["", f"[channel.{toml_key(channel)}]", *_lines(_fields(section))]
    for route in settings.exec_routes:
        lines += ["", "[[route]]", *_lines(_fields(route))]
    for subscribe in settings.subscribe:
        lines += ["", "[[subscribe]]", *_lines(_fields(subscribe))]
    lines += _plugin_lines(settings.plugins)
    lines += ["", "[log]", f"level = {toml_value(settings.log_level)}"]
    return "\n".join(lines) + "\n"


def _plugin_lines(plugins: RawTable) -> list[str]:
    """Write the sections of plug-ins as they were read, what is secret as `***`."""
    masked = {name: masked_secrets(value) for name, value in plugins.values.items()}
    lines = []
    for name, value in masked.items():
        if isinstance(value, list):
            for entry in value:
                lines += ["", f"[[{name}]]", *_lines(entry)]
            continue
        own = {key: entry for key, entry in value.items() if not isinstance(entry, dict)}
        if own or not value:
            lines += ["", f"[{name}]", *_lines(own)]
        for key, entry in value.items():
            if isinstance(entry, dict):
                lines += ["", f"[{name}.{toml_key(key)}]", *_lines(entry)]
    return lines


def masked_secrets(value: Any, name: str = "") -> Any:  # noqa: ANN401  # a TOML value
    """Return a value in which nothing that is named as a secret can be read."""
    if isinstance(value, Text):
        value = parse_text(value)
    if isinstance(value, Mapping):
        return {key: masked_secrets(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [masked_secrets(entry, name) for entry in value]
    if isinstance(value, str) and value:
        if SECRET_NAME.search(name):
            return "***"
        return SECRET_IN_URI.sub(lambda match: (match[1] or match[2]) + "***", value)
    return value


def _fields(value: attrs.AttrsInstance) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}


def _lines(values: Mapping[str, object]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in values.items() if value is not None]
