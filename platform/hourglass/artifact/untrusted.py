"""Untrusted bytes: bounded, parsed strictly, and refused with the file and the cause."""

import json
import struct
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from hourglass import storage
from hourglass.errors import ArtifactError

HEADER_BYTES = 2**20
TENSORS = 4096
DTYPES = frozenset({"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64"})


def read_file(path: str, most: int) -> bytes:
    """The bytes of one regular file.

    Raises: ArtifactError for links, devices and oversize files, ReadError for what cannot be read now.
    """
    if storage.is_local(path):
        problem = storage.irregular(path)
        if problem:
            raise ArtifactError(f"{path}: {problem}; an artifact holds regular files only")
    try:
        size = storage.size(path)
        if size > most:
            raise ArtifactError(f"{path}: {size} bytes, allowed are {most}")
        return storage.read(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; this is not a complete artifact") from None
    except NotADirectoryError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None


def parse_json(text: bytes) -> Any:
    """The value of standard JSON. Raises ValueError for a repeated key, NaN and Infinity."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_a_number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _not_a_number(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def parse_tensors(path: str, data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file already in memory. Raises ArtifactError, never crashes."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else HEADER_BYTES + 1
    if length > min(HEADER_BYTES, len(data) - 8):
        raise ArtifactError(f"{path}: not a safetensors file (header length)")
    try:
        header = parse_json(data[8 : 8 + length])
        dtypes = [entry["dtype"] for name, entry in header.items() if name != "__metadata__"]
        exotic = set(dtypes) - DTYPES
        tensors = {} if exotic or len(dtypes) > TENSORS else load_tensors(data)
    except Exception as error:  # the parser's own error types are not public
        raise ArtifactError(f"{path}: not a safetensors file ({type(error).__name__})") from None
    if exotic:
        raise ArtifactError(f"{path}: tensors of type {', '.join(sorted(map(str, exotic)))}")
    if len(dtypes) > TENSORS:
        raise ArtifactError(f"{path}: {len(dtypes)} tensors, allowed are {TENSORS}")
    require_finite(path, tensors, but="rows")
    return tensors


def require_finite(path: str, tensors: dict[str, Tensor], but: str = "") -> None:
    """Raise ArtifactError for a tensor, other than `but`, that holds NaN or infinity."""
    for name, tensor in sorted(tensors.items()):
        if name != but and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{path}: tensor '{name}' holds NaN or infinity")
