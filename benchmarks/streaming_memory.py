"""Memory of a training worker while it streams 2 GB of features: the target is <= 1.5 GB, and flat.

Writes shards of random bytes (2 GB decoded, 784 per row), trains four streamed epochs with one
worker, and samples the resident memory of the worker's process from outside, Ray's shared object
store left out (it belongs to the node; its pages are counted once, not per worker).

    python benchmarks/streaming_memory.py
"""

import json
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from hourglass.cluster.connect import connection
from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.settings import Settings
from hourglass.training.launch import train

BYTES = 2 * 10**9
WIDTH = 784
SHARD_ROWS = 160_000


def write(folder: Path) -> int:
    """Shards of about BYTES decoded; the rows."""
    rng = np.random.default_rng(0)
    rows = 0
    while rows * WIDTH < BYTES:
        images = rng.integers(0, 256, SHARD_ROWS * WIDTH, dtype=np.uint8)
        table = pa.table({"image": pa.FixedSizeListArray.from_arrays(pa.array(images), WIDTH)})
        path = folder / f"part-{rows:09d}.parquet"
        pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=20_000)
        rows += SHARD_ROWS
    return rows


class Sampler(threading.Thread):
    """Private memory (pages no other process maps) of the train worker, twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.samples: list[tuple[float, int, int]] = []

    def run(self) -> None:
        while not self.done.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        memory = process.memory_full_info()
                        self.samples.append((time.time(), memory.uss, memory.rss))
                except psutil.Error:
                    continue


class Quiet:
    """A listener that keeps when each epoch ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.rates: list[float] = []

    def prepared(self, job, dataset) -> None:
        pass

    def note(self, text) -> None:
        pass

    def epoch(self, record) -> None:
        self.ends.append(time.time())
        self.rates.append(record["rows_per_s"])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        rows = write(folder / "shards")
        job = parse(
            {
                "kind": "train",
                "name": "memory",
                "data": {
                    "uri": str(folder / "shards"),
                    "features": {"vector": "image"},
                    "scaling": {"kind": "divide", "by": 255},
                    "holdout": 0.0,
                    "cache": "stream",
                },
                "model": {"network": {"widths": [16]}},
                "train": {"epochs": 4, "batch_size": 4096},
                "scale": {"workers": 1},
            }
        )
        assert isinstance(job, TrainJob)
        settings = Settings(home=folder / "home")
        sampler, listener = Sampler(), Quiet()
        with connection(settings=settings):
            sampler.start()
            train(job, settings, listener)
            sampler.done.set()
    edges = [0.0, *listener.ends]
    by_epoch = [
        [private for at, private, _ in sampler.samples if start < at <= end]
        for start, end in pairwise(edges)
    ]
    result = {
        "what": "one worker streaming random bytes as features, four epochs",
        "bytes_per_epoch": rows * WIDTH,
        "rows_per_s": [round(rate) for rate in listener.rates],
        "peak_private_mb": round(max(p for _, p, _ in sampler.samples) / 1e6),
        "peak_rss_with_shared_mb": round(max(r for _, _, r in sampler.samples) / 1e6),
        "median_private_mb_by_epoch": [round(float(np.median(epoch)) / 1e6) for epoch in by_epoch],
        "target_mb": 1500,
    }
    text = json.dumps(result, indent=1)
    Path(__file__).with_name("results").joinpath("streaming_memory.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
