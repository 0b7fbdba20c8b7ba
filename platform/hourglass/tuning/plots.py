"""A sweep as one HTML page: the swept values, training time, epochs, and the width of the code."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from plotly import graph_objects as go

from hourglass import storage
from hourglass.report.charts import (
    BLUE,
    MAX_RATIO,
    MOST_TICKS,
    PALETTE,
    RED,
    even_ticks,
    figure,
    is_log,
    log_ticks,
    text,
)
from hourglass.report.page import Section, note, render, table
from hourglass.tuning.leaderboard import Entry, Leaderboard, format_value

PAGE = "plots.html"
LOWEST_FIRST = "Viridis"
GREY = "#9aa4ae"
SHOWN = 20
"""Trials in the table; the leaderboard has all of them."""
MAX_NAMES, MAX_CHARS = 12, 28
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

History = Sequence[Mapping[str, float]]


def save(
    folder: str,
    board: Leaderboard,
    widths: Mapping[str, int],
    histories: Mapping[str, History] | None = None,
) -> str:
    """Write the page into the sweep's folder; returns its URI."""
    content = page(board, widths, histories).encode()
    uri = storage.join(folder, PAGE)
    storage.write(uri, content)
    return uri


def page(
    board: Leaderboard,
    widths: Mapping[str, int],
    histories: Mapping[str, History] | None = None,
) -> str:
    """The page, from the code width and the records of the epochs of each trial."""
    sections = [
        _leaders(board),
        _swept(board),
        _time(board),
        _curves(board, histories or {}),
        _widths(board, widths),
    ]
    return render(f"Sweep {board.sweep}", [section for section in sections if section is not None])


def _leaders(board: Leaderboard) -> Section:
    """How the trials ended, and a table of the best."""
    ends = Counter(entry.status for entry in board.entries)
    count = len(board.entries)
    summary = (
        f"{'1 trial' if count == 1 else f'{count} trials'}: "
        f"{', '.join(f'{number} {status}' for status, number in ends.items())}. "
        f"Ranked by {board.metric}, {board.best_is} first."
    )
    first = [entry for entry in board.entries if entry.rank is not None][:SHOWN]
    if not first:
        finished = f"No trial has a {board.metric}" if ends["finished"] else "No trial finished"
        return Section("Trials", summary, (note(f"{finished}, so nothing is ranked."),))
    names = board.names
    head = ("rank", *names.values(), board.metric, "PCA's MSE", "seconds", "trial")
    lines = [
        (
            entry.rank,
            *(format_value(entry.values[path]) if path in entry.values else "" for path in names),
            *(_number(value) for value in (_metric(board, entry), entry.pca_mse, entry.seconds)),
            entry.trial,
        )
        for entry in first
    ]
    return Section("Trials", summary, (table(head, lines),))


def _swept(board: Leaderboard) -> Section | None:
    """Parallel coordinates: a line per finished trial through its values to its metric."""
    drawn = [e for e in board.entries if e.status == "finished" and _metric(board, e) is not None]
    paths = [path for path in board.paths if any(path in entry.values for entry in drawn)]
    if not paths:
        return None
    metric = [float(_metric(board, entry) or 0.0) for entry in drawn]
    names = board.names
    axes = [axis(names[path], [entry.values.get(path) for entry in drawn]) for path in paths]
    axes.append(axis(board.metric, metric))
    colour, ticks = metric, dict[str, Any]()
    if is_log(metric):
        colour, at = [*map(math.log10, metric)], log_ticks(min(metric), max(metric))
        ticks = {"tickvals": [*map(math.log10, at)], "ticktext": [f"{tick:g}" for tick in at]}
    made = figure(470)
    first = max((len(name) for name in axes[0]["ticktext"]), default=0)
    made.update_layout(margin={"l": 40 + 7 * first, "r": 60, "t": 70, "b": 30})
    made.add_trace(
        go.Parcoords(
            dimensions=axes,
            line={
                "color": colour,
                "colorscale": LOWEST_FIRST,
                "reversescale": board.mode == "max",
                "showscale": True,
                "colorbar": {"title": {"text": text(board.metric)}, "thickness": 12, **ticks},
            },
            labelfont={"size": 13},
            tickfont={"size": 12},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the axes have ticks of their own
        )
    )
    caption = (
        "Each line is a trial: it runs through the trial's values to its metric; dark lines are the "
        f"{board.best_is}. Drag along an axis to select lines, drag a name to move its axis."
    )
    if left := len(board.entries) - len(drawn):
        caption += f" {left} trials that did not finish are not shown."
    return Section("Values and metric", caption, (made,))


def _time(board: Leaderboard) -> Section | None:
    """The metric of each trial over its training time, and the best up to each time."""
    known = [e for e in board.entries if e.seconds is not None and _metric(board, e) is not None]
    if not known:
        return None
    made = figure(400)
    for status, colour, symbol in (("finished", BLUE, "circle"), ("stopped", GREY, "x")):
        some = [entry for entry in known if entry.status == status]
        if some:
            made.add_scatter(
                x=[entry.seconds for entry in some],
                y=[_metric(board, entry) for entry in some],
                mode="markers",
                name=f"{status} trials",
                marker={"color": colour, "symbol": symbol, "size": 9, "opacity": 0.75},
                hovertext=_descriptions(board, some),
                hovertemplate="%{hovertext}<extra></extra>",
            )
    finished = [entry for entry in known if entry.status == "finished"]
    made.add_scatter(
        **_running_best(board, finished), mode="lines", name="best so far", hoverinfo="skip",
        line={"color": RED, "width": 2, "shape": "hv"},
    )  # fmt: skip
    made.update_xaxes(title="seconds of training", rangemode="tozero")
    set_scale(made.update_xaxes, [float(e.seconds or 0.0) for e in known], "seconds of training")
    set_scale(made.update_yaxes, [float(_metric(board, e) or 0.0) for e in known], board.metric)
    caption = (
        f"Each point is a trial. The line is the {board.best_is} {board.metric} of all trials that took "
        "no longer. The seconds are the training time of the session in which a trial ended."
    )
    return Section("Metric and time", caption, (made,))


def _running_best(board: Leaderboard, finished: Sequence[Entry]) -> dict[str, list[float]]:
    """The best metric among the trials up to each number of seconds."""
    points = sorted((float(e.seconds or 0.0), float(_metric(board, e) or 0.0)) for e in finished)
    best = accumulate((value for _, value in points), min if board.mode == "min" else max)
    return {"x": [seconds for seconds, _ in points], "y": [*best]}


def _curves(board: Leaderboard, histories: Mapping[str, History]) -> Section | None:
    """The metric of each trial over its epochs, the best in colour."""
    curves = []
    for entry in board.entries:
        records = (
            [r for r in histories.get(entry.trial, ()) if "member" not in r] if entry.trial else []
        )
        points = [(r["epoch"], r[board.metric]) for r in records if {"epoch", board.metric} <= {*r}]
        if points:
            curves.append((entry, points))
    if not curves:
        return None
    made = figure(400)
    best = [entry.trial for entry, _ in curves if entry.rank is not None][: len(PALETTE) // 2]
    descriptions = _descriptions(board, [entry for entry, _ in curves])
    # The best are drawn last, above the others.
    for (entry, points), description in reversed([*zip(curves, descriptions, strict=True)]):
        chosen = entry.trial in best
        made.add_scatter(
            x=[epoch for epoch, _ in points],
            y=[value for _, value in points],
            mode="lines" if len(points) > 1 else "markers",
            name=f"{entry.rank}: {text(entry.trial)}" if chosen else "",
            showlegend=chosen,
            line={
                "color": PALETTE[best.index(entry.trial)] if chosen else GREY,
                "width": 2 if chosen else 1,
                "dash": "dot" if entry.status == "stopped" else "solid",
            },
            opacity=1.0 if chosen else 0.6,
            hovertext=description,
            hovertemplate="epoch %{x}: %{y:.4g}<br>%{hovertext}<extra></extra>",
        )
    made.update_layout(legend={"traceorder": "reversed"})
    made.update_xaxes(title="epoch")
    set_scale(
        made.update_yaxes, [value for _, points in curves for _, value in points], board.metric
    )
    caption = (
        f"The {board.metric} of each trial over its epochs: the {len(best)} best trials in colour, trials "
        "that a scheduler stopped as dotted lines."
    )
    return Section("Metric and epochs", caption, (made,))


def _widths(board: Leaderboard, widths: Mapping[str, int]) -> Section | None:
    """The error over the width of the code, beside that of PCA with as many components."""
    known = [
        (widths[entry.trial], entry)
        for entry in board.entries
        if entry.trial in widths and entry.status == "finished" and entry.holdout_mse is not None
    ]
    if not known:
        return None
    made = figure(420)
    made.add_scatter(
        x=[width for width, _ in known],
        y=[entry.holdout_mse for _, entry in known],
        mode="markers",
        name="trials",
        marker={"color": BLUE, "size": 9, "opacity": 0.55},
        hovertext=_descriptions(board, [entry for _, entry in known]),
        hovertemplate="%{x} units: MSE %{y:.4g}<br>%{hovertext}<extra></extra>",
    )
    ours = _lowest([(width, float(entry.holdout_mse or 0.0)) for width, entry in known])
    pca = _lowest([(width, e.pca_mse) for width, e in known if e.pca_mse is not None])
    for name, errors, colour, dash in (
        ("best trial of a width", ours, PALETTE[0], "solid"),
        ("PCA", pca, PALETTE[1], "dash"),
    ):
        if errors:
            made.add_scatter(
                x=list(errors), y=list(errors.values()), name=name, mode="lines+markers",
                line={"color": colour, "width": 2, "dash": dash}, marker={"size": 6},
                hovertemplate=f"%{{x}} units: {name} %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
    set_scale(made.update_xaxes, [float(width) for width in ours], "units of the code", always=True)
    if len(ours) <= MOST_TICKS:
        made.update_xaxes(tickvals=[*ours], ticktext=[str(width) for width in ours])
    drawn = [float(entry.holdout_mse or 0.0) for _, entry in known] + list(pca.values())
    set_scale(made.update_yaxes, drawn, "MSE of held-out rows")
    wins = [str(width) for width in ours if width in pca and ours[width] <= pca[width]]
    if not pca:
        result = "Every code is as wide as a row, so PCA is no baseline here."
    elif len(wins) == len(pca):
        result = "The best trial beats PCA at every width."
    elif wins:
        result = f"The best trial beats PCA at {', '.join(wins)} units, but not at the others."
    else:
        result = "PCA beats the trials at every width: a linear map would do better."
    caption = (
        "The error of the held-out rows in model space over the units of the code, beside that of as many "
        f"principal components. {result}"
    )
    return Section("Width and error", caption, (made,))


def _lowest(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    """The lowest error of each width, in order of width."""
    widths = sorted({width for width, _ in points})
    return {width: min(error for other, error in points if other == width) for width in widths}


# -- axes -------------------------------------------------------------------------------------


def axis(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis of parallel coordinates: numeric for numbers, else one position per distinct value.

    Values that a condition left out have a position of their own, below the others.
    """
    given = [value for value in values if value is not None]
    if given and all(isinstance(v, int | float) and not isinstance(v, bool) for v in given):
        return _numeric(name, [None if value is None else float(value) for value in values])
    order = sorted({format_value(value) for value in given}, key=_natural)
    names = ["not set", *order] if len(given) < len(values) else order
    shown = list(range(0, len(names), -(-len(names) // MAX_NAMES)))
    return {
        "label": text(name),
        "values": [names.index("not set" if v is None else format_value(v)) for v in values],
        "range": [-0.15, max(len(names) - 0.85, 0.15)],
        "tickvals": shown,
        "ticktext": [text(shortened(names[position])) for position in shown],
    }


def _numeric(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """An axis of numbers, logarithmic where `is_log`."""
    given = [value for value in values if value is not None]
    log = is_log(given)
    scaled = [None if v is None else math.log10(v) if log else v for v in values]
    low = min(v for v in scaled if v is not None)
    high = max(v for v in scaled if v is not None)
    if len(set(given)) <= MAX_NAMES // 2:
        ticks = sorted(set(given))
    else:
        ticks = log_ticks(min(given), max(given)) if log else even_ticks(low, high)
    at = [math.log10(tick) if log else tick for tick in ticks]
    labels = [f"{tick:.4g}" for tick in ticks]
    span = (high - low) or 1.0
    bottom = low - 0.02 * span
    if len(given) < len(values):
        below = low - 0.12 * span
        scaled = [below if value is None else value for value in scaled]
        at, labels, bottom = [below, *at], ["not set", *labels], below - 0.02 * span
    return {
        "label": text(name) + (", log" if log else ""),
        "values": scaled,
        "range": [bottom, high + 0.02 * span],
        "tickvals": at,
        "ticktext": labels,
    }


def set_scale(update: Any, values: Sequence[float], title: str, always: bool = False) -> None:
    """A log axis with readable ticks for values over a wide range; else a linear one."""
    if min(values) > 0 and (always or max(values) / min(values) >= MAX_RATIO / 2):
        ticks = log_ticks(min(values) / 1.3, max(values) * 1.3)
        labels = [f"{tick:g}" for tick in ticks]
        update(type="log", title=f"{text(title)}, log axis", tickvals=ticks, ticktext=labels)
    else:
        update(title=text(title), exponentformat="none")


# -- text -------------------------------------------------------------------------------------


def _metric(board: Leaderboard, entry: Entry) -> float | None:
    """The metric that ranks the sweep, if the trial has a finite one."""
    value: float | None = getattr(entry, board.metric)
    return value if value is not None and math.isfinite(value) else None


def _descriptions(board: Leaderboard, entries: Sequence[Entry]) -> list[str]:
    """Each trial in a few lines, for plotly."""
    names, made = board.names, []
    for entry in entries:
        lines = [f"{board.metric} {_number(_metric(board, entry))}, trial {entry.trial}"]
        lines += [f"{names[path]}: {format_value(value)}" for path, value in entry.values.items()]
        made.append("<br>".join(text(shortened(line, 80)) for line in lines))
    return made


def _natural(name: str) -> tuple[int, list[float], str]:
    """A key that sorts lists by their numbers, so that [64] comes before [128], then other names."""
    numbers = [float(number) for number in NUMBER.findall(name)]
    return (0, numbers, name) if name.startswith("[") else (1, [], name)


def shortened(line: str, limit: int = MAX_CHARS) -> str:
    """A line with at most `limit` characters."""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
