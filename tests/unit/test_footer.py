"""RAY-13 and PQ-06: a shard is refused by name before anything in it can run or mislead."""

import base64
import json
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray
from ray.data._internal.tensor_extensions import arrow as tensors

from hourglass.data import footer
from hourglass.data.dataset import open_dataset
from hourglass.data.footer import open_shard, read_footer
from hourglass.data.inspect import inspect
from hourglass.data.schema import Features
from hourglass.errors import DataError


class Bomb:
    """Creates its file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


class Evil(pa.ExtensionType):
    """A registered type whose deserialisation unpickles what the file holds, as PyExtensionType's."""

    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload
        super().__init__(pa.int64(), "hourglass.test.evil")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.payload

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Evil":
        if serialized:
            pickle.loads(serialized)
        return cls(serialized)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    pa.register_extension_type(Evil())
    yield
    pa.unregister_extension_type("hourglass.test.evil")


IMAGES = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
RAGGED = [np.zeros((1, 2), np.float32), np.zeros((2, 2), np.float32), np.zeros((3, 1), np.float32)]


def evil(marker: Path) -> pa.ExtensionArray:
    payload = pickle.dumps(Bomb(marker))
    return pa.ExtensionArray.from_storage(Evil(payload), pa.array([1, 2, 3]))


def offsets() -> pa.Array:
    return pa.array([0, 1, 2, 3], pa.int32())


def of_ray(version: str) -> pa.Array:
    kind = {"v1": tensors.ArrowTensorType, "v2": tensors.ArrowTensorTypeV2}[version]
    made = kind((2, 2), pa.float32())
    rows = pa.array([image.ravel() for image in IMAGES], made.storage_type)
    return pa.ExtensionArray.from_storage(made, rows)


HOSTILE: dict[str, Callable[[Path], pa.Array]] = {
    "ray tensor v1": lambda marker: of_ray("v1"),
    "ray tensor v2": lambda marker: of_ray("v2"),
    "ray variable tensor": lambda marker: tensors.ArrowVariableShapedTensorArray.from_numpy(RAGGED),
    "ray object": lambda marker: ArrowPythonObjectArray.from_objects([Bomb(marker)] * 3),
    "python type": evil,
    "python type in a list": lambda marker: pa.ListArray.from_arrays(offsets(), evil(marker)),
    "python type in a struct": lambda marker: pa.StructArray.from_arrays([evil(marker)], ["deep"]),
    "python type in a list of structs": lambda marker: pa.ListArray.from_arrays(
        offsets(), pa.StructArray.from_arrays([evil(marker)], ["deep"])
    ),
    "python type in a map": lambda marker: pa.MapArray.from_arrays(
        offsets(), pa.array(["a", "b", "c"]), evil(marker)
    ),
    "a tensor of Arrow's own": lambda marker: pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES),
}


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_footer(str(path))
    with pytest.raises(DataError) as again, open_shard(str(path)):
        pass
    assert str(again.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_extension_types_are_refused_by_file_and_column(tmp_path: Path, name: str) -> None:
    path, marker = tmp_path / "shard.parquet", tmp_path / "marker"
    table = pa.table({"id": [1, 2, 3], "x": HOSTILE[name](marker)})
    pq.write_table(table, path)
    marker.unlink(missing_ok=True)
    assert refused(path) == (
        f"{path}: column 'x' holds an Arrow extension type, which is never loaded from a file; "
        "write tensors as fixed-size lists of numbers"
    )
    for use in (inspect_all, open_dataset):
        with pytest.raises(DataError, match="extension type"):
            use(str(tmp_path))
    assert not marker.exists()


def inspect_all(uri: str) -> None:
    inspect(uri, lambda done, total, name: None)


def test_without_our_check_the_payload_runs(tmp_path: Path) -> None:
    path, marker = tmp_path / "shard.parquet", tmp_path / "marker"
    pq.write_table(pa.table({"x": evil(marker)}), path)
    marker.unlink(missing_ok=True)
    refused(path)
    assert not marker.exists()
    pq.ParquetFile(path)
    assert marker.exists()


def stored_schema(path: Path, *texts: bytes) -> Path:
    """Write `path` with these texts in its footer as its Arrow schema, one after the other."""
    table = pa.table({"x": [1, 2, 3]})
    keys = [footer.SCHEMA_KEY.replace(b"schema", b"schem%d" % i) for i in range(len(texts))]
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(zip(keys, texts, strict=True)))
    raw = path.read_bytes()
    for key in keys:
        raw = raw.replace(key, footer.SCHEMA_KEY)
    path.write_bytes(raw)
    return path


def arrow_schema(payload: bytes) -> bytes:
    schema = pa.schema([pa.field("x", Evil(payload))])
    return base64.b64encode(schema.serialize().to_pybytes())


def test_a_planted_schema_runs_in_pyarrow_and_not_here(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = stored_schema(tmp_path / "a.parquet", arrow_schema(pickle.dumps(Bomb(marker))))
    assert "column 'x' holds an Arrow extension type" in refused(path)
    assert not marker.exists()
    pq.ParquetFile(path)
    assert marker.exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_schema_behind_a_harmless_one_is_seen(tmp_path: Path, order: tuple[int, int]) -> None:
    marker = tmp_path / "marker"
    plain = base64.b64encode(pa.schema([("x", pa.int64())]).serialize().to_pybytes())
    both = [plain, arrow_schema(pickle.dumps(Bomb(marker)))]
    path = stored_schema(tmp_path / "a.parquet", *(both[i] for i in order))
    assert refused(path) == f"{path}: the stored Arrow schema is damaged"
    assert not marker.exists()


@pytest.mark.parametrize("text", [b"!!", b"QUJD\n", b"QUJ", b"QUJD=QUJD", b""])
def test_a_garbled_schema_is_refused(tmp_path: Path, text: bytes) -> None:
    path = stored_schema(tmp_path / "a.parquet", text)
    assert refused(path).startswith(f"{path}: ")


def test_hidden_keys_are_no_way_around(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = stored_schema(tmp_path / "a.parquet", arrow_schema(pickle.dumps(Bomb(marker))), b"QUJD")
    raw = path.read_bytes()
    last = raw.rfind(footer.SCHEMA_KEY)
    size = len(footer.SCHEMA_KEY)
    path.write_bytes(raw[:last] + footer.HIDDEN_KEY + raw[last + size :])
    assert refused(path) == f"{path}: the stored Arrow schema is damaged"
    assert not marker.exists()


def test_pickles_in_plain_columns_and_pandas_metadata_are_only_bytes(tmp_path: Path) -> None:
    path, marker = tmp_path / "a.parquet", tmp_path / "marker"
    payload = pickle.dumps(Bomb(marker))
    pandas = json.dumps({"columns": [{"pandas_type": "object", "metadata": payload.hex()}]})
    table = pa.table({"bytes": [payload] * 3, "word": pa.array(["a"] * 3).dictionary_encode()})
    pq.write_table(table.replace_schema_metadata({"pandas": pandas}), path)
    dataset = open_quietly(path)
    with pytest.raises(DataError) as caught:
        dataset.features(Features(columns=("bytes",)), "error")
    assert str(caught.value) == (
        f"{path}: column 'bytes' has unsupported type binary; allowed: numbers, booleans, strings, "
        "dates, timestamps and lists of numbers"
    )
    assert not marker.exists()


def open_quietly(path: Path) -> Any:
    with pytest.warns(UserWarning, match="carry no page checksums"):
        return open_dataset(str(path))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Two row groups of 6 and 4 rows."""
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table({"x": np.arange(10.0)}), path, row_group_size=6)
    return path


def test_a_footer_tells_rows_schema_and_digest(shard: Path) -> None:
    found = read_footer(str(shard))
    assert (found.rows, found.size) == ((6, 4), shard.stat().st_size)
    assert found.schema.names == ["x"]
    with open_shard(str(shard), found.digest) as opened:
        assert opened.metadata.num_rows == 10


def test_a_replaced_shard_is_noticed(shard: Path) -> None:
    digest = read_footer(str(shard)).digest
    pq.write_table(pa.table({"x": np.arange(1.0, 11.0)}), shard, row_group_size=6)
    with pytest.raises(DataError) as caught, open_shard(str(shard), digest):
        pass
    assert str(caught.value) == f"{shard}: was replaced since it was listed; run again"
    with open_shard(str(shard)):  # the control
        pass


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 9, 30, 200, 400])
def test_truncated_shards_are_refused(shard: Path, cut: int) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-cut])
    assert refused(shard) == (
        f"{shard}: does not end in a Parquet footer: truncated, or not a Parquet file"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes; a Parquet file has at least 12: truncated?"),
        (b"PAR1PAR1", "8 bytes; a Parquet file has at least 12: truncated?"),
        (
            b"x,y\n" + b"1,2\n" * 50,
            "does not end in a Parquet footer: truncated, or not a Parquet file",
        ),
        (b"PARE" + bytes(50) + b"PARE", "encrypted Parquet is not supported"),
        (
            b"PAR1" + struct.pack("<I", 2**31) + b"PAR1",
            "footer of 2147483648 bytes in a file of 12: damaged",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert refused(path) == f"{path}: {message}"


def test_damaged_footers_are_refused_or_read_and_never_crash(shard: Path) -> None:
    whole = bytearray(shard.read_bytes())
    random = np.random.default_rng(0)
    length = struct.unpack("<I", whole[-8:-4])[0]
    outcomes = {"refused": 0, "read": 0}
    for at in random.integers(len(whole) - 8 - length, len(whole) - 8, 200):
        damaged = whole.copy()
        damaged[at] ^= 1 << int(random.integers(8))
        shard.write_bytes(damaged)
        try:
            read_footer(str(shard))
            outcomes["read"] += 1
        except DataError as error:
            assert str(error).startswith(f"{shard}: ")
            outcomes["refused"] += 1
    assert outcomes["refused"] >= 20
    assert sum(outcomes.values()) == 200


@pytest.mark.parametrize("path", ["nowhere.parquet", "folder.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder.parquet").mkdir()
    assert refused(tmp_path / path).startswith(f"{tmp_path / path}: ")


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
def test_checksums_are_told_from_the_first_page(
    tmp_path: Path, checksums: bool, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"x": pa.array([[1.0, 2.0]] * 9, pa.list_(pa.float64(), 2)), "y": range(9)})
    pq.write_table(table, path, write_page_checksum=checksums, **options)
    assert read_footer(str(path)).checksums is checksums


def test_an_empty_table_needs_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": pa.array([], pa.int8())}), path)
    assert read_footer(str(path)).rows in ((), (0,))
    with pq.ParquetWriter(path, pa.schema([("x", pa.int8())])):
        pass
    assert read_footer(str(path)).rows == ()


class Kms(encryption.KmsClient):  # type: ignore[misc]
    """Keeps no secret: enough to write encrypted files."""

    def __init__(self, _: Any) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
        return base64.b64decode(wrapped)


ENCRYPTED: dict[str, dict[str, Any]] = {
    "footer": {"column_keys": {"key": ["x"]}},
    "first column": {"column_keys": {"key": ["x"]}, "plaintext_footer": True},
    "last column": {"column_keys": {"key": ["y"]}, "plaintext_footer": True},
    "all columns": {"column_keys": {"key": ["x", "y"]}, "plaintext_footer": True},
    "all columns, footer's key": {"uniform_encryption": True, "plaintext_footer": True},
    "pages only authenticated": {
        "column_keys": {"key": ["y"]},
        "plaintext_footer": True,
        "encryption_algorithm": "AES_GCM_CTR_V1",
    },
}


def write_encrypted(path: Path, **options: Any) -> None:
    configuration = encryption.EncryptionConfiguration(footer_key="footer", **options)
    table = pa.table({"x": np.arange(10.0), "y": range(10)})
    with pq.ParquetWriter(
        path,
        table.schema,
        encryption_properties=encryption.CryptoFactory(Kms).file_encryption_properties(
            encryption.KmsConnectionConfig(), configuration
        ),
    ) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("name", ENCRYPTED)
def test_encrypted_shards_are_refused_by_name(tmp_path: Path, shard: Path, name: str) -> None:
    pq.write_table(pq.read_table(shard), tmp_path / "part-2.parquet")
    hidden = tmp_path / "part-1.parquet"
    write_encrypted(hidden, **ENCRYPTED[name])
    assert refused(hidden) == f"{hidden}: encrypted Parquet is not supported"
    for use in (inspect_all, open_dataset):
        with pytest.raises(DataError, match=r"part-1\.parquet: encrypted Parquet is not supported"):
            use(str(tmp_path))


COLUMN = "import sys, pyarrow.parquet as pq; pq.read_metadata(sys.argv[1]).row_group(0).column(0)"
"""What a footer's reader must not ask of pyarrow."""


def test_encrypted_columns_abort_pyarrow(tmp_path: Path) -> None:
    write_encrypted(tmp_path / "a.parquet", **ENCRYPTED["first column"])
    done = subprocess.run([sys.executable, "-c", COLUMN, str(tmp_path / "a.parquet")], check=False)
    assert done.returncode == -signal.SIGABRT


def test_no_bit_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    """Where levels are counted, a wrong length of the counts is enough for pyarrow to abort."""
    path = tmp_path / "a.parquet"
    lists = pa.array([[1.0], None, [2.0, 3.0], []] * 3, pa.list_(pa.float64()))
    pq.write_table(pa.table({"x": lists, "y": range(12)}), path, row_group_size=6)
    whole = bytearray(path.read_bytes())
    begin = len(whole) - 8 - struct.unpack("<I", whole[-8:-4])[0]
    outcomes = {"refused": 0, "read": 0}
    for bit in range(8 * begin, 8 * (len(whole) - 8), 3):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        try:
            read_footer(str(path))
            outcomes["read"] += 1
        except DataError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 300, outcomes

    whole[whole.index(b"\x35\x02\x18\x01x", begin) + 1] = 0  # x: no longer optional
    path.write_bytes(whole)
    done = subprocess.run([sys.executable, "-c", COLUMN, str(path)], check=False)
    assert done.returncode == -signal.SIGABRT
