"""The spec of a sweep: a train job, the space of its variations, and how it is searched."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetPydanticSchema,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    model_validator,
)
from pydantic_core import InitErrorDetails, core_schema

from hourglass.config import errors
from hourglass.config.errors import below, field_at
from hourglass.config.search import (
    MOST_TRIALS,
    GridSearch,
    Metric,
    Mode,
    NoScheduler,
    Scheduler,
    Search,
    Stop,
    Values,
)
from hourglass.config.train import TRAIN, RegistryName, TrainJob
from hourglass.errors import nearest
from hourglass.strict import Strict, mistake, refuse


def _space_path(path: str) -> str:
    """A field that trials may differ in. Raises ValueError for others, with the nearest name."""
    steps = path.split(".")
    if steps[0] not in ("model", "train") and steps[:2] != ["data", "scaling"]:
        raise ValueError(
            "trials differ in model, train and data.scaling; they share everything else, which `base` sets"
        )
    if steps == ["train", "checkpoint_every_steps"]:
        raise ValueError("every value gives the same weights, so there is nothing to search")
    unknown = errors.unknown_step(steps, TRAIN)
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
    scheduler: Scheduler = Field(NoScheduler(), description="What ends trials before their time.")
    max_trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = Field(
        None, description="Most trials; default: the whole grid."
    )
    max_time_s: PositiveFloat | None = Field(
        None, description="Seconds of training in one session; the same command resumes."
    )
    stop: Stop | None = Field(None, description="End the sweep when it no longer improves.")
    metric: Metric = Field("holdout_mse", description="What trials are ranked by.")
    mode: Mode = Field("min", description="Which end of the metric is best.")
    concurrency: Literal["auto"] | PositiveInt = Field(
        "auto", description="Trials at a time; auto: as many as fit the cluster."
    )
    workers_per_trial: PositiveInt = Field(
        1, description="Training processes of a trial; several are a Ray Train run of their own."
    )
    gpus_per_worker: float = Field(
        1.0, gt=0.0, le=1.0, description="Share of a GPU for each, where trials train on GPUs."
    )
    pack: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Train trials that differ in numbers only as one batched model; auto: where "
        "that is faster.",
    )
    promote_if: Literal["better_than_champion"] | None = Field(
        None,
        description="Move the alias champion to the best trial when it beats the champion on the "
        "held-out rows; default: never by itself.",
    )

    @property
    def job(self) -> TrainJob:
        """The base as a job."""
        return TRAIN.validate_python(self.base)

    @property
    def grid_points(self) -> int:
        """Combinations of the grids; 0 where values are drawn."""
        return math.prod(len(values.grid or ()) for values in self.space.values())

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse([*self._about_the_space(), *map(mistake, self._contradictions())])
        return self

    def _about_the_space(self) -> Iterator[InitErrorDetails]:
        """Mistakes in single paths: how values are given, what the path leads to, its position."""
        kind, exhaustive = self.search.kind, self.search.exhaustive
        for path, values in self.space.items():
            if not exhaustive and values.grid is not None:
                message = f"search {kind} draws values, found a grid; use choice"
                yield mistake(message, "space", path)
            if exhaustive and values.grid is None:
                message = "search grid takes grids only, found a value to draw"
                yield mistake(message, "space", path)
        yield from self._about_words()
        yield from self._about_places()
        yield from self._about_order()
        for path, message in self.scheduler.space_contradictions(self.space):
            yield mistake(message, "space", path)

    def _contradictions(self) -> Iterator[str]:
        """Messages about incompatible settings."""
        if not self.search.exhaustive and self.max_trials is None:
            yield f"search {self.search.kind} needs max_trials, the number of points to draw"
        elif self.max_trials is None and self.grid_points > MOST_TRIALS:
            yield f"the grid has {self.grid_points} points, allowed are {MOST_TRIALS}; set max_trials"
        yield from self._about_ends()
        data = self.job.data
        if data.cache == "stream":
            yield "trials share the rows in memory, found base.data.cache: stream; use auto"
        if data.holdout == 0.0 and self.metric.startswith("holdout"):
            yield f"metric {self.metric} needs held-out rows; set base.data.holdout above 0"
        scaled = any(path.startswith("data.scaling") for path in self.space)
        if scaled and self.metric not in ("holdout_fvu", "rank_agreement"):
            yield (
                f"metric {self.metric} of different scalings is in different units; "
                "use metric: holdout_fvu"
            )

    def _about_ends(self) -> Iterator[str]:
        """What stops trials sees them epoch by epoch, so they must be comparable and single."""
        kind, job = self.scheduler.kind, self.job
        if self.promote_if and job.track.register_as is None:
            yield "promote_if needs base.track.register, the model whose champion is meant"
        best = "max" if self.metric == "rank_agreement" else "min"
        if self.mode != best:
            yield f"metric {self.metric} is best at its {best}imum, found mode: {self.mode}; change it"
        if self.workers_per_trial > 1 and self.gpus_per_worker < 1:
            yield "workers of one trial need a whole GPU each, found gpus_per_worker below 1; set it to 1"
        several = job.train.seeds > 1 or "train.seeds" in self.space
        if self.metric == "rank_agreement" and not several:
            yield "metric rank_agreement is that of several members; set base.train.seeds to 2 or more"
        if self.pack == "always":
            yield from self._about_packs()
        if not self.scheduler.compares:
            return
        if self.metric == "rank_agreement":
            yield (
                f"scheduler {kind} compares epochs, found metric rank_agreement, which is known at the end "
                "only"
            )
        if several:
            yield f"scheduler {kind} compares epochs of single models, found train.seeds; remove it"
        ends = self.stop is not None
        yield from self.scheduler.contradictions(job.train, self.search, self.max_trials, ends)
        if self.workers_per_trial > 1:
            yield (
                f"scheduler {kind} stops trials of one worker only, found workers_per_trial "
                f"{self.workers_per_trial}; use scheduler none, or one worker"
            )

    def _about_packs(self) -> Iterator[str]:
        """Packed trials are in one process, from their first step to their last."""
        unpackable = {
            f"scheduler {self.scheduler.kind}": self.scheduler.compares,
            "stop": self.stop is not None,
            "max_time_s": self.max_time_s is not None,
            f"workers_per_trial: {self.workers_per_trial}": self.workers_per_trial > 1,
        }
        for found in [name for name, there in unpackable.items() if there]:
            yield f"pack: always trains whole trials together, found {found}; use pack: auto"

    def _about_words(self) -> Iterator[InitErrorDetails]:
        """Strings among the values of an enumerated field must be allowed ones."""
        for path, values in self.space.items():
            allowed = errors.literals_at(path.split("."), TRAIN)
            for value in values.grid or values.choice or ():
                if allowed and isinstance(value, str) and value not in allowed:
                    message = (
                        f"found '{value}'{nearest(value, allowed)} Allowed: {', '.join(allowed)}"
                    )
                    yield mistake(message, "space", path)

    def _about_places(self) -> Iterator[InitErrorDetails]:
        """A path must lead to a field, unless another path chooses a part or list above it."""
        job = self.job.model_dump(mode="json")
        for path in self.space:
            steps = path.split(".")
            for depth, step in enumerate(steps[1:], start=1):
                place = ".".join(steps[:depth])
                part, written = field_at(job, place), field_at(self.base, place)
                if any(
                    below(f"{place}.kind", other) or other == "model.preset" for other in self.space
                ):
                    continue  # a preset brings parts of any kind
                if isinstance(part, dict) and "kind" in part and step not in part:
                    message = (
                        f"'{step}' is not a field of {place}, which is of kind {part['kind']} in every "
                        f"point{nearest(step, part)} Allowed: {', '.join(sorted(part))}; for another "
                        f"kind set {place}.kind in the base or the space"
                    )
                    yield mistake(message, "space", path)
                items = len(written) if isinstance(written, list) else 0
                if isinstance(part, list) and step not in map(str, range(items)):
                    message = (
                        f"'{step}' is not an index of {place}, in the base a list of {items} "
                        "(from 0); write it there, or choose it in the space above"
                    )
                    yield mistake(message, "space", path)

    def _about_order(self) -> Iterator[InitErrorDetails]:
        """A path must not overwrite an earlier one, and a condition must be about a field that is set."""
        earlier: list[str] = []
        for path, values in self.space.items():
            lost = next((above for above in earlier if below(above, path)), None)
            if lost is not None:
                yield mistake(f"overwrites space.{lost}; put it first", "space", path)
            for condition, wanted in values.when.items():
                unknown = errors.unknown_step(condition.split("."), TRAIN)
                chosen = any(below(condition, above) for above in earlier)
                if unknown is not None:
                    yield mistake(unknown, "space", path, "when")
                elif wanted is not None and not chosen and field_at(self.base, condition) is None:
                    message = (
                        f"neither the base nor the space above sets '{condition}', so this would "
                        "never be set"
                    )
                    yield mistake(message, "space", path, "when")
            earlier.append(path)


TUNE: TypeAdapter[TuneJob] = TypeAdapter(TuneJob)
