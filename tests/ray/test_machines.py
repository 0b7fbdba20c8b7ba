"""A cluster of two machines that share nothing but a network: network namespaces on this host."""

import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster_kit import ROWS, write_shards
from machines_kit import HOURGLASS, Machine, machines, require_namespaces

from hourglass.cluster import daemons, nodes
from hourglass.process import LOOPBACK
from hourglass.settings import Settings

require_namespaces()

TRAIN = {
    "kind": "train",
    "name": "two",
    "data": {"features": {"vector": "x"}},
    "model": {"network": {"kind": "dense", "widths": [4]}, "loss": {"kind": "mse"}},
    "train": {"epochs": 3, "batch_size": 32},
    "scale": {"workers": 2, "cpus_per_worker": 1.5},  # one on each machine
}
S3 = {
    "AWS_ACCESS_KEY_ID": "here",
    "AWS_SECRET_ACCESS_KEY": "there",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://10.77.0.1:5000",
}
BUCKET = """
import boto3, pathlib
client = boto3.client("s3", region_name="us-east-1")
client.create_bucket(Bucket="all")
for path in pathlib.Path({folder!r}).iterdir():
    client.upload_file(str(path), "all", "rows/" + path.name)
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Machine, Machine]]:
    """A head of two CPUs, and another machine that has not joined; an S3 server on the first."""
    moto = (sys.executable, "-m", "moto.server", "-H", "10.77.0.1", "-p", "5000")
    with machines(2) as (first, second), first.serving(5000, *moto, **S3):
        rows = write_shards(_folder(first.folder / "rows"))
        filled = first.execute(sys.executable, "-c", BUCKET.format(folder=str(rows)), **S3)
        assert filled.returncode == 0, filled.stderr
        done = first.run("cluster", "start", "--host", first.ip, "--cpus", "2", **S3)
        assert done.returncode == 0, done.stderr
        yield first, second


@pytest.fixture(scope="module")
def joined(pair: tuple[Machine, Machine]) -> tuple[Machine, Machine]:
    """The same after the second machine has joined, with two CPUs as well."""
    head, other = pair
    token = other.folder / "copied"
    shutil.copy(head.home / "ray_token", token)
    arguments = ("--token-file", str(token), "--cpus", "2", "--labels", "zone=b")
    done = other.run("cluster", "join", f"{head.ip}:6379", *arguments, **S3)
    assert done.returncode == 0, done.stderr
    assert f"joined: dashboard http://{head.ip}:8265, head {head.ip}:6379" in done.stdout
    return pair


FILES = """
import json, sys
from hourglass import storage
print(json.loads(storage.read(sys.argv[1] + "/manifest.json"))["files"])
"""
FIND = "import s3fs; print(*s3fs.S3FileSystem().glob('all/runs/two-*/artifact'))"


def _artifact(head: Machine) -> str:
    """Where the run in S3 is."""
    found = head.execute(sys.executable, "-c", FIND, **S3)
    (path,) = found.stdout.split()
    return f"s3://{path}"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _refused(other: Machine, *arguments: str, **variables: str) -> str:
    began = time.monotonic()
    done = other.run("cluster", "join", *arguments, **variables)
    assert done.returncode == 2, done.stdout
    assert time.monotonic() - began < 25
    assert nodes.find(Settings(home=other.home)) is None
    return done.stderr


def test_join_is_refused_without_the_token_the_address_or_the_versions(
    pair: tuple[Machine, Machine], tmp_path: Path
) -> None:
    head, other = pair
    address = f"{head.ip}:6379"
    assert f"{other.home}/ray_token: no token found" in _refused(other, address)
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("0" * 64)
    found = _refused(other, address, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert f"address {address}: the cluster rejected the token in {wrong}" in found
    right = {"RAY_AUTH_TOKEN_PATH": str(head.home / "ray_token")}
    assert "connection failed" in _refused(other, f"{head.ip}:6380", **right)
    found = _refused(other, f"{LOOPBACK}:6379", **right)
    assert "start it with `hourglass cluster start --host ADDRESS`" in found
    found = _refused(other, address, "--host", "10.77.0.9", **right)
    assert f"--host 10.77.0.9: not an address of this machine; found 10.77.0.2, {LOOPBACK}" in found
    found = _refused(other, address, "--labels", "a=b,c", **right)
    assert "--labels: found 'c', allowed is key=value" in found
    stale = (
        "import sys; from hourglass.cluster import labels; own = labels.versions(); "
        "labels.versions = lambda: {**own, 'torch': '2.1.0', 'python': '3.9'}; "
        "from hourglass.cli import main; main()"
    )
    done = other.execute(sys.executable, "-c", stale, "cluster", "join", address, **right)
    here = ".".join(map(str, sys.version_info[:2]))
    assert done.returncode == 2
    assert f"python 3.9 here, {here} there; torch 2.1.0 here, 2." in done.stderr


def test_status_lists_nodes_resources_versions_and_labels(joined: tuple[Machine, Machine]) -> None:
    for machine in joined:
        done = machine.run("cluster", "status")
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()[-2:]
        assert first.split()[:5] == ["10.77.0.1", "head", "up", "0/2", "0/0"]
        assert second.split()[:5] == ["10.77.0.2", "worker", "up", "0/2", "0/0"]
        assert second.rstrip().endswith("zone=b")
        for name in ("hourglass", "python", "ray", "torch"):
            assert f"{name} " in first
            assert f"{name} " in second
    done = joined[1].run("cluster", "join", "10.77.0.1:6379")
    assert (done.returncode, "is already up" in done.stderr) == (2, True)


def test_every_open_port_is_printed(joined: tuple[Machine, Machine]) -> None:
    """`ss`, which knows nothing of our processes, finds no other port beside those of workers."""
    for machine in joined:
        listed = machine.execute("ss", "-Hltn").stdout.splitlines()
        open_ = {line.split()[3] for line in listed}
        ports = {
            int(local.rpartition(":")[2])
            for local in open_
            if not local.startswith((LOOPBACK, "[::1]", f"[::ffff:{LOOPBACK}]"))
        }
        ports -= {*nodes.WORKER_PORTS, 5000}  # moto's
        (line,) = (
            line
            for line in machine.run("cluster", "status").stdout.splitlines()
            if line.startswith("opens to the network")
        )
        printed = {int(word.strip(";")) for word in line.split() if word.strip(";").isdigit()}
        assert ports <= printed
        assert ports, "the control: a node of several machines does listen"


def test_runs_on_the_disk_of_one_machine_are_refused(joined: tuple[Machine, Machine]) -> None:
    head, other = joined
    file = head.folder / "local.yaml"
    job = {**TRAIN, "data": {**TRAIN["data"], "uri": str(head.disk / "rows")}}
    file.write_text(yaml.safe_dump(job))
    copied = head.execute("cp", "-r", str(head.folder / "rows"), str(head.disk))
    assert copied.returncode == 0
    address = {"HOURGLASS_ADDRESS": f"{head.ip}:6379", "HOURGLASS_RUNS": str(head.disk / "runs")}
    done = head.run("train", str(file), **address)
    assert done.returncode == 2, done.stdout
    assert (
        f"{head.disk}/runs: node {other.ip} does not share this folder (a file written here does not "
        "appear there)"
    ) in done.stderr
    assert "HOURGLASS_RUNS=s3://..." in done.stderr
    assert f"{head.disk}/rows: node {other.ip} does not see what is here" in done.stderr
    kept = head.execute("ls", "-A", str(head.disk / "runs")).stdout.split()
    assert kept == []


@pytest.mark.nightly
def test_train_score_and_tune_with_everything_in_s3(joined: tuple[Machine, Machine]) -> None:
    """Nothing lies on a disk but caches, and the bits are those of one machine."""
    head, other = joined
    apart = {**S3, "HOURGLASS_ADDRESS": f"{head.ip}:6379", "HOURGLASS_RUNS": "s3://all/runs"}
    file = head.folder / "train.yaml"
    file.write_text(yaml.safe_dump({**TRAIN, "data": {**TRAIN["data"], "uri": "s3://all/rows"}}))
    done = head.run("train", str(file), **apart)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = head.folder / "alone.yaml"
    rows = str(head.folder / "rows")
    alone.write_text(yaml.safe_dump({**TRAIN, "data": {**TRAIN["data"], "uri": rows}}))
    again = head.run(
        *("train", str(alone), "--set", "scale.cpus_per_worker=0.5"),
        HOURGLASS_RUNS=str(head.folder / "alone"),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    files = []
    for output in (done.stdout, again.stdout):
        (artifact,) = re.findall(r"^artifact +(\S+)", output, re.MULTILINE)
        files.append(head.execute(sys.executable, "-c", FILES, artifact, **S3).stdout)
    assert "model.safetensors" in files[0]
    assert files[0] == files[1]
    assert not (other.home / "runs").exists()
    assert not (head.home / "runs").exists()

    score = {
        "kind": "score",
        "model": _artifact(head),
        "uri": "s3://all/rows",
        "output": "s3://all/scores",
        "workers": 2,
    }
    file.write_text(yaml.safe_dump(score))
    done = head.run("score", str(file), **apart)
    assert done.returncode == 0, done.stdout + done.stderr
    count = (
        "import s3fs, pyarrow.parquet as pq; f = s3fs.S3FileSystem(); "
        "print(sum(pq.read_metadata(f.open(p)).num_rows for p in f.glob('all/scores/*.parquet')))"
    )
    assert head.execute(sys.executable, "-c", count, **S3).stdout.split() == [str(len(ROWS))]

    base = {**TRAIN, "name": "swept", "data": {**TRAIN["data"], "uri": "s3://all/rows"}}
    base["scale"] = {"workers": 1, "cpus_per_worker": 1}
    sweep = {
        "kind": "tune",
        "name": "sweep",
        "base": base,
        "space": {"train.optimizer.lr": {"grid": [0.001, 0.01, 0.1]}},
    }
    file.write_text(yaml.safe_dump(sweep))
    done = head.run("tune", str(file), **apart)
    assert done.returncode == 0, done.stdout + done.stderr


ASK = """
import json, os, sys, urllib.request
rows = {"rows": [[0.5] * 8]}
request = urllib.request.Request(sys.argv[1] + "/models/two/anomaly", json.dumps(rows).encode(),
    {"Authorization": "Bearer " + os.environ["HOURGLASS_SERVE_TOKEN"], "Content-Type": "application/json"})
print(sorted({urllib.request.urlopen(request, timeout=20).read() for _ in range(20)}))
"""


@pytest.mark.nightly
def test_endpoints_with_a_replica_on_each_machine(joined: tuple[Machine, Machine]) -> None:
    """The model comes from S3; both replicas give the same answer."""
    head, _other = joined
    args = {"models": [{"name": "two", "uri": _artifact(head)}], "replicas": 2}
    file = head.folder / "serve.yaml"
    application = {"import_path": "hourglass.serving.app:build", "args": args}
    file.write_text(yaml.safe_dump({"http_options": {"port": 8123}, "applications": [application]}))
    own = {**S3, "HOURGLASS_ADDRESS": f"{head.ip}:6379", "HOURGLASS_SERVE_TOKEN": "t" * 20}
    server = head.start(*HOURGLASS, "serve", str(file), **own)
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if "ready; Ctrl-C stops" in line:
                break
        assert "ready; Ctrl-C stops" in "".join(lines[-1:]), "".join(lines)
        for machine in joined:
            titles = [" ".join(process.cmdline()) for process in machine.processes()]
            assert any("ServeReplica" in title and "model" in title for title in titles)
        asked = head.execute(sys.executable, "-c", ASK, "http://127.0.0.1:8123", **own)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.count("b'{") == 1
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


def test_leave_and_stop_end_their_own_processes_only(joined: tuple[Machine, Machine]) -> None:
    head, other = joined
    done = head.run("cluster", "leave")
    assert done.returncode == 2
    assert "this machine is the head of the cluster; `hourglass cluster stop` ends" in done.stderr
    first, second = (nodes.find(Settings(home=machine.home)) for machine in joined)
    assert first is not None
    assert second is not None
    family = daemons.family(second.daemons)
    done = other.run("cluster", "leave")
    assert done.stdout == "10.77.0.2 left the cluster at 10.77.0.1:6379\n"
    assert not [process for process in family if process.is_running()]
    assert first.dead == ()
    status = head.run("cluster", "status")
    assert status.returncode == 0
    assert status.stdout.splitlines()[-1].split()[:3] == ["10.77.0.2", "worker", "left"]
    assert other.run("cluster", "leave").returncode == 2
