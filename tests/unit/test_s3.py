"""Shards in S3: a real S3 API over HTTP, reached by the usual AWS variables and nothing else."""

import io
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from hourglass import storage
from hourglass.data.dataset import open_dataset, scan_dataset
from hourglass.data.decode import read_chunks
from hourglass.data.inspect import inspect
from hourglass.data.manifest import (
    content_digest,
    list_shards,
    load_manifest,
    require_pinned,
    save_manifest,
    scan,
)
from hourglass.data.schema import Features
from hourglass.errors import DataError

ROWS = np.random.default_rng(0).integers(0, 256, (30, 6), dtype=np.uint8)
REACH = "check AWS_ENDPOINT_URL, the credentials and the region"


def shard(first: int) -> bytes:
    """Ten rows in three row groups."""
    sink = io.BytesIO()
    flat = pa.array(ROWS[first : first + 10].reshape(-1))
    table = pa.table({"image": pa.FixedSizeListArray.from_arrays(flat, 6)})
    pq.write_table(table, sink, row_group_size=4, write_page_checksum=True)
    return sink.getvalue()


@pytest.fixture
def folder(s3: str, request: pytest.FixtureRequest) -> str:
    """Three shards of this test alone, beside files that are none."""
    uri = f"{s3}/{re.sub('[^a-z0-9]', '-', request.node.name)}/train"
    for number in range(3):
        storage.write(f"{uri}/part-{number}.parquet", shard(10 * number))
    for name in ("_SUCCESS", "_temporary/part-9.parquet", ".part-0.parquet.crc", "notes.txt"):
        storage.write(f"{uri}/{name}", b"not a shard")
    return uri


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Change AWS variables; connections made before or with them are forgotten."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


def test_storage_reads_and_writes_objects(s3: str) -> None:
    root = f"{s3}/storage"
    for name, content in (("b/c", b"new"), ("a", b""), ("b/c", b"newer")):
        storage.write(storage.join(root, name), content)
        assert storage.read(storage.join(root, name)) == content
        assert storage.size(storage.join(root, name)) == len(content)
    assert storage.names(root) == ["a", "b"]
    assert storage.names(storage.join(root, "nowhere")) == []
    for name in ("a", "b", "b"):  # an object, a folder, nothing
        storage.remove(storage.join(root, name))
    assert not storage.exists(root)
    with pytest.raises(FileNotFoundError):
        storage.read(storage.join(root, "a"))


def test_what_another_process_wrote_is_seen(s3: str) -> None:
    """A listing is kept by the process that asked for it, and knows nothing of what came later."""
    root = f"{s3}/others"
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    _, path = storage.filesystem(root)
    for name in ("new", "folder/part"):
        storage.write(f"{root}/old", b"one")
        assert storage.names(root) == ["old"]
        other.pipe_file(f"{path}/{name}", b"x")
        storage.remove(f"{root}/{name.partition('/')[0]}")
        assert other.find(path, refresh=True) == [f"{path}/old"]
        assert storage.names(root) == ["old"]
    other.pipe_file(f"{path}/old", b"longer")
    assert storage.size(f"{root}/old") == 6
    assert storage.names(root) == ["old"]
    other.rm(path, recursive=True)
    storage.remove(root)  # gone already
    assert not storage.exists(root)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("{}", [0, 1, 2]), ("{}/", [0, 1, 2]), ("{}/part-[02].parquet", [0, 2]), ("{}/part-1.parquet", [1])],
)  # fmt: skip
def test_shards_are_listed(folder: str, pattern: str, found: list[int]) -> None:
    expected = [f"{folder}/part-{number}.parquet" for number in found]
    assert list_shards(pattern.format(folder)) == expected


def test_a_dataset_has_one_identity_on_disk_and_in_s3(folder: str, tmp_path: Path) -> None:
    manifest = open_dataset(folder).manifest
    for number in range(3):
        (tmp_path / f"part-{number}.parquet").write_bytes(shard(10 * number))
    local = open_dataset(str(tmp_path)).manifest
    assert manifest.digest == local.digest
    names = [shard.name for shard in manifest.shards]
    assert names == ["part-0.parquet", "part-1.parquet", "part-2.parquet"]
    assert {shard.rows for shard in manifest.shards} == {(4, 4, 2)}


def test_rows_are_decoded(folder: str) -> None:
    dataset = scan_dataset(folder)
    schema = dataset.features(Features(vector="image"), "error")
    chunks = [
        chunk
        for one in dataset.manifest.shards
        for group in range(3)
        for chunk in read_chunks(one.path, group, schema, "error", ("image",), one.digest)
    ]
    features = np.concatenate([chunk.features for chunk in chunks])
    assert np.array_equal(features, ROWS)
    beside = np.concatenate([np.stack(chunk.table["image"].to_numpy()) for chunk in chunks])
    assert np.array_equal(beside, ROWS)
    (column,) = inspect(folder, lambda *_: None).columns
    assert (column.low, column.high, column.values) == (ROWS.min(), ROWS.max(), 180)


def test_a_manifest_pins_objects_by_etag_or_by_hash(folder: str, tmp_path: Path) -> None:
    pinned, _ = scan(folder, content=True)
    assert {shard.digest[:5] for shard in pinned.shards} == {"etag:"}
    save_manifest(f"{folder}/manifest.json", pinned)
    assert load_manifest(f"{folder}/manifest.json") == pinned
    open_dataset(folder, f"{folder}/manifest.json")

    for number in range(3):
        (tmp_path / f"part-{number}.parquet").write_bytes(shard(10 * number))
    local, _ = scan(str(tmp_path), content=True)
    require_pinned("local.json", local, scan(folder)[0])

    damaged = bytearray(shard(10))
    damaged[30] ^= 1
    storage.write(f"{folder}/part-1.parquet", bytes(damaged))
    for manifest in (pinned, local):
        with pytest.raises(DataError) as caught:
            require_pinned("manifest.json", manifest, scan(folder)[0])
        assert str(caught.value) == (
            "the data differs from the manifest manifest.json:\n"
            f"  {folder}/part-1.parquet: content differs from the manifest"
        )


def test_damage_and_replacement_are_told_as_on_disk(folder: str) -> None:
    dataset = scan_dataset(folder)
    schema = dataset.features(Features(vector="image"), "error")
    one = dataset.manifest.shards[1]
    content = bytearray(storage.read(one.path))
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(0)
    content[column.dictionary_page_offset + column.total_compressed_size - 2] ^= 1
    storage.write(one.path, bytes(content))
    with pytest.raises(DataError, match="row group 1, column 'image': cannot be decoded"):
        list(read_chunks(one.path, 1, schema, "error"))
    storage.write(one.path, shard(0))
    storage.filesystem(one.path)[0].invalidate_cache()
    with pytest.raises(DataError, match=r"part-1.parquet: was replaced since it was listed"):
        list(read_chunks(one.path, 1, schema, "error", digest=one.digest))


USES: list[Any] = [scan, lambda uri: list_shards(f"{uri}/*.parquet"), content_digest, load_manifest]


@pytest.mark.parametrize("uri", ["{}/nothing", "s3://no-such-bucket/train"])
def test_what_is_not_there_is_named(s3: str, uri: str) -> None:
    asked = uri.format(s3)
    for use in (scan, content_digest, load_manifest):
        with pytest.raises(DataError) as caught:
            use(asked)
        assert str(caught.value) == f"{asked}: no such file or folder"


def test_refused_credentials_are_named(folder: str, fresh: pytest.MonkeyPatch) -> None:
    count_free_requests("0")  # from now on keys are checked, and ours are not known
    try:
        for use in USES:
            with pytest.raises(DataError) as caught:
                use(folder)
            assert str(caught.value).endswith(": permission denied; check the credentials")
            assert str(caught.value).startswith(folder)
            assert "secret" not in str(caught.value)
    finally:
        count_free_requests("inf")


def count_free_requests(number: str) -> None:
    request = urllib.request.Request(
        f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth",
        data=number.encode(),
        headers={"Content-Type": "text/plain"},
    )
    urllib.request.urlopen(request).close()


def test_missing_credentials_are_named(folder: str, fresh: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        fresh.delenv(name)
    fresh.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(DataError) as caught:
        scan(folder)
    assert str(caught.value) == (
        f"{folder}: S3 cannot be reached (Unable to locate credentials); {REACH}"
    )


def test_an_endpoint_that_is_down_is_named(folder: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fresh.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError) as caught:
        scan(folder)
    assert str(caught.value).startswith(f"{folder}: S3 cannot be reached (Could not connect to")
    assert str(caught.value).endswith(REACH)


def test_a_folder_marker_is_not_in_the_folder(s3: str) -> None:
    """Ray and the consoles of stores leave empty objects that end with a slash."""
    storage.write(f"{s3}/marked/part", b"x")
    fs, path = storage.filesystem(f"{s3}/marked")
    fs.call_s3("put_object", Bucket="bucket", Key="marked/", Body=b"")
    fs.invalidate_cache()
    assert any(entry.rstrip("/") == path for entry in fs.ls(path, detail=False)), "no marker"
    assert storage.names(f"{s3}/marked") == ["part"]
