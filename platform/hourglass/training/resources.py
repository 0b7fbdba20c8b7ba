"""What each worker of a run owns of the cluster's nodes, and what is left to read with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hourglass import bundles
from hourglass.bundles import Bundle
from hourglass.config.train import ScaleSpec
from hourglass.errors import ClusterError

MIN_READ_CPUS = 0.5
"""What workers must leave free: a read task is CPU-bound, so it asks for a whole CPU if there is one."""


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a run owns, and the CPUs of each read task."""

    cpus: float
    gpus: float
    read_cpus: float

    @property
    def threads(self) -> int:
        """Threads of PyTorch: the CPUs owned."""
        return max(1, int(self.cpus))


def worker_resources(scale: ScaleSpec, note: Callable[[str], None]) -> WorkerResources:
    """The cluster's share for each worker, once it is free. Raises ClusterError if it never is.

    Workers never take every CPU: Ray Data would wait forever for one to read with.
    """
    nodes = bundles.nodes()
    found = share(scale, nodes)
    if not bundles.can_grow():
        if found is None:
            raise ClusterError(_too_many(scale, nodes))
        return found
    fixed = 1.0 if scale.cpus_per_worker == "auto" else scale.cpus_per_worker
    asked = found or WorkerResources(fixed, float(scale.accelerator == "gpu"), 1.0)
    bundles.wait(
        [{"CPU": asked.cpus, "GPU": asked.gpus}] * scale.workers + [{"CPU": asked.read_cpus}],
        scale.wait_s,
        note,
        "use fewer workers or scale.cpus_per_worker, or raise scale.wait_s",
    )
    return share(scale, bundles.nodes()) or asked


def share(scale: ScaleSpec, nodes: Sequence[Bundle]) -> WorkerResources | None:
    """What each worker owns of nodes that nobody else uses; None if the workers do not fit."""
    if not nodes:
        return None
    workers, cpus = scale.workers, bundles.total(nodes, "CPU")
    enough = bundles.total(nodes, "GPU") >= workers
    gpus = float(scale.accelerator == "gpu" or (scale.accelerator == "auto" and enough))
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    shares = (
        [*range(most, 0, -1), *(hundredths / 100 for hundredths in range(99, 0, -1))]
        if scale.cpus_per_worker == "auto"
        else [scale.cpus_per_worker]
    )
    for each in shares:
        read = _left(nodes, each, workers)
        # Half of what is there, up to a CPU, reads; unless the job says otherwise.
        need = min(1.0, cpus / 2 / len(nodes)) if len(shares) > 1 else MIN_READ_CPUS
        if read >= need and bundles.fitting(nodes, {"CPU": each, "GPU": gpus}) >= workers:
            return WorkerResources(float(each), gpus, read)
    return None


def _left(nodes: Sequence[Bundle], each: float, workers: int) -> float:
    """The CPUs, at most 1, that some node has left wherever Ray places the workers."""
    left = bundles.total(nodes, "CPU") - each * workers
    whole = all(float(cpus).is_integer() for cpus in (each, *(n.get("CPU", 0.0) for n in nodes)))
    return min(1.0, left if whole or len(nodes) == 1 else left / len(nodes))


def _too_many(scale: ScaleSpec, nodes: Sequence[Bundle]) -> str:
    """Why the workers do not fit this machine."""
    cpus, gpus = bundles.total(nodes, "CPU"), bundles.total(nodes, "GPU")
    if scale.accelerator == "gpu" and gpus < scale.workers:
        return (
            f"scale.accelerator: gpu needs one for each of {scale.workers} workers, this machine has "
            f"{gpus:g}; use fewer workers, or accelerator: cpu"
        )
    each = scale.cpus_per_worker
    taken = "" if each == "auto" else f" of {each:g} CPUs"
    spare = max(cpus - 1.0, cpus / 2.0) / scale.workers
    return (
        f"{scale.workers} workers{taken} leave none of this machine's {cpus:g} CPUs to read; use fewer "
        f"workers, or scale.cpus_per_worker up to {spare:.2g}"
    )
