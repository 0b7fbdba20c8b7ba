"""Start 1- and 2-worker jobs again and again on a cluster of two CPUs: each must end, none may hang.

    python benchmarks/start_twenty_times.py [TIMES]

Prints the seconds of each run from `launch.train` to the first epoch and to the end, and how many
ended with the 95% bound on the rate of failure (exact binomial; 20 of 20 still allows 14%).
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hourglass.cluster.connect import connection
from hourglass.config.files import parse
from hourglass.settings import Settings

LIMIT_S = 120.0
"""A run that takes longer counts as hanging, even if it ends."""


class Clock:
    """A listener that notes when the first epoch ended."""

    def __init__(self) -> None:
        self.started, self.first = time.perf_counter(), 0.0

    def prepared(self, job: Any, dataset: dict[str, Any]) -> None:
        """The statistics took this long."""
        self.statistics = time.perf_counter() - self.started

    def note(self, text: str) -> None:
        """Nothing to note."""

    def epoch(self, record: dict[str, float]) -> None:
        """The first one counts."""
        self.first = self.first or time.perf_counter() - self.started


def job(folder: Path, workers: int, cache: str) -> Any:
    """Two epochs of a tiny network."""
    return parse(
        {
            "kind": "train",
            "name": f"start-{workers}-{cache}",
            "data": {"uri": str(folder), "features": {"vector": "x"}, "cache": cache},
            "model": {"network": {"kind": "dense", "widths": [8, 3]}},
            "train": {"epochs": 2, "batch_size": 100},
            "scale": {"workers": workers},
        }
    )


def write(folder: Path) -> None:
    """Four shards of 250 rows."""
    rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    for number, part in enumerate(np.split(rows, 4)):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), 16)
        table = pa.table({"x": vectors})
        path = folder / f"part-{number}.parquet"
        pq.write_table(table, path, row_group_size=100, write_page_checksum=True)


def main(times: int) -> int:
    """Run, print, and exit with 1 when a run failed or hung."""
    home = Path(tempfile.mkdtemp(prefix="hgs", dir="/tmp"))
    shards, ended = home / "shards", 0
    shards.mkdir()
    write(shards)
    settings = Settings(home=home / "home", temp_dir=str(home / "ray"))
    plans = [(1, "memory"), (2, "memory"), (1, "stream"), (2, "stream")]
    with connection(cpus=2, settings=settings):
        from hourglass.training import launch

        for turn in range(times):
            workers, cache = plans[turn % len(plans)]
            clock = Clock()
            launch.train(job(shards, workers, cache), settings, clock, fresh=True)
            took = time.perf_counter() - clock.started
            ended += took < LIMIT_S
            print(
                f"{turn + 1:3d}  {workers} workers  {cache:6}  statistics {clock.statistics:5.1f} s  "
                f"first epoch {clock.first:5.1f} s  end {took:5.1f} s",
                flush=True,
            )
    shutil.rmtree(home, ignore_errors=True)
    bound = 1 - 0.05 ** (1 / times) if ended == times else float("nan")
    print(f"{ended}/{times} ended; at 95% at most {bound:.0%} would not")
    return int(ended < times)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
