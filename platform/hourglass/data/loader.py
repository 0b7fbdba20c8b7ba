"""Data loaders: batches for the training loop, with one worker's share of each planned step.

Shapes: B rows of this worker, C columns.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hourglass.data import order
from hourglass.data.order import GroupCount, Slice
from hourglass.errors import DataError

Features = NDArray[Any]
HOLDOUT_ROWS = 1024
STREAM_SLICES = 512
"""Row groups that one stream reads, over several short epochs or one longer one."""


class Batch(NamedTuple):
    """This worker's rows (B, C) of one step, the rows of that step on all workers, and where among
    those the worker's begin."""

    rows: Features
    total: int
    start: int = 0


class Loader(Protocol):
    """A deterministic source of batches: the same arguments always give the same rows."""

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        ...

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from `first_step` on."""
        ...

    def holdout(self) -> Iterator[Features]:
        """This worker's share of the held-out rows."""
        ...

    def seeded(self, seed: int) -> Self:
        """The same rows in the orders of another seed."""
        ...


class MemoryLoader:
    """All rows in memory; each epoch is an exact permutation of all training rows."""

    def __init__(
        self,
        features: Features,
        held: NDArray[np.bool_],
        *,
        batch_size: int,
        seed: int,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        self._rows = features[~held] if held.any() else features
        self._held = features[held]
        self._batch_size, self._seed = batch_size, seed
        self._worker, self._workers = worker, workers

    @classmethod
    def from_split(cls, train: Features, holdout: Features, *, batch_size: int, seed: int) -> Self:
        """A loader of rows that are split already, which it neither copies nor changes."""
        loader = cls(train, np.zeros(len(train), dtype=np.bool_), batch_size=batch_size, seed=seed)
        loader._held = holdout
        return loader

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return -(-len(self._rows) // self._batch_size)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from `first_step` on."""
        batches = order.memory_batches(len(self._rows), self._batch_size, self._seed, epoch)
        for batch in batches[first_step:]:
            cuts = order.bounds(len(batch), self._workers)
            start, stop = cuts[self._worker], cuts[self._worker + 1]
            yield Batch(self._rows[batch[start:stop]], len(batch), start)

    def holdout(self) -> Iterator[Features]:
        """This worker's share of the held-out rows."""
        cuts = order.bounds(len(self._held), self._workers)
        for start in range(cuts[self._worker], cuts[self._worker + 1], HOLDOUT_ROWS):
            yield self._held[start : min(start + HOLDOUT_ROWS, cuts[self._worker + 1])]

    def seeded(self, seed: int) -> Self:
        """The same rows, not copied, in the orders of another seed."""
        other = copy.copy(self)
        other._seed = seed
        return other


class StreamLoader:
    """Row groups are permuted and split among streams, and rows shuffled exactly within windows.

    `read` streams the features of slices in order, as `reading.stream_features` does. A step has the same
    rows for any number of workers, each of which reads its share of the `streams`; a run whose number of
    workers does not change has one stream for each.
    """

    def __init__(
        self,
        counts: Sequence[GroupCount],
        read: Callable[[Sequence[Slice]], Iterator[Features]],
        *,
        columns: int,
        batch_size: int,
        seed: int,
        window_rows: int,
        epochs: int = 1,
        keep_bytes: int = 0,
        worker: int = 0,
        workers: int = 1,
        streams: int | None = None,
    ) -> None:
        self._counts, self._read = counts, read
        self._keep_bytes = keep_bytes
        self._kept: list[Features] | None = None
        self._worker, self._workers = worker, workers
        streams = streams or workers
        cuts = order.bounds(streams, workers)
        plan = _Plan(counts, read, columns, batch_size, seed, window_rows, epochs, streams)
        self._mine = range(cuts[worker], cuts[worker + 1])
        self._streams = [_Stream(plan, index) for index in self._mine]
        rows = sum(count.train for count in counts)
        self._step_rows = order.stream_step_rows(rows, batch_size, streams)

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return len(self._step_rows)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of `epoch` from `first_step` on; windows before it are not read again."""
        before = self._step_rows[:first_step]
        opened = [
            stream.after(epoch, sum(step[stream.index] for step in before))
            for stream in self._streams
        ]
        for step in self._step_rows[first_step:]:
            parts = [
                buffer.take(step[stream.index])
                for stream, buffer in zip(self._streams, opened, strict=True)
            ]
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
            yield Batch(rows, sum(step), sum(step[: self._mine.start]))

    def holdout(self) -> Iterator[Features]:
        """This worker's share of the held-out rows; cached when they fit in `keep_bytes`.

        Held-out rows are in every row group, so reading them again means decoding all rows again.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Features] = []
        size = 0
        for features in self._read_holdout():
            size += features.nbytes
            if size <= self._keep_bytes:
                kept.append(features)
            yield features
        self._kept = kept if size <= self._keep_bytes else None

    def seeded(self, seed: int) -> Self:
        """The same rows in the orders of another seed, with the held-out rows cached so far."""
        other = copy.copy(self)
        other._streams = [
            _Stream(stream.plan._replace(seed=seed), stream.index) for stream in self._streams
        ]
        return other

    def _read_holdout(self) -> Iterator[Features]:
        cuts = order.bounds(sum(count.holdout for count in self._counts), self._workers)
        slices = order.stream_slices(self._counts, "holdout", cuts)[self._worker]
        for features in self._read(slices):
            for start in range(0, len(features), HOLDOUT_ROWS):
                # Arrays in Ray's object store are read-only, and PyTorch warns of views of those.
                yield features[start : start + HOLDOUT_ROWS].copy()


class _Plan(NamedTuple):
    """What all streams of a run have in common."""

    counts: Sequence[GroupCount]
    read: Callable[[Sequence[Slice]], Iterator[Features]]
    columns: int
    batch_size: int
    seed: int
    window: int
    epochs: int
    streams: int


class _Stream:
    """One part of each epoch's row groups, read in order and shuffled within windows."""

    def __init__(self, plan: _Plan, index: int) -> None:
        self.plan, self.index = plan, index
        self._open: tuple[range, _Buffer] | None = None

    def after(self, epoch: int, rows: int) -> "_Buffer":
        """The rows of `epoch` after the first `rows`."""
        window = rows // self.plan.window
        buffer = _Buffer(self._shuffled(epoch, window), self.plan.columns)
        buffer.take(rows - window * self.plan.window)
        return buffer

    def _slices(self, epoch: int) -> list[Slice]:
        plan = self.plan
        dealt = order.epoch_slices(plan.counts, plan.seed, epoch, plan.batch_size, plan.streams)
        return dealt[self.index]

    def _shuffled(self, epoch: int, window: int) -> Iterator[Features]:
        plan = self.plan
        ahead, stream = self._opened(epoch, window)
        left = sum(part.stop - part.start for part in self._slices(epoch)) - window * plan.window
        while left > 0:
            rows = stream.take(min(plan.window, left))
            left -= len(rows)
            if not left and ahead:
                self._open = (ahead, stream)
            yield rows[order.permutation(len(rows), plan.seed, epoch, self.index, window)]
            window += 1

    def _opened(self, epoch: int, window: int) -> "tuple[range, _Buffer]":
        """The stream positioned at this window, and the later epochs that it contains.

        Opening a stream takes as long as hundreds of steps of a small model, so short epochs share one.
        """
        left, self._open = self._open, None
        if left is not None and window == 0 and left[0][0] == epoch:
            return left[0][1:], left[1]
        slices = order.skip_rows(self._slices(epoch), window * self.plan.window)
        ahead = epoch + 1
        while ahead < self.plan.epochs and len(slices) < STREAM_SLICES:
            slices += self._slices(ahead)
            ahead += 1
        return range(epoch + 1, ahead), _Buffer(self.plan.read(slices), self.plan.columns)


class _Buffer:
    """Takes a given number of rows from a stream of arrays of any length."""

    def __init__(self, arrays: Iterator[Features], columns: int) -> None:
        self._arrays = arrays
        self._current: Features = np.empty((0, columns))

    def take(self, rows: int) -> Features:
        """The next `rows` rows, in order. Raises DataError when the stream ends early."""
        parts: list[Features] = []
        while rows:
            if not len(self._current):
                following = next(self._arrays, None)
                if following is None:
                    raise DataError(
                        f"the shards changed while they were read: {rows} rows are missing"
                    )
                self._current = following
            parts.append(self._current[:rows])
            self._current = self._current[len(parts[-1]) :]
            rows -= len(parts[-1])
        if not parts:
            return self._current[:0]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
