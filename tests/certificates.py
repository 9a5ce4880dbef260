"""Certificates for tests, good and bad; needs the library cryptography."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from clusternode.cli.local import authority
from clusternode.config import TlsSection


class Pki:
    """An authority in a directory, and nodes that it has certified."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority.make_authority(directory, "tests", 30)

    @property
    def ca(self) -> Path:
        return self.directory / authority.CA_CERTIFICATE

    def node(self, node_id: str, *, named: str | None = None, days: int = 90) -> TlsSection:
        """The [tls] of a node, whose certificate names `named` instead if that is given."""
        name = named or node_id
        authority.issue(self.directory, name, (), days, force=True)
        return self.section(name)

    def section(self, name: str, *, mutual: bool = True) -> TlsSection:
        return TlsSection(
            certificate=self.directory / f"{name}.crt",
            key=self.directory / f"{name}.key",
            ca=self.ca,
            mutual=mutual,
        )

    def expire(self, name: str) -> TlsSection:
        """Make the certificate of a node one that has expired an hour ago."""
        path = self.directory / f"{name}.crt"
        old = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key(
            (self.directory / authority.CA_KEY).read_bytes(), None
        )
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(old.subject)
            .issuer_name(old.issuer)
            .public_key(old.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=2))
            .not_valid_after(now - timedelta(hours=1))
        )
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        new = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]  # our own kind of key
        path.write_bytes(new.public_bytes(serialization.Encoding.PEM))
        return self.section(name)
