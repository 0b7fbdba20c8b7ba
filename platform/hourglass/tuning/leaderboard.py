"""The leaderboard: the trials of a sweep in order of their metric, as JSON, CSV and Parquet."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import NonNegativeFloat, PositiveInt, ValidationError, computed_field

from hourglass import storage
from hourglass.config.search import Metric, Mode
from hourglass.errors import DataError, nearest
from hourglass.settings import Settings
from hourglass.strict import Strict

NAME = "leaderboard"
JSON = f"{NAME}.json"
METRICS = get_args(Metric)
INTEGERS = ("parameters", "epochs")
NUMBERS = (*METRICS, "pca_mse", "parameters", "seconds", "epochs")


class Entry(Strict):
    """One trial: its swept values, by path, and its result; a failed trial has a reason instead.

    A trial that a scheduler stopped has the metrics of its last epoch. `epochs` are those that count,
    `seconds` the training time of the session in which it ended. `pca_mse` is the error of PCA with as
    many components as the code has units, on the same held-out rows in model space; None where the code
    is as wide as the rows, or no rows are held out.
    """

    rank: PositiveInt | None = None
    trial: str
    status: Literal["finished", "stopped", "failed"]
    reason: str = ""
    values: dict[str, Any]
    holdout_mse: float | None = None
    holdout_fvu: float | None = None
    train_mse: float | None = None
    rank_agreement: float | None = None
    pca_mse: float | None = None
    parameters: PositiveInt | None = None
    seconds: NonNegativeFloat | None = None
    epochs: PositiveInt | None = None
    run_id: str | None = None

    def having(self, **fields: Any) -> "Entry":
        """A copy with these fields."""
        return Entry.model_validate({**dict(self), **fields})

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worse_than_pca(self) -> bool:
        """True when a linear map with as many units reconstructs the held-out rows better."""
        known = self.holdout_mse is not None and self.pca_mse is not None
        return known and self.holdout_mse > self.pca_mse  # type: ignore[operator]


class Leaderboard(Strict):
    """The trials of a sweep: finished ones, best first; stopped ones, longest first; failed ones.

    `ended` is false while the sweep runs, and stays false when it is killed.
    """

    sweep: str
    metric: Metric
    mode: Mode = "min"
    entries: tuple[Entry, ...]
    ended: bool = True

    @property
    def best(self) -> Entry | None:
        """The first of the finished trials."""
        return next((entry for entry in self.entries if entry.rank == 1), None)

    @property
    def best_is(self) -> Literal["lowest", "highest"]:
        """Which end of the metric is best."""
        return "lowest" if self.mode == "min" else "highest"

    @property
    def paths(self) -> list[str]:
        """The swept paths in the order of the space: first those of the entry that has most."""
        every = sorted(self.entries, key=lambda entry: -len(entry.values))
        return list(dict.fromkeys(path for entry in every for path in entry.values))

    @property
    def names(self) -> dict[str, str]:
        """A short name for each swept path."""
        return short_names(self.paths)

    def table(self) -> pa.Table:
        """One row per trial; lists, mappings and mixed values as JSON text."""
        columns = {
            "rank": pa.array([entry.rank for entry in self.entries], pa.int64()),
            "trial": pa.array([entry.trial for entry in self.entries]),
            "status": pa.array([entry.status for entry in self.entries]),
        }
        for path in self.paths:
            columns[path] = _column([entry.values.get(path) for entry in self.entries])
        for name in NUMBERS:
            kind = pa.int64() if name in INTEGERS else pa.float64()
            columns[name] = pa.array([getattr(entry, name) for entry in self.entries], kind)
        columns["worse_than_pca"] = pa.array([entry.worse_than_pca for entry in self.entries])
        columns["run_id"] = pa.array([entry.run_id for entry in self.entries], pa.string())
        columns["reason"] = pa.array([entry.reason for entry in self.entries])
        return pa.table(columns)

    def to_json(self) -> str:
        """The whole leaderboard as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=1)

    def save(self, folder: str) -> None:
        """Write it into the sweep's folder; `load` reads the JSON file."""
        table = self.table()
        for suffix, write in WRITERS.items():
            content = io.BytesIO()
            write(table, content)
            storage.write(storage.join(folder, f"{NAME}.{suffix}"), content.getvalue())
        storage.write(storage.join(folder, JSON), self.to_json().encode())


WRITERS: dict[str, Callable[[pa.Table, Any], None]] = {
    "csv": pa_csv.write_csv,
    "parquet": pq.write_table,
}


def ranked(
    sweep: str, metric: Metric, entries: Sequence[Entry], mode: Mode = "min", ended: bool = True
) -> Leaderboard:
    """The entries by their metric, best first; ties keep the given order."""
    sign = 1.0 if mode == "min" else -1.0

    def error(entry: Entry) -> float:
        value: float | None = getattr(entry, metric)
        return math.inf if value is None else sign * value

    finished = sorted((entry for entry in entries if entry.status == "finished"), key=error)
    stopped = [entry for entry in entries if entry.status == "stopped"]
    stopped.sort(key=lambda entry: (-(entry.epochs or 0), error(entry)))
    failed = [entry for entry in entries if entry.status == "failed"]
    first = [
        entry.having(rank=None if getattr(entry, metric) is None else rank)
        for rank, entry in enumerate(finished, start=1)
    ]
    every = (*first, *stopped, *failed)
    return Leaderboard(sweep=sweep, metric=metric, mode=mode, entries=every, ended=ended)


def load(folder: str) -> Leaderboard | None:
    """The leaderboard in a sweep's folder; None where there is none. Raises DataError."""
    path = storage.join(folder, JSON)
    try:
        tree = json.loads(storage.read(path))
        for entry in tree["entries"]:
            del entry["worse_than_pca"]
        return Leaderboard.model_validate(tree)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, ValidationError):
        raise DataError(
            f"{path}: not a leaderboard; the sweep's command writes a new one"
        ) from None


def named(name: str, settings: Settings) -> Leaderboard:
    """The leaderboard of the sweep `name`. Raises DataError that lists the existing sweeps."""
    found = load(storage.join(settings.runs_uri, name))
    if found is None:
        names = storage.names(settings.runs_uri)
        sweeps = [n for n in names if storage.exists(storage.join(settings.runs_uri, n, JSON))]
        known = f" Existing sweeps: {', '.join(sweeps)}" if sweeps else " There are none yet"
        raise DataError(f"no sweep '{name}' in {settings.runs_uri}{nearest(name, sweeps)}{known}")
    return found


def _column(values: list[Any]) -> pa.Array:
    """Numbers, strings or booleans when all values are of one type, else JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or kinds in ({str}, {bool}):
        return pa.array(values)
    texts = [None if value is None else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.string())


def format_value(value: Any) -> str:
    """A value in a few characters: a mapping by its kind and the rest, numbers to four digits."""
    if isinstance(value, dict):
        kind = value.get("kind")
        rest = ", ".join(f"{k} {format_value(item)}" for k, item in value.items() if k != "kind")
        return " ".join(part for part in (str(kind) if kind else "", rest) if part)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def format_values(values: Mapping[str, Any]) -> str:
    """The values of one point on one line."""
    names = short_names(list(values))
    return ", ".join(f"{names[path]} {format_value(value)}" for path, value in values.items())


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """A name for each path: its last step; the last two if that is short; the path if ambiguous."""
    names = {}
    for path in paths:
        *above, last = path.split(".")
        names[path] = ".".join([*above[-1:], last]) if len(last) < 3 else last
    taken = list(names.values())
    return {path: path if taken.count(name) > 1 else name for path, name in names.items()}
