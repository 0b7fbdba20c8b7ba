"""A Ray cluster for this process: the given one, or one on this machine for as long as we run.

Everything Ray must know is set here, before Ray is imported, and never left to a version's default.
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
from hourglass.cluster import tokens
from hourglass.cluster.probe import LOOPBACK, check_head, is_loopback
from hourglass.errors import ClusterError, first_line
from hourglass.process import deferred
from hourglass.settings import Settings

# Defaults, not orders: a variable that is already set in the environment wins.
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in driver and workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray's 2 s is the floor of every report()
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # Ray's 60 s is waited out after a lost node
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
}
# Ray replaces a node address of 127.0.0.1 by the machine's outer one and then listens on all
# interfaces, unless clusters of several machines are switched off, as they are on macOS.
_MANY_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
# What the head tells every driver of a machine, beside the last lines of its log and guesses.
_LOST = re.compile(r"The node with node id: \S+ and address: (\S+) .*has been marked dead")
# Sockets are named <temp dir>/r/session_<date>_<time>_<pid>/sockets/plasma_store; the system allows
# 107 bytes for all of it.
_TEMP_DIR_LIMIT = 107 - len("/r/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    settings: Settings | None = None,
    ray_logs: bool = False,
) -> bool:
    """Connect this process to a Ray cluster; True when it was not connected before.

    `address` (`host:port`), else RAY_ADDRESS (which Ray sets inside its jobs), else
    HOURGLASS_ADDRESS; with none of them a cluster with `cpus` logical CPUs starts on this machine,
    on loopback and with a token, and ends with this process. `ray_logs` shows what Ray's own
    processes say. Raises ClusterError, after 15 s at the latest.
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
            with deferred():  # Ray, cut short here, crashes; and it installs handlers of its own
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
    """`connect` for the length of a block; leaves a connection alone that was there before.

    Its end is not cut short by a second Ctrl-C: with it goes the cluster of our own, or what is ours on
    another: actors, tasks and placement groups.
    """
    opened = connect(address, cpus=cpus, settings=settings, ray_logs=ray_logs)
    try:
        yield
    finally:
        if opened:
            _shut_down()


def ray_environment(
    settings: Settings, address: str | None, *, insecure: bool = False
) -> dict[str, str]:
    """Ray's variables for a process that uses `address`, or starts a cluster when it is None.

    A token that the environment already names (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH: in a submitted
    job or a pod) is used as it is; else it is `<home>/ray_token`, which a start of our own makes.
    Raises ClusterError when a start would be open, or there is no token to connect with.
    """
    variables = {name: os.environ.get(name, value) for name, value in _DEFAULTS.items()}
    mode = "disabled" if insecure else os.environ.get("RAY_AUTH_MODE", "token").lower()
    if address is None and mode != "token" and not insecure:
        raise ClusterError(
            f"RAY_AUTH_MODE={mode} would start a cluster on which every user of this machine can "
            "run code as you; allowed is `token`: unset RAY_AUTH_MODE (or, if open is what you "
            "want, `hourglass cluster start --insecure`)"
        )
    variables["RAY_AUTH_MODE"] = mode
    if address is None or is_loopback(address):
        variables[_MANY_MACHINES] = "0"
        # Nobody takes this machine away, so no process of each run needs to watch for it.
        variables[_PREEMPTION] = os.environ.get(_PREEMPTION, "0")
    if mode == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        variables["RAY_AUTH_TOKEN_PATH"] = str(_token_file(settings, starting=address is None))
    return variables


def _token_file(settings: Settings, *, starting: bool) -> Path:
    """The file with Ray's token. Raises ClusterError when it is missing, empty or exposed."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else settings.root / tokens.RAY_TOKEN
    if named and not starting:
        return path  # a pod's mounted secret has modes of its own; the cluster judges the token
    if starting and not named:
        tokens.ensure_token(path)
    else:
        tokens.read_token(path)
    return path


def refresh_ray() -> None:
    """Make a Ray that was imported before us see the environment of now."""
    ray_internals.reload_environment(many_machines=os.environ.get(_MANY_MACHINES) != "0")


def temp_dir(settings: Settings) -> Path:
    """Where Ray keeps its sessions for this project: ours alone, short enough for socket names.

    Ray opens the folder it is given to everyone (mode 0777), so it gets one inside a closed one.
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
            f"HOURGLASS_TEMP_DIR {path}: {len(os.fsencode(path))} bytes, allowed are "
            f"{_TEMP_DIR_LIMIT} because sockets are made inside; choose a shorter path"
        )
    return tokens.private_folder(path) / "r"


def _shut_down() -> None:
    import ray

    with deferred():
        ray.shutdown()


def _start(settings: Settings, cpus: int | None) -> None:
    """Start a cluster on this machine that ends with this process. Raises ClusterError."""
    folder = temp_dir(settings)
    try:
        ray_internals.start_local(cpus, LOOPBACK, folder, logging.WARNING)
    except Exception as error:
        raise ClusterError(
            f"Ray did not start on this machine: {first_line(error).rstrip('.')}; its logs are below "
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
            "send the job there with `hourglass submit FILE --address URL`"
        ) from error


def _plain_worker_lines() -> None:
    """Print what workers write to stdout as it is; their stderr stays in the session's log files.

    Ray's own processes talk on stderr, and errors of ours reach the driver as exceptions. Of what Ray's
    head tells every driver, a lost machine is told in a sentence, without the last lines of its log.
    """
    ray_internals.forward_output(_print_lines, _print_loss)


def _print_loss(said: dict[str, Any], **_: Any) -> None:
    """Print which machine was lost, if that is what the head said."""
    lost = _LOST.match("\n".join(said["lines"]))
    if lost:
        print(f"lost machine {lost[1]} of the cluster; what ran on it starts anew", flush=True)


def _print_lines(batch: dict[str, Any]) -> None:
    """Print one batch of a worker's stdout."""
    if not batch["is_err"] and batch.get("pid") not in ("autoscaler", "raylet", "gcs_server"):
        for line in batch["lines"]:
            print(line, flush=True)
