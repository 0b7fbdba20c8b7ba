"""The processes of a Ray node: started in a session of their own, found again, and ended."""

import contextlib
import os
import subprocess
from collections.abc import Collection
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from hourglass.errors import ClusterError
from hourglass.strict import Strict

START_S = 120.0
STOP_S = 5.0
SAME_START_S = 2.5
"""The kernel reports the boot time in whole seconds, and rounds again when the clock is set."""


class Daemon(Strict):
    """A process of a node; its start time distinguishes it from later ones with the same pid.

    `started` is in seconds since boot, since the clock may be set while the node runs.
    """

    pid: int
    started: float
    name: str


def open_session(
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


def launched(leader: "subprocess.Popen[bytes]", log: Path) -> tuple[Daemon, ...]:
    """The daemons that `ray start` left running in its session. Raises ClusterError."""
    try:
        status = leader.wait(timeout=START_S)
    except subprocess.TimeoutExpired:
        status = -1
    members = session(leader.pid)
    if status != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        raise ClusterError(f"Ray did not start: {last}; see {log}")
    ids = {member.pid for member in members}
    roots = [member for member in members if member.ppid() not in ids]
    return tuple(Daemon(pid=root.pid, started=since_boot(root), name=root.name()) for root in roots)


def session(leader: int) -> list[psutil.Process]:
    """The processes of the session of `leader`."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(
            OSError, psutil.Error
        ):  # it has exited, or belongs to another user
            if os.getsid(process.pid) == leader:
                members.append(process)
    return members


def running(daemon: Daemon) -> psutil.Process | None:
    """The running process of `daemon`; None if it has exited."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(daemon.pid)
        if (
            abs(since_boot(process) - daemon.started) < SAME_START_S
            and process.status() != psutil.STATUS_ZOMBIE
        ):
            return process
    return None


def family(daemons: Collection[Daemon]) -> set[psutil.Process]:
    """The running processes of `daemons` and all their descendants."""
    roots = [process for daemon in daemons if (process := running(daemon))]
    members = set(roots)
    for process in roots:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just exited
            members.update(process.children(recursive=True))
    return members


def listening(daemons: Collection[Daemon]) -> dict[str, list[int]]:
    """The TCP ports beyond loopback on which the daemons listen, by the process's name."""
    ports: dict[str, set[int]] = {}
    for daemon in daemons:
        for process in family([daemon]):
            with contextlib.suppress(psutil.Error):  # it has just exited
                for socket in process.net_connections("tcp"):
                    local = socket.laddr.ip.removeprefix("::ffff:") if socket.laddr else ""
                    if socket.status == psutil.CONN_LISTEN and not local.startswith(
                        ("127.", "::1")
                    ):
                        ports.setdefault(process.name(), set()).add(socket.laddr.port)
    return {name: sorted(found) for name, found in sorted(ports.items())}


def end(members: Collection[psutil.Process]) -> None:
    """Terminate processes, and kill those that take too long."""
    for process in members:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has exited
            process.terminate()
    _, alive = psutil.wait_procs(members, timeout=STOP_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_S)


def since_boot(process: psutil.Process) -> float:
    """When the process started, in seconds since boot."""
    return float(process.create_time() - psutil.boot_time())
