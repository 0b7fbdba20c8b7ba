"""Preprocessing inside the model: raw rows in, model space out, and back, all from buffers.

Living in the model means every consumer (trainer, batch job, endpoint, notebook) takes raw rows.
Shapes: B rows, C columns of the raw row, F features kept (constant columns may be dropped).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from hourglass.strict import Strict

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnStats:
    """Per-column figures of the training rows, each of shape (C,), missing cells left out."""

    mean: Float64s
    sd: Float64s
    low: Float64s
    high: Float64s


class NoScaling(Strict):
    """Rows as they are."""

    kind: Literal["none"] = "none"

    def shift_and_scale(self, stats: ColumnStats) -> tuple[Float64s, Float64s]:
        """0 and 1."""
        return np.zeros_like(stats.mean), np.ones_like(stats.mean)


class Range(Strict):
    """(x - mean) / (max - min) per column: what h2o calls standardising an autoencoder's input."""

    kind: Literal["range"] = "range"

    def shift_and_scale(self, stats: ColumnStats) -> tuple[Float64s, Float64s]:
        """mean and max - min."""
        return stats.mean, stats.high - stats.low


class Unit(Strict):
    """(x - min) / (max - min) per column, into [0, 1]."""

    kind: Literal["unit"] = "unit"

    def shift_and_scale(self, stats: ColumnStats) -> tuple[Float64s, Float64s]:
        """min and max - min."""
        return stats.low, stats.high - stats.low


class Standard(Strict):
    """(x - mean) / standard deviation per column."""

    kind: Literal["standard"] = "standard"

    def shift_and_scale(self, stats: ColumnStats) -> tuple[Float64s, Float64s]:
        """mean and standard deviation (of the population)."""
        return stats.mean, stats.sd


class Divide(Strict):
    """x / by, one number for all columns: 255 for images."""

    kind: Literal["divide"] = "divide"
    by: float = Field(gt=0.0, description="The divisor.")

    def shift_and_scale(self, stats: ColumnStats) -> tuple[Float64s, Float64s]:
        """0 and `by`."""
        return np.zeros_like(stats.mean), np.full_like(stats.mean, self.by)


Scaling = Annotated[NoScaling | Range | Unit | Standard | Divide, Field(discriminator="kind")]


class Preprocessing(nn.Module):
    """Column selection, imputation by the mean and scaling, as buffers saved with the weights."""

    kept_F: Tensor
    shift_F: Tensor
    scale_F: Tensor
    low_F: Tensor
    high_F: Tensor
    span_C: Tensor
    mean_C: Tensor

    def __init__(self, columns: int, kept: int) -> None:
        super().__init__()
        self.columns = columns
        self.all_kept = columns == kept
        self.register_buffer("kept_F", torch.arange(kept))
        for name in ("shift_F", "scale_F", "low_F", "high_F"):
            self.register_buffer(name, torch.zeros(kept))
        for name in ("span_C", "mean_C"):
            self.register_buffer(name, torch.zeros(columns))

    @classmethod
    def fit(cls, scaling: Scaling, stats: ColumnStats, drop_constant: bool) -> "Preprocessing":
        """Buffers from the training rows' figures; a column without spread is divided by 1."""
        constant_C = stats.high <= stats.low
        kept = np.flatnonzero(~constant_C) if drop_constant else np.arange(len(constant_C))
        shift_C, scale_C = scaling.shift_and_scale(stats)
        scale_C = np.where(scale_C > 0, scale_C, 1.0)
        module = cls(len(constant_C), len(kept))
        span_C = np.where(constant_C, 1.0, stats.high - stats.low)
        values = {
            "shift_F": shift_C[kept],
            "scale_F": scale_C[kept],
            "low_F": ((stats.low - shift_C) / scale_C)[kept],
            "high_F": ((stats.high - shift_C) / scale_C)[kept],
            "span_C": span_C,
            "mean_C": stats.mean,
        }
        module.kept_F.copy_(torch.from_numpy(kept))
        for name, value in values.items():
            getattr(module, name).copy_(torch.from_numpy(value))
        return module

    def forward(self, rows_BC: Tensor) -> Tensor:
        """Raw rows (B, C), any dtype, NaN where missing, to model space (B, F)."""
        rows = rows_BC if self.all_kept else rows_BC.index_select(1, self.kept_F)
        if rows.is_floating_point():
            rows = rows.to(self.shift_F.dtype) if rows.dtype != torch.float64 else rows
            filled = torch.where(
                torch.isfinite(rows), rows, self.mean_C[self.kept_F].to(rows.dtype)
            )
            return (filled - self.shift_F).div_(self.scale_F).to(self.shift_F.dtype)
        return rows.to(self.shift_F.dtype).sub_(self.shift_F).div_(self.scale_F)

    def inverse(self, x_BF: Tensor) -> Tensor:
        """Model space (B, F) to raw rows (B, C); dropped columns return at their constant."""
        raw_BF = x_BF * self.scale_F + self.shift_F
        if self.all_kept:
            return raw_BF
        rows_BC = self.mean_C.repeat(len(x_BF), 1)
        rows_BC[:, self.kept_F] = raw_BF
        return rows_BC

    @property
    def range_ratio_F(self) -> Tensor:
        """scale / (max - min): turns an error in model space into one in h2o's range space."""
        return self.scale_F / self.span_C[self.kept_F]
