"""Sections about codes and hashes.

Shapes: B rows, K code units.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hourglass.report import charts, figures
from hourglass.report.clouds import POINTS, clouds
from hourglass.report.look import Look
from hourglass.report.page import Section

Array = NDArray[Any]
MOST_BITS = 128
"""Bits of the correlation map: one of thousands of units would be a page of its own."""


def scatter(look: Look) -> Section:
    """The codes in two dimensions (three for three units), beside PCA of the rows."""
    code, units = look.scores.code, look.predictor.code_width
    shown = 3 if units == 3 else 2
    unit_names = [f"code unit {index + 1}" for index in range(shown)]
    pca_names = [f"component {index + 1}" for index in range(shown)]
    if units == 1:
        points, left = np.column_stack([code[:, 0], look.scores.score]), "the code and the score"
        names = ["code unit 1", "score"]
    elif units <= 3:
        points, names, left = code, unit_names, f"the {units} code units"
    else:
        points, names, left = (
            figures.principal(code, 2),
            pca_names,
            f"PCA of the {units} code units",
        )
    drawn = clouds(
        points,
        figures.principal(look.space_BF, shown),
        (left, "PCA of the rows in model space"),
        (names, pca_names),
        look.sight.judged.labels,
    )
    colours = f" Colours are {look.label}." if look.label is not None else ""
    fewer = f" {POINTS} of {len(code)} rows are drawn." if len(code) > POINTS else ""
    sentence = (
        "Each point is a row: by its code on the left, by a linear map of its features on the "
        f"right.{colours}{fewer}"
    )
    return Section("Codes", sentence, (drawn,))


def activations(look: Look) -> Section:
    """How strongly code units answer, and which never change."""
    code = look.scores.code
    dead = figures.dead_units(code)
    zero = dead & ~code.any(axis=0)
    rho = next((p.rho for p in look.model.model.penalties if p.kind == "sparsity_kl"), None)
    mark = ("target rho", rho) if rho is not None else None
    means = np.sort(code.mean(axis=0, dtype=np.float64))
    drawn, left_out = _without_zeros(code)
    parts = (
        charts.histogram(figures.bins(drawn), "activation of a code unit", "rows x units", mark),
        charts.bars(
            range(1, len(means) + 1), means, "code units, by mean", "mean activation", mark
        ),
    )
    sentence = (
        f"How strongly the code units answer over the rows: {int(dead.sum())} of {len(dead)} are "
        f"dead, that is, the same for every row ({int(zero.sum())} of them never leave 0).{left_out}"
    )
    return Section("Code units", sentence, parts, beside=True)


def _without_zeros(code: Array) -> tuple[Array, str]:
    """The activations to draw: of sparse codes those that are not 0, and a sentence about it."""
    answers = code[code != 0]
    if not 0 < len(answers) < code.size / 2:
        return code, ""
    return answers, f" {1 - len(answers) / code.size:.1%} of all activations are 0 and not drawn."


def hashes(look: Look) -> Section:
    """Whether the hash's bits tell rows apart, and whether near hashes are near rows."""
    bits = look.bits_BK
    sizes = figures.bucket_sizes(look.scores.hash)
    buckets = figures.doubling(sizes)
    counts = np.array(list(buckets.values()))
    balance = figures.bit_balance(bits)
    moving = np.flatnonzero((balance > 0) & (balance < 1))
    parts = [
        charts.bars(range(1, len(balance) + 1), balance, "bit", "share of ones", ("even", 0.5)),
        charts.bars(list(buckets), counts, "rows that share a hash", "hashes"),
        charts.distances(figures.cosine_by_hamming(look.space_BF, bits)),
    ]
    if len(moving):
        shown = moving[:MOST_BITS]
        matrix = figures.bit_correlation(bits[:, shown])
        parts.insert(2, charts.correlation(matrix, (shown + 1).tolist()))
    first = f" (shown: the first {MOST_BITS} that change)" if len(moving) > MOST_BITS else ""
    sentence = (
        f"Hashes of {len(balance)} bits, {len(sizes)} different ones for {len(bits)} rows; "
        f"{len(balance) - len(moving)} bits are the same in every row. Good bits are one in half of "
        f"the rows, do not repeat each other{first}, and rows whose hashes differ in few bits are "
        "near each other: mean cosine distance in model space, over "
        f"{figures.PAIRS} pairs, where {figures.FEWEST_PAIRS} or more have that Hamming distance."
    )
    return Section("Hashes", sentence, tuple(parts), beside=True)
