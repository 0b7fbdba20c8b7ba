"""Jobs on a cluster through Ray Jobs: submit a plan, follow its log, return its exit code."""

import asyncio
import hashlib
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hourglass import ray_internals
from hourglass.cluster import nodes
from hourglass.cluster.connect import ray_environment, refresh_ray
from hourglass.cluster.probe import check_dashboard, is_loopback
from hourglass.errors import ClusterError, last_line, nearest
from hourglass.process import LOOPBACK
from hourglass.settings import Settings

DETACHED = 130
SHA256, FILE, NAME = "hourglass_sha256", "hourglass_file", "hourglass_name"
"""Keys of the metadata of a job."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_ON_HEAD = {"node:__internal_head__": 0.001}
"""Ray places a command that reserves anything on any node, and one that does not on the head."""
_PENDING_S = 5.0


@dataclass(frozen=True)
class Plan:
    """A job to submit: a command, the job.yaml it reads, and environment variables.

    `file` and `name` (of the run) are only for lists. The command reserves `cpus` and `memory_gib` on the
    head for its own process, and waits until they are free.
    """

    job: str
    command: str
    content: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    file: str = ""
    name: str = ""
    cpus: float = 0.0
    memory_gib: float = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of all that identifies a plan."""
        whole = json.dumps([self.command, self.content, self.environment], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()


def send(client: Any, plan: Plan) -> str:
    """Submit the job unless the same plan was submitted before; its name. Raises ClusterError."""
    with tempfile.TemporaryDirectory(prefix="hourglass-") as folder:
        Path(folder, "job.yaml").write_text(plan.content)
        try:
            client.submit_job(
                entrypoint=plan.command,
                submission_id=plan.job,
                runtime_env={"working_dir": folder, "env_vars": plan.environment},
                metadata={SHA256: plan.digest, FILE: plan.file, NAME: plan.name},
                entrypoint_num_cpus=plan.cpus,
                entrypoint_memory=int(plan.memory_gib * 2**30),
                entrypoint_resources=_ON_HEAD if plan.cpus or plan.memory_gib else None,
            )
            return plan.job
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise ClusterError(
                    f"job {plan.job}: the cluster rejected it ({last_line(error)})"
                ) from error
    if (info(client, plan.job).metadata or {}).get(SHA256) != plan.digest:
        raise ClusterError(f"--id {plan.job}: a different job has this name; choose another")
    return plan.job


def open_client(address: str | None, settings: Settings) -> Any:
    """A client of `address`, else HOURGLASS_ADDRESS, else the local head. Raises ClusterError."""
    url = (address or _default_address(settings)).rstrip("/")
    os.environ.update(ray_environment(settings, url))
    ray_internals.require_tested_version()
    refresh_ray()
    check_dashboard(url)
    if urlsplit(url).scheme == "http" and not is_loopback(url):
        print(
            f"warning: the token is sent to {urlsplit(url).hostname} unencrypted; "
            "use https:// or a port-forward",
            file=sys.stderr,
        )
    # Ray's own variables take precedence over the given address.
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return JobSubmissionClient(url)


def follow(client: Any, job: str) -> int:
    """Print the job's log until it ends; its exit code. Ctrl-C detaches, and the job continues."""
    try:
        _await_start(client, job)
        asyncio.run(_print_log(client, job))
        details = _await_end(client, job)
    except KeyboardInterrupt:
        where = f"{shlex.quote(job)} --address {client.get_address()}"
        print(
            f"\ndetached: job {job} continues; follow it with `hourglass jobs logs --follow "
            f"{where}`, stop it with `hourglass jobs stop {where}`",
            file=sys.stderr,
        )
        return DETACHED
    if details.status != "SUCCEEDED":
        # Ray's message repeats the log, which is already printed.
        reason = (details.message or "").split(", last available logs", 1)[0].strip()
        print(f"job {job} {str(details.status.value).lower()}: {reason}", file=sys.stderr)
    return exit_code(details)


def exit_code(details: Any) -> int:
    """0 for a job that succeeded, else the exit code of its process as in a shell, else 1."""
    if details.status == "SUCCEEDED":
        return 0
    code = details.driver_exit_code or 1
    return 128 - code if code < 0 else int(code)


def info(client: Any, job: str) -> Any:
    """Ray's details of one job. Raises ClusterError for an unknown name."""
    try:
        return client.get_job_info(job)
    except OSError as error:
        raise ClusterError(
            f"job {job}: the cluster at {client.get_address()} no longer responds"
        ) from error
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise ClusterError(f"job {job}: {last_line(error)}") from error
        names = [str(details.submission_id) for details in jobs(client)]
        raise ClusterError(
            f"job {job}: not on this cluster{nearest(job, names)} "
            "`hourglass jobs list` shows its jobs"
        ) from None


def jobs(client: Any) -> list[Any]:
    """Submitted jobs, newest last."""
    found = [details for details in client.list_jobs() if details.submission_id]
    return sorted(found, key=lambda details: details.start_time or 0)


COLUMNS = ("JOB", "STATUS", "EXIT", "STARTED", "NAME", "FILE", "COMMAND")


def table(client: Any) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` for each job, newest last."""
    rows: list[tuple[str, ...]] = []
    for details in jobs(client):
        status = str(details.status.value).lower()
        code = str(exit_code(details)) if details.status in _ENDED else "-"
        when = datetime.fromtimestamp((details.start_time or 0) / 1000).strftime("%Y-%m-%d %H:%M")
        kept = details.metadata or {}  # None unless hourglass submitted the job
        name, file = kept.get(NAME) or "-", kept.get(FILE) or "-"
        rows.append((details.submission_id, status, code, when, name, file, details.entrypoint))
    return rows


def stop_job(client: Any, job: str) -> Any:
    """Stop a job and wait until it has ended; its details. Raises ClusterError."""
    if info(client, job).status not in _ENDED:
        client.stop_job(job)
    return _await_end(client, job)


async def _print_log(client: Any, job: str) -> None:
    """Print each line of the job's log once, and reconnect as often as necessary."""
    from aiohttp import ClientError

    printed = 0
    while True:
        received = 0
        try:
            async for chunk in client.tail_job_logs(job):
                fresh = chunk[max(0, printed - received) :]
                received += len(chunk)
                printed = max(printed, received)
                print(fresh, end="", flush=True)
            return
        except (RuntimeError, OSError, ClientError):
            if info(client, job).status in _ENDED:
                print(client.get_job_logs(job)[printed:], end="", flush=True)
                return
            await asyncio.sleep(1.0)


def _await_start(client: Any, job: str) -> None:
    """Wait until the job runs; a long wait is explained."""
    began, explained = time.monotonic(), False
    while info(client, job).status == "PENDING":
        if not explained and time.monotonic() - began > _PENDING_S:
            explained = True
            print(
                f"job {job} waits for the CPUs and memory that it reserves on the head (see "
                "`hourglass submit --help`), or for its environment",
                file=sys.stderr,
            )
        time.sleep(0.3)


def _await_end(client: Any, job: str) -> Any:
    """The details of the job once it has ended."""
    while (details := info(client, job)).status not in _ENDED:
        time.sleep(0.3)
    return details


def _default_address(settings: Settings) -> str:
    """The cluster to use by default. Raises ClusterError if there is none."""
    if settings.address is not None:
        return settings.address
    node = nodes.find(settings)
    if node is None:
        raise ClusterError(
            "no cluster given: pass --address URL, set HOURGLASS_ADDRESS, "
            "or start one on this machine with `hourglass cluster start`"
        )
    if node.tls and not node.head:
        host, port = node.address.rpartition(":")[0], node.dashboard.rpartition(":")[2]
        raise ClusterError(
            "the dashboard of a cluster with TLS is on its head's loopback: submit on the head, or "
            f"forward the port (ssh -L {port}:{LOOPBACK}:{port} {host}) and pass --address "
            f"http://{LOOPBACK}:{port}"
        )
    return node.dashboard
