"""Commands that visualize a model: a report, or a diagram of its network."""

from typing import Annotated

import typer

from hourglass.cli.arguments import not_in_an_artifact


def report(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Artifact folder or models:/NAME@ALIAS.")
    ],
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Parquet rows to use; default: the held-out rows of training."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column to colour the codes by.")
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Page to write.", callback=not_in_an_artifact)
    ] = "report.html",
    max_rows: Annotated[int, typer.Option(min=4, metavar="N", help="Maximum rows to read.")] = 5000,
) -> None:
    """Write one self-contained HTML page about a model.

    It shows losses, codes, hashes, abnormal rows, and PCA for comparison.
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
        typer.Argument(metavar="FILE|ARTIFACT", help="YAML file of a train job, or an artifact."),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="FILE.svg", help="SVG to write.", callback=not_in_an_artifact
        ),
    ] = "network.svg",
    features: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**30, metavar="N", help="Number of features; default: from the shards."
        ),
    ] = None,
) -> None:
    """Draw the network of a job file or a model as SVG.

    The diagram shows the number of parameters of each layer.
    """
    if not out.endswith(".svg"):
        raise typer.BadParameter(f"--out: found '{out}', allowed are names that end in .svg")
    from hourglass.report.network import plot
    from hourglass.settings import Settings

    done = plot(source, Settings(), out=out, features=features)
    for note in done.notes:
        typer.echo(f"warning: {note}", err=True)
    typer.echo(f"network      {done.summary}")
    typer.echo(f"diagram      {done.uri}")
