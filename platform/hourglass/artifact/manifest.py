"""The manifest of an artifact: everything about the model except its tensors."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from hourglass.artifact import untrusted
from hourglass.data.schema import FeatureSchema, Missing
from hourglass.errors import ArtifactError
from hourglass.model.autoencoder import MOST_MEMBERS, Combine
from hourglass.model.network import Units
from hourglass.model.spec import ModelSpec
from hourglass.strict import Strict

FORMAT = 3
"""Format 1 has other preprocessing buffers (see `hourglass.model.preprocessing.upgraded`); formats 1
and 2 have other names, which `_rename` replaces."""
FORMATS = (1, 2, 3)
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
REFERENCE = "reference.safetensors"
OLD_REFERENCE = "golden.safetensors"
"""The name of `REFERENCE` in formats 1 and 2."""


class FileRecord(Strict):
    """Size and SHA-256 of one file of the artifact."""

    bytes: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FeatureRecord(Strict):
    """The features a raw row must have."""

    vector: str | None
    columns: tuple[str, ...]
    width: Units
    dtype: Literal["uint8", "float32", "float64"]
    kept: Units
    missing: Missing

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.kept > self.width:
            raise ValueError(f"kept is {self.kept}, width is {self.width}")
        if len(self.columns) != (self.width if self.vector is None else 0):
            raise ValueError(f"{len(self.columns)} columns do not make a row of width {self.width}")
        return self

    @property
    def schema_(self) -> FeatureSchema:
        """The same as a `FeatureSchema`."""
        return FeatureSchema(self.vector, self.columns, self.width, self.dtype)


class Calibration(Strict):
    """Scores of the holdout rows: quantiles, and the threshold at the job's quantile."""

    rows: NonNegativeInt
    quantile: float
    threshold: float
    quantiles: dict[str, float]
    hash_threshold: tuple[float, ...]


class Ensemble(Strict):
    """Members that score together; `primary`, counted from 1 in order of seed, does all else."""

    members: int = Field(ge=2, le=MOST_MEMBERS)
    primary: PositiveInt
    combine: Combine

    @model_validator(mode="after")
    def _primary_is_a_member(self) -> Self:
        if self.primary > self.members:
            raise ValueError(f"primary is member {self.primary}, there are {self.members}")
        return self

    @property
    def others(self) -> list[int]:
        """The numbers of the other members."""
        return [number for number in range(1, self.members + 1) if number != self.primary]


class Manifest(Strict):
    """Everything about the model except its tensors."""

    format: Literal[1, 2, 3]
    name: str
    model: ModelSpec
    unit_data: bool
    features: FeatureRecord
    calibration: Calibration
    metrics: dict[str, float]
    job: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[
        Literal["model.safetensors", "reference.safetensors", "golden.safetensors"], FileRecord
    ]
    ensemble: Ensemble | None = None

    @model_validator(mode="after")
    def _one_threshold_per_unit(self) -> Self:
        found, width = len(self.calibration.hash_threshold), self.model.network.code_width
        if found != width:
            raise ValueError(f"{found} hash thresholds for a code of {width} units")
        return self

    @property
    def reference(self) -> str:
        """The name of the file with the reference outputs."""
        return REFERENCE if self.format == FORMAT else OLD_REFERENCE


def parse_manifest(path: str, text: bytes) -> Manifest:
    """The manifest in the bytes of the file `path`. Raises ArtifactError."""
    try:
        tree = untrusted.parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from None
    version = tree.get("format") if isinstance(tree, dict) else None
    if version not in FORMATS:
        known = f"{', '.join(map(str, FORMATS[:-1]))} and {FORMATS[-1]}"
        raise ArtifactError(f"{path}: format {version!r}, this version reads formats {known}")
    if version < FORMAT:
        _rename(tree)
    return validated(path, tree)


def _rename(tree: dict[str, Any]) -> None:
    """Give the fields of an older manifest their current names."""
    match tree.get("ensemble"):
        case {"lead": primary, **ensemble}:
            tree["ensemble"] = ensemble | {"primary": primary}
    match tree.get("job"):
        case {"train": {"batch_rows": rows, **rest}, **job}:
            tree["job"] = job | {"train": rest | {"batch_size": rows}}


def validated(path: str, tree: Any) -> Manifest:
    """The manifest of these fields. Raises ArtifactError naming the first that does not fit."""
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(step) for step in first["loc"])
        cause = first.get("ctx", {}).get("error", first["msg"].lower())
        raise ArtifactError(f"{path}: {field + ': ' if field else ''}{cause}") from None
