"""Commands that look at shards."""

from typing import Annotated, Literal

import typer

from hourglass.cli.arguments import not_in_an_artifact

Uris = Annotated[list[str], typer.Argument(metavar="URI...", help="Folder, glob, file or s3://.")]


def inspect(uris: Uris) -> None:
    """Print shards, rows, types and figures of each column."""
    from hourglass.data.inspect import inspect, lines
    from hourglass.progress import bar

    with bar("shards") as shown:
        report = inspect(uris, shown.to)
    for line in lines(report):
        typer.echo(line)


def manifest(
    uris: Uris,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to; an older one is replaced.",
            callback=not_in_an_artifact,
        ),
    ] = "data-manifest.json",
) -> None:
    """Write a manifest of shards that a job can pin.

    It has the size, rows and digest of every shard.
    """
    from hourglass.data.manifest import require_replaceable, save_manifest, scan

    require_replaceable(out)
    manifest, _ = scan(uris, content=True)
    save_manifest(out, manifest)
    size = f"{len(manifest.shards)} shards, {manifest.rows} rows"
    typer.echo(f"{out}: {size}, digest {manifest.digest[:12]}")


def make(
    name: Annotated[Literal["digits", "lorenz"], typer.Argument(help="What to write.")],
    folder: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Where to; also s3://.", callback=not_in_an_artifact),
    ],
) -> None:
    """Write sample shards: handwritten digits or a series.

    The series is chaotic, and has a part with anomalies.
    """
    from hourglass.data.demo import write_digits, write_lorenz

    rows = {"digits": write_digits, "lorenz": write_lorenz}[name](folder)
    typer.echo(f"{folder}: {rows} rows")
