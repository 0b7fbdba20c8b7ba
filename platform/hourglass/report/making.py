"""Sections of pictures: reconstructions and weights, and rows made from codes: draws from the prior,
ways between rows, one code unit moved.

Shapes: B rows, C raw columns, K code units.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hourglass.errors import DataError
from hourglass.inference import generate
from hourglass.inference.generate import denoise
from hourglass.report import charts, pictures
from hourglass.report.page import Html, Section, image
from hourglass.report.pictures import Shape
from hourglass.report.rows import Look

Array = NDArray[Any]
SHOWN, UNITS = 12, 64
SHEET_PIXELS = 1100


def reconstructions(look: Look) -> Section | None:
    """Some rows beside their reconstructions; with a corruption part, noisy, denoised and clean."""
    shape = look.shape
    if shape is None:
        return None
    rows = shown(look, SHOWN)
    corruption = look.model.model.corruption.kind
    strips = {"original": rows, "reconstruction": look.predictor.reconstruct(rows)}
    sentence = f"Rows as {shape} pictures, each above what the model makes of it."
    if corruption != "none":
        noisy, denoised = denoise(look.predictor, rows, seed=0)
        strips |= {"noisy": noisy, "denoised": denoised, "clean": rows}
        sentence += (
            f" Below, the same rows after the corruption of training ({corruption}), what the "
            "model makes of that, and the clean rows it should find."
        )
    parts = [strip(shape, name, made, like=rows) for name, made in strips.items()]
    return Section("Reconstructions", sentence, tuple(parts))


def worst(look: Look, at: NDArray[np.int64]) -> list[Html]:
    """The rows `at` above their reconstructions; nothing for rows that are no pictures."""
    if look.shape is None:
        return []
    rows = look.rows_BC[at]
    strips = {"highest scores": rows, "reconstruction": look.predictor.reconstruct(rows)}
    return [strip(look.shape, name, made, like=rows) for name, made in strips.items()]


def shown(look: Look, count: int) -> Array:
    """At most `count` of the rows judged, evenly spaced, (B, C)."""
    count = min(count, len(look.rows_BC))
    rows_BC: Array = look.rows_BC[np.linspace(0, len(look.rows_BC) - 1, count).round().astype(int)]
    return rows_BC


def strip(shape: Shape, name: str, rows: Array, like: Array, across: int | None = None) -> Html:
    """Rows as pictures, `across` (all) to a line, as bright as the rows `like`."""
    across = across or len(rows)
    bytes_ = pictures.shades(shape.of(rows), float(np.nanmin(like)), float(np.nanmax(like)))
    width = min(SHEET_PIXELS, across * (shape.width + pictures.GAP) * 3)
    return image(pictures.sheet(bytes_, across), name, max(width, across * 60))


def weights(look: Look) -> Section | None:
    """The weights of the first layer's units, of dense networks, as pictures."""
    if look.shape is None or look.model.model.network.kind != "dense":
        return None
    every_PF = look.predictor.module.matrices()[0].detach()
    first_UC = torch.zeros(min(UNITS, len(every_PF)), look.model.features.width)
    first_UC[:, look.predictor.module.preprocessing.kept_F] = every_PF[:UNITS]
    made = pictures.signed(look.shape.of(first_UC.numpy()))
    across = min(16, len(made))
    width = min(SHEET_PIXELS, across * (look.shape.width + pictures.GAP) * 3)
    caption = f"units 1 to {len(made)} of {len(every_PF)}"
    colours = "grey is 0" if look.shape.channels == 3 else "red raises it, blue lowers it"
    sentence = (
        "What each unit of the first layer looks for: the weight of every pixel, each unit by its "
        f"own largest weight; {colours}."
    )
    sheet = pictures.sheet(made, across)
    return Section("First-layer weights", sentence, (image(sheet, caption, max(width, 480)),))


DRAWS, ACROSS = 48, 12
WAYS, MOVED, STEPS = 4, 8, 9
BEYOND = 0.00135
"""Share of rows left out at each end of a unit's way: of a normal unit, those beyond 3 sd."""


def prior(look: Look) -> Section | None:
    """Rows from the prior, of a model that has one."""
    if look.shape is None:
        return None
    try:
        made = generate.prior(look.predictor, DRAWS, seed=0)
    except DataError:  # no prior to draw from
        return None
    sentence = (
        "New rows: codes drawn from the prior, decoded. They look like real rows where the codes of "
        "real rows fill the prior."
    )
    like = shown(look, SHOWN)
    sheet = strip(look.shape, f"{DRAWS} draws, seed 0", made, like, ACROSS)
    return Section("Rows from the prior", sentence, (sheet,))


def ways(look: Look) -> Section | None:
    """From one row to another along the straight line between their codes."""
    if look.shape is None:
        return None
    rows = shown(look, 2 * WAYS)
    lines = [
        np.concatenate(
            [[first], generate.interpolate(look.predictor, first, second, STEPS), [second]]
        )
        for first, second in zip(rows[::2], rows[1::2], strict=False)
    ]
    sentence = (
        "Each line goes from one row to another: the rows themselves at both ends, between them what "
        f"the model makes of {STEPS} codes on the straight line from the one's code to the other's."
    )
    sheet = strip(look.shape, "row, way, row", np.concatenate(lines), rows, STEPS + 2)
    return Section("Ways between rows", sentence, (sheet,))


def moved(look: Look) -> Section | None:
    """One row's code with each of the units that vary most moved, all others as they are."""
    if look.shape is None:
        return None
    code, (row,) = look.scores.code, shown(look, 1)
    alive = int((~charts.dead_units(code)).sum())
    units = charts.worst(code.std(axis=0, dtype=np.float64), min(MOVED, alive)).tolist()
    lines = []
    for unit in units:
        low, high = np.quantile(code[:, unit], (BEYOND, 1.0 - BEYOND))
        values = np.linspace(low, high, STEPS, dtype=np.float32)
        made = np.concatenate([[row], generate.traverse(look.predictor, row, unit, values)])
        caption = f"unit {unit + 1}, {low:.3g} to {high:.3g}"
        lines.append(strip(look.shape, caption, made, like=row))
    sentence = (
        f"What the units do: a row, then its code with one unit moved over the range it has in the "
        f"rows of this page ({BEYOND:.2%} of them left out at either end), all others as they are. "
        f"Shown: {len(units)} of {code.shape[1]} units, those that vary most."
    )
    return Section("Code units moved", sentence, tuple(lines), beside=True) if lines else None
