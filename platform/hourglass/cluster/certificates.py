"""TLS between the nodes of a cluster: an authority on the head, and a certificate for each node.

Ray's gRPC asks both sides for a certificate of the same authority, and its clients compare the address
with the certificate. The head keeps the authority in `<home>/tls/authority.pem`; a node keeps what it
uses for a cluster in `<home>/tls/<host>_<port>/`. All files have mode 0600.
"""

import datetime
import ipaddress
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hourglass.cluster.tokens import private_folder
from hourglass.errors import ClusterError
from hourglass.process import LOOPBACK

DAYS = 365
AUTHORITY_DAYS = 3650
SKEW = datetime.timedelta(hours=1)
"""How far the clocks of machines may be apart."""
_CA, _CERTIFICATE, _KEY = "ca.pem", "node.pem", "node.key"
_ADVICE = "make a new one on the head with `hourglass cluster certify ADDRESS`"


def prepare(root: Path, address: str, days: int = DAYS) -> None:
    """Make the certificate of a head that will listen at `address`, and the authority if need be."""
    host = address.rpartition(":")[0]
    _store(_folder(root, address), _issue(root, host, days))


def certify(root: Path, host: str, days: int = DAYS) -> Path:
    """A file with all that the machine `host` needs to join: authority, certificate and key.

    Raises: ClusterError if this project has no authority.
    """
    if not _authority(root).exists():
        raise ClusterError(
            f"{_authority(root)}: this project has no authority; start the cluster with "
            "`hourglass cluster start --host ADDRESS --tls`, and certify on that machine"
        )
    path = root / "tls" / f"{host}.pem"
    _write(path, _issue(root, host, days))
    return path


def install(root: Path, address: str, file: Path, host: str) -> None:
    """Use the certificate in `file`, made for this machine `host`, for the cluster at `address`.

    Raises: ClusterError if it is damaged, expired, for another machine or not of its own authority.
    """
    try:
        content = file.read_bytes()
        certificate, authority = x509.load_pem_x509_certificates(content)
        serialization.load_pem_private_key(content, password=None)
    except OSError as error:
        raise ClusterError(f"{file}: cannot read the certificate ({error.strerror})") from None
    except (ValueError, TypeError):
        raise ClusterError(f"{file}: not a certificate of `hourglass cluster certify`") from None
    _check(file, certificate, authority, host)
    _store(_folder(root, address), content)


def environment(root: Path, address: str) -> dict[str, str]:
    """Ray's variables for the cluster at `address`; empty if it has no TLS, as far as we know.

    Raises: ClusterError if the certificate has expired.
    """
    folder = _folder(root, address)
    if not (folder / _KEY).exists():
        return {}
    certificate = x509.load_pem_x509_certificate((folder / _CERTIFICATE).read_bytes())
    _refuse_expired(folder / _CERTIFICATE, certificate)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(folder / _CA),
        "RAY_TLS_SERVER_CERT": str(folder / _CERTIFICATE),
        "RAY_TLS_SERVER_KEY": str(folder / _KEY),
    }


def forget(root: Path, address: str) -> None:
    """Remove the certificate for the cluster at `address`, if there is one; the authority stays."""
    shutil.rmtree(_folder(root, address), ignore_errors=True)


def _check(
    file: Path, certificate: x509.Certificate, authority: x509.Certificate, host: str
) -> None:
    """Raise ClusterError unless the certificate is valid now, for `host`, and of the authority."""
    _refuse_expired(file, certificate)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ClusterError(f"{file}: the certificate is not of its authority; {_ADVICE}") from None
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    if host not in hosts:
        others = ", ".join(each for each in hosts if each != LOOPBACK)
        raise ClusterError(
            f"{file}: the certificate is for {others}, this machine is {host}; {_ADVICE}, or name "
            "the right address with --host"
        )


def _refuse_expired(file: Path, certificate: x509.Certificate) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise ClusterError(
            f"{file}: the certificate is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} "
            f"UTC, now is {now:%Y-%m-%d %H:%M}; {_ADVICE}"
        )


def _issue(root: Path, host: str, days: int) -> bytes:
    """Certificate of `host`, authority and key as PEM; valid from now for `days` days."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ClusterError(f"{host}: found a name, allowed is the machine's IP address") from None
    path = _authority(root)
    if not path.exists():
        _write(path, _new_authority())
    content = path.read_bytes()
    authority = x509.load_pem_x509_certificate(content)
    signer = serialization.load_pem_private_key(content, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.IPAddress(each) for each in {address, ipaddress.ip_address(LOOPBACK)}]
    certificate = (
        _builder(host, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("localhost")]), False)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return _pem([certificate, authority], key)


def _new_authority() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("hourglass cluster")
    authority = (
        _builder("hourglass cluster", subject, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem([authority], key)


def _builder(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificates: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> bytes:
    encoded = [each.public_bytes(serialization.Encoding.PEM) for each in certificates]
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return b"".join([*encoded, private])


def _store(folder: Path, content: bytes) -> None:
    """Write what Ray reads, one file each; the key last, so that an interrupted one is not used."""
    certificate, authority = x509.load_pem_x509_certificates(content)
    pem = serialization.Encoding.PEM
    _write(folder / _CA, authority.public_bytes(pem))
    _write(folder / _CERTIFICATE, certificate.public_bytes(pem))
    _write(folder / _KEY, content[content.index(b"-----BEGIN PRIVATE KEY") :])


def _write(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in one step."""
    for folder in (path.parent.parent, path.parent):
        private_folder(folder)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _authority(root: Path) -> Path:
    return root / "tls" / "authority.pem"


def _folder(root: Path, address: str) -> Path:
    return root / "tls" / address.replace(":", "_")
