"""Job files: one YAML file becomes one job.

There are two layers: the file, then `--set a.b=value`. All mistakes of a file are reported at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from hourglass.config import errors
from hourglass.config.errors import set_field
from hourglass.config.train import ScoreJob, TrainJob
from hourglass.config.tune import TuneJob
from hourglass.errors import SpecError

AnyJob = TrainJob | ScoreJob | TuneJob
JOB: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])


def load(path: str | Path, overrides: Sequence[str] = ()) -> AnyJob:
    """The validated job in a YAML file, with `a.b=value` overrides applied before validation.

    Raises: SpecError listing all mistakes.
    """
    tree, lines = errors.read_yaml(path)
    _read_base(tree, Path(path))
    for override in overrides:
        place = set_field(tree, override)
        lines = {steps: at for steps, at in lines.items() if steps[: len(place)] != place}
        lines[place] = errors.SET
    if isinstance(tree, dict):
        tree.setdefault("name", Path(path).stem)
    try:
        return JOB.validate_python(tree)
    except ValidationError as error:
        raise SpecError(errors.explain(str(path), error, JOB, lines)) from None


def _read_base(tree: dict[str, Any], path: Path) -> None:
    """Replace the file name in `base` by its job. Raises SpecError with the mistakes of that file."""
    base = tree.get("base")
    if tree.get("kind") == "tune" and isinstance(base, str):
        sweep, path = path, path.parent / base
        tree["base"], _ = errors.read_yaml(path)
        kind = tree["base"].get("kind", "train") if isinstance(tree["base"], dict) else "train"
        if kind != "train":
            raise SpecError(f"{sweep}: base: found a {kind} job in {path}, allowed is a train job")
        load_kind(TrainJob, path)
    if isinstance(tree.get("base"), dict):
        tree["base"].setdefault("name", path.stem)


Kind = TypeVar("Kind", TrainJob, ScoreJob, TuneJob)


def load_kind(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """`load` for a command that runs one kind of job. Raises SpecError for other kinds."""
    job = load(path, overrides)
    if not isinstance(job, kind):
        raise SpecError(f"{path}: found a {job.kind} job; run `hourglass {job.kind} {path}`")
    return job


def parse(tree: dict[str, Any]) -> AnyJob:
    """The validated job of a dictionary. Raises SpecError."""
    try:
        return JOB.validate_python(tree)
    except ValidationError as error:
        raise SpecError(errors.explain("job", error, JOB, {})) from None


def dump(job: AnyJob) -> dict[str, Any]:
    """The resolved job as JSON values; `parse(dump(job)) == job`."""
    return job.model_dump(mode="json", by_alias=True, exclude_none=True)
