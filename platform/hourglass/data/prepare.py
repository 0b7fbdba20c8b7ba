"""From a job's `data` section to checked rows: what footers tell, before anything is read."""

import warnings
from collections.abc import Sequence

import pyarrow as pa

from hourglass.data.footer import open_shard
from hourglass.data.manifest import Manifest, load_manifest, require_pinned, scan, unchecked
from hourglass.data.schema import Features, FeatureSchema, Missing, is_list, resolve
from hourglass.errors import DataError, first_line


def open_dataset(
    uri: str | Sequence[str], pinned_at: str | None = None
) -> tuple[Manifest, pa.Schema]:
    """List and check the shards, against the pinned manifest if there is one. Raises DataError."""
    found, schema = scan(uri)
    require_data(uri, found, pinned_at)
    return found, schema


def require_data(uri: str | Sequence[str], found: Manifest, pinned_at: str | None = None) -> None:
    """Raise DataError when the shards found have no rows, or are not those of the pinned manifest.

    Warns when damage to a page could go unnoticed: no page checksums, and no content pinned.
    """
    by_content = False
    if pinned_at is not None:
        pinned = load_manifest(pinned_at)
        require_pinned(pinned_at, pinned, found)
        by_content = not any(shard.digest.startswith("footer-") for shard in pinned.shards)
    if not found.rows:
        raise DataError(f"{uri}: {len(found.shards)} shards without a single row")
    sentence = unchecked(found)
    if sentence is not None and not by_content:
        warnings.warn(sentence, stacklevel=2)


def feature_schema(
    manifest: Manifest, schema: pa.Schema, features: Features, missing: Missing
) -> FeatureSchema:
    """What a row of features is in this dataset. Raises DataError naming file and column."""
    full = [shard.path for shard in manifest.shards if sum(shard.rows)]
    width = None
    if features.vector in schema.names:
        kind = schema.field(features.vector).type
        if is_list(kind) and not pa.types.is_fixed_size_list(kind):
            lengths = (_first_length(path, str(features.vector)) for path in full)
            width = next((length for length in lengths if length is not None), None)
    return resolve(features, full[0], schema, missing, width)


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
