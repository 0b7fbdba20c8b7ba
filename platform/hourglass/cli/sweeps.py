"""Commands on sweeps: tune, leaderboard."""

from typing import TYPE_CHECKING, Annotated

import typer

from hourglass.cli.arguments import File, Overrides, connected
from hourglass.errors import SpecError

if TYPE_CHECKING:
    from rich.table import Table

    from hourglass.tuning.leaderboard import Leaderboard

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; everything else to stderr.")]
WIDTH = 160
"""Characters per line where there is no terminal to ask."""
OPTIONAL = ("epochs", "train_mse", "trial", "parameters", "run", "holdout_fvu")
"""Columns that a narrow terminal leaves out, in this order; --json and the files have all of them."""


def tune(
    file: File,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train all trials again, also the finished ones.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Then train the best trial's job on all rows.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train and rank the trials of a sweep. Run the same command again to resume it."""
    from hourglass.config.files import load_kind
    from hourglass.config.tune import TuneJob

    sweep = load_kind(TuneJob, file, overrides or ())
    from hourglass.settings import Settings

    if refit and sweep.promote_if:
        raise SpecError(
            f"{file}: promote_if compares the best trial on held-out rows, which a refit trains on; use "
            "--refit or promote_if"
        )
    settings = Settings()
    with connected(settings):
        from hourglass import run

        done = run.tune(sweep, settings, fresh, stderr=as_json, register=not refit)
        _show(done.board, as_json)
        for message in (*done.messages, f"written to {done.folder}"):
            typer.echo(message, err=as_json)
        if refit:
            from hourglass.tuning.sweep import refit_job

            trained = run.train(refit_job(sweep, done.board, settings), settings, fresh, as_json)
            typer.echo(f"refit on all rows: {trained.outcome.uri}", err=as_json)
            typer.echo(trained.record.note, err=as_json)
            if trained.record.registered is not None:
                typer.echo(trained.record.registered.summary, err=as_json)
    if done.board.best is None:
        raise typer.Exit(1)


def leaderboard(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sweep's name.")],
    as_json: AsJson = False,
) -> None:
    """Show the trials of a sweep, best first."""
    from hourglass.settings import Settings
    from hourglass.tuning.leaderboard import named

    _show(named(name, Settings()), as_json)


def _show(board: "Leaderboard", as_json: bool) -> None:
    """Print a leaderboard, without optional columns where the terminal is too narrow for them."""
    if as_json:
        typer.echo(board.to_json())
        return
    from rich.measure import Measurement

    from hourglass.progress import console
    from hourglass.tuning.leaderboard import format_values

    screen = console()
    if not screen.is_terminal:
        screen.width = WIDTH
    columns = _columns(board)
    unlimited = screen.options.update(max_width=10_000)
    for name in ("", *OPTIONAL):
        columns.pop(name, None)
        table = _table(board, columns)
        if Measurement.get(screen, unlimited, table).maximum <= screen.width:
            break
    screen.print(table)
    for entry in board.entries:
        if entry.status == "failed":
            screen.print(f"failed: {format_values(entry.values)}: {entry.reason}", markup=False)


def _columns(board: "Leaderboard") -> dict[str, list[str]]:
    """The cells of each column, by its heading, of the trials that did not fail."""
    from hourglass.tuning.leaderboard import METRICS, format_value

    entries = [entry for entry in board.entries if entry.status != "failed"]
    swept = {
        name: [format_value(e.values[path]) if path in e.values else "" for e in entries]
        for path, name in _headings(board).items()
    }
    metrics = {name: [getattr(entry, name) for entry in entries] for name in METRICS}
    return {
        "rank": ["stopped" if e.rank is None else str(e.rank) for e in entries],
        **swept,
        **{
            name: [*map(_number, cells)]
            for name, cells in metrics.items()
            if cells.count(None) < len(cells)
        },
        "PCA's mse": [_number(e.pca_mse) + " better" * e.worse_than_pca for e in entries],
        "parameters": ["-" if e.parameters is None else f"{e.parameters:,}" for e in entries],
        "epochs": [str(e.epochs or "-") for e in entries],
        "s": ["-" if e.seconds is None else f"{e.seconds:.1f}" for e in entries],
        "trial": [e.trial for e in entries],
        "run": [(e.run_id or "-")[:8] for e in entries],
    }


def _headings(board: "Leaderboard") -> dict[str, str]:
    """A heading for each path of the space: the whole path where another column has its short name."""
    return {path: path if name in OPTIONAL else name for path, name in board.names.items()}


def _table(board: "Leaderboard", columns: dict[str, list[str]]) -> "Table":
    """The table; on a narrow screen only the cells of swept values wrap."""
    from rich.table import Table
    from rich.text import Text

    running = "" if board.ended else ", not ended"
    table = Table(title=f"{board.sweep}, by {board.metric}, {board.best_is} first{running}")
    swept = _headings(board).values()
    for heading in columns:
        if heading in swept:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))  # brackets in values are not markup
    return table


def _number(value: float | None) -> str:
    """A number to four digits."""
    return "-" if value is None else f"{value:.4g}"
