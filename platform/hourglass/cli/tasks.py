"""Commands that put a trained model to a task: encode, decode, denoise, similar and more."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hourglass.cli.arguments import not_in_an_artifact

if TYPE_CHECKING:
    from hourglass.inference.predictor import Predictor
    from hourglass.inference.table_io import LoadedRows

MOST = 100_000
STEPS = 10

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Artifact folder, s3://, or models:/NAME@ALIAS.")
]
Uri = Annotated[str, typer.Argument(metavar="URI", help="Rows: folder, glob, file or s3://.")]
Out = Annotated[
    str,
    typer.Option("--out", metavar="FILE.parquet", help="A new file.", callback=not_in_an_artifact),
]
MaxRows = Annotated[int, typer.Option("--max-rows", min=1, help="Read no more rows than these.")]


def encode(
    model: Model,
    uri: Uri,
    out: Out,
    layer: Annotated[
        int | None, typer.Option(help="Encoder layer, counted from 1 [the last: the code].")
    ] = None,
    max_rows: MaxRows = MOST,
) -> None:
    """Write the codes of rows to one Parquet file.

    With --layer, the outputs of a hidden layer instead.
    """
    import pyarrow as pa

    from hourglass.inference.table_io import lists, require_new, write_table

    require_new(out)
    predictor = _predictor(model)
    rows = _rows(predictor, uri, max_rows)
    name = "code" if layer is None else f"layer_{layer}"
    made = predictor.encode(rows.features, layer)
    write_table(out, pa.table({"row": rows.numbers, name: lists(made)}))
    typer.echo(f"output       {out}: {len(made)} rows, {name} of {made.shape[1]} units")


def decode(
    model: Model,
    codes: Annotated[
        str, typer.Argument(metavar="CODES", help="Codes: folder, glob, file or s3://.")
    ],
    out: Out,
    column: Annotated[str, typer.Option(metavar="COL", help="Column of the codes.")] = "code",
    max_rows: MaxRows = MOST,
) -> None:
    """Write the rows that codes stand for.

    The codes are read as `encode` and `score` write them.
    """
    from hourglass.inference.table_io import read_codes, require_new

    require_new(out)
    predictor = _predictor(model)
    rows = _told(read_codes(codes, column, predictor.code_width, max_rows), max_rows)
    origin = dict(zip(rows.columns.column_names, rows.columns.columns, strict=True))
    _write_rows(out, predictor, predictor.decode(rows.features), origin)


def denoise(
    model: Model,
    uri: Uri,
    out: Out,
    corrupt: Annotated[
        bool, typer.Option("--corrupt", help="The rows are clean: add the noise of training.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of that noise [0].")] = None,
    max_rows: MaxRows = MOST,
) -> None:
    """Write noisy rows without their noise.

    With --corrupt, the noise of training is added to the rows first.
    """
    if seed is not None and not corrupt:
        raise typer.BadParameter("--seed is of the noise that --corrupt adds; add it, or remove it")
    from hourglass.inference import generate as make
    from hourglass.inference.table_io import as_columns, require_new

    require_new(out)
    predictor = _predictor(model)
    make.require_corruption(predictor)
    rows = _rows(predictor, uri, max_rows)
    beside: dict[str, Any] = {"row": rows.numbers}
    if corrupt:
        noisy, made = make.denoise(predictor, rows.features, seed or 0)
        columns = as_columns(noisy, predictor.features)
        beside |= {f"noisy_{name}": cells for name, cells in columns.items()}
        won = make.gain(rows.features, noisy, made)
        typer.echo(f"gain         {won:.2f} dB over the noisy rows")
    else:
        made = predictor.reconstruct(rows.features)
    _write_rows(out, predictor, made, beside)


def similar(
    model: Model,
    uri: Uri,
    row: Annotated[int, typer.Option(min=0, help="Number of the row, from 0 in shard order.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to show.")] = 10,
    by: Annotated[Literal["code", "hash"], typer.Option(help="What is compared.")] = "code",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="COL", help="Column to print; may be given again."),
    ] = None,
    max_rows: MaxRows = MOST,
) -> None:
    """Print the rows nearest to a row, by code or hash.

    Codes are compared by Euclidean distance, hashes by the number of bits that differ.
    """
    from hourglass.errors import DataError
    from hourglass.inference.neighbours import Index

    predictor = _predictor(model)
    rows = _rows(predictor, uri, max_rows, *(label or ()))
    own = rows.position(row)
    if k >= len(rows.numbers):
        raise DataError(
            f"-k: found {k}, allowed are 1 to {len(rows.numbers) - 1}: the rows beside row {row}"
        )
    points = predictor.encode(rows.features) if by == "code" else predictor.hash(rows.features)
    distances, found = Index(points).nearest(points[own : own + 1], k + 1)
    # Equal rows before it may have pushed the row itself out of the k + 1.
    others = [(d, at) for d, at in zip(distances[0], found[0], strict=True) if at != own][:k]
    typer.echo(f"{'row':>10} {'distance':>10}" + "".join(f"  {name}" for name in label or ()))
    for distance, at in [(0, own), *others]:
        shown = f"{distance:>10.4f}" if by == "code" else f"{distance:>10d}"
        cells = "".join(f"  {rows.columns.column(name)[int(at)].as_py()}" for name in label or ())
        typer.echo(f"{rows.numbers[at]:>10} {shown}{cells}")


def classify_probe(
    model: Model,
    train: Annotated[str, typer.Option(metavar="URI", help="Rows to learn the label from.")],
    test: Annotated[str, typer.Option(metavar="URI", help="Rows to be right about.")],
    label: Annotated[str, typer.Option(metavar="COL", help="Column of the label.")],
    max_rows: MaxRows = MOST,
) -> None:
    """Print how well the codes predict a label.

    By nearest neighbours and logistic regression, beside the majority baseline.
    """
    from hourglass.inference.classify import NEIGHBOURS, STEPS, classify

    predictor = _predictor(model)
    known, asked = (_rows(predictor, uri, max_rows, label) for uri in (train, test))
    found = classify(
        predictor.encode(known.features),
        known.labels(label),
        predictor.encode(asked.features),
        asked.labels(label),
    )
    stopped = "" if found.logistic_converged else f" (stopped after {STEPS} steps)"
    near = f"{NEIGHBOURS} neighbours"
    typer.echo(f"{near:<12} {found.knn_accuracy:.4f} in {found.knn_seconds:.2f} s")
    typer.echo(
        f"logistic     {found.logistic_accuracy:.4f} in {found.logistic_seconds:.2f} s{stopped}"
    )
    typer.echo(f"baseline     {found.majority_baseline:.4f} (always the most frequent label)")


def generate(
    model: Model,
    out: Out,
    count: Annotated[int | None, typer.Option(min=1, help="Rows to draw from the prior.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws [0].")] = None,
    between: Annotated[
        tuple[int, int] | None, typer.Option(metavar="ROW ROW", help="Go from one row to another.")
    ] = None,
    traverse: Annotated[
        int | None, typer.Option(metavar="UNIT", help="Move this code unit, counted from 0.")
    ] = None,
    row: Annotated[int | None, typer.Option(help="The row whose code is traversed.")] = None,
    uri: Annotated[str | None, typer.Option(metavar="URI", help="Where the rows are.")] = None,
    steps: Annotated[int | None, typer.Option(min=2, help=f"Rows to make [{STEPS}].")] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help=f"Read no more rows than these [{MOST}].")
    ] = None,
) -> None:
    """Write new rows that the decoder makes from codes.

    Codes drawn from the prior, interpolated between two rows, or with one unit moved.
    """
    _one_way(
        {"--count": count, "--between": between, "--traverse": traverse},
        {"--seed": seed, "--row": row, "--uri": uri, "--steps": steps, "--max-rows": max_rows},
    )
    from hourglass.inference import generate as make
    from hourglass.inference.table_io import require_new

    require_new(out)
    predictor = _predictor(model)
    if count is not None:
        made = make.prior(predictor, count, seed or 0)
    else:
        assert uri is not None  # `_one_way` saw to it
        rows = _rows(predictor, uri, max_rows or MOST)
        if between is not None:
            first, second = (rows.features[rows.position(number)] for number in between)
            made = make.interpolate(predictor, first, second, steps or STEPS)
        else:
            assert row is not None
            assert traverse is not None
            made = _traversed(predictor, rows, row, traverse, steps or STEPS)
    _write_rows(out, predictor, made, {})


WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--count": ((), ("--seed",)),
    "--between": (("--uri",), ("--steps", "--max-rows")),
    "--traverse": (("--row", "--uri"), ("--steps", "--max-rows")),
}
"""Ways to generate: the options each needs, and those it allows."""


def _one_way(ways: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse none or two ways, an option that a way needs and has not, and one it would ignore."""
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise typer.BadParameter(f"give one of {', '.join(ways)}; found {found}")
    needs, allows = WAYS[given[0]]
    for name, value in options.items():
        if value is None and name in needs:
            raise typer.BadParameter(f"{given[0]} needs {name}")
        if value is not None and name not in needs + allows:
            raise typer.BadParameter(f"{given[0]} takes no {name}; remove it")


def _traversed(predictor: "Predictor", rows: "LoadedRows", row: int, unit: int, steps: int) -> Any:
    """The row's code with `unit` going from its lowest to its highest value among the rows read."""
    import numpy as np

    from hourglass.inference.generate import require_unit, traverse

    chosen = rows.features[rows.position(row)]
    require_unit(predictor, unit)
    values_B = predictor.encode(rows.features)[:, unit]
    low, high = float(values_B.min()), float(values_B.max())
    typer.echo(f"unit {unit:<7} {low:.4f} to {high:.4f}, its range over the rows read")
    return traverse(predictor, chosen, unit, np.linspace(low, high, steps, dtype=np.float32))


def _predictor(model: str) -> "Predictor":
    from hourglass.inference.predictor import Predictor
    from hourglass.settings import Settings
    from hourglass.tracking.registry import resolve

    found = resolve(model, Settings())
    return Predictor.load(found.path, found.digest)


def _rows(predictor: "Predictor", uri: str, most: int, *columns: str) -> "LoadedRows":
    """The first `most` rows at `uri`; says how many were read, dropped and left out."""
    from hourglass.inference.table_io import read_rows

    return _told(read_rows(uri, predictor.features, predictor.missing, columns, most), most)


def _told(rows: "LoadedRows", most: int) -> "LoadedRows":
    """The rows; says how many were read, dropped and left out."""
    dropped = f", {rows.dropped} dropped for missing cells" if rows.dropped else ""
    left_out = f", {rows.left_out} left out by --max-rows {most}" if rows.left_out else ""
    typer.echo(f"rows         {len(rows.numbers)} of {rows.uri}{dropped}{left_out}")
    return rows


def _write_rows(out: str, predictor: "Predictor", made: Any, beside: Mapping[str, Any]) -> None:
    """Write rows made, after the columns `beside` them; says how many, and what was clipped."""
    from hourglass.inference.table_io import as_table, write_table

    table, clipped = as_table(made, predictor.features, beside)
    write_table(out, table)
    note = f", {clipped} cells clipped to 0..255" if clipped else ""
    typer.echo(f"output       {out}: {len(made)} rows of {made.shape[1]} features{note}")
