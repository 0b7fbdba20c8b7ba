"""A dataset: its checked shards, how its rows are read, and what was counted and measured in them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.data import order
from hourglass.data.decode import Matrix, read_chunks
from hourglass.data.footer import open_shard
from hourglass.data.manifest import (
    Manifest,
    Shard,
    describe,
    load_manifest,
    locate,
    require_pinned,
    scan,
    unchecked,
)
from hourglass.data.order import GroupCount, Slice, Split
from hourglass.data.schema import Features, FeatureSchema, Missing, is_list, resolve
from hourglass.data.stats import Stats
from hourglass.data.unlikely import Sample
from hourglass.errors import DataError, first_line


@dataclass(frozen=True)
class Dataset:
    """The shards at `uri`, known by their footers: no row has been read."""

    uri: str | Sequence[str]
    manifest: Manifest
    schema: pa.Schema

    @property
    def record(self) -> dict[str, Any]:
        """What a run records of it: name, URI, digest, numbers of shards and rows."""
        return {**locate(self.uri), **describe(self.manifest)}

    def features(self, features: Features, missing: Missing) -> FeatureSchema:
        """The schema of the features. Raises DataError naming file and column."""
        full = [shard.path for shard in self.manifest.shards if sum(shard.rows)]
        width = None
        if features.vector in self.schema.names:
            kind = self.schema.field(features.vector).type
            if is_list(kind) and not pa.types.is_fixed_size_list(kind):
                lengths = (_first_length(path, str(features.vector)) for path in full)
                width = next((length for length in lengths if length is not None), None)
        return resolve(features, full[0], self.schema, missing, width)

    def check(self, pinned_at: str | None = None) -> None:
        """Raise DataError when there are no rows, or other shards than in the manifest at `pinned_at`.

        Warns when damage to a page could go unnoticed: no page checksums, and no content pinned.
        """
        by_content = False
        if pinned_at is not None:
            pinned = load_manifest(pinned_at)
            require_pinned(pinned_at, pinned, self.manifest)
            by_content = not any(shard.digest.startswith("footer-") for shard in pinned.shards)
        if not self.manifest.rows:
            raise DataError(f"{self.uri}: {len(self.manifest.shards)} shards without a single row")
        warning = unchecked(self.manifest)
        if warning is not None and not by_content:
            warnings.warn(warning, stacklevel=2)


def open_dataset(uri: str | Sequence[str], pinned_at: str | None = None) -> Dataset:
    """List the shards at `uri` and check them, against a pinned manifest if given. Raises DataError."""
    dataset = scan_dataset(uri)
    dataset.check(pinned_at)
    return dataset


def scan_dataset(uri: str | Sequence[str]) -> Dataset:
    """List the shards at `uri` and read their footers. Raises DataError."""
    return Dataset(uri, *scan(uri))


def _first_length(path: str, column: str) -> int | None:
    with open_shard(path) as shard:
        try:
            for batch in shard.iter_batches(64, columns=[column], use_threads=False):
                lengths = (len(value) for value in batch.column(0) if value.is_valid)
                first = next((length for length in lengths if length), None)
                if first is not None:
                    return first
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: column '{column}' cannot be decoded ({first_line(error)})"
            ) from None
    return None


@dataclass(frozen=True)
class Rows:
    """The rows of some shards: their features, the policy for missing cells, the held-out share.

    With `levels`, distinct values are counted as the rows are measured.
    """

    shards: tuple[Shard, ...]
    schema: FeatureSchema
    missing: Missing
    holdout: float
    levels: bool = False

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(shard, row group) of every row group that has rows, in order."""
        shards = enumerate(self.shards)
        return [(s, g) for s, shard in shards for g, rows in enumerate(shard.rows) if rows]

    def chunks(
        self, shard: int, group: int
    ) -> Iterator[tuple[int, Matrix, NDArray[np.bool_], int]]:
        """Start, features of the complete rows, their holdout mask, and the number of dropped rows."""
        source = self.shards[shard]
        footer = source.digest if source.digest.startswith("footer-") else None
        for chunk in read_chunks(source.path, group, self.schema, self.missing, digest=footer):
            rows = len(chunk.whole)
            held = order.holdout_mask(source.name, group, chunk.start, rows, self.holdout)
            if chunk.whole.all():
                yield chunk.start, chunk.features, held, 0
            else:
                kept = chunk.features[chunk.whole]
                yield chunk.start, kept, held[chunk.whole], rows - len(kept)

    def read_slice(self, part: Slice) -> Iterator[Matrix]:
        """The features of one slice, chunk by chunk."""
        offset = 0
        for _, features, held, _ in self.chunks(part.shard, part.group):
            mask = held if part.split == "holdout" else ~held
            chosen = features if mask.all() else features[mask]
            low, high = max(part.start - offset, 0), min(part.stop - offset, len(chosen))
            if low < high:
                yield chosen[low:high]
            offset += len(chosen)
            if offset >= part.stop:
                return

    def read_through(self, shard: int) -> None:
        """Decode all rows of a shard and discard them."""
        for group, count in enumerate(self.shards[shard].rows):
            for _ in self.chunks(shard, group) if count else ():
                pass


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of the training rows, and the number of rows of each row group.

    `imputed` counts the missing cells of all rows, held-out ones included; `samples` belong to the
    watched columns.
    """

    stats: Stats
    counts: tuple[GroupCount, ...]
    imputed: int
    samples: tuple[Sample, ...] = ()

    def rows(self, split: Split) -> int:
        """Rows of one split."""
        return sum(count.of(split) for count in self.counts)

    @property
    def dropped(self) -> int:
        """Rows dropped for missing cells."""
        return sum(count.dropped for count in self.counts)
