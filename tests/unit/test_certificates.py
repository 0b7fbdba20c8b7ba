"""Certificates of nodes: what is made, what is refused, and what a TLS server makes of them."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hourglass.cluster import certificates, probe
from hourglass.errors import ClusterError

HEAD, OTHER = "127.0.0.1:6379", "10.0.0.2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose head has a certificate, and with it an authority."""
    root = tmp_path / "head"
    certificates.prepare(root, HEAD)
    return root


def test_what_join_needs_is_one_private_file(root: Path, tmp_path: Path) -> None:
    file = certificates.certify(root, OTHER)
    assert file == root / "tls" / f"{OTHER}.pem"
    other = tmp_path / "other"
    certificates.install(other, HEAD, file, OTHER)
    found = certificates.environment(other, HEAD)
    assert found["RAY_USE_TLS"] == "1"
    assert certificates.environment(other, "127.0.0.1:7000") == {}
    for path in [*root.rglob("*"), *other.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    authorities = {
        (home / "tls" / "127.0.0.1_6379" / "ca.pem").read_bytes() for home in (root, other)
    }
    assert len(authorities) == 1
    keys = {(home / "tls" / "127.0.0.1_6379" / "node.key").read_bytes() for home in (root, other)}
    assert len(keys) == 2
    signer = (root / "tls" / "authority.pem").read_bytes()
    assert signer[signer.index(b"-----BEGIN PRIVATE KEY") :] not in file.read_bytes()
    certificates.forget(other, HEAD)
    assert certificates.environment(other, HEAD) == {}


def test_a_second_certificate_is_of_the_same_authority(root: Path) -> None:
    before = (root / "tls" / "authority.pem").read_bytes()
    certificates.certify(root, OTHER)
    certificates.certify(root, "10.0.0.3")
    assert (root / "tls" / "authority.pem").read_bytes() == before


def test_what_is_refused_before_it_is_used(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    good = certificates.certify(root, OTHER)
    certificates.install(other, HEAD, good, OTHER)
    kept = certificates.environment(other, HEAD)

    def refused(file: Path, host: str = OTHER) -> str:
        with pytest.raises(ClusterError) as caught:
            certificates.install(other, HEAD, file, host)
        assert certificates.environment(other, HEAD) == kept
        return str(caught.value)

    assert "the certificate is for 10.0.0.2, this machine is 10.0.0.9" in refused(good, "10.0.0.9")
    expired = tmp_path / "expired.pem"
    expired.write_bytes(certificates._issue(root, OTHER, 0))
    assert f"{expired}: the certificate is valid from" in refused(expired)
    certificates.prepare(tmp_path / "foreign", HEAD)
    foreign = certificates.certify(tmp_path / "foreign", OTHER).read_bytes()
    mixed = tmp_path / "mixed.pem"
    mark = b"-----END CERTIFICATE-----\n"
    own, authority, _ = good.read_bytes().split(mark)
    _, others, key = foreign.split(mark)
    mixed.write_bytes(own + mark + others + mark + key)
    assert "the certificate is not of its authority" in refused(mixed)
    for content in (b"", b"hello", own + mark, authority[:200], os.urandom(64)):
        mixed.write_bytes(content)
        assert "not a certificate of `hourglass cluster certify`" in refused(mixed)
    assert "cannot read the certificate (No such file" in refused(tmp_path / "missing")


def test_names_and_projects_without_an_authority_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="found a name, allowed is the machine's IP address"):
        certificates.certify(root, "other.example")
    with pytest.raises(ClusterError, match="this project has no authority; start the cluster with"):
        certificates.certify(tmp_path / "none", OTHER)


def test_an_expired_certificate_is_told_before_ray_is_asked(root: Path) -> None:
    certificates._store(root / "tls" / "127.0.0.1_6379", certificates._issue(root, "127.0.0.1", 0))
    with pytest.raises(
        ClusterError, match=r"certificate is valid from .* make a new one on the head"
    ):
        certificates.environment(root, HEAD)


@contextmanager
def _server(root: Path | None) -> Iterator[int]:
    """A server that asks for a certificate as Ray does and sends a byte; without a root, no TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if root is not None:
        own = certificates.environment(root, HEAD)
        context.load_cert_chain(own["RAY_TLS_SERVER_CERT"], own["RAY_TLS_SERVER_KEY"])
        context.load_verify_locations(own["RAY_TLS_CA_CERT"])
        context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                if root is None:
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                else:
                    with context.wrap_socket(client, server_side=True) as secured:
                        secured.sendall(b"x")
            except OSError:
                pass
            client.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_why_a_connection_fails_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is the first: a certificate of the cluster's authority is accepted."""
    foreign = tmp_path / "foreign"
    certificates.prepare(foreign, HEAD)

    def as_node_of(project: Path) -> None:
        for name, value in certificates.environment(project, HEAD).items():
            monkeypatch.setenv(name, value)

    with _server(root) as port:
        as_node_of(root)
        assert probe._handshake("127.0.0.1", port) == ""
        assert probe._offers_tls("127.0.0.1", port)
        as_node_of(foreign)
        found = probe._handshake("127.0.0.1", port)
        assert found.startswith("the cluster's certificate is not accepted (")
        mixed = tmp_path / "mixed"  # trusts the cluster, and is not trusted by it
        certificates.prepare(mixed, HEAD)
        authority = (root / "tls" / "127.0.0.1_6379" / "ca.pem").read_bytes()
        (mixed / "tls" / "127.0.0.1_6379" / "ca.pem").write_bytes(authority)
        as_node_of(mixed)
        found = probe._handshake("127.0.0.1", port)
        assert found.startswith("the cluster rejected this machine's certificate; make a new one")
    with _server(None) as port:
        as_node_of(root)
        assert "the cluster does not use TLS; remove" in probe._handshake("127.0.0.1", port)
        assert not probe._offers_tls("127.0.0.1", port)
