"""Real data that comes with scikit-learn, as Parquet shards: 1,797 handwritten digits of 8 x 8."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hourglass import storage

SHARDS = 4
GROUP_ROWS = 128


def write_digits(uri: str) -> int:
    """Write the digits as shards below `uri` (`image` uint8[64], 0 to 16, and `label`); the rows.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", test part.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.data.astype(np.uint8)
    for shard, index in enumerate(np.array_split(np.arange(len(images)), SHARDS)):
        flat = pa.array(images[index].reshape(-1))
        table = pa.table(
            {
                "image": pa.FixedSizeListArray.from_arrays(flat, images.shape[1]),
                "label": pa.array(digits.target[index].astype(np.uint8)),
                "row_id": pa.array(index),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(
            table, buffer, compression="zstd", row_group_size=GROUP_ROWS, write_page_checksum=True
        )
        storage.write(storage.join(uri, f"part-{shard:05d}.parquet"), buffer.getvalue())
    return len(images)
