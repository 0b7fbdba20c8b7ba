"""The numbers of a report: arrays in, numbers out, nothing drawn.

Shapes: B rows, F features in model space, K code units or bits of a hash.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

Array = NDArray[Any]
Floats = NDArray[np.float64]
STILL = 1e-6
"""A unit that moves by less than this, relative to its size, does not move."""
PAIRS = 20_000
FEWEST_PAIRS = 10
"""A Hamming distance with fewer pairs has no mean worth drawing."""


def principal(rows: Array, components: int) -> Floats:
    """The first principal components (B, components) of `rows` (B, F); 0 where there are fewer."""
    most = min(components, *rows.shape)
    wide = rows.astype(np.float64)
    made: Floats = np.zeros((len(rows), components))
    made[:, :most] = PCA(most, random_state=0).fit_transform(wide)
    return made


@dataclass(frozen=True)
class Bins:
    """A histogram: `edges` (N + 1,) and `counts` (N,)."""

    edges: Floats
    counts: NDArray[np.int64]
    log: bool


def bins(values: Array, skewed: bool = False, most: int = 60) -> Bins:
    """A histogram of `values`; `skewed` ones above a factor of 30 get bins of equal ratio."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    low, high = float(flat.min()), float(flat.max())
    log = skewed and low > 0 and high / low > 30
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, most + 1) if log else np.linspace(low, high, most + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return Bins(edges, np.histogram(flat, edges)[0], log)


def dead_units(code: Array) -> NDArray[np.bool_]:
    """True (K,) for units whose code never varies over the rows (B, K); always 0 is one such way."""
    spread = np.ptp(code.astype(np.float64), axis=0)
    return np.asarray(spread <= STILL * np.maximum(1.0, np.abs(code).max(axis=0)))


def bit_balance(bits: Array) -> Floats:
    """Share of ones of each bit, (K,); 0.5 tells most."""
    return np.asarray(bits.mean(axis=0, dtype=np.float64))


def bit_correlation(bits: Array) -> Floats:
    """Pearson's correlation of the bits, (K, K); NaN for a bit that never changes."""
    centred = bits - bits.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(np.square(centred).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(centred.T @ centred / np.outer(spread, spread))


def bucket_sizes(hashes: Array) -> NDArray[np.int64]:
    """How many rows share each hash that occurs, largest first; `hashes` are packed, (B, bytes)."""
    counts = np.unique(hashes, axis=0, return_counts=True)[1]
    return np.sort(counts)[::-1].astype(np.int64)


def doubling(sizes: NDArray[np.int64]) -> dict[str, int]:
    """Numbers counted in classes 1, 2-3, 4-7, 8-15, ... up to the largest."""
    top = int(sizes.max()).bit_length()
    classes = np.frexp(sizes)[1]  # frexp's exponent of n is n.bit_length()
    counts = np.bincount(classes, minlength=top + 1)
    names = ["1", *(f"{2 ** (n - 1)}-{2**n - 1}" for n in range(2, top + 1))]
    return {name: int(count) for name, count in zip(names, counts[1:], strict=True)}


@dataclass(frozen=True)
class ByHamming:
    """Mean cosine distance of the pairs of rows at each Hamming distance, and how many there are."""

    hamming: NDArray[np.int64]
    cosine: Floats
    pairs: NDArray[np.int64]


def cosine_by_hamming(
    rows: Array, bits: Array, pairs: int = PAIRS, fewest: int = FEWEST_PAIRS, seed: int = 0
) -> ByHamming:
    """1 - cosine of pairs of rows (B, F), averaged by the Hamming distance of their bits (B, K).

    The pairs are drawn with `seed`, of two different rows each; rows of length 0 are left out.
    """
    rng = np.random.default_rng(seed)
    first = rng.integers(len(rows), size=pairs)
    second = (first + rng.integers(1, len(rows), size=pairs)) % len(rows)
    wide = rows.astype(np.float64)
    length = np.sqrt(np.square(wide).sum(axis=1))
    apart = np.empty(pairs)
    for at in range(0, pairs, 1000):  # 1,000 pairs of rows in memory at a time
        i, j = first[at : at + 1000], second[at : at + 1000]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.einsum("pf,pf->p", wide[i], wide[j]) / (length[i] * length[j])
        apart[at : at + 1000] = 1.0 - cosine
    hamming = (bits[first] != bits[second]).sum(axis=1)
    known = np.isfinite(apart)
    width = bits.shape[1] + 1
    counts = np.bincount(hamming[known], minlength=width)
    sums = np.bincount(hamming[known], weights=apart[known], minlength=width)
    enough = np.flatnonzero(counts >= fewest)
    return ByHamming(enough, sums[enough] / counts[enough], counts[enough].astype(np.int64))


def worst(score: Array, count: int) -> NDArray[np.int64]:
    """The rows with the highest scores, highest first."""
    return np.argsort(-np.asarray(score), kind="stable")[:count]
