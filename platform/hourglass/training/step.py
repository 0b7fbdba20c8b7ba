"""One training step: the same gradient on N workers as on one with all rows.

Every worker's loss is scaled so that DDP's average over workers is the gradient of the whole
batch: row terms are sums over this worker's rows times workers / rows of the whole batch, and batch
statistics are those of the whole batch, with the gradient of this worker's share.
Shapes: B rows of this worker, K code units.
"""

import math
import operator
from contextlib import nullcontext
from functools import reduce

import torch
from torch import Tensor, nn

from hourglass.data.loader import Batch
from hourglass.errors import TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.noise import Noise
from hourglass.model.part import ForwardOutput
from hourglass.training.collective import ProcessGroup, find_nonfinite
from hourglass.training.state import Discriminator, State

Sums = dict[str, Tensor]

ULPS = 4
"""Rounding error of two numbers that should be equal, in units in the last place."""


def noise_seed(seed: int, step: int) -> int:
    """Seed of the training noise of one step."""
    return (seed * 1_000_003 + step) * 4096


def autocast(device: torch.device) -> "torch.autocast | nullcontext[None]":
    """bfloat16 on a GPU, full precision on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def loss_terms(
    model: nn.Module,
    module: AutoencoderModule,
    batch: Batch,
    step: int,
    rng: Noise,
    group: ProcessGroup,
    idle_K: Tensor | None = None,
    discriminator: Discriminator | None = None,
) -> tuple[dict[str, Tensor], ForwardOutput]:
    """Named, weighted terms of this worker's loss; DDP's mean of their sum is the batch's loss.

    `idle_K` counts the steps since each code unit was last active; without it, no unit is dead.
    """
    rows = torch.from_numpy(batch.rows).to(rng.device, non_blocking=True)
    scale = group.size / batch.total

    def row_mean(values_B: Tensor) -> Tensor:
        return values_B.sum() * scale

    def batch_mean(values_BK: Tensor) -> Tensor:
        local_K = values_BK.sum(dim=0)
        whole_K = group.sum(local_K) / batch.total
        return whole_K + (local_K - local_K.detach()) * scale

    with autocast(rng.device):
        result = ForwardOutput(*model(rows, rng))
    result = ForwardOutput(
        *(part.float() if part.dtype == torch.bfloat16 else part for part in result)
    )
    losses_B = module.row_losses(result)
    trim = module.spec.trim
    loss = _trimmed(losses_B, trim, group) if trim else row_mean(losses_B)
    terms: dict[str, Tensor] = {module.spec.loss.kind: loss}
    if idle_K is None:
        idle_K = torch.zeros(result.code_BK.shape[1], device=rng.device)
    terms |= module.penalties(result, step, idle_K, rng, row_mean, batch_mean)
    if discriminator is not None:
        terms["adversary"] = discriminator.term(result.code_BK, row_mean)
    return terms, result


def _trimmed(losses_B: Tensor, trim: float, group: ProcessGroup) -> Tensor:
    """The mean loss of the batch without the share `trim` of rows with the largest losses.

    A loss of NaN is kept, so that it is detected. Source: Rousseeuw 1984, "Least median of
    squares regression", section 4.
    """
    every = torch.cat(group.gather(losses_B.detach()))
    limit = every.kthvalue(len(every) - int(trim * len(every))).values
    kept = int((~(every > limit)).sum())
    return losses_B[~(losses_B > limit)].sum() * (group.size / kept)


def train_step(
    model: nn.Module,
    state: State,
    batch: Batch,
    rng: Noise,
    group: ProcessGroup,
    clip_norm: float | None,
) -> Sums:
    """Forward, backward, update; returns this worker's share of the step's sums.

    Raises: TrainingError, on every worker, when a gradient is not finite.
    """
    module = state.module
    rival = state.discriminator
    terms, result = loss_terms(model, module, batch, state.step, rng, group, state.idle_K, rival)
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(reduce(operator.add, terms.values()))
    weights = [w for group in state.optimizer.param_groups for w in group["params"]]
    norm = torch.nn.utils.get_total_norm(w.grad for w in weights if w.grad is not None)
    if not math.isfinite(norm.item()):
        raise nonfinite_error(state, batch, rng, group)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(weights, clip_norm, norm)
    state.optimizer.step()
    if module.spec.code.sparse:
        state.idle_K = idle_steps(state.idle_K, result.code_BK, group)
    sums = step_sums(module, terms, result, batch, group)
    if rival is not None:
        sums |= rival.learn(result.code_BK, batch.total, rng, group)
    return sums


def idle_steps(idle_K: Tensor | None, code_BK: Tensor, group: ProcessGroup) -> Tensor:
    """Steps since each unit was not 0 for any row of any worker."""
    active_K = group.sum((code_BK.detach() != 0).sum(dim=0, dtype=torch.float32)) > 0
    before_K = torch.zeros_like(active_K, dtype=torch.float32) if idle_K is None else idle_K
    return torch.where(active_K, 0.0, before_K + 1.0)


@torch.no_grad()
def step_sums(
    module: AutoencoderModule,
    terms: dict[str, Tensor],
    result: ForwardOutput,
    batch: Batch,
    group: ProcessGroup,
) -> Sums:
    """Sums over rows: added over workers and steps and divided once, they are the epoch's means."""
    whole = batch.total / group.size
    sums = {f"term.{name}": value.detach().double() * whole for name, value in terms.items()}
    rows = len(result.clean_BF)
    loss = module.spec.loss
    if loss.squared_error and not module.spec.trim:
        sums["error"] = sums[f"term.{loss.kind}"].clone()
    else:
        sums["error"] = (result.output_BF - result.clean_BF).square().mean(dim=1).double().sum()
    sums["code"] = result.code_BK.detach().mean(dim=1).double().sum()
    sums["rows"] = torch.tensor(float(rows), dtype=torch.float64, device=result.code_BK.device)
    return sums


def nonfinite_error(state: State, batch: Batch, rng: Noise, group: ProcessGroup) -> TrainingError:
    """The error of the first tensor that is not finite, with its worker; the same on every worker.

    DDP has averaged the gradients, so they are non-finite on every worker in the same step. Each worker
    repeats the step here, with the same noise, for its own gradients.
    """
    rng.again()
    module = state.module
    rival = state.discriminator
    terms, result = loss_terms(module, module, batch, state.step, rng, group, state.idle_K, rival)
    names, weights = zip(*module.named_parameters(), strict=True)
    loss = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    candidates = {
        "rows in model space": result.clean_BF,
        **dict(zip(names, weights, strict=True)),
        **{f"term {name}": value for name, value in terms.items()},
        **{f"gradient of {n}": g for n, g in zip(names, gradients, strict=True) if g is not None},
    }
    return find_nonfinite(candidates, group)


def rounding(clean_BF: Tensor, mean_F: Tensor) -> Tensor:
    """Squared distance of each row (B,) from the mean in model space that rounding alone can explain."""
    there = (clean_BF.square() + mean_F.square()).mean(dim=1) * torch.finfo(torch.float32).eps ** 2
    return ULPS**2 * there


@torch.no_grad()
def evaluate_batch(module: AutoencoderModule, rows: Tensor) -> Sums:
    """Sums over held-out rows (B, C): squared error, squared distances from the mean and from the first
    row, the part of them that may be rounding, code, rows."""
    result = module(rows)
    mean_F = module.preprocessing.mean_F
    at_widths = {
        f"error_at_{width}": (module.output_at(result.code_BK, width) - result.clean_BF)
        .square()
        .mean(dim=1)
        .double()
        .sum()
        for width in module.spec.nested_widths
    }
    return at_widths | {
        "error": (result.output_BF - result.clean_BF).square().mean(dim=1).double().sum(),
        "spread": (result.clean_BF - mean_F).square().mean(dim=1).double().sum(),
        "apart": (result.clean_BF - result.clean_BF[:1]).square().mean(dim=1).double().sum(),
        "rounding": rounding(result.clean_BF, mean_F).double().sum(),
        "code": result.code_BK.mean(dim=1).double().sum(),
        "rows": torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device),
    }
