"""What the training tests share: small jobs, generated rows, runs in this process."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.data import order, stats
from hourglass.data.loader import Batch, Loader, MemoryLoader, StreamLoader
from hourglass.data.order import GroupCount, Slice
from hourglass.training import loop, state
from hourglass.training.build import build
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.state import Record, State

CPU = torch.device("cpu")
STILL = {"epochs": 1, "batch_size": 50, "optimizer": {"kind": "sgd", "lr": 1e-30}}
"""Of a train section: with a rate of almost nothing, every step sees the first weights."""


def generated(rows: int = 300, columns: int = 12, seed: int = 7) -> np.ndarray:
    """Rows of rank 3 with a little noise, float32: something to learn."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, columns))
    return (made + 0.05 * rng.normal(size=made.shape)).astype(np.float32)


def held_out(rows: int) -> np.ndarray:
    """Every tenth row."""
    return np.arange(rows) % 10 == 0


def job(model: dict[str, Any] | None = None, scaling: str = "range", **train: Any) -> TrainJob:
    """A small job; `train` are fields of its train section."""
    parts = {"network": {"kind": "dense", "widths": [8, 3], "activation": "tanh"}, **(model or {})}
    settings = {"epochs": 4, "batch_size": 32, "optimizer": {"kind": "adam", "lr": 0.01}, "seed": 5}
    tree = {
        "kind": "train",
        "data": {"uri": "unused", "features": {"vector": "x"}, "scaling": {"kind": scaling}},
        "model": parts,
        "train": settings | train,
    }
    parsed = parse(tree)
    assert isinstance(parsed, TrainJob)
    return parsed


def memory_loader(job: TrainJob, rows: np.ndarray, held: np.ndarray | None = None) -> MemoryLoader:
    """The cached loader of one worker."""
    held = held_out(len(rows)) if held is None else held
    return MemoryLoader(rows, held, batch_size=job.train.batch_size, seed=job.train.seed)


def stream_loader(job: TrainJob, rows: np.ndarray, window_rows: int = 50) -> StreamLoader:
    """The streaming loader of one worker, over row groups of 40 rows read by plain Python."""
    held = held_out(len(rows))
    groups = [np.arange(start, min(start + 40, len(rows))) for start in range(0, len(rows), 40)]
    counts = [
        GroupCount(0, index, int((~held[group]).sum()), int(held[group].sum()))
        for index, group in enumerate(groups)
    ]

    def read(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
        for part in slices:
            group = groups[part.group]
            mask = held[group] if part.split == "holdout" else ~held[group]
            yield rows[group[mask]][part.start : part.stop]

    return StreamLoader(
        counts,
        read,
        columns=rows.shape[1],
        batch_size=job.train.batch_size,
        seed=job.train.seed,
        window_rows=window_rows,
    )


def fresh(job: TrainJob, rows: np.ndarray, held: np.ndarray | None = None) -> State:
    """The state before the first step."""
    held = held_out(len(rows)) if held is None else held
    return state.fresh(build(job, stats.measure(rows[~held])), job.train)


class Stop(Exception):
    """Thrown by a commit to end a run there, as a kill would."""


@dataclass
class Run:
    """A run in this process, and what it said."""

    job: TrainJob
    loader: Loader
    state: State
    records: list[Record] = field(default_factory=list)

    def fit(self, commit: Callable[[State], None] = lambda state: None) -> State:
        """Train to the end, or until `commit` throws."""
        loop.fit(
            self.state,
            self.state.module,
            self.loader,
            self.job.train,
            SingleProcessGroup(),
            report=self.records.append,
            commit=commit,
            device=CPU,
        )
        return self.state


def ready(job: TrainJob, rows: np.ndarray, held: np.ndarray | None = None) -> Run:
    """A run on cached rows before its first step."""
    return Run(job, memory_loader(job, rows, held), fresh(job, rows, held))


def run(job: TrainJob, rows: np.ndarray, held: np.ndarray | None = None) -> Run:
    """A finished run on cached rows."""
    made = ready(job, rows, held)
    made.fit()
    return made


def weights(state: State) -> dict[str, np.ndarray]:
    """All parameters and buffers."""
    return {name: value.numpy().copy() for name, value in state.module.state_dict().items()}


def same_bits(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """0 ULP apart."""
    return first.keys() == second.keys() and all(
        np.asarray(first[name]).tobytes() == np.asarray(second[name]).tobytes() for name in first
    )


def timeless(history: list[Record]) -> list[Record]:
    """Records without the one figure that a clock decides."""
    return [{k: v for k, v in record.items() if k != "rows_per_s"} for record in history]


@dataclass
class Planted:
    """A loader that changes the batch of one step."""

    loader: Loader
    step: int
    change: Callable[[np.ndarray], np.ndarray]

    @property
    def steps(self) -> int:
        return self.loader.steps

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for index, batch in enumerate(self.loader.train(epoch, first_step), first_step):
            hit = epoch * self.steps + index == self.step
            yield Batch(self.change(batch.rows.copy()), batch.total) if hit else batch

    def holdout(self) -> Iterator[np.ndarray]:
        return self.loader.holdout()


def batches(job: TrainJob, rows: int, epoch: int) -> list[np.ndarray]:
    """The planned batches of an epoch, as indices of training rows."""
    return order.memory_batches(rows, job.train.batch_size, job.train.seed, epoch)
