"""Sections about codes and hashes, and scatter plots coloured by a label.

Shapes: B rows, K code units.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from hourglass.report import charts
from hourglass.report.charts import AXIS, BLUE, LAYOUT, PALETTE, text
from hourglass.report.page import Section
from hourglass.report.selection import Context

Array = NDArray[Any]
MOST_BITS = 128
"""Maximum bits in the correlation map."""


def scatter(context: Context) -> Section:
    """The codes in two dimensions (three for three units), and PCA of the rows."""
    code, units = context.scores.code, context.predictor.code_width
    shown = 3 if units == 3 else 2
    unit_names = [f"code unit {index + 1}" for index in range(shown)]
    pca_names = [f"component {index + 1}" for index in range(shown)]
    if units == 1:
        points, left = np.column_stack([code[:, 0], context.scores.score]), "the code and the score"
        names = ["code unit 1", "score"]
    elif units <= 3:
        points, names, left = code, unit_names, f"the {units} code units"
    else:
        points, names, left = (
            charts.principal(code, 2),
            pca_names,
            f"PCA of the {units} code units",
        )
    drawn = scatters(
        points,
        charts.principal(context.space_BF, shown),
        (left, "PCA of the rows in model space"),
        (names, pca_names),
        context.selection.sample.labels,
    )
    colours = f" Colours show {context.label}." if context.label is not None else ""
    fewer = f" {POINTS} of {len(code)} rows are drawn." if len(code) > POINTS else ""
    about = (
        "Each point is a row: on the left by its code, on the right by a linear map of its "
        f"features.{colours}{fewer}"
    )
    return Section("Codes", about, (drawn,))


def activations(context: Context) -> Section:
    """The activations of code units, and which are constant."""
    code = context.scores.code
    dead = charts.dead_units(code)
    zero = dead & ~code.any(axis=0)
    rho = next((p.target for p in context.model.model.penalties if p.target is not None), None)
    mark = ("target rho", rho) if rho is not None else None
    means = np.sort(code.mean(axis=0, dtype=np.float64))
    drawn, excluded = _without_zeros(code)
    parts = (
        charts.histogram(charts.bins(drawn), "activation of a code unit", "rows x units", mark),
        charts.bars(
            range(1, len(means) + 1), means, "code units, by mean", "mean activation", mark
        ),
    )
    about = (
        f"The activations of the code units over the rows: {int(dead.sum())} of {len(dead)} units "
        f"are dead, that is, constant over the rows ({int(zero.sum())} of them 0).{excluded}"
    )
    return Section("Code units", about, parts, beside=True)


def _without_zeros(code: Array) -> tuple[Array, str]:
    """The activations to draw, which are the nonzero ones of sparse codes, and a note about it."""
    nonzero = code[code != 0]
    if not 0 < len(nonzero) < code.size / 2:
        return code, ""
    return nonzero, f" {1 - len(nonzero) / code.size:.1%} of all activations are 0 and not drawn."


def hashes(context: Context) -> Section:
    """Whether the bits of the hash distinguish rows, and whether near hashes mean near rows."""
    bits = context.bits_BK
    sizes = charts.bucket_sizes(context.scores.hash)
    buckets = charts.doubling(sizes)
    counts = np.array(list(buckets.values()))
    balance = charts.bit_balance(bits)
    moving = np.flatnonzero((balance > 0) & (balance < 1))
    parts = [
        charts.bars(range(1, len(balance) + 1), balance, "bit", "share of ones", ("even", 0.5)),
        charts.bars(list(buckets), counts, "rows that share a hash", "hashes"),
        charts.distances(charts.cosine_by_hamming(context.space_BF, bits)),
    ]
    if len(moving):
        shown = moving[:MOST_BITS]
        matrix = charts.bit_correlation(bits[:, shown])
        parts.insert(2, charts.correlation(matrix, (shown + 1).tolist()))
    first = f" (shown: the first {MOST_BITS} that change)" if len(moving) > MOST_BITS else ""
    about = (
        f"Hashes of {len(balance)} bits, {len(sizes)} distinct ones for {len(bits)} rows; "
        f"{len(balance) - len(moving)} bits are constant. Good bits are 1 in half of the rows and "
        f"uncorrelated{first}, and rows whose hashes differ in few bits are near each other. The "
        "last chart shows the mean cosine distance in model space of "
        f"{charts.PAIRS} pairs, at each Hamming distance of at least {charts.FEWEST_PAIRS} pairs."
    )
    return Section("Hashes", about, tuple(parts), beside=True)


POINTS = 5000
"""Maximum points to draw: more slow the browser down."""
REST = "#c3c9cf"


def scatters(left: Array, right: Array, titles: Sequence[str], axes: Sequence[Sequence[str]],
           labels: list[Any] | None) -> Any:  # fmt: skip
    """Two scatter plots of the same rows side by side, (B, 2) or (B, 3) each, with one legend."""
    kind = "scene" if left.shape[1] == 3 else "xy"
    made = make_subplots(
        1, 2, specs=[[{"type": kind}] * 2], subplot_titles=list(titles), horizontal_spacing=0.09
    )
    shown = np.linspace(0, len(left) - 1, min(len(left), POINTS)).round().astype(int)
    values = None if labels is None else [labels[i] for i in shown]
    for column, (points, names) in enumerate(zip((left, right), axes, strict=True), start=1):
        for trace in _traces(points[shown], values, legend=column == 1):
            made.add_trace(trace, 1, column)
        if kind == "scene":
            named = zip(("xaxis", "yaxis", "zaxis"), names, strict=True)
            scene = {axis: {"title": {"text": name}} for axis, name in named}
            camera = {"eye": {"x": 1.7, "y": 1.7, "z": 1.1}}
            made.update_scenes({**scene, "aspectmode": "cube", "camera": camera}, row=1, col=column)
        else:
            made.update_xaxes(**AXIS, title=names[0], row=1, col=column)
            made.update_yaxes(**AXIS, title=names[1], row=1, col=column)
    legend = {"orientation": "h", "y": -0.13, "yanchor": "top", "x": 0, "itemsizing": "constant"}
    margin = {"l": 64, "r": 24, "t": 64, "b": 90}  # the toolbar is above the titles
    return made.update_layout(**{**LAYOUT, "legend": legend, "margin": margin}, height=600)


def _traces(points: Array, labels: list[Any] | None, legend: bool) -> list[Any]:
    """One trace per frequent label and one for the others; a colour scale for many numbers."""
    if labels is None:
        return [_trace(points, {"color": BLUE}, "row", legend=False)]
    if len(set(labels)) > 2 * len(PALETTE) and all(_is_number(value) for value in labels):
        scale = {"colorscale": "Viridis", "showscale": legend, "colorbar": {"thickness": 12}}
        return [_trace(points, {"color": np.asarray(labels, float), **scale}, "row", legend=False)]
    own = _order([value for value, _ in Counter(labels).most_common(len(PALETTE))])
    traces = [
        _trace(points[[found == value for found in labels]], {"color": colour}, text(value), legend)
        for value, colour in zip(own, PALETTE, strict=False)
    ]
    rest = [found not in own for found in labels]
    if any(rest):
        traces.append(_trace(points[rest], {"color": REST}, "all others", legend))
    return traces


def _order(values: list[Any]) -> list[Any]:
    """Numbers by size, other labels alphabetically."""
    numbers = all(_is_number(value) for value in values)
    return sorted(values) if numbers else sorted(values, key=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


def _trace(points: Array, marker: dict[str, Any], name: str, legend: bool) -> Any:
    what = go.Scatter3d if points.shape[1] == 3 else go.Scatter
    x, y, *z = points.astype(np.float32).T
    size = 2.5 if z else 4.5
    return what(
        x=x, y=y, **({"z": z[0]} if z else {}), mode="markers", name=name, legendgroup=name,
        showlegend=legend, marker={"size": size, "opacity": 0.7, **marker},
    )  # fmt: skip
