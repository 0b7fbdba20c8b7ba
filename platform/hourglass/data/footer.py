"""Parquet footers, read without executing anything that a file contains.

Opening a file with pyarrow rebuilds the Arrow schema stored in it, extension types included, and an
extension type may run code of its own. So the footer is first parsed with that schema hidden and
searched for extension names; pyarrow then parses the bytes that were checked.
"""

import base64
import binascii
import contextlib
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hourglass import storage
from hourglass.errors import DataError, ReadError, first_line

MAGIC = b"PAR1"
TAIL_BYTES = 2**16
FOOTER_BYTES = 128 * 2**20
BUFFER_BYTES = 2**16
SIGNATURE_BYTES = 28
"""Nonce and tag after a plain footer of encrypted columns. Source: Parquet, Encryption.md."""
ENCRYPTED = "encrypted Parquet is not supported"
SCHEMA_KEY, HIDDEN_KEY = b"ARROW:schema", b"ARROW:SCHEMA"
EXTENSION_KEY, PLAIN_KEY = b"ARROW:extension:name", b"ARROW:EXTENSION:NAME"


@dataclass(frozen=True)
class Footer:
    """The footer of a shard: size of the file, digest, rows of each row group, schema.

    `checksums`: its first page carries a checksum (writers give one to all pages or to none).
    """

    size: int
    digest: str
    rows: tuple[int, ...]
    schema: pa.Schema
    checksums: bool


def read_footer(path: str) -> Footer:
    """Check and parse the footer of the shard at `path`. Raises DataError naming the file."""
    with _open(path) as file, _refusing(path):
        raw, size = _raw_footer(path, file)
        with _parquet(path, file, raw) as shard:
            metadata = shard.metadata
            rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            checksums = any(rows) and _has_checksum(file)
            return Footer(size, _digest(raw), rows, shard.schema_arrow, checksums)


@contextlib.contextmanager
def open_shard(
    path: str, digest: str | None = None, plain: bool = False
) -> Iterator[pq.ParquetFile]:
    """Check a shard's footer and open it, page checksums on.

    With `digest` (as in a manifest) the footer must still be that one. `plain` reads Parquet's own
    types without the stored Arrow schema: pyarrow cannot decode null rows of fixed-size lists, but
    as lists it can. Raises DataError.
    """
    with _open(path) as file:
        with _refusing(path):
            raw, _ = _raw_footer(path, file)
            if digest is not None and digest != _digest(raw):
                raise DataError(f"{path}: was replaced since it was listed; run again")
            shard = _parquet(path, file, raw, plain)
        with shard:
            yield shard


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """A context that turns errors of disks and S3 into a DataError that names `uri`."""
    try:
        with storage.reading(uri):
            yield
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{uri}: no such file or folder") from None
    except ReadError as error:
        raise DataError(str(error)) from None


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    """The shard's bytes: one open file from the check of the footer to the last page."""
    with reaching(path):
        fs, inner = storage.filesystem(path)
        file = pa.OSFile(inner) if storage.is_local(path) else fs.open(inner, cache_type="none")
    with file:
        yield file


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    """A context that turns errors about the content of a footer into a DataError as well."""
    with reaching(path):
        try:
            yield
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _raw_footer(path: str, file: Any) -> tuple[bytes, int]:
    """The bytes of the footer, and the size of the file."""
    size = file.seek(0, 2)
    if size < 12:
        raise DataError(f"{path}: {size} bytes; a Parquet file has at least 12: truncated?")
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    if tail[-4:] == b"PARE":
        raise DataError(f"{path}: {ENCRYPTED}")
    if tail[-4:] != MAGIC:
        raise DataError(
            f"{path}: does not end in a Parquet footer: truncated, or not a Parquet file"
        )
    (length,) = struct.unpack("<I", tail[-8:-4])
    if length > min(size - 12, FOOTER_BYTES):
        raise DataError(f"{path}: footer of {length} bytes in a file of {size}: damaged")
    if length > len(tail) - 8:
        file.seek(size - 8 - length)
        tail = file.read(length + 8)
    return tail[-8 - length : -8], size


def _digest(raw: bytes) -> str:
    return f"footer-sha256:{hashlib.sha256(raw).hexdigest()}"


def _parquet(path: str, file: Any, raw: bytes, plain: bool = False) -> pq.ParquetFile:
    _refuse_extension_types(path, raw)
    local = storage.is_local(path)
    metadata = _parse(raw.replace(SCHEMA_KEY, HIDDEN_KEY) if plain else raw)
    if len(raw) - metadata.serialized_size == SIGNATURE_BYTES:
        raise DataError(f"{path}: {ENCRYPTED}")
    return pq.ParquetFile(
        file,
        metadata=metadata,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,
        pre_buffer=not local,
        buffer_size=BUFFER_BYTES if local else 0,
    )


def _parse(raw: bytes) -> pq.FileMetaData:
    whole = b"".join([MAGIC, raw, struct.pack("<I", len(raw)), MAGIC])
    return pq.read_metadata(pa.BufferReader(whole), arrow_extensions_enabled=False)


def _refuse_extension_types(path: str, raw: bytes) -> None:
    stored = raw.count(SCHEMA_KEY)
    if not stored:
        return
    text = (_parse(raw.replace(SCHEMA_KEY, HIDDEN_KEY)).metadata or {}).get(HIDDEN_KEY)
    if stored > 1 or HIDDEN_KEY in raw or text is None:
        raise DataError(f"{path}: the stored Arrow schema is damaged")
    try:
        schema = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{path}: the stored Arrow schema is damaged") from None
    if EXTENSION_KEY in schema:
        raise DataError(
            f"{path}:{_extension_columns(schema)} holds an Arrow extension type, which is never "
            "loaded from a file; write tensors as fixed-size lists of numbers"
        )


def _extension_columns(stored: bytes) -> str:
    """` column 'x'` for the columns whose type is or contains an extension type."""
    try:
        plain = pa.ipc.read_schema(pa.BufferReader(stored.replace(EXTENSION_KEY, PLAIN_KEY)))
    except (pa.ArrowException, OSError, ValueError):
        return ""  # the shard is refused without naming them
    names = [f"'{field.name}'" for field in plain if _is_extension(field)]
    return f" column {', '.join(names)}" if names else ""


def _is_extension(field: pa.Field) -> bool:
    children = (field.type.field(i) for i in range(field.type.num_fields))
    return PLAIN_KEY in (field.metadata or {}) or any(map(_is_extension, children))


def _has_checksum(file: Any) -> bool:
    """Whether the first page has a checksum: the fourth field of its Thrift header.

    Pages begin after the magic number. pyarrow is not asked for the offset: it aborts the
    process on a damaged or encrypted column chunk.
    """
    file.seek(len(MAGIC))
    header = file.read(64)
    position = 0
    for _ in range(3):  # page type, size before and after compression, each a varint
        if header[position : position + 1] != b"\x15":
            return False
        position += 1
        while header[position : position + 1] >= b"\x80":
            position += 1
        position += 1
    return bool(header[position : position + 1] == b"\x15")
