"""Runs whose number of workers changes, in processes of a real process group, in float64.

`python resize_worker.py FOLDER` writes what each run ended with.
"""

import contextlib
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch._dynamo  # DDP would in each process; this is before they fork
import torch.distributed as dist

from hourglass.data.loader import Loader, MemoryLoader, StreamLoader
from hourglass.data.order import GroupCount, Slice
from hourglass.model.noise import Noise
from hourglass.training import loop, state
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import DistributedProcessGroup, parallel

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import CPU, Stop, fresh, generated, held_out, job

CHANGING = [(4, 14), (2, 35), (3, -1)]
"""Workers, and the step in the middle of an epoch after which there are others; 60 steps in all."""
RUNS = {
    "alone": [(1, -1)],
    "constant": [(3, -1)],
    "changing": CHANGING,
    "again": CHANGING,
    "by_worker": CHANGING,
}
NOISY = {
    "network": {"widths": [12, 3], "activation": "tanh", "dropout": 0.2},
    "corruption": {"kind": "gaussian", "sd": 0.3},
    "code": {"kind": "gaussian_posterior"},
    "penalties": [{"kind": "kl_prior", "beta": 0.1}],
}
MADE = job(NOISY, epochs=6, batch_size=28, checkpoint_every_steps=7)
ROWS, HELD = generated(300, 8).astype(np.float64), held_out(300)
GROUPS = np.split(np.arange(300), range(40, 300, 40))
MOST = max(size for size, _ in CHANGING)


def read(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
    for part in slices:
        group = GROUPS[part.group]
        mask = HELD[group] if part.split == "holdout" else ~HELD[group]
        yield ROWS[group[mask]][part.start : part.stop]


def loader(kind: str, worker: int, workers: int) -> Loader:
    common = {"batch_size": 28, "seed": 5, "worker": worker, "workers": workers}
    if kind == "memory":
        return MemoryLoader(ROWS, HELD, **common)
    counts = [
        GroupCount(0, index, int((~HELD[group]).sum()), int(HELD[group].sum()))
        for index, group in enumerate(GROUPS)
    ]
    return StreamLoader(counts, read, columns=8, window_rows=10, streams=MOST, **common)


def leg(rank: int, size: int, kind: str, name: str, number: int, stop: int, folder: Path) -> None:
    """Train from the newest checkpoint to step `stop`, or to the end."""
    meeting = f"file://{folder}/rendezvous.{kind}.{name}.{number}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    group = DistributedProcessGroup()
    saved = Checkpoints(f"{folder}/{kind}.{name}", "r", "d", size)
    now = fresh(MADE, ROWS)
    now.module.double()
    found = saved.newest(print)
    if found:
        now.restore(*saved.load(found), rank=rank, size=size)

    def commit(at: state.State) -> None:
        saved.save(at, group)
        if at.step == stop:
            raise Stop

    seed = Noise.seed
    mistake = patch.object(Noise, "seed", lambda noise, key, *_: seed(noise, key * 64 + rank))
    with mistake if name == "by_worker" else contextlib.nullcontext(), contextlib.suppress(Stop):
        loop.fit(
            now, parallel(now.module, group), loader(kind, rank, size), MADE.train, group,
            report=lambda record: None, commit=commit, device=CPU,
        )  # fmt: skip
    if rank == 0 and stop < 0:
        end = {key: value.numpy() for key, value in now.tensors().items()}
        errors = np.array([[record["holdout_mse"], record["loss"]] for record in now.history])
        np.savez(folder / f"{kind}.{name}.npz", errors=errors, sizes=now.sizes, **end)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    for kind in ("memory", "stream"):
        for name, legs in RUNS.items():
            for number, (size, stop) in enumerate(legs):
                every = [
                    fork.Process(
                        target=leg, args=(rank, size, kind, name, number, stop, Path(sys.argv[1]))
                    )
                    for rank in range(size)
                ]
                for process in every:
                    process.start()
                for process in every:
                    process.join()
                if any(process.exitcode for process in every):
                    sys.exit(f"{kind} {name}: a worker of {size} failed")
