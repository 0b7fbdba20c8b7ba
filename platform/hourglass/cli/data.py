"""Commands on Parquet shards."""

from typing import Annotated, Literal

import typer

from hourglass.cli.arguments import not_in_an_artifact

Uris = Annotated[
    list[str], typer.Argument(metavar="URI...", help="Folder, glob, file or s3:// URI.")
]


def inspect(uris: Uris) -> None:
    """Print shards, rows, and type and statistics of each column."""
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
            help="Manifest to write; replaces an existing manifest.",
            callback=not_in_an_artifact,
        ),
    ] = "data-manifest.json",
) -> None:
    """Write a manifest of shards, which a job can pin.

    It records the size, rows and digest of every shard.
    """
    from hourglass.data.manifest import require_replaceable, save_manifest, scan

    require_replaceable(out)
    manifest, _ = scan(uris, content=True)
    save_manifest(out, manifest)
    size = f"{len(manifest.shards)} shards, {manifest.rows} rows"
    typer.echo(f"{out}: {size}, digest {manifest.digest[:12]}")


def make(
    name: Annotated[Literal["digits", "lorenz"], typer.Argument(help="Dataset to generate.")],
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Folder or s3:// URI to write to.", callback=not_in_an_artifact
        ),
    ],
) -> None:
    """Write sample shards: handwritten digits or a series.

    The series is chaotic and has an anomalous part.
    """
    from hourglass.data.demo import write_digits, write_lorenz

    rows = {"digits": write_digits, "lorenz": write_lorenz}[name](folder)
    typer.echo(f"{folder}: {rows} rows")
