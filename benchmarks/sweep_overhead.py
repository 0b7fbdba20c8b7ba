"""What a trial of a sweep costs beyond its training: on Ray Tune against the same training in a loop.

Digits (1,797 rows), 64-128-[8]-128-64, 20 epochs, trials that differ in their rate and are not packed,
one at a time. Overhead per trial: seconds of the sweep with 24 trials less those with 4, over the 20
trials between, less the seconds of training one in this process on one thread; so the start of Ray, the
rows and the processes, which a sweep pays once, are not in it and stand beside it. Target: <= 1.0 s.

    python benchmarks/sweep_overhead.py
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hourglass.cluster.connect import connection
from hourglass.config.files import parse
from hourglass.config.tune import TuneJob
from hourglass.data.demo import write_digits
from hourglass.data.loader import MemoryLoader
from hourglass.settings import Settings
from hourglass.training import members
from hourglass.training.collective import SingleProcessGroup
from hourglass.tuning import sweep
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.sweep import Swept
from hourglass.tuning.trial import Resources

FEW, MANY = 4, 24
KEPT = Path(__file__).with_name("results") / "sweep_overhead.json"


class Silent:
    """A listener that ignores its events."""

    def sweeping(self, trials: int, resources: Resources, dataset: dict[str, Any]) -> None: ...

    def known(self, entry: Entry) -> None: ...

    def loaded(self, dataset: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def started(self, values: Sequence[dict[str, Any]]) -> None: ...

    def ended(self, entry: Entry, uri: str, history: Sequence[dict[str, float]]) -> None: ...


def made(folder: Path, trials: int) -> TuneJob:
    """A sweep of so many rates."""
    tree = {
        "kind": "tune",
        "name": f"overhead-{trials}",
        "base": {
            "kind": "train",
            "name": "digits",
            "data": {
                "uri": str(folder),
                "features": {"vector": "image"},
                "scaling": {"kind": "divide", "by": 16},
            },
            "model": {"network": {"kind": "dense", "widths": [128, 8], "activation": "relu"}},
            "train": {"epochs": 20, "batch_size": 64, "optimizer": {"kind": "adam"}},
        },
        "space": {"train.optimizer.lr": {"grid": [1e-4 * (1 + n) for n in range(trials)]}},
        "concurrency": 1,
        "pack": "never",
    }
    job = parse(tree)
    assert isinstance(job, TuneJob)
    return job


def timed(job: TuneJob, settings: Settings) -> tuple[float, Swept]:
    """Seconds of a sweep from its first look at the shards to its leaderboard."""
    began = time.perf_counter()
    swept = sweep.run(job, settings, Silent())
    return time.perf_counter() - began, swept


def alone(job: TuneJob, swept: Swept) -> float:
    """Seconds of training one trial in this process, the median of five."""
    loaded = swept.rows.loaded
    seconds = []
    for _ in range(5):
        train = job.job.train
        loader = MemoryLoader.from_split(
            loaded.train, loaded.holdout.copy(), batch_size=train.batch_size, seed=train.seed
        )
        began = time.perf_counter()
        stats = loaded.data.statistics.stats
        members.train(
            job.job, stats, loader, SingleProcessGroup(), torch.device("cpu"), lambda *_: None
        )
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def main() -> None:
    """Measure and keep."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hgo", dir="/tmp") as home:
        folder = Path(home) / "digits"
        write_digits(str(folder))
        settings = Settings(home=Path(home) / "home", temp_dir=f"{home}/ray")
        with connection(cpus=2, settings=settings):
            few, _ = timed(made(folder, FEW), settings)
            many, swept = timed(made(folder, MANY), settings)
            training = alone(made(folder, MANY), swept)
    each = (many - few) / (MANY - FEW)
    found = {
        "what": "seconds of a trial of 20 epochs on digits, one at a time on one thread",
        "sweep_of": {str(FEW): round(few, 2), str(MANY): round(many, 2)},
        "a_trial": round(each, 3),
        "its_training_alone": round(training, 3),
        "overhead": round(each - training, 3),
        "once": round(few - FEW * each, 2),
        "target_overhead": 1.0,
    }
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
