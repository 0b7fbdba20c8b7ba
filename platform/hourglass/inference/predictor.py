"""The predictor: arrays in, arrays out; one answer in a notebook, a batch job and an endpoint.

Every forward pass runs on tiles of exactly `TILE` rows (the last one padded), because a matrix
product may round a row differently with its neighbours' number. So one row alone, in a batch of 7
or in a shard of a million, gives the same bits.
Shapes: B rows, C raw columns, K code units.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hourglass.artifact import Artifact, load
from hourglass.data import arrays
from hourglass.data.decode import bounded
from hourglass.data.schema import FeatureSchema, Missing
from hourglass.errors import DataError
from hourglass.model.autoencoder import (
    Combine,
    combined,
    score_parts,
    scored_error,
    scores,
    squared_error,
)

Array = NDArray[Any]
TILE = 64
PLACES = (
    "on this {} the model rounds a row by its place among the others, so that the last bits of its "
    "answers may differ between a notebook, a batch job and an endpoint. With Intel's MKL, set "
    "MKL_CBWR=AUTO in the environment, or import hourglass before PyTorch computes anything"
)
"""What a model is loaded with where the promise of the module's first lines cannot be kept."""


@dataclass(frozen=True)
class Scores:
    """Everything that one pass gives for B rows; higher `score` = more abnormal.

    `score` is the mean squared error in model space, over an ensemble's members their mean or
    maximum, and `feature_errors` (B, F) its additive parts, of which those `imputed` (B, F) are of
    missing cells, the column's mean in their place. The rest is the primary member's: `range_mse` is its
    error in h2o's range space, over all C columns.
    """

    code: NDArray[np.float32]
    hash: NDArray[np.uint8]
    score: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    range_mse: NDArray[np.float64]
    reconstruction: Array | None
    feature_errors: NDArray[np.float32] | None
    imputed: NDArray[np.bool_] | None


class Predictor:
    """A loaded artifact that encodes and scores raw rows; `missing` replaces the policy of training.

    `module` is the model or the primary member of an ensemble; `members` are all that score, primary first.
    """

    def __init__(
        self, artifact: Artifact, device: str = "cpu", missing: Missing | None = None
    ) -> None:
        self.artifact = artifact
        self.device = torch.device(device)
        self.module = artifact.module.to(self.device)
        self.members = [self.module, *(other.to(self.device) for other in artifact.others)]
        manifest = artifact.manifest
        self.combine: Combine = manifest.ensemble.combine if manifest.ensemble else "mean"
        self.features: FeatureSchema = manifest.features.schema_
        self.raw_dtype = torch.float64 if self.features.dtype == "float64" else torch.float32
        self.missing = missing or manifest.features.missing
        self.threshold = manifest.calibration.threshold
        self.hash_threshold = torch.tensor(manifest.calibration.hash_threshold, device=self.device)
        self._warn_of_places()

    @torch.inference_mode()
    def _warn_of_places(self) -> None:
        """Warn where a row's bits depend on its place in a tile: equal rows must give equal answers."""
        preprocessing = self.module.preprocessing
        rng = torch.Generator().manual_seed(0)
        share_F = torch.rand(len(preprocessing.kept_F), generator=rng).to(self.device)
        low_F, high_F = preprocessing.low_F, preprocessing.high_F
        row_C = preprocessing.inverse((low_F + share_F * (high_F - low_F))[None])
        tile = row_C.to(self.raw_dtype).repeat(TILE, 1)
        for member in self.members:
            result = member(tile)
            for answer in (result.code_BK, result.output_BF):
                if not torch.equal(answer, answer[:1].expand_as(answer)):
                    warnings.warn(PLACES.format(self.device.type), stacklevel=4)
                    return

    @classmethod
    def load(cls, uri: str, digest: str | None = None, device: str = "cpu") -> "Predictor":
        """Load and verify the artifact at `uri`. Raises ArtifactError."""
        return cls(load(uri, digest), device)

    @property
    def code_width(self) -> int:
        """K, units of the code."""
        return self.artifact.manifest.model.network.code_width

    @property
    def kept(self) -> NDArray[np.int64]:
        """Indexes (F,) of the features kept among the C columns, in the order of `feature_errors`."""
        kept: NDArray[np.int64] = self.module.preprocessing.kept_F.cpu().numpy()
        return kept

    @property
    def feature_names(self) -> list[str]:
        """Names of the F features kept, in the order of `feature_errors`."""
        names = self.features.feature_names
        return [names[i] for i in self.kept]

    def encode(self, rows: Array, layer: int | None = None) -> NDArray[np.float32]:
        """Codes (B, K) of raw rows (B, C), or the outputs (B, U) of encoder layer `layer`.

        Layers are counted from 1; the output of the last one is the code. Raises: DataError for another
        layer.
        """
        module = self.module

        def forward(tile: Tensor) -> Iterable[Tensor]:
            if layer is None:
                yield module.encode(tile)
                return
            *hidden, pre_BP = module.network.encoded(module.preprocessing(tile))
            outputs = [*hidden, module.code_from(pre_BP)]
            if not 1 <= layer <= len(outputs):
                raise DataError(
                    f"layer: found {layer}, allowed are 1 to {len(outputs)}: the encoder has "
                    f"{len(outputs)} layers, the last makes the code"
                )
            yield outputs[layer - 1]

        found: NDArray[np.float32]
        (found,) = self.map_tiles(rows, forward)
        return found

    def hash(self, rows: Array) -> NDArray[np.uint8]:
        """Hashes (B, ceil(K / 8)): one bit per code unit, packed, first unit in the highest bit."""
        return self.pack(self.encode(rows))

    def pack(self, code: Array) -> NDArray[np.uint8]:
        """Codes (B, K) to hashes (B, ceil(K / 8))."""
        return np.packbits(code > self.hash_threshold.cpu().numpy(), axis=1)

    def decode(self, code: Array) -> Array:
        """Raw rows (B, C) from codes (B, K). Raises DataError on a wrong width."""
        code = np.ascontiguousarray(arrays.unmasked(code), dtype=np.float32)
        if code.ndim != 2 or code.shape[1] != self.code_width:
            raise DataError(
                f"codes of shape {code.shape}, the model needs (rows, {self.code_width})"
            )
        (rows,) = self._tiles(code, lambda tile: [self.module.decode(tile).to(self.raw_dtype)])
        return np.asarray(rows)

    def reconstruct(self, rows: Array) -> Array:
        """Reconstructions (B, C) of raw rows (B, C), in their units; dtype as `raw` says."""
        (made,) = self.map_tiles(rows, lambda tile: [self.raw(self.module(tile).output_BF)])
        return made

    def raw(self, x_BF: Tensor) -> Tensor:
        """Model space (B, F) to raw rows (B, C), float64 where the rows of training were, else float32."""
        return self.module.preprocessing.inverse(x_BF).to(self.raw_dtype)

    def anomaly(self, rows: Array) -> NDArray[np.float64]:
        """Scores (B,) of raw rows: mean squared error in model space; higher = more abnormal."""

        def forward(tile: Tensor) -> Iterable[Tensor]:
            errors = [scored_error(member, member(tile)) for member in self.members]
            yield combined(scores(errors), self.combine)

        score: NDArray[np.float64]
        (score,) = self.map_tiles(rows, forward)
        return _ordered(score)

    def score(
        self,
        rows: Array,
        *,
        threshold: float | None = None,
        reconstruction: bool = False,
        feature_errors: bool = False,
    ) -> Scores:
        """Code, hash and score of raw rows in one pass, with the larger parts where asked for."""
        preprocessing = self.module.preprocessing
        ratio_F1 = preprocessing.range_ratio_F.square()[:, None] / preprocessing.columns

        def forward(tile: Tensor) -> Iterable[Tensor]:
            results = [member(tile) for member in self.members]
            errors = [*map(scored_error, self.members, results)]
            primary = results[0]
            yield primary.code_BK
            yield combined(scores(errors), self.combine)
            yield (squared_error(primary) @ ratio_F1)[:, 0]
            if reconstruction:
                yield self.raw(primary.output_BF)
            if feature_errors:
                yield score_parts(errors, self.combine)

        exact = self._rows(rows)
        code, score, range_mse, *more = self._tiles(exact, forward)
        score = _ordered(score)
        limit = self.threshold if threshold is None else threshold
        return Scores(
            code=code,
            hash=self.pack(code),
            score=score,
            is_anomaly=score > limit,
            range_mse=range_mse.astype(np.float64),
            reconstruction=more.pop(0) if reconstruction else None,
            feature_errors=more.pop(0) if feature_errors else None,
            imputed=~np.isfinite(exact[:, self.kept]) if feature_errors else None,
        )

    def from_columns(self, columns: Any) -> Array:
        """Raw rows (B, C) from a table, or from a mapping of columns by name.

        Raises: DataError for missing columns, columns that are no numbers, ragged rows.
        """
        columns = arrays.table_columns(arrays.tabular(columns)) or columns
        names = self.features.source_columns
        absent = [name for name in names if name not in columns]
        if absent:
            raise DataError(
                f"column '{absent[0]}' is missing; the model needs {', '.join(names[:12])}"
            )
        if self.features.vector is None:
            return arrays.from_columns({name: columns[name] for name in names})
        return arrays.from_vectors(names[0], columns[names[0]])

    def map_tiles(
        self, rows: Array, forward: Callable[[Tensor], Iterable[Tensor]]
    ) -> list[NDArray[Any]]:
        """One array for each output of `forward`, over tiles of raw rows (B, C). Raises DataError."""
        return self._tiles(self._rows(rows), forward)

    def _rows(self, rows: Array) -> Array:
        """Raw rows in the dtype of training, checked. Raises DataError."""
        try:
            rows = arrays.unmasked(rows)
        except ValueError:
            width = self.features.width
            raise DataError(f"rows of unequal lengths, the model needs (rows, {width})") from None
        if rows.ndim != 2 or rows.shape[1] != self.features.width:
            raise DataError(
                f"rows of shape {rows.shape}, the model needs (rows, {self.features.width})"
            )
        if rows.dtype.kind not in "buif":
            raise DataError(f"rows of type {rows.dtype}, the model needs numbers")
        wide = self.features.dtype == "float64"
        if rows.dtype == np.uint8 and not wide:
            return rows
        with np.errstate(over="ignore"):  # the dtype of training: no consumer rounds differently
            exact, bad = bounded(rows.astype("float64" if wide else "float32", copy=False))
        if self.missing != "mean" and bad.any():
            row, column = np.argwhere(~np.isfinite(exact))[0]
            name = self.features.feature_names[column]
            raise DataError(
                f"row {row}, '{name}': found {rows[row, column]}; the model was trained with "
                f"`missing: {self.missing}`, so every cell must be a finite number"
            )
        return exact

    @torch.inference_mode()
    def _tiles(self, rows: Array, forward: Callable[[Tensor], Iterable[Tensor]]) -> list[Any]:
        """`forward` over tiles of exactly TILE rows; float outputs as numpy, one array each."""
        every = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        parts: list[list[Array]] = []
        for start in range(0, max(len(every), 1), TILE):
            count = len(every[start : start + TILE])
            outputs = forward(_tile(every[start : start + TILE]).to(self.device))
            parts.append([output[:count].cpu().numpy() for output in outputs])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _ordered(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (B,) of which those whose errors overflowed are infinite, which is above every threshold."""
    return np.where(np.isnan(score), np.inf, score)


def _tile(rows: Tensor) -> Tensor:
    """A copy of at most TILE rows, padded to TILE: its place in memory changes no bit either."""
    missing = TILE - len(rows)
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows.clone()
