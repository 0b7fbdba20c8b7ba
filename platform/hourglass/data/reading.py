"""Reading shards with Ray Data: one read task for a run of row groups, one table row for a chunk.

A chunk is sent as the bytes of a contiguous matrix, of which both sides have views and no copies.
"""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import ExecutionTimeoutError

from hourglass import ray_internals
from hourglass.data.dataset import DatasetStatistics, Rows
from hourglass.data.manifest import Shard
from hourglass.data.order import GroupCount, Slice
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import Stats, measure, merge_all
from hourglass.data.unlikely import Sample
from hourglass.errors import DataError, first_line

TASK_BYTES = 8 * 2**20
"""Decoded features of one read task: small row groups are read together."""

RUN_BYTES = 128 * 2**20
"""Decoded features of one execution that streams; two of them are in the object store."""

RETRIES = 3
"""Retries of a task whose process died; Ray Data retries without limit by default."""

_THREADS = ("StreamingExecutor", "iter_threaded")
"""Names of threads that Ray Data starts to read, and may leave running when reading ends early."""

THREAD_S = 10.0
"""Seconds to wait for one of them; it checks whether to end every 0.1 s."""


class TaskSource(Datasource):  # type: ignore[misc]
    """Read tasks that yield tables: `read(items)` for each of `tasks`, in that order."""

    def __init__(
        self, tasks: Sequence[Sequence[Any]], read: Callable[[Sequence[Any]], Iterable[pa.Table]]
    ):
        super().__init__()
        self._tasks, self._read = tasks, read

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One Ray Data read task for each run of items."""
        meta = BlockMetadata(
            num_rows=None, size_bytes=TASK_BYTES, input_files=None, exec_stats=None
        )
        return [ReadTask(_Call(self._read, items), meta) for items in self._tasks]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes in memory, an estimate."""
        return TASK_BYTES * len(self._tasks)


@dataclass(frozen=True)
class _Call:
    read: Callable[[Sequence[Any]], Iterable[pa.Table]]
    items: Sequence[Any]

    def __call__(self) -> Iterable[pa.Table]:
        return self.read(self.items)


def configure() -> None:
    """Configure Ray Data in this process: no progress bars, a timeout, and not its slower new reader."""
    context: Any = ray.data.DataContext.get_current()
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = 120
    # Otherwise it warns that its bars are disabled.
    logging.getLogger(ray_internals.PROGRESS_LOGGER).setLevel(logging.ERROR)


def stream(
    tasks: Sequence[Sequence[Any]],
    read: Callable[[Sequence[Any]], Iterable[pa.Table]],
    cpus: float = 1.0,
) -> "ray.data.Dataset":
    """A Ray Data dataset of the tasks' tables, in the order of the tasks."""
    for name in ray_internals.ERROR_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():  # the only argument of Ray 2.60 for the number of retries
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        dataset = ray.data.read_datasource(
            TaskSource(tasks, read),
            override_num_blocks=len(tasks),
            num_cpus=cpus,
            ray_remote_args={"max_retries": RETRIES},
        )
    dataset.context.execution_options.preserve_order = True
    return dataset


def pack(items: Sequence[Any], size: Callable[[Any], int], most: int) -> list[list[Any]]:
    """Runs of consecutive items; each ends with the item that fills it to `most` bytes."""
    runs: list[list[Any]] = []
    filled = most
    for item in items:
        if filled >= most:
            runs.append([])
            filled = 0
        runs[-1].append(item)
        filled += size(item)
    return runs


def load(
    rows: Rows, keep_features: bool, watched: Sequence[int] = ()
) -> tuple[DatasetStatistics, list[Any]]:
    """One distributed pass over all rows: statistics, and with `keep_features` references to the chunks.

    With `watched` columns, the statistics contain samples of their values.
    Raises DataError with the file, row group and column of the first damaged or missing cell.
    """
    items = rows.groups
    tasks = pack(
        items, lambda item: rows.shards[item[0]].rows[item[1]] * rows.schema.row_bytes, TASK_BYTES
    )
    if not tasks:
        raise DataError("no rows: every shard is empty")
    dataset = stream(tasks, _ReadAll(rows, keep_features, tuple(watched)))
    with plain_errors(rows.shards, rows.read_through, 1.0):
        dataset = dataset.materialize()
        parts = dataset.drop_columns(["features", "held"]).take_all()
    refs = list(dataset.to_arrow_refs()) if keep_features else []
    return _merged(parts), refs


@dataclass(frozen=True)
class _ReadAll:
    rows: Rows
    keep_features: bool
    watched: tuple[int, ...] = ()

    def __call__(self, items: Sequence[tuple[int, int]]) -> Iterator[pa.Table]:
        for shard, group in items:
            for _, features, held, dropped in self.rows.chunks(shard, group):
                stats = measure(features[~held] if held.any() else features, self.rows.levels)
                imputed = int(stats.missing.sum() + (~np.isfinite(features[held])).sum())
                content = features if self.keep_features else features[:0]
                mask = held if self.keep_features else held[:0]
                yield pa.table(
                    {
                        "features": _cell(content),
                        "held": _cell(mask),
                        "shard": [shard],
                        "group": [group],
                        "train": [int((~held).sum())],
                        "holdout": [int(held.sum())],
                        "dropped": [dropped],
                        "imputed": [imputed],
                        "samples": pa.array(
                            [[Sample.of(features[:, i]).to_bytes() for i in self.watched]],
                            pa.list_(pa.binary()),
                        ),
                        **{
                            name: pa.array([value.tobytes()], pa.binary())
                            for name, value in stats.arrays().items()
                        },
                    }
                )


def _cell(array: NDArray[Any]) -> pa.Array:
    """The bytes of `array` as one table cell."""
    whole = np.ascontiguousarray(array)
    offsets = pa.py_buffer(np.array([0, whole.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(whole)])


def _merged(parts: list[dict[str, Any]]) -> DatasetStatistics:
    stats = [
        Stats(**{name: np.frombuffer(row[name]).copy() for name in Stats.__dataclass_fields__})
        for row in parts
    ]
    totals: dict[tuple[int, int], list[int]] = {}
    for row in parts:
        total = totals.setdefault((row["shard"], row["group"]), [0, 0, 0])
        for index, name in enumerate(("train", "holdout", "dropped")):
            total[index] += row[name]
    counts = tuple(GroupCount(shard, group, *total) for (shard, group), total in totals.items())
    watched = zip(*(map(Sample.from_bytes, row.get("samples", ())) for row in parts), strict=True)
    samples = tuple(reduce(Sample.merge, column) for column in watched)
    return DatasetStatistics(
        merge_all(stats), counts, sum(row["imputed"] for row in parts), samples
    )


def fetch(refs: Sequence[Any], schema: FeatureSchema) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """All chunks as one contiguous matrix (B, C) in this process, with the holdout mask (B,)."""
    features: list[NDArray[Any]] = []
    held: list[NDArray[np.bool_]] = []
    for ref in refs:
        table = ray.get(ref)
        for chunk in table.column("features"):
            flat = np.frombuffer(chunk.as_buffer(), dtype=schema.dtype)
            features.append(flat.reshape(-1, schema.width))
        held += [np.frombuffer(mask.as_buffer(), dtype=np.bool_) for mask in table.column("held")]
    return np.concatenate(features), np.concatenate(held)


@dataclass(frozen=True)
class _ReadSlices:
    rows: Rows

    def __call__(self, items: Sequence[Slice]) -> Iterator[pa.Table]:
        for part in items:
            for features in self.rows.read_slice(part):
                yield pa.table({"features": _cell(features)})


def stream_features(
    rows: Rows, slices: Sequence[Slice], cpus: float = 1.0
) -> Iterator[NDArray[Any]]:
    """The features of `slices`, in order; Ray Data reads one run of tasks while another is consumed.

    Each task needs `cpus` CPUs.
    Each run is a short execution of its own. A single long one would be throttled to its consumer's
    pace and would poll meanwhile, in this process, for a third of the training time.
    """

    def size(part: Slice) -> int:
        return (part.stop - part.start) * rows.schema.row_bytes

    def read(run: Sequence[Slice]) -> list[Any]:
        """References to the tables of a run."""
        tasks = pack(run, size, TASK_BYTES)
        return list(stream(tasks, _ReadSlices(rows), cpus).to_arrow_refs())

    runs = iter(pack(slices, size, RUN_BYTES))
    opener = ThreadPoolExecutor(1, "hourglass-read")
    try:
        first = next(runs, None)
        reading = None if first is None else opener.submit(read, first)
        while reading is not None:
            with plain_errors(rows.shards, rows.read_through, cpus):
                refs = reading.result()
            following = next(runs, None)
            reading = None if following is None else opener.submit(read, following)
            while refs:  # each reference is dropped before the next is read
                for chunk in ray.get(refs.pop(0)).column("features"):
                    flat = np.frombuffer(chunk.as_buffer(), dtype=rows.schema.dtype)
                    yield flat.reshape(-1, rows.schema.width)
    finally:
        opener.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def threads_ended() -> Iterator[None]:
    """A context in which Ray Data reads: at its end, wait for threads that Ray Data started in it.

    A thread that calls Ray after a shutdown exits the whole process with code 1 and without a message.
    """
    before = {*threading.enumerate()}
    try:
        yield
    finally:
        for thread in {*threading.enumerate()} - before:
            if thread.name.startswith(_THREADS):
                thread.join(THREAD_S)


@contextlib.contextmanager
def plain_errors(
    shards: Sequence[Shard], read: Callable[[int], None], cpus: float
) -> Iterator[None]:
    """A context that raises the DataError of a read task without Ray's frames around it.

    When processes that read `shards` have died, each shard is read once more (see `find_fatal`) to name
    the one that kills them.
    """
    try:
        with threads_ended():
            yield
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DataError):
            raise DataError(first_line(cause)) from None  # Ray appends lines of its own
        raise DataError(f"reading failed: {error}") from error
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        message = find_fatal(shards, read, cpus)
        if message is not None:
            raise DataError(message) from None
        raise DataError(f"reading failed: {first_line(error)}") from error


def find_fatal(shards: Sequence[Shard], read: Callable[[int], None], cpus: float) -> str | None:
    """An error message naming the first shard that kills the process that reads it, or None.

    `read` reads the shard with a given number, in a task of `cpus` CPUs.
    """
    task = ray.remote(num_cpus=cpus, max_retries=0)(lambda read, number: read(number))
    # No more tasks than can run at once, so that the rest end by themselves: cancelling a task as it ends
    # can abort this process, with a failed check in Ray ("task that was not pending").
    running = max(1, int(ray.cluster_resources().get("CPU", 0) / cpus))
    reads = {number: task.remote(read, number) for number in range(min(running, len(shards)))}
    try:
        for number, shard in enumerate(shards):
            try:
                ray.get(reads.pop(number))
            except ray.exceptions.WorkerCrashedError:
                return f"reading failed: the process that read {shard.path} died; is it damaged?"
            if number + running < len(shards):
                reads[number + running] = task.remote(read, number + running)
    except ray.exceptions.RayError:
        pass  # the cause is not a shard
    return None
