"""The rows a report looks at, and what the model makes of them, computed once.

Rows are read in this process, at most so many, the same every time.
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
from hourglass.report.pictures import Shape, shape_of

Matrix = NDArray[Any]
Floats = NDArray[np.float64]
Place = tuple[int, int]
FEWEST = 4
GROUPS = 64
"""Most row groups that are opened: a large dataset is seen through evenly spaced ones."""


@dataclass(frozen=True)
class Picked:
    """Some rows (B, C), the value of the label column for each, and where each was found."""

    features: Matrix
    labels: list[Any] | None
    places: list[str]


@dataclass(frozen=True)
class Sight:
    """The rows judged, the rows that a referee may learn from, and sentences about both."""

    judged: Picked
    fitted: Matrix
    source: str
    what: str
    split: str
    notes: tuple[str, ...]


def read(model: Model, uri: str | None, label: str | None, most: int) -> Sight:
    """Rows at `uri`, or by default those of training's dataset that were held out.

    Raises: DataError when there are none any more, or no column `label`.
    """
    if uri is not None:
        return _given(model, uri, label, most)
    return _held_out(model, label, most)


def _given(model: Model, uri: str, label: str | None, most: int) -> Sight:
    """Rows of one's own: a referee learns from every second one and is judged on the others."""
    manifest = scan(uri)[0]
    picked, notes = _pick(model, manifest, label, _spread(manifest, most, 0.0, "train"))
    _enough(uri, len(picked.places))
    split = "the referees learn from every second of these rows and are judged on the others"
    return Sight(picked, picked.features[:0], uri, "rows", split, notes)


def _held_out(model: Model, label: str | None, most: int) -> Sight:
    """Held-out rows of training's dataset; a referee learns from training rows."""
    uri, share, manifest = _training_data(model)
    held, train = (_spread(manifest, most, share, split) for split in ("holdout", "train"))
    picked, notes = _pick(model, manifest, label, held)
    fitted, _ = _pick(model, manifest, None, train)
    _enough(uri, min(len(picked.places), len(fitted.places)))
    trained_on = model.provenance.get("dataset", {}).get("digest")
    if trained_on not in (None, manifest.digest):
        notes += (
            f"The data has changed since training (digest {manifest.digest[:12]}, was "
            f"{trained_on[:12]}): rows shown as held out may have been trained on.",
        )
    rows = len(fitted.places)
    split = f"the referees learn from {rows} training rows and are judged on the held-out ones"
    return Sight(picked, fitted.features, uri, "held-out rows", split, notes)


def _training_data(model: Model) -> tuple[str, float, Manifest]:
    """URI, held-out share and manifest of the dataset the model was trained on."""
    data = model.job.get("data", {})
    uri, share = data.get("uri"), float(data.get("holdout", 0.0))
    if uri in (None, "in memory"):
        raise DataError(
            "the model was trained on rows in memory, and they are gone; name rows with --rows URI"
        )
    name = uri if isinstance(uri, str) else ", ".join(uri)
    if share == 0.0:
        raise DataError(
            f"{name}: training held no rows out (data.holdout: 0); name rows with --rows URI"
        )
    try:
        return name, share, scan(uri)[0]
    except DataError as error:
        raise DataError(
            f"the rows of training are not there any more: {error}; name others with --rows URI"
        ) from None


def _enough(uri: str, rows: int) -> None:
    if rows < FEWEST:
        raise DataError(
            f"{uri}: {rows} rows to look at, a report needs {FEWEST}; name others with --rows URI"
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
) -> tuple[Picked, tuple[str, ...]]:
    """The chosen rows, and a sentence when some were dropped for missing cells, as in training."""
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
    notes = (f"{lost} rows were left out for missing cells.",) if lost else ()
    return Picked(np.concatenate(parts), None if label is None else labels, places), notes


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
        raise DataError(f"{path}: column '{label}' is {kind}, a label is one value for each row")
    values: list[Any] = table.column(label).take(at).to_pylist()
    return values


@dataclass(frozen=True)
class Look:
    """The model on the rows: `space_BF` in model space, `bits_BK` of the hashes."""

    predictor: Predictor
    version: str | None
    digest: str
    sight: Sight
    label: str | None
    shape: Shape | None
    scores: Scores
    space_BF: Floats
    bits_BK: NDArray[np.uint8]

    @property
    def model(self) -> Model:
        """The artifact's manifest."""
        return self.predictor.artifact.manifest

    @property
    def rows_BC(self) -> Matrix:
        """The rows judged, raw."""
        return self.sight.judged.features


def look(
    predictor: Predictor, version: str | None, digest: str, sight: Sight, label: str | None
) -> Look:
    """One pass of the model over the rows of `sight`."""
    scores = predictor.score(sight.judged.features)
    return Look(
        predictor=predictor,
        version=version,
        digest=digest,
        sight=sight,
        label=label,
        shape=shape_of(predictor.artifact.manifest),
        scores=scores,
        space_BF=model_space(predictor, sight.judged.features),
        bits_BK=np.unpackbits(scores.hash, axis=1, count=predictor.code_width),
    )


def model_space(predictor: Predictor, rows_BC: Matrix) -> Floats:
    """Raw rows (B, C) in model space (B, F)."""
    (space_BF,) = predictor.map_tiles(rows_BC, lambda tile: [predictor.module.preprocessing(tile)])
    return space_BF.astype(np.float64)
