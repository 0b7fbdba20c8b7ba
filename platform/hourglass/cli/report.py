"""The command that shows a model on one page."""

from typing import Annotated

import typer


def report(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An artifact's folder or models:/NAME@ALIAS.")
    ],
    rows: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Parquet rows; default: the held-out rows of training."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that colours the codes.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where to.")] = "report.html",
    max_rows: Annotated[int, typer.Option(min=4, metavar="N", help="Most rows to look at.")] = 5000,
) -> None:
    """Write one HTML page about a model: losses, codes, hashes, worst rows, PCA beside it."""
    from hourglass.report import report as write
    from hourglass.settings import Settings

    done = write(model, Settings(), rows=rows, label=label, out=out, max_rows=max_rows)
    for note in done.notes:
        typer.echo(f"warning: {note}", err=True)
    typer.echo(f"rows         {done.rows}")
    typer.echo(f"sections     {', '.join(done.sections)}")
    typer.echo(f"page         {done.uri}")
    if done.run_id is not None:
        typer.echo(f"tracking     logged to run {done.run_id}")
