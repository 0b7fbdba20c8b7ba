"""Data loaders: all workers together see the planned rows, and a resumed epoch ends with the same rows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hourglass.data.loader import Loader, MemoryLoader, StreamLoader
from hourglass.data.order import GroupCount, Slice
from hourglass.errors import DataError

Loaders = Callable[[int, int], Loader]
KINDS = st.sampled_from(["memory", "stream"])
GROUPS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 5)), min_size=1, max_size=6)
COLUMNS = 3


class Dataset:
    """Row groups whose rows hold their own number; held-out rows are numbered from 10,000."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.counts = [GroupCount(0, group, *size) for group, size in enumerate(sizes)]
        self.train, self.held = [
            self._numbers(first, [size[i] for size in sizes]) for i, first in enumerate((0, 10_000))
        ]

    @staticmethod
    def _numbers(first: int, sizes: Sequence[int]) -> list[np.ndarray]:
        numbers = np.repeat(np.arange(first, first + sum(sizes))[:, None], COLUMNS, axis=1)
        return np.split(numbers.astype(np.float32), np.cumsum(sizes)[:-1])

    def read(self, chunk: int, slices: Sequence[Slice]) -> Iterator[np.ndarray]:
        for part in slices:
            rows = (self.train if part.split == "train" else self.held)[part.group]
            for start in range(part.start, part.stop, chunk):
                yield rows[start : min(start + chunk, part.stop)]

    def loader(
        self,
        kind: str,
        batch: int,
        seed: int,
        worker: int,
        workers: int,
        *,
        window: int,
        chunk: int,
        streams: int | None = None,
    ) -> Loader:
        common = {"batch_size": batch, "seed": seed, "worker": worker, "workers": workers}
        if kind == "memory":
            features = np.concatenate([*self.train, *self.held])
            return MemoryLoader(features, features[:, 0] >= 10_000, **common)
        read = partial(self.read, chunk)
        return StreamLoader(
            self.counts, read, columns=COLUMNS, window_rows=window, streams=streams, **common
        )

    @property
    def rows(self) -> int:
        return sum(map(len, self.train))


@given(
    KINDS, GROUPS, st.integers(1, 5), st.integers(0, 40), st.integers(1, 30), st.integers(1, 9),
    st.integers(0, 99), st.integers(0, 3),
)  # fmt: skip
def test_every_row_once_and_resumed_from_every_step(
    kind: str,
    sizes: list[tuple[int, int]],
    workers: int,
    more: int,
    window: int,
    chunk: int,
    seed: int,
    epoch: int,
) -> None:
    data, batch = Dataset(sizes), workers + more
    loaders = [
        data.loader(kind, batch, seed, worker, workers, window=window, chunk=chunk)
        for worker in range(workers)
    ]
    seen = [list(loader.train(epoch)) for loader in loaders]
    steps = -(-data.rows // batch)
    assert [loader.steps for loader in loaders] == [steps] * workers
    drawn = [int(row) for batches in seen for batch in batches for row in batch.rows[:, 0]]
    assert sorted(drawn) == list(range(data.rows))
    for step in range(steps):
        at_step = [batches[step] for batches in seen]
        sizes_here = {batch.total for batch in at_step}
        assert sizes_here == {sum(len(batch.rows) for batch in at_step)}
        assert all(batch.rows.shape[1] == COLUMNS for batch in at_step)
        for loader, batches in zip(loaders, seen, strict=True):
            resumed = list(loader.train(epoch, step))
            assert len(resumed) == steps - step
            for left, right in zip(resumed, batches[step:], strict=True):
                assert np.array_equal(left.rows, right.rows)
                assert left.total == right.total
    held = [int(row) for loader in loaders for part in loader.holdout() for row in part[:, 0]]
    assert held == [int(row) for part in data.held for row in part[:, 0]]


@given(GROUPS, st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))
def test_a_stream_is_the_same_however_it_is_read(
    sizes: list[tuple[int, int]], workers: int, one: int, other: int
) -> None:
    data = Dataset(sizes)
    for worker in range(workers):
        streams = [
            list(data.loader("stream", 8, 3, worker, workers, window=7, chunk=chunk).train(1))
            for chunk in (one, other)
        ]
        for left, right in zip(*streams, strict=True):
            assert np.array_equal(left.rows, right.rows)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_epochs_differ(kind: str) -> None:
    loader = Dataset([(50, 0)] * 4).loader(kind, 32, 0, 0, 1, window=64, chunk=10)
    orders = {
        tuple(int(row) for batch in loader.train(epoch) for row in batch.rows[:, 0])
        for epoch in range(5)
    }
    assert len(orders) == 5


def test_only_the_windows_that_are_left_are_read_again() -> None:
    data = Dataset([(20, 0)] * 10)
    asked: list[int] = []

    def read(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
        asked.append(sum(part.stop - part.start for part in slices))
        return data.read(100, slices)

    loader = StreamLoader(data.counts, read, columns=COLUMNS, batch_size=10, seed=0, window_rows=50)
    for step in (0, 4, 5, 14, 19):
        list(loader.train(0, step))
    assert asked == [200, 200, 150, 100, 50]


@pytest.mark.parametrize(("slices", "streams"), [(512, 1), (25, 2), (10, 4), (1, 4)])
def test_short_epochs_share_a_stream(
    slices: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four epochs of ten row groups are read in as few streams as STREAM_SLICES allows."""
    data, opened = Dataset([(20, 1)] * 10), []
    monkeypatch.setattr("hourglass.data.loader.STREAM_SLICES", slices)

    def read(parts: Sequence[Slice]) -> Iterator[np.ndarray]:
        opened.append(len(parts))
        return data.read(7, parts)

    def loader(epochs: int) -> StreamLoader:
        return StreamLoader(
            data.counts, read, columns=COLUMNS, batch_size=10, seed=0, window_rows=50, epochs=epochs
        )  # fmt: skip

    shared = loader(4)
    seen = [list(shared.train(epoch)) for epoch in range(4)]
    assert len(opened) == streams
    assert sum(opened) == 4 * 10
    for epoch, batches in enumerate(seen):
        alone = list(loader(1).train(epoch))
        assert all(np.array_equal(a.rows, b.rows) for a, b in zip(batches, alone, strict=True))


def test_an_epoch_begun_again_is_read_again() -> None:
    data = Dataset([(20, 0)] * 10)
    loader = StreamLoader(
        data.counts, lambda parts: data.read(7, parts), columns=COLUMNS, batch_size=10, seed=0,
        window_rows=50, epochs=3,
    )  # fmt: skip
    next(loader.train(0))
    first, again = list(loader.train(0)), list(loader.train(0))
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(first, again, strict=True))


def test_a_stream_that_ends_early_is_an_error() -> None:
    data = Dataset([(20, 0)])
    loader = StreamLoader(
        data.counts,
        lambda slices: iter([data.train[0][:15]]),
        columns=COLUMNS,
        batch_size=20,
        seed=0,
        window_rows=64,
    )
    with pytest.raises(
        DataError, match="^the shards changed while they were read: 5 rows are missing$"
    ):
        list(loader.train(0))


@given(
    KINDS, GROUPS, st.integers(1, 8), st.integers(0, 40), st.integers(1, 30), st.integers(1, 9),
    st.integers(0, 99), st.data(),
)  # fmt: skip
def test_a_step_has_the_same_rows_for_any_number_of_workers(
    kind: str,
    sizes: list[tuple[int, int]],
    most: int,
    more: int,
    window: int,
    chunk: int,
    seed: int,
    data: st.DataObject,
) -> None:
    """In the same order, each worker's from its `start` on; also from a step within an epoch."""
    dataset, batch = Dataset(sizes), most + more
    options = {"window": window, "chunk": chunk, "streams": most}
    alone = dataset.loader(kind, batch, seed, 0, 1, **options)
    first = data.draw(st.integers(0, alone.steps))
    workers = data.draw(st.integers(1, most))
    several = [
        dataset.loader(kind, batch, seed, worker, workers, **options).train(1, first)
        for worker in range(workers)
    ]
    for whole in alone.train(1, first):
        parts = [next(steps) for steps in several]
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
        assert {part.total for part in parts} == {len(whole.rows)}
        starts = np.cumsum([0, *(len(part.rows) for part in parts[:-1])])
        assert [part.start for part in parts if len(part.rows)] == [
            start for start, part in zip(starts, parts, strict=True) if len(part.rows)
        ]
    assert [next(steps, None) for steps in several] == [None] * workers


def test_without_streams_the_rows_of_a_step_depend_on_the_number_of_workers() -> None:
    """The negative control: one stream for each worker."""
    dataset = Dataset([(20, 0), (20, 0)])
    firsts = [
        {
            float(row)
            for worker in range(workers)
            for row in next(
                dataset.loader("stream", 8, 3, worker, workers, window=10, chunk=5).train(0)
            ).rows[:, 0]
        }
        for workers in (1, 2)
    ]
    assert len(firsts[0]) == len(firsts[1]) == 8
    assert firsts[0] != firsts[1]
