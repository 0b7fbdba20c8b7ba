"""Commands that apply a trained model: encode, decode, denoise, similar and others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hourglass.cli.arguments import not_in_an_artifact

if TYPE_CHECKING:
    from hourglass.inference.predictor import Predictor
    from hourglass.inference.table_io import FirstRows

MOST = 100_000
STEPS = 10

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Artifact folder, s3:// URI, or models:/NAME@ALIAS.")
]
Uri = Annotated[str, typer.Argument(metavar="URI", help="Rows: folder, glob, file or s3:// URI.")]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FILE.parquet",
        help="File to write; must not exist.",
        callback=not_in_an_artifact,
    ),
]
MaxRows = Annotated[int, typer.Option("--max-rows", min=1, help="Maximum rows to read.")]


def encode(
    model: Model,
    uri: Uri,
    out: Out,
    layer: Annotated[
        int | None, typer.Option(help="Encoder layer, from 1; default: the last, the code.")
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
        str, typer.Argument(metavar="CODES", help="Codes: folder, glob, file or s3:// URI.")
    ],
    out: Out,
    column: Annotated[str, typer.Option(metavar="COL", help="Column of the codes.")] = "code",
    max_rows: MaxRows = MOST,
) -> None:
    """Write the decoded rows of codes.

    The input is a file or folder written by `encode` or `score`.
    """
    from hourglass.inference.table_io import read_codes, require_new

    require_new(out)
    predictor = _predictor(model)
    rows = _counted(read_codes(codes, column, predictor.code_width, max_rows), max_rows)
    origin = dict(zip(rows.columns.column_names, rows.columns.columns, strict=True))
    _write_rows(out, predictor, predictor.decode(rows.features), origin)


def denoise(
    model: Model,
    uri: Uri,
    out: Out,
    corrupt: Annotated[
        bool, typer.Option("--corrupt", help="The rows are clean: add the training noise first.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the noise that --corrupt adds; default: 0.")
    ] = None,
    max_rows: MaxRows = MOST,
) -> None:
    """Write denoised rows.

    With --corrupt, the noisy rows are written as well, and the gain in dB is printed.
    """
    if seed is not None and not corrupt:
        raise typer.BadParameter("--seed needs --corrupt, which adds the noise")
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
        gain = make.gain(rows.features, noisy, made)
        typer.echo(f"gain         {gain:.2f} dB over the noisy rows")
    else:
        made = predictor.reconstruct(rows.features)
    _write_rows(out, predictor, made, beside)


def similar(
    model: Model,
    uri: Uri,
    row: Annotated[int, typer.Option(min=0, help="Row number, from 0 in shard order.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbours.")] = 10,
    by: Annotated[Literal["code", "hash"], typer.Option(help="What to compare.")] = "code",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="COL", help="Column to print; repeatable."),
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
            f"-k: found {k}, allowed are 1 to {len(rows.numbers) - 1}, the number of other rows"
        )
    points = predictor.encode(rows.features) if by == "code" else predictor.hash(rows.features)
    distances, found = Index(points).nearest(points[own : own + 1], k + 1)
    # Equal rows with lower numbers may have displaced the row itself from the k + 1.
    others = [(d, at) for d, at in zip(distances[0], found[0], strict=True) if at != own][:k]
    typer.echo(f"{'row':>10} {'distance':>10}" + "".join(f"  {name}" for name in label or ()))
    for distance, at in [(0, own), *others]:
        shown = f"{distance:>10.4f}" if by == "code" else f"{distance:>10d}"
        cells = "".join(f"  {rows.columns.column(name)[int(at)].as_py()}" for name in label or ())
        typer.echo(f"{rows.numbers[at]:>10} {shown}{cells}")


def classify_probe(
    model: Model,
    train: Annotated[str, typer.Option(metavar="URI", help="Rows to fit the classifiers on.")],
    test: Annotated[str, typer.Option(metavar="URI", help="Rows to evaluate them on.")],
    label: Annotated[str, typer.Option(metavar="COL", help="Column of the label.")],
    max_rows: MaxRows = MOST,
) -> None:
    """Print how well the codes predict a label.

    Compares nearest neighbours and logistic regression with the majority baseline.
    """
    from hourglass.inference.neighbours import NEIGHBOURS, STEPS, classify

    predictor = _predictor(model)
    fitted, evaluated = (_rows(predictor, uri, max_rows, label) for uri in (train, test))
    found = classify(
        predictor.encode(fitted.features),
        fitted.labels(label),
        predictor.encode(evaluated.features),
        evaluated.labels(label),
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
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draws; default: 0.")] = None,
    between: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="ROW ROW", help="Interpolate between two rows."),
    ] = None,
    traverse: Annotated[
        int | None, typer.Option(metavar="UNIT", help="Vary this code unit, counted from 0.")
    ] = None,
    row: Annotated[
        int | None, typer.Option(help="Row number for --traverse, from 0 in shard order.")
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Rows for --between and --traverse."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help=f"Number of rows to write; default: {STEPS}.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help=f"Maximum rows to read; default: {MOST}.")
    ] = None,
) -> None:
    """Write new rows, decoded from codes.

    The codes are drawn from the prior, interpolated between two rows, or those of a row with one
    unit varied.
    """
    _check_options(
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
        assert uri is not None  # `_check_options` requires it
        rows = _rows(predictor, uri, max_rows or MOST)
        if between is not None:
            first, second = (rows.features[rows.position(number)] for number in between)
            made = make.interpolate(predictor, first, second, steps or STEPS)
        else:
            assert row is not None
            assert traverse is not None
            made = _traversed(predictor, rows, row, traverse, steps or STEPS)
    _write_rows(out, predictor, made, {})


SOURCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--count": ((), ("--seed",)),
    "--between": (("--uri",), ("--steps", "--max-rows")),
    "--traverse": (("--row", "--uri"), ("--steps", "--max-rows")),
}
"""Sources of codes: the options that each requires, and those it accepts."""


def _check_options(sources: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise BadParameter unless there is one source, with its options and no others."""
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise typer.BadParameter(f"found {found}; give exactly one of {', '.join(sources)}")
    needs, allows = SOURCES[given[0]]
    for name, value in options.items():
        if value is None and name in needs:
            raise typer.BadParameter(f"{given[0]} needs {name}")
        if value is not None and name not in needs + allows:
            raise typer.BadParameter(f"{given[0]} does not accept {name}; remove it")


def _traversed(predictor: "Predictor", rows: "FirstRows", row: int, unit: int, steps: int) -> Any:
    """Decoded codes of the row with `unit` varied over its range in the rows read."""
    import numpy as np

    from hourglass.inference.generate import require_unit, traverse

    chosen = rows.features[rows.position(row)]
    require_unit(predictor, unit)
    values_B = predictor.encode(rows.features)[:, unit]
    low, high = float(values_B.min()), float(values_B.max())
    typer.echo(f"unit {unit:<7} {low:.4f} to {high:.4f}, its range in the rows read")
    return traverse(predictor, chosen, unit, np.linspace(low, high, steps, dtype=np.float32))


def _predictor(model: str) -> "Predictor":
    from hourglass.inference.predictor import Predictor
    from hourglass.settings import Settings
    from hourglass.tracking.registry import resolve

    found = resolve(model, Settings())
    return Predictor.load(found.path, found.digest)


def _rows(predictor: "Predictor", uri: str, most: int, *columns: str) -> "FirstRows":
    """The first `most` rows at `uri`; prints how many were read, dropped and left out."""
    from hourglass.inference.table_io import read_rows

    return _counted(read_rows(uri, predictor.features, predictor.missing, columns, most), most)


def _counted(rows: "FirstRows", most: int) -> "FirstRows":
    """The rows; prints how many were read, dropped and left out."""
    dropped = f", {rows.dropped} dropped for missing cells" if rows.dropped else ""
    left_out = f", {rows.left_out} left out by --max-rows {most}" if rows.left_out else ""
    typer.echo(f"rows         {len(rows.numbers)} of {rows.uri}{dropped}{left_out}")
    return rows


def _write_rows(out: str, predictor: "Predictor", made: Any, beside: Mapping[str, Any]) -> None:
    """Write rows after the columns `beside` them; prints how many, and how many cells were clipped."""
    from hourglass.inference.table_io import as_table, write_table

    table, clipped = as_table(made, predictor.features, beside)
    write_table(out, table)
    note = f", {clipped} cells clipped to 0..255" if clipped else ""
    typer.echo(f"output       {out}: {len(made)} rows of {made.shape[1]} features{note}")
