"""The statistics of a report and their charts; plotly interprets HTML in text, so it is escaped.

Shapes: B rows, F features in model space, K code units or bits of a hash.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly import graph_objects as go
from sklearn.decomposition import PCA

Array = NDArray[Any]
Floats = NDArray[np.float64]
STILL = 1e-6
"""A unit whose range is below this, relative to its magnitude, counts as constant."""
PAIRS = 20_000
FEWEST_PAIRS = 10
"""Minimum pairs at a Hamming distance for its mean to be drawn."""


def principal(rows: Array, components: int) -> Floats:
    """The first principal components (B, components) of `rows` (B, F); 0 beyond their number."""
    most = min(components, *rows.shape)
    wide = rows.astype(np.float64)
    made: Floats = np.zeros((len(rows), components))
    made[:, :most] = PCA(most, random_state=0).fit_transform(wide)
    return made


@dataclass(frozen=True)
class Bins:
    """A histogram: `edges` (N + 1,) and `counts` (N,)."""

    edges: Floats
    counts: NDArray[np.int64]
    log: bool


def bins(values: Array, skewed: bool = False, most: int = 60) -> Bins:
    """A histogram of `values`; `skewed` ones spanning a factor above 30 get bins of equal ratio."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    low, high = float(flat.min()), float(flat.max())
    log = skewed and low > 0 and high / low > 30
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, most + 1) if log else np.linspace(low, high, most + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return Bins(edges, np.histogram(flat, edges)[0], log)


def dead_units(code: Array) -> NDArray[np.bool_]:
    """True (K,) for units that are constant over the rows (B, K), such as always 0."""
    spread = np.ptp(code.astype(np.float64), axis=0)
    return np.asarray(spread <= STILL * np.maximum(1.0, np.abs(code).max(axis=0)))


def bit_balance(bits: Array) -> Floats:
    """Fraction of ones of each bit, (K,); 0.5 is the most informative."""
    return np.asarray(bits.mean(axis=0, dtype=np.float64))


def bit_correlation(bits: Array) -> Floats:
    """Pearson correlation of the bits, (K, K); NaN for a constant bit."""
    centred = bits - bits.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(np.square(centred).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(centred.T @ centred / np.outer(spread, spread))


def bucket_sizes(hashes: Array) -> NDArray[np.int64]:
    """Number of rows per distinct hash, largest first; `hashes` are packed, (B, bytes)."""
    counts = np.unique(hashes, axis=0, return_counts=True)[1]
    return np.sort(counts)[::-1].astype(np.int64)


def doubling(sizes: NDArray[np.int64]) -> dict[str, int]:
    """Counts of `sizes` in classes 1, 2-3, 4-7, 8-15, ... up to the largest."""
    top = int(sizes.max()).bit_length()
    classes = np.frexp(sizes)[1]  # frexp's exponent of n is n.bit_length()
    counts = np.bincount(classes, minlength=top + 1)
    names = ["1", *(f"{2 ** (n - 1)}-{2**n - 1}" for n in range(2, top + 1))]
    return {name: int(count) for name, count in zip(names, counts[1:], strict=True)}


@dataclass(frozen=True)
class ByHamming:
    """Mean cosine distance and number of the pairs of rows at each Hamming distance."""

    hamming: NDArray[np.int64]
    cosine: Floats
    pairs: NDArray[np.int64]


def cosine_by_hamming(
    rows: Array, bits: Array, pairs: int = PAIRS, fewest: int = FEWEST_PAIRS, seed: int = 0
) -> ByHamming:
    """1 - cosine of pairs of rows (B, F), averaged by the Hamming distance of their bits (B, K).

    The pairs are drawn with `seed`, of two different rows each; rows of length 0 are excluded.
    """
    rng = np.random.default_rng(seed)
    first = rng.integers(len(rows), size=pairs)
    second = (first + rng.integers(1, len(rows), size=pairs)) % len(rows)
    wide = rows.astype(np.float64)
    length = np.sqrt(np.square(wide).sum(axis=1))
    apart = np.empty(pairs)
    for at in range(0, pairs, 1000):  # 1,000 pairs of rows in memory at a time
        i, j = first[at : at + 1000], second[at : at + 1000]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.einsum("pf,pf->p", wide[i], wide[j]) / (length[i] * length[j])
        apart[at : at + 1000] = 1.0 - cosine
    hamming = (bits[first] != bits[second]).sum(axis=1)
    known = np.isfinite(apart)
    width = bits.shape[1] + 1
    counts = np.bincount(hamming[known], minlength=width)
    sums = np.bincount(hamming[known], weights=apart[known], minlength=width)
    enough = np.flatnonzero(counts >= fewest)
    return ByHamming(enough, sums[enough] / counts[enough], counts[enough].astype(np.int64))


def largest(values: Array, count: int) -> NDArray[np.int64]:
    """Indexes of the largest values, largest first."""
    return np.argsort(-np.asarray(values), kind="stable")[:count]


BLUE, RED, FILL = "#2f6db3", "#b3261e", "rgba(47,109,179,0.25)"
PALETTE = ("#2f6db3", "#e08214", "#3a9a5b", "#b3261e", "#7d5ba6", "#8c6d31", "#d36fa8", "#1fa3b5",
           "#a8a220", "#3b4650")  # fmt: skip
MOST_TICKS = 12
MAX_RATIO, SKEW = 10.0, 0.3
"""Values over more than `MAX_RATIO`, half of them in the lowest `SKEW` of their range: a log axis."""
AXIS = {"showline": True, "linecolor": "#aab2bb", "gridcolor": "#e8ebee", "zeroline": False}
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
    "margin": {"l": 64, "r": 24, "t": 36, "b": 56},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
}


def text(value: Any) -> str:
    """A value from data as plotly shows it, without markup."""
    return escape(str(value))


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
    """Counts as steps, on a log axis if the bins have equal ratios; a value may be marked."""
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


def is_log(values: Sequence[float]) -> bool:
    """True for positive values as on a log scale: over a wide range, most of them low."""
    if not values or min(values) <= 0.0 or max(values) / min(values) < MAX_RATIO:
        return False
    middle = sorted(values)[len(values) // 2]
    return (middle - min(values)) / (max(values) - min(values)) <= SKEW


def log_ticks(low: float, high: float, decades: float = 3.0) -> list[float]:
    """Ticks at 1, 2 and 5 in every decade, or only at powers of ten from so many decades on."""
    steps = (1, 2, 5) if math.log10(high / low) < decades else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in every if low * 0.98 <= tick <= high * 1.02]


def even_ticks(low: float, high: float) -> list[float]:
    """About six round numbers from `low` to `high`."""
    rough = (high - low) / 6 or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log(values: Sequence[float] | Array) -> dict[str, Any]:
    """A log axis with `log_ticks`; on a short one, where there would be few, plotly chooses them."""
    low, high = (min(values), max(values)) if len(values) else (1.0, 1.0)
    if math.log10(high / low) < 0.8:
        return {"type": "log", "exponentformat": "none"}
    ticks = log_ticks(low / 1.3, high * 1.3, decades=4.0 + 2 * math.log10(1.3))
    return {"type": "log", "tickvals": ticks, "tickformat": "~g"}


def bars(
    names: Sequence[str | int],
    values: Array,
    what: str,
    of: str,
    mark: tuple[str, float] | None = None,
) -> Any:
    """A bar for each name or number, with a marked level."""
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
    """A line for each of `errors`, by name, over the widths of a code, on log axes."""
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
    """A heatmap of the correlations (K, K) of the bits `numbers`, blue to red."""
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
    """Mean cosine distance of rows by the Hamming distance of their hashes."""
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
