"""Batch scoring rows/s of one process on one thread, against a plain pyarrow + torch loop.

Both sides in one run, in turns: MNIST shards in, Parquet with the same columns out. Ours is what an
actor of the pool does: `parts.write` for each part, page checksums verified and written, every
type and cell checked, a row's bits independent of its batch, an fsync at the end. Target >= 0.8.

    python benchmarks/batch_scoring.py [FOLDER_OF_MNIST_SHARDS]
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hourglass import Autoencoder
from hourglass.data.manifest import Manifest, scan
from hourglass.inference import parts
from hourglass.inference.parts import Options
from hourglass.inference.predictor import Predictor
from mnist import shards

REPEATS = 7
BATCH = 1024


def model(uri: str, folder: Path) -> Predictor:
    """784-[100]-784, trained for a moment: its speed does not depend on its weights."""
    first = sorted(Path(uri).glob("*.parquet"))[0]
    rows = pq.read_table(first, columns=["image"]).slice(0, 2000)
    ae = Autoencoder(widths=[100], scaling="unit", epochs=1, random_state=0, accelerator="cpu")
    ae.fit(rows).save(str(folder))
    return Predictor.load(str(folder))


def plain(manifest: Manifest, predictor: Predictor, options: Options, folder: Path) -> int:
    """The loop anybody would write: row groups in, batches of 1,024 rows, default Parquet out."""
    module, limit = predictor.module, options.threshold
    bits = np.array(predictor.artifact.manifest.calibration.hash_threshold, dtype=np.float32)
    scored = 0
    for shard in manifest.shards:
        source = pq.ParquetFile(shard.path)
        writer = None
        for group in range(source.num_row_groups):
            table = source.read_row_group(group, use_threads=False)
            flat = table["image"].combine_chunks().flatten().to_numpy()
            images = torch.from_numpy(flat.copy().reshape(-1, 784))
            codes, scores = [], []
            with torch.no_grad():
                for start in range(0, len(images), BATCH):
                    result = module(images[start : start + BATCH])
                    codes.append(result.code_BK)
                    scores.append((result.output_BF - result.clean_BF).square().mean(dim=1))
            code, score = torch.cat(codes).numpy(), torch.cat(scores).numpy()
            rows = len(code)
            packed = np.packbits(code > bits, axis=1)
            columns = {"label": table["label"]} if "label" in options.passthrough else {}
            columns |= {
                "code": pa.FixedSizeListArray.from_arrays(pa.array(code.reshape(-1)), 100),
                "hash": pa.array([bytes(row) for row in packed], pa.binary(packed.shape[1])),
                "score": pa.array(score.astype(np.float64)),
                "is_anomaly": pa.array(score > limit),
                "row_group": pa.array(np.full(rows, group, dtype=np.int32)),
                "row": pa.array(np.arange(rows)),
            }
            for name in ("shard", "model", "model_version", "model_digest"):
                value = shard.name if name == "shard" else "m"
                columns[name] = pa.array([value] * rows).dictionary_encode()
            made = pa.table(columns)
            writer = writer or pq.ParquetWriter(folder / Path(shard.path).name, made.schema)
            writer.write_table(made)
            scored += rows
        writer.close()
    return scored


def ours(manifest: Manifest, predictor: Predictor, options: Options, folder: Path) -> int:
    """What an actor does."""
    work = parts.items(manifest, predictor.features.row_bytes)
    tallies = [
        parts.write(str(folder / item.name(options.key)), item, options, predictor) for item in work
    ]
    return sum(tally.rows for tally in tallies)


def rate(side: Callable[..., int], *arguments: object) -> float:
    """Rows/s of one pass over all shards."""
    started = time.perf_counter()
    rows = side(*arguments)
    return rows / (time.perf_counter() - started)


def main() -> None:
    torch.set_num_threads(1)
    uri = shards("train")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = model(uri, folder / "model")
        manifest, schema = scan(uri)
        options = Options(
            outputs=("code", "hash", "score"),
            passthrough=("label",) if "label" in schema.names else (),
            threshold=predictor.threshold,
            missing="error",
            model="mnist",
            version="1",
            digest=predictor.artifact.digest,
        )
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        for repeat in range(REPEATS + 1):
            for label, side in (("plain", plain), ("ours", ours)):
                (folder / label).mkdir(exist_ok=True)
                found = rate(side, manifest, predictor, options, folder / label)
                rates[label] += [found] if repeat else []  # the first of each warms up
        size = {
            label: sum(path.stat().st_size for path in (folder / label).iterdir())
            for label in rates
        }
    pairs = [ours / plain for plain, ours in zip(rates["plain"], rates["ours"], strict=True)]
    result = {
        "rows": manifest.rows,
        "repeats": REPEATS,
        **{f"{label}_rows_per_s": round(statistics.median(each)) for label, each in rates.items()},
        **{f"{label}_bytes": size[label] for label in rates},
        "ratio": round(statistics.median(pairs), 3),
        "ratio_lowest": round(min(pairs), 3),
        "ratio_highest": round(max(pairs), 3),
    }
    text = json.dumps(result, indent=1)
    out = Path(__file__).parent / "results" / "batch_scoring.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
