"""The artifact: one folder that answers everywhere alike, verified before a weight is used.

    manifest.json          format version, spec, feature schema, calibration, provenance,
                           SHA-256 and size of each other file
    model.safetensors      preprocessing buffers and weights; of an ensemble, those of the lead, and
                           the weights of member i as members.i.NAME
    golden.safetensors     a few raw rows and the outputs they must reproduce

The manifest is written last, so a folder without one is not an artifact. Nothing in it is executed.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hourglass import storage
from hourglass.data.schema import FeatureSchema, Missing
from hourglass.errors import ArtifactError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.dense import Units
from hourglass.model.ensemble import MOST_MEMBERS, Combine
from hourglass.model.preprocessing import Preprocessing
from hourglass.model.spec import ModelSpec
from hourglass.strict import Strict

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
FILES = (MANIFEST, WEIGHTS, GOLDEN)
MANIFEST_BYTES = 16 * 2**20
FILE_BYTES = 16 * 2**30
HEADER_BYTES = 2**20
TENSORS = 4096
GOLDEN_ROWS = 1024
SHARED = "preprocessing."
DTYPES = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64"})
GOLDEN_TOLERANCE = 1e-4
"""Relative; another CPU may round differently, a different weight may not hide below this."""


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
        """The same as the data room's value object."""
        return FeatureSchema(self.vector, self.columns, self.width, self.dtype)


class Calibration(Strict):
    """Scores of the holdout rows: quantiles, and the threshold at the job's quantile."""

    rows: NonNegativeInt
    quantile: float
    threshold: float
    quantiles: dict[str, float]
    hash_threshold: tuple[float, ...]


class Ensemble(Strict):
    """Members that score together; `lead`, counted from 1 in order of seed, answers all else."""

    members: int = Field(ge=2, le=MOST_MEMBERS)
    lead: PositiveInt
    combine: Combine

    @model_validator(mode="after")
    def _the_lead_is_a_member(self) -> Self:
        if self.lead > self.members:
            raise ValueError(f"lead is member {self.lead}, there are {self.members}")
        return self

    @property
    def others(self) -> list[int]:
        """The numbers of the other members."""
        return [number for number in range(1, self.members + 1) if number != self.lead]


class Manifest(Strict):
    """Everything about the model but its numbers."""

    format: Literal[1]
    name: str
    model: ModelSpec
    unit_data: bool
    features: FeatureRecord
    calibration: Calibration
    metrics: dict[str, float]
    job: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[Literal["model.safetensors", "golden.safetensors"], FileRecord]
    ensemble: Ensemble | None = None

    @model_validator(mode="after")
    def _one_threshold_per_unit(self) -> Self:
        found, width = len(self.calibration.hash_threshold), self.model.network.code_width
        if found != width:
            raise ValueError(f"{found} hash thresholds for a code of {width} units")
        return self


@dataclass(frozen=True)
class Artifact:
    """A verified model in memory: `digest` is the SHA-256 of its manifest.

    `module` is the model, or the lead of an ensemble; `others` are its other members.
    """

    manifest: Manifest
    module: AutoencoderModule
    digest: str
    others: tuple[AutoencoderModule, ...] = ()


def save(
    uri: str,
    *,
    module: AutoencoderModule,
    features: FeatureRecord,
    calibration: Calibration,
    golden_rows: Tensor,
    name: str,
    metrics: dict[str, float],
    job: dict[str, Any],
    provenance: dict[str, Any],
    ensemble: Ensemble | None = None,
    others: Sequence[AutoencoderModule] = (),
) -> str:
    """Write the artifact to the folder `uri`, manifest last; returns its digest.

    `others` are the modules of `ensemble.others`. An artifact already there is gone from the first
    moment: its manifest is removed first.
    Raises: ArtifactError when a number is not finite, or the folder holds other files.
    """
    members = [member.cpu().eval() for member in (module, *others)]
    weights = {
        stored[name]: value.detach().contiguous()
        for stored, member in zip(_names(ensemble, module.state_dict()), members, strict=True)
        for name, value in member.state_dict().items()
    }
    _require_finite(uri, weights)
    golden = golden_outputs(members, golden_rows)
    _require_finite(uri, golden, but="rows")
    _require_rows(uri, module, golden)
    content = {WEIGHTS: save_tensors(weights), GOLDEN: save_tensors(golden)}
    fields = {
        "format": FORMAT,
        "name": name,
        "model": module.spec,
        "unit_data": module.unit_data,
        "features": features,
        "calibration": calibration,
        "metrics": metrics,
        "job": job,
        "provenance": provenance,
        "ensemble": ensemble,
        "files": {
            file: FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for file, data in content.items()
        },
    }
    manifest = _validated(uri, fields).model_dump(mode="json")
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    _make_room(uri)
    for file, data in content.items():
        storage.write(storage.join(uri, file), data)
    storage.write(storage.join(uri, MANIFEST), text)
    return hashlib.sha256(text).hexdigest()


def _make_room(uri: str) -> None:
    """Take the manifest away first, then what a killed save left behind."""
    storage.remove(storage.join(uri, MANIFEST))
    for name in storage.names(uri):
        if name.endswith(".tmp") and name.startswith(tuple(f".{file}." for file in FILES)):
            storage.remove(storage.join(uri, name))
    _no_other_files(uri)


def _names(ensemble: Ensemble | None, names: Iterable[str]) -> list[dict[str, str]]:
    """For each member, the lead first: the names of its module's tensors, and of those in the file.

    Preprocessing is the same for all members, and there once.
    """
    prefixes = ["", *(f"members.{number}." for number in (ensemble.others if ensemble else ()))]
    names = list(names)
    return [
        {name: name if name.startswith(SHARED) else prefix + name for name in names}
        for prefix in prefixes
    ]


@torch.no_grad()
def golden_outputs(members: Sequence[AutoencoderModule], rows_BC: Tensor) -> dict[str, Tensor]:
    """The golden rows (B, C) with the lead's code (B, K) and output (B, F) in model space.

    With more members than the lead, also the outputs (M - 1, B, F) of the others.
    """
    lead, *others = (member(rows_BC) for member in members)
    outputs = {"rows": rows_BC, "code": lead.code_BK, "output": lead.output_BF}
    if others:
        outputs["output_of_members"] = torch.stack([other.output_BF for other in others])
    return {name: value.contiguous() for name, value in outputs.items()}


def load(uri: str, digest: str | None = None) -> Artifact:
    """Read, verify and rebuild the artifact at `uri`; `digest` pins the manifest it must have.

    Each file is read once, and hashed, parsed and used from those same bytes. Checked: sizes,
    hashes, names, shapes, dtypes, finiteness, and that the golden rows give the recorded outputs.
    Raises: ArtifactError naming file and cause.
    """
    text = _read(uri, MANIFEST, MANIFEST_BYTES)
    found = hashlib.sha256(text).hexdigest()
    if digest is not None and found != digest:
        raise ArtifactError(f"{uri}: manifest digest is {found[:12]}, registered is {digest[:12]}")
    manifest = _parse_manifest(uri, text)
    _no_other_files(uri)
    weights = _tensors(uri, WEIGHTS, manifest)
    golden = _tensors(uri, GOLDEN, manifest)
    members = _build(uri, manifest, weights)
    _check_golden(uri, members, golden)
    return Artifact(manifest, members[0], found, tuple(members[1:]))


def _read(uri: str, file: str, most: int) -> bytes:
    """The bytes of one regular file. Raises ArtifactError for links, devices and oversize files."""
    path = storage.join(uri, file)
    if storage.is_local(path):
        problem = storage.irregular(path)
        if problem:
            raise ArtifactError(f"{path}: {problem}; an artifact holds regular files only")
    try:
        size = storage.size(path)
        if size > most:
            raise ArtifactError(f"{path}: {size} bytes, allowed are {most}")
        return storage.read(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; this is not a complete artifact") from None
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from None


def _parse_manifest(uri: str, text: bytes) -> Manifest:
    path = storage.join(uri, MANIFEST)
    try:
        tree = _json(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from None
    version = tree.get("format") if isinstance(tree, dict) else None
    if version != FORMAT:
        raise ArtifactError(f"{path}: format {version!r}, this version reads format {FORMAT}")
    return _validated(path, tree)


def _validated(path: str, tree: Any) -> Manifest:
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(step) for step in first["loc"])
        cause = first.get("ctx", {}).get("error", first["msg"].lower())
        raise ArtifactError(f"{path}: {field + ': ' if field else ''}{cause}") from None


def _json(text: bytes) -> Any:
    """Standard JSON only. Raises ValueError for a key given twice, NaN and Infinity."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_a_number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is given twice")
    return result


def _not_a_number(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _no_other_files(uri: str) -> None:
    extra = [name for name in storage.names(uri) if name not in FILES]
    if extra:
        raise ArtifactError(
            f"{uri}: unexpected file '{extra[0]}'; an artifact holds {', '.join(sorted(FILES))}"
        )


def _tensors(uri: str, file: str, manifest: Manifest) -> dict[str, Tensor]:
    path = storage.join(uri, file)
    record = manifest.files.get(file)  # type: ignore[call-overload]
    if record is None:
        raise ArtifactError(f"{path}: not listed in {MANIFEST}")
    data = _read(uri, file, min(record.bytes, FILE_BYTES))
    if len(data) != record.bytes:
        raise ArtifactError(f"{path}: {len(data)} bytes, the manifest says {record.bytes}")
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise ArtifactError(
            f"{path}: SHA-256 is {found[:12]}, the manifest says {record.sha256[:12]}; the file was changed"
        )
    return parse_tensors(path, data)


def parse_tensors(path: str, data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file already in memory. Raises ArtifactError, never crashes."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else HEADER_BYTES + 1
    if length > min(HEADER_BYTES, len(data) - 8):
        raise ArtifactError(f"{path}: not a safetensors file (header length)")
    try:
        header = _json(data[8 : 8 + length])
        dtypes = [entry["dtype"] for name, entry in header.items() if name != "__metadata__"]
        exotic = set(dtypes) - DTYPES
        tensors = {} if exotic or len(dtypes) > TENSORS else load_tensors(data)
    except Exception as error:  # the parser's own error types are not public
        raise ArtifactError(f"{path}: not a safetensors file ({type(error).__name__})") from None
    if exotic:
        raise ArtifactError(f"{path}: tensors of type {', '.join(sorted(map(str, exotic)))}")
    if len(dtypes) > TENSORS:
        raise ArtifactError(f"{path}: {len(dtypes)} tensors, allowed are {TENSORS}")
    _require_finite(path, tensors, but="rows")
    return tensors


def _require_finite(path: str, tensors: dict[str, Tensor], but: str = "") -> None:
    for name, tensor in sorted(tensors.items()):
        if name != but and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{path}: tensor '{name}' holds NaN or infinity")


def _build(uri: str, manifest: Manifest, weights: dict[str, Tensor]) -> list[AutoencoderModule]:
    """The members, the lead first, from tensors that have the names and shapes of the spec."""
    path = storage.join(uri, WEIGHTS)
    features = manifest.features
    try:
        with torch.device("meta"):  # shapes first: a hostile spec must not make us allocate
            module = _module(manifest)
    except ValueError as error:
        raise ArtifactError(f"{storage.join(uri, MANIFEST)}: {error}") from None
    own = module.state_dict()
    every = _names(manifest.ensemble, own)
    expected = {stored: own[name] for names in every for name, stored in names.items()}
    if sorted(expected) != sorted(weights):
        odd = sorted(set(expected) ^ set(weights))[0]
        raise ArtifactError(f"{path}: tensor '{odd}' does not fit the spec")
    for name, tensor in sorted(weights.items()):
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise ArtifactError(
                f"{path}: tensor '{name}' is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the spec implies {want.dtype} {tuple(want.shape)}"
            )
    kept = weights["preprocessing.kept_F"]
    if int(kept.min()) < 0 or int(kept.max()) >= features.width or bool((kept.diff() <= 0).any()):
        raise ArtifactError(f"{path}: tensor 'preprocessing.kept_F' is not a choice of columns")
    members = []
    for names in every:
        with torch.device("meta"):
            member = _module(manifest).to_empty(device="cpu")
        member.load_state_dict({name: weights[stored] for name, stored in names.items()})
        members.append(member.eval().requires_grad_(False))
    return members


def _module(manifest: Manifest) -> AutoencoderModule:
    features = manifest.features
    preprocessing = Preprocessing(features.width, features.kept)
    return AutoencoderModule(manifest.model, preprocessing, manifest.unit_data)


def _require_rows(path: str, module: AutoencoderModule, golden: dict[str, Tensor]) -> None:
    rows, width = golden["rows"], module.preprocessing.columns
    if rows.ndim != 2 or rows.shape[1] != width or not 1 <= len(rows) <= GOLDEN_ROWS:
        raise ArtifactError(
            f"{path}: golden rows of shape {tuple(rows.shape)}, needed are 1 to {GOLDEN_ROWS} "
            f"of width {width}"
        )


def _check_golden(
    uri: str, members: Sequence[AutoencoderModule], golden: dict[str, Tensor]
) -> None:
    path = storage.join(uri, GOLDEN)
    names = ["code", "output", *(["output_of_members"] if members[1:] else []), "rows"]
    if sorted(golden) != names:
        raise ArtifactError(f"{path}: holds {', '.join(sorted(golden))}, not {', '.join(names)}")
    _require_rows(path, members[0], golden)
    for name, value in golden_outputs(members, golden["rows"]).items():
        want = golden[name]
        if want.shape != value.shape or want.dtype != value.dtype:
            raise ArtifactError(f"{path}: tensor '{name}' is misshapen")
        if name == "rows":
            continue
        error = float((value - want).abs().max())
        if not math.isfinite(error) or error > GOLDEN_TOLERANCE * max(1.0, float(want.abs().max())):
            raise ArtifactError(f"{path}: golden rows give another {name} (off by {error:.3g})")
