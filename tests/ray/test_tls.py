"""RAY-04: two machines and TLS between them; nothing readable crosses the network."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from cluster_kit import write
from machines_kit import Machine, captured, machines, require_namespaces

from hourglass.cluster import certificates, nodes
from hourglass.settings import Settings

require_namespaces()
if shutil.which("tcpdump") is None:
    pytest.skip("looking at the network needs tcpdump", allow_module_level=True)

MARKER = b"hourglass marker row, 32 bytes ."
SEND = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], 7777)); "
    "s.sendall(bytes.fromhex(sys.argv[2])); s.close()"
)
RECEIVE = (
    "import socket; s = socket.create_server(('', 7777)); c, _ = s.accept(); "
    "print(len(c.recv(4096)))"
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Machine, Machine]]:
    """A head with TLS, and a machine with its token that has not joined."""
    with machines(2) as (head, other):
        done = head.run("cluster", "start", "--host", head.ip, "--cpus", "2", "--tls")
        assert done.returncode == 0, done.stderr
        assert "traffic is encrypted" in done.stdout
        assert "dashboard http://127.0.0.1:8265" in done.stdout
        other.home.mkdir(0o700)
        shutil.copy(head.home / "ray_token", other.home)
        yield head, other


def _refused(other: Machine, address: str, *arguments: str) -> str:
    began = time.monotonic()
    done = other.run("cluster", "join", address, *arguments)
    assert done.returncode == 2, done.stdout
    assert nodes.find(Settings(home=other.home)) is None
    return f"{done.stderr}, after {time.monotonic() - began:.0f} s"


def _seconds(text: str) -> float:
    return float(text.split()[-2])


def test_bad_certificates_are_refused_soon(pair: tuple[Machine, Machine], tmp_path: Path) -> None:
    head, other = pair
    address = f"{head.ip}:6379"
    assert "the cluster uses TLS; make a certificate for this machine" in _refused(other, address)
    bad = tmp_path / "bad.pem"
    bad.write_bytes(certificates._issue(head.home, other.ip, 0))
    found = _refused(other, address, "--certificate", str(bad))
    assert "the certificate is valid from" in found
    assert _seconds(found) <= 10
    certificates.prepare(tmp_path / "foreign", address)
    foreign = certificates.certify(tmp_path / "foreign", other.ip)
    found = _refused(other, address, "--certificate", str(foreign))
    assert "the cluster's certificate is not accepted" in found
    assert _seconds(found) <= 10
    certificates.forget(other.home, address)
    # What only the head can see: a certificate that trusts it, and that it does not trust.
    mark = b"-----END CERTIFICATE-----\n"
    own, _, key = foreign.read_bytes().split(mark)
    _, authority, _ = certificates.certify(head.home, other.ip).read_bytes().split(mark)
    certificates._store(certificates._folder(other.home, address), mark.join((own, authority, key)))
    found = _refused(other, address)
    assert "the cluster rejected this machine's certificate" in found
    assert _seconds(found) <= 10
    certificates.forget(other.home, address)


def test_neither_the_token_nor_a_row_can_be_read_on_the_network(
    pair: tuple[Machine, Machine],
) -> None:
    head, other = pair
    token = (head.home / "ray_token").read_text().strip()
    rows = head.folder.parent / "rows"
    rows.mkdir()
    # The same row many times, so that it crosses in whatever order rows are read.
    marked = np.tile(np.frombuffer(MARKER, np.uint8), (400, 1))
    write(rows / "part-0.parquet", marked)
    certificate = head.run("cluster", "certify", other.ip).stdout.strip()
    job = {
        "kind": "train",
        "name": "secret",
        "data": {
            "uri": str(rows),
            "features": {"vector": "x"},
            "scaling": {"kind": "divide", "by": 255},
        },
        "model": {"network": {"kind": "dense", "widths": [4]}, "loss": {"kind": "mse"}},
        "train": {"epochs": 2, "batch_size": 32},
        "scale": {"workers": 2, "cpus_per_worker": 1.5},
    }
    file = head.folder / "train.yaml"
    file.write_text(yaml.safe_dump(job))
    capture = head.folder / "capture"
    with captured(head, capture):
        arguments = ("--certificate", certificate, "--cpus", "2")
        done = other.run("cluster", "join", f"{head.ip}:6379", *arguments)
        assert done.returncode == 0, done.stderr
        shared = {"HOURGLASS_ADDRESS": f"{head.ip}:6379"}
        shared |= {"HOURGLASS_RUNS": str(head.folder.parent / "runs")}
        done = head.run("train", str(file), **shared)
        assert done.returncode == 0, done.stdout + done.stderr
    seen = capture.read_bytes()
    assert len(seen) > 100_000
    assert token.encode() not in seen
    assert MARKER not in seen

    with captured(head, capture):  # the control: both are found where they do cross in the clear
        server = head.start(sys.executable, "-c", RECEIVE)
        time.sleep(1.0)
        for text in (token.encode() + MARKER,):
            sent = other.execute(sys.executable, "-c", SEND, head.ip, text.hex())
            assert sent.returncode == 0, sent.stderr
        server.communicate(timeout=20)
        time.sleep(0.5)
    seen = capture.read_bytes()
    assert token.encode() in seen
    assert MARKER in seen


def test_the_dashboard_is_on_the_heads_loopback(pair: tuple[Machine, Machine]) -> None:
    head, other = pair
    done = other.run("jobs", "list")
    assert done.returncode == 2
    assert f"forward the port (ssh -L 8265:127.0.0.1:8265 {head.ip})" in done.stderr
    done = head.run("jobs", "list")
    assert done.returncode == 0, done.stderr
    done = other.run("cluster", "status")
    assert done.stdout.splitlines()[-1].split()[:3] == [other.ip, "worker", "up"]
