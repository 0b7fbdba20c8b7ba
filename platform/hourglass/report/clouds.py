"""Codes and rows as clouds of points, coloured by a label.

Shapes: B rows.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from hourglass.report.charts import AXIS, BLUE, LAYOUT, PALETTE, text

Array = NDArray[Any]
POINTS = 5000
"""Most points drawn: more make a browser slow."""
REST = "#c3c9cf"


def clouds(left: Array, right: Array, titles: Sequence[str], axes: Sequence[Sequence[str]],
           labels: list[Any] | None) -> Any:  # fmt: skip
    """Two clouds of the same rows side by side, (B, 2) or (B, 3) each, with one legend."""
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
    margin = {"l": 64, "r": 24, "t": 64, "b": 90}  # the tool bar above the titles
    return made.update_layout(**{**LAYOUT, "legend": legend, "margin": margin}, height=600)


def _traces(points: Array, labels: list[Any] | None, legend: bool) -> list[Any]:
    """One trace for each frequent label and one for the rest; a scale of colours for many numbers."""
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
    """Numbers by size, words by the alphabet."""
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
