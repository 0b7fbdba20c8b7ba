"""A sweep as one HTML page: what was swept, what it took, and what a wider code buys."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from hourglass import storage
from hourglass.report.charts import BLUE, MOST_TICKS, PALETTE, RED, figure, text
from hourglass.report.page import Section, note, render, table
from hourglass.tuning.axes import axis, cut, in_words, is_log, log_ticks, set_scale, short
from hourglass.tuning.leaderboard import Entry, Leaderboard

PAGE = "plots.html"
LOWEST_FIRST = "Viridis"
GREY = "#9aa4ae"
SHOWN = 20
"""Trials in the table; the leaderboard has all of them."""

History = Sequence[Mapping[str, float]]


def save(
    folder: str,
    board: Leaderboard,
    widths: Mapping[str, int],
    histories: Mapping[str, History] | None = None,
) -> str:
    """Write the page into the sweep's folder; its URI."""
    uri = storage.join(folder, PAGE)
    storage.write(uri, page(board, widths, histories).encode())
    return uri


def page(
    board: Leaderboard,
    widths: Mapping[str, int],
    histories: Mapping[str, History] | None = None,
) -> str:
    """The page; `widths` are the units of each trial's code, `histories` the records of its epochs."""
    every = [
        _leaders(board),
        _swept(board),
        _time(board),
        _curves(board, histories or {}),
        _widths(board, widths),
    ]
    return render(f"Sweep {board.sweep}", [section for section in every if section is not None])


def _leaders(board: Leaderboard) -> Section:
    """What came of the trials, and the first of them."""
    ends = {entry.status: 0 for entry in board.entries}
    for entry in board.entries:
        ends[entry.status] += 1
    said = ", ".join(f"{count} {status}" for status, count in ends.items())
    count = len(board.entries)
    trials = "1 trial" if count == 1 else f"{count} trials"
    order = "lowest" if board.mode == "min" else "highest"
    sentence = f"{trials}: {said}. Ranked by {board.metric}, {order} first."
    first = [entry for entry in board.entries if entry.rank is not None][:SHOWN]
    if not first:
        return Section("Trials", sentence, (note(_why_none(board)),))
    names = short(board.paths)
    head = ("rank", *names.values(), board.metric, "PCA's MSE", "seconds", "trial")
    lines = [
        (
            entry.rank,
            *(in_words(entry.values[path]) if path in entry.values else "" for path in names),
            *(_figure(number) for number in (_metric(board, entry), entry.pca_mse, entry.seconds)),
            entry.trial,
        )
        for entry in first
    ]
    return Section("Trials", sentence, (table(head, lines),))


# -- parallel coordinates ---------------------------------------------------------------------


def _swept(board: Leaderboard) -> Section | None:
    """One line for each finished trial through the values that make it, to its metric."""
    drawn = [entry for entry in board.entries if _is_drawn(board, entry)]
    paths = [path for path in board.paths if any(path in entry.values for entry in drawn)]
    if not paths:
        return None
    metric = [float(_metric(board, entry) or 0.0) for entry in drawn]
    names = short(paths)
    axes = [axis(names[path], [entry.values.get(path) for entry in drawn]) for path in names]
    axes.append(axis(board.metric, metric))
    colour, ticks = metric, {}
    if is_log(metric):
        colour = [math.log10(value) for value in metric]
        ticks = log_ticks(min(metric), max(metric))
    made = figure(470)
    first = max((len(word) for word in axes[0]["ticktext"]), default=0)
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
    left = len(board.entries) - len(drawn)
    sentence = (
        "Each line is a trial: it goes through the values that make it to its metric; dark lines "
        f"are the {'lowest' if board.mode == 'min' else 'highest'}. Drag along an axis to see some of "
        "them only, drag a name to move its axis."
    )
    if left:
        sentence += f" Left out: {left} that did not finish."
    return Section("Values and metric", sentence, (made,))


# -- metric against time ----------------------------------------------------------------------


def _time(board: Leaderboard) -> Section | None:
    """What each trial's seconds of training brought, and the best of those that took no longer."""
    known = [e for e in board.entries if e.seconds is not None and _metric(board, e) is not None]
    if not known:
        return None
    made = figure(400)
    kinds = {"finished": (BLUE, "circle"), "stopped": (GREY, "x")}
    for status, (colour, symbol) in kinds.items():
        some = [entry for entry in known if entry.status == status]
        if some:
            made.add_scatter(
                x=[entry.seconds for entry in some],
                y=[_metric(board, entry) for entry in some],
                mode="markers",
                name=f"{status} trials",
                marker={"color": colour, "symbol": symbol, "size": 9, "opacity": 0.75},
                hovertext=[_story(board, entry) for entry in some],
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
    better = "lowest" if board.mode == "min" else "highest"
    sentence = (
        f"Each point is a trial. The line is the {better} {board.metric} of the trials that took no "
        "longer: how much training buys how much. Seconds are those of the sitting that ended the "
        "trial."
    )
    return Section("Metric and time", sentence, (made,))


def _running_best(board: Leaderboard, finished: Sequence[Entry]) -> dict[str, list[float]]:
    """The best metric among the trials of at most so many seconds; on to the longest."""
    x: list[float] = []
    y: list[float] = []
    choose = min if board.mode == "min" else max
    for entry in sorted(finished, key=lambda entry: float(entry.seconds or 0.0)):
        value = float(_metric(board, entry) or 0.0)
        x.append(float(entry.seconds or 0.0))
        y.append(choose([value, *y[-1:]]))
    return {"x": x, "y": y}


def _curves(board: Leaderboard, histories: Mapping[str, History]) -> Section | None:
    """The metric of each trial over its epochs, the best in colour."""
    told = [
        (entry, [(r["epoch"], r[board.metric]) for r in histories.get(entry.trial, ())
                 if "epoch" in r and "member" not in r and board.metric in r])
        for entry in board.entries if entry.trial
    ]  # fmt: skip
    told = [(entry, points) for entry, points in told if points]
    if not told:
        return None
    made = figure(400)
    best = [entry.trial for entry, _ in told if entry.rank is not None][: len(PALETTE) // 2]
    for entry, points in reversed(told):  # the best are drawn last, above the others
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
            hovertext=_story(board, entry),
            hovertemplate="epoch %{x}: %{y:.4g}<br>%{hovertext}<extra></extra>",
        )
    made.update_layout(legend={"traceorder": "reversed"})
    made.update_xaxes(title="epoch")
    drawn = [value for _, points in told for _, value in points]
    set_scale(made.update_yaxes, drawn, board.metric)
    sentence = (
        f"The {board.metric} of each trial over its epochs; in colour the first {len(best)} of the "
        "leaderboard, dotted those that a scheduler stopped."
    )
    return Section("Metric and epochs", sentence, (made,))


# -- width and error --------------------------------------------------------------------------


def _widths(board: Leaderboard, widths: Mapping[str, int]) -> Section | None:
    """What a wider code buys, beside what it buys PCA."""
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
        hovertext=[_story(board, entry) for _, entry in known],
        hovertemplate="%{x} units: MSE %{y:.4g}<br>%{hovertext}<extra></extra>",
    )
    ours = _lowest([(width, float(entry.holdout_mse or 0.0)) for width, entry in known])
    pca = _lowest([(width, e.pca_mse) for width, e in known if e.pca_mse is not None])
    _line(made, "best trial of a width", ours, PALETTE[0])
    _line(made, "PCA", pca, PALETTE[1], dash="dash")
    every = sorted(ours)
    set_scale(
        made.update_xaxes, [float(width) for width in every], "units of the code", always=True
    )
    if len(every) <= MOST_TICKS:
        made.update_xaxes(tickvals=every, ticktext=[str(width) for width in every])
    drawn = [float(entry.holdout_mse or 0.0) for _, entry in known] + list(pca.values())
    set_scale(made.update_yaxes, drawn, "MSE of held-out rows")
    wins = [str(width) for width in every if width in pca and ours[width] <= pca[width]]
    sentence = (
        "The error of the held-out rows in model space over the units of the code, and that of as "
        "many principal components. "
    )
    if not pca:
        sentence += "No code is narrower than a row, so PCA proves nothing here."
    elif len(wins) == len(pca):
        sentence += "The best trial beats PCA at every width."
    elif wins:
        sentence += f"The best trial beats PCA at {', '.join(wins)} units, and not at the others."
    else:
        sentence += "PCA beats the trials at every width: a linear map would serve better."
    return Section("Width and error", sentence, (made,))


def _lowest(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    """The lowest error of each width, in order of width."""
    found: dict[int, float] = {}
    for width, error in sorted(points):
        found[width] = min(error, found.get(width, math.inf))
    return found


def _line(
    made: Any, name: str, points: Mapping[int, float], colour: str, dash: str = "solid"
) -> None:
    if points:
        made.add_scatter(
            x=list(points), y=list(points.values()), name=name, mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash}, marker={"size": 6},
            hovertemplate=f"%{{x}} units: {name} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip


# -- words and numbers ------------------------------------------------------------------------


def _metric(board: Leaderboard, entry: Entry) -> float | None:
    """The metric that the sweep ranks by, where the trial has a finite one."""
    value: float | None = getattr(entry, board.metric)
    return value if value is not None and math.isfinite(value) else None


def _is_drawn(board: Leaderboard, entry: Entry) -> bool:
    return entry.status == "finished" and _metric(board, entry) is not None


def _story(board: Leaderboard, entry: Entry) -> str:
    """A trial in a few lines, as plotly shows them."""
    names = short(board.paths)
    lines = [f"{board.metric} {_figure(_metric(board, entry))}, trial {entry.trial}"]
    lines += [f"{names[path]}: {in_words(value)}" for path, value in entry.values.items()]
    return "<br>".join(text(cut(line, 80)) for line in lines)


def _why_none(board: Leaderboard) -> str:
    if any(entry.status == "finished" for entry in board.entries):
        return f"No trial has a {board.metric}, so nothing is ranked."
    return "No trial finished, so nothing is ranked."


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
