"""Specs of train and score jobs and of how a step changes the weights, frozen and fully validated."""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, model_validator

from hourglass.config.phases import Phase, contradictions
from hourglass.data.schema import Features, Missing
from hourglass.model.autoencoder import MOST_MEMBERS, Combine
from hourglass.model.preprocessing import Range, Scaling
from hourglass.model.spec import ModelSpec, expand_job
from hourglass.strict import Strict, canonical, kind_unless_named, mistake, refuse


class Adam(Strict):
    """Adam. Source: Kingma and Ba 2015, algorithm 1."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Decay of the second moment.")


class AdamW(Strict):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, algorithm 2."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Decay of the second moment.")
    weight_decay: float = Field(1e-2, ge=0.0, description="Decoupled weight decay.")


class Sgd(Strict):
    """Stochastic gradient descent with (Nesterov) momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = Field(0.1, description="Peak learning rate.")
    momentum: float = Field(0.0, ge=0.0, lt=1.0, description="Momentum.")
    nesterov: bool = Field(False, description="Nesterov's form of momentum.")
    weight_decay: float = Field(0.0, ge=0.0, description="L2 penalty on the weights.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum above 0, found 0")
        return self


Optimizer = Annotated[Adam | AdamW | Sgd, Field(discriminator="kind"), kind_unless_named("adam")]


class Constant(Strict):
    """The peak learning rate throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step` (from 0) of `steps`."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class Cosine(Strict):
    """From the peak to 0 along half a cosine, after a linear warm-up.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        share = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


class OneCycle(Strict):
    """From 1/25 of the peak up to it, then down to 0, both along half a cosine.

    Source: Smith and Topin 2018, "Super-Convergence", section 3.
    """

    kind: Literal["one_cycle"] = "one_cycle"
    peak_at: float = Field(0.3, gt=0.0, lt=1.0, description="Share of the steps going up.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step` (from 0) of `steps`."""
        share = min(1.0, step / max(1, steps - 1))
        if share < self.peak_at:
            return _half_cosine(0.04, 1.0, share / self.peak_at)
        return _half_cosine(1.0, 0.0, (share - self.peak_at) / (1.0 - self.peak_at))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


Schedule = Annotated[
    Constant | Cosine | OneCycle, Field(discriminator="kind"), kind_unless_named("constant")
]


Uri = Annotated[str, Field(min_length=1)]
Uris = Annotated[tuple[Uri, ...], Field(min_length=1)]
RegistryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class DataSpec(Strict):
    """The dataset, and how its rows become features."""

    uri: Uri | Uris = Field(
        description="Folder, glob, file or s3:// URI of Parquet shards, or a list of them."
    )
    manifest: Uri | None = Field(
        None, description="Manifest that the shards must match (hourglass data manifest)."
    )
    features: Features = Field(description="The vector column, or the numeric columns.")
    scaling: Scaling = Field(Range(), description="Transformation of raw columns to model space.")
    constant: Literal["keep", "drop"] = Field(
        "keep", description="Whether to keep columns with a single value."
    )
    missing: Missing = Field("error", description="Policy for null, NaN and infinite cells.")
    holdout: float = Field(
        0.1, ge=0.0, lt=1.0, description="Fraction of rows held out of training."
    )
    cache: Literal["auto", "memory", "stream"] = Field(
        "auto", description="auto: in memory when the decoded features fit `cache_bytes`."
    )
    cache_bytes: PositiveInt = Field(
        2**30, description="Maximum bytes of features that a worker caches."
    )
    shuffle_rows: PositiveInt = Field(
        16384, description="Rows in the window within which a streaming epoch shuffles."
    )


class EarlyStop(Strict):
    """Stop when the holdout error has not improved for `patience` epochs."""

    patience: PositiveInt = Field(
        5, description="Epochs without improvement before training stops."
    )
    min_delta: float = Field(
        0.0, ge=0.0, description="Smallest decrease that counts as an improvement."
    )


class TrainSpec(Strict):
    """How the model is trained."""

    phases: tuple[Phase, ...] = Field((), description="Pretraining, in order, before the epochs.")
    epochs: PositiveInt = Field(10, description="Number of passes over the training rows.")
    batch_size: PositiveInt = Field(256, description="Rows per optimizer step, over all workers.")
    optimizer: Optimizer = Field(Adam(), description="Optimizer.")
    schedule: Schedule = Field(Constant(), description="Learning rate schedule.")
    clip_norm: PositiveFloat | None = Field(
        None, description="Maximum gradient norm; unset: no clipping."
    )
    early_stop: EarlyStop | None = Field(None, description="Early stopping on the holdout error.")
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of initial weights, row order and noise."
    )
    seeds: int = Field(
        1,
        ge=1,
        le=MOST_MEMBERS,
        description="Number of ensemble members, with seeds seed, seed + 1, ...; scores are combined.",
    )
    combine: Combine = Field("mean", description="How to combine the scores of several members.")
    checkpoint_every_steps: PositiveInt | None = Field(
        None, description="Steps between checkpoints within epochs; every epoch ends with one."
    )


IDENTITY = 1
"""Version of the hash in a run's name; increase it when a default changes."""


class ScaleSpec(Strict):
    """The resources of a run."""

    workers: PositiveInt = Field(1, description="Number of training processes.")
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="auto: gpu if available."
    )
    cpus_per_worker: Literal["auto"] | PositiveFloat = Field(
        "auto",
        description="auto: the most that each can have on its node if one CPU is left to read data.",
    )
    max_failures: int = Field(3, ge=0, description="Maximum restarts after a lost worker or node.")
    wait_s: float = Field(
        600.0,
        ge=0.0,
        description="Seconds to wait for CPUs and GPUs that a cluster has not free yet.",
    )


class TrackSpec(Strict):
    """How the run is tracked."""

    experiment: str = Field("hourglass", min_length=1, description="MLflow experiment.")
    register_as: RegistryName | None = Field(
        None, alias="register", description="Registered model to which to add a version."
    )


class TrainJob(Strict):
    """One training run."""

    kind: Literal["train"]
    name: RegistryName | None = Field(
        None, description="Name of the run; default: the file's name."
    )
    data: DataSpec = Field(description="The rows.")
    model: ModelSpec = Field(description="The parts of the model.")
    train: TrainSpec = Field(TrainSpec(), description="Epochs, optimizer, schedule and seed.")
    scale: ScaleSpec = Field(ScaleSpec(), description="Processes and their hardware.")
    track: TrackSpec = Field(TrackSpec(), description="Experiment and registered model.")
    quantile: float = Field(
        0.99, gt=0.0, lt=1.0, description="Quantile of the holdout scores to use as the threshold."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_is_fields(cls, tree: Any) -> Any:
        return expand_job(tree)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse(map(mistake, self._contradictions()))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Messages about incompatible settings."""
        data, network, train, scale = self.data, self.model.network, self.train, self.scale
        if train.early_stop is not None and data.holdout == 0.0:
            yield "train.early_stop watches the holdout error; set data.holdout above 0"
        if self.model.loss.unit_data and data.scaling.unit_range == "never":
            yield (
                f"loss {self.model.loss.kind} needs features in [0, 1], found scaling '{data.scaling.kind}': "
                "set data.scaling to {kind: unit}"
            )
        if network.row_shape is not None and data.constant == "drop":
            yield (
                f"network {network.kind} needs every column of its shape, "
                "found data.constant: drop; keep them"
            )
        if network.single_worker is not None and scale.workers > 1:
            why, instead = network.single_worker
            yield (
                f"network {network.kind}: {why}, so {scale.workers} workers would train a different "
                f"model than one; use {instead}, or scale.workers: 1"
            )
        if train.batch_size < scale.workers:
            yield (
                f"train.batch_size ({train.batch_size}) counts the rows of all workers and must be "
                f"at least scale.workers ({scale.workers})"
            )
        if train.combine != "mean" and train.seeds == 1:
            yield (
                f"train.combine: {train.combine} has no effect with one seed; set train.seeds to "
                "2 or more, or remove it"
            )
        if train.seed + train.seeds > 2**31:
            yield (
                f"train.seeds: {train.seeds} members have seeds up to {train.seed + train.seeds - 1}, "
                f"allowed are seeds below {2**31}; use a smaller train.seed"
            )
        yield from contradictions(train.phases, self.model, data.scaling, self.unit_data)

    @property
    def unit_data(self) -> bool:
        """True if model space is [0, 1]."""
        return self.data.scaling.unit_range == "always" or self.model.loss.unit_data

    @property
    def run_name(self) -> str:
        """`<name>-<hash of all that determines the weights>`; the same for the same job."""
        decisive = canonical(self)
        for name in ("name", "track", "quantile"):
            decisive.pop(name, None)
        apart = ("train", "checkpoint_every_steps"), ("scale", "max_failures"), ("scale", "wait_s")
        for part, name in apart:
            decisive.setdefault(part, {}).pop(name, None)
        text = json.dumps([IDENTITY, decisive], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{self.name or 'run'}-{digest[:8]}"


class ScoreJob(Strict):
    """One batch scoring run: codes, hashes and anomaly scores of rows, as Parquet files."""

    kind: Literal["score"]
    name: RegistryName | None = Field(
        None, description="Name of the job; default: the file's name."
    )
    model: Uri = Field(
        description="models:/NAME@ALIAS, models:/NAME/VERSION or an artifact folder."
    )
    uri: Uri | Uris = Field(description="Parquet shards to score.")
    manifest: Uri | None = Field(None, description="Manifest that the shards must match.")
    output: Uri = Field(description="Folder or s3:// URI of the scored Parquet files.")
    passthrough: tuple[str, ...] = Field((), description="Input columns to copy to the output.")
    outputs: tuple[Literal["code", "hash", "score", "reconstruction", "feature_errors"], ...] = (
        Field(("code", "hash", "score"), min_length=1, description="Columns to write for each row.")
    )
    threshold: Literal["auto"] | float = Field(
        "auto", description="Score above which a row is an anomaly; auto: the artifact's."
    )
    missing: Literal["auto"] | Missing = Field("auto", description="auto: as in training.")
    workers: Literal["auto"] | PositiveInt = Field(
        "auto", description="Scoring processes, one CPU (or GPU) each; auto: all of the cluster."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="auto: gpu if available."
    )
    wait_s: float = Field(
        600.0,
        ge=0.0,
        description="Seconds to wait for CPUs and GPUs that a cluster has not free yet.",
    )


TRAIN: TypeAdapter[TrainJob] = TypeAdapter(TrainJob)
SCORE: TypeAdapter[ScoreJob] = TypeAdapter(ScoreJob)
