"""The processes of a real gloo group: gradients, sums, trained weights and a resume, for test_ddp.

python ddp_worker.py SIZE FOLDER
"""

import contextlib
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # DDP would in each process; this is before they fork
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hourglass.data.loader import Batch, MemoryLoader
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.noise import Noise
from hourglass.training import loop, state, step
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import (
    DistributedProcessGroup,
    ProcessGroup,
    SingleProcessGroup,
    parallel,
)
from hourglass.training.state import discriminator

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import CPU, Stop, fresh, generated, held_out, job, timeless

torch.set_num_threads(1)

KL = {"kind": "sparsity_kl", "rho": 0.2, "beta": 0.5}
TANH = {"network": {"widths": [8, 3], "activation": "tanh"}}
SIGMOID = {"network": {"widths": [8, 3], "activation": "sigmoid"}}


def part(kind: str, weight: float) -> dict:
    """A penalty with one field."""
    return {"kind": kind, "weight": weight}


MODELS: dict[str, dict] = {
    "plain": TANH,
    "tanh_kl": TANH | {"penalties": [KL]},
    "sigmoid_kl": SIGMOID | {"penalties": [KL]},
    "trimmed": TANH | {"trim": 0.3, "loss": {"kind": "mae"}},
    "bce": SIGMOID | {"loss": {"kind": "bce"}},
    "bce_kl": TANH | {"loss": {"kind": "bce"}, "penalties": [KL]},
    "tied": {"network": TANH["network"] | {"tied": True, "norm": "layer"}},
    "dropout": {"network": TANH["network"] | {"dropout": 0.4}, "loss": {"kind": "mae"}},
    "aux_k": TANH
    | {"code": {"kind": "top_k", "k": 1}, "penalties": [{"kind": "aux_k", "weight": 0.5, "k": 1}]},
    "code": TANH | {"penalties": [part("code_l1", 0.1), part("code_l2", 0.2)]},
    "weights": TANH | {"penalties": [part("weights_l1", 0.01), part("weights_l2", 0.1)]},
    "contractive": {"network": {"widths": [4]}, "penalties": [part("contractive", 0.3)]},
    "contractive_deep": TANH | {"penalties": [part("contractive", 0.3)]},
    "nested": TANH | {"penalties": [{"kind": "nested", "widths": [1, 2]}]},
    "top_k": TANH | {"code": {"kind": "top_k", "k": 2}, "loss": {"kind": "huber"}},
    "batch_top_k": TANH | {"code": {"kind": "batch_top_k", "k": 1}},
    "variational": TANH
    | {
        "code": {"kind": "gaussian_posterior"},
        "penalties": [{"kind": "kl_prior", "beta": 0.5}],
        "loss": {"kind": "correntropy"},
    },
    "adversarial": TANH | {"adversary": {"prior": {"kind": "uniform"}, "weight": 0.5}},
    "conv": {
        "network": {
            "kind": "conv",
            "shape": [3, 2, 2],
            "layers": [{"channels": 3}, {"channels": 2, "kernel": 2, "stride": 2}],
            "up": "transposed",
        },
        "penalties": [part("contractive", 0.3)],
    },
    "lstm": {"network": {"kind": "lstm", "shape": [6, 2], "hidden": 5, "code": 3, "predict": 2}},
}
WIDE = {
    "network": {"widths": [64, 9], "activation": "tanh"},
    "penalties": [KL],
    "adversary": {"prior": {"kind": "uniform"}},
}
ROWS = generated(300).astype(np.float64)


def splits(size: int) -> dict[str, list[int]]:
    """Rows of each worker in one step."""
    even = [12] * size
    return {
        "even": even,
        "uneven": [*even[:-1], 5],
        "one_has_none": [*even[:-1], 0],
        "first_has_none": [0, *even[1:]],
        "one_row": [1, *[0] * (size - 1)],
    }


class NoScaling(DistributedProcessGroup):
    """A mistake: as if DDP added gradients instead of averaging them."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 1


class LocalMean(DistributedProcessGroup):
    """A mistake: a worker takes its own statistic for that of the whole batch."""

    def sum(self, value: Tensor) -> Tensor:
        """This worker's value, blown up to the size of all."""
        return value.detach() * self.size

    def gather(self, value: Tensor) -> list[Tensor]:
        """This worker's value, as if all had it."""
        return [value] * self.size


def gradient(
    name: str, rows: np.ndarray, total: int, group: ProcessGroup, start: int = 0
) -> dict[str, np.ndarray]:
    """The gradient in float64 of a step of `total` rows, of which this worker has `rows` from `start` on.

    A discriminator's own is with it, under `discriminator.`.
    """
    made = job(MODELS[name], "unit" if name.startswith("bce") else "range")
    module = fresh(made, ROWS).module.double()
    model = (
        module
        if isinstance(group, SingleProcessGroup)
        else parallel(module, DistributedProcessGroup())
    )
    batch, rng = Batch(rows, total, start), Noise().seed(7, start, total)
    rival = discriminator(module, seed=5)
    idle_K = 1000.0 * (
        torch.arange(module.spec.network.code_width) % 2
    )  # every second unit is dead
    weights = dict(module.named_parameters())
    terms, result = step.loss_terms(model, module, batch, 0, rng, group, idle_K, rival)
    torch.stack(list(terms.values())).sum().backward()
    if rival is not None:
        rival.learn(result.code_BK, total, rng, group)
        named = rival.network.named_parameters()
        weights |= {f"discriminator.{key}": p for key, p in named}
    return {key: p.grad.numpy().copy() for key, p in weights.items()}


CONTROLS = {"no_scaling": ("plain", "bce"), "local_mean": ("tanh_kl", "adversarial", "trimmed")}
"""The models on which each mistake is made as well, with rows split unevenly."""


def gradients(rank: int, size: int) -> dict[str, np.ndarray]:
    """Every model, split of the rows and way of computing, by `model/split/way/parameter`."""
    ways = {
        "right": DistributedProcessGroup(),
        "no_scaling": NoScaling(),
        "local_mean": LocalMean(),
    }
    found = {}
    for name in MODELS:
        for split, counts in splits(size).items():
            cuts = np.cumsum([0, *counts])
            for way, group in ways.items():
                if way != "right" and (name not in CONTROLS[way] or split != "uneven"):
                    continue
                mine = ROWS[cuts[rank] : cuts[rank + 1]]
                for key, value in gradient(
                    name, mine, int(cuts[-1]), group, int(cuts[rank])
                ).items():
                    found[f"{name}/{split}/{way}/{key}"] = value
    return found


def cold(module: AutoencoderModule, group: ProcessGroup) -> torch.nn.Module:
    """A mistake: DDP as it comes, which lays its buckets out anew after its first step."""
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def train(
    name: str, begin: Callable, saved: Checkpoints, group: ProcessGroup, stop: int = -1
) -> None:
    """A run of 100 steps from the newest checkpoint, if there is one, to its end or `stop`."""
    made = job(WIDE, epochs=10, batch_size=28, checkpoint_every_steps=43)
    rows, held = generated(300, 40), held_out(300)
    now = fresh(made, rows)
    found = saved.newest(print)
    if found:
        now.restore(*saved.load(found), rank=group.rank)
        assert now.step == 43
    loader = MemoryLoader(rows, held, batch_size=28, seed=5, worker=group.rank, workers=group.size)

    def commit(at: state.State) -> None:
        saved.save(at, group)
        if at.step == stop:
            raise Stop

    model, quiet = begin(now.module, group), lambda record: None
    with contextlib.suppress(Stop):
        loop.fit(now, model, loader, made.train, group, report=quiet, commit=commit, device=CPU)
    end = {key: value.numpy() for key, value in now.tensors().items()}
    folder = Path(saved.uri).parent
    np.savez(folder / f"{name}.{group.rank}.npz", **end)
    (folder / f"{name}.{group.rank}.json").write_text(json.dumps(timeless(now.history)))


def runs(folder: Path, group: ProcessGroup) -> None:
    """A whole run, one stopped in the middle of an epoch and resumed; the same without care."""
    for way, begin in (("warm", parallel), ("cold", cold)):
        whole, cut = (Checkpoints(f"{folder}/{way}_{n}", "r", "d", group.size) for n in range(2))
        train(f"{way}_whole", begin, whole, group)
        train(f"{way}_stopped", begin, cut, group, stop=43)
        train(f"{way}_resumed", begin, cut, group)


def main(rank: int, size: int, folder: Path) -> None:
    """Write what this worker found below `folder`."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    np.savez(folder / f"gradients.{rank}.npz", **gradients(rank, size))
    runs(folder, DistributedProcessGroup())
    dist.barrier()  # nobody tears down what another still speaks to
    dist.destroy_process_group()


if __name__ == "__main__":
    size, fork = int(sys.argv[1]), multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=main, args=(rank, size, Path(sys.argv[2]))) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))
