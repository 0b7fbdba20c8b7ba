"""The training loop: epochs of steps, each followed by evaluation, a checkpoint and a record."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from hourglass.config.train import TrainSpec
from hourglass.data.loader import Loader
from hourglass.errors import TrainingError
from hourglass.model.noise import Noise
from hourglass.training.collective import ProcessGroup
from hourglass.training.state import Record, State
from hourglass.training.step import Sums, evaluate_batch, noise_seed, train_step

SUMS = ["error", "spread", "apart", "rounding", "code", "rows"]
"""Sums over held-out rows that every model has."""


class Commit(Protocol):
    """Saves the state; called on every worker, written by the first."""

    def __call__(self, state: State) -> None: ...


def fit(
    state: State,
    model: nn.Module,
    loader: Loader,
    spec: TrainSpec,
    group: ProcessGroup,
    *,
    report: Callable[[Record], None],
    commit: Commit,
    device: torch.device,
    until: int | None = None,
) -> None:
    """Train `state`, from its position, to the end of `spec`; `model` is the module or its DDP.

    With `until`, only to the end of that epoch, from whose checkpoint another run can continue.
    At the end `state.module` has the weights with the best holdout error (the last, without a holdout).
    Raises: TrainingError on every worker when a value is not finite, naming step, worker, tensor.
    """
    steps = loader.steps * spec.epochs
    rng = Noise(device)
    last = spec.epochs if until is None else until
    if not state.sizes or state.sizes[-1][1] != group.size:
        state.sizes = [*state.sizes, [state.step, group.size]]
    while state.epoch < last and not state.stopped:
        started, rows = time.perf_counter(), 0
        state.module.train()
        for batch in loader.train(state.epoch, state.epoch_step):
            rng.seed(noise_seed(spec.seed, state.step), batch.start, batch.total)
            set_rate(state, spec, steps)
            try:
                sums = train_step(model, state, batch, rng, group, spec.clip_norm)
            except TrainingError as error:
                raise TrainingError(
                    f"stopped at step {state.step} (epoch {state.epoch + 1}): {error}. The last "
                    "checkpoint is kept; lower the learning rate or check the rows"
                ) from None
            add(state.sums, sums)
            rows += batch.total
            state.step += 1
            state.epoch_step += 1
            every = spec.checkpoint_every_steps
            if every and state.step % every == 0 and state.epoch_step < loader.steps:
                commit(state)
        trained = time.perf_counter() - started
        record = end_of_epoch(state, loader, spec, group, device)
        record["rows_per_s"] = rows / max(trained, 1e-9)
        state.history.append(record)
        commit(state)
        report(record)
    if state.best_weights:
        state.module.load_state_dict(state.best_weights)


def end_of_epoch(
    state: State, loader: Loader, spec: TrainSpec, group: ProcessGroup, device: torch.device
) -> Record:
    """Reduce the sums, evaluate the held-out rows, keep the best weights, decide on early stopping."""
    totals = reduce(state.sums, group)
    rows = totals["rows"]
    record = {
        "epoch": float(state.epoch + 1),
        "step": float(state.step),
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        "train_mse": totals["error"] / rows,
        "code_mean": totals["code"] / rows,
    }
    terms = {name[5:]: total / rows for name, total in totals.items() if name.startswith("term.")}
    record |= {f"loss_{name}": value for name, value in terms.items()}
    record["loss"] = sum(terms.values())
    record |= {n: total / rows for n, total in totals.items() if n.startswith("discriminator_")}
    if state.idle_K is not None:  # the share of units that no row of this epoch has used
        record["dead_units"] = float((state.idle_K >= loader.steps).double().mean())
    state.module.eval()
    held = evaluate(state, (torch.from_numpy(rows) for rows in loader.holdout()), group, device)
    record |= held
    for name, value in record.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"stopped after step {state.step} (epoch {state.epoch + 1}): {name} is NaN or "
                "infinite. The last checkpoint is kept; lower the learning rate or check the rows"
            )
    if held:
        watch(state, held["holdout_mse"], spec)
    state.sums = {}
    state.epoch += 1
    state.epoch_step = 0
    return record


def evaluate(
    state: State, rows: Iterable[Tensor], group: ProcessGroup, device: torch.device
) -> dict[str, float]:
    """Holdout MSE in model space, FVU, mean code activation, of all workers; empty without rows.

    FVU is undefined, and absent, if the rows differ from each other or from the mean by rounding only.
    """
    zero = torch.zeros((), dtype=torch.float64, device=device)
    at_widths = [f"error_at_{width}" for width in state.module.spec.nested_widths]
    sums: Sums = {name: zero.clone() for name in SUMS + at_widths}
    for part in rows:
        add(sums, evaluate_batch(state.module, part.to(device)))
    totals = reduce(sums, group)
    if not totals["rows"]:
        return {}
    curve = {f"holdout_mse{name[5:]}": totals[name] / totals["rows"] for name in at_widths}
    spread = totals["spread"]
    varies = min(spread, totals["apart"]) > totals["rounding"]
    fvu = {"holdout_fvu": totals["error"] / spread} if varies else {}
    return {
        **curve,
        "holdout_mse": totals["error"] / totals["rows"],
        **fvu,
        "holdout_code_mean": totals["code"] / totals["rows"],
    }


def watch(state: State, error: float, spec: TrainSpec) -> None:
    """Keep the weights of the best epoch; stop when the patience is exhausted."""
    delta = spec.early_stop.min_delta if spec.early_stop else 0.0
    if state.best_error is None or error < state.best_error - delta:
        state.best_error, state.best_epoch = error, state.epoch
        weights = state.module.state_dict()
        state.best_weights = {name: value.clone() for name, value in weights.items()}
    elif spec.early_stop and state.epoch - state.best_epoch >= spec.early_stop.patience:
        state.stopped = True


def set_rate(state: State, spec: TrainSpec, steps: int) -> None:
    """Set the learning rate of this step."""
    for group in state.optimizer.param_groups:
        group["lr"] = spec.optimizer.lr * spec.schedule.factor(state.step, steps)


def add(sums: Sums, more: Sums) -> None:
    """Add `more` into `sums`."""
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def reduce(sums: Sums, group: ProcessGroup) -> dict[str, float]:
    """Totals over all workers, in one all-reduce."""
    names = sorted(sums)
    total = group.sum(torch.stack([sums[name] for name in names]))
    return dict(zip(names, total.tolist(), strict=True))
