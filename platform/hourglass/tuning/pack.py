"""Which trials of a sweep train together in one process, as one batched model, and when that pays.

Trials pack when they are the same computation with other numbers: the same rows, network, kinds of
parts and batches. They may differ in the optimizer and its numbers, schedule, epochs, clipping, early
stop and seed, and in the numbers, not whole ones, of the corruption and the penalties.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from hourglass.config.train import TrainJob
from hourglass.training.stacked import numbers

FEWEST = 4
"""Members from which the work of a pack is clearly less than that of the runs."""
LARGEST = 2**18
"""Weights of a model beyond which a CPU is busy with the products themselves."""


def packs(jobs: Mapping[str, TrainJob]) -> list[list[str]]:
    """The names of `jobs` in groups that can train together, in the order of their first members.

    Names stay in order inside a group, too; a job that cannot be packed is a group of one.
    """
    groups: dict[str, list[str]] = {}
    for name, job in jobs.items():
        groups.setdefault(f"alone {name}" if obstacle(job) else _mould(job), []).append(name)
    return list(groups.values())


@dataclass(frozen=True)
class Dealt:
    """Trials in groups that train together, and a note for the user, if any."""

    groups: list[list[str]]
    note: str = ""


def deal(
    jobs: Mapping[str, TrainJob],
    how: Literal["auto", "always", "never"],
    features: int,
    processes: int,
    device: torch.device,
) -> Dealt:
    """Deal trials of rows of `features` numbers to `processes`, packed where that is asked for.

    This depends on how many trials fit the cluster, and not on how many run at a time.
    """
    alone = [[name] for name in jobs]
    together = [group for group in packs(jobs) if len(group) > 1]
    if how == "never" or not together:
        why = next(filter(None, map(obstacle, jobs.values())), "they differ in more than numbers")
        return Dealt(alone, f"pack: always finds nothing to pack: {why}" if how == "always" else "")
    groups: list[list[str]] = []
    for group in packs(jobs):
        size = -(-len(group) // processes)
        if how == "always" or pays(jobs[group[0]], features, size, device):
            groups += [group[i : i + size] for i in range(0, len(group), size)]
        else:
            groups += [[name] for name in group]
    packed = [len(group) for group in groups if len(group) > 1]
    if packed:
        return Dealt(groups, f"{sum(packed)} trials train packed, as {len(packed)} batched models")
    most = max(map(len, together))
    return Dealt(
        groups,
        f"up to {most} trials differ in numbers only; packed they would take longer here, so each "
        "trains alone (pack: always packs them)",
    )


def pays(job: TrainJob, features: int, members: int, device: torch.device) -> bool:
    """True when a pack of `members` takes less time than the same runs in turn in one process.

    Measured on one CPU thread with batches of 128 rows, time in turn / time packed. 36-[12, 2] with
    4,000 rows: 1.0 with 2 members, 1.8 with 4, 3.1 with 8, 9.5 with 64 (4.4 where each has a learning
    rate, so an optimizer, of its own; 3.2 with 400 rows, as each looks at held-out rows by itself).
    784-[100]: 1.0 with 2, 1.2 with 4, 1.4 with 8. 784-[512, 64]: 0.9 with 4. A GPU should wait for the
    CPU with models of all these sizes, so there the size does not count; that has not been measured.
    Whoever has idle CPUs must first deal the trials to them: a pack uses one.
    Source: benchmarks/packed.py.
    """
    network = job.model.network
    if members < FEWEST or network.unpackable:
        return False
    units = job.model.code.pre_units(network.code_width)
    return device.type == "cuda" or network.multiplications(features, units) <= LARGEST


def obstacle(job: TrainJob) -> str:
    """Why a job trains by itself, as words about a part of it; empty when it can be packed."""
    train, model = job.train, job.model
    if job.scale.workers > 1:
        return f"scale.workers: {job.scale.workers}"
    if train.phases:
        return "train.phases"
    if train.seeds > 1:
        return f"train.seeds: {train.seeds}"
    if model.trim:
        return "trim: what is left out depends on the values"
    if model.adversary is not None:
        return "adversary"
    for place, part in (
        ("network", model.network),
        ("corruption", model.corruption),
        ("code", model.code),
        ("loss", model.loss),
        *(("penalty", penalty) for penalty in model.penalties),
    ):
        if part.unpackable:
            return f"{place} {part.kind}: {part.unpackable}"
    return ""


def _mould(job: TrainJob) -> str:
    """All that trials of one pack have in common."""
    model = job.model.model_dump(mode="json", exclude={"preset"})
    for part, values in zip(
        (job.model.corruption, *job.model.penalties),
        (model["corruption"], *model["penalties"]),
        strict=True,
    ):
        values.update(dict.fromkeys(numbers(part)))
    shared = {
        "data": job.data.model_dump(mode="json"),
        "model": model,
        "batch_size": job.train.batch_size,
        "scale": job.scale.model_dump(mode="json"),
    }
    return json.dumps(shared, sort_keys=True)
