"""Runs that differ only in numbers, trained together as one batched model: a step costs one pass.

A member ends as the run that its job would be alone, to rounding: weights, order of rows, noise,
learning rate, history, best weights and early stop are its own. A step is the code of a single run,
mapped over the members' stacked weights; numbers that differ enter as tensors. A member leaves when
it is done, stops early or fails, and the others are stacked again. No checkpoints are written: a killed
pack starts over.
Shapes: M members, B rows, F features, K code units.
"""

import copy
import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hourglass.config.train import TrainJob
from hourglass.data.loader import Batch, Loader
from hourglass.data.stats import Stats
from hourglass.errors import TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.noise import Noise
from hourglass.strict import Strict
from hourglass.training import loop, state
from hourglass.training.build import build
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.members import Member, Send
from hourglass.training.stacked import Group, Numbers, stacked_numbers, with_numbers
from hourglass.training.state import State
from hourglass.training.step import Sums, idle_steps, loss_terms, noise_seed, step_sums

SINGLE = SingleProcessGroup()
Losses = tuple[Tensor, Sums, Tensor]
"""Loss, the step's sums and each code unit's steps without use, with M in front or of one member."""


def train(
    jobs: Sequence[TrainJob],
    stats: Stats,
    loader: Loader,
    device: torch.device,
    sends: Sequence[Send],
) -> list[Member | TrainingError]:
    """Train jobs of one pack (see `tuning.pack`), each to its end or to a failure of its own.

    Each says its epochs to its own of `sends`. Raises: DataError, SpecError (see `build`).
    """
    trials = [
        Trial(number, job, state.fresh(build(job, stats).to(device), job.train), send)
        for number, (job, send) in enumerate(zip(jobs, sends, strict=True))
    ]
    ended: dict[int, Member | TrainingError] = {}
    while trials:
        pack = Pack(trials, loader, device)
        while not pack.left:
            pack.train_epoch()
        for trial, failure in pack.left:
            ended[trial.number] = failure or _finished(trial, loader, device)
        trials = [trial for trial in trials if trial.number not in ended]
    return [ended[number] for number in range(len(jobs))]


@dataclass(frozen=True)
class Trial:
    """A member while it trains; outside a pack its state is that of a run of its own."""

    number: int
    job: TrainJob
    state: State
    send: Send

    @property
    def rule(self) -> tuple[Any, ...]:
        """What decides how gradients move its weights; stacked, those of equal ones move together."""
        spec = self.job.train
        return spec.optimizer, spec.schedule, spec.epochs


def _finished(trial: Trial, loader: Loader, device: torch.device) -> Member | TrainingError:
    """What left, ended as a single run ends: with its best weights, or with its error.

    One whose gradient was not finite takes the same step again there, and fails in the same words.
    """
    now, spec = trial.state, trial.job.train
    report, order = partial(trial.send, "epoch"), loader.seeded(spec.seed)
    try:
        loop.fit(
            now, now.module, order, spec, SINGLE, report=report, commit=_nothing, device=device
        )
    except TrainingError as error:
        return error
    return Member(now.module, now.history, now.history[now.best_epoch if now.best_weights else -1])


class Pack:
    """Members that train together until one of them leaves; all of them are at the same step.

    `left` has the members that left, with an error if their metrics of an epoch were not finite.
    """

    def __init__(self, trials: Sequence[Trial], loader: Loader, device: torch.device) -> None:
        rules = list(dict.fromkeys(trial.rule for trial in trials))
        self._trials = sorted(trials, key=lambda trial: rules.index(trial.rule))
        self._loader, self._device = loader, device
        self._loaders = {t.job.train.seed: loader.seeded(t.job.train.seed) for t in trials}
        self._step, self._epoch = trials[0].state.step, trials[0].state.epoch
        self._rng = Noise(device)
        models = [_Inside(trial.state.module) for trial in self._trials]
        self._inside = copy.deepcopy(models[0]).train()
        self._weights: dict[str, Tensor] = stack_module_state(models)[0]
        self._numbers = stacked_numbers([trial.job.model for trial in self._trials], device)
        never_K = torch.zeros(trials[0].job.model.network.code_width, device=device)
        idle = [trial.state.idle_K for trial in self._trials]
        self._idle_MK = torch.stack([never_K if idle_K is None else idle_K for idle_K in idle])
        self._sums: Sums = {}
        self._groups = [self._group(rule) for rule in rules]
        self._out: set[int] = set()
        self.left: list[tuple[Trial, TrainingError | None]] = []

    def train_epoch(self) -> None:
        """All steps of an epoch, then each member's record of it; whoever leaves takes its state."""
        started, rows = time.perf_counter(), 0
        every = [loader.train(self._epoch) for loader in self._loaders.values()]
        for batches in zip(*every, strict=True):
            self._take_step(dict(zip(self._loaders, batches, strict=True)))
            rows += batches[0].total
        share = (time.perf_counter() - started) / len(self._trials)
        self._epoch += 1
        here = [index for index in range(len(self._trials)) if index not in self._out]
        for index in here:
            self._bring_home(index)
            self._end_epoch(self._trials[index], rows / max(share, 1e-9))
        self._sums = {}
        if self.left:
            for index in here:
                self._release(index)

    def _end_epoch(self, trial: Trial, rows_per_s: float) -> None:
        now, spec = trial.state, trial.job.train
        try:
            record = loop.end_of_epoch(now, self._loader, spec, SINGLE, self._device)
        except TrainingError as error:
            self.left.append((trial, error))
            return
        record["rows_per_s"] = rows_per_s
        now.history.append(record)
        trial.send("epoch", record)
        if now.stopped or now.epoch == spec.epochs:
            self.left.append((trial, None))

    def _take_step(self, batches: dict[int, Batch]) -> None:
        """One step of every member, on the batch of its seed.

        One whose gradient is not finite leaves with its state before the step; until the epoch ends,
        its place in the stack is computed in vain.
        """
        (clean, of_clean), (seen, of_seen) = self._rows(batches)
        losses = partial(self._losses, next(iter(batches.values())))
        packed = torch.vmap(losses, in_dims=(0, 0, of_clean, of_seen, 0))
        made: Losses = packed(self._weights, self._numbers, clean, seen, self._idle_MK)
        loss_M, sums, idle_MK = made
        slopes = torch.autograd.grad(loss_M.sum(), list(self._weights.values()))
        gradients = [slope.contiguous() for slope in slopes]  # fused optimizers go by position
        norm_M = torch.vmap(partial(get_total_norm, foreach=False))(gradients)
        for index, norm in enumerate(norm_M.tolist()):
            if index not in self._out and not math.isfinite(norm):
                self._out.add(index)
                self._bring_home(index)
                self._release(index)
                self.left.append((self._trials[index], None))
        self._clip(gradients, norm_M)
        for group in self._groups:
            group.move(gradients, self._step, self._loader.steps)
        self._idle_MK = idle_MK
        loop.add(self._sums, sums)
        self._step += 1

    def _rows(self, batches: dict[int, Batch]) -> tuple["_Part", "_Part"]:
        """Clean rows in model space, and what the encoders see; noise is drawn as in a single run."""
        clean = {
            seed: self._inside.model.preprocessing(torch.from_numpy(batch.rows).to(self._device))
            for seed, batch in batches.items()
        }
        seen: dict[tuple[int, Strict], Tensor] = {}
        for trial in self._trials:
            seed = trial.job.train.seed
            if (seed, trial.job.model.corruption) not in seen:
                self._rng.seed(noise_seed(seed, self._step))
                corrupted = trial.state.module.corrupted(clean[seed], self._rng)
                seen[seed, trial.job.model.corruption] = corrupted
        return (
            _joined([clean[trial.job.train.seed] for trial in self._trials]),
            _joined([seen[t.job.train.seed, t.job.model.corruption] for t in self._trials]),
        )

    def _losses(
        self,
        batch: Batch,
        weights: dict[str, Tensor],
        values: Numbers,
        clean_BF: Tensor,
        seen_BF: Tensor,
        idle_K: Tensor,
    ) -> Losses:
        """Those of one member, by the functions that a single run's step is made of."""

        def of(model: AutoencoderModule) -> Losses:
            model.spec = with_numbers(model.spec, values)
            # A part that draws inside the pass ends here with an error: vmap refuses it.
            passed: Any = lambda rows, rng: model.passed(clean_BF, seen_BF, rng)  # noqa: E731
            terms, result = loss_terms(passed, model, batch, self._step, self._rng, SINGLE, idle_K)
            sums = step_sums(model, terms, result, batch, SINGLE)
            sparse = model.spec.code.sparse
            used_K = idle_steps(idle_K, result.code_BK, SINGLE) if sparse else idle_K
            return reduce(operator.add, terms.values()), sums, used_K

        made: Losses = functional_call(self._inside, weights, (of,))
        return made

    def _clip(self, gradients: Sequence[Tensor], norm_M: Tensor) -> None:
        """Clip the gradients of each member that asks for it, in place."""
        for index, trial in enumerate(self._trials):
            most, module = trial.job.train.clip_norm, trial.state.module
            if most is not None and index not in self._out:
                for weight, gradient in zip(module.parameters(), gradients, strict=True):
                    weight.grad = gradient[index]
                clip_grads_with_norm_(module.parameters(), most, norm_M[index])
                module.zero_grad()

    @torch.no_grad()
    def _bring_home(self, index: int) -> None:
        """Give a member's state what it has in the stack, but for what its optimizer remembers."""
        now = self._trials[index].state
        now.epoch_step += self._step - now.step
        now.step = self._step
        now.sums = {name: total_M[index] for name, total_M in self._sums.items()}
        if self._trials[index].job.model.code.sparse:
            now.idle_K = self._idle_MK[index].clone()
        for weight, stack in zip(now.module.parameters(), self._weights.values(), strict=True):
            weight.copy_(stack[index])

    def _release(self, index: int) -> None:
        """Give a member's optimizer back."""
        trial = self._trials[index]
        group = next(g for g in self._groups if g.members.start <= index < g.members.stop)
        group.release(index, trial.state, trial.job.train)

    def _group(self, rule: tuple[Any, ...]) -> Group:
        same = [index for index, trial in enumerate(self._trials) if trial.rule == rule]
        states = [self._trials[index].state for index in same]
        spec = self._trials[same[0]].job.train
        return Group(slice(same[0], same[-1] + 1), states, spec, self._weights.values())


_Part = tuple[Tensor, int | None]
"""Rows of all members and the dimension of the members; None where all have the same rows."""


class _Inside(nn.Module):
    """Lets `functional_call` do anything with a model, not only its forward pass."""

    def __init__(self, model: AutoencoderModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, act: Callable[[AutoencoderModule], Losses]) -> Losses:
        """What `act` makes of the model."""
        return act(self.model)


def _joined(parts: Sequence[Tensor]) -> _Part:
    if all(part is parts[0] for part in parts):
        return parts[0], None
    return torch.stack(list(parts)), 0


def _nothing(state: State) -> None:
    """Commits nothing."""
