"""Training the members of an ensemble in turn; a single run is an ensemble of one.

A member is bit-identical to the run of the same job with one seed: member i, counted from 1, has
seed + i - 1. Each has its own checkpoints, so a resumed run continues with the member that it was training
and does not train finished ones again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from hourglass import artifact
from hourglass.config.train import TrainJob, TrainSpec
from hourglass.data.loader import Loader
from hourglass.data.stats import Stats
from hourglass.errors import SpecError, TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.training import loop, state
from hourglass.training.build import build
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import ProcessGroup, parallel
from hourglass.training.phases import pretrain
from hourglass.training.state import Record, State

Send = Callable[[str, Any], None]
"""Receives events: `note` with a message, `epoch` with a record, `resumed` with a position and history."""


@dataclass(frozen=True)
class Member:
    """A trained member: `module` has its best weights, `best` is the record of their epoch.

    `sizes` has a step and the number of workers from it on, for each change.
    """

    module: AutoencoderModule
    history: list[Record]
    best: Record
    sizes: list[list[int]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def error(self) -> float:
        """The lowest holdout error; the last training error without a holdout."""
        return self.best.get("holdout_mse", self.best["train_mse"])


@dataclass(frozen=True)
class Trained:
    """All members in order of seed. The primary member is the one with the lowest error."""

    members: list[Member]
    job: TrainJob

    @property
    def primary(self) -> int:
        """The number of the primary member, from 1; the lowest of several with the same error."""
        errors = [member.error for member in self.members]
        return errors.index(min(errors)) + 1

    @property
    def best(self) -> Record:
        """The best record of the primary member."""
        return self.members[self.primary - 1].best

    @property
    def sizes(self) -> list[list[int]]:
        """A step of the primary member and the number of workers from it on, for each change."""
        return self.members[self.primary - 1].sizes

    @property
    def modules(self) -> list[AutoencoderModule]:
        """The module of the primary member, then the others in order of seed."""
        every = [member.module for member in self.members]
        return [every.pop(self.primary - 1), *every]

    @property
    def ensemble(self) -> artifact.Ensemble | None:
        """The members in the artifact's manifest; None for a single one."""
        if len(self.members) == 1:
            return None
        return artifact.Ensemble(
            members=len(self.members), primary=self.primary, combine=self.job.train.combine
        )

    @property
    def history(self) -> list[Record]:
        """The records of all epochs, with the number of the member if there are several."""
        if len(self.members) == 1:
            return self.members[0].history
        return [
            _labelled(number, record)
            for number, member in enumerate(self.members, start=1)
            for record in member.history
        ]


def train(
    job: TrainJob,
    stats: Stats,
    loader: Loader,
    group: ProcessGroup,
    device: torch.device,
    send: Send,
    saved: Checkpoints | None = None,
    until: int | None = None,
) -> Trained:
    """Train every member of `job` to its end, each from its newest checkpoint in `saved`.

    With `until`, a job with one seed trains only to the end of that epoch. An interrupt without `saved`
    ends training with the last complete epoch, if there is one.
    Raises: SpecError when an artifact cannot hold them, TrainingError naming the member.
    """
    if job.train.seeds == 1:
        return Trained([_train(job, stats, loader, group, device, send, saved, until)], job)
    _require_fitting(job, build(job, stats))
    members = []
    for number in range(1, job.train.seeds + 1):
        own = job_of(job, number)
        order = loader if number == 1 else loader.seeded(own.train.seed)
        labelled = partial(_send, send, number)
        kept = saved.of(number) if saved else None
        try:
            members.append(_train(own, stats, order, group, device, labelled, kept))
        except TrainingError as error:
            raise TrainingError(f"member {number}: {error}") from None
        except KeyboardInterrupt:
            if saved or not members:
                raise
            members[-1] = replace(members[-1], interrupted=True)
        if members[-1].interrupted:
            break
    return Trained(members, job)


def _train(
    job: TrainJob,
    stats: Stats,
    loader: Loader,
    group: ProcessGroup,
    device: torch.device,
    send: Send,
    saved: Checkpoints | None,
    until: int | None = None,
) -> Member:
    """Train one member to its end, from its newest checkpoint, if there is one."""
    now = state.fresh(build(job, stats).to(device), job.train)
    begin(now, job.train, loader, saved, group, send, device)
    latest = _Latest()
    try:
        loop.fit(
            now,
            parallel(now.module, group),
            loader,
            job.train,
            group,
            report=partial(send, "epoch"),
            commit=partial(saved.save, group=group) if saved else latest,
            device=device,
            until=until,
        )
    except KeyboardInterrupt:
        if saved or not latest.history:
            raise
        now.module.load_state_dict(latest.weights)
        best = latest.history[latest.best]
        return Member(now.module, latest.history, best, now.sizes, interrupted=True)
    best = now.history[now.best_epoch if now.best_weights else -1]
    return Member(now.module, now.history, best, now.sizes)


class _Latest:
    """The last complete epoch, with which an interrupted run without checkpoints ends."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.history: list[Record] = []
        self.best = -1

    def __call__(self, state: State) -> None:
        """Keep the best weights so far (the last, without a holdout) and the records."""
        if state.epoch_step:
            return
        weights = state.best_weights
        if not weights:
            weights = {name: value.clone() for name, value in state.module.state_dict().items()}
        best = state.best_epoch if state.best_weights else -1
        vars(self).update(weights=weights, history=[*state.history], best=best)


def begin(
    now: State,
    spec: TrainSpec,
    loader: Loader,
    saved: Checkpoints | None,
    group: ProcessGroup,
    send: Send,
    device: torch.device,
) -> None:
    """Start all workers from the checkpoint that the first one finds, else with the pretraining phases.

    A run without a checkpoint of its own starts from one of its parent. The result of the phases is
    committed at once, as step 0, so that a killed run does not repeat them.
    """
    found = saved.start(partial(send, "note")) if saved and group.rank == 0 else None
    source = group.share(found)[0]
    if source is not None:
        checkpoints, name = source
        tensors, position = checkpoints.load(name)
        now.restore(tensors, position, rank=group.rank, size=group.size)
        done = now.stopped or now.epoch == spec.epochs
        reached = {"step": now.step, "epoch": now.epoch, "done": done}
        send("resumed", {**reached, "history": now.history})
    elif saved and saved.parent:
        raise TrainingError(
            f"{saved.parent.uri}: no checkpoint to continue from; restart the sweep with --fresh"
        )
    elif spec.phases:
        pretrain(now.module, loader, spec, group, partial(send, "note"), device)
        if saved:
            saved.save(now, group)


def job_of(job: TrainJob, number: int) -> TrainJob:
    """The job of one member, counted from 1, as a single run."""
    train = job.train.model_dump()
    own = {"seed": job.train.seed + number - 1, "seeds": 1, "combine": "mean"}
    return TrainJob.model_validate({**job.model_dump(by_alias=True), "train": train | own})


def _send(send: Send, number: int, kind: str, payload: Any) -> None:
    """Pass on an event of a member, with its number."""
    if kind == "note":
        send(kind, f"member {number}: {payload}")
    elif kind == "epoch":
        send(kind, _labelled(number, payload))
    else:
        history = [_labelled(number, record) for record in payload["history"]]
        send(kind, {**_labelled(number, payload), "history": history})


def _labelled(number: int, record: dict[str, Any]) -> dict[str, Any]:
    return {"member": float(number), **record}


def _require_fitting(job: TrainJob, module: AutoencoderModule) -> None:
    """Raise SpecError, before the first step, when an artifact cannot hold as many tensors."""
    own = len(module.state_dict())
    if job.train.seeds * own > artifact.TENSORS:
        raise SpecError(
            f"train.seeds: {job.train.seeds} members of {own} tensors each, an artifact holds "
            f"{artifact.TENSORS}; use {artifact.TENSORS // own} seeds or fewer"
        )
