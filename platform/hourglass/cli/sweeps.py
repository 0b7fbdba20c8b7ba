"""Commands on sweeps: tune, leaderboard."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hourglass.cli.arguments import File, Overrides
from hourglass.errors import SpecError

if TYPE_CHECKING:
    from hourglass.tuning.leaderboard import Entry, Leaderboard

AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON, all else to stderr.")]
WIDTH = 160
"""Columns of the table where there is no terminal to ask."""


def tune(
    file: File,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the trials that the sweep ran before.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Then train the best trial's job on all rows.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train every trial of a sweep and rank them; the same command again goes on, or is done."""
    from hourglass.job_files import load_kind
    from hourglass.tune_job import TuneJob

    sweep = load_kind(TuneJob, file, overrides or ())
    from hourglass import run
    from hourglass.cluster.connect import connection
    from hourglass.settings import Settings

    if refit and sweep.promote_if:
        raise SpecError(
            f"{file}: promote_if judges the best trial on held-out rows, which a refit has learned; use "
            "--refit or promote_if"
        )
    settings = Settings()
    with connection(settings=settings):
        done = run.tune(sweep, settings, fresh, stderr=as_json, register=not refit)
        _show(done.board, as_json)
        for sentence in (*done.said, f"written to {done.folder}"):
            typer.echo(sentence, err=as_json)
        if refit:
            from hourglass.tuning.refit import on_all_rows

            trained = run.train(on_all_rows(sweep, done.board, settings), settings, fresh, as_json)
            typer.echo(f"refit on all rows: {trained.outcome.uri}", err=as_json)
            if trained.record is not None:
                typer.echo(trained.record.note, err=as_json)
    if done.board.best is None:
        raise typer.Exit(1)


def leaderboard(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sweep's name.")],
    as_json: AsJson = False,
) -> None:
    """Show the trials of a sweep that ran before, best first."""
    from hourglass.settings import Settings
    from hourglass.tuning.leaderboard import named

    _show(named(name, Settings()), as_json)


def _show(board: "Leaderboard", as_json: bool) -> None:
    """Print a leaderboard."""
    if as_json:
        typer.echo(board.to_json())
        return
    from rich.table import Table

    from hourglass.progress import console
    from hourglass.tuning.leaderboard import METRICS

    figures = [name for name in METRICS if any(getattr(e, name) is not None for e in board.entries)]
    best = "lowest" if board.mode == "min" else "highest"
    running = "" if board.ended else ", not ended"
    table = Table(title=f"{board.sweep}, by {board.metric}, {best} first{running}")
    last = ("PCA's mse", "parameters", "epochs", "s", "trial", "run")
    for heading in ("", *_headings(board.paths), *figures, *last):
        table.add_column(heading, overflow="fold")
    for entry in board.entries:
        if entry.status != "failed":
            table.add_row(*_cells(entry, board.paths, figures))
    screen = console()
    if not screen.is_terminal:
        screen.width = WIDTH
    screen.print(table)
    for entry in board.entries:
        if entry.status == "failed":
            swept = ", ".join(f"{path} {_text(value)}" for path, value in entry.values.items())
            screen.print(f"failed: {swept}: {entry.reason}", markup=False)


def _headings(paths: list[str]) -> list[str]:
    """The last step of each path, or all of it where two paths end alike."""
    last = [path.rpartition(".")[2] for path in paths]
    return [path if last.count(step) > 1 else step for path, step in zip(paths, last, strict=True)]


def _cells(entry: "Entry", paths: list[str], figures: list[str]) -> list[str]:
    """One row of the table."""
    pca = _text(entry.pca_mse) + (" better" if entry.worse_than_pca else "")
    return [
        "stopped" if entry.rank is None else str(entry.rank),
        *(_text(entry.values[path]) if path in entry.values else "" for path in paths),
        *(_text(getattr(entry, figure)) for figure in figures),
        pca,
        "" if entry.parameters is None else f"{entry.parameters:,}",
        str(entry.epochs or ""),
        "" if entry.seconds is None else f"{entry.seconds:.1f}",
        entry.trial,
        (entry.run_id or "")[:8],
    ]


def _text(value: Any) -> str:
    """A value as it would stand in a file; figures to four digits."""
    import yaml

    if isinstance(value, float):
        return f"{value:.4g}"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return "-" if value is None else text.removesuffix("\n").removesuffix("\n...")
