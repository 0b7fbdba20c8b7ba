"""Job specs: what a training or scoring run is, frozen and fully validated."""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, model_validator

from hourglass.config.optimizers import Adam, Constant, Optimizer, Schedule
from hourglass.config.phases import Phase, contradictions
from hourglass.data.schema import Features, Missing
from hourglass.model.ensemble import MOST_MEMBERS, Combine
from hourglass.model.preprocessing import Range, Scaling
from hourglass.model.presets import expand_job
from hourglass.model.spec import ModelSpec
from hourglass.strict import Strict, canonical, mistake, refuse

Uri = Annotated[str, Field(min_length=1)]
Uris = Annotated[tuple[Uri, ...], Field(min_length=1)]
RegistryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class DataSpec(Strict):
    """Where the rows are and how they become features."""

    uri: Uri | Uris = Field(
        description="Folder, glob, file or s3:// URI of Parquet shards, or a list of them."
    )
    manifest: Uri | None = Field(
        None, description="Manifest that the shards must match (hourglass data manifest)."
    )
    features: Features = Field(description="The vector column, or the numeric columns.")
    scaling: Scaling = Field(Range(), description="How raw columns become model space.")
    constant: Literal["keep", "drop"] = Field("keep", description="Columns with a single value.")
    missing: Missing = Field("error", description="Policy for null, NaN and infinite cells.")
    holdout: float = Field(0.1, ge=0.0, lt=1.0, description="Share of rows never trained on.")
    cache: Literal["auto", "memory", "stream"] = Field(
        "auto", description="auto: in memory when the decoded features fit `cache_bytes`."
    )
    cache_bytes: PositiveInt = Field(2**30, description="Most bytes of features a worker caches.")
    shuffle_rows: PositiveInt = Field(
        16384, description="Rows of the window that a streaming epoch shuffles exactly."
    )


class EarlyStop(Strict):
    """Stop when the holdout error has not improved for `patience` epochs."""

    patience: PositiveInt = Field(5, description="Epochs without improvement.")
    min_delta: float = Field(0.0, ge=0.0, description="Smallest drop that counts as improvement.")


class TrainSpec(Strict):
    """How the weights are found."""

    phases: tuple[Phase, ...] = Field((), description="Pretraining, in order, before the epochs.")
    epochs: PositiveInt = Field(10, description="Passes over the training rows.")
    batch_size: PositiveInt = Field(256, description="Rows of one step, over all workers together.")
    optimizer: Optimizer = Field(Adam(), description="Update rule.")
    schedule: Schedule = Field(Constant(), description="Learning rate over the run.")
    clip_norm: PositiveFloat | None = Field(None, description="Largest gradient norm, if clipped.")
    early_stop: EarlyStop | None = Field(None, description="Stop early on the holdout error.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, order and noise.")
    seeds: int = Field(
        1,
        ge=1,
        le=MOST_MEMBERS,
        description="Members, with seeds seed, seed + 1, ...; their scores are combined.",
    )
    combine: Combine = Field("mean", description="What the scores of several members become.")
    checkpoint_every_steps: PositiveInt | None = Field(
        None, description="Also commit a checkpoint inside epochs; epoch ends always do."
    )


IDENTITY = 1
"""Version of what a run's name is the hash of; a default that changes needs the next."""


class ScaleSpec(Strict):
    """What the run may use."""

    workers: PositiveInt = Field(1, description="Training processes.")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: gpu where seen.")
    cpus_per_worker: Literal["auto"] | PositiveFloat = Field(
        "auto", description="auto: an equal share of the cluster, with one CPU left to read data."
    )
    max_failures: int = Field(3, ge=0, description="Restarts after a lost worker or node.")


class TrackSpec(Strict):
    """Where the run is recorded."""

    experiment: str = Field("hourglass", min_length=1, description="MLflow experiment.")
    register_as: RegistryName | None = Field(
        None, alias="register", description="Registered model to add a version to."
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
        0.99, gt=0.0, lt=1.0, description="Quantile of holdout scores that is the threshold."
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
                f"network {network.kind}: {why}, so {scale.workers} workers would train another "
                f"model than one; use {instead}, or scale.workers: 1"
            )
        if train.batch_size < scale.workers:
            yield (
                f"train.batch_size ({train.batch_size}) counts all workers' rows and must be "
                f"at least scale.workers ({scale.workers})"
            )
        if train.combine != "mean" and train.seeds == 1:
            yield (
                f"train.combine: {train.combine} does nothing with one seed; set train.seeds to "
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
        """True when model space is meant to be [0, 1]."""
        return self.data.scaling.unit_range == "always" or self.model.loss.unit_data

    @property
    def run_name(self) -> str:
        """`<name>-<hash of everything that decides the weights>`: the same command, the same run."""
        decisive = canonical(self)
        for name in ("name", "track", "quantile"):
            decisive.pop(name, None)
        for part, name in (("train", "checkpoint_every_steps"), ("scale", "max_failures")):
            decisive.setdefault(part, {}).pop(name, None)
        text = json.dumps([IDENTITY, decisive], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{self.name or 'run'}-{digest[:8]}"


class ScoreJob(Strict):
    """One batch scoring run: codes, hashes and anomaly scores of every row, as Parquet."""

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
    passthrough: tuple[str, ...] = Field((), description="Input columns copied to the output.")
    outputs: tuple[Literal["code", "hash", "score", "reconstruction", "feature_errors"], ...] = (
        Field(("code", "hash", "score"), min_length=1, description="What to write for each row.")
    )
    threshold: Literal["auto"] | float = Field(
        "auto", description="Score above which a row is an anomaly; auto: the artifact's."
    )
    missing: Literal["auto"] | Missing = Field("auto", description="auto: as in training.")
    workers: Literal["auto"] | PositiveInt = Field(
        "auto", description="Scoring processes, one CPU (or GPU) each; auto: as many as there are."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: gpu where seen.")


TRAIN: TypeAdapter[TrainJob] = TypeAdapter(TrainJob)
SCORE: TypeAdapter[ScoreJob] = TypeAdapter(ScoreJob)
