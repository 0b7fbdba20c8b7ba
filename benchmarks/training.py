"""Training rows/s of one worker on one thread against a plain in-memory PyTorch loop.

Both sides in one run: 784-[100]-784, tanh, Adam, batch 128, uint8 rows permuted again each epoch.
Ours is the real thing, `TorchTrainer` and all, on a local Ray cluster; its figure is the median
over the epochs after the first of rows / seconds of the epoch's steps, reading included. The cores'
speed drifts, so each run is divided by the mean of the plain runs before and after it, and the
median of the rounds counts. Target: cached >= 0.95 of plain, streaming >= 0.8.

    python benchmarks/training.py [FOLDER_OF_MNIST_SHARDS]
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from hourglass.cluster.connect import connection
from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.data.dataset import open_dataset
from hourglass.data.decode import read_chunks
from hourglass.data.schema import Features
from hourglass.settings import Settings
from hourglass.training.launch import train
from mnist import shards

EPOCHS = 10
ROUNDS = 7
BATCH = 128


def plain(rows: np.ndarray) -> list[float]:
    """Rows/s of each epoch of the loop anybody would write."""
    torch.manual_seed(0)
    features = torch.from_numpy(rows)
    model = nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, 784), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rates = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        order = torch.randperm(len(features))
        total = 0.0
        for start in range(0, len(features), BATCH):
            batch = features[order[start : start + BATCH]].float() / 255
            loss = (model(batch) - batch).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        rates.append(len(features) / (time.perf_counter() - started))
    return rates


class Rates:
    """A listener that keeps rows/s of each epoch, and when the first epoch began."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.first_epoch_at: float | None = None

    def prepared(self, job, dataset) -> None:
        pass

    def note(self, text) -> None:
        pass

    def epoch(self, record) -> None:
        self.rates.append(record["rows_per_s"])


def ours(folder: str, cache: str, settings: Settings) -> list[float]:
    job = parse(
        {
            "kind": "train",
            "name": f"bench-{cache}",
            "data": {
                "uri": folder,
                "features": {"vector": "image"},
                "scaling": {"kind": "divide", "by": 255},
                "holdout": 0.0,
                "cache": cache,
            },
            "model": {"network": {"widths": [100], "output_activation": "sigmoid"}},
            "train": {"epochs": EPOCHS, "batch_size": BATCH},
            "scale": {"workers": 1, "cpus_per_worker": 1},
        }
    )
    assert isinstance(job, TrainJob)
    listener = Rates()
    train(job, settings, listener, fresh=True)
    return listener.rates


def main() -> None:
    torch.set_num_threads(1)
    folder = shards("train")
    dataset = open_dataset(folder)
    columns = dataset.features(Features(vector="image"), "error")
    rows = np.concatenate(
        [
            chunk.features
            for shard in dataset.manifest.shards
            for group in range(len(shard.rows))
            for chunk in read_chunks(shard.path, group, columns, "error")
        ]
    )
    figures: dict[str, list[float]] = {"plain": [], "memory": [], "stream": []}
    ratios: dict[str, list[float]] = {"memory": [], "stream": []}
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))
        with connection(settings=settings):
            figures["plain"].append(median(plain(rows)[1:]))
            for _ in range(ROUNDS):
                for cache in ratios:
                    figures[cache].append(median(ours(folder, cache, settings)[1:]))
                    figures["plain"].append(median(plain(rows)[1:]))
                    beside = (figures["plain"][-1] + figures["plain"][-2]) / 2
                    ratios[cache].append(figures[cache][-1] / beside)
    result = {
        "what": "training rows/s, one worker, one thread, MNIST 784-[100]-784, batch 128",
        "rows": len(rows),
        "rows_per_s": {name: round(median(rates)) for name, rates in figures.items()},
        "ratio_cached": round(median(ratios["memory"]), 3),
        "ratio_stream": round(median(ratios["stream"]), 3),
        "ratios": {name: [round(r, 3) for r in rounds] for name, rounds in ratios.items()},
        "target": {"cached": 0.95, "stream": 0.8},
    }
    text = json.dumps(result, indent=1)
    Path(__file__).with_name("results").joinpath("training.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
