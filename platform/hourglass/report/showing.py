"""Sections that show rows and weights as pictures, for models of picture-shaped rows.

Shapes: B rows, C raw columns, F features in model space.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
    count = min(SHOWN, len(look.rows_BC))
    rows = look.rows_BC[np.linspace(0, len(look.rows_BC) - 1, count).round().astype(int)]
    low, high = float(np.nanmin(rows)), float(np.nanmax(rows))
    corruption = look.model.model.corruption.kind
    strips = {"original": rows, "reconstruction": look.predictor.reconstruct(rows)}
    sentence = f"Rows as {shape} pictures, each above what the model makes of it."
    if corruption != "none":
        noisy, denoised = _denoised(look, rows)
        strips |= {"noisy": noisy, "denoised": denoised, "clean": rows}
        sentence += (
            f" Below, the same rows after the corruption of training ({corruption}), what the "
            "model makes of that, and the clean rows it should find."
        )
    parts = [_strip(shape, name, row, low, high) for name, row in strips.items()]
    return Section("Reconstructions", sentence, tuple(parts))


def worst(look: Look, at: NDArray[np.int64]) -> list[Html]:
    """The rows `at` above their reconstructions; nothing for rows that are no pictures."""
    if look.shape is None:
        return []
    rows = look.rows_BC[at]
    low, high = float(np.nanmin(rows)), float(np.nanmax(rows))
    strips = {"highest scores": rows, "reconstruction": look.predictor.reconstruct(rows)}
    return [_strip(look.shape, name, row, low, high) for name, row in strips.items()]


def _strip(shape: Shape, name: str, rows: Array, low: float, high: float) -> Html:
    bytes_ = pictures.shades(shape.of(rows), low, high)
    width = min(SHEET_PIXELS, len(rows) * (shape.width + pictures.GAP) * 3)
    return image(pictures.sheet(bytes_, across=len(rows)), name, max(width, len(rows) * 60))


@torch.no_grad()
def _denoised(look: Look, rows_BC: Array) -> tuple[Array, Array]:
    """The rows with the corruption of training, drawn with a fixed seed, and their outputs."""
    module = look.predictor.module
    scale = module.preprocessing
    clean_BF = scale(torch.from_numpy(np.ascontiguousarray(rows_BC)))
    rng = torch.Generator().manual_seed(0)
    noisy_BF = module.spec.corruption.corrupt(clean_BF, scale.low_F, scale.high_F, rng)
    denoised_BC = module.decode(module.code_from(module.pre_of(noisy_BF)))
    return scale.inverse(noisy_BF).numpy(), denoised_BC.numpy()


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
