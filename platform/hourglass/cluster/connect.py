"""A Ray cluster for this process: an existing one, or a local one that ends with the process.

All of Ray's settings that matter are set here before Ray is imported, since defaults change.
"""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hourglass import ray_internals
from hourglass.cluster import certificates, tokens
from hourglass.cluster.probe import LOOPBACK, check_head, is_loopback
from hourglass.errors import ClusterError, first_line
from hourglass.process import deferred
from hourglass.settings import Settings

# Variables that are already set in the environment take precedence.
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in driver and workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the minimum time of report(); default 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # waited in full for a lost node; default 60 s
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
}
# Ray replaces a node address of 127.0.0.1 by the machine's external one and then listens on all
# interfaces, unless multi-machine clusters are disabled, as on macOS.
_MANY_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
# The message that the head sends every driver about a lost node, with log lines and advice.
_LOST = re.compile(r"The node with node id: \S+ and address: (\S+) .*has been marked dead")
# Sockets are named <temp dir>/r/session_<date>_<time>_<pid>/sockets/plasma_store, and the operating
# system limits their paths to 107 bytes.
_TEMP_DIR_LIMIT = 107 - len("/r/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    settings: Settings | None = None,
    ray_logs: bool = False,
) -> bool:
    """Connect this process to a Ray cluster; True if it was not connected before.

    The address is `address` (`host:port`), else RAY_ADDRESS (which Ray sets inside its jobs), else
    HOURGLASS_ADDRESS. Without one, a local cluster with `cpus` logical CPUs starts on loopback, with
    a token, and ends with this process. `ray_logs` prints the logs of Ray's own processes.
    Raises: ClusterError, within 15 s.
    """
    settings = settings or Settings()
    address = address or os.environ.get("RAY_ADDRESS") or settings.address
    address = None if address == "local" else address
    os.environ.update(ray_environment(settings, address))
    ray_internals.require_tested_version()
    import ray

    from hourglass.data import reading

    opened = not ray.is_initialized()
    if opened:
        refresh_ray()
        try:
            with deferred():  # Ray crashes if interrupted here, and installs signal handlers
                if address is None:
                    _start(settings, cpus)
                else:
                    _join(address)
        except BaseException:
            _shut_down()
            raise
    reading.configure()
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not ray_logs:
        _plain_worker_lines()
    return opened


@contextlib.contextmanager
def connection(
    address: str | None = None,
    *,
    cpus: int | None = None,
    settings: Settings | None = None,
    ray_logs: bool = False,
) -> Iterator[None]:
    """`connect` for the length of a block; an existing connection stays open.

    A second Ctrl-C does not interrupt the shutdown, which ends a local cluster, or this process's
    actors, tasks and placement groups on an existing one.
    """
    opened = connect(address, cpus=cpus, settings=settings, ray_logs=ray_logs)
    try:
        yield
    finally:
        if opened:
            _shut_down()


def ray_environment(
    settings: Settings, address: str | None, *, host: str = LOOPBACK, insecure: bool = False
) -> dict[str, str]:
    """Ray's variables for a process that uses `address`, or starts a cluster on `host` if it is None.

    A token in the environment (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as in a submitted job or a
    pod) is used as it is; otherwise it is `<home>/ray_token`, which starting a cluster generates.
    Raises: ClusterError if the cluster would be open, or there is no token to connect with.
    """
    variables = {name: os.environ.get(name, value) for name, value in _DEFAULTS.items()}
    mode = "disabled" if insecure else os.environ.get("RAY_AUTH_MODE", "token").lower()
    if address is None and mode != "token" and not insecure:
        raise ClusterError(
            f"RAY_AUTH_MODE={mode} would start a cluster on which every user of this machine can "
            "run code as you; allowed is `token`: unset RAY_AUTH_MODE, or run `hourglass cluster "
            "start --insecure` if you want an open cluster"
        )
    variables["RAY_AUTH_MODE"] = mode
    if is_loopback(host if address is None else address):
        variables[_MANY_MACHINES] = "0"
        # This machine is not preempted, so runs need no process that watches for it.
        variables[_PREEMPTION] = os.environ.get(_PREEMPTION, "0")
    if address is not None and os.environ.get("RAY_USE_TLS") is None:  # as in a job, or a pod
        variables |= certificates.environment(settings.root, address)
    if mode == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        variables["RAY_AUTH_TOKEN_PATH"] = str(_token_file(settings, starting=address is None))
    return variables


def _token_file(settings: Settings, *, starting: bool) -> Path:
    """The file with Ray's token. Raises ClusterError if it is missing, empty or exposed."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else settings.root / tokens.RAY_TOKEN
    if named and not starting:
        return path  # the modes of a pod's mounted secret differ; the cluster checks the token
    if starting and not named:
        tokens.ensure_token(path)
    else:
        tokens.read_token(path)
    return path


def refresh_ray() -> None:
    """Make an already imported Ray use the current environment."""
    ray_internals.reload_environment(many_machines=os.environ.get(_MANY_MACHINES) != "0")


def temp_dir(settings: Settings) -> Path:
    """The folder of Ray's sessions: private, and short enough for the names of sockets.

    Ray makes its folder accessible to everyone (mode 0777), so it is inside a private one.
    Raises ClusterError.
    """
    folder = settings.temp_dir
    if folder is None:
        name = f"hg-{os.getuid()}-{hashlib.sha256(str(settings.root).encode()).hexdigest()[:8]}"
        base = tempfile.gettempdir()
        folder = os.path.join(base if len(base + name) < _TEMP_DIR_LIMIT else "/tmp", name)
    path = Path(folder).absolute()
    if len(os.fsencode(path)) > _TEMP_DIR_LIMIT:
        raise ClusterError(
            f"HOURGLASS_TEMP_DIR {path}: found {len(os.fsencode(path))} bytes, allowed are "
            f"{_TEMP_DIR_LIMIT} because of the paths of sockets; choose a shorter path"
        )
    return tokens.private_folder(path) / "r"


def _shut_down() -> None:
    import ray

    with deferred():
        ray.shutdown()


def _start(settings: Settings, cpus: int | None) -> None:
    """Start a local cluster that ends with this process. Raises ClusterError."""
    folder = temp_dir(settings)
    try:
        ray_internals.start_local(cpus, LOOPBACK, folder, logging.WARNING)
    except Exception as error:
        raise ClusterError(
            f"Ray did not start on this machine: {first_line(error).rstrip('.')}; its logs are in "
            f"{folder}/session_latest/logs"
        ) from error


def _join(address: str) -> None:
    """Connect to the running cluster at `address`. Raises ClusterError."""
    import ray

    if address != "auto":
        check_head(address)
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except Exception as error:
        raise ClusterError(
            f"address {address}: {first_line(error).rstrip('.')}; connect from a machine of the cluster, or "
            "submit the job with `hourglass submit FILE --address URL`"
        ) from error


def _plain_worker_lines() -> None:
    """Print the stdout of workers unchanged; their stderr stays in the session's log files.

    Ray's own processes write to stderr, and our errors reach the driver as exceptions. Of the
    messages of Ray's head, only a lost node is printed, as one line.
    """
    ray_internals.forward_output(_print_lines, _print_loss)


def _print_loss(message: dict[str, Any], **_: Any) -> None:
    """Print the address of a lost node, if the message is about one."""
    lost = _LOST.match("\n".join(message["lines"]))
    if lost:
        print(f"lost node {lost[1]} of the cluster; its work is restarted", flush=True)


def _print_lines(batch: dict[str, Any]) -> None:
    """Print a batch of lines of a worker's stdout."""
    if not batch["is_err"] and batch.get("pid") not in ("autoscaler", "raylet", "gcs_server"):
        for line in batch["lines"]:
            print(line, flush=True)
