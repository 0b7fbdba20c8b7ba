"""What was swept, in few signs: for a terminal, a log and a plot."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


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
