"""What trials may use of the cluster, and what their workers reserve given back where Ray would keep it.

Ray frees a placement group whose creator was killed only when the whole job ends. A run frees what its
workers reserved, but not one whose own process is lost. So the sweep frees what a lost trial held, and at
its end what all others did; later by a moment, for as long as the trial's controller lives it would
reserve anew.
"""

import math
import time
from dataclasses import dataclass

import ray

from hourglass.config.tune import TuneJob
from hourglass.errors import ClusterError
from hourglass.training.launch import free
from hourglass.tuning.trial import Share


@dataclass(frozen=True)
class Crew:
    """What trials may use: the share of each, how many have room, and how many run at a time."""

    share: Share
    room: int
    at_once: int


def crew(sweep: TuneJob) -> Crew:
    """What the connected cluster has for trials. Raises ClusterError when not even one fits.

    A trial's CPUs do not depend on how many run beside it: with other threads sums would round
    otherwise, and the leaderboard would depend on the concurrency.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    scale, workers = sweep.job.scale, sweep.workers_per_trial
    each = 1.0 if scale.cpus_per_worker == "auto" else scale.cpus_per_worker
    gpu = scale.accelerator == "gpu" or (scale.accelerator == "auto" and gpus >= workers)
    part = sweep.gpus_per_worker if gpu else 0.0
    room = sum(_places(node, each, part) for node in nodes) // workers
    if room < 1:
        raise ClusterError(
            f"a trial of {workers} workers with {each:g} CPUs{f' and {part:g} GPUs' if gpu else ''} "
            f"each does not fit the cluster's {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes; change "
            "workers_per_trial or base.scale"
        )
    asked = sweep.concurrency
    return Crew(Share(each, part, workers), room, room if asked == "auto" else min(asked, room))


def _places(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers of so many CPUs and GPUs fit one machine."""
    room = node.get("CPU", 0.0) / cpus
    if gpus:
        room = min(room, node.get("GPU", 0.0) / gpus)
    return math.floor(room + 1e-9)


GONE_S = 2.0
"""Seconds after which a trial's processes are gone; workers of the next one wait 30 s for room."""


class Groups:
    """The placement groups of trials of several workers."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self._left: list[tuple[float, str]] = []

    def reserved(self, trial_id: str, group: str) -> None:
        """Workers of a trial of Tune's started in this group."""
        self._held[trial_id] = group

    def ended(self, trial_id: str) -> None:
        """The trial ended, in whatever way."""
        group = self._held.pop(trial_id, None)
        if group is not None:
            self._left.append((time.monotonic(), group))

    def give_back(self) -> None:
        """Free what trials held that are gone by now; what is free already stays free."""
        due = time.monotonic() - GONE_S
        free([group for at, group in self._left if at <= due])
        self._left = [left for left in self._left if left[0] > due]

    def give_back_all(self) -> None:
        """Free what any trial held: Tune does not say of those that it ended together."""
        free([*self._held.values(), *(group for _, group in self._left)])
