"""Rows as pictures: which shape they have, and sheets of them as PNG, without another library.

Shapes: B rows, C raw columns; a picture is (height, width, channels) with 1 or 3 channels.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hourglass.artifact import Manifest

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
SMALLEST = 5
"""Fewest pixels to a side: narrower vectors are rather numbers than pictures."""
GAP = 1


@dataclass(frozen=True)
class Shape:
    """How a row is read as a picture."""

    height: int
    width: int
    channels: int
    channels_first: bool = False

    def of(self, rows: Array) -> Array:
        """Pictures (B, height, width, channels) of rows (B, C)."""
        if not self.channels_first:
            return rows.reshape(-1, self.height, self.width, self.channels)
        return rows.reshape(-1, self.channels, self.height, self.width).transpose(0, 2, 3, 1)

    def __str__(self) -> str:
        return f"{self.height} x {self.width}" + (" colour" if self.channels == 3 else "")


def shape_of(model: Manifest) -> Shape | None:
    """The shape of a conv network, or of a vector whose width is a square or 3 squares (H, W, C)."""
    network = model.model.network
    if network.kind == "conv":
        first = network.channels == "first"
        whole = math.prod(network.shape) == model.features.width
        if len(network.shape) != 3 or network.depth not in (1, 3) or not whole:
            return None
        height, width = network.shape[1:] if first else network.shape[:2]
        return Shape(height, width, network.depth, first)
    if model.features.vector is None:
        return None
    for channels in (1, 3):
        side = math.isqrt(model.features.width // channels)
        if side >= SMALLEST and side * side * channels == model.features.width:
            return Shape(side, side, channels)
    return None


def shades(pictures: Array, low: float, high: float) -> Bytes:
    """Numbers as bytes: `low` and missing cells are black, `high` is white."""
    shares = np.nan_to_num(np.clip((pictures - low) / (high - low or 1.0), 0.0, 1.0))
    return np.asarray((shares * 255).round().astype(np.uint8))


def signed(pictures: Array) -> Bytes:
    """Weights as colours, each picture by its own largest: blue below 0, white at 0, red above.

    In pictures of 3 channels grey is 0.
    """
    largest = np.abs(pictures).max(axis=(1, 2, 3), keepdims=True)
    share = pictures / np.where(largest > 0, largest, 1.0)
    if pictures.shape[-1] == 3:
        return shades(share, -1.0, 1.0)
    white, red, blue = np.array([247.0] * 3), np.array([178.0, 24, 43]), np.array([33.0, 102, 172])
    end = np.where(share > 0, red, blue)
    return np.asarray((white + np.abs(share) * (end - white)).round().astype(np.uint8))


def sheet(pictures: Bytes, across: int) -> bytes:
    """A PNG of the pictures (B, height, width, channels) in rows of `across`, a gap between them."""
    count, height, width, channels = pictures.shape
    down = -(-count // across)
    high, wide = height + GAP, width + GAP
    paper = np.full((down * high - GAP, across * wide - GAP, channels), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // across * high, index % across * wide
        paper[y : y + height, x : x + width] = picture
    return png(paper)


def png(pixels: Bytes) -> bytes:
    """Pixels (height, width, 1 or 3) as a PNG file. Source: W3C 2003, PNG specification."""
    height, width, channels = pixels.shape
    colour = 0 if channels == 1 else 2
    lines = np.zeros((height, width * channels + 1), dtype=np.uint8)  # 0: lines are not filtered
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 9)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
