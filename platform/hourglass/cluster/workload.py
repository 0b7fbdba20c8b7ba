"""What a job or serve file needs in Kubernetes: a command, workers, and paths that pods can read.

The functions are pure and contact no cluster.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hourglass.config import files
from hourglass.config.files import AnyJob
from hourglass.config.serve import ServeFile
from hourglass.config.train import ScoreJob, TrainJob
from hourglass.config.tune import TuneJob
from hourglass.errors import SpecError

SERVE_PORT = 8000
"""The port of the endpoints that `k8s/base/network.yaml` opens."""
NO_PROMOTION = (
    "no version becomes champion by itself; schedule a tune job with promote_if: better_than_champion "
    "for that"
)


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim, and the folder where every Ray pod mounts it."""

    claim: str
    path: str


@dataclass(frozen=True)
class Sizes:
    """Numbers of the command line for what a file leaves open."""

    workers: int | None = None
    cpus: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class Workload:
    """A file as it runs in pods; `workers` to `most_workers` pods of `cpus` and `gpus` each."""

    kind: str
    name: str
    content: dict[str, Any]
    workers: int
    most_workers: int
    cpus: int
    gpus: int = 0
    notes: tuple[str, ...] = ()
    """What `auto` became, and what else differs from the file."""
    when_scheduled: str = ""
    """What to know when the file runs on a schedule."""


class _Findings:
    """Mistakes and notes, collected while a file is read."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.notes: list[str] = []

    def number(self, option: str, given: int | None, place: str, found: Any) -> float:
        """The number of a field; where that is `auto`, of the option, else 1."""
        if found == "auto":
            return given or 1
        if given is not None:
            advice = f"use --set {place}={given}" if place else "remove it"
            self.mistakes.append(f"{option} {given}: {place or 'the job'} takes {found}; {advice}")
        return float(found)

    def accelerator(self, place: str, found: str, gpus: int | None, most: int | None) -> str:
        """What the accelerator of a job becomes."""
        if found == "cpu" and gpus:
            self.mistakes.append(f"--gpus {gpus}: {place} is cpu; use --set {place}=gpu")
        if found == "gpu" and gpus == 0:
            self.mistakes.append(f"--gpus 0: {place} is gpu; use --set {place}=cpu")
        if most is not None and (gpus or 0) > most:
            self.mistakes.append(
                f"--gpus {gpus}: each worker uses one GPU, allowed are 0 and 1; use more workers"
            )
        if found != "auto":
            return found
        became = "gpu" if gpus else "cpu"
        why = f"--gpus {gpus}" if gpus else "without --gpus"
        self.notes.append(f"{place}: auto became {became} ({why})")
        return became

    def checked(self, workload: Workload) -> Workload:
        """The workload with all notes. Raises SpecError with all mistakes."""
        if self.mistakes:
            raise SpecError("\n".join(self.mistakes))
        return replace(workload, notes=tuple(self.notes))


def of_job(job: AnyJob, sizes: Sizes, volumes: Sequence[Volume] = ()) -> Workload:
    """The workload of a job file. Raises SpecError listing all mistakes."""
    found = _Findings()
    tree = files.dump(job)
    if isinstance(job, TrainJob):
        pods, cpus, gpus = _train(job, tree, sizes, found)
        promotes = False
    elif isinstance(job, ScoreJob):
        pods, cpus, gpus = _score(job, tree, sizes, found)
        promotes = True  # there is nothing to promote
    else:
        pods, cpus, gpus = _tune(job, tree, sizes, found)
        promotes = job.promote_if is not None
    base = "base." if "base" in tree else ""  # the data of a sweep is in its base
    for place, section in ((f"{base}data.", tree.get("base", tree).get("data", {})), ("", tree)):
        for name in ("uri", "manifest", "output", "model"):
            if isinstance(section.get(name), str | list):
                section[name] = _reachable(place + name, section[name], volumes, found)
    # One CPU more than the work needs: without it, Ray Data has none to read with and waits forever.
    own = math.ceil(cpus) + 1
    note = "" if promotes else NO_PROMOTION
    name = job.name or job.kind
    return found.checked(Workload(job.kind, name, tree, pods, pods, own, gpus, when_scheduled=note))


def _train(
    job: TrainJob, tree: dict[str, Any], sizes: Sizes, found: _Findings
) -> tuple[int, float, int]:
    workers = found.number("--workers", sizes.workers, "scale.workers", job.scale.workers)
    cpus = found.number("--cpus", sizes.cpus, "scale.cpus_per_worker", job.scale.cpus_per_worker)
    accelerator = found.accelerator("scale.accelerator", job.scale.accelerator, sizes.gpus, 1)
    tree["scale"]["accelerator"] = accelerator
    return int(workers), cpus, int(accelerator == "gpu")


def _score(
    job: ScoreJob, tree: dict[str, Any], sizes: Sizes, found: _Findings
) -> tuple[int, float, int]:
    workers = found.number("--workers", sizes.workers, "workers", job.workers)
    cpus = found.number("--cpus", sizes.cpus, "", 1)
    tree["accelerator"] = found.accelerator("accelerator", job.accelerator, sizes.gpus, 1)
    return int(workers), cpus, int(tree["accelerator"] == "gpu")


def _tune(
    job: TuneJob, tree: dict[str, Any], sizes: Sizes, found: _Findings
) -> tuple[int, float, int]:
    scale, place = job.job.scale, "base.scale"
    cpus = found.number("--cpus", sizes.cpus, f"{place}.cpus_per_worker", scale.cpus_per_worker)
    accelerator = found.accelerator(f"{place}.accelerator", scale.accelerator, sizes.gpus, None)
    tree["base"].setdefault("scale", {})["accelerator"] = accelerator
    at_once = 1 if job.concurrency == "auto" else job.concurrency
    gpus = (sizes.gpus or 1) if accelerator == "gpu" else 0
    return sizes.workers or at_once * job.workers_per_trial, cpus, gpus


def of_endpoints(
    file: ServeFile, name: str, sizes: Sizes, volumes: Sequence[Volume] = ()
) -> Workload:
    """The workload of a serve file: one pod for each replica. Raises SpecError listing all mistakes."""
    found = _Findings()
    tree = file.model_dump(mode="json", exclude_none=True)
    spec, options = file.spec, tree["http_options"]
    for option, given, instead in (
        ("--workers", sizes.workers, "replicas"),
        ("--cpus", sizes.cpus, "num_cpus"),
    ):
        if given is not None:
            advice = f"use --set applications.0.args.{instead}={given}"
            found.mistakes.append(f"{option} {given}: a serve file sets {instead}; {advice}")
    if sizes.gpus:
        found.mistakes.append(f"--gpus {sizes.gpus}: endpoints compute on CPUs; remove it")
    if options["port"] != SERVE_PORT:
        found.mistakes.append(
            f"http_options.port: found {options['port']}, allowed is {SERVE_PORT}, which the network "
            "policies open"
        )
    if "ssl_certfile" in options:
        found.mistakes.append(
            "http_options.ssl_certfile: KubeRay's probes use plain HTTP; end TLS at the Gateway instead"
        )
    if options["host"] != "0.0.0.0":
        found.notes.append(f"http_options.host: {options['host']} became 0.0.0.0")
    options["host"] = "0.0.0.0"
    if tree["proxy_location"] != "EveryNode":
        found.notes.append(f"proxy_location: {tree['proxy_location']} became EveryNode")
    tree["proxy_location"] = "EveryNode"
    for index, model in enumerate(tree["applications"][0]["args"]["models"]):
        place = f"applications.0.args.models.{index}.uri"
        if model["uri"].startswith("s3://"):
            found.mistakes.append(
                f"{place}: found {model['uri']}, but endpoints have no S3 keys; register the model "
                "and use models:/NAME@ALIAS"
            )
        model["uri"] = _reachable(place, model["uri"], volumes, found)
    least, most = (len(spec.models) * count for count in (spec.least_replicas, spec.most_replicas))
    return found.checked(Workload("serve", name, tree, least, most, math.ceil(spec.num_cpus)))


def _reachable(place: str, uri: Any, volumes: Sequence[Volume], found: _Findings) -> Any:
    """The URI with an absolute path; a path outside all volumes is a mistake."""
    if isinstance(uri, list):
        return [
            _reachable(f"{place}.{index}", one, volumes, found) for index, one in enumerate(uri)
        ]
    local = uri.removeprefix("file://")
    if "://" in local or local.startswith("models:"):
        return uri
    path = os.path.abspath(local)
    if not any(os.path.commonpath([path, volume.path]) == volume.path for volume in volumes):
        mounted = ", ".join(volume.path for volume in volumes) or "nothing"
        found.mistakes.append(
            f"{place}: found {uri}, a path of this machine ({path}), which pods cannot read; use an "
            f"s3:// URI, or mount a claim there with --volume CLAIM:PATH (mounted: {mounted})"
        )
    return path
