"""The plan: every row once, for any number of workers, and the same plan for the same arguments."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hourglass.data import order
from hourglass.data.order import GroupCount, Slice

COUNTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=9).map(
    lambda pairs: [GroupCount(i // 3, i % 3, *pair) for i, pair in enumerate(pairs)]
)
WORKERS = st.integers(1, 6)
BATCH = st.integers(1, 50)
SEED = st.integers(0, 2**31 - 1)
EPOCH = st.integers(0, 1000)


def rows_of(slices: list[Slice]) -> list[tuple[int, int, int]]:
    return [(s.shard, s.group, row) for s in slices for row in range(s.start, s.stop)]


@given(st.integers(0, 300), BATCH, SEED, EPOCH, WORKERS)
def test_memory_rows_come_once_an_epoch(
    rows: int, batch_size: int, seed: int, epoch: int, workers: int
) -> None:
    batches = order.memory_batches(rows, batch_size, seed, epoch)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    shares = [np.split(batch, order.bounds(len(batch), workers)[1:-1]) for batch in batches]
    for batch, parts in zip(batches, shares, strict=True):
        assert np.concatenate(parts).tolist() == batch.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    drawn = [int(row) for parts in shares for part in parts for row in part]
    assert sorted(drawn) == list(range(rows))
    again = order.memory_batches(rows, batch_size, seed, epoch)
    assert all(map(np.array_equal, batches, again))


@given(COUNTS, SEED, EPOCH, BATCH, WORKERS)
def test_streamed_rows_come_once_an_epoch(
    counts: list[GroupCount], seed: int, epoch: int, batch_size: int, workers: int
) -> None:
    dealt = order.epoch_slices(counts, seed, epoch, batch_size, workers)
    assert len(dealt) == workers
    every = [(c.shard, c.group, row) for c in counts for row in range(c.train)]
    assert sorted(row for slices in dealt for row in rows_of(slices)) == every
    assert all(part.start < part.stop for slices in dealt for part in slices)
    assert order.epoch_slices(counts, seed, epoch, batch_size, workers) == dealt

    steps = order.stream_step_rows(len(every), batch_size, workers)
    assert [sum(step) for step in steps] == [
        len(batch) for batch in order.memory_batches(len(every), batch_size, seed, epoch)
    ]
    for worker in range(workers):
        assert sum(step[worker] for step in steps) == len(rows_of(dealt[worker]))


@given(COUNTS, WORKERS)
def test_held_out_rows_come_once(counts: list[GroupCount], workers: int) -> None:
    held = sum(count.holdout for count in counts)
    dealt = order.stream_slices(counts, "holdout", order.bounds(held, workers))
    drawn = [row for slices in dealt for row in rows_of(slices)]
    assert drawn == [(c.shard, c.group, row) for c in counts for row in range(c.holdout)]


@given(COUNTS, SEED, BATCH, WORKERS, st.integers(0, 400))
def test_skipping_is_dropping_the_first_rows(
    counts: list[GroupCount], seed: int, batch_size: int, workers: int, skip: int
) -> None:
    for slices in order.epoch_slices(counts, seed, 0, batch_size, workers):
        assert rows_of(order.skip_rows(slices, skip)) == rows_of(slices)[skip:]


def test_epochs_and_seeds_differ() -> None:
    keys = list(itertools.product(range(4), range(4)))
    orders = {tuple(order.permutation(50, *key).tolist()) for key in keys}
    assert len(orders) == 16
    counts = [GroupCount(0, group, 10, 0) for group in range(50)]
    plans = {str(order.epoch_slices(counts, seed, epoch, 32, 2)) for seed, epoch in keys}
    assert len(plans) == 16


def test_a_key_is_more_than_its_numbers_without_zeros() -> None:
    orders = [order.permutation(50, *key).tolist() for key in ((7,), (7, 0), (7, 0, 0, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    raw = [np.random.PCG64(np.random.SeedSequence(key)).random_raw() for key in ((7, 0), (7, 0, 0))]
    assert raw[0] == raw[1]  # the control: NumPy itself does not tell them apart


def test_permutations_are_these_for_ever() -> None:
    assert order.permutation(10, 7, 0).tolist() == [8, 0, 7, 6, 4, 5, 3, 1, 9, 2]
    assert order.permutation(10, 2**31 - 1, 3, 1, 2).tolist() == [1, 6, 3, 4, 8, 7, 5, 2, 0, 9]


def test_positions_of_a_permutation_are_uniform() -> None:
    firsts = np.bincount([order.permutation(8, seed)[0] for seed in range(8000)], minlength=8)
    assert ((firsts - 1000) ** 2 / 1000).sum() < 24.3  # chi-squared, 7 degrees, p = 0.001


@given(
    st.text(max_size=20),
    st.integers(0, 99),
    st.lists(st.integers(0, 200), max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_holdout_does_not_depend_on_chunks(
    name: str, group: int, chunks: list[int], share: float
) -> None:
    rows = sum(chunks)
    starts = np.cumsum([0, *chunks])[:-1]
    parts = [
        order.holdout_mask(name, group, int(start), length, share)
        for start, length in zip(starts, chunks, strict=True)
    ]
    whole = order.holdout_mask(name, group, 0, rows, share)
    assert np.array_equal(np.concatenate([np.zeros(0, bool), *parts]), whole)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_holdout_share_is_right(share: float) -> None:
    held = [order.holdout_mask("part-0.parquet", group, 0, 10_000, share) for group in range(10)]
    deviation = np.sqrt(share * (1 - share) / 100_000)
    assert abs(np.mean(held) - share) <= 4 * deviation
    agree = np.mean(held[0] == held[1])  # row groups are independent of each other
    assert abs(agree - (share**2 + (1 - share) ** 2)) <= 0.03


def test_holdout_is_these_rows_for_ever() -> None:
    held = order.holdout_mask("train/part-00000.parquet", 3, 0, 64, 0.1)
    assert np.flatnonzero(held).tolist() == [1, 31, 32, 39, 53, 55, 56, 59]
