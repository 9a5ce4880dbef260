"""Certificates for a cluster: an authority, one certificate per node, and what is in a file.

Needs the library `cryptography`, which comes with `pip install clusternode[tls]`; an agent that
only uses certificates does not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clusternode.core.types import is_name
from clusternode.errors import ConfigError

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
URI_PREFIX = "clusternode:"
"""What the agent looks for in a certificate (runtime/tls.py)."""
BACKDATED = timedelta(minutes=5)
"""Clocks of hosts differ a little; a certificate should work at once everywhere."""
FILE_SIZE_MAX = 1024 * 1024
DNS_LABELS = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")
UNREADABLE = (
    ValueError,  # malformed, at the start or when a part is asked for
    TypeError,  # a key with a password
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for files that are no certificates or keys."""
COMMON_NAME_LENGTH_MAX = 64  # RFC 5280, ub-common-name


@attrs.frozen
class Shown:
    """What a person wants to know of one certificate."""

    file: str
    subject: str
    issuer: str
    node_ids: tuple[str, ...]
    other_names: tuple[str, ...]
    is_ca: bool
    not_before: datetime
    not_after: datetime
    serial: str
    sha256: str
    """Fingerprint."""

    def days_left(self, now: datetime) -> int:
        return (self.not_after - now).days


def make_authority(directory: Path, name: str, days: int, *, force: bool = False) -> Path:
    """Write a new authority's certificate and key; return the certificate's path.

    Raises:
        ConfigError: One of them is there already.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(name)
    builder = _builder(subject, subject, key.public_key(), days)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _write_pair(directory, CA_CERTIFICATE, CA_KEY, certificate, key, force=force)


def issue(
    directory: Path, node_id: str, hosts: Sequence[str], days: int, *, force: bool = False
) -> Path:
    """Write a certificate and key for a node; return the certificate's path.

    Raises:
        ConfigError: The authority is not there or has expired, the node id is none, or a file is
            there already.
    """
    if not is_name(node_id):
        raise ConfigError("NODE_ID", node_id, "1 to 64 of the characters A-Z a-z 0-9 . _ : -")
    authority, authority_key = _authority(directory)
    if authority.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError("--dir", str(directory), "an authority that has not expired")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(URI_PREFIX + node_id)]
    names += [_general_name(host) for host in hosts]
    if DNS_LABELS.fullmatch(node_id):
        names.insert(1, x509.DNSName(node_id))
    issuer_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = _builder(_named(node_id), authority.subject, key.public_key(), days)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    return _write_pair(directory, f"{node_id}.crt", f"{node_id}.key", certificate, key, force=force)


def inspect(path: Path) -> list[Shown]:
    """Return what the certificates of a file say.

    Raises:
        ConfigError: It cannot be read, or has no certificate in it.
    """
    try:  # what is in a certificate is parsed when it is asked for, so it may be wrong as late
        return [_shown(path, certificate) for certificate in _certificates(path)]
    except UNREADABLE as error:
        raise ConfigError("FILE", str(path), f"a certificate in PEM ({error})") from error


def is_issued_by(path: Path, authority: Path) -> bool:
    """Tell whether the first certificate of a file was signed by one of an authority file.

    Raises:
        ConfigError: One of the files cannot be read, or has no certificate in it.
    """
    (certificate, *_) = _certificates(path)
    for candidate in _certificates(authority):
        with contextlib.suppress(*UNREADABLE, InvalidSignature):
            certificate.verify_directly_issued_by(candidate)
            return True
    return False


def _certificates(path: Path) -> list[x509.Certificate]:
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except UNREADABLE as error:
        raise ConfigError("FILE", str(path), f"a certificate in PEM ({error})") from error


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_LENGTH_MAX])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if DNS_LABELS.fullmatch(host) is None:
            raise ConfigError("--host", host, "a host name or an IP address") from None
        return x509.DNSName(host)


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    hint = "a directory with an authority; `clusternode tls init-ca` makes one"
    for name in (CA_CERTIFICATE, CA_KEY):
        if not (directory / name).exists():
            raise ConfigError("--dir", str(directory), f"{hint} ({name} is missing)")
    try:
        certificate = x509.load_pem_x509_certificate(_read(directory / CA_CERTIFICATE))
        key = serialization.load_pem_private_key(_read(directory / CA_KEY), password=None)
    except UNREADABLE as error:
        raise ConfigError("--dir", str(directory), f"{hint} ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("--dir", str(directory), f"{hint} (its key is of another kind)")
    return certificate, key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_SIZE_MAX)
    except OSError as error:
        raise ConfigError(
            "FILE", str(path), f"a file that can be read ({error.strerror})"
        ) from error


def _write_pair(
    directory: Path,
    certificate_name: str,
    key_name: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    force: bool,
) -> Path:
    """Write both files, the key first and with mode 0600."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (certificate_name, key_name):
            if not force and (directory / name).exists():
                raise ConfigError(
                    "--dir", str(directory), f"no {name} there yet, or --force to replace it"
                )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(directory / key_name, pem, 0o600)
        encoded = certificate.public_bytes(serialization.Encoding.PEM)
        _write(directory / certificate_name, encoded, 0o644)
    except OSError as error:
        raise ConfigError(
            "--dir", str(directory), f"a directory to write to ({error.strerror})"
        ) from error
    return directory / certificate_name


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write beside and rename: nobody sees half a file, or a key with another mode."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    beside.rename(path)


def _shown(path: Path, certificate: x509.Certificate) -> Shown:
    node_ids: list[str] = []
    others: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for name in names:
            _sort_name(name, node_ids, others)
    is_ca = False
    with contextlib.suppress(x509.ExtensionNotFound):
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    return Shown(
        file=str(path),
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        node_ids=tuple(dict.fromkeys(node_ids)),
        other_names=tuple(others),
        is_ca=is_ca,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial=f"{certificate.serial_number:x}",
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _sort_name(name: x509.GeneralName, node_ids: list[str], others: list[str]) -> None:
    """Put a subject alternative name where the agent would: a node id, or something else."""
    match name:
        case x509.UniformResourceIdentifier() if name.value.startswith(URI_PREFIX):
            node_ids.append(name.value.removeprefix(URI_PREFIX))
        case x509.DNSName():
            node_ids.append(name.value)
        case _:
            others.append(f"{type(name).__name__} {name.value}")
