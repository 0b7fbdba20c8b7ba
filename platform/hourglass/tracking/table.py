"""Registered models as tables for a terminal."""

import sys
import time

from rich.console import Console
from rich.table import Table

from hourglass.tracking.backend import CHAMPION, Version

WIDTH = 160
"""Columns where the output is not a terminal, so that a pipe gets whole names."""


def models(known: dict[str, list[Version]]) -> None:
    """Print one line per model; digest and metric are the champion's, else the newest's."""
    table = _table("name", "versions", "aliases", "digest", "metric")
    for name, versions in known.items():
        aliases = [f"{alias} {v.version}" for v in versions for alias in v.aliases]
        shown = next(
            (v for v in versions if CHAMPION in v.aliases), versions[0] if versions else None
        )
        digest = _digest(shown) if shown else ""
        metric = headline(shown.metrics) if shown else ""
        table.add_row(name, _span(versions), ", ".join(sorted(aliases)), digest, metric)
    _console().print(table)


def versions(known: list[Version]) -> None:
    """Print one line per version of a model."""
    table = _table("version", "aliases", "digest", "metric", "made", "run")
    for v in known:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(v.created_ms / 1000))
        metric = headline(v.metrics)
        table.add_row(v.version, ", ".join(v.aliases), _digest(v), metric, made, v.run_id or "")
    _console().print(table)


def version(one: Version) -> None:
    """Print everything about one version."""
    table = Table.grid(padding=(0, 2))
    table.add_row("name", one.name)
    table.add_row("version", one.version)
    table.add_row("aliases", ", ".join(one.aliases))
    table.add_row("digest", one.digest or "none: not registered by hourglass")
    table.add_row("run", one.run_id or "")
    for name, value in sorted(one.metrics.items()):
        table.add_row(name, f"{value:.6g}")
    _console().print(table)


def headline(metrics: dict[str, float]) -> str:
    """The one metric to show: `name value`, of the holdout rows if there is one."""
    names = sorted(metrics, key=lambda name: (not name.startswith("holdout"), "mse" not in name))
    return f"{names[0]} {metrics[names[0]]:.4g}" if names else ""


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def _digest(v: Version) -> str:
    return v.digest[:12] if v.digest else ""


def _span(versions: list[Version]) -> str:
    numbers = [v.version for v in versions]
    return (
        numbers[0]
        if len(numbers) == 1
        else f"{len(numbers)} (newest {numbers[0]})"
        if numbers
        else "0"
    )
