"""Which schemes there are: entry points of the group `clusternode.event_backends`.

Our own are entry points too (pyproject.toml), and also listed here, so that a source tree that
was never installed has them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points

from clusternode.backends.base import BackendFactory, BackendServices, EventBackend, wrong_uri

GROUP = "clusternode.event_backends"
URI_LENGTH_MAX = 4096
"""Longer than any list of brokers with its properties."""

IN_TREE: Mapping[str, str] = {
    "channel": "clusternode.backends.channel:ChannelBackend",
    "exec": "clusternode.backends.program:ProgramBackend",
    "flatstore": "clusternode.backends.flatstore:FlatstoreBackend",
    "http": "clusternode.backends.http:HttpBackend",
    "https": "clusternode.backends.http:HttpsBackend",
    "kafka": "clusternode.backends.kafka:KafkaBackend",
    "log": "clusternode.backends.log:LogBackend",
    "tcp": "clusternode.backends.stream:TcpBackend",
    "udp": "clusternode.backends.datagram:UdpBackend",
    "unix": "clusternode.backends.unix:make_unix_backend",
    "virtual": "clusternode.backends.virtual:VirtualBackend",
}
"""Scheme → module and factory."""


class Registry(Mapping[str, BackendFactory]):
    """Scheme → its factory, imported when it is asked for.

    Raises, where a scheme is looked up that is installed but cannot be imported:
        ConfigError: Says what is missing.
    """

    def __init__(self, more: Mapping[str, BackendFactory] | None = None) -> None:
        self._factories = dict(more or {})
        self._names = dict(IN_TREE)
        for point in entry_points(group=GROUP):
            self._names.setdefault(point.name, point.value)

    def __getitem__(self, scheme: str) -> BackendFactory:
        if scheme not in self._factories:
            module, _, name = self._names[scheme].partition(":")
            try:
                loaded = importlib.import_module(module)
            except ImportError as error:
                expected = f"the back end {scheme}: to be installed ({error})"
                raise wrong_uri(f"{scheme}:", expected) from None
            self._factories[scheme] = getattr(loaded, name)
        return self._factories[scheme]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._names, **self._factories})

    def __len__(self) -> int:
        return len({**self._names, **self._factories})


def make_backend(uri: str, services: BackendServices) -> EventBackend:
    """Return the back end of a URI; nothing is opened yet.

    Raises:
        ConfigError: Scheme, address or option is wrong; says what was expected.
    """
    scheme, separator, rest = uri.partition(":")
    if len(uri) > URI_LENGTH_MAX:
        raise wrong_uri(f"{uri[:64]}…", f"a URI of at most {URI_LENGTH_MAX} characters")
    if not separator or scheme not in services.registry:
        known = ", ".join(f"{name}:" for name in sorted(services.registry))
        close = difflib.get_close_matches(scheme, list(services.registry), 1)
        hint = f"{close[0]}:, or another of " if close else "one of "
        raise wrong_uri(scheme if separator else uri[:64], f"a URI that begins with {hint}{known}")
    return services.registry[scheme](rest, services)
