"""Sections of images: reconstructions, first-layer weights, and rows generated from codes.

Shapes: B rows, C raw columns, K code units; an image is (height, width, channels) with 1 or 3
channels.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hourglass.artifact import Manifest
from hourglass.errors import DataError
from hourglass.inference import generate
from hourglass.report import charts
from hourglass.report.page import Html, Section, image
from hourglass.report.selection import Context

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
SMALLEST = 5
"""Minimum pixels per side: narrower vectors are more likely numbers than images."""
GAP = 1
SHEET_PIXELS = 1100


@dataclass(frozen=True)
class Shape:
    """How a row is laid out as an image."""

    height: int
    width: int
    channels: int
    channels_first: bool = False

    def of(self, rows: Array) -> Array:
        """Images (B, height, width, channels) of rows (B, C)."""
        if not self.channels_first:
            return rows.reshape(-1, self.height, self.width, self.channels)
        return rows.reshape(-1, self.channels, self.height, self.width).transpose(0, 2, 3, 1)

    def __str__(self) -> str:
        return f"{self.height} x {self.width}" + (" colour" if self.channels == 3 else "")


def shape_of(model: Manifest) -> Shape | None:
    """The shape that the network declares, or of a vector whose width is a square or 3 squares (H, W, C)."""
    layout = model.model.network.layout
    if layout is not None:
        place, channels = layout.place, layout.channels
        whole = math.prod(place) * channels == model.features.width
        if len(place) != 2 or channels not in (1, 3) or not whole:
            return None
        return Shape(*place, channels, layout.channels_first)
    if model.features.vector is None:
        return None
    for channels in (1, 3):
        side = math.isqrt(model.features.width // channels)
        if side >= SMALLEST and side * side * channels == model.features.width:
            return Shape(side, side, channels)
    return None


def shades(images: Array, low: float, high: float) -> Bytes:
    """Numbers as bytes: `low` and missing cells are black, `high` is white."""
    shares = np.nan_to_num(np.clip((images - low) / (high - low or 1.0), 0.0, 1.0))
    return np.asarray((shares * 255).round().astype(np.uint8))


def signed(images: Array) -> Bytes:
    """Weights as colours, each image scaled by its largest: blue below 0, white at 0, red above.

    In images of 3 channels, 0 is grey.
    """
    largest = np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    share = images / np.where(largest > 0, largest, 1.0)
    if images.shape[-1] == 3:
        return shades(share, -1.0, 1.0)
    white, red, blue = np.array([247.0] * 3), np.array([178.0, 24, 43]), np.array([33.0, 102, 172])
    end = np.where(share > 0, red, blue)
    return np.asarray((white + np.abs(share) * (end - white)).round().astype(np.uint8))


def sheet(images: Bytes, across: int) -> bytes:
    """A PNG of the images (B, height, width, channels), `across` per row, with gaps between them."""
    count, height, width, channels = images.shape
    down = -(-count // across)
    high, wide = height + GAP, width + GAP
    paper = np.full((down * high - GAP, across * wide - GAP, channels), 255, dtype=np.uint8)
    for index, picture in enumerate(images):
        y, x = index // across * high, index % across * wide
        paper[y : y + height, x : x + width] = picture
    buffer = io.BytesIO()
    pixels = paper[:, :, 0] if channels == 1 else paper
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def strip(shape: Shape, name: str, rows: Array, like: Array, across: int | None = None) -> Html:
    """Rows as images, `across` (default: all) per line, with the brightness range of `like`."""
    across = across or len(rows)
    pixels = shades(shape.of(rows), float(np.nanmin(like)), float(np.nanmax(like)))
    width = min(SHEET_PIXELS, across * (shape.width + GAP) * 3)
    return image(sheet(pixels, across), name, max(width, across * 60))


SHOWN, UNITS = 12, 64


def some(context: Context, count: int) -> Array:
    """At most `count` of the selected rows, evenly spaced, (B, C)."""
    rows_BC = context.rows_BC
    at = np.linspace(0, len(rows_BC) - 1, min(count, len(rows_BC))).round().astype(int)
    chosen_BC: Array = rows_BC[at]
    return chosen_BC


def reconstructions(context: Context) -> Section | None:
    """Some rows and their reconstructions; with a corruption part, noisy, denoised and clean."""
    shape = shape_of(context.model)
    if shape is None:
        return None
    rows = some(context, SHOWN)
    corruption = context.model.model.corruption.kind
    strips = {"original": rows, "reconstruction": context.predictor.reconstruct(rows)}
    text = f"Rows as {shape} images, above their reconstructions."
    if corruption != "none":
        noisy, denoised = generate.denoise(context.predictor, rows, seed=0)
        strips |= {"noisy": noisy, "denoised": denoised, "clean": rows}
        text += (
            f" Below, the same rows after the corruption used in training ({corruption}), their "
            "reconstructions, and the clean rows for comparison."
        )
    parts = [strip(shape, name, made, like=rows) for name, made in strips.items()]
    return Section("Reconstructions", text, tuple(parts))


def most_abnormal(context: Context, at: NDArray[np.int64]) -> list[Html]:
    """The rows `at` above their reconstructions; empty if rows are not images."""
    shape = shape_of(context.model)
    if shape is None:
        return []
    rows = context.rows_BC[at]
    strips = {"highest scores": rows, "reconstruction": context.predictor.reconstruct(rows)}
    return [strip(shape, name, made, like=rows) for name, made in strips.items()]


def weights(context: Context) -> Section | None:
    """The weights of the first layer of a dense network as images, one per unit."""
    shape = shape_of(context.model)
    every_PF = context.predictor.module.network.unit_weights()
    if shape is None or every_PF is None:
        return None
    every_PF = every_PF.detach()
    first_UC = torch.zeros(min(UNITS, len(every_PF)), context.model.features.width)
    first_UC[:, context.predictor.module.preprocessing.kept_F] = every_PF[:UNITS]
    made = signed(shape.of(first_UC.numpy()))
    across = min(16, len(made))
    width = min(SHEET_PIXELS, across * (shape.width + GAP) * 3)
    caption = f"units 1 to {len(made)} of {len(every_PF)}"
    colours = "grey is 0" if shape.channels == 3 else "red is positive, blue negative"
    text = (
        "The weight that each unit of the first layer gives to each pixel, scaled by the unit's "
        f"largest weight; {colours}."
    )
    drawn = image(sheet(made, across), caption, max(width, 480))
    return Section("First-layer weights", text, (drawn,))


DRAWS, ACROSS = 48, 12
PAIRS, VARIED, STEPS = 4, 8, 9
TAIL = 0.00135
"""Fraction of rows excluded at each end of a unit's range: beyond 3 sd of a normal distribution."""


def draws(context: Context) -> Section | None:
    """Rows decoded from draws from the prior, for a model that has one."""
    shape = shape_of(context.model)
    if shape is None:
        return None
    try:
        made = generate.prior(context.predictor, DRAWS, seed=0)
    except DataError:  # the model has no prior
        return None
    text = (
        "New rows, decoded from codes drawn from the prior. They resemble real rows if the codes of "
        "real rows follow the prior."
    )
    drawn = strip(shape, f"{DRAWS} draws, seed 0", made, some(context, SHOWN), ACROSS)
    return Section("Draws from the prior", text, (drawn,))


def interpolations(context: Context) -> Section | None:
    """Pairs of rows, and rows decoded from the straight line between their codes."""
    shape = shape_of(context.model)
    if shape is None:
        return None
    rows = some(context, 2 * PAIRS)
    lines = [
        np.concatenate(
            [[first], generate.interpolate(context.predictor, first, second, STEPS), [second]]
        )
        for first, second in zip(rows[::2], rows[1::2], strict=False)
    ]
    text = (
        "Each line has a row at either end, and between them the decoded rows of "
        f"{STEPS} codes on the straight line between the codes of the two."
    )
    drawn = strip(shape, "row, interpolation, row", np.concatenate(lines), rows, STEPS + 2)
    return Section("Interpolations", text, (drawn,))


def traversals(context: Context) -> Section | None:
    """One row's code with one unit varied at a time, for the units that vary most."""
    shape = shape_of(context.model)
    if shape is None:
        return None
    code, (row,) = context.scores.code, some(context, 1)
    alive = int((~charts.dead_units(code)).sum())
    units = charts.largest(code.std(axis=0, dtype=np.float64), min(VARIED, alive)).tolist()
    lines = []
    for unit in units:
        low, high = np.quantile(code[:, unit], (TAIL, 1.0 - TAIL))
        values = np.linspace(low, high, STEPS, dtype=np.float32)
        made = np.concatenate([[row], generate.traverse(context.predictor, row, unit, values)])
        caption = f"unit {unit + 1}, {low:.3g} to {high:.3g}"
        lines.append(strip(shape, caption, made, like=row))
    text = (
        "A row, then its decoded code with one unit varied over its range in the rows of this "
        f"report ({TAIL:.2%} excluded at either end) and all others fixed. "
        f"Shown: {len(units)} of {code.shape[1]} units, those that vary most."
    )
    return Section("Traversals", text, tuple(lines), beside=True) if lines else None
