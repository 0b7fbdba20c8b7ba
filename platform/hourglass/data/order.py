"""The order of rows, computed in advance and independent of timing.

Which rows make up step t of epoch e is a pure function of (manifest, seed, epoch), and of the number of
streams where rows are streamed. Every permutation comes from sorting raw PCG64 output, which NumPy keeps
fixed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Split = Literal["train", "holdout"]


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of one row group, counted among the rows of `split`."""

    shard: int
    group: int
    split: Split
    start: int
    stop: int


@dataclass(frozen=True)
class GroupCount:
    """Rows of one row group: in training, held out, dropped for missing cells."""

    shard: int
    group: int
    train: int
    holdout: int
    dropped: int = 0

    def of(self, split: Split) -> int:
        """Rows of one split."""
        return self.train if split == "train" else self.holdout


def holdout_mask(shard_name: str, group: int, start: int, rows: int, share: float) -> Mask:
    """True for held-out rows, by a hash of (shard name, row group, row), the same on every cluster."""
    key = hashlib.blake2b(f"{shard_name}\0{group}".encode(), digest_size=8).digest()
    mixed = np.arange(start, start + rows, dtype=np.uint64) + np.uint64(
        int.from_bytes(key, "little")
    )
    with np.errstate(over="ignore"):  # the finaliser of SplitMix64 (Steele et al. 2014)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    mask: Mask = (mixed >> np.uint64(11)) < np.uint64(int(share * 2**53))
    return mask


def permutation(rows: int, *key: int) -> Indices:
    """A uniform permutation of `rows` indices that depends on `key` alone."""
    # SeedSequence ignores trailing zeros, so the length counts as well.
    seed = np.random.SeedSequence((len(key), *key))
    return np.argsort(np.random.PCG64(seed).random_raw(rows), kind="stable")


def bounds(rows: int, parts: int) -> list[int]:
    """Cut `rows` into contiguous, near-equal parts: parts + 1 bounds."""
    return [rows * part // parts for part in range(parts + 1)]


def memory_batches(rows: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """The global batches of a cached epoch: an exact permutation, cut into `batch_size`."""
    order = permutation(rows, seed, epoch)
    return [order[start : start + batch_size] for start in range(0, rows, batch_size)]


def stream_cuts(rows: int, batch_size: int, streams: int) -> list[int]:
    """Cut `rows` rows into one part for each stream: streams + 1 bounds.

    The parts are as large as the streams' shares of a batch, so all of them end in the same step.
    """
    return [rows * cut // batch_size for cut in bounds(batch_size, streams)]


def stream_slices(
    counts: Sequence[GroupCount], split: Split, cuts: Sequence[int], order: Indices | None = None
) -> list[list[Slice]]:
    """Row groups in `order`, split among streams as contiguous runs of rows that end at `cuts`."""
    dealt: list[list[Slice]] = [[] for _ in cuts[1:]]
    offset = stream = 0
    for group in counts if order is None else [counts[i] for i in order]:
        end = offset + group.of(split)
        low = offset
        while low < end:
            high = min(end, cuts[stream + 1])
            if low < high:
                part = Slice(group.shard, group.group, split, low - offset, high - offset)
                dealt[stream].append(part)
            low = high
            if low < end:
                stream += 1
        offset = end
    return dealt


def epoch_slices(
    counts: Sequence[GroupCount], seed: int, epoch: int, batch_size: int, streams: int
) -> list[list[Slice]]:
    """What each stream has in an epoch: the training rows, row groups permuted."""
    cuts = stream_cuts(sum(count.train for count in counts), batch_size, streams)
    return stream_slices(counts, "train", cuts, permutation(len(counts), seed, epoch))


def stream_step_rows(rows: int, batch_size: int, streams: int) -> list[list[int]]:
    """Rows of each stream in each step of a streamed epoch: [step][stream].

    Every step but the last has `batch_size` rows, and each stream is read in order.
    """
    full, rest = divmod(rows, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    return [np.diff(stream_cuts(size, batch_size, streams)).tolist() for size in sizes]


def skip_rows(slices: Sequence[Slice], rows: int) -> list[Slice]:
    """The rest of a stream after its first `rows` rows."""
    left = []
    for part in slices:
        length = part.stop - part.start
        if rows < length:
            left.append(Slice(part.shard, part.group, part.split, part.start + rows, part.stop))
        rows = max(0, rows - length)
    return left
