"""Sections that show rows and weights as pictures, for models of picture-shaped rows.

Shapes: B rows, C raw columns.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hourglass.inference.generate import denoise
from hourglass.report import pictures
from hourglass.report.look import Look
from hourglass.report.page import Html, Section, image
from hourglass.report.pictures import Shape

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
