"""MLflow's web page on this machine: the server in a child process, on loopback, for one user."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hourglass.errors import HourglassError, redact
from hourglass.process import LOOPBACK, require_free
from hourglass.settings import Settings

START_S = 120.0
STOP_S = 10.0


def serve(settings: Settings, port: int, say: Callable[[str], None]) -> None:
    """Serve the store of `settings` at http://127.0.0.1:`port` until Ctrl-C or SIGTERM.

    Raises: HourglassError when runs are recorded in plain files, the port is taken, or the server does
    not come up.
    """
    if settings.tracking != "mlflow":
        raise HourglassError(
            f"HOURGLASS_TRACKING={settings.tracking}: plain files have no web page; see "
            f"`hourglass models list` and {settings.root / 'tracking'}, or use HOURGLASS_TRACKING=mlflow"
        )
    if settings.mlflow_uri.startswith(("http://", "https://")):
        say(f"MLflow is a server already: {redact(settings.mlflow_uri)}")
        return
    require_free(LOOPBACK, port, "--port", "choose another port")
    log = settings.root / "mlflow-ui.log"
    with _interruptible():
        with _server(settings, port, log) as server:
            try:
                _wait(server, port, log)
                say(f"MLflow  http://{LOOPBACK}:{port}\nlog     {log}\nready; Ctrl-C stops")
                code = server.wait()
            except KeyboardInterrupt:
                say("stopped")
                return
        raise HourglassError(f"the MLflow server ended with exit code {code}; see {log}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C, so that a supervisor leaves no server behind."""

    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _server(settings: Settings, port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    settings.root.mkdir(parents=True, exist_ok=True)
    hosts = [f"{LOOPBACK}:{port}", f"localhost:{port}"]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port),
        "--workers", "1", "--no-serve-artifacts",
        "--default-artifact-root", (settings.root / "mlartifacts").as_uri(),
        "--allowed-hosts", ",".join(hosts),  # the default takes every private address
        "--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts),
        "--x-frame-options", "DENY",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow_uri,  # may hold a password: not an argument
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with open(log, "ab") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            cwd=settings.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )
    try:
        yield server
    finally:
        _stop(server)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # whatever of its own processes is left
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise HourglassError(f"the MLflow server did not come up within {START_S:.0f} s; see {log}")
