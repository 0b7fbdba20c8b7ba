"""Shards through Ray Data, from a disk and from S3: every row, in the planned order, or a DataError."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass import storage
from hourglass.cluster.connect import connection
from hourglass.data import order, reading
from hourglass.data.dataset import Rows, open_dataset
from hourglass.data.loader import MemoryLoader, StreamLoader
from hourglass.data.order import Slice
from hourglass.data.schema import Features, Missing
from hourglass.errors import DataError
from hourglass.settings import Settings

IMAGES = np.random.default_rng(0).integers(0, 256, (900, 12), dtype=np.uint8)
NUMBERS = np.random.default_rng(1).normal(5.0, 3.0, (900, 2))
NUMBERS[[3, 310, 311, 899], [0, 1, 0, 1]] = [np.nan, np.inf, np.nan, -np.inf]
HOLDOUT = 0.2


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[Path]:
    """Two CPUs, started after the AWS variables are there, as on a machine that has them."""
    folder, before = Path(tempfile.mkdtemp(prefix="hgd", dir="/tmp")), dict(os.environ)
    settings = Settings(home=folder / "home", temp_dir=str(folder / "ray"))
    with connection(cpus=2, settings=settings):
        yield folder
    os.environ.clear()
    os.environ |= before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=["disk", "s3"])
def folder(cluster: Path, s3: str, request: pytest.FixtureRequest) -> str:
    """Three shards of 300 rows, in row groups of 90 rows and one of 30."""
    uri = f"{s3}/data" if request.param == "s3" else str(cluster / "data")
    for number in range(3):
        storage.write(f"{uri}/part-{number}.parquet", shard(300 * number))
    return uri


def shard(first: int) -> bytes:
    images, numbers = IMAGES[first : first + 300], NUMBERS[first : first + 300]
    image = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 12)
    table = pa.table({"image": image, "a": numbers[:, 0], "b": numbers[:, 1]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=90, write_page_checksum=True)
    return sink.getvalue()


def rows_of(uri: str, missing: Missing = "error", **features: Any) -> Rows:
    dataset = open_dataset(uri)
    schema = dataset.features(Features.model_validate(features), missing)
    return Rows(dataset.manifest.shards, schema, missing, HOLDOUT)


HELD = np.concatenate(
    [
        order.holdout_mask(f"part-{number}.parquet", group, 0, rows, HOLDOUT)
        for number in range(3)
        for group, rows in enumerate((90, 90, 90, 30))
    ]
)


def test_the_census_is_numpys_and_the_cache_holds_every_row(folder: str) -> None:
    rows = rows_of(folder, vector="image")
    statistics, refs = reading.load(rows, keep_features=True)
    features, held = reading.fetch(refs, rows.schema)
    assert np.array_equal(features, IMAGES)
    assert np.array_equal(held, HELD)
    train = IMAGES[~HELD].astype(np.float64)
    assert statistics.stats.count.tolist() == [len(train)] * 12
    np.testing.assert_allclose(statistics.stats.mean, train.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.stats.sd, train.std(0), rtol=1e-13)
    assert statistics.stats.low.tolist() == train.min(0).tolist()
    assert statistics.stats.high.tolist() == train.max(0).tolist()
    assert (statistics.rows("train"), statistics.rows("holdout")) == ((~HELD).sum(), HELD.sum())
    assert [(count.shard, count.group) for count in statistics.counts] == [
        (number, group) for number in range(3) for group in range(4)
    ]
    without, nothing = reading.load(rows, keep_features=False)
    assert nothing == []
    assert without.counts == statistics.counts
    for name, value in statistics.stats.arrays().items():
        assert value.tobytes() == without.stats.arrays()[name].tobytes()


def test_streams_are_the_planned_slices_in_order(folder: str) -> None:
    rows = rows_of(folder, vector="image")
    statistics, _ = reading.load(rows, keep_features=False)
    whole = {
        (count.shard, count.group): IMAGES[start:][:length][~HELD[start:][:length]]
        for count, (start, length) in zip(
            statistics.counts,
            [(300 * n + 90 * g, 30 if g == 3 else 90) for n in range(3) for g in range(4)],
            strict=True,
        )
    }
    dealt = order.epoch_slices(statistics.counts, 7, 1, 64, 2)
    for slices in dealt:
        expected = [whole[part.shard, part.group][part.start : part.stop] for part in slices]
        streamed = list(reading.stream_features(rows, slices))
        assert np.array_equal(np.concatenate(streamed), np.concatenate(expected))
    assert list(reading.stream_features(rows, [])) == []


def test_both_loaders_train_on_the_same_rows(folder: str) -> None:
    rows = rows_of(folder, vector="image")
    statistics, refs = reading.load(rows, keep_features=True)
    common = {"batch_size": 100, "seed": 3}
    memory = MemoryLoader(*reading.fetch(refs, rows.schema), **common)
    stream = StreamLoader(
        statistics.counts,
        lambda slices: reading.stream_features(rows, slices),
        columns=12,
        window_rows=128,
        **common,
    )
    assert memory.steps == stream.steps == 8
    epochs = [
        np.concatenate([batch.rows for batch in loader.train(0)]) for loader in (memory, stream)
    ]
    assert [sorted(map(tuple, epoch)) for epoch in epochs] == [
        sorted(map(tuple, IMAGES[~HELD]))
    ] * 2
    held = [np.concatenate(list(loader.holdout())) for loader in (memory, stream)]
    assert np.array_equal(held[0], held[1])
    assert np.array_equal(held[0], IMAGES[HELD])


@pytest.mark.parametrize("missing", ["mean", "drop_row"])
def test_dropped_and_imputed_cells_are_counted(folder: str, missing: Missing) -> None:
    rows = rows_of(folder, missing, columns=["a", "b"])
    statistics, refs = reading.load(rows, keep_features=True)
    features, held = reading.fetch(refs, rows.schema)
    whole = np.isfinite(NUMBERS).all(1)
    if missing == "mean":
        np.testing.assert_array_equal(features, NUMBERS)
        expected = (~np.isfinite(NUMBERS[~HELD])).sum(0)
        assert (statistics.dropped, statistics.stats.missing.tolist()) == (0, expected.tolist())
        assert statistics.imputed == (~np.isfinite(NUMBERS)).sum() > expected.sum()
    else:
        np.testing.assert_array_equal(features, NUMBERS[whole])
        assert np.array_equal(held, HELD[whole])
        assert (statistics.dropped, statistics.stats.missing.tolist()) == (4, [0, 0])
        assert statistics.imputed == 0
        assert sum(count.train + count.holdout for count in statistics.counts) == 896
    trained = np.where(np.isfinite(NUMBERS), NUMBERS, np.nan)[~HELD & (whole | (missing == "mean"))]
    np.testing.assert_allclose(statistics.stats.mean, np.nanmean(trained, 0), rtol=1e-12)


def reported(read: Any) -> str:
    with pytest.raises(DataError) as caught:
        read()
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_missing_cell_is_told_without_rays_frames(
    folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(folder, columns=["a", "b"])
    message = (
        f"{folder}/part-0.parquet: row group 0, row 3, column 'a': found nan (1 such rows in these "
        "90); `missing: error` allows finite numbers only. Set data.missing to `mean` or `drop_row`"
    )
    assert reported(lambda: reading.load(rows, keep_features=True)) == message
    parts = [Slice(0, 0, "train", 0, 20)]
    assert reported(lambda: list(reading.stream_features(rows, parts))) == message
    assert "Traceback" not in capfd.readouterr().err


def test_damage_is_told_by_file_row_group_and_column(folder: str) -> None:
    uri, damaged = f"{folder}-damaged", bytearray(shard(300))
    column = pq.ParquetFile(io.BytesIO(damaged)).metadata.row_group(2).column(0)
    damaged[column.dictionary_page_offset + column.total_compressed_size - 2] ^= 1
    storage.write(f"{uri}/part-0.parquet", shard(0))
    storage.write(f"{uri}/part-1.parquet", bytes(damaged))
    rows = rows_of(uri, vector="image")
    message = f"{uri}/part-1.parquet: row group 2, column 'image': cannot be decoded ("
    assert reported(lambda: reading.load(rows, keep_features=False)).startswith(message)
    parts = [Slice(1, 2, "train", 0, 20)]
    assert reported(lambda: list(reading.stream_features(rows, parts))).startswith(message)


def test_a_shard_replaced_after_listing_is_told(folder: str) -> None:
    uri = f"{folder}-replaced"
    storage.write(f"{uri}/part-0.parquet", shard(0))
    rows = rows_of(uri, vector="image")
    storage.write(f"{uri}/part-0.parquet", shard(300))
    assert reported(lambda: reading.load(rows, keep_features=False)) == (
        f"{uri}/part-0.parquet: was replaced since it was listed; run again"
    )


def test_a_shard_that_ends_its_reader_is_named(cluster: Path, monkeypatch: Any) -> None:
    """Ray Data would begin such a task again without end."""
    monkeypatch.setattr(reading, "TASK_BYTES", 1)
    uri = str(cluster / "deadly")
    for number in range(3):
        storage.write(f"{uri}/part-{number}.parquet", shard(300 * number))
    found = rows_of(uri, vector="image")

    class Deadly(Rows):
        """Rows of which the second shard does what a native crash does."""

        def chunks(self, shard: int, group: int) -> Any:
            if shard == 1:
                os.abort()
            return super().chunks(shard, group)

    deadly = Deadly(found.shards, found.schema, found.missing, found.holdout)
    message = f"reading failed: the process that read {uri}/part-1.parquet died; is it damaged?"
    assert reported(lambda: reading.load(deadly, keep_features=True)) == message
    slices = [Slice(number, 0, "train", 0, 20) for number in range(3)]
    assert reported(lambda: list(reading.stream_features(deadly, slices, cpus=0.5))) == message
    assert reading.load(found, keep_features=False)[0].rows("train") > 0
