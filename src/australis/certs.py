"""Certificates of a cluster: its own authority, one certificate per process, and mutual TLS made of them.

    australis certs init --out DIR                     -> DIR/ca.pem, DIR/ca.key
    australis certs issue --ca DIR ROLE NAME --host H  -> DIR/NAME.pem, DIR/NAME.key

A certificate names whom it is for: a URI `australis://<cluster>/<role>/<name>` among its alternative names, beside the
hosts where the process may be reached. What must hold: both ends of a connection present a certificate of the cluster's
authority, and what a process says in its greeting is what its certificate says; a certificate of another cluster, of
another role or without such a name opens nothing. Private keys are written for their owner only, and nothing that
exists is overwritten. TLS 1.3 only.

Files that are missing, unreadable, expired, or do not belong together are one line that names the file.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from australis.errors import AustralisError
from australis.protocol.messages import Greeting

ROLES = ("adjudicator", "crossbar", "storage", "gateway", "router", "control", "status")
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
EARLY = datetime.timedelta(minutes=10)
"""Certificates are valid a little before they are made: clocks of hosts differ."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEME = "australis"


class CertificateError(AustralisError):
    """A certificate or key that cannot be made or used; the message is one line."""

    sqlstate = "F0000"


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files of one process: the authority's certificate, its own certificate, its key."""

    ca: Path
    certificate: Path
    key: Path


def make_authority(directory: Path, cluster: bytes, days: int = AUTHORITY_DAYS) -> Path:
    """Make the authority of a cluster in `directory`; returns its certificate's file. Raises CertificateError."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"Australis cluster {cluster.hex()[:12]}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster.hex()),
        ]
    )
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _make_directory(directory)
    _write_pair(directory / "ca.pem", directory / "ca.key", [certificate], key)
    return directory / "ca.pem"


def issue(
    authority: Path, role: str, name: str, hosts: Sequence[str], out: Path | None = None, days: int = CERTIFICATE_DAYS
) -> Files:
    """Make a key and a certificate for one process in `out` (default: the authority's directory).

    `hosts` are names and addresses under which others connect to it. Raises CertificateError.
    """
    if role not in ROLES:
        raise CertificateError(f"no role {role!a}; roles are {', '.join(ROLES)}")
    if not _NAME.fullmatch(name):
        raise CertificateError(f"{name!a} is no name of a process: expected letters, digits, '.', '_' and '-'")
    if days < 1:
        raise CertificateError(f"a certificate cannot be valid for {days} days")
    ca = _read_certificate(authority / "ca.pem")
    ca_key = _read_key(authority / "ca.key")
    if ca_key.public_key() != ca.public_key():
        raise CertificateError(f"{authority / 'ca.key'} is not the key of {authority / 'ca.pem'}")
    cluster = cluster_of(ca, authority / "ca.pem")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{_SCHEME}://{cluster.hex()}/{role}/{name}")]
    names += [_host(host) for host in hosts]
    certificate = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    directory = authority if out is None else out
    _make_directory(directory)
    files = Files(directory / "ca.pem", directory / f"{name}.pem", directory / f"{name}.key")
    if not files.ca.exists():
        _write_new(files.ca, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    elif _read_certificate(files.ca) != ca:
        raise CertificateError(f"{files.ca} is another authority's certificate; choose another directory")
    _write_pair(files.certificate, files.key, [certificate], key)
    return files


def describe(path: Path) -> str:
    """One line about a certificate: whom it is for, hosts, until when."""
    certificate = _read_certificate(path)
    until = certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return f"authority of cluster {cluster_of(certificate, path).hex()}, valid until {until}"
    texts = [str(name.value) for name in names]
    return f"{texts[0]}, hosts {', '.join(texts[1:]) or 'none'}, valid until {until}"


def cluster_of(certificate: x509.Certificate, path: Path) -> bytes:
    """Which cluster's authority this is."""
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    try:
        cluster = bytes.fromhex(str(names[0].value))
    except (IndexError, ValueError):
        cluster = b""
    if len(cluster) != 16:
        raise CertificateError(f"{path} is not the certificate of a cluster's authority")
    return cluster


# --------------------------------------------------------------------------------------------------------------- TLS


def contexts(files: Files, cluster: bytes) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for the listening and for the connecting end. Raises CertificateError with the file that is wrong."""
    ca = _read_certificate(files.ca)
    if cluster_of(ca, files.ca) != cluster:
        raise CertificateError(f"{files.ca} is the authority of another cluster, not of {cluster.hex()}")
    certificate = _read_certificate(files.certificate)
    now = datetime.datetime.now(datetime.UTC)
    for path, one in ((files.ca, ca), (files.certificate, certificate)):
        if one.not_valid_after_utc < now:
            raise CertificateError(f"{path} expired on {one.not_valid_after_utc:%Y-%m-%d}; issue another one")
        if one.not_valid_before_utc > now:
            raise CertificateError(f"{path} is not valid before {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    if certificate.issuer != ca.subject or not _signed_by(certificate, ca):
        raise CertificateError(f"{files.certificate} was not issued by {files.ca}")
    if _read_key(files.key).public_key() != certificate.public_key():
        raise CertificateError(f"{files.key} is not the key of {files.certificate}")
    made = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        context = ssl.create_default_context(purpose, cafile=str(files.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(str(files.certificate), str(files.key))
        made.append(context)
    return made[0], made[1]


def peer_check(cluster: bytes) -> Callable[[Greeting, Any], str]:
    """For `transport.Identity`: does the peer's certificate say what its greeting says?"""

    def check(greeting: Greeting, tls: Any) -> str:
        certificate = tls.getpeercert() if tls is not None else None
        if not certificate:
            return "a certificate of this cluster is required"
        wanted = f"{_SCHEME}://{cluster.hex()}/{greeting.role}/{greeting.name}"
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        if wanted in names:
            return ""
        return f"the certificate is for {', '.join(names) or 'nobody'}, not for {wanted}"

    return check


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


# ------------------------------------------------------------------------------------------------------------- files


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not re.fullmatch(r"(?!-)[A-Za-z0-9.*-]{1,253}", text):
        raise CertificateError(f"{text!a} is no name or address of a host")
    return x509.DNSName(text)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CertificateError(f"{directory}: cannot be made: {error.strerror}") from None


def _write_pair(
    certificate_file: Path, key_file: Path, certificates: list[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> None:
    for path in (certificate_file, key_file):
        if path.exists():
            raise CertificateError(f"{path} exists; nothing was changed (remove it to make another one)")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(key_file, pem, 0o600)
    _write_new(certificate_file, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates), 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there; complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            temporary.unlink()
    except FileExistsError:
        raise CertificateError(f"{path} exists; nothing was changed (remove it to make another one)") from None
    except OSError as error:
        raise CertificateError(f"{path}: cannot be written: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read: {error.strerror}") from None


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise CertificateError(f"{path} is not a certificate in PEM format") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError):
        raise CertificateError(f"{path} is not an unencrypted private key in PEM format") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} is not a key of the kind that `australis certs` makes")
    return key
