"""A Ray head node on this machine for submitted jobs: on loopback, secured by a token."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from pydantic import ValidationError

from hourglass import storage
from hourglass.cluster import tokens
from hourglass.cluster.connect import ray_environment, temp_dir
from hourglass.cluster.probe import check_dashboard
from hourglass.errors import ClusterError, first_line
from hourglass.process import LOOPBACK, deferred, free_port, require_free
from hourglass.settings import Settings
from hourglass.strict import Strict

START_S = 120.0
STOP_S = 5.0
SAME_START_S = 2.5
"""The kernel reports the boot time in whole seconds, and rounds again when the clock is set."""
_WORKER_PORTS = range(10002, 20000)  # Ray assigns these to workers


class Daemon(Strict):
    """A process of the head; its start time distinguishes it from later ones with the same pid.

    `started` is in seconds since boot, since the clock may be set while the head runs.
    """

    pid: int
    started: float
    name: str


class Head(Strict):
    """A head node of this project, as recorded in `<home>/cluster.json`."""

    address: str
    dashboard: str
    secure: bool
    daemons: tuple[Daemon, ...]

    @property
    def dead(self) -> tuple[Daemon, ...]:
        """The daemons that no longer run."""
        return tuple(daemon for daemon in self.daemons if _process(daemon) is None)


def start(
    settings: Settings,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    port: int = 6379,
    dashboard_port: int = 8265,
    insecure: bool = False,
) -> Head:
    """Start a head node on this machine and wait until it accepts jobs.

    Raises: ClusterError if it would be open without `insecure`, one is already up, a port is in
    use, or Ray does not start.
    """
    known = find(settings)
    if known is not None and len(known.dead) < len(known.daemons):
        raise ClusterError(
            f"the cluster of {settings.root} is already up at {known.dashboard}; "
            "stop it with `hourglass cluster stop` first"
        )
    _check_port("--port", port)
    _check_port("--dashboard-port", dashboard_port)
    environment = _environment(settings, insecure)
    tokens.private_folder(settings.root)
    folder = temp_dir(settings)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
    command += [f"--node-ip-address={LOOPBACK}", f"--port={port}", f"--temp-dir={folder}"]
    command += [f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard_port}"]
    command += ["--include-dashboard=true", "--disable-usage-stats"]
    # With Ray's fixed defaults for these two, a second head could not start on this machine.
    command += [f"--ray-client-server-port={free_port(_WORKER_PORTS)}"]
    command += [f"--dashboard-agent-listen-port={free_port(_WORKER_PORTS)}"]
    command += [f"--num-cpus={cpus}"] if cpus is not None else []
    command += [f"--num-gpus={gpus}"] if gpus is not None else []
    head = Head(
        address=f"{LOOPBACK}:{port}",
        dashboard=f"http://{LOOPBACK}:{dashboard_port}",
        secure=not insecure,
        daemons=(),
    )
    leader = _open_session(command, environment, folder.parent / "start.log")
    try:
        head = head.model_copy(update={"daemons": _launched(leader, folder.parent / "start.log")})
        storage.write(str(_record(settings)), head.model_dump_json(indent=1).encode())
        _record(settings).chmod(0o600)  # `stop` terminates the processes in it
        _await_dashboard(head, environment, folder)
    except BaseException:  # including Ctrl-C: `stop` cannot find unrecorded processes
        with deferred():
            _end(_session(leader.pid))
            _record(settings).unlink(missing_ok=True)
        raise
    return head


def stop(settings: Settings) -> Head | None:
    """Stop the recorded head and all its processes, and no others; None if there is none."""
    head = find(settings)
    if head is None:
        return None
    roots = [process for daemon in head.daemons if (process := _process(daemon))]
    family = set(roots)
    for process in roots:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just exited
            family.update(process.children(recursive=True))
    _end(family)
    _record(settings).unlink(missing_ok=True)
    return head


def _end(family: Collection[psutil.Process]) -> None:
    """Terminate processes, and kill those that take too long."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has exited
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_S)


def find(settings: Settings) -> Head | None:
    """The head recorded in the project folder, running or not. Raises ClusterError."""
    try:
        return Head.model_validate_json(_record(settings).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{_record(settings)}: not a record of a cluster ({first_line(error)}); "
            "stop the head's processes yourself and remove the file"
        ) from None


def describe(head: Head, settings: Settings) -> str:
    """Instructions for a head that is up."""
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(settings.root / tokens.RAY_TOKEN)
    safety = f"token in {token}" if head.secure else "OPEN: every user of this machine can use it"
    return "\n".join(
        [
            f"up: dashboard {head.dashboard}, head {head.address}, loopback only",
            safety,
            f"submit: hourglass submit FILE --address {head.dashboard}",
            "stop:   hourglass cluster stop",
        ]
    )


def _record(settings: Settings) -> Path:
    return settings.root / "cluster.json"


def _environment(settings: Settings, insecure: bool) -> dict[str, str]:
    """The head's environment, which jobs inherit. Raises ClusterError if it would be open."""
    environment = {**os.environ, **ray_environment(settings, None, insecure=insecure)}
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HOURGLASS_ADDRESS"):
        environment.pop(name, None)
    # A job starts in another folder with the head's PATH, and must find this `hourglass` and the
    # project folder.
    binaries = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
    environment["HOURGLASS_HOME"] = str(settings.root)
    return environment


def _open_session(
    command: list[str], environment: dict[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    """Run `ray start` in a new session."""
    with open(log, "wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _launched(leader: "subprocess.Popen[bytes]", log: Path) -> tuple[Daemon, ...]:
    """The daemons that `ray start` left running in its session. Raises ClusterError."""
    try:
        status = leader.wait(timeout=START_S)
    except subprocess.TimeoutExpired:
        status = -1
    members = _session(leader.pid)
    if status != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        raise ClusterError(f"Ray did not start: {last}; see {log}")
    ids = {member.pid for member in members}
    roots = [member for member in members if member.ppid() not in ids]
    return tuple(
        Daemon(pid=root.pid, started=_since_boot(root), name=root.name()) for root in roots
    )


def _session(leader: int) -> list[psutil.Process]:
    """The processes of the session of `leader`."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(
            OSError, psutil.Error
        ):  # it has exited, or belongs to another user
            if os.getsid(process.pid) == leader:
                members.append(process)
    return members


def _process(daemon: Daemon) -> psutil.Process | None:
    """The running process of `daemon`; None if it has exited."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(daemon.pid)
        if (
            abs(_since_boot(process) - daemon.started) < SAME_START_S
            and process.status() != psutil.STATUS_ZOMBIE
        ):
            return process
    return None


def _since_boot(process: psutil.Process) -> float:
    return float(process.create_time() - psutil.boot_time())


def _await_dashboard(head: Head, environment: dict[str, str], folder: Path) -> None:
    """Wait until the dashboard responds. Raises ClusterError."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return check_dashboard(head.dashboard, environment)
        except ClusterError as error:
            if time.monotonic() > deadline or head.dead:
                raise ClusterError(
                    f"the head did not come up ({error}); its logs are in "
                    f"{folder}/session_latest/logs"
                ) from None
        time.sleep(0.3)


def _check_port(option: str, port: int) -> None:
    """Raise ClusterError unless `port` is allowed and free."""
    if not 1024 <= port <= 65535 or port in _WORKER_PORTS:
        raise ClusterError(
            f"{option} {port}: allowed are 1024 to 10001 and 20000 to 65535 "
            "(Ray reserves 10002 to 19999 for its workers)"
        )
    require_free(LOOPBACK, port, option, f"choose another port with {option}")
