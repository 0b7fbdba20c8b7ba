"""Trials trained as one batched model against the same trials in turn, both sides in one run.

Trials differ in the weight of a sparsity penalty, or in the learning rate, where each member has an
optimizer of its own. On a CPU, with one thread, seconds are those of the
process, which neighbours on the machine change little; on a GPU, where there is one, those of the clock.
Each round trains both sides, in turn, and the median ratio of the rounds counts. Rows are generated
unless a folder of Parquet shards with an `image` column is given for the wide model.

    python benchmarks/packed.py [FOLDER_OF_MNIST_SHARDS]
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.data import stats
from hourglass.data.dataset import open_dataset
from hourglass.data.decode import read_chunks
from hourglass.data.loader import MemoryLoader
from hourglass.data.schema import Features
from hourglass.training import members, packed
from hourglass.training.collective import SingleProcessGroup

ROUNDS = 3
BATCH = 128
TABLE, WIDE, DEEP = [12, 2], [100], [512, 64]


def generated(rows: int, columns: int) -> np.ndarray:
    """Rows of rank 3 with a little noise."""
    rng = np.random.default_rng(7)
    made = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, columns))
    return (made + 0.05 * rng.normal(size=made.shape)).astype(np.float32)


def images(folder: str, rows: int) -> np.ndarray:
    """The first rows of the shards."""
    dataset = open_dataset(folder)
    columns = dataset.features(Features(vector="image"), "error")
    chunks = read_chunks(dataset.manifest.shards[0].path, 0, columns, "error")
    return np.concatenate([chunk.features for chunk in chunks])[:rows]


def trial(widths: list[int], epochs: int, varies: str, number: int) -> TrainJob:
    """One trial: a sigmoid code, whose mean activation is kept at 0.1."""
    value = 0.0001 * (number + 1)
    sparse = {"kind": "sparsity_kl", "rho": 0.1, "beta": value if varies == "beta" else 0.01}
    optimizer = {"kind": "adam", "lr": value if varies == "lr" else 0.001}
    made = parse(
        {
            "kind": "train",
            "data": {"uri": "unused", "features": {"vector": "image"}},
            "model": {
                "network": {"widths": widths, "activation": "sigmoid"},
                "penalties": [sparse],
            },
            "train": {"epochs": epochs, "batch_size": BATCH, "optimizer": optimizer},
        }
    )
    assert isinstance(made, TrainJob)
    return made


def compared(
    rows: np.ndarray,
    widths: list[int],
    trials: int,
    epochs: int,
    device: torch.device,
    varies: str = "beta",
) -> dict[str, Any]:
    """Seconds of both sides."""
    held = np.arange(len(rows)) % 10 == 0
    measured = stats.measure(rows[~held])
    loader = MemoryLoader(rows, held, batch_size=BATCH, seed=0)
    jobs = [trial(widths, epochs, varies, number) for number in range(trials)]
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()  # ends with numbers on the CPU, so nothing is under way after it
        return clock() - began

    def together() -> None:
        packed.train(jobs, measured, loader, device, [quiet] * trials)

    def in_turn() -> None:
        for job in jobs:
            members.train(job, measured, loader, SingleProcessGroup(), device, quiet)

    rounds = [(seconds(in_turn), seconds(together)) for _ in range(ROUNDS)]
    return {
        "layers": [rows.shape[1], *widths],
        "rows": len(rows),
        "trials": trials,
        "varies": varies,
        "epochs": epochs,
        "device": device.type,
        "in_turn_s": round(median(alone for alone, _ in rounds), 3),
        "packed_s": round(median(pack for _, pack in rounds), 3),
        "ratio": round(median(alone / pack for alone, pack in rounds), 2),
    }


def quiet(kind: str, payload: Any) -> None:
    """Nobody listens."""


def main(folder: str | None = None) -> None:
    torch.set_num_threads(1)
    small, table = generated(400, 36), generated(4000, 36)
    wide = images(folder, 4000) if folder else generated(4000, 784)
    cases: list[tuple[np.ndarray, list[int], int, int]] = [
        *((small, TABLE, trials, 10) for trials in (2, 4, 8, 64)),
        *((table, TABLE, trials, 3) for trials in (2, 4, 8, 64)),
        *((wide, WIDE, trials, 2) for trials in (2, 4, 8)),
        (wide[:1500], DEEP, 4, 1),
    ]
    cpu = torch.device("cpu")
    compared(small, TABLE, 2, 1, cpu)  # the first step of a process loads what the others have
    found = [compared(*case, cpu) for case in cases]
    found.append(compared(table, TABLE, 64, 3, cpu, varies="lr"))
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        compared(small, TABLE, 2, 1, gpu)
        found += [compared(*case, 64, 3, gpu) for case in ((table, TABLE), (wide, WIDE))]
    result = {"what": "seconds in turn / seconds packed, batch 128", "cases": found}
    text = json.dumps(result, indent=1)
    Path(__file__).with_name("results").joinpath("packed.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
