"""The rows of a report, and the model's answers for them, computed once.

Rows are read in this process, in bounded number, and the same ones every time.
Shapes: B rows, C raw columns, F features in model space, K code units.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.artifact import Manifest as Model
from hourglass.data import order
from hourglass.data.decode import read_chunks
from hourglass.data.manifest import Manifest, scan
from hourglass.data.order import Split
from hourglass.data.schema import check_column, is_list
from hourglass.errors import DataError
from hourglass.inference.predictor import Predictor, Scores

Matrix = NDArray[Any]
Floats = NDArray[np.float64]
Place = tuple[int, int]
FEWEST = 4
GROUPS = 64
"""Maximum row groups to open; of a larger dataset, evenly spaced ones are read."""


@dataclass(frozen=True)
class Sample:
    """Some rows (B, C), their values of the label column, and where each was found."""

    features: Matrix
    labels: list[Any] | None
    places: list[str]


@dataclass(frozen=True)
class Selection:
    """The rows to evaluate, the rows that baselines are fitted on, and their descriptions."""

    sample: Sample
    fitted: Matrix
    source: str
    what: str
    split: str
    notes: tuple[str, ...]


def select(model: Model, uri: str | None, label: str | None, most: int) -> Selection:
    """Rows at `uri`; the default are the held-out rows of the training dataset.

    Raises: DataError when they no longer exist, or have no column `label`.
    """
    if uri is not None:
        return _given(model, uri, label, most)
    return _held_out(model, label, most)


def _given(model: Model, uri: str, label: str | None, most: int) -> Selection:
    """Rows at `uri`: baselines are fitted on every second one and evaluated on the others."""
    manifest = scan(uri)[0]
    sample, notes = _pick(model, manifest, label, _spread(manifest, most, 0.0, "train"))
    _enough(uri, len(sample.places))
    split = "the baselines are fitted on every second row and evaluated on the others"
    return Selection(sample, sample.features[:0], uri, "rows", split, notes)


def _held_out(model: Model, label: str | None, most: int) -> Selection:
    """Held-out rows of the training dataset; baselines are fitted on its training rows."""
    uri, share, manifest = _training_data(model)
    held, train = (_spread(manifest, most, share, split) for split in ("holdout", "train"))
    sample, notes = _pick(model, manifest, label, held)
    fitted, _ = _pick(model, manifest, None, train)
    _enough(uri, min(len(sample.places), len(fitted.places)))
    trained_on = model.provenance.get("dataset", {}).get("digest")
    if trained_on not in (None, manifest.digest):
        notes += (
            f"The data has changed since training (digest {manifest.digest[:12]}, was "
            f"{trained_on[:12]}): rows shown as held out may have been trained on.",
        )
    rows = len(fitted.places)
    split = f"the baselines are fitted on {rows} training rows and evaluated on the held-out rows"
    return Selection(sample, fitted.features, uri, "held-out rows", split, notes)


def _training_data(model: Model) -> tuple[str, float, Manifest]:
    """URI, holdout fraction and manifest of the dataset the model was trained on."""
    data = model.job.get("data", {})
    uri, share = data.get("uri"), float(data.get("holdout", 0.0))
    if uri in (None, "in memory"):
        raise DataError(
            "the model was trained on rows in memory, which were not kept; pass rows with --rows URI"
        )
    name = uri if isinstance(uri, str) else ", ".join(uri)
    if share == 0.0:
        raise DataError(
            f"{name}: training held out no rows (data.holdout: 0); pass rows with --rows URI"
        )
    try:
        return name, share, scan(uri)[0]
    except DataError as error:
        raise DataError(
            f"the training rows are no longer available: {error}; pass other rows with --rows URI"
        ) from None


def _enough(uri: str, rows: int) -> None:
    if rows < FEWEST:
        raise DataError(
            f"{uri}: found {rows} rows, a report needs at least {FEWEST}; pass others with --rows URI"
        )


def _spread(
    manifest: Manifest, most: int, share: float, split: Split
) -> dict[Place, NDArray[np.int64]]:
    """At most `most` rows of `split`, evenly spaced over evenly spaced row groups."""
    every = [
        (s, g) for s, shard in enumerate(manifest.shards) for g, n in enumerate(shard.rows) if n
    ]
    opened = [every[i] for i in _even(len(every), GROUPS)]
    own = []
    for shard, group in opened:
        source = manifest.shards[shard]
        held = order.holdout_mask(source.name, group, 0, source.rows[group], share)
        own.append(np.flatnonzero(held if split == "holdout" else ~held))
    ends = np.cumsum([0, *(len(rows) for rows in own)])
    chosen = _even(int(ends[-1]), most)
    return {
        place: rows[chosen[(chosen >= low) & (chosen < high)] - low]
        for place, rows, low, high in zip(opened, own, ends[:-1], ends[1:], strict=True)
    }


def _even(total: int, most: int) -> NDArray[np.int64]:
    """At most `most` evenly spaced numbers below `total`."""
    count = min(total, most)
    return (np.arange(count) * 2 + 1) * total // max(1, 2 * count)


def _pick(
    model: Model, manifest: Manifest, label: str | None, chosen: dict[Place, NDArray[np.int64]]
) -> tuple[Sample, tuple[str, ...]]:
    """The chosen rows, and a note if any were dropped for missing cells, as in training."""
    parts: list[Matrix] = [np.empty((0, model.features.width), model.features.dtype)]
    labels: list[Any] = []
    places: list[str] = []
    for place, rows in chosen.items():
        if not len(rows):
            continue
        for features, more, found in _group(model, manifest, label, place, rows):
            parts.append(features)
            labels += more
            places += [f"{manifest.shards[place[0]].name}, {place[1]}, {row}" for row in found]
    lost = sum(map(len, chosen.values())) - len(places)
    notes = (f"{lost} rows with missing cells were dropped.",) if lost else ()
    return Sample(np.concatenate(parts), None if label is None else labels, places), notes


def _group(
    model: Model,
    manifest: Manifest,
    label: str | None,
    place: Place,
    rows: NDArray[np.int64],
) -> Iterator[tuple[Matrix, list[Any], list[int]]]:
    """Features, labels and numbers of `rows` of one row group, chunk by chunk."""
    shard, group = manifest.shards[place[0]], place[1]
    extra = () if label is None else (label,)
    schema, missing = model.features.schema_, model.features.missing
    for chunk in read_chunks(shard.path, group, schema, missing, extra, shard.digest):
        inside = rows[(rows >= chunk.start) & (rows < chunk.start + len(chunk.whole))]
        at = inside[chunk.whole[inside - chunk.start]] - chunk.start
        labels = [] if label is None else _labels(chunk.table, label, shard.path, at)
        yield chunk.features[at], labels, (at + chunk.start).tolist()
        if chunk.start + len(chunk.whole) > rows[-1]:
            return


def _labels(table: pa.Table, label: str, path: str, at: NDArray[np.int64]) -> list[Any]:
    kind = check_column(path, table.schema, label)
    if is_list(kind):
        raise DataError(f"{path}: column '{label}' is {kind}, a label must be one value per row")
    values: list[Any] = table.column(label).take(at).to_pylist()
    return values


@dataclass(frozen=True)
class Context:
    """A model and its answers for the selected rows; `space_BF` are the rows in model space."""

    predictor: Predictor
    version: str | None
    digest: str
    selection: Selection
    label: str | None

    scores: Scores
    space_BF: Floats
    bits_BK: NDArray[np.uint8]

    @property
    def model(self) -> Model:
        """The artifact's manifest."""
        return self.predictor.artifact.manifest

    @property
    def rows_BC(self) -> Matrix:
        """The selected rows, raw."""
        return self.selection.sample.features


def evaluate(
    predictor: Predictor, version: str | None, digest: str, selection: Selection, label: str | None
) -> Context:
    """The answers of the model for the selected rows, from one pass."""
    scores = predictor.score(selection.sample.features)
    return Context(
        predictor=predictor,
        version=version,
        digest=digest,
        selection=selection,
        label=label,
        scores=scores,
        space_BF=model_space(predictor, selection.sample.features),
        bits_BK=np.unpackbits(scores.hash, axis=1, count=predictor.code_width),
    )


def model_space(predictor: Predictor, rows_BC: Matrix) -> Floats:
    """Raw rows (B, C) in model space (B, F)."""
    (space_BF,) = predictor.map_tiles(rows_BC, lambda tile: [predictor.module.preprocessing(tile)])
    return space_BF.astype(np.float64)
