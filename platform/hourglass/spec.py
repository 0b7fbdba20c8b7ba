"""Job files: one YAML file becomes one frozen, fully validated spec.

Two layers only: the file, then `--set a.b=value`. Every mistake of a file is reported at once.
"""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    Field,
    GetPydanticSchema,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from hourglass import spec_errors
from hourglass.data.schema import Features, Missing
from hourglass.errors import SpecError
from hourglass.model.ensemble import MOST_MEMBERS, Combine
from hourglass.model.preprocessing import Range, Scaling
from hourglass.model.presets import expand_job
from hourglass.model.spec import ModelSpec
from hourglass.optimizers import Adam, Constant, Optimizer, Schedule
from hourglass.phases import Phase, contradictions
from hourglass.strict import Strict
from hourglass.sweeps import MOST_TRIALS, GridSearch, Metric, Search, Values

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
    batch_rows: PositiveInt = Field(256, description="Rows of one step, over all workers together.")
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


YOUNGER = ("phases", "seeds", "combine")
"""Fields that came after the first runs: at their defaults, a run keeps the name it had."""
YOUNGER_PARTS = ("adversary", "trim")
"""The same, of a model."""


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
    train: TrainSpec = Field(TrainSpec(), description="How the weights are found.")
    scale: ScaleSpec = Field(ScaleSpec(), description="What the run may use.")
    track: TrackSpec = Field(TrackSpec(), description="Where the run is recorded.")
    quantile: float = Field(
        0.99, gt=0.0, lt=1.0, description="Quantile of holdout scores that is the threshold."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_is_fields(cls, tree: Any) -> Any:
        return expand_job(tree)

    @model_validator(mode="after")
    def _holdout_is_there(self) -> Self:
        if self.train.early_stop is not None and self.data.holdout == 0.0:
            raise ValueError("train.early_stop watches the holdout error; set data.holdout above 0")
        return self

    @model_validator(mode="after")
    def _bce_has_unit_data(self) -> Self:
        scaling = self.data.scaling.kind
        if self.model.loss.kind == "bce" and scaling in ("range", "standard"):
            raise ValueError(
                f"loss bce needs features in [0, 1], found scaling '{scaling}': "
                "set data.scaling to {kind: unit}"
            )
        return self

    @model_validator(mode="after")
    def _a_shape_keeps_its_columns(self) -> Self:
        network = self.model.network
        if network.kind != "dense" and self.data.constant == "drop":
            raise ValueError(
                f"network {network.kind} needs every column of its shape, "
                "found data.constant: drop; keep them"
            )
        return self

    @model_validator(mode="after")
    def _batch_norm_is_alone(self) -> Self:
        network = self.model.network
        if network.kind == "dense" and network.norm == "batch" and self.scale.workers > 1:
            raise ValueError(
                f"network norm: batch takes the figures of one worker's rows, so {self.scale.workers} "
                "workers would train another model than one: use norm: layer, or scale.workers: 1"
            )
        return self

    @model_validator(mode="after")
    def _every_worker_has_rows(self) -> Self:
        if self.train.batch_rows < self.scale.workers:
            raise ValueError(
                f"train.batch_rows ({self.train.batch_rows}) counts all workers' rows and must be "
                f"at least scale.workers ({self.scale.workers})"
            )
        return self

    @model_validator(mode="after")
    def _members_are_there(self) -> Self:
        seed, seeds = self.train.seed, self.train.seeds
        if self.train.combine != "mean" and seeds == 1:
            raise ValueError(
                f"train.combine: {self.train.combine} does nothing with one seed; set train.seeds to "
                "2 or more, or remove it"
            )
        if seed + seeds > 2**31:
            raise ValueError(
                f"train.seeds: {seeds} members have seeds up to {seed + seeds - 1}, allowed are seeds "
                f"below {2**31}; use a smaller train.seed"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        scaling = self.data.scaling.kind
        for found in contradictions(self.train.phases, self.model, scaling, self.unit_data):
            raise ValueError(found)
        return self

    @property
    def unit_data(self) -> bool:
        """True when model space is meant to be [0, 1]."""
        return self.data.scaling.kind == "unit" or self.model.loss.kind == "bce"

    @property
    def run_name(self) -> str:
        """`<name>-<hash of everything that decides the weights>`: the same command, the same run."""
        usual = TrainSpec()
        silent = {name for name in YOUNGER if getattr(self.train, name) == getattr(usual, name)}
        decisive = self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("name", "track", "quantile"), True),
                "train": {"checkpoint_every_steps", *silent},
                "model": {name for name in YOUNGER_PARTS if not getattr(self.model, name)},
                "scale": {"max_failures"},
            },
        )
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
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


def _space_path(path: str) -> str:
    """A field that trials may differ in. Raises ValueError for others, with the nearest name."""
    steps = path.split(".")
    if steps[0] not in ("model", "train") and steps[:2] != ["data", "scaling"]:
        raise ValueError(
            "trials differ in model, train and data.scaling; they share all else, which `base` says"
        )
    if steps == ["train", "checkpoint_every_steps"]:
        raise ValueError("every value gives the same weights, so there is nothing to search")
    unknown = spec_errors.unknown_step(steps, TRAIN)
    if unknown is not None:
        raise ValueError(unknown)
    return path


def _job_as_written(tree: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
    validate(tree)
    return tree


def _path_or_job(schema: dict[str, Any]) -> None:
    """In a file, `base` may also be the path of one; `load` puts the tree in its place."""
    schema["anyOf"] = [{"type": "string"}, {"$ref": schema.pop("$ref")}]


SpacePath = Annotated[str, AfterValidator(_space_path)]
TrainTree = Annotated[
    dict[str, Any],
    GetPydanticSchema(
        lambda _, handler: core_schema.no_info_wrap_validator_function(
            _job_as_written,
            handler(TrainJob),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda tree: tree),
        )
    ),
]
"""A train job that is checked and kept as it was written: overrides act on what a file says."""


class TuneJob(Strict):
    """One sweep: trials are the base job with values of the space in it, and are ranked."""

    kind: Literal["tune"]
    name: RegistryName | None = Field(
        None, description="Name of the sweep; default: the file's name."
    )
    base: TrainTree = Field(
        description="The train job that is varied: its file, relative to this one, or its fields.",
        json_schema_extra=_path_or_job,
    )
    space: dict[SpacePath, Values] = Field(
        min_length=1,
        description="Dotted paths of fields, as --set takes them, and the values they may have. "
        "They are set in this order; a condition (`when`) sees those above it.",
    )
    search: Search = Field(GridSearch(), description="How points of the space are chosen.")
    max_trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = Field(
        None, description="Most trials; default: the whole grid."
    )
    metric: Metric = Field("holdout_mse", description="What trials are ranked by, lowest first.")
    concurrency: Literal["auto"] | PositiveInt = Field(
        "auto", description="Trials at a time; auto: as many as the cluster has room for."
    )

    @property
    def job(self) -> TrainJob:
        """The base as a job."""
        return TRAIN.validate_python(self.base)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for contradiction in self._contradictions():
            raise ValueError(contradiction)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Sentences about what does not go together."""
        random = self.search.kind == "random"
        for path, values in self.space.items():
            if random and values.grid is not None:
                yield f"space.{path}: search random draws values, found a grid; use choice"
            if not random and values.grid is None:
                yield f"space.{path}: search grid takes grids only, found a value to draw"
        if random and self.max_trials is None:
            yield "search random needs max_trials, the number of points to draw"
        points = math.prod(len(values.grid or ()) for values in self.space.values())
        if not random and self.max_trials is None and points > MOST_TRIALS:
            yield f"the grid has {points} points, allowed are {MOST_TRIALS}; set max_trials"
        yield from self._about_order()
        data = self.job.data
        if data.cache == "stream":
            yield "trials share the rows in memory, found base.data.cache: stream; use auto"
        if data.holdout == 0.0 and self.metric != "train_mse":
            yield f"metric {self.metric} needs held-out rows; set base.data.holdout above 0"
        scaled = any(path.startswith("data.scaling") for path in self.space)
        if scaled and self.metric != "holdout_fvu":
            yield (
                f"metric {self.metric} of different scalings is in different units; "
                "use metric: holdout_fvu"
            )

    def _about_order(self) -> Iterator[str]:
        """A value must not be overwritten by one below it, nor a condition be about nothing."""
        said: list[str] = []
        for path, values in self.space.items():
            lost = next((above for above in said if _below(above, path)), None)
            if lost is not None:
                yield f"space.{path} overwrites space.{lost}; put it first"
            for condition, wanted in values.when.items():
                unknown = spec_errors.unknown_step(condition.split("."), TRAIN)
                if unknown is not None:
                    yield f"space.{path}.when: {unknown}"
                told = any(_below(condition, above) for above in said)
                if wanted is not None and not told and field_at(self.base, condition) is None:
                    yield (
                        f"space.{path}.when: neither the base nor the space above says "
                        f"'{condition}', so this would never be set"
                    )
            said.append(path)


def _below(path: str, above: str) -> bool:
    """True when `path` is `above` or a field of it."""
    return f"{path}.".startswith(f"{above}.")


AnyJob = TrainJob | ScoreJob | TuneJob
JOB: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])
TRAIN: TypeAdapter[TrainJob] = TypeAdapter(TrainJob)
SCORE: TypeAdapter[ScoreJob] = TypeAdapter(ScoreJob)
TUNE: TypeAdapter[TuneJob] = TypeAdapter(TuneJob)


def load(path: str | Path, overrides: Sequence[str] = ()) -> AnyJob:
    """The validated job in a YAML file, with `a.b=value` overrides applied before validation.

    Raises: SpecError listing every mistake: path, found, allowed, nearest name.
    """
    tree, lines = spec_errors.read_yaml(path)
    _read_base(tree, Path(path))
    for override in overrides:
        place = set_field(tree, override)
        lines = {steps: at for steps, at in lines.items() if steps[: len(place)] != place}
        lines[place] = spec_errors.SET
    if isinstance(tree, dict):
        tree.setdefault("name", Path(path).stem)
    try:
        return JOB.validate_python(tree)
    except ValidationError as error:
        raise SpecError(spec_errors.explain(str(path), error, JOB, lines)) from None


def _read_base(tree: dict[str, Any], path: Path) -> None:
    """Put the job that `base` names into its place. Raises SpecError with that file's mistakes."""
    base = tree.get("base")
    if tree.get("kind") == "tune" and isinstance(base, str):
        path = path.parent / base
        load_kind(TrainJob, path)
        tree["base"], _ = spec_errors.read_yaml(path)
    if isinstance(tree.get("base"), dict):
        tree["base"].setdefault("name", path.stem)


Kind = TypeVar("Kind", TrainJob, ScoreJob, TuneJob)


def load_kind(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """`load`, for a command that runs one kind of job. Raises SpecError for the other kinds."""
    job = load(path, overrides)
    if not isinstance(job, kind):
        raise SpecError(f"{path}: a {job.kind} job; run it with `hourglass {job.kind} {path}`")
    return job


def parse(tree: dict[str, Any]) -> AnyJob:
    """The validated job in a plain dictionary. Raises SpecError."""
    try:
        return JOB.validate_python(tree)
    except ValidationError as error:
        raise SpecError(spec_errors.explain("job", error, JOB, {})) from None


def dump(job: AnyJob) -> dict[str, Any]:
    """The resolved job as plain JSON values; `parse(dump(job)) == job`."""
    return job.model_dump(mode="json", by_alias=True, exclude_none=True)


def set_field(tree: Any, override: str) -> spec_errors.Steps:
    """Put the override into `tree` and return its path. Raises SpecError."""
    path, equals, value = override.partition("=")
    if not equals or not all(path.split(".")):
        raise SpecError(f"--set {override}: write it as a.b=value, for example train.epochs=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SpecError(f"--set {override}: the value is not YAML") from None
    return put(tree, path, parsed, f"--set {override}")


def put(tree: Any, path: str, value: Any, where: str) -> spec_errors.Steps:
    """Put `value` at the dotted path, a list's items by index. Raises SpecError saying `where`."""
    steps = path.split(".")
    keys: list[str | int] = []
    for step in steps:
        if not isinstance(tree, dict | list):
            raise SpecError(f"{where}: '{keys[-1]}' is a single value, nothing lies below it")
        place: Any = tree  # a mapping by name, a list by index
        key = _key(tree, step, where)
        keys.append(key)
        if len(keys) == len(steps):
            place[key] = value
            break
        below = tree.get(key) if isinstance(tree, dict) else place[key]
        place[key] = {} if below is None else copy.copy(below)  # a YAML alias stays as it was
        tree = place[key]
    return tuple(keys)


def _key(tree: dict[str, Any] | list[Any], step: str, where: str) -> str | int:
    if isinstance(tree, dict):
        return step
    if not step.isdecimal() or int(step) >= len(tree):
        raise SpecError(f"{where}: '{step}' is not an index of a list of {len(tree)} (from 0)")
    return int(step)


def field_at(tree: Any, path: str) -> Any:
    """What a tree says at the dotted path; None where it says nothing."""
    for step in path.split("."):
        if isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        elif isinstance(tree, dict) and step in tree:
            tree = tree[step]
        else:
            return None
    return tree
