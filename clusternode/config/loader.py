"""One TOML file, the environment and options → `AgentSettings`.

Options win over the environment, the environment over the file. Whatever is wrong ends in a
`ConfigError` that names the file or variable, the key, the value and what was expected.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import socket
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from clusternode.config.keys import (
    CLUSTER_OWN_KEYS,
    CLUSTER_TABLES,
    ENVIRONMENT_PREFIX,
    SECRET_KEYS,
    Key,
    Section,
    let_defaults_follow,
    sections,
)
from clusternode.config.kinds import NAME, SECRETS, SOCKET_PATH, Text, WrongValue, parse_text
from clusternode.config.places import default_socket
from clusternode.config.raw import RawTable
from clusternode.config.settings import (
    AgentSettings,
    ChannelSection,
    ClusterSection,
    ExecRoute,
    RoutesSection,
    SubscribeSection,
    TlsSection,
)
from clusternode.core.settings import DiscoverySettings, HealthSettings, MessagingSettings
from clusternode.core.types import Address, ChannelName, NodeId
from clusternode.errors import ConfigError

FILE_SIZE_MAX = 4 * 1024 * 1024
"""A configuration larger than that is not one."""
NAME_LENGTH_MAX = 64  # as NAME_PATTERN of core/types.py
SHOWN_LENGTH_MAX = 200
"""How much of a wrong value is shown."""

OPTIONS: Mapping[str, str] = {
    "node.id": "--node-id",
    "node.control_socket": "--socket",
    "node.record_dir": "--record",
    "cluster.name": "--cluster",
    "discovery.notification_addresses": "--notification-address",
    "routes.file": "--routes",
    "log.level": "--log-level",
}
"""Options of `run` that are not called as their key is."""

PLUGIN_SECTIONS = (
    *("kafka", "kafka_bridge", "bridge"),
    *("notifications", "notification_listener", "gateway"),
)
"""Sections whose keys are declared elsewhere; kept as `AgentSettings.plugins`."""

Tree = dict[str, Any]  # key → value or Tree, as TOML gives it
KeyPath = tuple[str, ...]


def load_settings(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    port_zero: bool = False,
) -> AgentSettings:
    """Read and check a configuration.

    Args:
        path: The file; None for the defaults.
        environ: Where `CLUSTERNODE__SECTION__KEY` is looked up.
        overrides: Dotted key → value as in TOML, from options of the command line.
        port_zero: Allow port 0 (whatever is free); for tests.

    Raises:
        ConfigError: Something is wrong; only the first mistake is told.
    """
    source = _Source(path)
    if path is not None:
        source.tree = _read_file(path)
    source.add_environment(environ)
    source.add_overrides(overrides)
    return _Reader(source, sections(port_zero=port_zero)).settings(environ)


def _read_file(path: Path) -> Tree:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError("file", str(path), f"a file that can be read ({reason})") from None
    if len(data) > FILE_SIZE_MAX:
        raise ConfigError("file", str(path), f"a file of at most {FILE_SIZE_MAX} bytes")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError("file", str(path), f"TOML in UTF-8 ({error})") from None


class _Shown(str):
    """A wrong value, shortened; shown as it is, without quotes around it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _shown(value: object) -> object:
    if isinstance(value, str) and len(value) <= SHOWN_LENGTH_MAX:
        return str(value)
    if value is None or isinstance(value, bool | float):
        return value
    try:
        return _Shown(reprlib.repr(value)[:SHOWN_LENGTH_MAX])
    except ValueError:  # an integer of more digits than Python writes out
        return _Shown(f"a value of type {type(value).__name__}")


@attrs.define
class _Source:
    """The values of all sources in one tree, and where those not from the file came from."""

    file: Path | None
    tree: Tree = attrs.Factory(dict)
    origins: dict[KeyPath, str] = attrs.Factory(dict)  # path → variable or option

    def origin_of(self, path: KeyPath) -> str:
        """Name where the value at `path`, or what it lies in, came from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return "" if self.file is None else str(self.file)

    def fail(self, path: KeyPath, value: object, expected: str) -> ConfigError:
        setting = ".".join(part[:SHOWN_LENGTH_MAX] for part in path)
        return ConfigError(setting, _shown(value), expected, self.origin_of(path))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        for variable in sorted(environ):
            if not variable.startswith(ENVIRONMENT_PREFIX):
                continue
            words = variable[len(ENVIRONMENT_PREFIX) :].split("__")
            path = self._path_of(words)
            self._put(path, Text(environ[variable]), f"environment variable {variable}")

    def _path_of(self, words: list[str]) -> KeyPath:
        """Return the key that a variable means: a user's own name keeps the file's spelling."""
        path = [word.lower() for word in words]
        if len(path) > 2 and path[0] in ("channel", "cluster", "kafka"):  # a table in it
            table = self.tree.get(path[0])
            known = list(table) if isinstance(table, dict) else []
            path[1] = next((name for name in known if name.lower() == path[1]), path[1])
        return tuple(path)

    def add_overrides(self, overrides: Mapping[str, object]) -> None:
        for setting, value in overrides.items():
            path = tuple(setting.split("."))
            option = OPTIONS.get(setting, "--" + path[-1].replace("_", "-"))
            self._put(path, Text(value) if isinstance(value, str) else value, f"option {option}")

    def _put(self, path: KeyPath, value: object, origin: str) -> None:
        table = self.tree
        for depth, word in enumerate(path[:-1], 1):
            below = table.setdefault(word, {})
            if isinstance(below, Text):
                below = table[word] = parse_text(below)
            if not isinstance(below, dict):
                raise self.fail(path[:depth], below, f"a table, because {origin} sets a key in it")
            table = below
        table[path[-1]] = value
        self.origins[path] = origin


@attrs.define
class _Reader:
    """Turns the tree into settings, section by section."""

    source: _Source
    sections: Mapping[str, Section]

    def settings(self, environ: Mapping[str, str]) -> AgentSettings:
        tree = self.source.tree
        names = [name.partition(".")[0] for name in self.sections]
        self._refuse_unknown((), tree, [*names, *PLUGIN_SECTIONS])
        node = self._values("node")
        clusters = self._clusters(node)
        discovery = self._values("discovery")
        node_id = NodeId(cast("str", node["id"] or default_node_id(socket.gethostname())))
        tls = self._tls(clusters)
        return AgentSettings(
            node_id=node_id,
            tls=tls,
            priority=cast("int", node["priority"]),
            **{name: self._beside_file(node[name]) for name in ("state_dir", "record_dir")},
            record_size_max=cast("int", node["record_size_max"]),
            control_socket=self._control_socket(node["control_socket"], environ, node_id),
            insecure=cast("bool", node["insecure"]),
            log_level=cast("str", self._values("log")["level"]),
            clusters=clusters,
            routes=self._routes(),
            exec_routes=self._exec_routes(),
            subscribe=tuple(SubscribeSection(**each) for _, each in self._listed("subscribe")),
            channels=self._channels(),
            file=self.source.file,
            plugins=self._plugins(),
            nameservers=cast("tuple[str, ...]", discovery["nameservers"]),
        )

    def _plugins(self) -> RawTable:
        tree = self.source.tree
        given = {name: tree[name] for name in PLUGIN_SECTIONS if name in tree}
        directory = cast("Path", self._beside_file(Path()))
        return RawTable((), given, directory, self.source.fail)

    def _table(self, path: KeyPath, value: object) -> Tree:
        if isinstance(value, Text):
            value = parse_text(value)
        if not isinstance(value, dict):
            raise self.source.fail(path, value, "a table")
        return value

    def _refuse_unknown(self, path: KeyPath, table: Tree, known: Iterable[str]) -> None:
        known = sorted(set(known))
        for name in table:
            if name not in known:
                expected = self._suggestion(path, name, known)
                raise self.source.fail((*path, name), table[name], expected)

    def _suggestion(self, path: KeyPath, name: str, known: list[str]) -> str:
        where = "".join(f"{part}." for part in path)
        elsewhere = [
            section.name
            for section in self.sections.values()
            if section.key(name) is not None and "NAME" not in section.name
        ]
        close = difflib.get_close_matches(name[:SHOWN_LENGTH_MAX], known, 1)
        if elsewhere and name not in known:
            return f"a known key, perhaps {elsewhere[0]}.{name}"
        if close:
            return f"a known key, perhaps {where}{close[0]}"
        return "a known key, one of " + ", ".join(known)

    def _values(self, name: str) -> dict[str, object]:
        """Read the top-level section `name`."""
        section = self.sections[name]
        table = self._table((name,), self.source.tree.get(name, {}))
        self._refuse_unknown((name,), table, (key.name for key in section.keys))
        return {key.name: self._value((name,), table, key) for key in section.keys}

    def _value(self, path: KeyPath, table: Tree, key: Key) -> object:
        if key.name not in table:
            return key.default
        try:
            return key.kind.read(table[key.name])
        except WrongValue as error:
            expected = str(error) or key.kind.expected
            raise self.source.fail((*path, key.name), table[key.name], expected) from None

    def _clusters(self, node: dict[str, object]) -> Mapping[str, ClusterSection]:
        table = self._table(("cluster",), self.source.tree.get("cluster", {}))
        tables = {name: _as_table(value) for name, value in table.items()}
        if table and all(value is not None for value in tables.values()):
            found: dict[str, ClusterSection] = {}
            kind = self.sections["cluster"].keys[0].kind
            for name, value in tables.items():
                path = ("cluster", name)
                try:
                    kind.read(name)
                except WrongValue:
                    raise self.source.fail(path, value, f"a name of {kind.expected}") from None
                found[name] = self._cluster(path, cast("Tree", value), name, node)
            return found
        key = self.sections["cluster"].keys[0]
        name = cast("str", self._value(("cluster",), table, key))
        own = {key_: value for key_, value in table.items() if key_ != "name"}
        return {name: self._cluster(("cluster",), own, name, node)}

    def _cluster(
        self, path: KeyPath, table: Tree, name: str, node: dict[str, object]
    ) -> ClusterSection:
        secret_keys = (key.name for key in SECRET_KEYS)
        top_keys = ("name",) if len(path) == 1 else ()
        known = (*CLUSTER_OWN_KEYS, *CLUSTER_TABLES, *secret_keys, *top_keys)
        self._refuse_unknown(path, table, known)
        keys = {key.name: key for key in self.sections["cluster.NAME"].keys}
        own = {
            key: self._value(path, table, keys[key]) if key in table else node[key]
            for key in CLUSTER_OWN_KEYS
        }
        address = cast("Address", own["address"])
        listen = own["listen"] if "address" not in table or "listen" in table else None
        merged = {key: self._merged(path, table, key) for key in CLUSTER_TABLES}
        let_defaults_follow(merged["health"], merged["messaging"])
        discovery = DiscoverySettings(**merged["discovery"])
        health = HealthSettings(**merged["health"])
        messaging = MessagingSettings(**merged["messaging"])
        self._check_limits(path, table, discovery, health, messaging)
        return ClusterSection(
            name=name,
            address=address,
            listen=cast("Address | None", listen) or address,
            tags=cast("Mapping[str, str]", own["tags"]),
            discovery=discovery,
            health=health,
            messaging=messaging,
            secret_file=self._beside_file(self._value(path, table, keys["secret_file"])),
            secret=self._secrets((*path, "secret"), table),
        )

    def _secrets(self, path: KeyPath, table: Tree) -> tuple[str, ...]:
        """Read what only the environment may say, and no error may show."""
        if "secret" not in table:
            return ()
        if path not in self.source.origins:
            raise self.source.fail(path, "…", "secret_file = PATH, or an environment variable")
        try:
            return cast("tuple[str, ...]", SECRETS.convert(str(table["secret"])))
        except WrongValue:
            raise self.source.fail(path, "…", SECRETS.expected) from None

    def _tls(self, clusters: Mapping[str, ClusterSection]) -> TlsSection | None:
        """Read `[tls]`, which is all there or not at all, and see who needs it."""
        values = self._values("tls")
        files = ("certificate", "key", "ca")
        missing = [name for name in files if values[name] is None]
        for cluster in clusters.values():
            schemes = {cluster.address.scheme, cluster.listen.scheme}
            path = ("node",) if len(clusters) == 1 else ("cluster", cluster.name)
            if len(schemes) > 1:
                expected = f"{cluster.address.scheme}://, as in `address`: {cluster.address}"
                raise self.source.fail((*path, "listen"), str(cluster.listen), expected)
            if "tls" in schemes and missing:
                raise self.source.fail(("tls", missing[0]), None, "a path, because of tls://")
        if len(missing) == len(files):
            return None
        if missing:
            raise self.source.fail(("tls", missing[0]), None, "a path, as for the other files")
        return TlsSection(
            mutual=cast("bool", values["mutual"]),
            **{name: cast("Path", self._beside_file(values[name])) for name in files},
        )

    def _merged(self, path: KeyPath, table: Tree, name: str) -> dict[str, Any]:
        """Read a section of one cluster over the top-level one."""
        top = self._table((name,), self.source.tree.get(name, {}))
        every = self._values(name)
        values = {key.name: every[key.name] for key in CLUSTER_TABLES[name] if key.name in top}
        inner = self._table((*path, name), table.get(name, {}))
        keys = CLUSTER_TABLES[name]
        self._refuse_unknown((*path, name), inner, (key.name for key in keys))
        for key in keys:
            if key.name in inner:
                values[key.name] = self._value((*path, name), inner, key)
        return values

    def _check_limits(
        self,
        path: KeyPath,
        table: Tree,
        discovery: DiscoverySettings,
        health: HealthSettings,
        messaging: MessagingSettings,
    ) -> None:
        """Check what only several keys together say."""

        def where(section: str, *names: str) -> KeyPath:
            """Return the path of the first of `names` that somebody wrote, else of the first."""
            inner = _as_table(table.get(section)) or {}
            outer = _as_table(self.source.tree.get(section)) or {}
            for name in names:
                if name in inner:
                    return (*path, section, name)
                if name in outer:
                    return (section, name)
            return (section, names[0])

        if health.ping_timeout > health.ping_interval:
            at = where("health", "ping_timeout", "ping_interval")
            value = getattr(health, at[-1])
            expected = (
                f"at most ping_interval ({health.ping_interval:g})"
                if at[-1] == "ping_timeout"
                else f"at least ping_timeout ({health.ping_timeout:g}; set that too)"
            )
            raise self.source.fail(at, value, expected)
        if messaging.result_timeout < messaging.delivery_timeout:
            at = where("messaging", "result_timeout", "delivery_timeout")
            value = getattr(messaging, at[-1])
            expected = (
                f"at least delivery_timeout ({messaging.delivery_timeout:g})"
                if at[-1] == "result_timeout"
                else f"at most result_timeout ({messaging.result_timeout:g}; set that too)"
            )
            raise self.source.fail(at, value, expected)
        if discovery.redial_min > discovery.redial_max:
            at = where("discovery", "redial_min", "redial_max")
            value = getattr(discovery, at[-1])
            raise self.source.fail(at, value, "redial_min to be at most redial_max")

    def _routes(self) -> RoutesSection:
        values = self._values("routes")
        file = self._beside_file(values.pop("file"))
        return RoutesSection(file=file, **cast("dict[str, Any]", values))

    def _channels(self) -> Mapping[ChannelName, ChannelSection]:
        table = self._table(("channel",), self.source.tree.get("channel", {}))
        keys = self.sections["channel.NAME"].keys
        channels: dict[ChannelName, ChannelSection] = {}
        for name, value in table.items():
            path = ("channel", name)
            try:
                NAME.read(name)
            except WrongValue:
                raise self.source.fail(path, value, f"a name of {NAME.expected}") from None
            own = self._table(path, value)
            self._refuse_unknown(path, own, (key.name for key in keys))
            values = {key.name: self._value(path, own, key) for key in keys}
            channels[ChannelName(name)] = ChannelSection(**cast("dict[str, Any]", values))
        return channels

    def _exec_routes(self) -> tuple[ExecRoute, ...]:
        routes = []
        for path, values in self._listed("route"):
            values["exec"] = self._command(path, values["exec"])
            routes.append(ExecRoute(**values))
        return tuple(routes)

    def _listed(self, name: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
        """Read `[[name]]`; a key without a default is needed."""
        value = self.source.tree.get(name, [])
        listed = parse_text(value) if isinstance(value, Text) else value
        if not isinstance(listed, list):
            raise self.source.fail((name,), listed, f"a list of tables: [[{name}]]")
        keys = self.sections[name].keys
        for number, entry in enumerate(listed, 1):
            path = (name, str(number))
            own = self._table(path, entry)
            self._refuse_unknown(path, own, (key.name for key in keys))
            for key in keys:
                if key.default is None and key.name not in own:
                    raise self.source.fail((*path, key.name), None, key.kind.expected)
            yield path, {key.name: self._value(path, own, key) for key in keys}

    def _command(self, path: KeyPath, words: tuple[str, ...]) -> tuple[str, ...]:
        if not words[0]:
            raise self.source.fail((*path, "exec"), list(words), "a program as the first entry")
        if "/" not in words[0]:
            return words
        return (str(self._beside_file(Path(words[0]))), *words[1:])

    def _beside_file(self, path: object) -> Path | None:
        """Make a path of the file absolute: it is relative to the file's directory."""
        if path is None:
            return None
        base = Path.cwd() if self.source.file is None else self.source.file.absolute().parent
        return base / cast("Path", path)

    def _control_socket(self, path: object, environ: Mapping[str, str], node_id: NodeId) -> Path:
        chosen = self._beside_file(path) or default_socket(node_id, environ, os.getuid())
        try:
            SOCKET_PATH.read(str(chosen))
        except WrongValue:
            at = ("node", "control_socket")
            raise self.source.fail(at, str(chosen), SOCKET_PATH.expected) from None
        return chosen


def _as_table(value: object) -> Tree | None:
    if isinstance(value, Text):
        value = parse_text(value)
    return value if isinstance(value, dict) else None


def default_node_id(host: str) -> str:
    """Return a node id made of a host name."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", host)[:NAME_LENGTH_MAX] or "node"
