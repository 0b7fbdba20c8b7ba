"""Commands that show a model: on one page, or its network as a picture."""

from typing import Annotated

import typer

from hourglass.cli.arguments import not_in_an_artifact


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
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where to.", callback=not_in_an_artifact)
    ] = "report.html",
    max_rows: Annotated[int, typer.Option(min=4, metavar="N", help="Most rows to look at.")] = 5000,
) -> None:
    """Write one self-contained HTML page about a model.

    Losses, codes, hashes, worst rows, and PCA for comparison.
    """
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


def plot_model(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|ARTIFACT", help="A train job's YAML file, or an artifact."),
    ],
    out: Annotated[
        str,
        typer.Option("--out", metavar="FILE.svg", help="Where to.", callback=not_in_an_artifact),
    ] = "network.svg",
    features: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**30, metavar="N", help="Features of a row, where no shard tells."
        ),
    ] = None,
) -> None:
    """Draw the network of a job file or a model as SVG.

    The picture shows how many parameters the layers have.
    """
    if not out.endswith(".svg"):
        raise typer.BadParameter(f"--out: found '{out}', the picture is SVG; end it in .svg")
    from hourglass.report.network import plot
    from hourglass.settings import Settings

    done = plot(source, Settings(), out=out, features=features)
    for note in done.notes:
        typer.echo(f"warning: {note}", err=True)
    typer.echo(f"network      {done.summary}")
    typer.echo(f"picture      {done.uri}")
