"""Every error that is raised on purpose; the names say who is at fault."""

from __future__ import annotations


class ClusternodeError(Exception):
    """The root of the tree."""


class ProtocolError(ClusternodeError):
    """The rules of a protocol were broken."""


class RemoteProtocolError(ProtocolError):
    """A peer broke the rules: close its connection, telling it `reason` (a `CloseReason`)."""

    def __init__(self, message: str, reason: int = 1, value: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.value = value


class LocalProtocolError(ProtocolError):
    """We broke the rules: a bug here."""


class RequestError(ClusternodeError):
    """A message or request did not succeed.

    `definite` is true when it certainly did not happen.
    """

    definite: bool = False


class RequestTimeout(RequestError):
    """No answer in time. It may have happened."""


class NoSuchNode(RequestError):
    """The node is not a member of the cluster."""

    definite = True


class BodyTooLarge(RequestError):
    """The body is larger than this node may send."""

    definite = True


class Overloaded(RequestError):
    """A bound was reached: too many open requests, or a full outbox."""

    definite = True


class PeerUnreachable(ClusternodeError):
    """A peer could not be dialled."""


class ResolveError(PeerUnreachable):
    """A name could not be looked up, or has no address; the text says which."""


class PeerGone(ClusternodeError):
    """A connection ended."""


class DuplicateNodeId(ClusternodeError):
    """Another process already runs with our node id; we are the younger and withdraw."""


class AddressInUse(ClusternodeError):
    """Something else listens on our address or control socket."""


class StateError(ClusternodeError):
    """The state directory cannot be used."""


class RouteError(ClusternodeError):
    """A routes file cannot be loaded, or a route was declared wrongly."""


class ControlError(ClusternodeError):
    """A call to the control socket failed: `code` (JSON-RPC 2.0, section 5.1) and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class AgentNotReachable(ClusternodeError):
    """No agent answers on the control socket."""


class ScenarioError(ClusternodeError):
    """A scenario file is wrong: names the file, the key and what was expected."""


class KafkaError(ClusternodeError):
    """Kafka, or its client, said no: `name` is librdkafka's name of the error.

    `retriable`: trying again later may help. `definite`: it certainly did not happen; after a
    timeout the broker may have written the record all the same.
    """

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        retriable: bool = False,
        definite: bool = True,
        fatal: bool = False,
    ) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail
        self.retriable = retriable
        self.definite = definite
        self.fatal = fatal


class KafkaNotInstalled(ClusternodeError):
    """The Kafka client is not installed; the text says how it is."""


class NoSuchConnection(ClusternodeError):
    """No `[kafka.NAME]` of that name."""


class ConfigError(ClusternodeError):
    """A setting is wrong: `setting` is its path, `value` what was given, and what was expected."""

    def __init__(self, setting: str, value: object, expected: str, file: str = "") -> None:
        self.setting = setting
        self.value = value
        self.expected = expected
        self.file = file
        where = f"{file}: " if file else ""
        super().__init__(f"{where}{setting} = {value!r}: expected {expected}")
