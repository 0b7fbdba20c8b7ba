"""What training and sweeps on a cluster share: the cluster, shards, and the same run without Ray."""

import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from hourglass.cluster.connect import connection
from hourglass.config.train import TrainJob
from hourglass.data import stats
from hourglass.data.dataset import Rows, open_dataset
from hourglass.data.loader import Loader, MemoryLoader, StreamLoader
from hourglass.data.order import GroupCount
from hourglass.settings import Settings
from hourglass.training import state
from hourglass.training.build import build

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_kit import Run, generated

ROWS = generated(400, 8)


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A project folder and a cluster of two CPUs, which leaves no process behind."""
    folder = Path(tempfile.mkdtemp(prefix="hgt", dir="/tmp"))  # short: Ray makes sockets below
    settings = Settings(home=folder / "home", temp_dir=str(folder / "ray"))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with connection(cpus=2, settings=settings):
        yield folder
    deadline, left = time.monotonic() + 20, {0}
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        children = psutil.Process().children(recursive=True)
        left = {c.pid for c in children if c.status() != psutil.STATUS_ZOMBIE} - before
    shutil.rmtree(folder, ignore_errors=True)
    assert not left


def write_shards(folder: Path) -> Path:
    """`folder` with two shards of 200 rows in row groups of 60."""
    for number in range(2):
        write(folder / f"part-{number}.parquet", ROWS[200 * number : 200 * (number + 1)])
    return folder


def write(path: Path, rows: np.ndarray) -> None:
    """One shard."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    pq.write_table(pa.table({"x": vectors}), path, row_group_size=60, write_page_checksum=True)


def in_process(made: TrainJob, shards: Path) -> Run:
    """The same run without Ray, reading with plain Python."""
    dataset = open_dataset(str(shards), None)
    found, data = dataset.manifest, made.data
    columns = dataset.features(data.features, data.missing)
    rows = Rows(found.shards, columns, data.missing, data.holdout)
    parts, features, masks, counts = [], [], [], []
    for shard, group in rows.groups:
        for _, chunk, held, _ in rows.chunks(shard, group):
            parts.append(stats.measure(chunk[~held]))
            features.append(chunk)
            masks.append(held)
            counts.append(GroupCount(shard, group, int((~held).sum()), int(held.sum())))
    common = {"batch_size": made.train.batch_size, "seed": made.train.seed}
    loader: Loader
    if made.data.cache == "stream":
        loader = StreamLoader(
            counts,
            partial(_read_all, rows),
            columns=columns.width,
            window_rows=made.data.shuffle_rows,
            **common,
        )
    else:
        loader = MemoryLoader(np.concatenate(features), np.concatenate(masks), **common)
    return Run(made, loader, state.fresh(build(made, stats.merge_all(parts)), made.train))


def _read_all(rows: Rows, slices: Any) -> Iterator[np.ndarray]:
    for part in slices:
        yield from rows.read_slice(part)


def processes(title: str) -> set[int]:
    """Processes of this cluster whose title begins with `title`."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(child.cmdline()[:1]).startswith(title):
                found.add(child.pid)
    return found


class Counting(threading.Thread):
    """The processes with a title that ever were, during a block."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def __enter__(self) -> set[int]:
        self.seen: set[int] = set()
        self.over = threading.Event()
        self.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.seen |= processes(self.title)
