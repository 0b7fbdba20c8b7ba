"""Which shards make up a dataset, and whether they are the ones that a manifest pins."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass.data.dataset import open_dataset
from hourglass.data.manifest import (
    Manifest,
    list_shards,
    load_manifest,
    locate,
    require_pinned,
    save_manifest,
    scan,
)
from hourglass.errors import DataError

NAMES = ("part-0.parquet", "part-1.parquet", "2026/07/part-2.parquet", "2026/part-3.parquet")
SKIPPED = (
    "_metadata", "_SUCCESS", ".part-0.parquet.crc", ".hidden.parquet", "_temporary/part-9.parquet",
    ".spark/part-9.parquet", "part-9.parquet.tmp", "notes.txt",
)  # fmt: skip


def shard(path: Path, rows: int = 10, first: float = 0.0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"x": np.arange(first, first + rows), "y": np.ones(rows)})
    kept = {"write_page_checksum": True, "row_group_size": 4, "compression": "none"}
    pq.write_table(table, path, **(kept | options))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards of 10 rows, among files that are none."""
    for number, name in enumerate(NAMES):
        shard(tmp_path / "data" / name, first=10.0 * number)
    for name in SKIPPED:
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text("not a shard")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("uris", "found"),
    [
        ("{}", sorted(NAMES)),
        ("{}/", sorted(NAMES)),
        ("file://{}", sorted(NAMES)),
        ("{}/2026", ["2026/07/part-2.parquet", "2026/part-3.parquet"]),
        ("{}/part-1.parquet", ["part-1.parquet"]),
        ("{}/part-[01].parquet", ["part-0.parquet", "part-1.parquet"]),
        ("{}/*.parquet", ["part-0.parquet", "part-1.parquet"]),
        ("{}/**/*-[0-3].parquet", sorted(NAMES)),
        (["{}/part-1.parquet", "{}/part-0.parquet"], ["part-0.parquet", "part-1.parquet"]),
        (["{}/part-1.parquet", "{}/*.parquet"], ["part-0.parquet", "part-1.parquet"]),
    ],
)
def test_shards_are_listed_once_and_sorted(
    folder: Path, uris: str | list[str], found: list[str]
) -> None:
    asked = uris.format(folder) if isinstance(uris, str) else [uri.format(folder) for uri in uris]
    assert list_shards(asked) == [str(folder / name) for name in found]


def test_a_name_with_glob_marks_is_a_name(tmp_path: Path) -> None:
    path = shard(tmp_path / "part[0].parquet")
    assert list_shards(str(path)) == [str(path)]


@pytest.mark.parametrize(
    ("uri", "wording"),
    [
        ("{}/nowhere", "no such file or folder"),
        ("{}/empty", "no Parquet files there (names ending in .parquet)"),
        ("{}/*.orc", "no Parquet files there (names ending in .parquet)"),
        ("http://{}", "scheme 'http://' is not supported; use a path or s3://bucket/key"),
    ],
)
def test_nothing_to_list(folder: Path, uri: str, wording: str) -> None:
    (folder / "empty").mkdir()
    asked = uri.format(folder)
    with pytest.raises(DataError) as caught:
        list_shards(asked)
    assert str(caught.value) == f"{asked}: {wording}"


def test_a_manifest_counts_and_is_the_same_for_a_copy(folder: Path, tmp_path: Path) -> None:
    manifest, schema = scan(str(folder))
    assert manifest.rows == 40
    assert [shard.name for shard in manifest.shards] == sorted(NAMES)
    assert {shard.rows for shard in manifest.shards} == {(4, 4, 2)}
    assert manifest.columns == (("x", "double"), ("y", "double"))
    assert schema.names == ["x", "y"]
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert scan(str(copy))[0].digest == manifest.digest
    assert scan([str(copy / name) for name in reversed(NAMES)])[0].digest == manifest.digest
    shard(copy / NAMES[0], first=0.5)
    assert scan(str(copy))[0].digest != manifest.digest


@pytest.mark.parametrize("content", [False, True])
def test_a_manifest_survives_its_file(folder: Path, tmp_path: Path, content: bool) -> None:
    manifest, _ = scan(str(folder), content=content)
    save_manifest(str(tmp_path / "manifest.json"), manifest)
    assert load_manifest(str(tmp_path / "manifest.json")) == manifest
    kinds = {shard.digest.split(":")[0] for shard in manifest.shards}
    assert kinds == {"sha256" if content else "footer-sha256"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}', "null", "[" * 100_000])
def test_other_files_are_no_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_manifest(str(path))
    assert str(caught.value) == (
        f"{path}: not a manifest; write one with `hourglass data manifest`"
    )


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json: no such file or folder$"):
        load_manifest(str(tmp_path / "manifest.json"))


def longer(folder: Path) -> str:
    path = shard(folder / NAMES[0], rows=11)
    size = path.stat().st_size
    return f"{path}: {size} bytes, 11 rows; the manifest says {{size}} bytes, 10 rows"


def other_numbers(folder: Path) -> str:
    return f"{shard(folder / NAMES[0], first=0.5)}: content differs from the manifest"


def one_bit(folder: Path) -> str:
    path = folder / NAMES[0]
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    return f"{path}: content differs from the manifest"


def more(folder: Path) -> str:
    return f"{shard(folder / 'part-7.parquet')}: not in the manifest"


def fewer(folder: Path) -> str:
    (folder / NAMES[0]).unlink()
    return f"{NAMES[0]}: in the manifest, but missing"


@pytest.mark.parametrize("content", [False, True], ids=["footers", "content"])
@pytest.mark.parametrize("change", [longer, other_numbers, one_bit, more, fewer])
def test_what_differs_from_a_pinned_manifest_is_named(
    folder: Path, change: Callable[[Path], str], content: bool
) -> None:
    pinned, _ = scan(str(folder), content=content)
    require_pinned("manifest.json", pinned, scan(str(folder))[0])
    size = next(shard.size for shard in pinned.shards if shard.name == NAMES[0])
    wording = change(folder).format(size=size)
    found, _ = scan(str(folder))
    if change is one_bit and not content:
        require_pinned("manifest.json", pinned, found)  # the control: footers do not tell
        return
    with pytest.raises(DataError) as caught:
        require_pinned("manifest.json", pinned, found)
    assert str(caught.value) == f"the data differs from the manifest manifest.json:\n  {wording}"


def test_etags_do_not_pin_local_files(folder: Path) -> None:
    found, _ = scan(str(folder / NAMES[0]))
    stored = found.model_dump()
    stored["shards"][0]["digest"] = "etag:0123"
    with pytest.raises(DataError) as caught:
        require_pinned("manifest.json", Manifest.model_validate(stored), found)
    assert str(caught.value) == (
        f"{folder / NAMES[0]}: pinned by the ETag of an S3 object; pin local files with a manifest "
        "of their own"
    )


def test_missing_checksums_are_told_once_for_a_dataset(folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(str(folder))
    for name in NAMES[:2]:
        shard(folder / name, write_page_checksum=False)
    with pytest.warns(UserWarning) as caught:
        open_dataset(str(folder))
    bare = folder / NAMES[0]
    assert [str(warning.message) for warning in caught] == [
        f"2 of 4 shards carry no page checksums ({bare} is one): damage to them may change numbers "
        "unnoticed. Write them with write_page_checksum=True, or pin their content with "
        "`hourglass data manifest`"
    ]
    pinned = str(tmp_path / "manifest.json")
    save_manifest(pinned, scan(str(folder), content=True)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(str(folder), pinned)


@pytest.mark.parametrize("groups", [0, 1])
def test_shards_without_rows(tmp_path: Path, groups: int) -> None:
    schema = pa.schema([("x", pa.float64()), ("y", pa.float64())])
    empty = tmp_path / "empty.parquet"
    with pq.ParquetWriter(empty, schema) as writer:
        for _ in range(groups):
            writer.write_table(schema.empty_table())
    with pytest.raises(DataError) as caught:
        open_dataset(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: 1 shards without a single row"
    shard(tmp_path / "full.parquet")
    manifest = open_dataset(str(tmp_path)).manifest
    assert manifest.rows == 10
    assert json.loads(manifest.model_dump_json())["shards"][1]["rows"] == [4, 4, 2]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/digits", "digits"),
        ("/data/digits/", "digits"),
        ("file:///data/digits", "digits"),
        ("/data/digits/*.parquet", "digits"),
        ("/data/digits/year=*/part-[0-9].parquet", "digits"),
        ("/data/digits/part-0.parquet", "part-0.parquet"),
        ("s3://bucket/some/digits", "digits"),
        ("s3://bucket/me@home/", "me@home"),
        ("s3://bucket", "bucket"),
        ("s3://key:secret@bucket", "bucket"),
        ("s3://key:secret@bucket/*.parquet", "bucket"),
        ("digits/../cars/.", "cars"),
        (("/data/train", "s3://b/extra/*", "/other/train"), "train, extra"),
    ],
)
def test_a_dataset_is_known_by_the_last_part_of_its_path(
    uri: str | tuple[str, ...], name: str
) -> None:
    printed = list(uri) if isinstance(uri, tuple) else uri
    assert locate(uri) == {"name": name, "uri": printed}


def test_a_dataset_that_is_the_folder_it_is_asked_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path / "digits")
    assert locate(".") == {"name": "digits", "uri": "."}
