"""RAY-01, RAY-02 and Ray Jobs on a real head that our own command line has started."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hourglass import ray_internals
from hourglass.cluster import nodes, submit
from hourglass.errors import ClusterError
from hourglass.process import free_port
from hourglass.settings import Settings

HOURGLASS = [sys.executable, "-m", "hourglass.cli"]
FIND_CLUSTER = (
    'python -c "from hourglass.cluster.connect import connect; connect(); import ray; '
    "print('cpus', ray.cluster_resources()['CPU'])\""
)


@dataclass
class Project:
    """A project folder of its own, and the command line inside it."""

    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*HOURGLASS, *arguments],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start_head(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        ports = ("--port", str(free_port()), "--dashboard-port", str(free_port()))
        return self.run("cluster", "start", "--cpus", "2", *ports, *arguments, **variables)

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home)

    @property
    def head(self) -> nodes.Node:
        head = nodes.find(self.settings)
        assert head is not None
        return head

    @property
    def token(self) -> str:
        return (self.home / "ray_token").read_text()


def new_project() -> Iterator[Project]:
    folder = Path(tempfile.mkdtemp(prefix="hg"))
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "HOURGLASS_", "MLFLOW_"))
    }
    environment |= {"HOURGLASS_HOME": str(folder / "home"), "HOURGLASS_TEMP_DIR": f"{folder}/ray"}
    project = Project(folder / "home", environment)
    yield project
    project.run("cluster", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty() -> Iterator[Project]:
    """A project without a cluster."""
    yield from new_project()


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    """A project whose head is up."""
    for project in new_project():
        before = os.umask(0)  # the most careless user
        done = project.start_head()
        os.umask(before)
        assert done.returncode == 0, done.stderr
        yield project


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[Any]:
    """A client of the head, in this process; its environment is put back afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("RAY_", "HOURGLASS_", "MLFLOW_")):
            del os.environ[name]
    yield submit.open_client(None, project.settings)
    os.environ.clear()
    os.environ.update(before)


def family(head: nodes.Node) -> list[psutil.Process]:
    roots = [psutil.Process(daemon.pid) for daemon in head.daemons]
    return roots + [child for root in roots for child in root.children(recursive=True)]


def listening(head: nodes.Node) -> set[tuple[str, int]]:
    """Every TCP address on which a process of the head listens."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in family(head)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def status(url: str, token: str | None = None, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(url, method=method, headers=headers)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_start_says_how_to_submit(project: Project) -> None:
    done = project.run("cluster", "status")
    assert done.returncode == 0
    assert f"submit: hourglass submit FILE --address {project.head.dashboard}" in done.stdout
    assert project.token not in done.stdout


def test_every_port_is_on_loopback(project: Project) -> None:
    addresses = listening(project.head)
    ports = {port for _, port in addresses}
    assert int(project.head.address.rpartition(":")[2]) in ports
    assert int(project.head.dashboard.rpartition(":")[2]) in ports
    assert {ip for ip, _ in addresses} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_token_and_records_are_closed(project: Project) -> None:
    assert project.home.stat().st_mode & 0o777 == 0o700
    for path in project.home.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    folder = Path(project.environment["HOURGLASS_TEMP_DIR"])  # Ray opens what is inside: 0777
    assert folder.stat().st_mode & 0o777 == 0o700
    for process in family(project.head):
        assert project.token not in " ".join(process.cmdline())


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/api/version", "/api/jobs/", "/api/serve/applications/"])
def test_dashboard_refuses_without_our_token(project: Project, method: str, path: str) -> None:
    url = project.head.dashboard + path
    assert status(url, method=method) in (401, 405)
    assert status(url, "0" * 64, method) in (403, 405)
    browser = {"User-Agent": "Mozilla/5.0", "Origin": "http://evil.example"}
    assert status(url, None, method, **browser) in (401, 403, 405)


def test_dashboard_answers_to_our_token(project: Project) -> None:
    url = project.head.dashboard + "/api/version"
    assert (status(url), status(url, "0" * 64), status(url, project.token)) == (401, 403, 200)


def test_connecting_with_another_token_is_refused_soon(project: Project, empty: Project) -> None:
    empty.home.mkdir(0o700)
    (empty.home / "ray_token").touch(0o600)
    (empty.home / "ray_token").write_text("0" * 64)
    began = time.monotonic()
    code = "from hourglass.cluster.connect import connect; connect()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**empty.environment, "HOURGLASS_ADDRESS": project.head.address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"the cluster rejected the token in {empty.home}/ray_token" in done.stderr
    assert time.monotonic() - began < 15
    done = empty.run("jobs", "list", "--address", project.head.dashboard)
    assert done.returncode == 2
    assert f"the cluster rejected the token in {empty.home}/ray_token" in done.stderr


def test_connecting_without_a_token_is_refused(project: Project, empty: Project) -> None:
    done = empty.run("jobs", "list", "--address", project.head.dashboard)
    assert done.returncode == 2
    assert f"{empty.home}/ray_token: no token found; copy the cluster's token" in done.stderr
    done = empty.run("jobs", "list", "--address", project.head.dashboard, RAY_AUTH_MODE="disabled")
    assert "rejected a request without a token; unset RAY_AUTH_MODE, found disabled" in done.stderr


def test_connection_failures(empty: Project) -> None:
    empty.home.mkdir(0o700)
    (empty.home / "ray_token").touch(0o600)
    (empty.home / "ray_token").write_text("0" * 64)
    began = time.monotonic()
    done = empty.run("jobs", "list", "--address", f"http://127.0.0.1:{free_port()}")
    assert "connection failed" in done.stderr
    assert "check that the cluster is up" in done.stderr
    done = empty.run("jobs", "list", "--address", "127.0.0.1:8265")
    assert "allowed is the http(s):// URL of a Ray dashboard" in done.stderr
    done = empty.run("jobs", "list")
    assert "no token found" not in done.stderr
    assert "pass --address URL, set HOURGLASS_ADDRESS, or start one" in done.stderr
    assert time.monotonic() - began < 30


def test_job_runs_on_the_cluster_and_is_followed(
    client: Any, capsys: pytest.CaptureFixture[str], project: Project
) -> None:
    plan = submit.Plan("finds-cluster", f"cat job.yaml && {FIND_CLUSTER}", "kind: marker\n")
    assert submit.follow(client, submit.send(client, plan)) == 0
    output = capsys.readouterr().out
    assert output.count("kind: marker") == 1
    assert output.count("cpus 2.0") == 1
    assert project.token not in str(submit.info(client, "finds-cluster"))


def test_exit_code_comes_back(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = submit.Plan("leaves-with-7", "echo before; exit 7")
    assert submit.follow(client, submit.send(client, plan)) == 7
    captured = capsys.readouterr()
    assert "before" in captured.out
    assert captured.err == (
        "job leaves-with-7 failed: Job entrypoint command failed with exit code 7\n"
    )


def test_list_logs_and_stop(client: Any, project: Project) -> None:
    """Without waiting: the job is there, its log can be read, and it ends when told."""
    command = "echo going to sleep; sleep 300"
    plan = submit.Plan("sleeps", command, file="jobs/rest.yaml", name="rest")
    name = submit.send(client, plan)
    deadline = time.monotonic() + 60
    while "\ngoing to sleep\n" not in client.get_job_logs(name):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "\ngoing to sleep\n" in project.run("jobs", "logs", name).stdout
    (listed,) = (row for row in project.run("jobs", "list").stdout.splitlines() if name in row)
    assert listed.split()[5:7] == ["rest", "jobs/rest.yaml"]
    done = project.run("jobs", "stop", name)
    assert (done.returncode, done.stdout) == (0, "sleeps stopped\n")
    assert submit.exit_code(submit.info(client, name)) != 0
    done = project.run("jobs", "stop", "sleepz")
    assert done.returncode == 2
    assert "job sleepz: not on this cluster, did you mean 'sleeps'?" in done.stderr


def test_jobs_queue_for_the_memory_of_the_head(client: Any, project: Project) -> None:
    """Two that reserve more than half of it each: the second begins when the first has ended."""
    (head,) = ray_internals.nodes(project.head.address)
    share = 0.6 * head.resources["memory"] / 2**30
    clock = "python -c 'import time; print(time.time())'"
    for name, command in (("holds", f"sleep 3; {clock}"), ("queues", clock)):
        submit.send(client, submit.Plan(name, command, memory_gib=share))
    assert submit.info(client, "queues").status == "PENDING"
    assert [submit.follow(client, name) for name in ("holds", "queues")] == [0, 0]
    ended, began = (float(client.get_job_logs(name).split()[-1]) for name in ("holds", "queues"))
    assert began > ended


def test_the_same_name_is_the_same_job(client: Any) -> None:
    plan = submit.Plan("once", "echo once")
    assert submit.send(client, plan) == submit.send(client, plan) == "once"
    with pytest.raises(ClusterError, match="--id once: a different job has this name"):
        submit.send(client, submit.Plan("once", "echo twice"))


def test_submit_ships_the_checked_file(project: Project, client: Any, tmp_path: Path) -> None:
    """`--no-wait` prints the name only; `--set` is checked here, before anything travels."""
    file = tmp_path / "train.yaml"
    file.write_text(
        "kind: train\n"
        "data: {uri: /nowhere, features: {vector: image}}\n"
        "model: {network: {kind: dense, widths: [4]}, loss: {kind: mse}}\n"
    )
    done = project.run("submit", str(file), "--no-wait", "--set", "train.epochs=0")
    assert done.returncode == 2
    assert "train.epochs" in done.stderr
    arguments = ("submit", str(file), "--set", "train.epochs=2", "--id", "shipped")
    done = project.run(*arguments, "--no-wait")
    assert (done.returncode, done.stdout) == (0, "shipped\n"), done.stderr
    details = submit.info(client, "shipped")
    assert details.entrypoint == "hourglass train job.yaml"
    assert set(details.runtime_env) == {"working_dir", "env_vars"}
    assert details.runtime_env["env_vars"] == {"HOURGLASS_HOME": str(project.home)}
    assert project.run(*arguments).returncode != 0  # joins the same job: there are no shards


def test_ctrl_c_detaches(project: Project, client: Any) -> None:
    name = submit.send(client, submit.Plan("goes-on", "sleep 300"))
    process = subprocess.Popen(
        [*HOURGLASS, "jobs", "logs", "--follow", name],
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == submit.DETACHED
    assert "detached: job goes-on continues; follow it with `hourglass jobs logs --follow" in errors
    assert submit.info(client, name).status == "RUNNING"
    submit.stop_job(client, name)


def test_lines_are_printed_once_when_the_connection_breaks(
    client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit.send(client, submit.Plan("breaks", "echo first; sleep 3; echo second"))
    whole, broken = client.tail_job_logs, []

    async def once_broken(job: str) -> AsyncIterator[str]:
        async for chunk in whole(job):
            yield chunk
            if "\nfirst" in chunk and not broken:
                broken.append(True)
                raise RuntimeError("WebSocket connection closed unexpectedly")

    monkeypatch.setattr(client, "tail_job_logs", once_broken)
    assert submit.follow(client, "breaks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines.count("first"), lines.count("second"), len(broken)) == (1, 1, 1)


def test_a_second_start_is_refused(project: Project) -> None:
    done = project.start_head()
    assert done.returncode == 2
    assert f"is already up at {project.head.dashboard}" in done.stderr


def test_refuses_to_run_open(empty: Project) -> None:
    done = empty.start_head(RAY_AUTH_MODE="disabled")
    assert done.returncode == 2
    assert "RAY_AUTH_MODE=disabled would start a cluster on which every user" in done.stderr
    empty.home.mkdir(0o700, exist_ok=True)
    token = empty.home / "ray_token"
    token.touch(0o600)
    done = empty.start_head()
    assert done.returncode == 2
    assert f"{token}: the token file is empty" in done.stderr
    done = empty.start_head(RAY_AUTH_TOKEN_PATH=str(token))
    assert f"{token}: the token file is empty" in done.stderr
    token.write_text("0" * 64)
    token.chmod(0o644)
    done = empty.start_head()
    assert done.returncode == 2
    assert f"{token}: found mode 0644, which lets other users access the token" in done.stderr
    assert nodes.find(empty.settings) is None


def test_ports_are_checked(empty: Project) -> None:
    done = empty.run("cluster", "start", "--port", "10500")
    assert "--port 10500: allowed are 1024 to 10001 and 20000 to 65535" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = empty.run("cluster", "start", "--dashboard-port", str(port))
    assert f"error: --dashboard-port: cannot listen on 127.0.0.1:{port} (" in done.stderr


def test_insecure_must_be_requested_and_stop_ends_one_head_only(
    project: Project, empty: Project
) -> None:
    """Negative control of the refusals above: the same probes find this head open."""
    done = empty.start_head("--insecure", RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert "OPEN: every user of this machine can use it" in done.stdout
    assert status(empty.head.dashboard + "/api/version") == 200
    assert {ip for ip, _ in listening(empty.head)} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    processes = family(empty.head)
    assert empty.run("cluster", "stop").returncode == 0
    assert not [process for process in processes if process.is_running()]
    assert empty.run("cluster", "status").returncode == 1
    assert not project.head.dead
    assert status(project.head.dashboard + "/api/version", project.token) == 200
