"""Axes of a sweep's plots: linear, logarithmic, or one place for each value; and their words."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hourglass.report.charts import text


def in_words(value: Any) -> str:
    """A value in few signs: a mapping as its kind with what else it says; figures to four digits."""
    if isinstance(value, dict):
        kind = value.get("kind")
        rest = ", ".join(f"{key} {in_words(item)}" for key, item in value.items() if key != "kind")
        return " ".join(part for part in (str(kind) if kind else "", rest) if part)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(in_words(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def short(paths: Sequence[str]) -> dict[str, str]:
    """A name for each path: its last step, two where that says little, all where two are alike."""
    names = {}
    for path in paths:
        *above, last = path.split(".")
        names[path] = ".".join([*above[-1:], last]) if len(last) < 3 else last
    alike = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {path: path if name in alike else name for path, name in names.items()}


def point_in_words(values: Mapping[str, Any]) -> str:
    """The values of one point, as one line."""
    names = short(list(values))
    return ", ".join(f"{names[path]} {in_words(value)}" for path, value in values.items())


RATIO, SKEW = 10.0, 0.3
"""Values over a factor of `RATIO`, half of them in the lowest `SKEW` of their range: a log axis."""
MOST_NAMES, LONGEST = 12, 28
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def axis(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis: of numbers, logarithmic where they are spread so, else one place for each value.

    A value that a condition left out has a place of its own, below the others.
    """
    given = [value for value in values if value is not None]
    if given and all(_is_number(value) for value in given):
        return _numbers(name, [None if value is None else float(value) for value in values])
    order = sorted({in_words(value) for value in given}, key=_natural)
    places = ["not set", *order] if len(given) < len(values) else order
    at = [places.index("not set" if value is None else in_words(value)) for value in values]
    step = -(-len(places) // MOST_NAMES)
    shown = list(range(0, len(places), step))
    return {
        "label": text(name),
        "values": at,
        "range": [-0.15, max(len(places) - 0.85, 0.15)],
        "tickvals": shown,
        "ticktext": [text(cut(places[place])) for place in shown],
    }


def _numbers(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """An axis of numbers."""
    given = [value for value in values if value is not None]
    log = is_log(given)
    scaled = [None if v is None else math.log10(v) if log else v for v in values]
    low = min(v for v in scaled if v is not None)
    high = max(v for v in scaled if v is not None)
    if len(set(given)) <= MOST_NAMES // 2:
        ticks = sorted(set(given))
        at = [math.log10(value) if log else value for value in ticks]
        words = [f"{value:.4g}" for value in ticks]
    elif log:
        made = log_ticks(min(given), max(given))
        at, words = made["tickvals"], made["ticktext"]
    else:
        at = even_ticks(low, high)
        words = [f"{value:.4g}" for value in at]
    span = (high - low) or 1.0
    least = low - 0.02 * span
    if len(given) < len(values):
        below = low - 0.12 * span
        scaled = [below if value is None else value for value in scaled]
        at, words, least = [below, *at], ["not set", *words], below - 0.02 * span
    return {
        "label": text(name) + (", log" if log else ""),
        "values": scaled,
        "range": [least, high + 0.02 * span],
        "tickvals": at,
        "ticktext": words,
    }


def is_log(values: Sequence[float]) -> bool:
    """True when positive values lie as on a log scale: far apart, and most of them low."""
    if not values or min(values) <= 0.0 or max(values) / min(values) < RATIO:
        return False
    middle = sorted(values)[len(values) // 2]
    return (middle - min(values)) / (max(values) - min(values)) <= SKEW


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 in every decade, or at powers of ten alone where those would crowd."""
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [step * 10.0**power for power in powers for step in steps]
    inside = [tick for tick in every if low * 0.98 <= tick <= high * 1.02]
    return {
        "tickvals": [math.log10(tick) for tick in inside],
        "ticktext": [f"{tick:g}" for tick in inside],
    }


def even_ticks(low: float, high: float) -> list[float]:
    """About six round numbers from `low` to `high`."""
    rough = (high - low) / 6 or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def set_scale(update: Any, values: Sequence[float], title: str, always: bool = False) -> None:
    """A log axis for values far apart, with ticks one can read; else a plain one."""
    if min(values) > 0 and (always or max(values) / min(values) >= RATIO / 2):
        ticks = log_ticks(min(values) / 1.3, max(values) * 1.3)
        at = [10.0**value for value in ticks["tickvals"]]
        update(
            type="log", title=f"{text(title)}, log axis", tickvals=at, ticktext=ticks["ticktext"]
        )
    else:
        update(title=text(title), exponentformat="none")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _natural(word: str) -> tuple[int, list[float], str]:
    """Lists by their numbers, so that [64] comes before [128]; words after them."""
    numbers = [float(number) for number in NUMBER.findall(word)]
    return (0, numbers, word) if word.startswith("[") else (1, [], word)


def cut(word: str, most: int = LONGEST) -> str:
    """A word of at most so many letters."""
    return word if len(word) <= most else word[: most - 1] + "…"
