"""Collective operations of the workers of a run, which cost nothing with a single worker."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hourglass.errors import TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.part import ForwardOutput


class ProcessGroup(Protocol):
    """The workers of a run. Every worker must call each method, or the others wait for it."""

    rank: int
    size: int

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all workers, without gradient."""
        ...

    def gather(self, value: Tensor) -> list[Tensor]:
        """`value` of every worker, in order of rank; first dimensions may differ."""
        ...

    def share(self, value: Any) -> list[Any]:
        """A small object of every worker, in order of rank."""
        ...


class SingleProcessGroup:
    """A run with one worker."""

    rank = 0
    size = 1

    def sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value.detach()

    def gather(self, value: Tensor) -> list[Tensor]:
        """The value itself."""
        return [value]

    def share(self, value: Any) -> list[Any]:
        """The value itself."""
        return [value]


class DistributedProcessGroup:
    """The default process group of torch.distributed."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all workers, without gradient."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> list[Tensor]:
        """`value` of every worker, in order of rank; first dimensions may differ."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=value.device)
        lengths[self.rank] = len(value)
        lengths = self.sum(lengths)
        padded = value.new_zeros((int(lengths.max()), *value.shape[1:]))
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]

    def share(self, value: Any) -> list[Any]:
        """A small object of every worker, in order of rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def means(sums: Sequence[Tensor], total: int, group: ProcessGroup) -> Iterator[Tensor]:
    """Sums over rows, added over workers in one all-reduce, divided by the rows `total` of all."""
    flat = group.sum(torch.cat([part.flatten() for part in sums])) / total
    parts = torch.split(flat, [part.numel() for part in sums])
    return (part.view_as(like) for part, like in zip(parts, sums, strict=True))


def find_nonfinite(candidates: dict[str, Tensor], group: ProcessGroup) -> TrainingError:
    """The error of the first tensor that is not finite, with its worker; the same on every worker."""
    bad = [i for i, value in enumerate(candidates.values()) if not bool(value.isfinite().all())]
    worst = group.share(bad[0] if bad else len(candidates))
    rank = min(range(len(worst)), key=lambda r: (worst[r], r))
    name = [*candidates, "gradient norm"][worst[rank]]
    return TrainingError(f"worker {rank}: {name} is NaN or infinite")


def parallel(module: AutoencoderModule, group: ProcessGroup) -> nn.Module:
    """The module itself for one worker, else its DDP after one backward pass.

    DDP rebuilds its buckets after its first backward pass, and a ring all-reduce over three or more
    workers adds in an order that depends on the buckets. A pass without rows before the first step makes
    a resumed run bit-identical to an uninterrupted one.
    """
    if group.size == 1:
        return module
    if module.batch_threshold is not None:
        module.batch_threshold.everyone = lambda values: torch.cat(group.gather(values))
    device = next(module.parameters()).device
    ids = [device.index or 0] if device.type == "cuda" else None
    # Buffers are preprocessing constants, the same on every worker: nothing to broadcast.
    model = DistributedDataParallel(
        module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    no_rows = torch.empty((0, module.preprocessing.columns), device=device)
    torch.autograd.backward(ForwardOutput(*model(no_rows)).output_BF.sum())
    module.zero_grad(set_to_none=True)
    return model
