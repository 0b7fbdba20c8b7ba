"""Where the benchmarks find MNIST: a folder given on the command line, or shards of its shape."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 60_000


def shards(split: str) -> str:
    """The folder of MNIST's shards: the argument, ../shared/data, or generated in its shape."""
    if len(sys.argv) > 1:
        return sys.argv[1]
    near = Path(__file__).parents[2] / "shared" / "data" / "mnist" / split
    return str(near) if near.is_dir() else generated()


def generated() -> str:
    """Random shards in MNIST's shape: 8 files, uint8[784], about a fifth of the pixels not 0."""
    folder = Path(tempfile.mkdtemp(prefix="mnist-like-"))
    rng = np.random.default_rng(0)
    for shard in range(8):
        images = rng.integers(0, 256, (ROWS // 8, 784), dtype=np.uint8)
        images[rng.random(images.shape) < 0.8] = 0
        column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
        table = pa.table({"image": column})
        pq.write_table(
            table, folder / f"part-{shard:05d}.parquet", compression="zstd", row_group_size=1250
        )
    return str(folder)
