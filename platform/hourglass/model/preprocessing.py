"""Preprocessing inside the model: raw rows in, model space out, and back, all from buffers.

Living in the model means every consumer (trainer, batch job, endpoint, notebook) takes raw rows.
Shapes: B rows, C columns of the raw row, F features kept (constant columns may be dropped).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from hourglass.strict import Strict

Float64s = NDArray[np.float64]
SMALL, LARGE = 1e-30, 1e30
"""Scales between which float32 takes a column to model space without loss."""
FORMAT_1 = ("shift_F", "scale_F", "span_C", "mean_C")
"""Buffers that an artifact of format 1 has in float32."""


@dataclass(frozen=True)
class ColumnStats:
    """Per-column statistics of the training rows, each of shape (C,), missing cells left out.

    `excess` is mean - low, given where it is known with more digits than the mean has; `constant` are
    columns without spread, or with no more than rounding makes; `distinct` counts the values of each
    column, where a scaling asks for it.
    """

    mean: Float64s
    sd: Float64s
    low: Float64s
    high: Float64s
    excess: Float64s | None = None
    constant: NDArray[np.bool_] | None = None
    distinct: NDArray[np.int64] | None = None

    @property
    def flat(self) -> NDArray[np.bool_]:
        """Columns that count as constant."""
        return self.high <= self.low if self.constant is None else self.constant

    @property
    def centre(self) -> tuple[Float64s, Float64s]:
        """The mean as the nearest number and the rest of it; the value of a constant column."""
        shift = np.where(self.flat, self.low, self.mean)
        rest = 0.0 if self.excess is None else (self.low - shift) + self.excess
        return shift, np.where(self.flat, 0.0, rest)

    def divisor(self, spread: Float64s) -> Float64s:
        """`spread`, or 1 where a column has none."""
        return np.where(self.flat | (spread <= 0.0), 1.0, spread)


class Affine(NamedTuple):
    """What scales a column: x becomes (x - shift - rest) / scale, each (C,).

    In two steps: taking off a number close to x is exact, however far from zero both are, and what is
    left is as small as the column's spread.
    """

    shift: Float64s
    rest: Float64s
    scale: Float64s


class ScalingPart(Strict):
    """What a scaling declares: all that the rest of the package knows about its kind."""

    kind: str
    unit_range: ClassVar[Literal["always", "chosen", "unknown", "never"]] = "unknown"
    """Whether features are in [0, 1]: `chosen` where the file's numbers are meant to bring them there."""
    unit_variance: ClassVar[bool] = False
    """True where every feature has variance 1."""

    @property
    def counts_levels(self) -> bool:
        """True where it needs the number of distinct values of each column."""
        return False

    def affine(self, stats: ColumnStats) -> Affine:
        """What scales each column."""
        raise NotImplementedError

    def level(self, stats: ColumnStats) -> NDArray[np.bool_]:
        """Which columns are levels, (C,)."""
        return np.zeros_like(stats.flat)


class NoScaling(ScalingPart):
    """Rows as they are."""

    kind: Literal["none"] = "none"

    def affine(self, stats: ColumnStats) -> Affine:
        """x."""
        zero = np.zeros_like(stats.low)
        return Affine(zero, zero, zero + 1.0)


class Range(ScalingPart):
    """(x - mean) / (max - min) per column: what h2o calls standardising an autoencoder's input."""

    kind: Literal["range"] = "range"
    unit_range: ClassVar[Literal["never"]] = "never"
    levels: int = Field(
        0,
        ge=0,
        le=32,
        description="Columns of at most so many distinct values, beside columns of more, are levels: "
        "their range becomes half of the others' typical standard deviation.",
    )

    @property
    def counts_levels(self) -> bool:
        """True with `levels`."""
        return self.levels > 0

    def affine(self, stats: ColumnStats) -> Affine:
        """(x - mean) / (max - min), and less for levels.

        The range of a flag is that of a column of measures, but many of the latter's standard deviations:
        rows of a minority would have the largest errors, the code would be spent on them, and `trim` would
        leave them out.
        """
        spread = stats.divisor(stats.high - stats.low)
        level = self.level(stats)
        if level.any():
            typical = float(np.median((stats.sd / spread)[~level & ~stats.flat]))
            spread = np.where(level, spread * 2.0 / typical, spread)
        return Affine(*stats.centre, spread)

    def level(self, stats: ColumnStats) -> NDArray[np.bool_]:
        """Which columns are levels, (C,): none where no column is a measure to stand beside."""
        if not self.levels:
            return np.zeros_like(stats.flat)
        if stats.distinct is None:
            raise ValueError("scaling range with `levels` needs the number of distinct values")
        few = stats.distinct <= self.levels
        return few & ~stats.flat & bool((~few & ~stats.flat).any())


class Unit(ScalingPart):
    """(x - min) / (max - min) per column, into [0, 1]."""

    kind: Literal["unit"] = "unit"
    unit_range: ClassVar[Literal["always"]] = "always"

    def affine(self, stats: ColumnStats) -> Affine:
        """(x - min) / (max - min)."""
        spread = stats.divisor(stats.high - stats.low)
        return Affine(stats.low, np.zeros_like(stats.low), spread)


class Standard(ScalingPart):
    """(x - mean) / standard deviation per column."""

    kind: Literal["standard"] = "standard"
    unit_range: ClassVar[Literal["never"]] = "never"
    unit_variance: ClassVar[bool] = True

    def affine(self, stats: ColumnStats) -> Affine:
        """(x - mean) / standard deviation (of the population)."""
        return Affine(*stats.centre, stats.divisor(stats.sd))


class Divide(ScalingPart):
    """x / by, one number for all columns: 255 for images."""

    kind: Literal["divide"] = "divide"
    unit_range: ClassVar[Literal["chosen"]] = "chosen"
    by: float = Field(gt=0.0, description="The divisor.")

    def affine(self, stats: ColumnStats) -> Affine:
        """x / by."""
        zero = np.zeros_like(stats.low)
        return Affine(zero, zero, np.full_like(zero, self.by))


Scaling = Annotated[NoScaling | Range | Unit | Standard | Divide, Field(discriminator="kind")]


class Preprocessing(nn.Module):
    """Column selection, imputation by the mean and scaling, as buffers saved with the weights.

    The buffers that touch raw values are float64: a column far from zero, or very small, keeps its
    digits up to model space, which is float32.
    """

    kept_F: Tensor
    shift_F: Tensor
    rest_F: Tensor
    scale_F: Tensor
    same_F: Tensor
    low_F: Tensor
    high_F: Tensor
    mean_F: Tensor
    level_F: Tensor
    span_C: Tensor
    mean_C: Tensor
    near_shift_F: Tensor
    near_rest_F: Tensor
    near_scale_F: Tensor

    def __init__(self, columns: int, kept: int) -> None:
        super().__init__()
        self.columns = columns
        self.all_kept = columns == kept
        self.register_buffer("kept_F", torch.arange(kept))
        for name in ("shift_F", "rest_F", "scale_F", "same_F"):
            self.register_buffer(name, torch.zeros(kept, dtype=torch.float64))
        for name in ("low_F", "high_F", "mean_F"):
            self.register_buffer(name, torch.zeros(kept))
        for name in ("span_C", "mean_C"):
            self.register_buffer(name, torch.zeros(columns, dtype=torch.float64))
        for name in ("near_shift_F", "near_rest_F", "near_scale_F"):  # of float32 and byte columns
            self.register_buffer(name, torch.zeros(kept), persistent=False)
        # Known where the buffers are fitted: calibration asks, no later pass does.
        self.register_buffer("level_F", torch.zeros(kept, dtype=torch.bool), persistent=False)
        self._wide = self._rest = self._rounded = False
        self.register_load_state_dict_post_hook(_derived)  # type: ignore[no-untyped-call]

    @classmethod
    def fit(cls, scaling: Scaling, stats: ColumnStats, drop_constant: bool) -> "Preprocessing":
        """Buffers from the training rows' statistics; a column without spread is divided by 1.

        Where rounding made a constant column's values, all of them are the same one in model space.
        """
        kept = np.flatnonzero(~stats.flat) if drop_constant else np.arange(len(stats.flat))
        shift_C, rest_C, scale_C = scaling.affine(stats)
        rounded_C = stats.flat & (stats.high > stats.low) & (shift_C == stats.low)
        level_C = scaling.level(stats)
        module = cls(len(stats.flat), len(kept))

        def scaled(raw_C: Float64s, more_C: Float64s | float = 0.0) -> Float64s:
            far_C = (raw_C - shift_C) + (more_C - rest_C)
            return (np.where(rounded_C, 0.0, far_C) / scale_C)[kept]

        values = {
            "kept_F": kept,
            "shift_F": shift_C[kept],
            "rest_F": rest_C[kept],
            "scale_F": scale_C[kept],
            "same_F": np.where(rounded_C, stats.high - stats.low, 0.0)[kept],
            "low_F": scaled(stats.low),
            "high_F": scaled(stats.high),
            "mean_F": scaled(*stats.centre),
            "level_F": level_C[kept],
            "span_C": stats.divisor(stats.high - stats.low),
            "mean_C": stats.centre[0],
        }
        for name, value in values.items():
            getattr(module, name).copy_(torch.from_numpy(value))
        module.derive()
        return module

    def derive(self) -> None:
        """Derive from the buffers what every pass needs of them; called whenever they change."""
        self.near_shift_F.copy_(self.shift_F)
        rest_F = (self.shift_F - self.near_shift_F) + self.rest_F
        self.near_rest_F.copy_(rest_F)
        self.near_scale_F.copy_(self.scale_F)
        # float32 holds a spread's square and its reciprocal in this range; beyond it, float64 works.
        extreme = (self.scale_F < SMALL) | (self.scale_F > LARGE) | (self.shift_F.abs() > LARGE)
        self._wide = bool(extreme.any())
        self._rest = bool(rest_F.any())
        self._rounded = bool((self.same_F > 0).any())

    def forward(self, rows_BC: Tensor) -> Tensor:
        """Raw rows (B, C), any dtype, NaN where missing, to model space (B, F)."""
        rows = rows_BC if self.all_kept else rows_BC.index_select(1, self.kept_F)
        if self._wide or rows.dtype == torch.float64:
            shift_F, rest_F, scale_F = self.shift_F, self.rest_F, self.scale_F
        else:
            shift_F, rest_F, scale_F = self.near_shift_F, self.near_rest_F, self.near_scale_F
        x = rows.to(shift_F.dtype)
        far = x - shift_F if x is rows else x.sub_(shift_F)
        if self._rest:
            far.sub_(rest_F)
        if self._rounded:
            far = torch.where(far.abs() <= self.same_F.to(far.dtype), 0.0, far)
        x_BF = far.div_(scale_F).to(self.mean_F.dtype)
        if not rows.is_floating_point():
            return x_BF
        return torch.where(torch.isfinite(rows), x_BF, self.mean_F)

    def inverse(self, x_BF: Tensor) -> Tensor:
        """Model space (B, F) to raw rows (B, C), float64; dropped columns return at their constant."""
        raw_BF = x_BF.double().mul_(self.scale_F).add_(self.rest_F).add_(self.shift_F)
        if self.all_kept:
            return raw_BF
        rows_BC = self.mean_C.repeat(len(x_BF), 1)
        rows_BC[:, self.kept_F] = raw_BF
        return rows_BC

    @property
    def range_ratio_F(self) -> Tensor:
        """scale / (max - min): turns an error in model space into one in h2o's range space."""
        return (self.scale_F / self.span_C[self.kept_F]).to(self.mean_F.dtype)


def _derived(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Preprocessing)
    module.derive()


def upgraded(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors with the buffers of an artifact of format 1 as today's, which give the same bits.

    What is not such an artifact comes back as it is.
    """
    old = {name: tensors[prefix + name] for name in FORMAT_1 if prefix + name in tensors}
    kept_F = tensors.get(prefix + "kept_F")
    if len(old) < len(FORMAT_1) or kept_F is None or kept_F.dtype != torch.int64:
        return tensors
    shift_F, scale_F, mean_C = old["shift_F"], old["scale_F"], old["mean_C"]
    shapes = {kept_F.shape, shift_F.shape, scale_F.shape}
    inside = len(kept_F) and int(kept_F.min()) >= 0 and int(kept_F.max()) < len(mean_C)
    if len(shapes) > 1 or not inside or {value.dtype for value in old.values()} != {torch.float32}:
        return tensors
    zero_F = torch.zeros_like(shift_F, dtype=torch.float64)
    new = {
        "shift_F": shift_F.double(),
        "rest_F": zero_F,
        "scale_F": scale_F.double(),
        "same_F": zero_F.clone(),
        "mean_F": (mean_C[kept_F] - shift_F) / scale_F,
        "span_C": old["span_C"].double(),
        "mean_C": mean_C.double(),
    }
    return tensors | {prefix + name: value for name, value in new.items()}
