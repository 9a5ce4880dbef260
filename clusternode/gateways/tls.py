"""TLS between the nodes of a foreign cluster: both sides show a certificate of one CA."""

from __future__ import annotations

import ssl
from pathlib import Path

import attrs

from clusternode.errors import ConfigError


@attrs.frozen
class TlsContexts:
    """How we show ourselves and whom we believe, on either side."""

    client: ssl.SSLContext
    server: ssl.SSLContext


def make_contexts(gateway: str, certificate: Path, key: Path, ca: Path) -> TlsContexts:
    """Read certificate, key and CA.

    Raises:
        ConfigError: One of them cannot be used; names the setting of `gateway`.
    """
    contexts = []
    for purpose in (ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH):
        try:
            context = ssl.create_default_context(purpose, cafile=str(ca))
            context.load_cert_chain(certificate, key)
        except OSError as error:
            setting = f"gateway.{gateway}.tls_certificate"
            expected = f"certificate, key and CA as PEM ({error.strerror or error})"
            raise ConfigError(setting, str(certificate), expected) from None
        context.check_hostname = False  # nodes are known by IP address; the CA is the cluster's own
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    return TlsContexts(*contexts)
