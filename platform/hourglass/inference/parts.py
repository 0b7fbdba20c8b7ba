"""One part of a scored dataset: a Parquet file of some row groups, written whole or not at all.

What a part holds is a function of (shard, row groups, model digest, options), and so is its name:
a part that exists under its name is complete and right, and a second run need not write it.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hourglass import storage
from hourglass.data.decode import Chunk, read_chunks
from hourglass.data.footer import open_shard
from hourglass.data.manifest import Manifest, Shard
from hourglass.data.schema import Missing
from hourglass.errors import DataError
from hourglass.inference.predictor import Predictor

PART_BYTES = 64 * 2**20
"""Decoded features of one part: small row groups of a shard are scored together."""
NAME = re.compile(r"-\d{5}-[0-9a-f]{16}\.parquet$")
"""How the names of parts end."""
TALLY_KEY = b"hourglass.tally"


@dataclass(frozen=True)
class Options:
    """What is written for each row, and by which model."""

    outputs: tuple[str, ...]
    passthrough: tuple[str, ...]
    threshold: float
    missing: Missing
    model: str
    version: str
    digest: str

    @property
    def key(self) -> str:
        """Identity of everything that decides a part's bytes but its rows."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """Consecutive row groups of one shard, scored into one part."""

    shard: Shard
    groups: tuple[int, ...]

    def name(self, key: str) -> str:
        """The part's file name."""
        content = json.dumps(
            [self.shard.name, self.shard.size, self.shard.digest, self.groups, key]
        )
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        stem = os.path.basename(self.shard.name).removesuffix(".parquet")
        return f"{stem}-{self.groups[0]:05d}-{digest}.parquet"


@dataclass(frozen=True)
class Tally:
    """Sums over the rows of a part; kept in its footer, so that a resumed run can add them up."""

    rows: int = 0
    dropped: int = 0
    anomalies: int = 0
    score: float = 0.0
    range_mse: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


def _values(tally: Tally) -> list[Any]:
    return list(asdict(tally).values())


def items(manifest: Manifest, row_bytes: int) -> list[Item]:
    """The parts of a dataset: runs of row groups of about PART_BYTES, never across shards."""
    parts: list[Item] = []
    for shard in manifest.shards:
        run: list[int] = []
        filled = 0
        for group, rows in enumerate(shard.rows):
            if not rows:
                continue
            if run and filled + rows * row_bytes > PART_BYTES:
                parts.append(Item(shard, tuple(run)))
                run, filled = [], 0
            run.append(group)
            filled += rows * row_bytes
        if run:
            parts.append(Item(shard, tuple(run)))
    return parts


def existing(uri: str) -> Tally | None:
    """The tally of the finished part at `uri`, or None when there is none."""
    if not storage.exists(uri):
        return None
    with open_shard(uri) as part:
        text = (part.metadata.metadata or {}).get(TALLY_KEY)
        return Tally(**json.loads(text)) if text else None


def write(uri: str, item: Item, options: Options, predictor: Predictor) -> Tally:
    """Score the rows of `item` into the part at `uri`, chunk by chunk; visible only when whole.

    Raises: DataError naming file, row group and column, WriteError.
    """
    tally = Tally()
    with storage.writing(uri), _whole_file(uri) as path:
        writer: pq.ParquetWriter | None = None
        try:
            for group in item.groups:
                chunks = read_chunks(
                    item.shard.path, group, predictor.features, options.missing, options.passthrough
                )
                for chunk in chunks:
                    table, more = _scored(chunk, item, group, options, predictor)
                    tally += more
                    writer = writer or _writer(path, table.schema)
                    writer.write_table(table)
            if writer is None:
                raise DataError(f"{item.shard.path}: row groups {item.groups} hold no rows")
            writer.add_key_value_metadata({TALLY_KEY: json.dumps(asdict(tally)).encode()})
        finally:
            if writer is not None:
                writer.close()
    return tally


def _writer(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    """Dictionaries for words only: looking for equal codes and scores costs more than scoring."""
    words = [field.name for field in schema if _is_word(field.type)]
    return pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=words, write_page_checksum=True
    )


def _is_word(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )


@contextmanager
def _whole_file(uri: str) -> Iterator[str]:
    """A path to write to; its content appears at `uri` when the block ends well, durably."""
    local = storage.is_local(uri)
    folder = os.path.dirname(uri) if local else None
    if folder:
        os.makedirs(folder, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix=".part-", suffix=".tmp", dir=folder)
    os.close(handle)
    try:
        yield path
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        if local:
            os.chmod(path, 0o666 & ~_umask())
            try:
                os.replace(path, uri)
            except FileNotFoundError:
                raise DataError(
                    f"{uri}: another run of this job works on the same output"
                ) from None
            storage.sync_folder(Path(uri).parent)
        else:
            fs, inner = storage.filesystem(uri)
            fs.put_file(path, inner)
    finally:
        if os.path.exists(path):
            os.remove(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _scored(
    chunk: Chunk, item: Item, group: int, options: Options, predictor: Predictor
) -> tuple[pa.Table, Tally]:
    features = chunk.features if chunk.whole.all() else chunk.features[chunk.whole]
    scores = predictor.score(
        features,
        threshold=options.threshold,
        reconstruction="reconstruction" in options.outputs,
        feature_errors="feature_errors" in options.outputs,
    )
    kept = np.flatnonzero(chunk.whole)
    columns: dict[str, Any] = {
        name: _take(chunk.table.column(name), kept, len(chunk.whole))
        for name in options.passthrough
    }
    if "code" in options.outputs:
        columns["code"] = _lists(scores.code)
    if "hash" in options.outputs:
        columns["hash"] = _bytes(scores.hash)
    if "score" in options.outputs:
        columns["score"] = pa.array(scores.score)
        columns["is_anomaly"] = pa.array(scores.is_anomaly)
    if scores.reconstruction is not None:
        columns["reconstruction"] = _lists(scores.reconstruction)
    if scores.feature_errors is not None:
        columns["feature_errors"] = _lists(scores.feature_errors)
    if scores.imputed is not None and options.missing == "mean":
        columns["imputed"] = _lists(scores.imputed)
    lineage = {
        "shard": item.shard.name,
        "model": options.model,
        "model_version": options.version,
        "model_digest": options.digest,
    }
    columns["row_group"] = pa.array(np.full(len(kept), group, dtype=np.int32))
    columns["row"] = pa.array(kept + chunk.start)
    columns |= {name: _constant(value, len(kept)) for name, value in lineage.items()}
    tally = Tally(
        rows=len(kept),
        dropped=len(chunk.whole) - len(kept),
        anomalies=int(scores.is_anomaly.sum()),
        score=float(scores.score.sum()),
        range_mse=float(scores.range_mse.sum()),
    )
    return pa.table(columns), tally


def _take(column: pa.ChunkedArray, kept: NDArray[np.int64], rows: int) -> pa.ChunkedArray:
    return column if len(kept) == rows else column.take(pa.array(kept))


def _lists(matrix: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def _bytes(matrix: NDArray[np.uint8]) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(matrix))
    return pa.Array.from_buffers(pa.binary(matrix.shape[1]), len(matrix), [None, buffer])


def _constant(value: str, rows: int) -> pa.Array:
    indices = pa.array(np.zeros(rows, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value]))


def reserved(outputs: Sequence[str]) -> set[str]:
    """Column names that passthrough columns may not take."""
    lineage = {"shard", "row_group", "row", "model", "model_version", "model_digest"}
    beside = {"score": "is_anomaly", "feature_errors": "imputed"}
    return {*outputs, *lineage, *(beside[name] for name in outputs if name in beside)}
