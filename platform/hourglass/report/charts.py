"""Figures of a report, from numbers that are ready; plotly reads HTML in texts, so those are escaped.

Shapes: K code units.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly import graph_objects as go

from hourglass.report.figures import Bins, ByHamming

Array = NDArray[Any]
BLUE, RED, FILL = "#2f6db3", "#b3261e", "rgba(47,109,179,0.25)"
PALETTE = ("#2f6db3", "#e08214", "#3a9a5b", "#b3261e", "#7d5ba6", "#8c6d31", "#d36fa8", "#1fa3b5",
           "#a8a220", "#3b4650")  # fmt: skip
MOST_TICKS = 12
AXIS = {"showline": True, "linecolor": "#aab2bb", "gridcolor": "#e8ebee", "zeroline": False}
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
    "margin": {"l": 64, "r": 24, "t": 36, "b": 56},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
}


def text(word: Any) -> str:
    """A word from data as plotly shows it: no tags."""
    return escape(str(word))


def figure(height: int) -> Any:
    """An empty figure in the style of the page."""
    made = go.Figure().update_layout(**LAYOUT, height=height)
    return made.update_xaxes(**AXIS).update_yaxes(**AXIS)


def losses(history: Sequence[dict[str, float]]) -> Any:
    """A line for the loss, each of its terms and the errors, over epochs, on a log axis."""
    every = {name for record in history for name in record}
    terms = sorted(name for name in every if name.startswith("loss_"))
    terms = terms if len(terms) > 1 else []  # a single term is the loss
    names = [name for name in ("loss", *terms, "train_mse", "holdout_mse") if name in every]
    made = figure(400)
    for name, colour in zip(names, PALETTE * (len(names) // len(PALETTE) + 1), strict=False):
        values = [record.get(name, 0.0) for record in history]
        made.add_scatter(
            x=[record.get("epoch", i + 1) for i, record in enumerate(history)],
            y=[value if value > 0 else None for value in values],
            name=text(name),
            mode="lines+markers" if len(history) < 30 else "lines",
            line={"color": colour, "width": 2, "dash": "dot" if name == "holdout_mse" else "solid"},
            marker={"size": 5},
        )
    drawn = [record[name] for record in history for name in names if record.get(name, 0.0) > 0]
    made.update_xaxes(title="epoch", **({"dtick": 1} if len(history) < 20 else {}))
    return made.update_yaxes(title="value, log axis", **_log(drawn))


def histogram(found: Bins, what: str, of: str, mark: tuple[str, float] | None = None) -> Any:
    """Counts as steps, over a log axis where the bins are of equal ratio; a value may be marked."""
    made = figure(340)
    counts = [*found.counts.tolist(), int(found.counts[-1])]
    made.add_scatter(
        x=found.edges, y=counts, mode="lines", fill="tozeroy", fillcolor=FILL, name=of,
        line={"shape": "hv", "color": BLUE, "width": 1.5}, showlegend=False,
    )  # fmt: skip
    if mark is not None:
        made.add_scatter(**_mark(mark, [mark[1]] * 2, [0, max(counts)]))
    made.update_xaxes(title=text(what) + (", log axis" if found.log else ""))
    if found.log:
        made.update_xaxes(**_log(found.edges))
    return made.update_yaxes(title=of, rangemode="tozero")


def _log(values: Sequence[float] | Array) -> dict[str, Any]:
    """A log axis with ticks at 1, 2 and 5, or at powers of ten alone where those would crowd.

    On a short one, where there would be hardly any, plotly finds them.
    """
    low, high = (np.log10([min(values), max(values)]) if len(values) else np.zeros(2)).tolist()
    if high - low < 0.8:
        return {"type": "log", "exponentformat": "none"}
    steps = (1, 2, 5) if high - low < 4 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return {"type": "log", "tickvals": [s * 10.0**p for p in powers for s in steps],
            "tickformat": "~g"}  # fmt: skip


def bars(
    names: Sequence[str | int],
    values: Array,
    what: str,
    of: str,
    mark: tuple[str, float] | None = None,
) -> Any:
    """A bar for each name, or number from 1 up, with a marked level."""
    made = figure(340)
    made.add_bar(x=list(names), y=values, showlegend=False,
                 marker={"color": BLUE, "line": {"width": 0}})  # fmt: skip
    if mark is not None:
        made.add_scatter(**_mark(mark, [0.5, len(names) + 0.5], [mark[1]] * 2))
    made.update_layout(bargap=0.15 if len(names) < 60 else 0)
    if len(names) < 20:
        made.update_xaxes(dtick=1)
    return made.update_xaxes(title=what).update_yaxes(title=of)


def widths(every: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Any:
    """A line for each of `errors`, by name, over the widths of a code; both axes are log."""
    made = figure(340)
    for (name, values), colour in zip(errors.items(), PALETTE, strict=False):
        made.add_scatter(
            x=list(every), y=list(values), name=name, mode="lines+markers",
            line={"color": colour, "width": 2}, marker={"size": 7},
            hovertemplate=f"%{{x}} units: {name} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    drawn = [value for values in errors.values() for value in values]
    made.update_xaxes(title="units of the code, log axis", **_log(every))
    if len(every) <= MOST_TICKS:
        made.update_xaxes(tickvals=list(every))
    return made.update_yaxes(title="MSE, log axis", **_log(drawn))


def _mark(mark: tuple[str, float], x: list[Any], y: list[Any]) -> dict[str, Any]:
    line = {"color": RED, "width": 2, "dash": "dash"}
    return {"x": x, "y": y, "mode": "lines", "line": line, "name": f"{text(mark[0])} {mark[1]:.4g}"}


def correlation(matrix: Array, numbers: Sequence[int]) -> Any:
    """A square of correlations (K, K) of the bits `numbers`, blue to red."""
    made = figure(420)
    names = [str(number) for number in numbers]
    made.add_heatmap(
        x=names, y=names, z=np.round(matrix, 3), zmin=-1, zmax=1, colorscale="RdBu_r", hoverongaps=False,
        colorbar={"thickness": 12, "title": {"text": ""}},
        hovertemplate="bits %{x} and %{y}: %{z}<extra></extra>",
    )  # fmt: skip
    made.update_xaxes(title="bit", type="category", constrain="domain", showgrid=False)
    return made.update_yaxes(
        title="bit",
        type="category",
        scaleanchor="x",
        autorange="reversed",
        showgrid=False,
        constrain="domain",
    )


def distances(found: ByHamming) -> Any:
    """Mean cosine distance of rows over the Hamming distance of their hashes."""
    made = figure(420)
    made.add_scatter(
        x=found.hamming, y=found.cosine, customdata=found.pairs, mode="lines+markers",
        line={"color": BLUE, "width": 2}, marker={"size": 7}, showlegend=False,
        hovertemplate="Hamming %{x}: cosine distance %{y:.3f}, %{customdata} pairs<extra></extra>",
    )  # fmt: skip
    if len(found.hamming) < 20:
        made.update_xaxes(dtick=1)
    made.update_xaxes(title="Hamming distance of hashes, bits", rangemode="tozero")
    return made.update_yaxes(title="mean cosine distance of rows", rangemode="tozero")
