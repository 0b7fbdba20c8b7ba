"""Arrow IPC streams as bodies: their messages, types and sizes are checked before Arrow reads them.

Nothing in a stream may allocate more than its own size: compressed buffers are rejected, and
extension types are found in the schema's bytes before Arrow can build one.
"""

import struct
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from hourglass.config.serve import Limits
from hourglass.data.schema import FEATURE_TYPES, FeatureSchema, is_list
from hourglass.errors import first_line
from hourglass.inference.endpoints import ModelMetadata
from hourglass.serving.json_body import Matrix, check_columns, check_count, fit
from hourglass.serving.limits import RequestError

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_RECORD_BATCH_COMPRESSION = 3
_MESSAGE_HEADER = 2


def decode_arrow(body: bytes, metadata: ModelMetadata, limits: Limits) -> Matrix:
    """Rows (B, C) in the artifact's dtype, NaN where missing. Raises RequestError."""
    try:
        _check_frames(body)
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            _check_schema(reader.schema, metadata.features)
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                check_count(max(rows, 1), limits.max_rows)
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        detail = first_line(error)[:120]
        raise RequestError("Malformed", f"not a valid Arrow IPC stream ({detail})") from None
    check_count(rows, limits.max_rows)
    table = pa.Table.from_batches(batches)
    return fit(_matrix(table, metadata), metadata)


def _check_frames(body: bytes) -> None:
    """Raise RequestError unless the stream is a schema and record batches; decodes nothing."""
    source = pa.BufferReader(body)
    messages = pa.ipc.MessageReader.open_stream(source)
    first = True
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        metadata = message.metadata.to_pybytes()
        if message.type != ("schema" if first else "record batch"):
            raise RequestError("Malformed", f"Arrow stream: unexpected {message.type} message")
        if first and b"ARROW:extension" in metadata:
            raise RequestError("Invalid", "Arrow stream: extension types are not accepted")
        if not first and _is_compressed(metadata):
            raise RequestError("Invalid", "Arrow stream: compressed buffers are not accepted")
        first = False
    if source.tell() != len(body):
        raise RequestError(
            "Malformed", f"Arrow stream: found {len(body) - source.tell()} bytes after its end"
        )


def _is_compressed(metadata: bytes) -> bool:
    """True if a RecordBatch message names a codec. Source: Arrow format, Message.fbs."""
    root = struct.unpack_from("<I", metadata, 0)[0]
    field = _field(metadata, root, _MESSAGE_HEADER)
    batch = field + struct.unpack_from("<I", metadata, field)[0]
    return _field(metadata, batch, _RECORD_BATCH_COMPRESSION) != 0


def _field(data: bytes, table: int, index: int) -> int:
    """Position of a field of a flatbuffer table, 0 if absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0 or 4 + 2 * index >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
    return table + offset if offset else 0


def _check_schema(schema: pa.Schema, features: FeatureSchema) -> None:
    names = schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError("Invalid", f"column '{twice[:60]}' occurs twice; names must be unique")
    check_columns(names, features)
    for field in schema:
        kind, allowed = field.type, "allowed are numbers and booleans"
        if features.vector is not None:
            allowed = f"allowed is a list of {features.width} numbers"
            sized = not pa.types.is_fixed_size_list(kind) or kind.list_size == features.width
            kind = kind.value_type if is_list(kind) and sized else None
        if kind not in FEATURE_TYPES:
            found = str(field.type)[:60]
            raise RequestError("Invalid", f"column '{field.name}': found {found}, {allowed}")


def _matrix(table: pa.Table, metadata: ModelMetadata) -> Matrix:
    features = metadata.features
    if features.vector is None:
        return np.column_stack([_numbers(table.column(name)) for name in features.columns])
    array = table.column(0).combine_chunks()
    if array.null_count:
        row = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise RequestError(
            "Invalid", f"row {row}, '{features.vector}': found null instead of a list"
        )
    lengths = np.asarray(array.value_lengths())
    wrong = np.flatnonzero(lengths != features.width)
    if len(wrong):
        row = int(wrong[0])
        raise RequestError(
            "Invalid",
            f"row {row}: found {lengths[row]} values, the model expects {features.width}",
        )
    return _numbers(array.flatten()).reshape(-1, features.width)


def _numbers(column: pa.ChunkedArray | pa.Array) -> Matrix:
    """A column as a NumPy array: uint8 as it is, others as float64 with NaN for nulls."""
    if column.type == pa.uint8() and not column.null_count:
        return np.asarray(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return np.asarray(column.cast(pa.float64(), safe=False))


def encode_arrow(columns: Mapping[str, pa.Array], metadata: Mapping[str, str]) -> bytes:
    """One record batch as an IPC stream, with `metadata` in its schema."""
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    batch = batch.replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content
