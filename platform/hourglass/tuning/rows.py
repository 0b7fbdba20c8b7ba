"""The rows of a sweep: read, checked and placed in memory once, when a trial needs them."""

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from hourglass.config.paths import below
from hourglass.config.tune import TuneJob
from hourglass.data.manifest import Manifest
from hourglass.data.prepare import feature_schema
from hourglass.data.reading import fetch
from hourglass.errors import DataError, SpecError
from hourglass.training.build import require_watched
from hourglass.training.measure import measure
from hourglass.tuning.trial import Placed


@dataclass(frozen=True)
class Rows:
    """The rows of a sweep, read when a trial needs them, and once."""

    sweep: TuneJob
    manifest: Manifest
    schema: pa.Schema

    @cached_property
    def placed(self) -> Placed:
        """In memory. Raises DataError, SpecError when they may not be kept there."""
        base, metric = self.sweep.job, self.sweep.metric
        data = base.data
        columns = feature_schema(self.manifest, self.schema, data.features, data.missing)
        size = self.manifest.rows * columns.row_bytes
        if size > data.cache_bytes:
            raise SpecError(
                f"base.data.cache_bytes: trials share the rows in memory, which takes {size} bytes, "
                f"found {data.cache_bytes}; raise it, or search on fewer rows"
            )
        # A point may ask for levels, or for a preset that does.
        measured = measure(base, self.manifest, self.schema, levels=True)
        features, held = fetch(measured.refs, measured.rows.schema)
        if metric.startswith("holdout") and not held.any():
            raise DataError(
                f"base.data.holdout: {data.holdout:g} holds out none of {len(features)} rows, and "
                f"metric {metric} needs some; raise it"
            )
        for path in self.sweep.space:
            if below(path, "train.early_stop"):
                require_watched(measured.dataset, f"space.{path}")
        return Placed(measured, features[~held], features[held])
