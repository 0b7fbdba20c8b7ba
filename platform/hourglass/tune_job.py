"""The spec of a sweep: a train job, the space of its variations, and how it is searched."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetPydanticSchema,
    PositiveInt,
    TypeAdapter,
    model_validator,
)
from pydantic_core import core_schema

from hourglass import spec_errors
from hourglass.spec import TRAIN, RegistryName, TrainJob
from hourglass.strict import Strict
from hourglass.sweeps import MOST_TRIALS, GridSearch, Metric, Search, Values
from hourglass.trees import below, field_at


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
            lost = next((above for above in said if below(above, path)), None)
            if lost is not None:
                yield f"space.{path} overwrites space.{lost}; put it first"
            for condition, wanted in values.when.items():
                unknown = spec_errors.unknown_step(condition.split("."), TRAIN)
                if unknown is not None:
                    yield f"space.{path}.when: {unknown}"
                told = any(below(condition, above) for above in said)
                if wanted is not None and not told and field_at(self.base, condition) is None:
                    yield (
                        f"space.{path}.when: neither the base nor the space above says "
                        f"'{condition}', so this would never be set"
                    )
            said.append(path)


TUNE: TypeAdapter[TuneJob] = TypeAdapter(TuneJob)
